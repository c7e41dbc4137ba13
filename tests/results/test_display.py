"""Figures that a reader with a phone can read, and the errors of those that one cannot."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from PIL import Image

from palimpsest.errors import DataError, UnknownNameError
from palimpsest.results import display
from palimpsest.results.display import MARK, SHARP, WIDEST, show_figure
from palimpsest.results.figures import use_style
from palimpsest.results.records import Results


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What is handed to the page: (data, metadata) of each output."""
    outputs: list[tuple[Any, Any]] = []
    monkeypatch.setattr(display, "display", lambda data, metadata, raw: outputs.append((data, metadata)))
    return outputs


@pytest.fixture
def results() -> Results:
    made = Results("01_page", profile="smoke", parameters={"seed": 3})
    made.value("gain", 2.5, 1.0, 4.0, unit="percent", over="cases", n=9)
    return made


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    use_style()
    yield
    plt.close("all")


def panels(rows: int = 1, columns: int = 1, width: float = 6.0) -> Figure:
    return plt.subplots(rows, columns, figsize=(width, 3.0))[0]


def test_a_figure_is_a_sharp_picture_and_a_caption_with_its_values(
    shown: list[tuple[Any, Any]], results: Results
) -> None:
    figure = panels()
    show_figure(results, "gains", figure, "The gain is\n {gain}, seed {seed}.")
    (picture, about), (caption, note) = shown
    assert caption["text/markdown"] == "The gain is 2.5 [1.0, 4.0], seed 3."
    assert picture["text/plain"] == caption["text/markdown"]
    assert (about[MARK]["figure"], note) == ("gains", {MARK: {"caption": "gains"}})
    pixels = Image.open(io.BytesIO(base64.b64decode(picture["image/png"])))
    assert about["image/png"] == {"width": pixels.width // SHARP, "height": pixels.height // SHARP}
    assert about[MARK]["width"] == pixels.width // SHARP
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize(("rows", "columns"), [(3, 1), (1, 2)])
def test_three_panels_are_shown(
    rows: int, columns: int, shown: list[tuple[Any, Any]], results: Results
) -> None:
    show_figure(results, "gains", panels(rows, columns), "A caption.")
    assert len(shown) == 2


def test_a_colour_bar_and_a_second_axis_are_no_panels(shown: list[tuple[Any, Any]], results: Results) -> None:
    figure = panels(3)
    figure.colorbar(figure.axes[0].imshow([[0, 1]]), ax=figure.axes[0])
    figure.axes[1].twinx()
    show_figure(results, "gains", figure, "A caption.")
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        (lambda: panels(2, 2), "figure gains: 4 panels; show at most 3, the others as a figure of their own"),
        (lambda: panels(width=WIDEST + 0.1), "figure gains: 6.5 inches wide; take 6.4 or less"),
    ],
)
def test_what_a_phone_cannot_show_is_an_error(
    figure: Any, message: str, shown: list[tuple[Any, Any]], results: Results
) -> None:
    with pytest.raises(DataError, match=message):
        show_figure(results, "gains", figure(), "A caption.")
    assert shown == []


def test_small_letters_are_an_error(shown: list[tuple[Any, Any]], results: Results) -> None:
    figure = panels()
    figure.axes[0].set_title("tiny", fontsize=8)
    with pytest.raises(DataError, match="figure gains: 'tiny' has 8 points; letters need 9 or more"):
        show_figure(results, "gains", figure, "A caption.")
    assert shown == []


def test_a_figure_needs_a_caption_whose_names_are_known(results: Results) -> None:
    with pytest.raises(DataError, match="figure gains: give it a caption that says what is seen"):
        show_figure(results, "gains", panels(), " \n")
    with pytest.raises(UnknownNameError, match="unknown value 'gian'"):
        show_figure(results, "gains", panels(), "It is {gian}.")
