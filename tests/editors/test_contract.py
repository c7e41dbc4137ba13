"""What holds for every row of EDITORS: settings, states, notes, and a model left as it was."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import Any

import pytest
import torch

from palimpsest.editors import EDITORS, Editor, Prepared, State, base, edit, editor_for, mend, serac
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import ModelError, ProfileError, RequestError, StateError
from palimpsest.evaluation.smoothing_score import SELECTIONS
from palimpsest.network.apply import Edit, WeightDelta, commit, installed
from palimpsest.network.model import fingerprint, read_weight
from palimpsest.types import EditRequest
from tests.editing import (
    CONTEXTS,
    EMBEDDED,
    REQUESTS,
    begun,
    same_bits,
    small,
    snapshot,
    some_reader,
    stub_texts,
    untrained,
)
from tests.embedders import letters
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

WRITING = [name for name, row in EDITORS.items() if issubclass(row.editor, WeightEditor)]
every_row = pytest.mark.parametrize("name", EDITORS)
every_writing_row = pytest.mark.parametrize("name", WRITING)
SEQUENCE = "a sequence"
"""The one editor that has no row: its rows are those of config/sequences.yaml."""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
    monkeypatch.setattr(serac, "embedder", letters)
    monkeypatch.setattr(mend, "trained_for", untrained)
    monkeypatch.setattr(serac, "reader_for", some_reader)


def made_by(name: str) -> Editor:
    if name == SEQUENCE:
        return Sequential(layers=(1,), ridge=1.0, statistics_tokens=1500)
    return small(name)


def kept_by(name: str) -> type[State]:
    return Sequential.keeps if name == SEQUENCE else EDITORS[name].editor.keeps


def same_edit(one: Edit, other: Edit) -> bool:
    """Bit by bit, and with the same notes."""
    if isinstance(one, WeightDelta) and isinstance(other, WeightDelta):
        equal = all(torch.equal(other.deltas[layer], delta) for layer, delta in one.deltas.items())
        return equal and one.deltas.keys() == other.deltas.keys() and one.notes == other.notes
    return one == other


@every_row
def test_settings_for_the_embedded_model_are_on_file(name: str) -> None:
    editor = editor_for(name, EMBEDDED)
    assert isinstance(editor, Editor)
    assert type(editor) is EDITORS[name].editor
    if isinstance(editor, WeightEditor):
        assert list(editor.layers) == sorted({*editor.layers}) != []


@every_row
def test_a_method_keeps_states_of_a_class_of_its_own(name: str) -> None:
    kept = kept_by(name)
    assert issubclass(kept, State)
    assert kept is not State
    sharing = {other.editor for other in EDITORS.values() if other.editor.keeps is kept}
    assert sharing == {EDITORS[name].editor}
    assert kept is not Sequential.keeps


@every_row
def test_an_edit_leaves_the_model_as_it_was_and_is_for_it(name: str) -> None:
    model, editor = tiny_model("llama"), small(name)
    before = snapshot(model)
    made, state = edit(editor, model, REQUESTS, begun(editor))
    assert same_bits(model, before)
    assert made.base == fingerprint(model)
    assert type(state) is editor.keeps
    assert state.prepared.contexts == CONTEXTS
    with installed(model, made):
        assert fingerprint(model) != made.base
    assert same_bits(model, before)
    again, _ = edit(editor, model, REQUESTS, begun(editor))
    assert same_edit(again, made)


@every_writing_row
def test_an_edit_of_weights_is_in_the_layers_that_its_editor_names(name: str) -> None:
    model, editor = tiny_model("llama"), small(name)
    assert isinstance(editor, WeightEditor)
    made, state = editor.edit(model, REQUESTS, begun(editor))
    assert tuple(made.deltas) == editor.layers
    for layer, delta in made.deltas.items():
        assert delta.shape == read_weight(model, layer).shape
        assert delta.dtype == torch.float64
        assert delta.any()
    commit(model, made)
    further, _ = editor.edit(model, REQUESTS[:1], state)
    assert further.base == fingerprint(model) != made.base
    with pytest.raises(ModelError, match="other weights"):
        commit(model, made)


@every_row
def test_notes_say_of_how_many_facts_and_how_long_the_update_is(name: str) -> None:
    model, editor = tiny_model("llama"), small(name)
    made, _ = edit(editor, model, REQUESTS, begun(editor))
    json.dumps(made.notes, allow_nan=False)
    assert made.notes["facts"] == len(REQUESTS)
    if isinstance(made, WeightDelta):
        lengths = {layer: float(delta.norm()) for layer, delta in made.deltas.items()}
        assert made.notes["step_norm"] == pytest.approx(lengths)


@every_row
def test_requests_are_checked_before_anything_is_done(name: str) -> None:
    model = tiny_model("llama")
    twice = [REQUESTS[0], EditRequest(REQUESTS[0].prompt, REQUESTS[0].subject, "French")]
    message = "'The mother tongue of Danielle Darrieux is' occurs twice in one batch; keep one target for it"
    with pytest.raises(RequestError, match="no requests were given; pass at least one EditRequest"):
        edit(small(name), model, [])
    with pytest.raises(RequestError, match=message):
        edit(small(name), model, twice)


# States.


@every_row
def test_a_sequence_begins_with_what_is_given(name: str) -> None:
    editor, prepared = made_by(name), Prepared(CONTEXTS)
    assert type(editor.begin()) is editor.keeps
    assert editor.begin().prepared == Prepared()
    assert editor.begin(prepared).prepared is prepared
    assert type(begun(editor, prepared)) is editor.keeps  # also with a score that it may have no use for
    assert begun(editor, prepared).prepared is prepared


@every_row
def test_it_begins_with_nothing_or_what_is_prepared_and_goes_on_from_its_own(name: str) -> None:
    model, editor = tiny_model("llama"), small(name)
    if editor.score_rule is not None:
        with pytest.raises(ProfileError, match="by a score, and the state has none; pass"):
            edit(editor, model, REQUESTS[:2])
        return
    made, state = edit(editor, model, REQUESTS[:2])
    again, _ = edit(editor, model, REQUESTS[:2], Prepared(CONTEXTS))
    if isinstance(made, WeightDelta):  # a text before the prompts needs no contexts, and samples none
        assert state.prepared.contexts == CONTEXTS
    assert same_edit(again, made)
    further, later = edit(editor, model, REQUESTS[2:], state)
    assert further.notes["facts"] == 2
    assert type(later) is editor.keeps


def pairs_of_methods() -> list[Any]:
    """All ordered pairs with different states; `make check` tries each method with the one before it."""
    names = [*EDITORS, SEQUENCE]
    near = set(zip(names[1:], names, strict=False))
    return [
        pytest.param(*pair, marks=() if pair in near else pytest.mark.slow)
        for pair in permutations(names, 2)
        if kept_by(pair[0]) is not kept_by(pair[1])
    ]


@pytest.mark.parametrize(("name", "other"), pairs_of_methods())
def test_a_state_of_another_method_is_refused(name: str, other: str) -> None:
    """Before anything is computed; the message names both and says how to begin."""
    model, editor, state = tiny_model("llama"), made_by(name), begun(made_by(other))
    before = snapshot(model)
    message = (
        f"{type(editor).__name__} goes on from a {editor.keeps.__name__} and was given a "
        f"{type(state).__name__}: each method keeps something else of its earlier edits. Pass "
        "state.prepared to begin a new sequence with the same contexts, moments and projectors, or None to "
        "begin with nothing"
    )
    with pytest.raises(StateError, match=re.escape(message)):
        edit(editor, model, REQUESTS, state)
    assert same_bits(model, before)


@pytest.mark.parametrize("name", ["alphaedit", "alphaedit_plus"])
def test_a_projector_of_another_rule_is_refused(name: str) -> None:
    model = tiny_model("llama")
    prepared = small(name, threshold=0.5).prepare(model, Prepared(CONTEXTS))
    assert small(name, threshold=0.5).prepare(model, prepared).projectors == prepared.projectors
    with pytest.raises(StateError, match=r"rule 'energy' at 0\.5, and this editor asks for 'energy' at 0\.9"):
        small(name, threshold=0.9).prepare(model, prepared)


def test_a_state_of_no_method_is_refused() -> None:
    with pytest.raises(StateError, match=r"Memit goes on from a MemitState and was given a State: "):
        edit(small("memit"), tiny_model("llama"), REQUESTS, State(Prepared(CONTEXTS)))


@every_row
def test_what_a_state_was_prepared_with_begins_the_same_sequence(name: str) -> None:
    """From the first state, from a later one, and with nothing computed for it: the same bits."""
    model, editor = tiny_model("llama"), small(name)
    made, state = edit(editor, model, REQUESTS[:2], begun(editor))
    if isinstance(made, WeightDelta):
        commit(model, made)
    _, later = edit(editor, model, REQUESTS[2:], state)
    fresh = tiny_model("llama")
    for prepared in (state.prepared, later.prepared):
        again, _ = edit(editor, fresh, REQUESTS[:2], begun(editor, prepared))
        assert same_edit(again, made)


def same_entries(found: Mapping[int, Any], wanted: Mapping[int, Any]) -> bool:
    """The very objects, not equal ones."""
    return found.keys() == wanted.keys() and all(found[layer] is entry for layer, entry in wanted.items())


@every_row
def test_what_is_prepared_is_all_that_is_needed_and_is_not_made_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, editor = tiny_model("llama"), small(name)
    prepared = editor.prepare(model)
    monkeypatch.setattr(base, "sample_contexts", None)
    monkeypatch.setattr(base, "key_statistics", None)
    monkeypatch.setattr("palimpsest.algebra.projector.null_space", None)
    again = editor.prepare(model, prepared)
    _, state = edit(editor, model, REQUESTS[:1], begun(editor, prepared))
    for found in (again, state.prepared):
        assert found.contexts is prepared.contexts
        assert same_entries(found.moments, prepared.moments)
        assert same_entries(found.projectors, prepared.projectors)


@pytest.mark.parametrize("name", [*EDITORS, SEQUENCE])
def test_a_field_added_to_a_state_is_not_lost(name: str) -> None:
    """No method copies its state field by field; two edits, so that the first state is not the last."""
    plain = made_by(name)

    @dataclass(frozen=True)
    class Wider(type(plain).keeps):  # type: ignore[misc]
        remark: str = "lost"

    class Method(type(plain)):  # type: ignore[misc]
        keeps = Wider

    settings: Any = plain
    editor = Method(**{field.name: getattr(plain, field.name) for field in fields(settings)})
    model, state = tiny_model("llama"), replace(begun(editor), remark="kept")
    for requests in (REQUESTS[:2], REQUESTS[2:]):
        made, state = edit(editor, model, requests, state)
        if isinstance(made, WeightDelta):
            commit(model, made)
        assert type(state) is Wider
        assert state.remark == "kept"


@every_writing_row
def test_nothing_waits_for_the_end_of_a_sequence(name: str) -> None:
    """Only a sequence has an edit of its own at the end, see its tests."""
    model, editor = tiny_model("llama"), small(name)
    assert isinstance(editor, WeightEditor)
    assert editor.finish(model, begun(editor)) is None


def test_a_sequence_refuses_to_finish_for_another_method() -> None:
    editor = made_by(SEQUENCE)
    assert isinstance(editor, Sequential)
    with pytest.raises(
        StateError, match="Sequential goes on from a SequenceState and was given a MemitState"
    ):
        editor.finish(tiny_model("llama"), begun(small("memit")))


@every_row
def test_a_score_is_asked_for_by_a_name_that_exists(name: str) -> None:
    assert small(name).score_rule in (None, *SELECTIONS)


def test_only_smoothing_asks_for_a_score() -> None:
    for select in SELECTIONS:
        assert small("alphaedit_plus", smoothing={"select": select}).score_rule == select
    assert small("alphaedit_plus", smoothing=None).score_rule is None
    others = [name for name in EDITORS if name != "alphaedit_plus"]
    assert [name for name in others if small(name).score_rule is not None] == []
    assert made_by(SEQUENCE).score_rule is None


def test_an_editor_that_does_not_say_how_it_edits() -> None:
    for made in (Editor(), WeightEditor()):
        with pytest.raises(NotImplementedError, match="ditor does not say how it edits"):
            made.edit(tiny_model("llama"), REQUESTS)
