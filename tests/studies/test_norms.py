"""The lengths that a table of a sequence holds are those of the sequence, for editors of every kind."""

from collections.abc import Iterator
from math import exp, expm1, inf, nan
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.algebra.postprocess import Prune
from palimpsest.editors import FineTune, Memit, Rome, base
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.paths import cache_dir
from palimpsest.results.few_values import student_mean
from palimpsest.results.intervals import Resampling
from palimpsest.studies import norms
from palimpsest.studies.norms import (
    OF_FACTS,
    before_collapse,
    lengths_of,
    norm_trace,
    noted_norms,
    over_orders,
    per_hundred,
    relative_lengths,
    unexplained,
)
from tests.editing import same_bits, snapshot
from tests.sequences import BATCHES, FACTS, LAYERS, VALUES, drawn, make, offline, quicken
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "_offline")


@pytest.fixture(scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from offline(tmp_path_factory)


EDITORS: dict[str, Any] = {
    "sequence": make("memit"),
    "memit": Memit(layers=LAYERS, preserve_weight=20.0, statistics_tokens=1500, targets=VALUES),
    "rome": Rome(layers=(1,), second_moment=False, targets=VALUES),
    "ft": FineTune(layers=(1,), steps=2, lr=0.01),
}


@pytest.fixture(autouse=True)
def _values(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    quicken(monkeypatch)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", EDITORS)
def test_the_table_is_what_happened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of weights against the weights themselves, of values against the values that were made."""
    model, editor = tiny_model("llama"), EDITORS[name]
    before, made = snapshot(model), []
    real = base.optimise_targets

    def kept(*arguments: Any) -> Any:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(base, "optimise_targets", kept)
    table = norm_trace(model, editor, BATCHES)
    assert same_bits(model, before)
    rows = table.set_index(["step", "norm", "of"])["value"]
    values, count = list(made), 0
    for number, step in enumerate(steps(model, editor, BATCHES), 1):
        count += len(step.requests)
        assert set(table.loc[table["step"] == number, "edits"]) == {count}
        for layer in editor.layers:
            moved = read_weight(model, layer) - weight_of(before, model, layer)
            assert rows[number, "total_norm", str(layer)] == pytest.approx(float(moved.norm()), rel=1e-4)
            expected = float(step.edit.deltas[layer].norm())
            assert rows[number, "step_norm", str(layer)] == pytest.approx(expected, rel=1e-6)
        for i, fact in enumerate(step.requests if values else ()):
            found = values[number - 1]
            parts = {"hidden": found.initial, "delta": found.deltas, "value": found.values}
            for part, columns in parts.items():
                assert rows[number, f"{part}_norm", fact.id] == pytest.approx(float(columns[:, i].norm()))
    assert bool(values) == (name != "ft")
    assert ("value_norm" in set(table["norm"])) == bool(values)


def weight_of(before: dict[str, torch.Tensor], model: EditableModel, layer: int) -> torch.Tensor:
    return before[model.weight_name(layer)]


def test_the_second_time_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By editor, settings, facts and weights; nothing else is run."""
    first = norm_trace(tiny_model("llama"), EDITORS["ft"], BATCHES)

    def never(*_: Any) -> None:
        raise AssertionError("run although it is on disk")

    monkeypatch.setattr(norms, "steps", never)
    pd.testing.assert_frame_equal(norm_trace(tiny_model("llama"), EDITORS["ft"], BATCHES), first)
    others: list[tuple[Any, ...]] = [
        (tiny_model("llama", seed=1), EDITORS["ft"], BATCHES),
        (tiny_model("llama"), FineTune(layers=(1,), steps=3, lr=0.01), BATCHES),
        (tiny_model("llama"), EDITORS["ft"], BATCHES[:2]),
        (tiny_model("llama"), EDITORS["ft"], [FACTS]),
    ]
    for arguments in others:
        with pytest.raises(AssertionError, match="run although"):
            norm_trace(*arguments)
    assert len(list((cache_dir() / "norms").glob("*.parquet"))) == 1


def test_a_sequence_that_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model("llama"), []
    before, real = snapshot(model), FineTune._train

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise NonFiniteError("made up")
        return real(*arguments)

    monkeypatch.setattr(FineTune, "_train", failing)
    table = norm_trace(model, EDITORS["ft"], BATCHES)
    assert table.iloc[-1].tolist() == [2, len(BATCHES[0]), "stopped", "model", 1.0]
    assert set(table["step"]) == {1, 2}
    assert same_bits(model, before)


def test_a_step_of_processing_alone_has_no_facts() -> None:
    sequence = make("memit", post=Prune(of="total", when="end"))
    last = list(steps(tiny_model("llama"), sequence, BATCHES))[-1]
    assert {name for name, _, _ in noted_norms(last)} == {"step_norm", "total_norm"}


def alone() -> pd.DataFrame:
    """Lengths of every fact on the unedited model, with ‖ΔW‖ of its edit alone."""
    model, rows = tiny_model("llama"), []
    for fact in FACTS:
        (step,) = steps(model, make("memit"), [[fact]])
        rows.append(float(np.linalg.norm(list(step.edit.notes["step_norm"].values()))))
    return lengths_of(FACTS, drawn()(model, FACTS, LAYERS[-1])).assign(step_norm=rows)


def test_lengths_are_those_of_the_values_in_order() -> None:
    values = drawn()(tiny_model("llama"), FACTS, LAYERS[-1])
    found = lengths_of(FACTS, values)
    assert found["of"].tolist() == [fact.id for fact in FACTS]
    for i in range(len(FACTS)):
        parts = (values.initial[:, i], values.deltas[:, i], values.values[:, i])
        assert found.loc[i, list(OF_FACTS)].tolist() == pytest.approx([float(part.norm()) for part in parts])
    with pytest.raises(ScoreError, match="5 facts and 6 values"):
        lengths_of(FACTS[:-1], values)


def test_each_fact_is_compared_with_itself() -> None:
    """Drawn displacements stay as they are; states and updates are those of the edited model."""
    model, single = tiny_model("llama"), [[fact] for fact in FACTS]
    before, trace = alone().set_index("of"), norm_trace(model, make("memit"), single)
    found = relative_lengths(trace, before.reset_index())
    assert found["of"].tolist() == [fact.id for fact in FACTS]
    assert found["edits"].tolist() == list(range(1, len(FACTS) + 1))
    assert found["delta_norm"].tolist() == pytest.approx([1.0] * len(FACTS))
    assert found.loc[0, ["hidden_norm", "value_norm", "step_norm"]].tolist() == pytest.approx([1, 1, 1])
    rows = trace.set_index(["norm", "step", "of"])["value"].sort_index()
    for number, fact in enumerate(FACTS):
        now = rows["hidden_norm", number + 1, fact.id]
        assert found.loc[number, "hidden_norm"] == pytest.approx(now / before.loc[fact.id, "hidden_norm"])
        step = np.linalg.norm(rows["step_norm", number + 1])
        assert found.loc[number, "step_norm"] == pytest.approx(step / before.loc[fact.id, "step_norm"])


def test_an_update_of_several_facts_is_compared_with_none() -> None:
    trace = norm_trace(tiny_model("llama"), make("memit"), BATCHES)
    found = relative_lengths(trace, alone())
    assert found["of"].tolist() == [fact.id for fact in FACTS]
    assert found["step_norm"].notna().tolist() == [False, False, True, False, False, False]
    assert relative_lengths(trace, alone().drop(columns="step_norm"))["step_norm"].isna().all()
    for odd in (alone()[1:], pd.concat([alone(), alone()])):
        with pytest.raises(ScoreError, match="once"):
            relative_lengths(trace, odd)


EDITS = st.lists(st.integers(1, 400), min_size=2, max_size=30, unique=True)


@given(EDITS, st.floats(-0.002, 0.02), st.floats(0.5, 2))
def test_the_rate_of_an_exact_course_is_its_rate(edits: list[int], rate: float, start: float) -> None:
    """Each form finds its own course whatever its start, and leaves none of its variance."""
    x = np.array(edits, dtype=float)
    line, curve = start + rate * x, start * np.exp(rate * x)
    assert per_hundred(x, line) == pytest.approx(1e4 * rate, abs=1e-7)
    assert per_hundred(x, curve, "exponential") == pytest.approx(100 * expm1(100 * rate), abs=1e-7)
    if abs(rate) > 1e-4:
        assert unexplained(x, line, "linear") == pytest.approx(0, abs=1e-9)
        assert unexplained(x, curve, "exponential") == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("form", ["linear", "exponential"])
def test_measurements_at_one_moment_have_no_rate(form: Literal["linear", "exponential"]) -> None:
    assert np.isnan(per_hundred([5, 5], [1, 2], form))


def test_a_curve_is_told_from_a_line() -> None:
    edits = np.arange(1, 61)
    curve, line = np.exp(0.03 * edits), 1 + 0.03 * edits
    assert unexplained(edits, curve, "linear") > 0.05 > unexplained(edits, curve, "exponential")
    assert unexplained(edits, line, "linear") < unexplained(edits, line, "exponential")
    assert per_hundred(edits, curve, "exponential") == pytest.approx(100 * (exp(3) - 1))


@pytest.mark.parametrize(
    ("lengths", "left"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 30, 2], [1, 2]),
        ([1, nan, 2], [1]),
        ([1, 2, inf], [1, 2]),
        ([10, 1], []),
        ([], []),
    ],
)
def test_growth_is_fitted_before_a_collapse(lengths: list[float], left: list[float]) -> None:
    rows = pd.DataFrame({"edits": range(1, len(lengths) + 1), "value_norm": lengths}, dtype=float)
    assert before_collapse(rows, 10)["value_norm"].tolist() == left


def test_an_interval_is_over_orders_or_over_the_facts_of_one() -> None:
    """An order of a single moment has no slope; without another there is no interval."""
    generator, edits = np.random.default_rng(0), np.arange(1, 21)
    parts = [
        pd.DataFrame({"edits": edits, "ratio": 1 + 0.01 * edits + 0.05 * generator.standard_normal(20)})
        for _ in range(3)
    ]
    rows = pd.concat([part.assign(order=i, fact=part["edits"]) for i, part in enumerate(parts)])
    resampling = Resampling("fact", seed=0, resamples=50)

    def slope(columns: Any) -> float:
        return per_hundred(columns["edits"], columns["ratio"])

    found, over = over_orders(rows, slope, resampling)
    assert over == "seeds"
    assert found == student_mean([slope(part) for part in parts])
    single = rows[rows["order"].eq(1)]
    short = rows[rows["order"].eq(2) & rows["edits"].eq(1)]
    found, over = over_orders(pd.concat([single, short]), slope, resampling)
    assert over == "cases"
    assert found == resampling(slope, rows=single)
    assert over_orders(short, slope, resampling) == (None, "cases")


def test_a_sequence_that_fails_at_once_has_no_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise NonFiniteError("made up")

    monkeypatch.setattr(base, "optimise_targets", failing)
    trace = norm_trace(tiny_model("llama"), make("memit"), BATCHES)
    assert trace["norm"].tolist() == ["stopped"]
    monkeypatch.undo()
    found = relative_lengths(trace, pd.DataFrame(columns=["of", *OF_FACTS]))
    assert found.empty
    assert list(found) == ["edits", "of", *OF_FACTS, "step_norm"]
    assert before_collapse(found, 10).empty
