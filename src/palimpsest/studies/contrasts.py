"""Differences between runs of the same facts, taken item by item, with an interval over orders of the facts.

Rows are those of `palimpsest.studies.checkpoints`, of several runs, each in one order of the facts or more.
The items of one run and order, facts, windows of text or choices, belong to the same model; several orders
are several models. So where a difference was made in several orders its interval is Student's over the means
of the orders, and items are resampled only where there is one order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from palimpsest.errors import ScoreError
from palimpsest.results.few_values import student_mean
from palimpsest.results.intervals import Interval, bootstrap_mean

MEASURES: dict[str, tuple[str, str, str]] = {
    "efficacy": ("fact", "efficacy", "percent"),
    "generalisation": ("fact", "generalisation", "percent"),
    "specificity": ("fact", "specificity", "percent"),
    "early_efficacy": ("fact", "efficacy", "percent"),
    "early_generalisation": ("fact", "generalisation", "percent"),
    "perplexity": ("window", "nll", "ratio"),
    "agreement": ("window", "agreement", "percent"),
    "kl": ("window", "kl", "nats"),
    "choice": ("choice", "right", "percent"),
    "hidden": ("early", "hidden", "ratio"),
}
"""Name -> of what, its metric, and the unit. Early: facts written by the first checkpoint. Perplexity and
hidden are ratios to the unedited model; hidden is the length of the state at the first batch's subjects."""

RATIOS = tuple(name for name, (_, _, unit) in MEASURES.items() if unit == "ratio")
"""Measures whose items are logarithms, so that a difference is the logarithm of a quotient."""

CEILING = 1e12
"""Largest ratio that is told; a model far beyond any use can have any perplexity."""


@dataclass(frozen=True)
class Contrasts:
    """Runs at their checkpoints, to be compared.

    Attributes:
        rows: columns ``run`` and ``order``, and those of `palimpsest.studies.checkpoints.checkpoints`.
        seed: of the bootstrap.
    """

    rows: pd.DataFrame
    seed: int = 0

    def items(self, run: str, measure: str, edits: int) -> "pd.Series[float]":
        """Values of a run's items when so many facts were written, by order and item.

        A run that could not go on stands at its last checkpoint; an order in which fewer facts were to be
        written is left out. Shares are in [0, 1], ratios are logarithms.

        Args:
            run: a value of the column ``run``.
            measure: a name in ``MEASURES``.
            edits: number of facts; each order counts at its last checkpoint up to it.

        Raises:
            ScoreError: if there is no such row.
        """
        of, metric, _ = MEASURES[measure]
        mine = self.rows[self.rows["run"].eq(run) & self.rows["of"].eq(of) & self.rows["metric"].eq(metric)]
        now = mine[mine["edits"].le(edits) & mine["edits"].gt(0)]
        now = now[now["order"].isin(self._reaching(run, mine, edits))]
        now = now[now["edits"].eq(now.groupby("order")["edits"].transform("max"))]
        if measure.startswith("early"):
            now = now[self._early(run, now)]
        if now.empty:
            raise ScoreError(f"run {run!r} has no {measure} after {edits} facts or before; measure it there")
        found = now.set_index(["order", "key"])["value"]
        if measure == "perplexity":
            return found - self._also(run, "window", "nll_before", now).reindex(found.index)
        if measure == "hidden":
            start = mine[mine["edits"].eq(0)].set_index(["order", "key"])["value"]
            return (found / start.reindex(found.index)).map(math.log)
        return found

    def contrast(
        self, measure: str, terms: Sequence[tuple[float, str]], edits: int, since: int | None = None
    ) -> tuple[Interval, str]:
        """A weighted sum over runs, item by item, such as ``[(1, "aligned"), (-1, "naive")]``.

        Args:
            measure: a name in ``MEASURES``.
            terms: weight and run; only orders and items that all runs have count.
            edits: as `items`.
            since: number of facts from which on the change is taken, a quotient for ratios; by default none.

        Returns:
            Mean and interval in the unit of the measure, percent or a ratio, and what the interval is over:
            ``seeds`` for orders, ``cases`` for the items of a single order.

        Raises:
            ScoreError: if the runs have no order or item in common, and as `items`.
        """
        columns = [weight * self.items(run, measure, edits) for weight, run in terms]
        if since is not None:
            columns += [-weight * self.items(run, measure, since) for weight, run in terms]
        total = pd.concat(columns, axis=1, join="inner").sum(axis=1)
        if total.empty:
            raise ScoreError(f"{', '.join(run for _, run in terms)} share no {measure}; use one order")
        means = total.groupby(level="order").mean()
        several = len(means) > 1
        found = student_mean(means) if several else bootstrap_mean(total.to_numpy(), self.seed)
        return in_units(measure, found), "seeds" if several else "cases"

    def _reaching(self, run: str, mine: pd.DataFrame, edits: int) -> set[int]:
        """Orders with that many facts, or in which the run had to end."""
        last = mine.groupby("order")["edits"].max()
        ended = self.rows[self.rows["run"].eq(run) & self.rows["metric"].eq("stopped")]["order"]
        return {*last[last >= edits].index, *ended}

    def _early(self, run: str, rows: pd.DataFrame) -> "pd.Series[bool]":
        mine = self.rows[self.rows["run"].eq(run)]
        first = int(mine.loc[mine["of"].eq("window"), "edits"].min())
        written = mine[mine["metric"].eq("value_norm") & mine["edits"].le(first)]
        known = set(zip(written["order"], written["key"], strict=True))
        pairs = zip(rows["order"], rows["key"], strict=True)
        return pd.Series([pair in known for pair in pairs], index=rows.index, dtype=bool)

    def _also(self, run: str, of: str, metric: str, now: pd.DataFrame) -> "pd.Series[float]":
        mine = self.rows[self.rows["run"].eq(run) & self.rows["of"].eq(of) & self.rows["metric"].eq(metric)]
        return mine.merge(now[["order", "edits", "key"]]).set_index(["order", "key"])["value"]


def in_units(measure: str, found: Interval) -> Interval:
    """An estimate in the unit of its measure: percent of a share, the ratio of a logarithm."""
    unit = MEASURES[measure][2]
    ends = np.array([found.mean, found.low, found.high])
    if unit == "ratio":
        ends = np.exp(np.clip(ends, -np.log(CEILING), np.log(CEILING)))
    mean, low, high = ends * (100 if unit == "percent" else 1)
    return Interval(float(mean), float(low), float(high), found.n)
