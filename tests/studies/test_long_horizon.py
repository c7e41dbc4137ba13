"""A long run against a plain loop; what is read from disk, how it is resumed, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from palimpsest.algebra.postprocess import Prune, Rect
from palimpsest.editors import base
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError, RequestError, ResourceError, ScoreError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.memory import known_values as known_values_module
from palimpsest.memory.known_values import KnownValues
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.studies import long_horizon as room
from palimpsest.studies.checkpoints import Checkpoints
from palimpsest.studies.instruments import Choice
from palimpsest.studies.long_horizon import (
    COLUMNS,
    held_bytes,
    long_horizon,
    values_in_advance,
    without_conflicts,
)
from palimpsest.studies.sequence_file import ABOUT, WEIGHTS, load_state, save_state
from tests.disk import flip
from tests.editing import same_bits, snapshot
from tests.sequences import TOKENS, VALUES, drawn
from tests.studies.test_trajectory import CASES

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
ASK = Checkpoints(
    batch=2, at=(2, 4, 6), sample=3, choices=(Choice("Anna Berg was born in", "Paris", "Rome"),)
)
Run = Callable[..., pd.DataFrame]


def make(**options: Any) -> Sequential:
    common = {"layers": (0, 1), "ridge": 1.0, "statistics_tokens": TOKENS, "targets": VALUES}
    return Sequential(**(common | options))


@pytest.fixture
def known(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> KnownValues:
    monkeypatch.setattr(known_values_module, "optimise_targets", drawn())
    editor = make()
    return values_in_advance(model, editor, [case.request for case in CASES], editor.prepare(model))


@pytest.fixture
def run(model: EditableModel, text: Reference, known: KnownValues) -> Run:
    def made(editor: Sequential | None = None, ask: Checkpoints = ASK) -> pd.DataFrame:
        return long_horizon(model, editor or make(), CASES, ask, text, known)

    return made


def untimed(rows: pd.DataFrame) -> "pd.Series[float]":
    kept = rows[~rows["metric"].isin(["seconds", "held_bytes", "condition"])]
    return kept.set_index(["edits", "of", "key", "metric"])["value"]


def alike(found: pd.DataFrame, wanted: pd.DataFrame) -> bool:
    one, other = untimed(found), untimed(wanted)
    return one.index.equals(other.index) and one.to_list() == pytest.approx(
        other.to_list(), rel=1e-5, abs=1e-6
    )


def test_rows_are_those_of_a_plain_loop(run: Run, model: EditableModel, text: Reference) -> None:
    before = snapshot(model)
    rows = run()
    assert same_bits(model, before)
    assert tuple(rows.columns) == COLUMNS
    assert not rows.duplicated(["edits", "of", "key", "metric"]).any()
    batches = [[case.request for case in CASES[i : i + 2]] for i in (0, 2, 4)]
    for step in steps(model, make(), batches):
        edits = 2 * (step.number + 1)
        told = rows[rows["edits"].eq(edits)].set_index(["of", "key", "metric"])["value"]
        asked = {2: CASES[:2], 4: [CASES[0], CASES[2], CASES[3]], 6: [CASES[0], CASES[2], CASES[5]]}[edits]
        for group, members in (("fact", asked), ("first", CASES[:2]), ("latest", CASES[edits - 2 : edits])):
            wanted = {r.case: r.value for r in evaluate(model, members, ["efficacy"])}
            assert told.xs((group, "efficacy"), level=(0, 2)).to_dict() == wanted
        nll = drift(model, text).windows["nll"].tolist()
        assert told.xs(("window", "nll"), level=(0, 2)).tolist() == pytest.approx(nll, rel=1e-4)
        norm = sum(n**2 for n in step.edit.notes["total_norm"].values()) ** 0.5
        assert told["step", str(step.number + 1), "total_norm"] == pytest.approx(norm, rel=1e-4)
    assert rows.query("of == 'choice'")["edits"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    "options",
    [{}, {"post": Rect(kind="rect", keep=0.4), "feedback": True}, {"preserve_weight": 20.0, "ridge": 0.0}],
)
@pytest.mark.parametrize("broken", [4, 6])
def test_an_interrupted_run_goes_on_where_it_stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch, own_cache: Path, options: dict[str, Any], broken: int
) -> None:
    """The same rows as without the interruption, from the last checkpoint on and no step before it again."""
    whole = run(make(**options), replace(ASK, seed=1))
    measured = room._Run._facts

    def breaks(self: Any) -> Any:
        if self.edits == broken:
            raise KeyboardInterrupt
        return measured(self)

    monkeypatch.setattr(room._Run, "_facts", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(make(**options))
    monkeypatch.setattr(room._Run, "_facts", measured)
    written: list[int] = []
    edit = Sequential.edit

    def counted(self: Sequential, model: EditableModel, requests: Any, state: SequenceState) -> Any:
        written.append(state.steps)
        return edit(self, model, requests, state)

    monkeypatch.setattr(Sequential, "edit", counted)
    assert alike(run(make(**options)), whole)
    assert written == [n // 2 for n in range(broken - 2, 6, 2)]
    assert not list((own_cache / "horizons").glob("*/*"))


def test_lost_states_are_made_again(run: Run, own_cache: Path) -> None:
    """Rows of the last part are gone, and so is the state that it began from."""
    whole = run()
    tables = sorted((own_cache / "horizons").glob("*.parquet"))
    assert len(tables) == 3
    for table in tables:
        if pd.read_parquet(table)["edits"].max() == 6:
            table.unlink()
    assert alike(run(), whole)


def test_a_part_that_another_process_made_is_skipped(run: Run, own_cache: Path) -> None:
    """A run that stands before such a part begins the next one from unedited weights."""
    whole = run()
    for table in (own_cache / "horizons").glob("*.parquet"):
        if pd.read_parquet(table)["edits"].max() in (2, 6):
            table.unlink()
    assert alike(run(), whole)


def test_a_second_run_is_read_from_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    monkeypatch.setattr(room._Run, "rows", lambda *_: pytest.fail("computed again"))
    assert run().equals(first)


def test_a_run_that_cannot_go_on_ends_with_a_row_that_says_so(
    run: Run, model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = Sequential.edit

    def breaks(self: Sequential, model: EditableModel, requests: Any, state: SequenceState) -> Any:
        if state.steps == 1:
            raise NonFiniteError("overflow")
        return edit(self, model, requests, state)

    monkeypatch.setattr(Sequential, "edit", breaks)
    before = snapshot(model)
    rows = run()
    assert rows.iloc[-1].tolist() == [2, "step", "2", "stopped", 1.0]
    assert set(rows.query("of == 'window'")["edits"]) == {2}
    assert same_bits(model, before)


def test_values_are_optimised_once_for_all_runs(
    model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    values = drawn()

    def counted(net: EditableModel, requests: Any, *rest: Any) -> Any:
        asked.append(len(requests))
        return values(net, requests, *rest)

    monkeypatch.setattr(known_values_module, "optimise_targets", counted)
    monkeypatch.setattr(base, "optimise_targets", lambda *_: pytest.fail("optimised in a step"))
    editor = make()
    known = values_in_advance(model, editor, [case.request for case in CASES], editor.prepare(model))
    for ridge in (1.0, 2.0):
        long_horizon(model, make(ridge=ridge), CASES, ASK, text, known)
    assert asked == [6]


def test_memory_of_the_ledgers_grows_with_facts_and_counts_nothing_twice(
    model: EditableModel, known: KnownValues
) -> None:
    editor = make()
    state = editor.set_up(model, SequenceState(replace(editor.prepare(model), known=known)))
    sizes = [held_bytes(state)]
    d_v, d_k = read_weight(model, 0).shape
    for first in (0, 2):
        _, state = editor.edit(model, [case.request for case in CASES[first : first + 2]], state)
        sizes.append(held_bytes(state))
        break  # the model is not at the state's weights
    facts = 2 * 2 * (d_k + 2 * d_v + 1) * 8  # layers, facts, float64
    assert sizes[1] - sizes[0] >= facts
    twice = replace(state, ledgers={0: state.ledgers[0], 1: state.ledgers[0]})
    alone = replace(state, ledgers={0: state.ledgers[0]})
    assert held_bytes(twice) == held_bytes(alone)


@pytest.mark.parametrize("options", [{}, {"rule": "energy", "threshold": 0.5}, {"preserve_weight": 20.0}])
def test_a_state_comes_back_from_its_folder(
    model: EditableModel, known: KnownValues, tmp_path: Path, options: dict[str, Any]
) -> None:
    editor = make(**options)
    prepared = replace(editor.prepare(model), known=known)
    _, state = editor.edit(model, [case.request for case in CASES[:4]], SequenceState(prepared))
    save_state(state, tmp_path / "4")
    found = load_state(tmp_path / "4", editor, model, prepared)
    assert found.steps == state.steps == 1
    for layer in editor.layers:
        assert torch.equal(found.weights[layer], state.weights[layer])
        assert found.ledgers[layer].ids == state.ledgers[layer].ids
        gap = (found.ledgers[layer].total - state.ledgers[layer].total).norm()
        assert gap <= 1e-10 * state.ledgers[layer].total.norm()


@pytest.mark.parametrize("name", [ABOUT, WEIGHTS])
def test_a_bit_of_a_state_that_flips_is_seen(
    name: str, model: EditableModel, known: KnownValues, tmp_path: Path
) -> None:
    """A file without a checksum, of an earlier version, is read."""
    editor = make()
    prepared = replace(editor.prepare(model), known=known)
    _, state = editor.edit(model, [case.request for case in CASES[:2]], SequenceState(prepared))
    save_state(state, tmp_path / "2")
    flip(tmp_path / "2" / name, -2)
    with pytest.raises(ResourceError, match=rf"2 holds a state whose {name} changed .*; delete the folder"):
        load_state(tmp_path / "2", editor, model, prepared)
    (tmp_path / "2" / f"{name}.sha256").unlink()
    assert load_state(tmp_path / "2", editor, model, prepared).weights.keys() == state.weights.keys()
    save_file({"7": torch.ones(1)}, tmp_path / "2" / WEIGHTS)
    (tmp_path / "2" / f"{WEIGHTS}.sha256").unlink(missing_ok=True)
    with pytest.raises(ResourceError, match=rf"{WEIGHTS} lacks layer .*; delete the folder and run again"):
        load_state(tmp_path / "2", editor, model, prepared)


def test_a_folder_without_a_state_is_named(model: EditableModel, tmp_path: Path) -> None:
    editor = make()
    with pytest.raises(ResourceError, match="holds no state of a sequence"):
        load_state(tmp_path, editor, model, editor.prepare(model))


def test_the_first_fact_about_a_prompt_and_subject_stays() -> None:
    other = replace(CASES[1], id="later", request=replace(CASES[0].request, target="Berlin"))
    assert without_conflicts([*CASES[:2], other, CASES[2]]) == list(CASES[:3])
    assert without_conflicts(CASES) == list(CASES)
    assert without_conflicts([CASES[0], other, CASES[2], CASES[3]], 2) == [CASES[0], CASES[2]]
    with pytest.raises(ScoreError, match="there are 3 that do not contradict"):
        without_conflicts([*CASES[:2], other, CASES[2]], 4)


def test_what_does_not_fit_is_refused(model: EditableModel, text: Reference, known: KnownValues) -> None:
    def refused(match: str, editor: Sequential, ask: Checkpoints = ASK, cases: Any = CASES) -> None:
        with pytest.raises(ScoreError, match=match):
            long_horizon(model, editor, cases, ask, text, known)

    late = Prune(kind="prune", of="total", bound="start", when="end")
    refused("last checkpoint", make(), cases=CASES[:2])
    refused("writes no texts", make(), replace(ASK, prompts=("a",)))
    refused("values='once'", make(values="each_step"))
    refused("at the end", make(retain="none", post=late))
    with pytest.raises(ScoreError, match="values of no facts"):
        values_in_advance(model, make(), [], make().prepare(model))


def test_a_fact_without_a_value_is_named(model: EditableModel, text: Reference, known: KnownValues) -> None:
    other = replace(CASES[5], request=replace(CASES[5].request, target="Berlin"))
    with pytest.raises(RequestError, match="have no known value"):
        long_horizon(model, make(), [*CASES[:5], other], ASK, text, known)
