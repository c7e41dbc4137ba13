"""Readings beside a trajectory against the functions that they come from."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsest.editors import base
from palimpsest.editors.steps import steps
from palimpsest.errors import ScoreError
from palimpsest.evaluation.answers import target_nll
from palimpsest.evaluation.drift import drift, reference
from palimpsest.evaluation.fluency import repetition
from palimpsest.network.sampling import sample
from palimpsest.results.regime import WORDS
from palimpsest.studies.instruments import TEXT, Choice, Instruments, choices_of
from palimpsest.studies.regimes import regime_of
from palimpsest.studies.trajectory import COLUMNS, Watch, trajectory
from tests.editing import CONTEXTS, stub_texts, texts
from tests.sequences import drawn
from tests.studies.test_trajectory import CASES, make
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

CHOICES = (Choice("The city of", "Paris", "Rome"), Choice("Anna Berg plays the", "piano", "field"))
ALSO = Instruments(CHOICES, ("The capital of",), length=6)
WATCH = Watch(batch=2, every=2, sample=2)


@pytest.fixture(autouse=True)
def _offline(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
    monkeypatch.setattr(base, "optimise_targets", drawn())


def test_readings_are_those_of_the_model_at_each_measured_step() -> None:
    model, editor = tiny_model("llama"), make()
    text = reference(model, tokens=64, window=16, texts=texts())
    table = trajectory(model, editor, CASES, WATCH, text, ALSO)
    assert tuple(table.columns) == (*COLUMNS, TEXT)
    before = table[table["step"].eq(0)]
    assert set(before["metric"]) >= {"ratio", "choice", "repetition", TEXT}
    assert float(before[before["metric"] == "ratio"]["value"].iloc[0]) == pytest.approx(1, abs=1e-4)
    notes = []
    batches = [[case.request for case in CASES[i : i + 2]] for i in range(0, len(CASES), 2)]
    for step in steps(model, editor, batches):
        notes.append(step.edit.notes)
        now = table[(table["step"] == step.number + 1) & (table["group"] == "model")]
        assert now.empty == (step.number + 1 not in (1, 2, 3))
        found = now[now["metric"] != TEXT].set_index("metric")["value"]
        if found.empty:
            continue
        ratio = drift(model, text).ratio(ALSO.seed)
        assert found["ratio"] == pytest.approx(ratio.mean, rel=1e-5)
        assert found["ratio_low"] == pytest.approx(ratio.low, rel=1e-5)
        assert found["ratio_high"] == pytest.approx(ratio.high, rel=1e-5)
        pairs = [(c.prompt, word) for c in CHOICES for word in (c.right, c.wrong)]
        nll = target_nll(model, pairs).tolist()
        assert found["choice"] == (float(nll[0] < nll[1]) + float(nll[2] < nll[3])) / 2
        assert found["choice_low"] <= found["choice"] <= found["choice_high"]
        (written,) = sample(model, ALSO.prompts, ALSO.length, top_k=1)
        assert now[now["metric"] == TEXT][TEXT].tolist() == [written]
        assert found["repetition"] == pytest.approx(repetition(written))
        lengths = torch.tensor(step.edit.notes["delta_norm"])
        assert found["new_delta_norm"] == pytest.approx(float(lengths.mean()), rel=1e-5)
        assert found["new_value_norm"] > 0
        regime = regime_of(model, editor, notes, step.state.prepared).known()
        assert {name: found[f"regime_{name}"] for name in regime} == pytest.approx(regime, rel=1e-5)


def test_without_instruments_a_table_is_as_it_was() -> None:
    model = tiny_model("llama")
    text = reference(model, tokens=64, window=16, texts=texts())
    plain = trajectory(model, make(), CASES, WATCH, text)
    more = trajectory(model, make(), CASES, WATCH, text, ALSO)
    assert tuple(plain.columns) == COLUMNS
    timed = plain["metric"].ne("seconds")
    more = more[more["step"] > 0]
    both = more.merge(plain[timed], on=["step", "edits", "group", "metric"], suffixes=("", "_plain"))
    assert len(both) == timed.sum()
    pd.testing.assert_series_equal(both["value"], both["value_plain"], check_names=False)
    assert set(more["metric"]) - set(plain["metric"]) <= {
        *("ratio", "ratio_low", "ratio_high", "choice", "choice_low", "choice_high", "repetition", TEXT),
        *(f"regime_{name}" for name in WORDS),
        *("new_hidden_norm", "new_delta_norm", "new_value_norm"),
    }


def test_choices_are_of_facts_that_no_edit_touches() -> None:
    written = CASES[:1]
    named = [replace(case, target_true="France" if at else "") for at, case in enumerate(CASES)]
    found = choices_of(named, written)
    assert [choice.prompt for choice in found] == [
        case.request.text for case in named[1:] if case.request.subject != written[0].request.subject
    ]
    assert {choice.right for choice in found} == {"France"}
    assert [choice.wrong for choice in found] == [
        case.request.target for case in named[1:] if case.request.subject != written[0].request.subject
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"choices": ()}, "at least one choice and one prompt"),
        ({"prompts": ()}, "at least one choice and one prompt"),
        ({"length": 4}, "take 5 or more"),
    ],
)
def test_instruments_that_read_nothing_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        replace(ALSO, **bad)
