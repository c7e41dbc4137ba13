"""The settings of the embedded model are the ones its recorded search found, with equal effort per editor."""

import ast
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from palimpsest.editors import EDITORS, editor_for
from palimpsest.editors.settings import editor_settings, models_dir

MODEL = "smollm2-135m"
SEARCH = pd.read_csv(models_dir() / f"{MODEL}.search.csv")
UNSEARCHED = ("ft_l", "ike")
"""Their settings follow from others' by a rule, which a test below checks."""
SEARCHED = [editor for editor in EDITORS if editor not in UNSEARCHED]


def test_every_editor_was_tried_equally_often_on_the_same_facts() -> None:
    counts = SEARCH.groupby("editor").size()
    assert set(counts.index) == set(SEARCHED)
    assert counts.nunique() == 1
    assert SEARCH[["facts", "seed"]].drop_duplicates().shape == (1, 2)


@pytest.mark.parametrize("editor", SEARCHED)
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


def test_what_was_not_searched_follows_from_what_was() -> None:
    """FT-L is FT with a limit of one step of Adam, as for GPT2-XL; IKE shows as many facts as EasyEdit."""
    free, held = editor_settings(MODEL, "ft"), editor_settings(MODEL, "ft_l")
    assert held == {**free, "limit": free["lr"]}
    published: Any = editor_for("ft_l", "gpt2-xl")
    assert published.limit == published.lr
    assert editor_settings(MODEL, "ike") == {"count": 16}


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
    script = (Path(__file__).parents[2] / "scripts" / "tune_editors.py").read_text()
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    splits = [k.value.value for call in calls for k in call.keywords if k.arg == "split"]  # type: ignore[attr-defined]
    assert splits == ["validation"]


def _parsed(value: object) -> object:
    try:
        return ast.literal_eval(str(value))
    except (ValueError, SyntaxError):
        return value
