"""What a run leaves, row by row, against a plain loop; what runs share, and how a run ends."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from palimpsest.algebra.postprocess import Prune, Rect, largest_singular_value
from palimpsest.editors import AlphaEditPlus, base
from palimpsest.editors.alphaedit_plus import Perturbation, Smoothing
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.memory import known_values as known_values_module
from palimpsest.memory.keys import subject_hidden
from palimpsest.memory.known_values import known_values
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.apply import commit
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.studies import stream as room
from palimpsest.studies.stream import COLUMNS, SCORES, Stream, score_columns
from tests.editing import CONTEXTS, same_bits, snapshot
from tests.sequences import ANCHORS, TOKENS, VALUES, drawn
from tests.studies.test_trajectory import CASES

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
LAYERS = (0, 1)


@pytest.fixture
def stream(model: EditableModel, text: Reference) -> Stream:
    return Stream(model, CASES, 2, text)


def make(**options: Any) -> Sequential:
    common = {"layers": LAYERS, "ridge": 1.0, "statistics_tokens": TOKENS, "targets": VALUES}
    return Sequential(**{**common, **options})


def column(table: pd.DataFrame, metric: str) -> "pd.Series[float]":
    return table[table["metric"] == metric].set_index("key")["value"]


def lengths(model: EditableModel, cases: Sequence[Any] = CASES) -> dict[str, float]:
    hidden = subject_hidden(model, [case.request for case in cases], LAYERS[-1]).double()
    return dict(zip([case.id for case in cases], hidden.norm(dim=0).tolist(), strict=True))


def same(found: "pd.Series[float]", wanted: dict[str, float]) -> bool:
    return found.to_dict() == pytest.approx(wanted, rel=1e-5)


def test_rows_are_what_a_plain_loop_finds(stream: Stream, model: EditableModel, text: Reference) -> None:
    before, unedited = snapshot(model), lengths(model)
    start = {i: read_weight(model, i).double().clone() for i in LAYERS}
    table = stream.outcome(make())
    assert same_bits(model, before)
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(["of", "key", "metric"]).any()
    assert same(column(table, "hidden_before"), unedited)
    written: dict[str, float] = {}
    whole = sum(float(w.square().sum()) for w in start.values()) ** 0.5
    last = {i: w.clone() for i, w in start.items()}
    for step in steps(model, make(), [[c.request for c in CASES[i : i + 2]] for i in (0, 2, 4)]):
        number, batch = str(step.number + 1), CASES[2 * step.number : 2 * step.number + 2]
        now = {i: read_weight(model, i).double().clone() for i in LAYERS}
        written |= lengths(model, batch)
        for name, old in (("step_norm", last), ("total_norm", start)):
            moved = sum(float((now[i] - old[i]).square().sum()) for i in LAYERS) ** 0.5
            assert column(table, name)[number] == pytest.approx(moved / whole, rel=1e-4)
        shares = [largest_singular_value(now[i] - last[i]) / largest_singular_value(last[i]) for i in LAYERS]
        assert column(table, "spectrum")[number] == pytest.approx(float(max(shares)), rel=1e-4)
        assert column(table, "edits")[number] == 2 * (step.number + 1)
        last = now
        if step.number == 2:
            assert same(column(table, "hidden_end"), lengths(model))
            for metric in SCORES:
                assert same(
                    column(table, metric), {r.case: r.value for r in evaluate(model, CASES, [metric])}
                )
            windows = drift(model, text).windows
            for name in ("nll", "nll_before", "agreement", "kl"):
                found = column(table, name).to_numpy()
                assert found == pytest.approx(windows[name].to_numpy(), rel=1e-4, abs=1e-6)
    assert same(column(table, "hidden_written"), written)
    assert column(table, "hidden_end").to_dict() != pytest.approx(written, rel=1e-5)  # they are two things


def test_one_edit_of_all_facts_is_one_step_over_the_values_of_the_batches(
    stream: Stream, model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def counted(net: EditableModel, requests: Sequence[Any], *rest: Any) -> Targets:
        asked.append([request.id for request in requests])
        return optimise_targets(net, requests, *rest)

    monkeypatch.setattr(base, "optimise_targets", counted)
    monkeypatch.setattr(known_values_module, "optimise_targets", counted)
    in_steps, once = stream.outcome(make()), stream.outcome(make(), once=True)
    ids = [case.request.id for case in CASES]
    assert asked == 2 * [ids[:2], ids[2:4], ids[4:]]
    assert same(column(once, "value_norm"), column(in_steps, "value_norm").to_dict())
    assert column(once, "edits").to_dict() == {"1": len(CASES)}
    whole = [case.request for case in CASES]
    edit, _ = make().edit(model, whole, stream._begun(make(), len(CASES)))
    plain, _ = make().edit(model, whole)  # the same values, computed together
    for layer in LAYERS:
        assert (edit.deltas[layer] - plain.deltas[layer]).norm() < 1e-4 * plain.deltas[layer].norm()


@pytest.mark.parametrize("reads", ["edited", "unedited"])
def test_a_run_at_once_writes_the_very_values_of_the_batches(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    """Tensor for tensor, in the order of the facts, with all that is noted of how they were found."""
    monkeypatch.setattr(base, "optimise_targets", optimise_targets)
    monkeypatch.setattr(known_values_module, "optimise_targets", optimise_targets)
    written: list[Targets] = []
    real = Sequential._values

    def kept(*given: Any) -> Targets:
        written.append(real(*given))
        return written[-1]

    monkeypatch.setattr(Sequential, "_values", kept)
    for once in (False, True):
        stream.outcome(make(reads=reads), once)
    *batches, whole = written
    assert len(batches) == 3
    for name in ("values", "deltas"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(one, name) for one in batches], 1))
    assert torch.equal(whole.losses, torch.cat([one.losses for one in batches]))
    for name, trace in whole.terms.items():
        assert torch.equal(trace, torch.cat([one.terms[name] for one in batches]))


def test_a_run_at_once_takes_the_values_of_its_stream_where_it_has_some(
    model: EditableModel, text: Reference
) -> None:
    """Not those of the batches: the facts have one value in every run of such a stream."""
    requests = [case.request for case in CASES]
    known = known_values(model, requests, LAYERS[-1], VALUES, CONTEXTS)
    moved = replace(known, targets=replace(known.targets, values=2 * known.targets.values))
    stream = Stream(model, CASES, 2, text, known=moved)
    lengths_given = dict(zip([c.id for c in CASES], moved.targets.values.norm(dim=0).tolist(), strict=True))
    for once in (False, True):
        assert same(column(stream.outcome(make(), once), "value_norm"), lengths_given)


@pytest.mark.parametrize("options", [ANCHORS["memit"], ANCHORS["alphaedit"]], ids=["memit", "alphaedit"])
def test_what_runs_share_is_what_each_would_find(
    stream: Stream, options: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(stream, shared={}).outcome(make(**options))
    for path in (own_cache / "outcomes").glob("*.parquet"):
        path.unlink()
    stream.outcome(make())
    stream.outcome(make(**options))
    for path in (own_cache / "outcomes").glob("*.parquet"):
        path.unlink()
    known = len(stream.shared)
    monkeypatch.setattr(base, "sample_contexts", None)  # to prepare a second time would fail
    monkeypatch.setattr(base, "key_statistics", None)
    monkeypatch.setattr("palimpsest.algebra.projector.null_space", None)
    pd.testing.assert_frame_equal(stream.outcome(make(**options)), alone)
    assert len(stream.shared) == known


def test_a_run_made_before_is_read_and_any_other_is_made(
    stream: Stream, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stream.outcome(make())
    assert len(list((own_cache / "outcomes").glob("*.parquet"))) == 1
    others = [
        (stream, make(ridge=2.0), False),
        (stream, make(post=Rect(keep=0.5)), False),
        (stream, make(), True),
        (replace(stream, sample=3), make(), False),
        (replace(stream, batch=3), make(), False),
        (replace(stream, cases=CASES[::-1]), make(), False),
        (replace(stream, metrics=("efficacy",)), make(), False),
    ]
    for other, sequence, once in others:
        other.outcome(sequence, once)
    assert len(list((own_cache / "outcomes").glob("*.parquet"))) == 1 + len(others)
    monkeypatch.setattr(Sequential, "edit", None)
    pd.testing.assert_frame_equal(stream.outcome(make()), first)


def test_a_part_of_the_facts_is_asked_and_all_of_them_measured(stream: Stream) -> None:
    table = replace(stream, sample=3, metrics=("efficacy",)).outcome(make())
    assert len(column(table, "efficacy")) == 3
    assert "specificity" not in set(table["metric"])
    assert len(column(table, "hidden_end")) == len(CASES)


def test_unedited_scores_are_those_of_the_model_as_it_is(stream: Stream, model: EditableModel) -> None:
    table = stream.unedited()
    for metric in SCORES:
        assert same(column(table, metric), {r.case: r.value for r in evaluate(model, CASES, [metric])})
    assert not column(table, "efficacy").equals(column(stream.outcome(make()), "efficacy"))


def test_where_no_update_outgrows_its_weight_pruning_is_another_name_for_the_same_run(stream: Stream) -> None:
    for options in ({"retain": "none"}, {"retain": "all"}, {"retain": "all", "feedback": True}):
        without = {name: value for name, value in options.items() if name != "feedback"}
        plain = stream.outcome(make(**without))
        assert column(plain, "spectrum").max() <= 1
        pruned = stream.outcome(make(**options, post=Prune(bound="current")))
        pd.testing.assert_frame_equal(pruned, plain, rtol=1e-4, atol=1e-6)


def test_where_one_does_pruning_is_not(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "optimise_targets", drawn(60.0))
    plain = stream.outcome(make(retain="none"))
    assert column(plain, "spectrum").max() > 1
    pruned = stream.outcome(make(retain="none", post=Prune(bound="current")))
    assert column(pruned, "total_norm").iloc[-1] < 0.99 * column(plain, "total_norm").iloc[-1]


def test_pruning_at_the_end_is_in_what_is_left(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    post = Prune(of="total", when="end", doubled=True)
    plain, doubled = stream.outcome(make()), stream.outcome(make(post=post))
    assert column(doubled, "total_norm").equals(column(plain, "total_norm"))  # of the steps before it
    assert column(doubled, "hidden_end").to_dict() != pytest.approx(column(plain, "hidden_end").to_dict())


def test_a_step_that_cannot_be_made_leaves_the_one_before(
    stream: Stream, model: EditableModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = snapshot(model), []

    def failing(net: EditableModel, edit: Any, **options: Any) -> None:
        calls.append(edit)
        if len(calls) == 2:
            raise NonFiniteError("too large")
        commit(net, edit, **options)

    sequence = make(retain="none", post=Prune(of="total", when="end"))
    whole = replace(stream, cases=CASES[:2]).outcome(sequence)
    monkeypatch.setattr(room, "commit", failing)
    table = stream.outcome(sequence)
    assert same_bits(model, before)
    assert column(table, "stopped").to_dict() == {"2": 1.0}
    assert column(table, "edits").to_dict() == {"1": 2.0}
    kept = [case.id for case in CASES[:2]]
    for metric in ("hidden_written", "hidden_end", "efficacy"):
        assert column(table, metric)[kept].to_dict() == pytest.approx(column(whole, metric).to_dict())


def test_a_last_step_that_cannot_be_made_is_noted(
    stream: Stream, model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Post-processing after the last batch fails: what the batches left is measured."""

    def failing(*_: Any) -> None:
        raise NonFiniteError("too large")

    before, sequence = snapshot(model), make(retain="none", post=Prune(of="total", when="end"))
    plain = stream.outcome(make(retain="none"))
    monkeypatch.setattr(Sequential, "finish", failing)
    table = stream.outcome(sequence)
    assert same_bits(model, before)
    assert column(table, "stopped").to_dict() == {"4": 1.0}
    assert column(table, "hidden_end").to_dict() == column(plain, "hidden_end").to_dict()


def test_an_error_on_the_way_leaves_the_model_and_no_file(
    stream: Stream, model: EditableModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(model)
    monkeypatch.setattr(room, "evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.outcome(make())
    assert same_bits(model, before)
    assert not list(own_cache.rglob("outcomes/*"))


@pytest.mark.parametrize(("cases", "batch"), [(CASES, 4), ([], 2), (CASES, 0)])
def test_facts_fill_whole_batches(stream: Stream, cases: list[Any], batch: int) -> None:
    with pytest.raises(ScoreError, match=f"{len(cases)} cases do not fill batches of {batch}; leave out"):
        replace(stream, cases=cases, batch=batch)


def plus(**options: Any) -> AlphaEditPlus:
    parts = {"smoothing": Smoothing(threshold=0.0), "perturbation": Perturbation(limit=3)}
    common = {"layers": LAYERS, "ridge": 1.0, "rule": "energy", "threshold": 0.5, "statistics_tokens": TOKENS}
    return AlphaEditPlus(**{**common, "targets": VALUES, "optimised": "once", **parts, **options})


def test_an_editor_that_chooses_by_validation(
    model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed the wordings set aside, and its run is another one when they change."""
    monkeypatch.setattr(base, "optimise_targets", drawn())
    asked: list[Any] = []
    real = room.score_by

    def watched(*given: Any) -> Any:
        asked.append(given)
        return real(*given)

    monkeypatch.setattr(room, "score_by", watched)
    tables = []
    for word in ("Where", "When"):
        wordings = {case.request.id: [f"{word} {case.request.subject}"] for case in CASES}
        stream = Stream(model, CASES, 2, text, validation=wordings)
        tables.append(stream.outcome(plus()))
        assert asked[-1] == ("validation", CASES, wordings)
        stream.outcome(plus())
    assert len(asked) == 2
    assert set(column(tables[0], "value_norm").index) == {case.id for case in CASES}
    assert column(tables[0], "total_norm")["3"] > 0
    noted = tables[0][tables[0]["of"] == "layer"]
    assert set(noted["metric"]) == set(AlphaEditPlus.noted)
    assert set(noted["key"]) == {f"{step}/{layer}" for step in (1, 2, 3) for layer in LAYERS}
    assert set(column(noted, "hard")) == {2.0}  # both facts of a batch, at a threshold of 0
    assert set(column(noted, "admitted")) == {3.0}


def test_scores_side_by_side(stream: Stream) -> None:
    table = stream.outcome(make())
    found = score_columns(table)
    assert list(found) == [*SCORES, "score"]
    assert set(found.index) == {case.id for case in CASES}
    for name in SCORES:
        assert same(found[name].dropna(), {k: 100 * v for k, v in column(table, name).items()})
    whole = found.dropna()  # some cases have no paraphrase or no neighbour
    assert 0 < len(whole) == found["score"].notna().sum() < len(CASES)
    assert same(whole["score"], whole[list(SCORES)].mean(axis=1).to_dict())


def test_known_values_are_part_of_a_run(model: EditableModel, text: Reference) -> None:
    """The same facts with other values are another run; the same values in other company are the same run."""
    requests = [case.request for case in CASES]
    known = known_values(model, requests, LAYERS[-1], VALUES, CONTEXTS)
    targets = replace(known.targets, values=known.targets.values + 1)
    more = known_values(
        model, [replace(requests[0], target="Oslo")], LAYERS[-1], VALUES, CONTEXTS, beside=known
    )
    one, moved, again = (
        Stream(model, CASES, 2, text, known=given)._key(make(), False)
        for given in (known, replace(known, targets=targets), more)
    )
    assert one == again != moved


def test_scores_right_after_each_batch(model: EditableModel, text: Reference) -> None:
    stream = Stream(model, CASES, 2, text, written=("efficacy",))
    found = column(stream.outcome(make()), "efficacy_written")
    wanted: dict[str, float] = {}
    batches = [CASES[i : i + 2] for i in (0, 2, 4)]
    for step in steps(model, make(), [[case.request for case in batch] for batch in batches]):
        wanted |= {r.case: r.value for r in evaluate(model, batches[step.number], ["efficacy"])}
    assert same(found, wanted)


def test_only_a_sequence_is_written_at_once(stream: Stream) -> None:
    with pytest.raises(ScoreError, match="once=True needs a Sequential"):
        stream.outcome(plus(), once=True)
