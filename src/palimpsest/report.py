"""Tables and figures of the book, in one style. Draws and formats; computes nothing.

A figure's data is a tidy frame, one row for each mark, with the ends of an interval in columns
``low`` and ``high`` where there is one. Numbers come from records, published ones from
``data/published``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from palimpsest import paths
from palimpsest.errors import DataError, UnknownNameError

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

METHOD_NAMES: dict[str, str] = {
    "unedited": "unedited",
    "rome": "ROME",
    "memit": "MEMIT",
    "alphaedit": "AlphaEdit",
    "rect": "RECT",
    "prune": "PRUNE",
    "alphaedit_plus": "AlphaEdit+",
    "ft": "FT",
    "ft_l": "FT-L",
    "emmet": "EMMET",
    "mend": "MEND",
    "ike": "IKE",
    "kn": "KN",
    "grace": "GRACE",
    "serac": "SERAC",
    "melo": "MELO",
}
"""Name of a method in code -> name in print."""

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

ASKED = ("efficacy", "generalisation", "specificity")

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


def method_name(method: str) -> str:
    """The name a figure or table shows for a method."""
    return METHOD_NAMES.get(method, method)


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names as a sentence lists them: ``a, b and c``; another word where there are none."""
    *first, last = names or [none]
    return " and ".join([", ".join(first), last] if first else [last])


def published(paper: str, table: int | str, **filters: Any) -> pd.DataFrame:
    """Rows of one published table, with the printed numbers as floats beside the printed text.

    Args:
        paper: as in the file names of ``data/published``, for example ``alphaedit``.
        table: number of the table, or ``figures`` or ``hyperparameters``.
        filters: column name -> value, or list of values, to keep.

    Returns:
        The rows with ``value`` and ``spread`` as floats (NaN where nothing is printed) and the
        printed characters in ``printed``.

    Raises:
        UnknownNameError: if there is no such table or column.
        DataError: if no row is left.
    """
    folder = paths.root() / "data" / "published"
    name = f"{paper}_{table}" if str(table) in ("figures", "hyperparameters") else ""
    path = folder / f"{name or f'{paper}_table{table}'}.csv"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*_*.csv")]
        raise UnknownNameError("published table", path.stem, known)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, wanted in filters.items():
        frame = _keep(frame, column, wanted, path.name)
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in ("value", "spread")}
    return frame.assign(printed=frame["value"], **numbers).reset_index(drop=True)


def as_ours(frame: pd.DataFrame) -> pd.DataFrame:
    """Published rows under our names of methods and metrics, ready for ``score_table``.

    ``Pre-edited`` becomes ``unedited``, ``AlphaEdit+`` ``alphaedit_plus``, ``Generalization``
    ``generalisation``; other names are put in lower case. What the papers print for ZsRE is a share
    of tokens, ``efficacy_tokens`` and so on.
    """
    methods = frame["method"].replace({"Pre-edited": "unedited", "AlphaEdit+": "alphaedit_plus"})
    metrics = frame["metric"].replace({"Generalization": "generalisation"}).str.lower()
    tokens = frame["dataset"].eq("ZsRE") & metrics.isin(ASKED)
    return frame.assign(method=methods.str.lower(), metric=metrics.mask(tokens, metrics + "_tokens"))


def _keep(frame: pd.DataFrame, column: str, wanted: Any, name: str) -> pd.DataFrame:
    if column not in frame:
        raise UnknownNameError(f"column of {name}", column, list(frame.columns))
    values = [wanted] if isinstance(wanted, (str, int, float)) else list(wanted)
    kept = frame[frame[column].isin([str(value) for value in values])]
    if kept.empty:
        known = ", ".join(sorted(frame[column].unique()))
        raise DataError(f"{name}: no row with {column} = {wanted!r}; choose from: {known}")
    return kept


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


def _check(frame: pd.DataFrame, columns: Sequence[str], unique: Sequence[str]) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    twice = frame[frame.duplicated(list(unique))]
    if not twice.empty:
        row = ", ".join(f"{name} = {twice.iloc[0][name]}" for name in unique)
        raise DataError(f"{row} is given twice; aggregate or filter the frame before drawing")


def _arms(rows: pd.DataFrame) -> list[pd.Series]:
    """Distances from the value to the ends of its interval; none where an end is missing."""
    below, above = rows["value"] - rows["low"], rows["high"] - rows["value"]
    return [below.fillna(0).clip(lower=0), above.fillna(0).clip(lower=0)]


class MarkdownTable(str):
    """A table that notebooks and the book render, and that tests read as text."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], align: Literal["left", "right"] = "right"
) -> MarkdownTable:
    """Texts as a table.

    Args:
        head: name of each column.
        rows: the cells of each row; a ``|`` or a line break in them would end the cell and is replaced.
        align: where the columns after the first are set: numbers to the right, words to the left.

    Raises:
        DataError: if a row has another number of cells than the head.
    """
    lines = [_line(head), "|:---|" + {"left": ":---|", "right": "---:|"}[align] * (len(head) - 1)]
    for row in rows:
        if len(row) != len(head):
            raise DataError(f"a row of {len(row)} cells under {len(head)} columns: {list(row)}; fill it up")
        lines.append(_line(row))
    return MarkdownTable("\n".join(lines))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def score_table(
    frame: pd.DataFrame,
    published: pd.DataFrame | None = None,
    digits: int = 1,
    source: str = "published",
) -> MarkdownTable:
    """Scores as a table: a row for each method, a column for each metric.

    Args:
        frame: tidy scores with columns ``method``, ``metric``, ``value`` and perhaps ``low``, ``high``.
        published: printed scores with columns ``method``, ``metric``, ``value`` and perhaps
            ``spread``, under the same names of methods and metrics; shown in further columns.
        digits: decimals of our own numbers; published ones keep the printed characters.
        source: what the published columns are headed with.

    Raises:
        DataError: if a column is missing or a score is given twice.
    """
    _check(frame, ["method", "metric", "value"], ["method", "metric"])
    metrics, columns = list(frame["metric"].unique()), {}
    for metric in metrics:
        rows = frame[frame["metric"] == metric]
        columns[metric] = {row["method"]: _score(row, digits) for _, row in rows.iterrows()}
    if published is not None:
        _check(published, ["method", "metric", "value"], ["method", "metric"])
        for metric in (name for name in metrics if name in set(published["metric"])):
            rows = published[published["metric"] == metric]
            columns[f"{metric}, {source}"] = {r["method"]: _printed(r) for _, r in rows.iterrows()}
    rows = [
        [method_name(method), *(column.get(method, "") for column in columns.values())]
        for method in frame["method"].unique()
    ]
    return markdown_table(["method", *columns], rows)


def _score(row: "pd.Series[Any]", digits: int) -> str:
    text = f"{row['value']:.{digits}f}"
    if "low" not in row or pd.isna(row["low"]):
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _printed(row: "pd.Series[Any]") -> str:
    text = str(row["printed"] if "printed" in row else row["value"])
    return text if "spread" not in row or pd.isna(row["spread"]) else f"{text} ± {row['spread']:g}"
