"""Sentences with recorded values: formats, formulas left alone, and lists that read well for any number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import UnknownNameError
from palimpsest.results.prose import Markdown, counted, filled, which

GAIN = {"value": 97.8, "low": 93.1, "high": 99.4, "unit": "percent"}
FACTS = {"value": 1200, "low": None, "high": None, "unit": "count"}
VALUES = {"gain": GAIN, "facts": FACTS}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Efficacy is {gain}.", "Efficacy is 97.8 [93.1, 99.4]."),
        ("Efficacy is {gain:value}.", "Efficacy is 97.8."),
        ("About {gain:.0f} of {facts}", "About 98 of 1,200"),
        ("{word}, {number}, {share:.2f}", "a word, 2,000, 0.50"),
        (r"$\frac{a}{b} + x_{gain} + e^{gain}$ and \mathrm{gain}", None),
        ("{cite:p}`gain` and {ref}`gain`", None),
        ("no names", None),
        ("grow{word}, {gain:value}{facts}", "growa word, 97.81,200"),
        (r"$\lVert W_{word}\rVert$ is {word}", r"$\lVert W_{word}\rVert$ is a word"),
    ],
)
def test_names_become_values_and_formulas_and_roles_stay(template: str, text: str | None) -> None:
    words = {"word": "a word", "number": 2000, "share": 0.5}
    assert filled(template, VALUES, words) == (template if text is None else text)


def test_a_word_wins_over_a_value_of_its_name() -> None:
    assert filled("{gain}", VALUES, {"gain": "much"}) == "much"


def test_a_name_that_is_not_recorded_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown value 'gian'; choose one of: facts, gain, word"):
        filled("It is {gian}.", VALUES, {"word": "w"})


def test_jupyter_renders_a_sentence_as_markdown() -> None:
    assert Markdown("*a*")._repr_markdown_() == "*a*"


@pytest.mark.parametrize(
    ("names", "everything", "text"),
    [
        ([], ["a", "b", "c"], "none of 3 runs"),
        ([], ["a"], "not a"),
        (["a"], ["a"], "a"),
        (["a"], ["a", "b", "c"], "a alone of 3 runs"),
        (["a", "b"], ["a", "b"], "a and b"),
        (["a", "b"], ["a", "b", "c"], "a and b, 2 of 3 runs"),
        (["a", "b", "c"], ["a", "b", "c"], "all 3 runs"),
    ],
)
def test_which_of_some_things(names: list[str], everything: list[str], text: str) -> None:
    assert which(names, everything, "runs") == text


@given(st.integers(0, 6), st.integers(1, 6))
def test_which_says_how_many_there_are(chosen: int, total: int) -> None:
    everything = [f"run {place}" for place in range(total)]
    text = which(everything[:chosen], everything, "runs")
    assert "  " not in text
    if total > 2:
        assert f"{total} runs" in text
    if 0 < chosen < total:
        assert all(name in text for name in everything[:chosen])


@pytest.mark.parametrize(
    ("number", "many", "text"),
    [(1, "", "1 fact"), (0, "", "0 facts"), (1200, "", "1,200 facts"), (2, "data", "2 data")],
)
def test_a_number_with_its_noun(number: int, many: str, text: str) -> None:
    assert counted(number, "fact", many) == text
