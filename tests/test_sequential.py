"""What a sequence of edits is: at every layer W_0 plus one one-time solution, whatever the steps."""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from editing import CONTEXTS, KINDS, REQUESTS, double, same_bits, snapshot, stub_texts
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import tiny_model
from torch import Tensor

from palimpsest import equivalence, sequential
from palimpsest.apply import commit, installed
from palimpsest.deltas import Prune, Rect, largest_singular_value
from palimpsest.editors import AlphaEdit, Memit, base
from palimpsest.errors import (
    LedgerError,
    NonFiniteError,
    ProfileError,
    RequestError,
    SequenceError,
    SingularProblemError,
)
from palimpsest.model import EditableModel, fingerprint, read_weight, write_weight
from palimpsest.sequential import SequenceState, Sequential, Step, preserved_keys, steps
from palimpsest.settings import TargetSettings
from palimpsest.subjects import subject_hidden, subject_keys
from palimpsest.targets import Targets
from palimpsest.types import EditRequest

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = (0, 1, 2)
TOKENS = 1500
VALUES = TargetSettings(steps=4, lr=0.3)
PROMPTS = [
    *REQUESTS,
    EditRequest("{} works in the field of", "Marie Curie", "music"),
    EditRequest("The Space Needle is in {}, in the north", "Seattle", "Rome"),
]
FACTS = [replace(request, id=f"fact {i}") for i, request in enumerate(PROMPTS)]
OTHERS = [replace(fact, target=target) for fact, target in zip(FACTS, "ABCDEF", strict=True)]
BATCHES = [FACTS[:2], FACTS[2:3], FACTS[3:]]

ANCHORS: dict[str, dict[str, Any]] = {
    "memit": {"preserve_weight": 20.0},
    "alphaedit": {"ridge": 1.0, "rule": "energy", "threshold": 0.5},
    "both": {"preserve_weight": 20.0, "ridge": 2.0, "rule": "energy", "threshold": 0.5},
    "plain": {"ridge": 1.0},
}
POSTS: dict[str, Any] = {
    "rect": Rect(keep=0.4),
    "rect against the start": Rect(keep=0.2, against="start"),
    "prune steps": Prune(bound="current"),
    "prune the total": Prune(of="total", base=1.2),
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_anchor = pytest.mark.parametrize("anchor", ANCHORS)
every_post = pytest.mark.parametrize("post", POSTS)


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all tests of this file, texts without resources, contexts a random model cannot write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
        stub_texts(patch)
        yield


def drawn(size: float = 1.0) -> Callable[..., Targets]:
    """Values far quicker than optimised ones: the state now plus a random vector of the fact's own."""

    def values(model: EditableModel, requests: Sequence[EditRequest], layer: int, *_: Any) -> Targets:
        hidden = subject_hidden(model, requests, layer)
        columns = []
        for request in requests:
            seed = zlib.crc32(f"{request.text} -> {request.target}".encode())
            columns.append(torch.randn(len(hidden), generator=torch.Generator().manual_seed(seed)))
        deltas = size * torch.stack(columns, 1).to(hidden)
        return Targets(hidden + deltas, deltas, torch.zeros(len(requests), 1))

    return values


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, sequential):
        monkeypatch.setattr(module, "optimise_targets", drawn())


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values so far away that updates outgrow the spectrum of the weights, and PRUNE has something to do."""
    monkeypatch.setattr(sequential, "optimise_targets", drawn(60.0))


def make(host: str = "memit", /, **options: Any) -> Sequential:
    return Sequential(
        **{"layers": LAYERS, "statistics_tokens": TOKENS, "targets": VALUES, **ANCHORS[host], **options}
    )


def run(
    editor: Any, batches: Sequence[Sequence[EditRequest]], model: EditableModel
) -> tuple[list[Step], list[dict[int, Tensor]]]:
    """All steps of a sequence, and the weights of the model after each."""
    found, weights = [], []
    for step in steps(model, editor, batches):
        found.append(step)
        weights.append({layer: read_weight(model, layer).clone() for layer in editor.layers})
    return found, weights


def state_of(step: Step) -> SequenceState:
    assert isinstance(step.state, SequenceState)
    return step.state


def apart(found: dict[int, Tensor], wanted: dict[int, Tensor], state: SequenceState) -> float:
    """Largest difference over layers, relative to how far the wanted weight is from the unedited one."""
    gaps = [(found[i] - wanted[i]).norm() / (wanted[i] - state.unedited[i]).norm() for i in wanted]
    return float(max(gaps))


def one_time(editor: Sequential, state: SequenceState, layer: int, keys: Tensor, values: Tensor) -> Tensor:
    """W_0 + D by numpy's SVD least squares on one tall system in the coordinates of range(P)."""
    weight, moment = state.unedited[layer].double(), state.moments[layer]
    basis = torch.eye(len(moment)).double()
    if editor.rule is not None:
        share, vectors = torch.linalg.eigh(state.projectors[layer].apply(basis))
        basis = vectors[:, share > 0.5]
    spectrum, vectors = torch.linalg.eigh(editor.preserve_weight * moment)
    root = spectrum.clamp(min=0).sqrt()[:, None] * vectors.T
    ridge = editor.ridge**0.5 * torch.eye(basis.shape[1]).double()
    a = torch.cat([keys.T @ basis, root @ basis, ridge])
    b = torch.zeros(len(a), len(weight)).double()
    b[: keys.shape[1]] = (values - weight @ keys).T
    x = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
    return weight + torch.from_numpy(x.T) @ basis.T


def direct(editor: Sequential, state: SequenceState) -> dict[int, Tensor]:
    """The one-time weights over the facts in the ledgers of a state."""
    held = state.ledgers
    return {i: one_time(editor, state, i, held[i].keys, held[i].values) for i in editor.layers}


# Published sequences are settings of the one editor.


@every_kind
def test_naive_memit_is_the_memit_editor_called_again_and_again(kind: str) -> None:
    memit = Memit(layers=LAYERS, preserve_weight=20.0, statistics_tokens=TOKENS, targets=VALUES)
    _, published = run(memit, BATCHES, double(kind))
    found, weights = run(make(retain="none", values="each_step"), BATCHES, double(kind))
    for now, wanted in zip(weights, published, strict=True):
        assert apart(now, wanted, state_of(found[0])) < 1e-8
    _, once = run(make(retain="none", values="once"), BATCHES, double(kind))
    assert apart(once[0], published[0], state_of(found[0])) < 1e-8
    assert apart(once[2], published[2], state_of(found[0])) > 1e-3  # other values from the second batch on


@pytest.mark.usefixtures("quick")
@every_kind
@pytest.mark.parametrize(("keep_past", "retain"), [(True, "all"), (False, "none")])
def test_alphaedit_with_and_without_past_keys(kind: str, keep_past: bool, retain: Any) -> None:
    settings = {**ANCHORS["alphaedit"], "statistics_tokens": TOKENS, "targets": VALUES}
    _, published = run(AlphaEdit(layers=LAYERS, keep_past=keep_past, **settings), BATCHES, double(kind))
    found, weights = run(make("alphaedit", retain=retain, values="each_step"), BATCHES, double(kind))
    for now, wanted in zip(weights, published, strict=True):
        assert apart(now, wanted, state_of(found[0])) < 1e-8
    other: Any = {"all": "none", "none": "all"}[retain]
    _, wrong = run(make("alphaedit", retain=other, values="each_step"), BATCHES, double(kind))
    assert apart(wrong[0], published[0], state_of(found[0])) < 1e-8
    assert apart(wrong[2], published[2], state_of(found[0])) > 1e-3


# Whatever the steps: W_0 plus one one-time solution.


@pytest.mark.usefixtures("quick")
@every_kind
@every_anchor
@pytest.mark.parametrize(("retain", "values"), [("all", "once"), ("latest", "each_step")])
def test_each_layer_holds_the_one_time_solution_of_what_its_ledger_was_given(
    kind: str, anchor: str, retain: Any, values: Any
) -> None:
    editor = make(anchor, retain=retain, values=values)
    found, weights = run(editor, BATCHES, double(kind))
    for number, step in enumerate(found):
        state = state_of(step)
        assert apart(weights[number], direct(editor, state), state) < 1e-8
        kept = BATCHES[: number + 1] if retain == "all" else [BATCHES[number]]
        for ledger in state.ledgers.values():
            assert ledger.ids == tuple(fact.id for batch in kept for fact in batch)
            assert torch.equal(ledger.base, state.unedited[0]) == (ledger is state.ledgers[0])


@pytest.mark.usefixtures("quick")
@every_kind
def test_what_a_ledger_is_given_is_read_in_the_model_below_it(kind: str) -> None:
    """Keys under the lower layers' edits; values W_{t−1}K plus an even share of what is missing."""
    editor, model = make(), double(kind)
    wanted = drawn()(model, FACTS, LAYERS[-1]).values
    seen = 0
    for step in steps(model, editor, BATCHES):
        state, n = state_of(step), len(step.requests)
        place = slice(seen, seen + n)
        before = {i: state.weights[i] - step.edit.deltas[i] for i in LAYERS}
        after = {i: state.weights[i] for i in LAYERS}
        for layer in LAYERS:
            write_weight(model, layer, before[layer])
        for index, layer in enumerate(LAYERS):
            keys = subject_keys(model, step.requests, layer, CONTEXTS)
            share = (wanted[:, place] - subject_hidden(model, step.requests, 2)) / (len(LAYERS) - index)
            held = state.ledgers[layer]
            torch.testing.assert_close(held.keys[:, place], keys, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                held.values[:, place], before[layer] @ keys + share, rtol=1e-9, atol=1e-9
            )
            write_weight(model, layer, after[layer])
        seen += n


@pytest.mark.usefixtures("quick")
@every_kind
def test_what_a_ledger_is_given_with_unedited_reads_belongs_to_the_facts(kind: str) -> None:
    """Keys of the unedited model; values W_0K plus an even share of what is missing there."""
    model = double(kind)
    share = (drawn()(model, FACTS, LAYERS[-1]).values - subject_hidden(model, FACTS, 2)) / len(LAYERS)
    held = state_of(run(make(reads="unedited"), BATCHES, model)[0][-1]).ledgers
    for layer in LAYERS:
        keys = subject_keys(model, FACTS, layer, CONTEXTS)
        torch.testing.assert_close(held[layer].keys, keys, rtol=1e-9, atol=1e-9)
        wanted = read_weight(model, layer) @ keys + share
        torch.testing.assert_close(held[layer].values, wanted, rtol=1e-9, atol=1e-9)


Draft = list[list[tuple[int, bool]]]


@st.composite
def histories(draw: st.DrawFn) -> Draft:
    """Batches of (fact, which of two targets): facts come back, with the same target or the other."""
    fact = st.tuples(st.integers(0, 5), st.booleans())
    some = st.lists(fact, min_size=1, max_size=3, unique_by=lambda fact: fact[0])
    return draw(st.lists(some, min_size=1, max_size=3))


@given(
    histories(), st.sampled_from(["all", "latest"]), st.sampled_from(list(ANCHORS)), st.sampled_from(KINDS)
)
def test_with_unedited_reads_only_the_surviving_facts_matter(
    history: Draft, retain: Any, anchor: str, kind: str
) -> None:
    """Not the order of batches, how they are cut, what was overwritten or forgotten: Prop. 3.2 and 3.5."""
    batches = [[(OTHERS if other else FACTS)[i] for i, other in batch] for batch in history]
    surviving = {fact.id: fact for batch in (batches if retain == "all" else batches[-1:]) for fact in batch}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "optimise_targets", drawn())
        editor, model = make(anchor, layers=(0, 2), retain=retain, reads="unedited"), double(kind)
        found, weights = run(editor, batches, model)
        _, alone = run(editor, [list(surviving.values())], model)
    state = state_of(found[-1])
    assert apart(weights[-1], alone[0], state) < 1e-9
    assert all(set(ledger.ids) == set(surviving) for ledger in state.ledgers.values())


@pytest.mark.usefixtures("quick")
@every_kind
def test_with_edited_reads_the_order_of_batches_matters(kind: str) -> None:
    """So does cutting them: the ledgers are exact, but other keys and values were read."""
    model = double(kind)
    for reads, check in (("unedited", lambda gap: gap < 1e-9), ("edited", lambda gap: gap > 1e-4)):
        editor = make(reads=reads)
        found, weights = run(editor, BATCHES, model)
        for other in (BATCHES[::-1], [FACTS]):
            _, changed = run(editor, other, model)
            assert check(apart(changed[-1], weights[-1], state_of(found[-1])))


@pytest.mark.usefixtures("quick")
@every_kind
def test_a_naive_sequence_with_unedited_reads_is_not_the_one_time_edit(kind: str) -> None:
    """Negative control of the above: what counts is the problem that goes on."""
    model = double(kind)
    found, naive = run(make(retain="none", reads="unedited"), BATCHES, model)
    for retain in ("all", "latest"):
        _, exact = run(make(retain=retain, reads="unedited"), BATCHES, model)
        assert apart(naive[0], exact[0], state_of(found[0])) < 1e-9
        assert apart(naive[2], exact[2], state_of(found[0])) > 1e-2


# Memorise-the-latest.


@pytest.mark.usefixtures("quick")
@every_kind
@pytest.mark.parametrize("reads", ["edited", "unedited"])
def test_restarting_from_the_unedited_outputs_is_forgetting_the_last_batch(kind: str, reads: Any) -> None:
    """MEMIT_forgetting as released, without a ridge; with one the anchors differ, ‖Δ‖ against ‖W − W_0‖."""
    model = double(kind)
    for ridge, check in ((0.0, lambda gap: gap < 1e-8), (50.0, lambda gap: gap > 1e-4)):
        restart = make(retain="none", anchor="start", reads=reads, ridge=ridge)
        found, restarted = run(restart, BATCHES, model)
        _, forgot = run(make(retain="latest", reads=reads, ridge=ridge), BATCHES, model)
        assert apart(restarted[0], forgot[0], state_of(found[0])) < 1e-8
        assert check(apart(restarted[2], forgot[2], state_of(found[0])))


@pytest.mark.usefixtures("quick")
@every_kind
@pytest.mark.parametrize(
    ("options", "omit"),
    [
        ({"preserve_weight": 20.0, "anchor": "start"}, False),  # latest_full, Eq. 4
        ({"preserve_weight": 20.0, "anchor": "start", "rule": None}, False),
        ({}, True),  # latest_simplified, Eq. 3
    ],
)
def test_the_printed_recursions(kind: str, options: dict[str, Any], omit: bool) -> None:
    """D_t = (λD_{t−1} + R'KᵀP)(CP + KKᵀP + λI)⁻¹, for Eq. 3 without CP."""
    editor = make("alphaedit", retain="none", **options)
    found, weights = run(editor, BATCHES, double(kind))
    for layer in LAYERS:
        state = state_of(found[0])
        weight, identity = state.unedited[layer], torch.eye(len(state.moments[layer])).double()
        projector = state.projectors[layer].apply(identity) if editor.rule else identity
        moment = 20.0 * state.moments[layer]
        batches, total = [], torch.zeros_like(weight)
        for step, now in zip(found, weights, strict=True):
            ledger, n = state_of(step).ledgers[layer], len(step.requests)
            assert ledger.ids[-n:] == tuple(fact.id for fact in step.requests)
            keys, values = ledger.keys[:, -n:], ledger.values[:, -n:]
            system = (keys @ keys.T + (0 if omit else moment)) @ projector + editor.ridge * identity
            right = editor.ridge * total + (values - weight @ keys) @ keys.T @ projector
            total = torch.linalg.solve(system.T, right.T).T
            assert (now[layer] - weight - total).norm() < 1e-8 * total.norm()
            batches.append(equivalence.Batch(keys, values))
        problem = equivalence.Problem(weight, moment, projector, editor.ridge)
        for which, close in ((omit, True), (not omit, False)):
            printed = equivalence.latest(problem, batches, which)[-1]
            assert ((total - printed).norm() < 1e-8 * total.norm()) == close


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
    batches = [equivalence.Batch(facts.keys[:, cut], facts.values[:, cut]) for cut in cuts]
    moment, weight = 20.0 * state.moments[1], state.unedited[1]
    projector = state.projectors[1].apply(torch.eye(len(moment)).double())
    problem = equivalence.Problem(weight, moment, projector, editor.ridge)
    rect, other = editor.post, random_post()
    printed = equivalence.error_feedback(
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


# Facts that change, values, precision, notes.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "named"), [("llama", True), ("gpt2", False)])
def test_a_fact_written_again_is_held_once_with_its_new_target(kind: str, named: bool) -> None:
    """By its id, or by its text where it has none; then the old target leaves no trace."""
    model = double(kind)
    facts = FACTS if named else [replace(fact, id="") for fact in FACTS]
    again = replace(facts[0], target="French")
    for retain in ("all", "none"):
        editor = make(retain=retain, reads="unedited")
        found, weights = run(editor, [facts[:2], [facts[2], again]], model)
        _, once = run(editor, [[facts[1], facts[2], again]], model)
        assert (apart(weights[-1], once[-1], state_of(found[-1])) < 1e-9) == (retain == "all")
        held = [fact.id or fact.text for fact in ([facts[1]] if retain == "all" else []) + [facts[2], again]]
        assert all(list(ledger.ids) == held for ledger in state_of(found[-1]).ledgers.values())


@pytest.mark.parametrize("values", ["once", "each_step"])
def test_whose_values_are_optimised(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the unedited model once, or of the model as it is at each step."""
    asked, model = list[str](), double("llama")
    unedited = fingerprint(model)

    def spy(model: EditableModel, *rest: Any) -> Targets:
        asked.append(fingerprint(model))
        return drawn()(model, *rest)

    monkeypatch.setattr(sequential, "optimise_targets", spy)
    bases = [step.edit.base for step in steps(model, make(values=values), BATCHES)]
    assert bases[0] == unedited
    assert len(set(bases)) == 3
    assert asked == (bases if values == "each_step" else [unedited] * 3)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_to_the_models_precision_does_not_add_up(dtype: torch.dtype) -> None:
    """The state carries float64 weights, of which the model's are the nearest, after every step."""
    model = tiny_model("llama")
    model.net.to(dtype)
    for step in steps(model, make(), [[fact] for fact in FACTS]):
        for layer in LAYERS:
            held = state_of(step).weights[layer]
            assert held.dtype == torch.float64
            assert torch.equal(read_weight(model, layer), held.to(dtype))
            torch.testing.assert_close(held, state_of(step).ledgers[layer].weight, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("quick")
def test_notes_of_a_step() -> None:
    model = double("llama")
    found, weights = run(make(), BATCHES, model)
    state = state_of(found[-1])
    before = dict(state.unedited)
    for step, now in zip(found, weights, strict=True):
        notes = json.loads(json.dumps(step.edit.notes, allow_nan=False))
        n = len(step.requests)
        assert notes["facts"] == n
        assert notes["contexts"] == list(CONTEXTS)
        values = drawn()(model, step.requests, 2)
        assert notes["delta_norm"] == pytest.approx(values.deltas.norm(dim=0).tolist())
        assert notes["value_norm"] == pytest.approx(values.values.norm(dim=0).tolist())
        assert len(notes["loss_history"]) == n
        for i in LAYERS:
            assert notes["condition"][str(i)] == state_of(step).ledgers[i].condition
            assert notes["step_norm"][str(i)] == pytest.approx(float((now[i] - before[i]).norm()))
            assert notes["total_norm"][str(i)] == pytest.approx(float((now[i] - state.unedited[i]).norm()))
        before = now
    assert [state_of(step).steps for step in found] == [1, 2, 3]


def test_preserved_keys_are_columns_of_the_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    columns, names = preserved_keys(thin @ thin.T)
    assert columns.shape == (7, len(names))
    assert 4 <= len(names) < 7  # rounding may leave a direction of energy 1e-16
    assert len({*names}) == len(names)
    torch.testing.assert_close(columns @ columns.T, thin @ thin.T)


# Steps: what is in force between them, and what is left behind.


@pytest.mark.usefixtures("quick")
@every_kind
def test_steps_are_the_calls_of_the_editor_in_order(kind: str) -> None:
    model, twin, editor = double(kind), double(kind), make()
    before, state = snapshot(model), None
    for number, step in enumerate(steps(model, editor, BATCHES)):
        assert (step.number, step.requests) == (number, tuple(BATCHES[number]))
        made, state = editor.edit(twin, BATCHES[number], state)
        with installed(twin, made):
            assert same_bits(model, snapshot(twin))
        commit(twin, made)
        assert made.deltas.keys() == step.edit.deltas.keys()
        assert all(torch.equal(step.edit.deltas[i], delta) for i, delta in made.deltas.items())
    assert same_bits(model, before)


@pytest.mark.usefixtures("quick")
def test_leaving_early_puts_every_weight_back() -> None:
    model = tiny_model("gpt2")
    before = snapshot(model)
    for step in (running := steps(model, make(), BATCHES)):
        if step.number == 1:
            assert not same_bits(model, before)
            break
    running.close()
    assert same_bits(model, before)


@pytest.mark.parametrize("retain", ["none", "latest", "all"])
def test_a_batch_that_fails_puts_every_weight_back(retain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second layer of the third batch, after the first layer was written."""
    model, calls = tiny_model("llama"), list[int]()
    monkeypatch.setattr(sequential, "optimise_targets", drawn())
    real = sequential.EditLedger.insert

    def failing(self: Any, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise NonFiniteError("made up")
        return real(self, *args, **options)

    monkeypatch.setattr(sequential.EditLedger, "insert", failing)
    before, seen = snapshot(model), list[int]()
    with pytest.raises(NonFiniteError, match="made up"):
        seen += [step.number for step in steps(model, make(retain=retain), BATCHES)]
    assert seen == []  # the list was not built
    assert len(calls) == 8
    assert same_bits(model, before)


@pytest.mark.usefixtures("quick")
def test_a_failed_step_can_be_made_again() -> None:
    """Neither the model nor the state that was passed in is changed by a call, failed or not."""
    model, editor = double("llama"), make()
    first, state = editor.edit(model, BATCHES[0])
    commit(model, first)
    held = {i: (ledger.ids, ledger.weight) for i, ledger in state.ledgers.items()}
    before = snapshot(model)
    with pytest.raises(LedgerError, match="fact 2"):
        editor.edit(model, [FACTS[2], FACTS[2]], state)
    made, _ = editor.edit(model, BATCHES[1], state)
    again, _ = editor.edit(model, BATCHES[1], state)
    assert same_bits(model, before)
    assert all(torch.equal(made.deltas[i], again.deltas[i]) for i in LAYERS)
    for layer, (ids, weight) in held.items():
        assert state.ledgers[layer].ids == ids
        assert torch.equal(state.ledgers[layer].weight, weight)


# Bad input.


@pytest.mark.usefixtures("quick")
@every_kind
def test_a_state_of_other_weights_is_refused(kind: str) -> None:
    model, editor = double(kind), make()
    made, state = editor.edit(model, BATCHES[0])
    before = snapshot(model)
    message = (
        r"layer 0: the model's weight differs from the one this sequence left by a share of \d\.\de-\d\d; "
        "commit each edit before the next one, or start again without a state"
    )
    with pytest.raises(SequenceError, match=message):  # the edit was not committed
        editor.edit(model, BATCHES[1], state)
    assert same_bits(model, before)
    commit(model, made)
    _, later = editor.edit(model, BATCHES[1], state)
    assert later.steps == 2
    write_weight(model, 1, read_weight(model, 1) * float("nan"))
    with pytest.raises(SequenceError, match=r"layer 1: .* share of nan"):
        editor.edit(model, BATCHES[1], state)


@pytest.mark.usefixtures("quick")
def test_a_weight_written_between_two_steps_is_noticed() -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    running = steps(model, make(), BATCHES)
    next(running)
    write_weight(model, 2, read_weight(model, 2) * 1.0001)
    with pytest.raises(SequenceError, match=r"layer 2: .* share of 1\.0e-04"):
        next(running)
    assert same_bits(model, before)


@pytest.mark.usefixtures("quick")
def test_a_state_of_other_layers_is_refused() -> None:
    model = tiny_model("llama")
    made, state = make().edit(model, BATCHES[0])
    commit(model, made)
    message = r"the state is of a sequence in layers \[0, 1, 2\], this one edits \[1, 3\]; .*without a state"
    with pytest.raises(SequenceError, match=message):
        make(layers=(1, 3)).edit(model, BATCHES[1], state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"feedback": True, "retain": "none"},
            "feedback needs a problem that goes on; set retain to 'all' or 'latest'",
        ),
        ({"reads": "unedited", "values": "each_step"}, "do not fit reads='unedited'; set values='once'"),
        ({"anchor": "start", "retain": "all"}, "anchor='start' needs retain='none' and a preserve_weight"),
        (
            {"anchor": "start", "retain": "none", "preserve_weight": 0},
            "anchor='start' needs retain='none' and a preserve_weight above 0",
        ),
        ({"post": {"kind": "rekt"}}, "post\n.*'rect', 'prune'"),
        ({"post": {"kind": "rect", "keep": 0}}, r"post\.rect\.keep\n.*greater than 0"),
        ({"retain": "some"}, "retain\n.*'none', 'latest' or 'all'"),
        ({"layers": (2, 1)}, "ascending"),
        ({"ridge": -1}, "ridge\n.*greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_or_are_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**options)


@pytest.mark.usefixtures("quick")
@every_kind
@pytest.mark.parametrize("retain", ["none", "latest", "all"])
def test_without_ridge_and_anchor_there_is_no_unique_solution(kind: str, retain: Any) -> None:
    model = tiny_model(kind)
    before = snapshot(model)
    with pytest.raises(SingularProblemError, match="Raise ridge above 0, give preserve"):
        list(steps(model, make("plain", ridge=0, retain=retain), BATCHES))
    assert same_bits(model, before)


def test_every_direction_protected() -> None:
    """Otherwise every edit would be zero without a word."""
    message = r"layer 0: rule 'absolute' at 1e-09 protects every direction.*between the eigenvalues of C0"
    with pytest.raises(ProfileError, match=message):
        make("alphaedit", rule="absolute", threshold=1e-9).edit(tiny_model("llama"), FACTS[:1])


def test_batches_are_checked_like_single_edits() -> None:
    model = tiny_model("llama")
    with pytest.raises(RequestError, match="no requests were given"):
        list(steps(model, make(), [[]]))
    with pytest.raises(RequestError, match="occurs twice in one batch"):
        list(steps(model, make(), [[FACTS[0], OTHERS[0]]]))


def test_the_tiny_models_give_post_processing_something_to_do() -> None:
    """Of the tests above: the updates there do outgrow the spectrum that PRUNE compares them with."""
    model = double("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "optimise_targets", drawn(60.0))
        made, _ = make("both").edit(model, BATCHES[0])
    for layer, delta in made.deltas.items():
        assert largest_singular_value(delta) > largest_singular_value(read_weight(model, layer))
