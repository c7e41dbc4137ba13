"""What a sequence of edits is: at every layer W_0 plus one one-time solution, whatever the steps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.editors import AlphaEdit, Memit, base
from palimpsest.editors.steps import steps
from palimpsest.memory.keys import subject_hidden, subject_keys
from palimpsest.network.model import read_weight, write_weight
from palimpsest.theory import labyrinth
from tests.editing import CONTEXTS, KINDS, double, every_kind
from tests.sequences import (
    ANCHORS,
    BATCHES,
    FACTS,
    LAYERS,
    OTHERS,
    TOKENS,
    VALUES,
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


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from offline(tmp_path_factory)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


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


@pytest.mark.slow
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
        patch.setattr(base, "optimise_targets", drawn())
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
        weight, identity = state.unedited[layer], torch.eye(len(state.prepared.moments[layer])).double()
        projector = state.prepared.projectors[layer].apply(identity) if editor.rule else identity
        moment = 20.0 * state.prepared.moments[layer]
        batches, total = [], torch.zeros_like(weight)
        for step, now in zip(found, weights, strict=True):
            ledger, n = state_of(step).ledgers[layer], len(step.requests)
            assert ledger.ids[-n:] == tuple(fact.id for fact in step.requests)
            keys, values = ledger.keys[:, -n:], ledger.values[:, -n:]
            system = (keys @ keys.T + (0 if omit else moment)) @ projector + editor.ridge * identity
            right = editor.ridge * total + (values - weight @ keys) @ keys.T @ projector
            total = torch.linalg.solve(system.T, right.T).T
            assert (now[layer] - weight - total).norm() < 1e-8 * total.norm()
            batches.append(labyrinth.FactBatch(keys, values))
        problem = labyrinth.RunProblem(weight, moment, projector, editor.ridge)
        for which, close in ((omit, True), (not omit, False)):
            printed = labyrinth.latest(problem, batches, which)[-1]
            assert ((total - printed).norm() < 1e-8 * total.norm()) == close
