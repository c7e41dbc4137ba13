"""Figures of the book, in one style; nothing is computed here.

The data of a figure is a tidy frame, one row for each mark, with the ends of an interval, if there is one, in
columns ``low`` and ``high``. Numbers come from records, published ones from `palimpsest.results.published`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from palimpsest.errors import DataError
from palimpsest.results.tables import check_columns
from palimpsest.styles import OKABE_ITO, Style

SPARE_COLOURS: tuple[str, ...] = ("#882255", "#44AA99", "#999933", "#332288", "#AA4466", "#DDCC77")
"""For methods without a fixed colour."""

CYCLE: tuple[str, ...] = tuple(
    OKABE_ITO[name]
    for name in ("orange", "blue", "vermilion", "green", "purple", "black", "sky blue", "yellow")
)
"""Default colours, in order, of lines that do not stand for a method."""

PUBLISHED_STYLE: dict[str, Any] = {
    "marker": "D",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "markeredgecolor": "#333333",
    "markeredgewidth": 1.2,
    "linestyle": "none",
    "zorder": 5,
}
"""Marker of published values: an open diamond, in every figure."""


def use_style() -> None:
    """Set matplotlib to the book's figure style."""
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
            "axes.prop_cycle": cycler(color=CYCLE),
            "grid.color": "#E5E5E5",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "svg.hashsalt": "palimpsest",
        }
    )


def colours_of(styles: Mapping[str, Style]) -> dict[str, str]:
    """Method -> colour in one figure; methods without a fixed colour get spare colours in order of name.

    Args:
        styles: method -> printed name and colour.

    Raises:
        DataError: if there are more methods without a fixed colour than spare colours.
    """
    without = sorted(name for name, style in styles.items() if style.colour is None)
    if len(without) > len(SPARE_COLOURS):
        raise DataError(
            f"{len(without)} methods without a colour ({', '.join(without)}) but only "
            f"{len(SPARE_COLOURS)} spare ones; give them a colour in EDITORS or in styles.py"
        )
    spare = dict(zip(without, SPARE_COLOURS, strict=False))
    return {name: style.colour or spare[name] for name, style in styles.items()}


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
        x: position of each value.
        y: the published values.
        spread: the number printed after ±; its meaning differs between the papers.
        label: for the legend; shown once even after several calls.
    """
    shown = label if label not in ax.get_legend_handles_labels()[1] else "_nolegend_"
    return ax.errorbar(x, y, yerr=spread, label=shown, ecolor="#333333", **PUBLISHED_STYLE)


def bars(
    ax: Axes,
    frame: pd.DataFrame,
    styles: Mapping[str, Style],
    category: str = "metric",
    group: str = "method",
) -> dict[tuple[str, str], float]:
    """Draw grouped bars with their intervals.

    Args:
        ax: where to draw.
        frame: one row for each bar, with the columns named by ``category`` and ``group``, ``value`` and, for
            intervals, ``low`` and ``high``.
        styles: of the groups.
        category: name of the column along the axis.
        group: name of the column whose values are drawn side by side, in their colours.

    Returns:
        (category, group) -> x position of the bar, for `published_marker`.

    Raises:
        DataError: if a column is missing or a bar is given twice.
    """
    check_columns(frame, [category, group, "value"], [category, group])
    categories, groups = list(frame[category].unique()), list(frame[group].unique())
    colours, width = colours_of({name: styles[name] for name in groups}), 0.8 / len(groups)
    places: dict[tuple[str, str], float] = {}
    for order, name in enumerate(groups):
        rows = frame[frame[group] == name]
        shift = (order - (len(groups) - 1) / 2) * width
        x = [categories.index(value) + shift for value in rows[category]]
        ax.bar(x, rows["value"], 0.92 * width, color=colours[name], label=styles[name].name)
        if {"low", "high"} <= set(frame):
            ax.errorbar(x, rows["value"], yerr=_arms(rows), fmt="none", ecolor="#333333", capsize=2)
        places |= dict(zip(((value, name) for value in rows[category]), x, strict=True))
    ax.set_xticks(range(len(categories)), categories)
    ax.grid(visible=False, axis="x")
    return places


def lines(
    ax: Axes,
    frame: pd.DataFrame,
    styles: Mapping[str, Style],
    x: str,
    y: str = "value",
    group: str = "method",
) -> None:
    """Draw one line for each group, with a band from ``low`` to ``high`` if the frame has these columns.

    Args:
        ax: where to draw.
        frame: one row for each point.
        styles: of the groups.
        x: name of the column along the horizontal axis.
        y: name of the column along the vertical axis.
        group: name of the column that distinguishes the lines.

    Raises:
        DataError: if a column is missing or a point is given twice.
    """
    check_columns(frame, [x, y, group], [x, group])
    for name, colour in colours_of({name: styles[name] for name in frame[group]}).items():
        rows = frame[frame[group] == name].sort_values(x)
        ax.plot(rows[x], rows[y], color=colour, marker=".", label=styles[name].name)
        if {"low", "high"} <= set(frame):
            ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.18, lw=0)
    ax.set_xlabel(x.replace("_", " "))


def _arms(rows: pd.DataFrame) -> list[pd.Series]:
    """Distances from the value to the ends of its interval; 0 for a missing end."""
    below, above = rows["value"] - rows["low"], rows["high"] - rows["value"]
    return [below.fillna(0).clip(lower=0), above.fillna(0).clip(lower=0)]
