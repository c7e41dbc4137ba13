"""Figures of causal traces: effects by role of the token and by layer, and along the layers at one role.

The frame of both is that of `palimpsest.evaluation.traced.CausalTrace.by_role`: one row for each kind, role
and layer, with ``mean``, ``low`` and ``high``.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from palimpsest.results.tables import check_columns
from palimpsest.styles import OKABE_ITO

COLOURS = {
    "state": OKABE_ITO["blue"],
    "mlp": OKABE_ITO["vermilion"],
    "attention": OKABE_ITO["green"],
}
"""Kind of what is restored -> its colour in every figure."""

TITLES = {
    "state": "whole states, one layer",
    "mlp": "MLP outputs, a window of layers",
    "attention": "attention outputs, a window of layers",
}
"""Kind -> what is restored, in print."""

UNIT = "indirect effect,\npoints"


def effect_map(frame: pd.DataFrame, roles: Mapping[str, str], edited: Collection[int] = ()) -> Figure:
    """Heat maps of average indirect effects, one for each kind: roles of tokens down, layers across.

    Args:
        frame: one row for each kind, role and layer; effects are shares of probability and shown in points.
        roles: role -> its name in print, from the first to the last; roles without a row are left out.
        edited: layers to mark below each map.

    Raises:
        DataError: if a column is missing or a point is given twice.
    """
    check_columns(frame, ["kind", "role", "layer", "mean"], ["kind", "role", "layer"])
    kinds = [kind for kind in TITLES if frame["kind"].eq(kind).any()]
    rows = [role for role in roles if frame["role"].eq(role).any()]
    height = 0.9 + len(kinds) * (0.75 + 0.24 * len(rows))
    figure, axes = plt.subplots(len(kinds), 1, figsize=(6.2, height), sharex=True, squeeze=False)
    for ax, kind in zip(axes[:, 0], kinds, strict=True):
        own = frame[frame["kind"].eq(kind)].pivot(index="role", columns="layer", values="mean")
        own = 100 * own.reindex(rows)
        shades = LinearSegmentedColormap.from_list(kind, ["white", COLOURS[kind], "black"])
        top = max(float(own.max().max()), 1e-9)
        mesh = ax.pcolormesh(
            _edges([int(layer) for layer in frame["layer"].drop_duplicates().sort_values()]),
            range(len(rows) + 1),
            own,
            cmap=shades,
            vmin=0,
            vmax=top,
        )
        ax.set_yticks([place + 0.5 for place in range(len(rows))], [roles[role] for role in rows])
        ax.set_title(TITLES[kind])
        ax.invert_yaxis()
        ax.grid(visible=False)
        _mark(ax, edited, len(rows))
        figure.colorbar(mesh, ax=ax, label=UNIT, pad=0.02, aspect=12)
    axes[-1, 0].set_xlabel("layer" + (" (triangles: edited by MEMIT)" if edited else ""))
    return figure


def effect_lines(
    frame: pd.DataFrame, roles: Mapping[str, str], edited: Sequence[int] = (), suggested: Sequence[int] = ()
) -> Figure:
    """Average indirect effects along the layers, with their intervals, one panel for each role.

    Args:
        frame: as for `effect_map`, with ``low`` and ``high``; missing ends are not drawn.
        roles: role -> its name in print, of at most three panels.
        edited: consecutive layers to shade.
        suggested: consecutive layers to outline.

    Raises:
        DataError: if a column is missing or a point is given twice.
    """
    check_columns(frame, ["kind", "role", "layer", "mean", "low", "high"], ["kind", "role", "layer"])
    size = (6.2, 1.1 + 2.3 * len(roles))
    figure, axes = plt.subplots(len(roles), 1, figsize=size, sharex=True, squeeze=False)
    for ax, (role, title) in zip(axes[:, 0], roles.items(), strict=True):
        for layers, style in (
            (edited, {"color": "#DDDDDD", "label": "layers in the settings"}),
            (suggested, {"fill": False, "ec": "black", "ls": ":", "lw": 1.4, "label": "suggested layers"}),
        ):
            if layers:
                ax.axvspan(min(layers) - 0.5, max(layers) + 0.5, zorder=0.5, **style)
        for kind, title_of in TITLES.items():
            own = frame[frame["kind"].eq(kind) & frame["role"].eq(role)].sort_values("layer")
            if not own.empty:
                ax.plot(own["layer"], 100 * own["mean"], "o-", ms=4, color=COLOURS[kind], label=title_of)
                ends = own[["low", "high"]].astype(float) * 100
                ax.fill_between(own["layer"], ends["low"], ends["high"], color=COLOURS[kind], alpha=0.2, lw=0)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(ylabel=UNIT, title=title)
    axes[-1, 0].set_xlabel("layer")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _edges(layers: Sequence[int]) -> list[float]:
    """Where the cells of layers begin and end: halfway to their neighbours."""
    if len(layers) == 1:
        return [layers[0] - 0.5, layers[0] + 0.5]
    halves = [(a + b) / 2 for a, b in pairwise(layers)]
    return [max(-0.5, 2 * layers[0] - halves[0]), *halves, 2 * layers[-1] - halves[-1]]


def _mark(ax: Axes, layers: Collection[int], bottom: int) -> None:
    """Triangles below a map, which point at layers."""
    ax.plot(list(layers), [bottom + 0.35] * len(layers), "^", color="black", ms=6, clip_on=False)
    ax.set_ylim(bottom + (0.7 if layers else 0), 0)
