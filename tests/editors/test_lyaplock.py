"""LyapLock: its update from the printed objective, and the bound that its queue keeps."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from palimpsest.editors import edit
from palimpsest.editors.lyaplock import Kept, LyapLock
from palimpsest.network.apply import commit
from palimpsest.network.model import read_weight
from tests.editing import CONTEXTS, REQUESTS, begun, double, every_kind, small, stub_texts

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

D_K, D_V = 6, 4


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr("palimpsest.editors.base.sample_contexts", lambda *_: CONTEXTS)


def drawn(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_problem(
    seed: int, new: int, past: int, queue: float
) -> tuple[Kept, Tensor, Tensor, Tensor, Tensor]:
    draw = drawn(seed)
    root = draw(D_K, 2 * D_K)
    kept = Kept(draw(D_V, D_K), draw(D_K, past), draw(D_V, past), queue, 1.0)
    return kept, draw(D_K, new), draw(D_V, new), draw(D_V, D_K), root @ root.T / (2 * D_K)


@given(st.integers(0, 99), st.integers(1, 4), st.integers(0, 4), st.floats(1, 50))
def test_the_update_minimises_the_printed_objective(seed: int, new: int, past: int, queue: float) -> None:
    """Its gradient over W is zero: ‖WK − V‖² + ‖WK_p − V_p‖² + qλ PL, written out in the weights."""
    kept, keys, residual, drift, moment = random_problem(seed, new, past, queue)
    editor = LyapLock((0,), preserve_weight=0.7)
    before = kept.unedited + drift
    weight = before + editor.solved(kept, keys, residual, drift, moment).delta
    weight.requires_grad_()
    values, held = before @ keys + residual, kept.unedited @ kept.keys + kept.shifts
    gap = weight - kept.unedited
    loss = (weight @ keys - values).square().sum() + (weight @ kept.keys - held).square().sum()
    (loss + queue * 0.7 * (gap @ moment * gap).sum()).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-8 * max(1.0, float(values.norm()), queue)


@given(st.integers(0, 99), st.integers(2, 12), st.floats(0.05, 3))
def test_a_queue_bounds_the_mean_of_what_is_lost(seed: int, batches: int, allowance: float) -> None:
    """PL ≤ αD on average, but for the queue that is left: the theorem behind the method, for any updates."""
    draw, editor = drawn(seed), LyapLock((0,), allowance=allowance)
    kept, losses, bound = Kept(draw(D_V, D_K), draw(D_K, 0), draw(D_V, 0)), [], 0.0
    for _ in range(batches):
        kept, loss = editor.next(kept, draw(D_K, 2), draw(D_V, D_K), torch.eye(D_K, dtype=torch.float64))
        losses.append(loss)
        bound = kept.bound
        assert kept.queue >= 1
    assert bound == pytest.approx(allowance * losses[0])
    assert sum(losses) / batches <= bound * (1 + (kept.queue - 1) / batches) * (1 + 1e-12)


def test_while_the_bound_is_kept_the_first_batch_is_memit() -> None:
    model = double("llama")
    ours, theirs = small("lyaplock", preserve_weight=20.0), small("memit", preserve_weight=20.0)
    made, _ = edit(ours, model, REQUESTS, begun(ours))
    wanted, _ = edit(theirs, model, REQUESTS, begun(theirs))
    for layer, delta in wanted.deltas.items():  # type: ignore[union-attr]
        torch.testing.assert_close(made.deltas[layer], delta)  # type: ignore[union-attr]


@every_kind
def test_a_sequence_remembers_and_a_tight_bound_holds_it_back(kind: str) -> None:
    found: dict[float, list[float]] = {}
    for allowance in (1e6, 1e-3):
        model = double(kind)
        editor = small("lyaplock", preserve_weight=0.1, allowance=allowance)
        state, first, losses = begun(editor), read_weight(model, 1).clone(), []
        for batch in (REQUESTS[:2], REQUESTS[2:], [replace(REQUESTS[0], target="French")]):
            made, state = edit(editor, model, batch, state)
            commit(model, made)
            losses.append(made.notes["preservation"][1])
            kept = state.kept[1]  # type: ignore[attr-defined]
            assert torch.equal(kept.unedited, first)
            torch.testing.assert_close(
                (read_weight(model, 1) - first) @ kept.keys[:, -len(batch) :], kept.shifts[:, -len(batch) :]
            )
        assert kept.keys.shape[1] == 5
        found[allowance] = [*losses, kept.queue]
    assert found[1e6][-1] == 1 < found[1e-3][-1]
    assert found[1e-3][0] == pytest.approx(found[1e6][0])
    assert found[1e-3][2] < found[1e6][2]
