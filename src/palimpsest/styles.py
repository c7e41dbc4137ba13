"""Printed names and colours of methods, from one palette."""

from dataclasses import dataclass

OKABE_ITO: dict[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""The palette of Okabe and Ito; its colours can be told apart without red or green vision."""


@dataclass(frozen=True)
class Style:
    """Printed name and colour of a method in figures and tables.

    Attributes:
        name: as it is printed.
        colour: hex code, the same in every figure; None for a method without a fixed colour.
    """

    name: str
    colour: str | None = None


STYLES: dict[str, Style] = {
    "unedited": Style("unedited", "#7F7F7F"),
    "rect": Style("RECT", OKABE_ITO["green"]),
    "prune": Style("PRUNE", OKABE_ITO["purple"]),
}
"""Styles of what is not an editor of the package: the unedited model, post-processing of updates, and
baselines of the papers. Styles of editors are in `palimpsest.editors.EDITORS`."""
