"""A causal trace as a command prints and writes it: a table of the strongest effects, and layers to edit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from palimpsest.errors import RequestError
from palimpsest.evaluation.traced import ROLES, RULE, CausalTrace
from palimpsest.files import as_json, replacing
from palimpsest.types import span

PICTURES = (".png", ".svg", ".pdf")
"""Endings of figures."""


@dataclass(frozen=True)
class TraceReport:
    """A trace beside the layers that are known to be edited.

    Attributes:
        trace: the trace.
        published: model -> layers to which MEMIT writes in it, by the settings on file.
    """

    trace: CausalTrace
    published: Mapping[str, tuple[int, ...]]

    @property
    def edited(self) -> tuple[int, ...]:
        """Layers on file for the traced model; none if it has no settings."""
        return self.published.get(self.trace.model, ())

    def __str__(self) -> str:
        trace, facts = self.trace, self.trace.facts
        lines = [
            f"{len(facts)} facts traced, {len(trace.left_out)} left out; {trace.samples} draws of noise of "
            f"{trace.noise:g} standard deviations ({trace.spread:.3g} each), windows of {trace.window} of "
            f"{trace.layers} layers"
        ]
        lines += [f"left out, {count}: {why}" for why, count in Counter(trace.left_out.values()).items()]
        clean, corrupted = (100 * facts[name].mean() for name in ("clean", "corrupted"))
        lines += [f"probability of the answer: {clean:.1f} % clean, {corrupted:.1f} % under noise", ""]
        means = trace.by_role()
        strongest = means.loc[means.groupby(["kind", "role"], sort=False)["mean"].idxmax()]
        lines.append(f"{'restored':<10} {'token':<22} {'layer':>5} {'effect':>7}  95 % interval, points")
        for row in strongest.to_dict("records"):
            ends = "" if row["low"] != row["low"] else f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            place = f"{row['kind']:<10} {ROLES[row['role']]:<22} {row['layer']:>5}"
            lines.append(f"{place} {100 * row['mean']:>7.1f}  {ends}".rstrip())
        lines += ["", f"suggested layers: {span(trace.suggested())}; {RULE}"]
        lines += [f"MEMIT writes in {name} to {span(layers)}" for name, layers in self.published.items()]
        return "\n".join(lines)

    def write(self, table: Path | None, summary: Path | None) -> None:
        """Write a CSV with a row per fact, kind, layer and token, and a JSON file with averages.

        Raises:
            ResourceError: if a file cannot be written.
        """
        if table is not None:
            with replacing(table) as temporary:
                self.trace.effects.to_csv(temporary, index=False)
        if summary is not None:
            published = {name: list(layers) for name, layers in self.published.items()}
            with replacing(summary) as temporary:
                temporary.write_bytes(as_json(self.trace.as_dict() | {"published": published}))


def check_picture(path: Path) -> None:
    """Check the ending of a figure's file before anything is computed.

    Raises:
        RequestError: if it is none of PICTURES.
    """
    if path.suffix.lower() not in PICTURES:
        raise RequestError(f"figure {path}: the ending must be one of {', '.join(PICTURES)}")
