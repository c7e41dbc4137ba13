"""Evaluation and comparison of models on disk or on a hub: scores on facts, and which weights differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from palimpsest.errors import ModelError
from palimpsest.evaluation.evaluate import Evaluation, evaluate, records_frame
from palimpsest.evaluation.metrics import METRICS
from palimpsest.evaluation.summary import differences, means
from palimpsest.files import as_json, replacing
from palimpsest.network.model import EditableModel, describe, fingerprint, load
from palimpsest.types import EvalCase, Record
from palimpsest.workbench import folder as files
from palimpsest.workbench.report import aligned

COMPARED = ("efficacy", "generalisation")
"""Metrics that compare the new object with the true one, so that cases without one have no value."""


@dataclass(frozen=True)
class Measured:
    """Scores of one model on facts.

    Attributes:
        model: name, fingerprint, dtype and device.
        records: one per metric and case.
        means: of each metric, with intervals; see `palimpsest.evaluation.summary.means`.
        tables: further measurements, by name.
    """

    model: dict[str, str]
    records: Sequence[Record]
    means: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __str__(self) -> str:
        head = ["metric", "mean", "95 % interval", "cases", "prompts"]
        rows = [
            [row.metric, f"{100 * row.mean:.1f} %", _ends(row, 100, " %"), f"{row.cases}", f"{row.prompts}"]
            for row in _tuples(self.means)
        ]
        note = "intervals: bootstrap over cases; see palimpsest.evaluation.metrics for the metrics"
        lines = [*aligned([head, *rows], right=(1, 3, 4)), "", note]
        for name, table in self.tables.items():
            cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
            right = [i for i, column in enumerate(table) if pd.api.types.is_numeric_dtype(table[column])]
            lines += ["", name, *aligned([list(map(str, table.columns)), *cells], right)]
        return "\n".join(lines)

    def with_tables(self, tables: Mapping[str, pd.DataFrame]) -> "Measured":
        """The same with further measurements."""
        return replace(self, tables=tables)

    def write(self, table: Path | None, summary: Path | None) -> None:
        """Write a CSV with one row per metric and case, and a JSON file with the means.

        Raises:
            ResourceError: if a file cannot be written.
        """
        if table is not None:
            with replacing(table) as temporary:
                records_frame(self.records).to_csv(temporary, index=False)
        if summary is not None:
            content: dict[str, Any] = {"model": self.model, "metrics": _rows(self.means)}
            content |= {name: _rows(table) for name, table in self.tables.items()}
            with replacing(summary) as temporary:
                temporary.write_bytes(as_json(content))


def measure(model: EditableModel, cases: Sequence[EvalCase], seed: int = 0) -> Measured:
    """Score a model on cases by all metrics that they allow.

    Args:
        model: the model, edited or not.
        cases: one or more; those without a true object have no values of ``COMPARED``.
        seed: of the bootstrap.

    Raises:
        As `palimpsest.evaluation.evaluate.evaluate`.
    """
    with_true = [case for case in cases if case.target_true]
    others = [name for name in METRICS if name not in COMPARED]
    found = [*evaluate(model, with_true, COMPARED), *evaluate(model, cases, others)]
    order = {name: place for place, name in enumerate(METRICS)}
    records = Evaluation(sorted(found, key=lambda record: order[record.metric]))
    return Measured(describe(model), records, means(records, seed))


@dataclass(frozen=True)
class Comparison:
    """How two models differ.

    Attributes:
        names: of the two models.
        weights: one row per weight that differs: ``weight``, ``norm`` (Frobenius norm of second − first) and
            ``relative`` (divided by that of the first).
        total: number of weights compared.
        facts: facts that only the first holds, only the second, and those whose object differs.
        scores: paired differences of metrics, where facts were given; else empty.
    """

    names: tuple[str, str]
    weights: pd.DataFrame
    total: int
    facts: dict[str, list[str]]
    scores: pd.DataFrame

    def __str__(self) -> str:
        first, second = self.names
        if self.weights.empty:
            lines = [f"{first} and {second}: all {self.total} weights are the same, bit by bit"]
        else:
            head = ["weight", "norm of the difference", "relative"]
            rows = [[row.weight, f"{row.norm:.4g}", f"{row.relative:.3g}"] for row in _tuples(self.weights)]
            count = f"{len(self.weights)} of {self.total} weights differ"
            lines = [f"{first} and {second}: {count}", "", *aligned([head, *rows], right=(1, 2))]
        lines += [f"{kind}: {', '.join(names)}" for kind, names in self.facts.items() if names]
        if not self.scores.empty:
            head = ["metric", "first", "second", "difference", "95 % interval", "cases"]
            rows = [
                [
                    row.metric,
                    f"{100 * row.first:.1f} %",
                    f"{100 * row.second:.1f} %",
                    f"{100 * row.mean:+.1f}",
                    _ends(row, 100, ""),
                    f"{row.cases}",
                ]
                for row in _tuples(self.scores)
            ]
            lines += ["", *aligned([head, *rows], right=(1, 2, 3, 5))]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The comparison for JSON."""
        return {
            "models": list(self.names),
            "weights": _rows(self.weights),
            "of": self.total,
            "facts": self.facts,
            "scores": _rows(self.scores),
        }


def compare(
    first: str, second: str, cases: Sequence[EvalCase] = (), device: str | torch.device = "cpu", seed: int = 0
) -> Comparison:
    """Compare two models: weights, facts held by edited folders, and, on cases, scores.

    Args:
        first: name, folder or hub id.
        second: the same of the other model, of the same architecture and size.
        cases: facts to score both on; none for weights alone.
        device: where to compute, such as ``cpu`` or ``cuda``.
        seed: of the bootstrap.

    Raises:
        ModelError: if the models do not have the same weights by name and shape.
        As `palimpsest.network.model.load`.
    """
    models = [load(name, device=device) for name in (first, second)]
    weights, total = _weights(*models)
    scores = pd.DataFrame()
    if cases:
        before, after = (measure(model, cases, seed).records for model in models)
        scores = differences(before, after, seed)
    return Comparison((first, second), weights, total, _facts(Path(first), Path(second)), scores)


def _weights(first: EditableModel, second: EditableModel) -> tuple[pd.DataFrame, int]:
    """The weights that differ, and the number of all."""
    a, b = (dict(model.net.named_parameters()) for model in (first, second))
    odd = sorted(name for name in a.keys() | b.keys() if name not in a or name not in b)
    odd += [name for name in a if name in b and a[name].shape != b[name].shape]
    if odd:
        raise ModelError(
            f"{first.name} and {second.name} are of different architecture or size, for example in {odd[0]}; "
            "compare models with the same weights by name and shape"
        )
    rows = []
    if fingerprint(first) != fingerprint(second):
        for name, weight in tqdm(a.items(), desc="comparing", unit="weight", disable=None, leave=False):
            gap, size = float((b[name].double() - weight.double()).norm()), float(weight.double().norm())
            if not torch.equal(weight, b[name].to(weight.dtype)):
                rows.append({"weight": name, "norm": gap, "relative": gap / size if size else math.inf})
    return pd.DataFrame(rows, columns=["weight", "norm", "relative"]), len(a)


def _facts(first: Path, second: Path) -> dict[str, list[str]]:
    """Facts that differ between two edited folders; those of an unedited model are none."""
    held = [
        {fact.id: fact for fact in files.read_description(path).facts} if files.is_edited(path) else {}
        for path in (first, second)
    ]
    both = [name for name in held[0] if name in held[1]]
    return {
        "facts only in the first": [name for name in held[0] if name not in held[1]],
        "facts only in the second": [name for name in held[1] if name not in held[0]],
        "facts that differ": [name for name in both if held[0][name] != held[1][name]],
    }


def _tuples(frame: pd.DataFrame) -> list[Any]:
    """Rows with their columns as attributes."""
    return list(frame.itertuples())


def _cell(value: Any) -> str:
    """A number with four digits; nothing for one that is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _ends(row: Any, scale: float, unit: str) -> str:
    """Ends of an interval; nothing for a single case."""
    return "" if math.isnan(row.low) else f"[{scale * row.low:.1f}, {scale * row.high:.1f}]{unit}"


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, NaN and infinity as null."""
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in frame.to_dict("records")
    ]
