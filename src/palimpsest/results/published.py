"""Published numbers of the papers, read from ``data/published``."""

from typing import Any

import pandas as pd

from palimpsest import paths
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.files import UNREADABLE

ASKED = ("efficacy", "generalisation", "specificity")


def published(paper: str, table: int | str, **filters: Any) -> pd.DataFrame:
    """Rows of one published table, with the numbers as floats and as printed text.

    Args:
        paper: as in the file names of ``data/published``, for example ``alphaedit``.
        table: number of the table, or ``figures`` or ``hyperparameters``.
        filters: column name -> value, or list of values, to keep.

    Returns:
        The rows with ``value`` and ``spread`` as floats (NaN if nothing is printed) and the text of the value
        in ``printed``.

    Raises:
        UnknownNameError: if there is no such table or column.
        DataError: if the table cannot be read or lacks a column, or no row remains after filtering.
    """
    folder = paths.root() / "data" / "published"
    name = f"{paper}_{table}" if str(table) in ("figures", "hyperparameters") else ""
    path = folder / f"{name or f'{paper}_table{table}'}.csv"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*_*.csv")]
        raise UnknownNameError("published table", path.stem, known)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); restore the file") from error
    lacking = [column for column in ("value", "spread") if column not in frame]
    if lacking:
        raise DataError(f"{path}: has no column {lacking[0]!r}, but {list(frame)}; restore the file")
    for column, wanted in filters.items():
        frame = _keep(frame, column, wanted, path.name)
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in ("value", "spread")}
    return frame.assign(printed=frame["value"], **numbers).reset_index(drop=True)


def as_ours(frame: pd.DataFrame) -> pd.DataFrame:
    """Published rows with our names of methods and metrics, for `palimpsest.studies.printing.score_table`.

    ``Pre-edited`` becomes ``unedited``, ``AlphaEdit+`` ``alphaedit_plus``, ``Generalization``
    ``generalisation``; other names are converted to lower case. For ZsRE the papers print token accuracy, so
    metrics become ``efficacy_tokens`` and so on.
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
