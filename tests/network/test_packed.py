"""Packed rows: every state is that of a pass over the row alone, and a shared beginning is one position."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.network.activations import capture, read_once, run_behind, run_body
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.packed import Packed, pack
from palimpsest.network.tokens import Batch, pad
from tests.editing import EXACT, double, every_family

ids = st.lists(st.integers(2, 5), min_size=0, max_size=6)
"""Rows over four ids, so that many begin alike and some are equal."""


def tree(rows: list[list[int]]) -> int:
    """Number of distinct beginnings: the tokens that have to be read."""
    return len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})


@given(st.lists(ids, min_size=1, max_size=12), st.integers(1, 40))
def test_every_row_is_found_and_sees_itself_alone(rows: list[list[int]], width: int) -> None:
    packed = pack(rows, width)
    whole = packed.ids.flatten()
    b, t = packed.ids.shape
    assert t <= max(width, *(len(row) for row in rows))
    for row, place in zip(rows, packed.place.tolist(), strict=True):
        own = place[: len(row)]
        assert whole[own].tolist() == row
        assert packed.positions.flatten()[own].tolist() == list(range(len(row)))
        assert all(other == -1 for other in place[len(row) :])
        for length, at in enumerate(own, start=1):
            line = at // t
            seen = (packed.allowed[line, at % t].nonzero()[:, 0] + line * t).tolist()
            assert sorted(seen) == sorted(own[:length])
    used = {at for place in packed.place.tolist() for at in place if at >= 0}
    assert tree(rows) <= len(used) <= sum(map(len, rows))
    free = sorted(set(range(b * t)) - used)
    assert all(packed.allowed[at // t, at % t].nonzero()[:, 0].tolist() == [at % t] for at in free)


@given(st.lists(ids, min_size=1, max_size=12))
def test_in_one_line_every_beginning_is_read_once(rows: list[list[int]]) -> None:
    packed = pack(rows, 1000)
    assert len(packed.ids) == 1
    assert packed.ids.shape[1] == tree(rows)


def test_rows_keep_their_order_and_empty_ones_have_no_place() -> None:
    packed = pack([[7, 8], [], [7, 9, 9]], 16)
    assert packed.place.tolist() == [[0, 1, -1], [-1, -1, -1], [0, 2, 3]]
    assert packed.last[[0, 2]].tolist() == [1, 3]
    assert pack([], 16).ids.shape == (0, 0)


def alone(model: EditableModel, row: list[int], site: Site) -> torch.Tensor:
    batch = Batch(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool))
    return capture(model, batch, [site])[site][0]


ROWS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 9], [11, 12, 13, 14, 15, 16], [5], [11, 12, 40]]


@every_family
@pytest.mark.parametrize("width", [1, 8, 64])
def test_states_are_those_of_each_row_alone(kind: str, width: int) -> None:
    model, packed = double(kind), pack(ROWS, width)
    for site in (Site(0, "input"), Site(2, "key"), Site(2, "value"), Site(3, "hidden")):
        found = capture(model, packed, [site])[site].flatten(0, 1)
        for row, place in zip(ROWS, packed.place, strict=True):
            expected = alone(model, row, site)
            torch.testing.assert_close(found[place[: len(row)]], expected, rtol=EXACT[kind], atol=EXACT[kind])


@every_family
def test_rows_behind_a_prefix_that_is_read_once(kind: str) -> None:
    model, prefix = double(kind), [21, 22, 23]
    body = model.net.get_submodule(model.family.norm.rsplit(".", 1)[0])
    packed = pack(ROWS, 8)
    found = run_behind(model, prefix, packed).flatten(0, 1)
    for row, place in zip(ROWS, packed.place, strict=True):
        expected = body(torch.tensor([[*prefix, *row]])).last_hidden_state[0, 3:]
        torch.testing.assert_close(found[place[: len(row)]], expected, rtol=EXACT[kind], atol=EXACT[kind])
    padded = pad(model.tokenizer, ROWS, "left")
    behind = run_behind(model, prefix, padded)
    for i, row in enumerate(ROWS):
        expected = found[packed.place[i, : len(row)]]
        torch.testing.assert_close(behind[i, -len(row) :], expected, rtol=EXACT[kind], atol=EXACT[kind])
    assert read_once(model, prefix, 2).get_seq_length() == 3


def test_a_packed_batch_goes_to_a_device_and_back() -> None:
    packed = pack(ROWS, 8).to("meta")
    assert isinstance(packed, Packed)
    parts = (packed.ids, packed.positions, packed.allowed, packed.place)
    assert {part.device.type for part in parts} == {"meta"}
    assert run_body(double("llama"), pack(ROWS, 8), use_cache=False).last_hidden_state.shape[2] == 32
