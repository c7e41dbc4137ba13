"""A run as a table: what its rows mean, when they are computed, and how a run ends."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from palimpsest.algebra.postprocess import Prune
from palimpsest.editors import base
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.drift import Drift, Reference, drift, reference
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.memory.keys import subject_hidden
from palimpsest.memory.values import Targets
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.studies import trajectory as room
from palimpsest.studies.trajectory import COLUMNS, Watch, evenly, trajectory
from palimpsest.types import EvalCase, Probe
from tests.editing import same_bits, snapshot, texts
from tests.sequences import FACTS, TOKENS, VALUES, drawn
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")

CASES = [
    EvalCase(
        id=f"case {i}",
        request=fact,
        target_true="France",
        paraphrases=(f"It is said of {fact.subject} that",) if i != 3 else (),
        neighbours=(Probe("Anna Berg was born in the city of", "Paris"),) if i % 2 else (),
    )
    for i, fact in enumerate(FACTS)
]
WATCH = Watch(batch=1, every=3, sample=2)
MODEL_METRICS = [
    *("perplexity", "perplexity_before", "agreement", "kl"),
    *("step_norm", "total_norm", "hidden_norm"),
]


def make(**options: Any) -> Sequential:
    common = {"layers": (0, 1), "ridge": 1.0, "statistics_tokens": TOKENS, "targets": VALUES}
    return Sequential(**{**common, **options})


def stored(own_cache: Path) -> list[Path]:
    return sorted((own_cache / "trajectories").glob("*.parquet"))


def picked(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def only(table: pd.DataFrame, **where: Any) -> float:
    found = picked(table, **where)
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_rows_are_what_a_loop_over_the_steps_finds(model: EditableModel, text: Reference) -> None:
    """Each number against the function it comes from, called on the model between the steps."""
    sequence, before = make(), snapshot(model)
    table = trajectory(model, sequence, CASES, WATCH, text)
    assert same_bits(model, before)
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(["step", "group", "metric"]).any()
    assert sorted(set(table["step"])) == [1, 3, 6]  # the first, every third, the last
    assert (table["edits"] == table["step"]).all()
    weights = {i: read_weight(model, i).double().clone() for i in (0, 1)}
    for step in steps(model, sequence, [[case.request] for case in CASES]):
        number, now = step.number + 1, picked(table, step=step.number + 1)
        if number not in (1, 3, 6):
            continue
        asked = {"first": CASES[:1], "latest": CASES[number - 1 : number]}
        asked["all"] = [CASES[0], CASES[number - 1]] if number > 1 else CASES[:1]
        for group, cases in asked.items():
            records = evaluate(model, cases, ["efficacy"])
            mean = sum(record.value for record in records) / len(cases)
            assert only(now, group=group, metric="efficacy") == pytest.approx(mean)
            assert picked(now, group=group, metric="efficacy")["n"].tolist() == [len(cases)]
        moved = drift(model, text)
        for name in ("perplexity", "perplexity_before", "agreement", "kl"):
            assert only(now, group="model", metric=name) == pytest.approx(getattr(moved, name), rel=1e-5)
            assert picked(now, group="model", metric=name)["n"].tolist() == [moved.tokens]
        total = sum(float((read_weight(model, i) - old).square().sum()) for i, old in weights.items())
        assert only(now, metric="total_norm") == pytest.approx(total**0.5, rel=1e-5)
        assert only(now, metric="step_norm") == pytest.approx(step.edit.norm(), rel=1e-5)
        hidden = subject_hidden(model, [CASES[0].request], 1).norm(dim=0)
        assert only(now, metric="hidden_norm") == pytest.approx(float(hidden.mean()), rel=1e-5)


def test_what_is_asked_when(model: EditableModel, text: Reference) -> None:
    """Further metrics after the last step; without a prompt for one there is no row, not a zero."""
    watch = Watch(batch=2, every=2, sample=3, metrics=("efficacy", "generalisation"), final=("specificity",))
    table = trajectory(model, make(), CASES, watch, text)
    assert sorted(set(table["step"])) == [1, 2, 3]
    assert (table["edits"] == 2 * table["step"]).all()
    assert set(picked(table, metric="specificity")["step"]) == {3}
    assert set(picked(table, metric="specificity")["group"]) == {"all"}
    counts = picked(table, metric="generalisation", step=2).set_index("group")["n"].to_dict()
    assert counts == {"first": 2, "latest": 1, "all": 2}  # case 3 has no paraphrase
    for step in (1, 2, 3):
        of_model = picked(table, group="model", step=step)["metric"].tolist()
        assert of_model == MODEL_METRICS + ["seconds"] * (step == 3)
    assert only(table, metric="seconds") > 0
    alone = [replace(CASES[3], id=f"alone {i}") for i in range(2)]
    table = trajectory(
        model, make(), alone[:1], replace(watch, batch=1, final=("generalisation", "specificity")), text
    )
    assert set(picked(table, group="all")["metric"]) == {"efficacy", "specificity"}


def test_pruning_at_the_end_is_measured_before_and_after(model: EditableModel, text: Reference) -> None:
    post = Prune(of="total", when="end", doubled=True)
    watch = Watch(batch=3, every=9, sample=2, final=("specificity",))
    table = trajectory(model, make(retain="none", post=post), CASES, watch, text)
    assert table[["step", "edits"]].drop_duplicates().values.tolist() == [[1, 3], [2, 6], [3, 6]]
    assert set(picked(table, metric="specificity")["step"]) == {2, 3}
    total = {step: only(table, step=step, metric="total_norm") for step in (2, 3)}
    assert total[3] == pytest.approx(2 * total[2], rel=1e-5)  # nothing outgrew the spectrum, so W_0 + 2D
    assert only(table, step=3, metric="step_norm") == pytest.approx(total[2], rel=1e-5)


def never(*_: Any) -> Any:
    raise AssertionError("the run was made again")


def test_a_second_call_reads_the_table(
    model: EditableModel, text: Reference, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = trajectory(model, make(), CASES, WATCH, text)
    assert [path.suffix for path in stored(own_cache)] == [".parquet"]
    monkeypatch.setattr(room, "steps", never)
    pd.testing.assert_frame_equal(trajectory(model, make(), CASES, WATCH, text), table)


def other_text(model: EditableModel) -> Reference:
    """As many windows of the same length."""
    return reference(model, tokens=64, window=16, texts=texts(seed=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda m, t: (m, make(ridge=2.0), CASES, WATCH, t),
        lambda m, t: (m, make(post=Prune()), CASES, WATCH, t),
        lambda m, t: (m, make(), CASES[::-1], WATCH, t),
        lambda m, t: (m, make(), [replace(CASES[0], target_true="Rome"), *CASES[1:]], WATCH, t),
        lambda m, t: (m, make(), CASES, replace(WATCH, sample=3), t),
        lambda m, t: (m, make(), CASES, WATCH, other_text(m)),
        lambda m, t: (tiny_model("llama", seed=1), make(), CASES, WATCH, t),
    ],
)
def test_whatever_a_run_depends_on_makes_it_another_run(
    change: Callable[..., Any], model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_rows", lambda *_: iter([(1, 1, "model", "kl", 0.0, 1)]))
    trajectory(model, make(), CASES, WATCH, text)
    monkeypatch.setattr(room, "_rows", never)
    trajectory(model, make(), CASES, WATCH, text)
    with pytest.raises(AssertionError, match="made again"):
        trajectory(*change(model, text))


def at_call(number: int, result: Callable[[Drift], Any]) -> Callable[..., Drift]:
    """The real drift, but at one call what ``result`` makes of it."""
    calls: list[int] = []

    def measured(*args: Any) -> Drift:
        calls.append(1)
        found = drift(*args)
        return result(found) if len(calls) == number else found

    return measured


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_an_interrupted_run_leaves_no_table_and_no_edit(
    model: EditableModel, text: Reference, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(model)
    monkeypatch.setattr(room, "drift", at_call(2, raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        trajectory(model, make(), CASES, WATCH, text)
    assert stored(own_cache) == []
    assert same_bits(model, before)
    monkeypatch.setattr(room, "drift", drift)
    assert set(trajectory(model, make(), CASES, WATCH, text)["step"]) == {1, 3, 6}


def collapsed(factor: float) -> Callable[[Drift], Drift]:
    return lambda found: replace(found, perplexity=factor * found.perplexity_before)


@pytest.mark.parametrize("factor", [1.001 * room.COLLAPSED, float("inf")])
def test_a_collapse_ends_the_run(
    factor: float, model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(model)
    monkeypatch.setattr(room, "drift", at_call(2, collapsed(factor)))
    table = trajectory(model, make(), CASES, WATCH, text)
    assert sorted(set(table["step"])) == [1, 3]
    assert table["metric"].tolist()[-2:] == ["stopped", "seconds"]
    assert picked(table, metric="stopped").values.tolist() == [[3, 3, "model", "stopped", 1.0, 1]]
    assert only(table, step=3, metric="perplexity") > room.COLLAPSED
    assert same_bits(model, before)


def test_short_of_a_collapse_the_run_goes_on(
    model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "drift", at_call(2, collapsed(0.999 * room.COLLAPSED)))
    table = trajectory(model, make(), CASES, WATCH, text)
    assert sorted(set(table["step"])) == [1, 3, 6]
    assert picked(table, metric="stopped").empty


def test_a_model_that_cannot_be_read_any_more_ends_the_run(
    model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch was written, its measurement failed: the run stopped there."""
    monkeypatch.setattr(room, "drift", at_call(2, raising(NonFiniteError("made up"))))
    table = trajectory(model, make(), CASES, WATCH, text)
    assert sorted(set(table["step"])) == [1, 3]
    assert picked(table, step=3)["metric"].tolist() == ["stopped", "seconds"]
    assert (picked(table, step=3)["edits"] == 3).all()


@pytest.mark.parametrize("failing", [1, 3])
def test_an_update_that_is_out_of_range_ends_the_run(
    failing: int, model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def values(model: EditableModel, requests: Sequence[Any], *rest: Any) -> Targets:
        calls.append(1)
        found = drawn()(model, requests, *rest)
        return replace(found, values=found.values * float("nan")) if len(calls) == failing else found

    monkeypatch.setattr(base, "optimise_targets", values)
    before = snapshot(model)
    table = trajectory(model, make(), CASES, WATCH, text)
    stop = picked(table, metric="stopped")
    assert stop[["step", "edits"]].values.tolist() == [[failing, failing - 1]]
    assert picked(table, metric="seconds")["edits"].tolist() == [failing - 1]
    assert same_bits(model, before)


def test_a_problem_without_a_solution_ends_the_run(model: EditableModel, text: Reference) -> None:
    table = trajectory(model, make(ridge=0), CASES, WATCH, text)
    assert table[["step", "edits", "metric"]].values.tolist() == [[1, 0, "stopped"], [0, 0, "seconds"]]


# Bad input.


@pytest.mark.parametrize(("count", "batch"), [(0, 2), (5, 2), (3, 4)])
def test_cases_that_do_not_fill_whole_batches(
    count: int, batch: int, model: EditableModel, text: Reference
) -> None:
    message = f"{count} cases do not fill batches of {batch}; leave out or add some"
    with pytest.raises(ScoreError, match=message):
        trajectory(model, make(), CASES[:count], Watch(batch=batch), text)


@pytest.mark.parametrize("name", ["batch", "every", "sample"])
def test_sizes_are_one_or_more(name: str) -> None:
    with pytest.raises(ScoreError, match=r"batch, every and sample must be 1 or more, got .*0"):
        Watch(**{name: 0})


def test_a_damaged_table_is_named_and_made_again(
    model: EditableModel, text: Reference, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trajectory(model, make(), CASES, WATCH, text)
    (path,) = stored(own_cache)
    path.write_bytes(path.read_bytes()[:100])
    again = trajectory(model, make(), CASES, WATCH, text)
    assert f"{path.name} is not as it was written (its SHA-256 differs); it is" in capsys.readouterr().err
    timed = first["metric"].eq("seconds")
    pd.testing.assert_frame_equal(again[~timed], first[~timed])


@pytest.mark.parametrize("total", [1, 2, 3, 7, 20])
def test_evenly(total: int) -> None:
    """Distinct, in order, from end to end, with gaps that differ by at most one."""
    cases = [replace(CASES[0], id=str(i)) for i in range(total)]
    for count in range(1, total + 2):
        found = [int(case.id) for case in evenly(cases, count)]
        assert found == sorted({*found})
        assert len(found) == min(count, total)
        assert found[0] == 0
        if count > 1:
            assert found[-1] == total - 1
            gaps = torch.tensor(found).diff()
            assert total == 1 or int(gaps.max() - gaps.min()) <= 1
