"""Figures on a page: shown by the cell that draws them, with a caption, in Jupyter and in the book alike.

A figure is a picture of twice the screen's resolution. What makes one unreadable on a phone is an error: more
than three panels, letters below nine points, or a width that shrinks them.
"""

import base64
import io

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.text import Text

from palimpsest.errors import DataError
from palimpsest.results.records import Results

MARK = "palimpsest"
"""Key of our part of an output's metadata."""

MOST_PANELS = 3
WIDEST = 6.4
"""Inches; at this width letters of the style's ten points are eight pixels high on a phone."""

SMALLEST = 9.0
"""Points."""

SHARP = 2
"""Pixels of a picture for each pixel of the screen."""


def show_figure(results: Results, name: str, figure: Figure, caption: str) -> None:
    """Show a figure with its caption, and close it.

    Args:
        results: of the page; values in the caption come from it.
        name: of the figure, with underscores; the book and the front page refer to it.
        figure: at most three panels, one above the other or two beside each other.
        caption: Markdown with names of values in braces; describes the picture to those who cannot see it.

    Raises:
        DataError: if a reader with a phone could not read it, or there is no caption.
        UnknownNameError: if the caption names a value that is not recorded.
    """
    text = " ".join(results.say(caption).split())
    if not text:
        raise DataError(f"figure {name}: give it a caption that says what is seen")
    figure.canvas.draw()
    faults = _faults(figure)
    if faults:
        raise DataError(f"figure {name}: {'; '.join(faults)}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=SHARP * plt.rcParams["figure.dpi"])
    plt.close(figure)
    picture = buffer.getvalue()
    width, height = (int.from_bytes(picture[at : at + 4], "big") // SHARP for at in (16, 20))
    size = {"width": width, "height": height}
    display(
        {"image/png": base64.b64encode(picture).decode(), "text/plain": text},
        metadata={"image/png": size, MARK: {"figure": name, "width": width}},
        raw=True,
    )
    display({"text/markdown": text, "text/plain": text}, metadata={MARK: {"caption": name}}, raw=True)


def _faults(figure: Figure) -> list[str]:
    """What a reader could not read, with the remedy."""
    found = []
    places = {tuple(round(x, 3) for x in ax.get_position().bounds) for ax in figure.axes if _is_panel(ax)}
    if len(places) > MOST_PANELS:
        found.append(f"{len(places)} panels; show at most {MOST_PANELS}, the others as a figure of their own")
    width = float(figure.get_size_inches()[0])
    if width > WIDEST:
        found.append(f"{width:g} inches wide; take {WIDEST} or less and put panels one above the other")
    small = {
        text.get_text(): float(text.get_fontsize())
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_text().strip() and text.get_visible()
    }
    for text, points in small.items():
        if points < SMALLEST:
            found.append(f"{text!r} has {points:g} points; letters need {SMALLEST:g} or more")
            break
    return found


def _is_panel(ax: object) -> bool:
    return getattr(ax, "get_label", str)() != "<colorbar>" and getattr(ax, "axison", True)
