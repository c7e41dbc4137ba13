"""Markdown tables of notebooks and generated pages, and the names of methods in print."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pandas as pd

from palimpsest.errors import DataError

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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells may hold markup, line breaks and bars are made safe."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A text none of whose characters is read as markup; bars are left to ``table``."""
    for mark in ("\\", "*", "_", "$", "<", "`", "[", "~"):
        text = text.replace(mark, f"\\{mark}")
    return text


def method_name(method: str) -> str:
    """The name a figure or table shows for a method."""
    return METHOD_NAMES.get(method, method)


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names as a sentence lists them: ``a, b and c``; another word where there are none."""
    *first, last = names or [none]
    return " and ".join([", ".join(first), last] if first else [last])


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


def _check(frame: pd.DataFrame, columns: Sequence[str], unique: Sequence[str]) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    twice = frame[frame.duplicated(list(unique))]
    if not twice.empty:
        row = ", ".join(f"{name} = {twice.iloc[0][name]}" for name in unique)
        raise DataError(f"{row} is given twice; aggregate or filter the frame before drawing")
