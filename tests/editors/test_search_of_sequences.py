"""What the AlphaSet tables use is what the recorded search found, with equal effort for every method."""

import ast
from pathlib import Path

import pandas as pd
import pytest

from palimpsest.editors.settings import alphaset_settings, models_dir
from palimpsest.evaluation.metrics import ZSRE_METRICS

MODEL = "smollm2-135m"
SEARCH = pd.read_csv(models_dir() / f"{MODEL}.alphaset.csv")
CHOSEN = alphaset_settings(MODEL)
CANDIDATES = 6
COMPLETE = len(SEARCH) == CANDIDATES * len(CHOSEN)
searched = pytest.mark.skipif(
    not COMPLETE,
    reason="the search is not done: run scripts/tune_sequences.py, copy the best into the settings",
)


@searched
def test_every_method_was_tried_equally_often_on_the_same_facts() -> None:
    counts = SEARCH.groupby("method").size()
    assert set(counts.index) == set(CHOSEN)
    assert set(counts) == {CANDIDATES}
    assert SEARCH[["facts", "seed"]].drop_duplicates().shape == (1, 2)


@searched
@pytest.mark.parametrize("method", list(CHOSEN))
def test_the_settings_in_use_are_the_best_found(method: str) -> None:
    """The best score, of equal ones the smallest change of the weights."""
    rows = SEARCH[SEARCH["method"] == method].sort_values(["score", "weights_moved"], ascending=[False, True])
    best = rows.iloc[0].dropna().filter(like="setting_").rename(lambda name: name.removeprefix("setting_"))
    assert best.to_dict() == CHOSEN[method]


def test_the_score_is_the_arithmetic_mean() -> None:
    mean = SEARCH[list(ZSRE_METRICS)].mean(axis=1)
    assert ((mean - SEARCH["score"]).abs() < 0.02).all()


def test_the_facts_searched_on_are_validation_facts() -> None:
    script = (Path(__file__).parents[2] / "scripts" / "tune_sequences.py").read_text()
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    splits = [k.value.value for call in calls for k in call.keywords if k.arg == "split"]  # type: ignore[attr-defined]
    assert splits == ["validation"]
