"""EMMET: the constraint holds exactly, ROME is its case of one fact, and with slack it is MEMIT."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from palimpsest.editors import Memit, Prepared, Rome, edit
from palimpsest.editors.emmet import Emmet
from palimpsest.errors import SingularProblemError
from palimpsest.memory.settings import ContextSettings
from tests.editing import CONTEXTS, REQUESTS, double, every_kind, stub_texts
from tests.editors.test_editors import LAYERS, TOKENS, VALUES, moments, spread

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

START = Prepared(CONTEXTS)
COMMON: dict[str, Any] = {"statistics_tokens": TOKENS, "targets": VALUES}


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)


def problem(seed: int, facts: int, wide: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (d_k, n), a residual (d_v, n) and a positive definite C₀."""
    drawn = torch.Generator().manual_seed(seed)
    keys, residual, root = (
        torch.randn(*shape, generator=drawn, dtype=torch.float64)
        for shape in ((wide, facts), (5, facts), (wide, 3 * wide))
    )
    return keys, residual, root @ root.T / (3 * wide)


def formula(keys: Tensor, residual: Tensor, c0: Tensor, slack: float, weight: float) -> Tensor:
    """As printed, with inverses."""
    inverse = torch.linalg.inv(weight * c0)
    n = keys.shape[1]
    inner = keys.T @ inverse @ keys + (slack if n > 1 else 0) * torch.eye(n, dtype=keys.dtype)
    return residual @ torch.linalg.inv(inner) @ keys.T @ inverse


problems = st.tuples(st.integers(0, 10_000), st.integers(1, 6))


@given(problems, st.sampled_from([0.0, 0.01, 0.1, 10.0]), st.sampled_from([0.5, 1.0, 1000.0]))
def test_the_update_is_the_published_formula(case: tuple[int, int], slack: float, weight: float) -> None:
    keys, residual, c0 = problem(*case)
    found = Emmet(layers=(1,), slack=slack, preserve_weight=weight).update(keys, residual, c0)
    torch.testing.assert_close(found.delta, formula(keys, residual, c0, slack, weight), rtol=1e-7, atol=1e-9)


@given(problems)
def test_without_slack_every_residual_is_written_at_the_least_cost(case: tuple[int, int]) -> None:
    """What costs less than Δ under tr(Δ C₀ Δᵀ) breaks the constraint: Δ + E with EK = 0 costs more."""
    keys, residual, c0 = problem(*case)
    found = Emmet(layers=(1,), slack=0).update(keys, residual, c0)
    torch.testing.assert_close(found.delta @ keys, residual, rtol=1e-8, atol=1e-8)
    assert found.fit < 1e-8
    other, _, _ = problem(case[0] + 1, 5)
    beside = other.T - other.T @ keys @ torch.linalg.pinv(keys)
    assert (beside @ keys).abs().max() < 1e-8

    def cost(delta: Tensor) -> float:
        return float((delta @ c0 * delta).sum())

    for size in (-1.0, 0.1, 1.0):
        moved = cost(found.delta + size * beside)
        assert moved == pytest.approx(cost(found.delta) + cost(size * beside))
        assert moved > cost(found.delta)


@given(problems)
def test_what_is_left_goes_to_nothing_with_the_slack(case: tuple[int, int]) -> None:
    keys, residual, c0 = problem(case[0], max(2, case[1]))
    fits = [Emmet(layers=(1,), slack=s).update(keys, residual, c0).fit for s in (1e-2, 1e-4, 1e-6)]
    assert fits[0] > fits[1] > fits[2]
    exact = Emmet(layers=(1,), slack=0).update(keys, residual, c0).delta
    near = Emmet(layers=(1,), slack=1e-12).update(keys, residual, c0).delta
    torch.testing.assert_close(near, exact, rtol=1e-4, atol=1e-6)


@every_kind
def test_emmet_is_its_formula_layer_by_layer(kind: str) -> None:
    """Dense, in float64, from states that hooks of PyTorch alone have read."""
    model = double(kind)
    c0 = moments(model)
    made, _ = edit(Emmet(layers=LAYERS, slack=0.1, preserve_weight=7.0, **COMMON), model, REQUESTS, START)
    expected = spread(model, LAYERS, lambda layer, k, r: formula(k, r, c0[layer], 0.1, 7.0))
    for layer, delta in expected.items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-5, atol=1e-7)


@every_kind
def test_emmet_is_rome_for_one_fact_in_one_layer(kind: str) -> None:
    """With the same key and the same value, whatever the slack: it is for more than one fact."""
    model = double(kind)
    rome, _ = edit(Rome(layers=(1,), **COMMON), model, REQUESTS[:1], START)
    for slack in (0.0, 0.1):
        made, _ = edit(Emmet(layers=(1,), slack=slack, **COMMON), model, REQUESTS[:1], START)
        torch.testing.assert_close(made.deltas[1], rome.deltas[1], rtol=1e-7, atol=1e-10)


def test_emmet_with_slack_is_memit_with_slack_times_weight() -> None:
    model = double("llama")
    emmet = Emmet(layers=LAYERS, slack=0.25, preserve_weight=80.0, **COMMON)
    made, _ = edit(emmet, model, REQUESTS, START)
    memit, _ = edit(Memit(layers=LAYERS, preserve_weight=20.0, **COMMON), model, REQUESTS, START)
    for layer, delta in memit.deltas.items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-7, atol=1e-10)
    other, _ = edit(replace(emmet, slack=0.5), model, REQUESTS, START)
    assert not torch.allclose(other.deltas[0], made.deltas[0], rtol=1e-3)


def test_two_facts_with_one_key_have_no_exact_update() -> None:
    """The message says what to raise; with slack both get half of what they want."""
    twice = [REQUESTS[0], replace(REQUESTS[0], prompt="The mother tongue of {} was", target="Rome")]
    editor = Emmet(layers=(1,), slack=0, contexts=ContextSettings(count=0), **COMMON)
    with pytest.raises(SingularProblemError, match=r"2 keys on 64 free directions.*remove repeated"):
        edit(editor, double("llama"), twice, Prepared(("",)))
    made, _ = edit(replace(editor, slack=1e-6), double("llama"), twice, Prepared(("",)))
    assert made.norm() > 0
