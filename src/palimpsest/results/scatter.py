"""Points before and after in one plane, with the curves of their marginals, as papers draw hidden states."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from palimpsest.errors import DataError
from palimpsest.results.tables import check_columns

_MARGIN = 0.05
_GRID = 200
_FEWEST = 3
"""Points below which, or without any spread, no curve is drawn."""


def before_and_after(
    figure: Figure,
    points: pd.DataFrame,
    colours: Mapping[str, str],
    panel: str = "panel",
    moment: str = "moment",
) -> dict[str, Axes]:
    """Draw one scatter plot for each panel, side by side and with equal limits, each with both marginals.

    Args:
        figure: where to draw; it has no panels yet.
        points: one row per point, with columns ``x``, ``y`` and those named by ``panel`` and ``moment``.
        colours: moment -> colour, drawn in this order.
        panel: name of the column that divides the points into panels.
        moment: name of the column that tells points before from points after.

    Returns:
        Panel -> axes of its points, for labels.

    Raises:
        DataError: if a column is missing, there is no point, or a moment has no colour.
    """
    check_columns(points, ["x", "y", panel, moment], [])
    unknown = sorted({*points[moment]} - {*colours})
    if points.empty or unknown:
        raise DataError(
            f"no colour for {', '.join(unknown) or 'any point: there is none'}; give every moment one"
        )
    names = list(points[panel].unique())
    grid = figure.add_gridspec(
        2, 2 * len(names), height_ratios=[1, 4], width_ratios=[4, 1] * len(names), hspace=0, wspace=0
    )
    limits = [_limits(points[axis].to_numpy()) for axis in ("x", "y")]
    drawn: dict[str, Axes] = {}
    for place, name in enumerate(names):
        main = figure.add_subplot(grid[1, 2 * place])
        top, right = figure.add_subplot(grid[0, 2 * place]), figure.add_subplot(grid[1, 2 * place + 1])
        for state, colour in colours.items():
            of = points[points[panel].eq(name) & points[moment].eq(state)]
            main.scatter(of["x"], of["y"], s=9, color=colour, alpha=0.5, linewidths=0, label=state)
            for axes, values, ends, upright in (
                (top, of["x"], limits[0], False),
                (right, of["y"], limits[1], True),
            ):
                _curve(axes, values.to_numpy(dtype=float), ends, colour, upright)
        main.set(xlim=limits[0], ylim=limits[1])
        top.set(xlim=limits[0], ylim=(0, None))
        right.set(ylim=limits[1], xlim=(0, None))
        for axes in (top, right):
            axes.axis("off")
        top.set_title(name)
        drawn[str(name)] = main
    return drawn


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = _MARGIN * (high - low) or 1.0
    return low - room, high + room


def _curve(
    axes: Axes, values: NDArray[np.float64], ends: Sequence[float], colour: str, upright: bool
) -> None:
    """Kernel density estimate along an axis, with the bandwidth of Scott's rule."""
    if len(values) < _FEWEST or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return
    at = np.linspace(ends[0], ends[1], _GRID)
    density = gaussian_kde(values)(at)
    axes.plot(*((density, at) if upright else (at, density)), color=colour, lw=1.4)
    fill = axes.fill_betweenx if upright else axes.fill_between
    fill(at, density, color=colour, alpha=0.15, lw=0)
