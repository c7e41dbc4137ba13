"""Figures and tables of methods under their printed names and colours, for the pages."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from palimpsest.editors import style_of
from palimpsest.results import figures, tables
from palimpsest.results.prose import Markdown
from palimpsest.styles import Style


def method_name(method: str) -> str:
    """Printed name of a method."""
    return style_of(method).name


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Method -> colour in a figure; methods without a fixed colour get spare colours.

    Raises:
        DataError: if there are more methods without a fixed colour than spare colours.
    """
    return figures.colours_of(_styles(methods))


def score_table(frame: pd.DataFrame, published: pd.DataFrame | None = None, **options: Any) -> Markdown:
    """Table of scores, one row per method; arguments as `palimpsest.results.tables.scores`."""
    return tables.scores(frame, _styles(frame["method"]) if "method" in frame else {}, published, **options)


def bars_with_intervals(
    ax: Axes, frame: pd.DataFrame, category: str = "metric", group: str = "method"
) -> dict[tuple[str, str], float]:
    """Grouped bars in the methods' colours; arguments and result as `palimpsest.results.figures.bars`."""
    return figures.bars(ax, frame, _styles(frame[group]) if group in frame else {}, category, group)


def _styles(methods: Iterable[str]) -> dict[str, Style]:
    return {method: style_of(method) for method in methods}
