"""Post-processing: with feedback the weight before it is the one-time one; without, what it takes is lost."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from palimpsest.algebra.postprocess import Prune, Rect, largest_singular_value
from palimpsest.editors import base
from palimpsest.network.model import read_weight
from palimpsest.theory import labyrinth
from tests.editing import double, every_kind, same_bits, snapshot
from tests.sequences import (
    BATCHES,
    LAYERS,
    apart,
    direct,
    drawn,
    every_anchor,
    make,
    offline,
    quicken,
    run,
    state_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

POSTS: dict[str, Any] = {
    "rect": Rect(keep=0.4),
    "rect against the start": Rect(keep=0.2, against="start"),
    "prune steps": Prune(bound="current"),
    "prune the total": Prune(of="total", base=1.2),
}

every_post = pytest.mark.parametrize("post", POSTS)


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from offline(tmp_path_factory)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values so far away that updates outgrow the spectrum of the weights, and PRUNE has something to do."""
    monkeypatch.setattr(base, "optimise_targets", drawn(60.0))


# Post-processing, with and without feedback.


def watched(
    monkeypatch: pytest.MonkeyPatch, kind: type, processed: Callable[[Tensor], Tensor] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The weight before and after each post-processing, layer by layer and step by step."""
    seen: list[tuple[Tensor, Tensor]] = []
    real: Any = kind.__call__

    def call(self: Any, delta: Tensor, weight: Tensor, start: Tensor) -> Tensor:
        after = real(self, delta, weight, start) if processed is None else processed(delta)
        seen.append((weight + delta, weight + after))
        return after

    monkeypatch.setattr(kind, "__call__", call)
    return seen


def random_post(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Another operation at each call: some entries lost, the others shaken."""
    generator = torch.Generator().manual_seed(seed)

    def processed(delta: Tensor) -> Tensor:
        shaken = delta + 0.2 * delta.std() * torch.randn(delta.shape, generator=generator).double()
        return shaken * (torch.rand(delta.shape, generator=generator) < 0.6)

    return processed


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("kind", "retain"), [("llama", "all"), ("gpt2", "latest")])
@pytest.mark.parametrize("post", [*POSTS, "random"])
def test_with_feedback_the_weight_before_post_processing_is_the_one_time_one(
    kind: str, retain: Any, post: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the returned one is not."""
    chosen, processed = POSTS.get(post, Rect()), random_post() if post == "random" else None
    seen = watched(monkeypatch, type(chosen), processed)
    editor = make("both", retain=retain, post=chosen, feedback=True)
    found, weights = run(editor, BATCHES, double(kind))
    assert len(seen) == len(BATCHES) * len(LAYERS)
    for number, step in enumerate(found):
        state, now = state_of(step), seen[3 * number : 3 * number + 3]
        before, after = ({i: pair[k] for i, pair in zip(LAYERS, now, strict=True)} for k in (0, 1))
        exact = direct(editor, state)
        assert apart(before, exact, state) < 1e-8
        assert apart(after, exact, state) > 1e-4
        assert apart(weights[number], after, state) < 1e-12


@pytest.mark.usefixtures("large")
@every_kind
@pytest.mark.parametrize("retain", ["all", "latest"])
def test_without_feedback_what_was_taken_away_is_lost(kind: str, retain: Any) -> None:
    """Unedited reads give all runs the same facts, so the one-time weight is that without a post."""
    model = double(kind)
    plain = make("both", retain=retain, reads="unedited")
    found, exact = run(plain, BATCHES, model)
    for feedback in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            seen = watched(patch, Rect)
            run(replace(plain, post=Rect(), feedback=feedback), BATCHES, model)
        before = {i: pair[0] for i, pair in zip(LAYERS, seen[-3:], strict=True)}
        gap = apart(before, exact[-1], state_of(found[-1]))
        assert gap < 1e-8 if feedback else gap > 1e-3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("correction", ["overwritten", "none"])
@every_kind
@pytest.mark.parametrize("post", ["rect", "random"])
def test_one_layer_is_algorithm_1_as_written(
    kind: str, correction: Any, post: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the dense algorithm with its matrix E; without feedback, against the same without E."""
    seen = watched(monkeypatch, Rect, random_post() if post == "random" else None)
    editor = make(
        "both",
        layers=(1,),
        reads="unedited",
        post=Rect(keep=0.3, against="start"),
        feedback=correction == "overwritten",
    )
    found, _ = run(editor, BATCHES, double(kind))
    state, ours = state_of(found[-1]), list(seen)
    unprocessed, plain = run(replace(editor, post=None, feedback=False), BATCHES, double(kind))
    facts = state_of(unprocessed[-1]).ledgers[1]
    cuts = [slice(0, 2), slice(2, 3), slice(3, 6)]
    batches = [labyrinth.FactBatch(facts.keys[:, cut], facts.values[:, cut]) for cut in cuts]
    moment, weight = 20.0 * state.prepared.moments[1], state.unedited[1]
    projector = state.prepared.projectors[1].apply(torch.eye(len(moment)).double())
    problem = labyrinth.RunProblem(weight, moment, projector, editor.ridge)
    rect, other = editor.post, random_post()
    printed = labyrinth.error_feedback(
        problem,
        batches,
        other if post == "random" else lambda delta: rect(delta, weight, weight),  # type: ignore[misc]
        correction,
    )
    for (before, after), wanted, returned in zip(ours, printed.before, printed.after, strict=True):
        assert (before - wanted).norm() < 1e-8 * (wanted - weight).norm()
        assert (after - returned).norm() < 1e-8 * (returned - weight).norm()
    exact = correction == "overwritten"
    assert ((ours[-1][0] - plain[-1][1]).norm() < 1e-8 * (plain[-1][1] - weight).norm()) == exact


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@every_anchor
@pytest.mark.parametrize("retain", ["all", "latest"])
def test_feedback_without_post_processing_is_no_feedback(anchor: str, retain: Any) -> None:
    model = double("llama")
    found, weights = run(make(anchor, retain=retain), BATCHES, model)
    _, fed = run(make(anchor, retain=retain, feedback=True), BATCHES, model)
    assert apart(fed[-1], weights[-1], state_of(found[-1])) < 1e-9


@pytest.mark.usefixtures("quick")
@every_post
def test_a_naive_step_is_processed_and_the_next_starts_from_the_result(
    post: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch, type(POSTS[post]))
    editor, model = make(retain="none", post=POSTS[post]), double("llama")
    found, weights = run(editor, BATCHES, model)
    for number, step in enumerate(found):
        for index, layer in enumerate(LAYERS):
            before, after = seen[3 * number + index]
            torch.testing.assert_close(weights[number][layer], after, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(state_of(step).ledgers[layer].weight, before)


@pytest.mark.usefixtures("large")
@every_kind
@pytest.mark.parametrize("doubled", [False, True])
def test_pruning_at_the_end_adds_one_step(kind: str, doubled: bool) -> None:
    """W_0 + f(D), or W_0 + D + f(D) as the AlphaEdit code does; the steps before are the naive sequence."""
    model = double(kind)
    editor = make(retain="none", post=Prune(of="total", when="end", doubled=doubled))
    before = snapshot(model)
    found, weights = run(editor, BATCHES, model)
    assert same_bits(model, before)
    assert [step.number for step in found] == [0, 1, 2, 3]
    assert [len(step.requests) for step in found] == [2, 1, 3, 0]
    _, naive = run(replace(editor, post=None), BATCHES, model)
    state = state_of(found[-1])
    for now, wanted in zip(weights, naive, strict=False):
        assert apart(now, wanted, state) < 1e-12
    for layer in LAYERS:
        start, edited = state.unedited[layer], naive[-1][layer]
        limit = torch.linalg.matrix_norm(start, 2)
        u, sigma, vt = torch.linalg.svd(edited - start, full_matrices=False)
        assert sigma[0] > limit
        squeezed = u * torch.where(sigma > limit, sigma.log() - limit.log() + limit, sigma) @ vt
        wanted = (edited if doubled else start) + squeezed
        torch.testing.assert_close(weights[-1][layer], wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.weights[layer], wanted, rtol=1e-9, atol=1e-9)
        notes = found[-1].edit.notes
        assert notes["step_norm"][layer] == pytest.approx(float((wanted - edited).norm()))
        assert notes["total_norm"][layer] == pytest.approx(float((wanted - start).norm()))


def test_the_tiny_models_give_post_processing_something_to_do() -> None:
    """Of the tests above: the updates there do outgrow the spectrum that PRUNE compares them with."""
    model = double("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "optimise_targets", drawn(60.0))
        made, _ = make("both").edit(model, BATCHES[0])
    for layer, delta in made.deltas.items():
        assert largest_singular_value(delta) > largest_singular_value(read_weight(model, layer))
