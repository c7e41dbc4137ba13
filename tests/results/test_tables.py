"""Tables: intervals, printed values and names as they are shown."""

import pandas as pd
import pytest

from palimpsest.errors import DataError
from palimpsest.results.prose import listed
from palimpsest.results.tables import frame_table, markdown_table, scores
from palimpsest.styles import Style

SCORES = pd.DataFrame(
    {
        "method": ["unedited", "memit", "unedited", "memit"],
        "metric": ["efficacy", "efficacy", "specificity", "specificity"],
        "value": [0.0, 97.84, 75.6, 73.25],
        "low": [0.0, 93.13, 70.0, None],
        "high": [2.0, 99.4, 80.0, None],
    }
)


STYLES = {"unedited": Style("unedited", "#7F7F7F"), "memit": Style("MEMIT", "#0072B2")}


def test_table_shows_intervals_and_published_values_as_printed():
    printed = pd.DataFrame(
        {
            "method": ["memit"],
            "metric": ["efficacy"],
            "value": [65.65],
            "spread": [0.47],
            "printed": ["65.65"],
        }
    )
    lines = scores(SCORES, STYLES, printed, source="AlphaEdit, Table 1").splitlines()
    assert lines[0] == "| method | efficacy | specificity | efficacy, AlphaEdit, Table 1 |"
    assert lines[2] == "| unedited | 0.0 [0.0, 2.0] | 75.6 [70.0, 80.0] |  |"
    assert lines[3] == "| MEMIT | 97.8 [93.1, 99.4] | 73.2 | 65.65 ± 0.47 |"


def test_table_renders_as_markdown():
    table = scores(SCORES, STYLES)
    assert table._repr_markdown_() == str(table)


def test_a_table_of_texts():
    table = markdown_table(["name", "value"], [["a|b", "1\n2"], ["c", ""]])
    assert table.splitlines() == ["| name | value |", "|:---|---:|", "| a\\|b | 1 2 |", "| c |  |"]
    words = markdown_table(["name", "said", "then"], [], align="left")
    assert words.splitlines()[1] == "|:---|:---|:---|"


def test_a_row_that_does_not_fit_its_table_is_shown():
    with pytest.raises(DataError, match=r"a row of 1 cells under 2 columns: \['lonely'\]; fill it up"):
        markdown_table(["name", "value"], [["lonely"]])


def test_a_score_given_twice_is_refused():
    with pytest.raises(DataError, match=r"method = memit, metric = efficacy is given twice"):
        scores(pd.concat([SCORES, SCORES.iloc[[1]]]), STYLES)


def test_a_table_that_lacks_a_column_names_it():
    with pytest.raises(DataError, match=r"the frame lacks method; it has metric, value, low, high"):
        scores(SCORES.drop(columns="method"), STYLES)


@pytest.mark.parametrize(
    ("names", "text"),
    [((), "none"), (("a",), "a"), (("a", "b"), "a and b"), (("a", "b", "c"), "a, b and c")],
)
def test_names_are_listed_as_a_sentence_does(names: tuple[str, ...], text: str) -> None:
    assert listed(names) == text


# Frames


FRAME = pd.DataFrame({"run": ["a", "b"], "norm": [1.25, None], "n": [3, 4]})


def test_a_frame_is_shown_under_plain_names_with_its_caption() -> None:
    shown = frame_table(
        FRAME, {"run": ("run", ""), "norm": ("length", ".1f"), "n": ("facts", "d")}, "Lengths."
    )
    assert shown.splitlines() == [
        "**Table.** Lengths.",
        "",
        "| run | length | facts |",
        "|:---|---:|---:|",
        "| a | 1.2 | 3 |",
        "| b | – | 4 |",
    ]
    assert shown._repr_markdown_() == str(shown)


def test_words_stand_on_the_left() -> None:
    assert "|:---|:---|" in frame_table(FRAME, {"n": ("facts", "d"), "run": ("run", "")})


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match="the frame lacks gone; it has run, norm, n"):
        frame_table(FRAME, {"gone": ("gone", "")})
