"""The settings of the embedded model are the ones its recorded search found, with equal effort per editor."""

import ast
from pathlib import Path

import pandas as pd
import pytest

from palimpsest.editors import EDITORS
from palimpsest.settings import editor_settings, models_dir

MODEL = "smollm2-135m"
SEARCH = pd.read_csv(models_dir() / f"{MODEL}.search.csv")


def test_every_editor_was_tried_equally_often_on_the_same_facts() -> None:
    counts = SEARCH.groupby("editor").size()
    assert set(counts.index) == set(EDITORS)
    assert counts.nunique() == 1
    assert SEARCH[["facts", "seed"]].drop_duplicates().shape == (1, 2)


@pytest.mark.parametrize("editor", list(EDITORS))
def test_the_settings_in_use_are_the_best_found(editor: str) -> None:
    rows = SEARCH[SEARCH["editor"] == editor]
    best = rows[rows["score"] == rows["score"].max()]
    settings = editor_settings(MODEL, editor)
    columns = [name for name in best.columns if name.startswith("setting_") and best[name].notna().any()]
    assert columns
    found = [
        {name.removeprefix("setting_"): _parsed(row[name]) for name in columns} for _, row in best.iterrows()
    ]
    used = {name.removeprefix("setting_"): settings[name.removeprefix("setting_")] for name in columns}
    assert used in found


def test_the_score_is_the_worst_margin_to_the_bar() -> None:
    margins = pd.DataFrame(
        {
            "efficacy": SEARCH["efficacy"] - 95,
            "generalisation": SEARCH["generalisation"] - 85,
            "specificity": 5 - SEARCH["specificity_lost"],
        }
    )
    assert ((margins.min(axis=1) - SEARCH["score"]).abs() < 0.02).all()


def test_the_facts_searched_on_are_validation_facts() -> None:
    script = (Path(__file__).parents[1] / "scripts" / "tune_editors.py").read_text()
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    splits = [k.value.value for call in calls for k in call.keywords if k.arg == "split"]  # type: ignore[attr-defined]
    assert splits == ["validation"]


def _parsed(value: object) -> object:
    try:
        return ast.literal_eval(str(value))
    except (ValueError, SyntaxError):
        return value
