"""Facts and matrices in a file against the same in memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.algebra import fact_file
from palimpsest.algebra.fact_file import BLOCK, FactFile, mapped
from palimpsest.algebra.ledger_facts import Facts
from tests.problems import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")
D_K, D_V = 5, 2
PARTS = ("keys", "values", "outputs", "weights")


def some(seed: int, n: int) -> Facts:
    weights = gaussian(seed + 3, n).abs() + 0.1
    ids = tuple(f"{seed}-{i}" for i in range(n))
    return Facts(ids, gaussian(seed, D_K, n), gaussian(seed + 1, D_V, n), weights, gaussian(seed + 2, D_V, n))


def alike(one: Facts | FactFile, two: Facts | FactFile) -> bool:
    return one.ids == two.ids and all(torch.equal(getattr(one, part), getattr(two, part)) for part in PARTS)


steps = st.lists(
    st.tuples(st.sampled_from(["join", "without", "put"]), st.integers(0, 6), st.integers(0, 2**20)),
    max_size=12,
)


@given(n=st.integers(0, 8), history=steps)
def test_every_change_is_that_of_facts_in_memory(n, history):
    held, filed = some(-1, n), FactFile.of(some(-1, n))
    earlier = []
    for i, (operation, size, seed) in enumerate(history):
        columns = np.random.default_rng(seed).permutation(len(held))[:size].tolist()
        earlier.append((held, filed))
        if operation == "join":
            held, filed = held.join(some(i, size)), filed.join(some(i, size))
        elif operation == "without":
            held, filed = held.without(columns), filed.without(columns)
        else:
            values = gaussian(seed, D_V, len(columns))
            held, filed = held.put(columns, values), filed.put(columns, values)
        assert len(filed) == len(held)
        last = list(range(len(held)))[-2:][::-1]
        assert alike(filed.take(last), held.take(last))
    for one, two in [*earlier, (held, filed)]:
        assert alike(one, two)  # earlier objects still hold their facts


def test_blocks_are_all_facts_in_order():
    filed = FactFile.of(some(0, 2 * BLOCK + 5)).without([0, BLOCK])
    parts = list(filed.blocks())
    assert [len(part) for part in parts] == [BLOCK, BLOCK, 3]
    assert torch.equal(torch.cat([part.keys for part in parts], 1), filed.keys)
    assert [name for part in parts for name in part.ids] == list(filed.ids)


def test_neighbours_are_one_run():
    filed = FactFile.of(some(0, 3))
    for i in range(1, 50):
        filed = filed.join(some(i, 2))
    assert filed.runs == ((0, 101),)
    assert filed.without([4]).join(some(50, 1)).runs == ((0, 4), (5, 97))
    assert FactFile.of(some(0, 0)).runs == ()


def test_a_file_of_mostly_outdated_rows_is_left_for_a_new_one():
    filed = FactFile.of(some(0, 4))
    assert FactFile.of(filed) is filed
    changed = filed
    for i in range(BLOCK):
        changed = changed.put([1, 3], gaussian(i, D_V, 2))
    found = FactFile.of(changed)
    assert found.records is not changed.records
    assert found.runs == ((0, 4),)
    assert alike(found, changed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 4), (3,), (0, 2)])
def test_a_mapped_tensor_has_every_bit(dtype, shape):
    before = gaussian(0, *shape).to(dtype)
    found = mapped(before)
    assert (found.dtype, found.shape) == (dtype, before.shape)
    assert torch.equal(found, before)
    assert found.data_ptr() != before.data_ptr() or not before.numel()


def test_a_transposed_tensor_is_mapped_as_it_looks():
    assert torch.equal(mapped(gaussian(0, 4, 3).T), gaussian(0, 4, 3).T)


def test_without_room_for_a_file_a_tensor_stays_where_it_is(monkeypatch):
    def full(**_):
        raise OSError("no space left")

    monkeypatch.setattr(fact_file.tempfile, "TemporaryFile", full)
    before = gaussian(0, 3, 3)
    assert mapped(before) is before
