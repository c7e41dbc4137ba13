"""Measuring an edit: paired, restored, from disk, defined where nothing is said or always the same."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsest.errors import ModelError, ScoreError
from palimpsest.evaluation import stability
from palimpsest.evaluation.responses import Decoding, responses
from palimpsest.evaluation.stability import (
    Diagnosis,
    compared,
    diagnose,
    measure_stability,
    summary,
    wording_table,
)
from palimpsest.evaluation.uncertainty import by_wording, decompose, shift_squared
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight
from tests.editing import same_bits, snapshot
from tests.embedders import letters
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

WORDINGS = {
    "anna": ["Anna Berg was born in", "The city of Anna is", "Where does Anna live? In"],
    "space": ["The Space Needle is in", "In the north is", "Up there is"],
    "rome": ["The capital of Italy is", "Rome is", "Marie Curie plays"],
}
SMALL = Decoding(samples=3, tokens=6, seed=2)


def delta(model: EditableModel, size: float = 0.3, base: bool = True) -> WeightDelta:
    weight = read_weight(model, 1)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return WeightDelta({1: size * noise}, fingerprint(model) if base else "")


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param, seed=2)


def test_a_diagnosis_is_the_formulas_applied_to_what_both_models_say(model: EditableModel) -> None:
    before, edit, embed = snapshot(model), delta(model), letters()
    found = diagnose(model, edit, WORDINGS, embed, SMALL)
    assert same_bits(model, before)
    said = [responses(model, WORDINGS, SMALL)]
    write_weight(model, 1, read_weight(model, 1) + edit.deltas[1])
    said.append(responses(model, WORDINGS, SMALL))
    for row in found.table.itertuples():
        texts = [one[str(row.fact)] for one in said]
        assert texts == [found.before[row.fact].texts, found.after[row.fact].texts]
        h = [torch.stack([embed(own) for own in one]) for one in texts]
        parts = [decompose(one) for one in h]
        assert (row.total_before, row.total_after) == (parts[0].total, parts[1].total)
        assert row.drift_squared_after == parts[1].drift_squared
        assert row.delta_total == pytest.approx(parts[1].total / parts[0].total - 1)
        assert row.delta_drift_squared == parts[1].drift_squared - parts[0].drift_squared
        assert (row.shift_squared_biased, row.shift_squared) == shift_squared(*h)
        same = sum(a == b for one, other in zip(*texts, strict=True) for a, b in zip(one, other, strict=True))
        assert row.unchanged == same / 9
        empty = [sum(not text.strip() for own in one for text in own) / 9 for one in texts]
        assert [row.wordings, row.samples, row.empty_before, row.empty_after] == [3, 3, *empty]
    assert list(found.table["fact"]) == list(WORDINGS)
    assert found.table["unchanged"].mean() < 0.9, "the edit should change what is said"


def test_no_edit_changes_nothing_at_all(model: EditableModel) -> None:
    found = diagnose(model, WeightDelta({}), WORDINGS, letters(), SMALL)
    changes = [name for name in found.table if name.startswith(("delta", "shift"))]
    assert (found.table[changes] == 0).all(axis=None)
    assert (found.table["unchanged"] == 1).all()
    lines = summary(found.table).set_index("measure")
    assert (lines.loc[["total", "delta_total", "shift_squared"], ["mean", "low", "high"]] == 0).all(axis=None)


def test_an_edited_model_may_be_given_in_place_of_an_edit(model: EditableModel) -> None:
    edit = delta(model)
    by_edit = diagnose(model, edit, WORDINGS, letters(), SMALL)
    edited = tiny_model("llama" if "llama" in model.name else "gpt2", seed=2)
    write_weight(edited, 1, read_weight(edited, 1) + edit.deltas[1])
    pd.testing.assert_frame_equal(diagnose(model, edited, WORDINGS, letters(), SMALL).table, by_edit.table)


def test_an_edit_of_another_model() -> None:
    model = tiny_model("llama", seed=2)
    for other in (delta(tiny_model("llama", seed=3)), delta(tiny_model("llama", seed=3), size=0.0)):
        with pytest.raises(
            ModelError, match="the edit was made for a model with other weights than tiny-lla"
        ):
            diagnose(model, other, WORDINGS, letters(), SMALL)
    with pytest.raises(
        ModelError, match=r"tiny-gpt2-0 is no edited tiny-llama-2: .* has another shape; give"
    ):
        diagnose(model, tiny_model("gpt2"), WORDINGS, letters(), SMALL)


def test_embeddings_are_kept_by_what_they_depend_on(own_cache: Path) -> None:
    model = tiny_model("llama", seed=2)
    embed, other = letters(), letters(2.0)
    first = measure_stability(model, WORDINGS, embed, SMALL)
    again = measure_stability(model, WORDINGS, embed, SMALL)
    assert len(embed.net.asked) == 3
    assert all(torch.equal(first[fact].embeddings, again[fact].embeddings) for fact in WORDINGS)
    doubled = measure_stability(model, WORDINGS, other, SMALL)
    assert len(other.net.asked) == 3
    assert torch.equal(doubled["rome"].embeddings, 2 * first["rome"].embeddings)


# Nothing said, or always the same


def forced(texts: dict[str, tuple[tuple[str, ...], ...]], monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The table of a model whose responses before are ``texts`` of b and after those of a."""
    said = iter([{"x": texts["before"]}, {"x": texts["after"]}])
    monkeypatch.setattr(stability, "responses", lambda *_: next(said))
    model = tiny_model("llama")
    return diagnose(model, WeightDelta({}), {"x": ["one", "two"]}, letters(), SMALL).table


SAME, EMPTY = (("a", "a"), ("a", "a")), (("", " "), ("", ""))
VARIED = (("a", "b"), ("c", ""))


def test_responses_without_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    row = forced({"before": VARIED, "after": EMPTY}, monkeypatch).iloc[0]
    assert (row.empty_before, row.empty_after) == (0.25, 1.0)
    assert row.drop("fact").astype(float).notna().all()
    silent = forced({"before": (("", ""), ("", "")), "after": SAME}, monkeypatch).iloc[0]
    assert (silent.total_before, silent.delta_total, silent.empty_before) == (0, 0, 1)
    assert silent.shift_squared == 1


def test_identical_responses_have_no_uncertainty_and_growth_from_it_is_infinite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    still = forced({"before": SAME, "after": SAME}, monkeypatch)
    assert (still.loc[0, "total_before"], still.loc[0, "delta_total"]) == (0, 0)
    grown = forced({"before": SAME, "after": VARIED}, monkeypatch)
    assert grown.loc[0, "delta_total"] == math.inf
    both = pd.concat([grown, grown.assign(fact="y")])
    lines = summary(both).set_index("measure")
    assert list(lines.loc["total", ["mean", "low", "high"]]) == [math.inf] * 3
    assert "delta_total" not in lines.index
    quiet = summary(pd.concat([still, still.assign(fact="y")])).set_index("measure")
    assert list(quiet.loc["total", ["mean", "low", "high"]]) == [0, 0, 0]
    assert not lines.isna().any(axis=None)


# Tables


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = tiny_model("llama", seed=2)
        return diagnose(model, delta(model), WORDINGS, letters(), SMALL)


def test_the_summary_is_a_ratio_of_means_and_means_of_differences(done: Diagnosis) -> None:
    lines, table = summary(done.table, seed=3).set_index("measure"), done.table
    for part in ("total", "aleatoric", "epistemic"):
        wanted = table[f"{part}_after"].mean() / table[f"{part}_before"].mean() - 1
        assert lines.loc[part, "mean"] == pytest.approx(wanted)
    for name in ("delta_total", "delta_drift_squared", "shift_squared", "unchanged"):
        assert lines.loc[name, "mean"] == pytest.approx(table[name].mean())
    assert (lines["low"] <= lines["mean"]).all()
    assert (lines["mean"] <= lines["high"]).all()
    assert (lines["n"] == 3).all()
    assert summary(done.table, seed=3).equals(summary(done.table.iloc[::-1], seed=3))
    with pytest.raises(ScoreError, match="an interval needs a list of two or more values"):
        summary(done.table.iloc[:1])


def test_wordings_have_parts_of_their_own(done: Diagnosis) -> None:
    rows = wording_table(done.before, done.after, [1, 2, 6])
    assert list(rows["wording"]) == [1, 2, 6] * 3
    for fact, own in rows.groupby("fact"):
        parts = by_wording(done.after[str(fact)].embeddings)
        assert list(own["drift_squared_after"]) == [part.drift_squared for part in parts]
        whole = done.table.set_index("fact").loc[fact]
        assert own["total_before"].mean() == pytest.approx(whole["total_before"])
    with pytest.raises(ScoreError, match="fact 'anna' has 3 wordings and there are 2 labels; give one label"):
        wording_table(done.before, done.after, [1, 2])


def test_only_the_same_facts_with_the_same_wordings_are_compared(done: Diagnosis) -> None:
    fewer = {fact: one for fact, one in done.after.items() if fact != "rome"}
    other = done.after | {"rome": done.after["anna"]}
    for after in (fewer, other):
        with pytest.raises(
            ScoreError, match=r"3 facts were measured before and \d after, and they are not the"
        ):
            compared(done.before, after)
