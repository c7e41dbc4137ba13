"""How hard edits are, against direct computations on tiny random models."""

from itertools import chain

import pytest
import torch

from palimpsest.algebra.conflict import inconsistency
from palimpsest.algebra.projector import null_space
from palimpsest.algebra.spectrum import rank
from palimpsest.datasets import percentile_reached
from palimpsest.errors import NonFiniteError, ShapeError
from palimpsest.memory.keys import subject_hidden, subject_keys
from palimpsest.memory.moments import collect, text_keys
from palimpsest.network.model import read_weight
from palimpsest.network.tokens import token_windows
from palimpsest.studies.difficulty import difficulty_of, pair_conflict, past_conflict
from tests.editing import CONTEXTS, KINDS, REQUESTS, double, texts
from tests.problems import gaussian
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = (0, 1, 3)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|cos| of every column of one with every column of the other."""
    a, b = a.double(), b.double()
    return (a.T @ b).abs() / (a.norm(dim=0)[:, None] * b.norm(dim=0)[None])


@pytest.mark.parametrize("kind", KINDS)
def test_measure_is_the_direct_computation(kind: str) -> None:
    model = double(kind)
    values = gaussian(3, 32, len(REQUESTS))
    kept = {0: torch.cat(list(text_keys(model, 0, 200, texts())), 1)}
    moment = collect(model, [3], token_windows(model.tokenizer, texts(), 300, 64))[3]
    projector = null_space(moment, rank(20))
    frame = difficulty_of(
        model, REQUESTS, LAYERS, values, CONTEXTS, {0: kept[0].split(50, 1)}, {3: projector}
    )
    assert list(frame) == [
        "layer", "request", "conflict_preserved", "conflict_projected", "inconsistency", "share",
    ]  # fmt: skip
    assert frame["layer"].tolist() == [layer for layer in LAYERS for _ in REQUESTS]
    assert frame["request"].tolist() == [request.text for request in REQUESTS] * 3
    by_layer = {layer: frame[frame["layer"] == layer] for layer in LAYERS}

    keys = {layer: subject_keys(model, REQUESTS, layer, CONTEXTS) for layer in LAYERS}
    expected = cosines(keys[0], kept[0]).amax(1)
    torch.testing.assert_close(torch.tensor(by_layer[0]["conflict_preserved"].to_numpy()), expected)
    removed = 1 - projector.apply(keys[3]).square().sum(0) / keys[3].square().sum(0)
    torch.testing.assert_close(torch.tensor(by_layer[3]["conflict_projected"].to_numpy()), removed)
    assert by_layer[3]["conflict_preserved"].isna().all()
    assert by_layer[0]["conflict_projected"].isna().all()

    residual = values - subject_hidden(model, REQUESTS, 3)
    for layer, left in zip(LAYERS, (3, 2, 1), strict=True):
        full = torch.tensor(by_layer[layer]["inconsistency"].to_numpy())
        torch.testing.assert_close(full, residual.norm(dim=0))
        share = torch.tensor(by_layer[layer]["share"].to_numpy())
        torch.testing.assert_close(share, residual.norm(dim=0) / left)
        # The paper's form: the value asked of this layer is what it gives now and its part of the residual.
        weight = read_weight(model, layer)
        wanted = weight @ keys[layer] + residual / left
        torch.testing.assert_close(share, inconsistency(keys[layer], wanted, weight))


def test_what_is_not_given_is_nan_and_ids_are_used() -> None:
    frame = difficulty_of(tiny_model("llama"), REQUESTS[:1], [1])
    assert frame.drop(columns=["layer", "request"]).isna().all(axis=None)


def test_a_kept_fact_is_in_full_conflict_with_itself_and_text_alone_is_not() -> None:
    model = double("llama")
    own = subject_keys(model, REQUESTS[1:2], 1, ("",))
    kept = {1: chain(text_keys(model, 1, 200, texts()), [own])}
    found = difficulty_of(model, REQUESTS, [1], preserved=kept)["conflict_preserved"]
    assert found[1] == pytest.approx(1)
    assert found.drop(1).max() < 1 - 1e-6


@pytest.mark.parametrize("layers", [[], [1, 1], [2, 1]])
def test_layers_must_ascend(layers: list[int]) -> None:
    with pytest.raises(ShapeError, match=r"4 requests at layers .*; give at least one request, and distinct"):
        difficulty_of(tiny_model("llama"), REQUESTS, layers)


@pytest.mark.usefixtures("unchecked")
def test_values_must_fit() -> None:
    model = tiny_model("llama")
    expected = r"values have shape \(32, 3\), expected \(d_v, n\) = \(32, 4\); optimise them for"
    with pytest.raises(ShapeError, match=expected):
        difficulty_of(model, REQUESTS, [1], torch.zeros(32, 3))
    with pytest.raises(NonFiniteError, match="values hold NaN or infinity; optimise them again"):
        difficulty_of(model, REQUESTS, [1], torch.full((32, 4), torch.nan))
    with pytest.raises(ShapeError, match="0 requests at layers"):
        difficulty_of(model, [], [1])


def test_past_conflict_is_the_largest_cosine_with_earlier_batches() -> None:
    keys = gaussian(0, 6, 7)
    keys[:, 5] = -3 * keys[:, 1]
    keys[:, 4] = keys[:, 3]  # in the same batch: no conflict with each other
    found = past_conflict(keys, [2, 3, 2])
    table = cosines(keys, keys)
    expected = torch.tensor(
        [table[i, :start].max() if start else 0 for i, start in enumerate([0, 0, 2, 2, 2, 5, 5])]
    ).double()
    torch.testing.assert_close(found, expected)
    assert float(found[5]) == pytest.approx(1)
    assert past_conflict(keys[:, :0], []).shape == (0,)


@pytest.mark.parametrize("batches", [[2, 3], [7, 0], [8]])
def test_batches_must_add_up(batches: list[int]) -> None:
    with pytest.raises(ShapeError, match=r"must be 1 or more each and add up to the 7 keys; give the sizes"):
        past_conflict(gaussian(0, 6, 7), batches)


def test_pair_conflict_by_hand() -> None:
    keys = torch.tensor([[1.0, 3.0, 0.0], [0.0, 4.0, 0.0]])
    earlier = torch.tensor([[-2.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(pair_conflict(keys, earlier), torch.tensor([1, 0.6, 0]).double())
    for a, b in ((keys / 0, earlier), (earlier, keys / 0)):
        with pytest.raises(NonFiniteError, match="keys hold NaN or infinity; nothing was compared"):
            pair_conflict(a, b)


def test_rewritten_facts_are_nearer_to_an_earlier_edit_than_random_ones_are() -> None:
    """The bar of AlphaSet2, with keys in place of a model's, and a random choice as negative control."""
    base = gaussian(1, 40, 60)
    again = base[:, :10] + 0.2 * gaussian(2, 40, 10)
    everyone = past_conflict(base, [10] * 6)[10:].tolist()
    assert percentile_reached(pair_conflict(again, base[:, :10]).tolist(), everyone) >= 90
    assert percentile_reached(everyone[:10], everyone) < 90


# --- the keys of texts --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_keys_are_those_that_statistics_sum(kind: str) -> None:
    model = tiny_model(kind)
    blocks = list(text_keys(model, 2, 333, texts(), window=24, batch_size=5))
    assert len(blocks) > 1
    moment = collect(model, [2], token_windows(model.tokenizer, texts(), 333, 24), batch_size=5)[2]
    keys = torch.cat(blocks, 1).double()
    assert keys.shape[1] == moment.count == 333
    torch.testing.assert_close(keys @ keys.T, moment.total, rtol=1e-12, atol=1e-12)
    several = collect(model, [2, 1], token_windows(model.tokenizer, texts(), 333, 24), batch_size=5)
    assert torch.equal(several[2].total, moment.total)


def test_streamed_keys_come_from_the_texts_of_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.memory.moments.statistics_texts", lambda: texts(seed=4))
    model = tiny_model("llama")
    default, own = (torch.cat(list(text_keys(model, 1, 100, t)), 1) for t in (None, texts(seed=4)))
    assert torch.equal(default, own)
    with pytest.raises(ShapeError, match=r"the texts hold .* tokens, 900 were asked for; ask for fewer"):
        next(iter(text_keys(model, 1, 900, texts(3))))
