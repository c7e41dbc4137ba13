"""Rows of the long runs that belong to a page, from what the repository carries of them."""

import pandas as pd

from palimpsest import paths
from palimpsest.results.records import read

ARMS = "arms"
"""Folder of long runs below ``results``: one folder for each page, and in it one for each run."""

ABOUT = ("regime", "sequence", "values_when", "strength", "changes", "data", "order")
"""Columns that say which run a row belongs to."""


def long_runs(page: str, table: str = "rows", model: str = "") -> pd.DataFrame:
    """A table of every long run of a page, one below the other; empty if there is none.

    Args:
        page: name of the notebook that the runs belong to.
        table: name of the table that each of them recorded.
        model: only those of this model, named as in the run; all by default.

    Returns:
        The rows, after the columns `ABOUT`: regime, sequence, when values were computed, factor of the
        penalty, settings that were changed (with commas between), file of original facts (empty: the
        project's own) and order of the facts.

    Raises:
        DataError: if a record is damaged.
    """
    found = []
    for record in sorted((paths.results_root() / ARMS / page).glob("*/*.json")):
        path = record.with_name(f"{record.stem}.{table}.parquet")
        if record.name.endswith(".provenance.json") or not path.is_file():
            continue
        used = read(record)["parameters"]
        if model not in ("", used.get("model", "")):
            continue
        sequence, when, strength = str(used["run"]).split()
        changes = ", ".join(used["changes"])
        data = str(used.get("data", ""))
        about = (used["regime"], sequence, when, float(strength), changes, data, int(used["order"]))
        rows = pd.read_parquet(path)
        for place, (name, value) in enumerate(zip(ABOUT, about, strict=True)):
            rows.insert(place, name, value)
        found.append(rows)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(ABOUT))


def collapse_points(rows: pd.DataFrame, at: float) -> pd.DataFrame:
    """Where long runs collapsed: facts written when the perplexity was first ``at`` times the unedited one.

    Args:
        rows: of `long_runs`.
        at: a multiple of the unedited perplexity.

    Returns:
        One row for each run: the columns `ABOUT`, ``facts``, the number of facts at the first measurement at
        or above the limit (NaN where it was never reached), ``before``, that of the measurement before, so
        that the collapse lies between both, ``written``, and ``last``, the last ratio that was measured.
    """
    ratio = rows[rows["metric"].eq("ratio")]
    found = []
    for about, run in ratio.groupby(list(ABOUT), sort=False, dropna=False):
        run = run.sort_values("edits")
        beyond = run[run["value"] >= at]["edits"]
        first = float(beyond.iloc[0]) if len(beyond) else float("nan")
        earlier = run[run["edits"] < first]["edits"] if len(beyond) else run["edits"]
        before = float(earlier.max()) if len(earlier) else 0.0
        last = run.iloc[-1]
        found.append((*about, first, before, int(last["edits"]), float(last["value"])))
    return pd.DataFrame(found, columns=[*ABOUT, "facts", "before", "written", "last"])
