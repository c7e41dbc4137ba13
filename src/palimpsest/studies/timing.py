"""Times of an edit: the record of ``make bench``, and a ledger's steps as it fills with drawn facts."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest import paths
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.errors import DataError, ResourceError

COLUMNS = ("stage", "ratio", "share_of_limit", "ours_s", "twin_s", "peak_mb", "sizes")
"""Columns of ``results/bench.json``."""

RIDGE, PRESERVE_WEIGHT = 10.0, 300.0
"""λ of AlphaEdit's form, and the weight of C₀ in MEMIT's."""


def read_bench(path: str | Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """The record of ``make bench``: conditions, and a row for each stage with its bars.

    Args:
        path: from the root of the repository: ``results/bench.json``.

    Returns:
        About the run: ``processor``, ``threads``, ``product_rate`` (10⁹ multiply-adds per second by dtype)
        and more. Rows with COLUMNS, where a number that does not apply is NaN, ``facts``, the number of facts
        of the stage (`facts_in`), and the bars ``bar_ratio``, ``bar_share`` and ``bar_mb``.

    Raises:
        ResourceError: if there is no such file.
        DataError: if it is not a record of ``make bench``.
    """
    path = paths.root() / path
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ResourceError(
            f"{path} is missing: the benchmarks were not run here; run `make bench`, which writes it"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write it again with `make bench`") from error
    try:
        about, rows = content["about"], pd.DataFrame(content["rows"])[list(COLUMNS)]
        bars = pd.DataFrame(about["bars"]).T.reindex(rows["stage"]).reset_index(drop=True)
        bars = bars[["ratio", "share_of_limit", "peak_mb"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a record of the benchmarks, {error} is missing; write it again with `make bench`"
        ) from error
    bars.columns = pd.Index(["bar_ratio", "bar_share", "bar_mb"])
    rows = pd.concat([rows, bars], axis=1)
    numbers = [name for name in rows.columns.astype(str) if name not in ("stage", "sizes")]
    rows[numbers] = rows[numbers].apply(pd.to_numeric)
    return about, rows.assign(facts=rows["sizes"].map(facts_in))


def facts_in(sizes: str) -> float:
    """Facts that a stage handles, from its sizes in words; NaN if it handles none.

    ``4 batches of 10 facts`` are 40, ``40 requests`` and ``100 cases`` as many, and ``2,000 facts held, 1
    new`` is one. What stands behind a semicolon is about the twin.
    """
    ours = sizes.partition(";")[0].replace(",", "")
    if found := re.search(r"(\d+) batches of (\d+) facts", ours):
        return float(int(found[1]) * int(found[2]))
    if found := re.search(r"(\d+) new", ours) or re.match(r"(\d+) (?:requests|cases|facts)", ours):
        return float(found[1])
    return float("nan")


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of some calls, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        began = perf_counter()
        work()
        taken.append(perf_counter() - began)
    return taken[1:]


@dataclass(frozen=True)
class Drawn:
    """A weight and facts drawn from a normal distribution, of any number.

    Attributes:
        d_v, d_k: shape of the weight.
        protected: directions that AlphaEdit's projector protects.
        seed: of all draws.
    """

    d_v: int
    d_k: int
    protected: int
    seed: int = 0

    @cached_property
    def weight(self) -> Float64[Tensor, "d_v d_k"]:
        """W₀ (d_v, d_k), entries of variance 1/d_k."""
        return self._normal(1, self.d_v, self.d_k) / self.d_k**0.5

    @cached_property
    def spectrum(self) -> Float64[Tensor, " d_k"]:
        """Eigenvalues 1/i (d_k,) of the second moment of MEMIT's keys, which is diagonal."""
        return 1 / torch.arange(1, self.d_k + 1, dtype=torch.float64)

    def terms(self, form: str) -> tuple[Tensor | None, float, Projector | None]:
        """M, λ and P of a form: ``alphaedit``, a ridge and a projector, or ``memit``, a second moment.

        Raises:
            DataError: for another form.
        """
        if form == "memit":
            return PRESERVE_WEIGHT * torch.diag(self.spectrum), 0.0, None
        if form == "alphaedit":
            away = torch.linalg.qr(self._normal(2, self.d_k, self.protected)).Q
            return None, RIDGE, Projector(complement=away)
        raise DataError(f"form is {form!r}; choose alphaedit or memit")

    def facts(self, form: str, start: int, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Keys (d_k, count), values (d_v, count) and ids of facts; other starts give other facts."""
        scale = self.spectrum.sqrt()[:, None] if form == "memit" else 1.0  # (d_k, 1)
        keys = self._normal(3 + 2 * start, self.d_k, count) * scale
        names = [f"fact {start + i}" for i in range(count)]
        return keys, self._normal(4 + 2 * start, self.d_v, count), names

    def _normal(self, number: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)


def growth(
    drawn: Drawn, form: str, held: Sequence[int], new: Sequence[int], anew: Sequence[int], repeats: int
) -> pd.DataFrame:
    """Seconds of a ledger's step, by the facts that it holds, and of solving anew over all facts.

    Args:
        drawn: weight and facts.
        form: ``alphaedit`` or ``memit``.
        held: numbers of facts before the step, ascending.
        new: numbers of facts that enter.
        anew: those of ``held`` at which the problem is solved anew too, for one fact more.
        repeats: timed repeats of each step; a solution anew is timed once.

    Returns:
        Columns ``form``, ``held``, ``new``, ``way`` (``ledger`` or ``anew``), ``repeat`` and ``seconds``.
    """
    preserve, ridge, projector = drawn.terms(form)
    ledger = EditLedger(drawn.weight, preserve, ridge, projector)
    rows: list[dict[str, Any]] = []

    def note(before: int, count: int, way: str, taken: Sequence[float]) -> None:
        at = {"form": form, "held": before, "new": count, "way": way}
        rows.extend(at | {"repeat": number, "seconds": one} for number, one in enumerate(taken))

    for before in held:
        ledger.insert(*drawn.facts(form, len(ledger), before - len(ledger)))
        for count in new:
            fresh = drawn.facts(form, before, count)
            note(before, count, "ledger", seconds(partial(_step, ledger, fresh), repeats))
        if before in anew:
            key, value, _ = drawn.facts(form, before, 1)
            keys, values = torch.cat([ledger.keys, key], 1), torch.cat([ledger.values, value], 1)
            problem = LeastSquares(keys, values - drawn.weight @ keys, preserve, ridge, projector)
            note(before, 1, "anew", seconds(partial(solve, problem), 1))
    return pd.DataFrame(rows)


def _step(ledger: EditLedger, facts: tuple[Tensor, Tensor, list[str]]) -> Tensor:
    """ΔW (d_v, d_k) of further facts on a copy of a ledger, which stays as it is."""
    return ledger.copy().insert(*facts)
