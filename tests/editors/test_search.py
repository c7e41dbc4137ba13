"""The settings of the embedded model are the ones its recorded search found, with equal effort per editor."""

import ast
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from palimpsest.editors import EDITORS, editor_for
from palimpsest.editors.derived import layers_of
from palimpsest.editors.settings import editor_settings, models_dir

MODEL = "smollm2-135m"
SEARCH = pd.read_csv(models_dir() / f"{MODEL}.search.csv")
FOLLOWING = ("ft_l", "ike")
"""Their settings follow from others' by a rule, which a test below checks."""
ADAPTED = (
    "ft_m",
    "lora",
    "r_rome",
    "emmet",
    "kn",
    "mend",
    "instruct_edit",
    "lyaplock",
    "ultraedit",
    "grace",
    "melo",
    "serac",
)
"""Their settings are published ones, adapted to the model by what its file says, or another method's."""
UNSEARCHED = (*FOLLOWING, *ADAPTED)
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


def test_what_was_adapted_is_what_the_file_says() -> None:
    """Layers at their share of depth, EasyEdit's numbers, and two weights with a rule."""
    found = {name: editor_settings(MODEL, name) for name in (*SEARCHED, *ADAPTED)}
    assert found["r_rome"] == {**found["rome"], "denominator": "same_key"}
    assert found["ft_m"]["layers"] == list(layers_of((21,), 32, 30))
    assert found["ft_m"]["lr"] == found["ft"]["lr"]
    assert found["lora"] == {
        "layers": found["memit"]["layers"],
        "rank": 8,
        "alpha": 32,
        "steps": 70,
        "lr": 5e-3,
    }
    published: Any = editor_for("emmet", "gpt-j-6b")
    assert found["emmet"]["slack"] == published.slack
    weight = (
        published.slack * published.preserve_weight / editor_settings("gpt-j-6b", "memit")["preserve_weight"]
    )
    assert found["emmet"]["slack"] * found["emmet"]["preserve_weight"] == pytest.approx(
        weight * found["memit"]["preserve_weight"]
    )
    xl = editor_settings("gpt2-xl", "kn")
    assert xl["layers"] == list(range(48))
    assert found["kn"] == {**xl, "layers": list(range(30))}
    gptj: Any = editor_for("ultraedit", "gpt-j-6b")
    assert found["ultraedit"]["layers"] == list(layers_of(gptj.layers, 28, 30))
    assert found["ultraedit"]["lr"] == pytest.approx(10 * gptj.lr * 16384 / 1536, rel=0.1)
    for name, model, kept in (
        ("grace", "qwen2.5-7b", ("radius", "lr")),
        ("melo", "gpt2-xl", ("radius", "rank")),
    ):
        easyedit = editor_settings(model, name)
        assert {key: found[name][key] for key in kept} == {key: easyedit[key] for key in kept}


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
