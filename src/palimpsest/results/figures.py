"""Figures of the book, in one style. Draws; computes nothing.

A figure's data is a tidy frame, one row for each mark, with the ends of an interval in columns
``low`` and ``high`` where there is one. Numbers come from records, published ones from
`palimpsest.results.published`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from palimpsest.errors import DataError
from palimpsest.results.tables import _check, method_name

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
"""The palette of Okabe and Ito, told apart also without red or green vision."""

METHOD_COLOURS: dict[str, str] = {
    "unedited": "#7F7F7F",
    "rome": OKABE_ITO["orange"],
    "memit": OKABE_ITO["blue"],
    "alphaedit": OKABE_ITO["vermilion"],
    "rect": OKABE_ITO["green"],
    "prune": OKABE_ITO["purple"],
    "alphaedit_plus": OKABE_ITO["black"],
    "ft": OKABE_ITO["sky blue"],
    "emmet": OKABE_ITO["yellow"],
}
"""One colour for each method, the same in every figure."""

SPARE_COLOURS: tuple[str, ...] = ("#882255", "#44AA99", "#999933", "#332288", "#AA4466", "#DDCC77")
"""For methods without a colour of their own."""

PUBLISHED_STYLE: dict[str, Any] = {
    "marker": "D",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "markeredgecolor": "#333333",
    "markeredgewidth": 1.2,
    "linestyle": "none",
    "zorder": 5,
}
"""A published value is an open diamond wherever it stands."""


def use_style() -> None:
    """Set the book's figure style: small PNG files, readable letters, few lines."""
    plt.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=list(METHOD_COLOURS.values())[1:]),
            "grid.color": "#E5E5E5",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "svg.hashsalt": "palimpsest",
        }
    )


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Colours for the methods of one figure; unknown ones get spare colours in order of name.

    Raises:
        DataError: if there are more unknown methods than spare colours.
    """
    names = list(dict.fromkeys(methods))
    unknown = sorted(set(names) - set(METHOD_COLOURS))
    if len(unknown) > len(SPARE_COLOURS):
        raise DataError(
            f"{len(unknown)} methods without a colour ({', '.join(unknown)}) but only "
            f"{len(SPARE_COLOURS)} spare ones; add them to METHOD_COLOURS in report.py"
        )
    known = METHOD_COLOURS | dict(zip(unknown, SPARE_COLOURS, strict=False))
    return {name: known[name] for name in names}


def published_marker(
    ax: Axes,
    x: float | Sequence[float],
    y: float | Sequence[float],
    spread: float | Sequence[float] | None = None,
    label: str = "published",
) -> ErrorbarContainer:
    """Mark published values as open diamonds, with the printed spread where there is one.

    Args:
        ax: where to draw.
        x: place of each value.
        y: the published values.
        spread: printed after ±; what it is over differs between the papers.
        label: for the legend; shown once even when called many times.
    """
    shown = label if label not in ax.get_legend_handles_labels()[1] else "_nolegend_"
    return ax.errorbar(x, y, yerr=spread, label=shown, ecolor="#333333", **PUBLISHED_STYLE)


def bars_with_intervals(
    ax: Axes, frame: pd.DataFrame, category: str = "metric", group: str = "method"
) -> dict[tuple[str, str], float]:
    """Draw grouped bars with their intervals.

    Args:
        ax: where to draw.
        frame: one row for each bar, columns ``category``, ``group``, ``value`` and, where there is an
            interval, ``low`` and ``high``.
        category: column along the axis.
        group: column whose values stand side by side, coloured as methods.

    Returns:
        (category, group) -> place of the bar, for ``published_marker``.

    Raises:
        DataError: if a column is missing or a bar is given twice.
    """
    _check(frame, [category, group, "value"], [category, group])
    categories, groups = list(frame[category].unique()), list(frame[group].unique())
    colours, width = method_colours(groups), 0.8 / len(groups)
    places: dict[tuple[str, str], float] = {}
    for order, name in enumerate(groups):
        rows = frame[frame[group] == name]
        shift = (order - (len(groups) - 1) / 2) * width
        x = [categories.index(value) + shift for value in rows[category]]
        ax.bar(x, rows["value"], 0.92 * width, color=colours[name], label=method_name(name))
        if {"low", "high"} <= set(frame):
            ax.errorbar(x, rows["value"], yerr=_arms(rows), fmt="none", ecolor="#333333", capsize=2)
        places |= dict(zip(((value, name) for value in rows[category]), x, strict=True))
    ax.set_xticks(range(len(categories)), categories)
    ax.grid(visible=False, axis="x")
    return places


def lines(ax: Axes, frame: pd.DataFrame, x: str, y: str = "value", group: str = "method") -> None:
    """Draw one line for each group, with a band from ``low`` to ``high`` where the frame has them.

    Args:
        ax: where to draw.
        frame: one row for each point.
        x: column along the axis.
        y: column of the height.
        group: column that tells lines apart, coloured as methods.

    Raises:
        DataError: if a column is missing or a point is given twice.
    """
    _check(frame, [x, y, group], [x, group])
    for name, colour in method_colours(frame[group]).items():
        rows = frame[frame[group] == name].sort_values(x)
        ax.plot(rows[x], rows[y], color=colour, marker=".", label=method_name(name))
        if {"low", "high"} <= set(frame):
            ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.18, lw=0)
    ax.set_xlabel(x.replace("_", " "))


def _arms(rows: pd.DataFrame) -> list[pd.Series]:
    """Distances from the value to the ends of its interval; none where an end is missing."""
    below, above = rows["value"] - rows["low"], rows["high"] - rows["value"]
    return [below.fillna(0).clip(lower=0), above.fillna(0).clip(lower=0)]
