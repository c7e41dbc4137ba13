"""Norms recorded along a sequence of edits: values, changes of hidden states, weight updates.

Every editor writes them to the notes of its edit (`palimpsest.editors.base.value_notes`,
`palimpsest.editors.steps.steps`); here they are collected into a table. A long sequence takes an hour, so its
table is cached on disk under the hash of everything it depends on.

A fact's lengths differ from those of another fact by more than a sequence changes them, so each is compared
with the same fact's on the unedited model (`relative_lengths`), and growth is a rate of these ratios
(`per_hundred`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from palimpsest import cache
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.steps import Step, steps
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.memory.values import Targets
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.results.few_values import student_mean
from palimpsest.results.intervals import Interval, Resampling
from palimpsest.types import EditRequest

REVISION = 1
"""Part of the cache key; increase it when the code gives a different table for the same sequence."""

COLUMNS = ("step", "edits", "norm", "of", "value")
OF_FACTS = ("hidden_norm", "delta_norm", "value_norm")
OF_LAYERS = ("step_norm", "total_norm")
_Row = tuple[int, int, str, str, float]


def norm_trace(
    model: EditableModel, editor: WeightEditor, batches: Sequence[Sequence[EditRequest]]
) -> pd.DataFrame:
    """Norms at each step of a sequence, read from disk if the same sequence was run before.

    Args:
        model: the unedited model; restored at the end.
        editor: any weight editor, with its settings.
        batches: requests of each step.

    Returns:
        Columns ``step`` (from 1), ``edits`` (written so far), ``norm``, ``of`` and ``value``. Norms are
        ``hidden_norm`` ‖h₀‖, ``delta_norm`` ‖δ‖ and ``value_norm`` ‖z‖ of a fact, by id or text, for editors
        with values; and ``step_norm`` and ``total_norm``, ‖ΔW‖ of the step and ‖W − W_0‖ (Frobenius), by
        layer. If a step fails, a last row has norm ``stopped`` of ``model`` with value 1.

    Raises:
        ProfileError: if the editor needs a score; take `palimpsest.studies.trajectory` then.
        ResourceError: if the stored table is damaged or cannot be written.
    """
    settings: Any = editor
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "editor": [type(editor).__name__, asdict(settings)],
        "batches": [[asdict(request) for request in batch] for batch in batches],
    }
    return cache.table("norms", key, COLUMNS, lambda: _rows(model, editor, batches))


def _rows(
    model: EditableModel, editor: WeightEditor, batches: Sequence[Sequence[EditRequest]]
) -> Iterator[_Row]:
    number, edits = 0, 0
    try:
        for step in steps(model, editor, batches):
            number, edits = step.number + 1, edits + len(step.requests)
            yield from ((number, edits, *row) for row in noted_norms(step))
    except (NonFiniteError, SingularProblemError):
        yield number + 1, edits, "stopped", "model", 1.0


def noted_norms(step: Step) -> Iterator[tuple[str, str, float]]:
    """Yield (norm, fact or layer, value) from the notes of one step's edit."""
    facts = [request.id or request.text for request in step.requests]
    for name in OF_FACTS:
        if name in step.edit.notes:
            yield from ((name, *pair) for pair in zip(facts, step.edit.notes[name], strict=True))
    for name in OF_LAYERS:
        for layer, value in step.edit.notes[name].items():
            yield name, str(layer), value


def lengths_of(requests: Sequence[EditRequest], values: Targets) -> pd.DataFrame:
    """Lengths of optimised values: a row for each fact, in order, with ``of`` and the columns `OF_FACTS`.

    Args:
        requests: n facts, named by id or text as in `norm_trace`.
        values: their values, in the same order.

    Raises:
        ScoreError: if there are more or fewer facts than values.
    """
    made = (values.initial, values.deltas, values.values)  # (d_v, n) each
    if len(requests) != values.values.shape[1]:
        raise ScoreError(f"{len(requests)} facts and {values.values.shape[1]} values; give one for each")
    columns = {name: part.double().norm(dim=0).tolist() for name, part in zip(OF_FACTS, made, strict=True)}
    return pd.DataFrame({"of": [request.id or request.text for request in requests]} | columns)


def relative_lengths(trace: pd.DataFrame, alone: pd.DataFrame) -> pd.DataFrame:
    """Lengths of each fact when a sequence wrote it, over those of the same fact on the unedited model.

    Args:
        trace: from `norm_trace`, of an editor with values.
        alone: from `lengths_of`, of every fact of the trace under the same settings; a column ``step_norm``,
            the length ‖ΔW‖ of the edit of that fact alone, may be there too.

    Returns:
        One row for each fact that was written, in order: ``edits`` written with it, ``of``, ratios under the
        names in `OF_FACTS`, and ``step_norm``, ‖ΔW‖ of its step (all layers together) over that of the edit
        alone; NaN where that is not known or where a step wrote several facts. No row if the first step
        failed.

    Raises:
        ScoreError: if a fact of the trace is missing in ``alone`` or stands there twice.
    """
    facts, names = trace[trace["norm"].isin(OF_FACTS)], [*OF_FACTS, "step_norm"]
    if facts.empty:
        return pd.DataFrame(columns=["edits", "of", *names])
    wide = facts.pivot(index=["edits", "of"], columns="norm", values="value").reset_index()
    if alone["of"].duplicated().any() or not set(wide["of"]) <= set(alone["of"]):
        raise ScoreError("every fact of a trace needs its lengths on the unedited model, once")
    place = {fact: i for i, fact in enumerate(facts["of"].drop_duplicates())}
    wide = wide.sort_values("of", key=lambda of: of.map(place)).sort_values("edits", kind="stable")
    base = alone.set_index("of").reindex(columns=names).loc[wide["of"]]
    updates = trace[trace["norm"].eq("step_norm")].groupby("edits")["value"]
    several = wide["edits"].duplicated(keep=False)
    wide["step_norm"] = wide["edits"].map(updates.apply(np.linalg.norm)).mask(several)
    wide[names] = wide[names].to_numpy(float) / base[names].to_numpy(float)
    return wide[["edits", "of", *names]].reset_index(drop=True)


def per_hundred(
    edits: ArrayLike, ratios: ArrayLike, form: Literal["linear", "exponential"] = "linear"
) -> float:
    """Growth of a ratio in percent per hundred edits, by least squares; NaN if all were measured at once.

    Args:
        edits: number of edits at each measurement (n,).
        ratios: what was measured (n,).
        form: ``linear``, the slope of the ratio, in points of the unedited length; ``exponential``, the slope
            of its logarithm as growth over a hundred edits, for positive ratios.
    """
    x, y = np.asarray(edits, dtype=np.float64), np.asarray(ratios, dtype=np.float64)
    away = x - x.mean()
    if not away.any():
        return float("nan")
    if form == "exponential":
        return float(100 * np.expm1(100 * (away @ np.log(y)) / (away @ away)))
    return float(1e4 * (away @ y) / (away @ away))


def unexplained(edits: ArrayLike, ratios: ArrayLike, form: Literal["linear", "exponential"]) -> float:
    """Share of the variance of ratios that a fit leaves, to compare both forms of `per_hundred`.

    The exponential is fitted to logarithms and judged by the ratios themselves.

    Args:
        edits: number of edits at each measurement (n,), at least two different ones.
        ratios: what was measured (n,).
        form: as `per_hundred`.
    """
    x, y = np.asarray(edits, dtype=np.float64), np.asarray(ratios, dtype=np.float64)
    told = np.log(y) if form == "exponential" else y
    fitted = np.polyval(np.polyfit(x, told, 1), x)
    left = y - (np.exp(fitted) if form == "exponential" else fitted)
    return float(left @ left / np.square(y - y.mean()).sum())


def before_collapse(rows: pd.DataFrame, at: float) -> pd.DataFrame:
    """The rows of a sequence before the first step at which a value is ``at`` times its length or more.

    Growth is fitted on these: beyond, a run diverges, and its lengths are those of a broken model.

    Args:
        rows: from `relative_lengths`.
        at: limit on the ratio ``value_norm``; a ratio that is not finite lies beyond it too.
    """
    beyond = rows.loc[~(rows["value_norm"] < at), "edits"]
    return rows[rows["edits"] < beyond.min()] if len(beyond) else rows


def over_orders(
    rows: pd.DataFrame,
    statistic: Callable[[Mapping[str, NDArray[Any]] | pd.DataFrame], float],
    resampling: Resampling,
) -> tuple[Interval | None, str]:
    """A statistic of each order of the facts with Student's interval; of a single one, with that over facts.

    Args:
        rows: columns ``order`` and ``edits``, the column that facts are resampled by, and those that the
            statistic uses. Orders with fewer than two numbers of edits have no slope and are left out.
        statistic: such as a slope, see `per_hundred`.
        resampling: for a single order.

    Returns:
        The interval, None without an order, and what it is over: ``seeds`` or ``cases``.
    """
    orders = [part for _, part in rows.groupby("order") if part["edits"].nunique() > 1]
    if len(orders) > 1:
        return student_mean([statistic(part) for part in orders]), "seeds"
    return (resampling(statistic, rows=orders[0]) if orders else None), "cases"
