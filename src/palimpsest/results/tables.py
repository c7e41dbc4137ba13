"""Markdown tables for notebooks and generated pages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from palimpsest.errors import DataError
from palimpsest.results.prose import Markdown, plain
from palimpsest.styles import Style


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells may hold markup, line breaks are replaced and bars escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def markdown_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    align: Literal["left", "right"] = "right",
    caption: str = "",
) -> Markdown:
    """Make a Markdown table from texts.

    Args:
        head: name of each column.
        rows: the cells of each row, which may hold markup; bars are escaped, line breaks replaced.
        align: alignment of the columns after the first: ``right`` for numbers, ``left`` for words.
        caption: what the table shows, as Markdown; stands above it.

    Raises:
        DataError: if a row and the head differ in their number of cells.
    """
    lines = [_line(head), "|:---|" + {"left": ":---|", "right": "---:|"}[align] * (len(head) - 1)]
    for row in rows:
        if len(row) != len(head):
            raise DataError(f"a row of {len(row)} cells under {len(head)} columns: {list(row)}; fill it up")
        lines.append(_line(row))
    above = f"**Table.** {caption}\n\n" if caption else ""
    return Markdown(above + "\n".join(lines))


def frame_table(
    frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]], caption: str = "", missing: str = "–"
) -> Markdown:
    """Table of a frame under plain names.

    Args:
        frame: one row for each row of the table.
        columns: column -> (its name as printed, format of its numbers, such as ``.1f``), in order; the format
            of a column of words is empty.
        caption: what the table shows, as Markdown; stands above it.
        missing: printed for a missing number.

    Raises:
        DataError: if a column is missing.
    """
    check_columns(frame, list(columns), [])
    head = [name for name, _ in columns.values()]
    rows = [
        [
            missing if pd.isna(row[column]) else _shown(row[column], form)
            for column, (_, form) in columns.items()
        ]
        for _, row in frame.iterrows()
    ]
    words = any(form == "" for _, form in list(columns.values())[1:])
    return markdown_table(head, rows, "left" if words else "right", caption)


def _shown(value: Any, form: str) -> str:
    """A number in its format; a text as it is, whatever markup it seems to hold."""
    return plain(value) if isinstance(value, str) else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def scores(
    frame: pd.DataFrame,
    styles: Mapping[str, Style],
    published: pd.DataFrame | None = None,
    digits: int = 1,
    source: str = "published",
    caption: str = "",
) -> Markdown:
    """Table of scores: one row for each method, one column for each metric.

    Args:
        frame: tidy scores with columns ``method``, ``metric``, ``value`` and optionally ``low``, ``high``.
        styles: of the methods.
        published: printed scores with columns ``method``, ``metric``, ``value`` and optionally ``spread`` and
            ``printed``, with the same names of methods and metrics; shown in further columns.
        digits: decimals of our numbers; published ones are shown as printed.
        source: added to the metric in the heads of the published columns.
        caption: what the table shows, as Markdown.

    Raises:
        DataError: if a column is missing or a score is given twice.
    """
    check_columns(frame, ["method", "metric", "value"], ["method", "metric"])
    metrics, columns = list(frame["metric"].unique()), {}
    for metric in metrics:
        rows = frame[frame["metric"] == metric]
        columns[metric] = {row["method"]: _score(row, digits) for _, row in rows.iterrows()}
    if published is not None:
        check_columns(published, ["method", "metric", "value"], ["method", "metric"])
        for metric in (name for name in metrics if name in set(published["metric"])):
            rows = published[published["metric"] == metric]
            columns[f"{metric}, {source}"] = {r["method"]: _printed(r) for _, r in rows.iterrows()}
    rows = [
        [styles[method].name, *(column.get(method, "") for column in columns.values())]
        for method in frame["method"].unique()
    ]
    head = [column.replace("_", " ") for column in columns]
    return markdown_table(["method", *head], rows, caption=caption)


def _score(row: "pd.Series[Any]", digits: int) -> str:
    text = f"{row['value']:.{digits}f}"
    if "low" not in row or pd.isna(row["low"]):
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _printed(row: "pd.Series[Any]") -> str:
    text = str(row["printed"] if "printed" in row else row["value"])
    return text if "spread" not in row or pd.isna(row["spread"]) else f"{text} ± {row['spread']:g}"


def check_columns(frame: pd.DataFrame, columns: Sequence[str], unique: Sequence[str]) -> None:
    """Check that a tidy frame can be shown.

    Raises:
        DataError: if a column is missing, or two rows have the same values in ``unique``.
    """
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    twice = frame[frame.duplicated(list(unique))] if unique else frame.iloc[:0]
    if not twice.empty:
        row = ", ".join(f"{name} = {twice.iloc[0][name]}" for name in unique)
        raise DataError(f"{row} is given twice; aggregate or filter the frame before drawing")
