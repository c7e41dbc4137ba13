"""The regime of a run of edits: numbers without a unit, in which runs on different models can be compared.

The same settings are different work in different models. A step of Adam moves a value by about lr·√d_v,
whatever its gradient. Where hidden states are short, as in the papers' LLaMA models, a few such steps reach
the clamp: ‖δ‖ is then the clamp times ‖h₀‖ for every fact, and a state that has grown gives a longer δ. Where
they are long, no step ever comes near it. An effect can be missing only because the run was made elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite

import yaml
from pydantic import BaseModel, ConfigDict, Field

from palimpsest import paths
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.files import UNREADABLE
from palimpsest.types import Shown

SAME = 2.0
"""Largest factor between two numbers of the same regime; set before any run."""

NEAR = 0.25
"""Largest difference between two shares of the same regime; set before any run."""

WORDS = {
    "step": "one step of the optimiser, over the length of the state",
    "clamp": "largest displacement allowed, over the length of the state",
    "clamped": "share of facts at the clamp",
    "loss": "loss at which a value is done, nats",
    "load": "facts written per dimension of a key",
    "free_directions": "share of directions that the projector leaves free",
    "free_energy": "share of key energy that the projector leaves free",
    "ridge": "ridge over the mean energy of a key",
    "anchor": "weight of the preserved keys, in average keys",
}
"""Printed names of a regime's numbers."""

SHARES = ("clamped", "free_directions", "free_energy")


@dataclass(frozen=True, repr=False)
class Regime(Shown):
    """Numbers without a unit that say where a run of edits was made; None where one is not known.

    Attributes:
        step: lr·√d_v/‖h₀‖, one step of Adam over the mean length of the unedited state.
        clamp: bound on ‖δ‖/‖h₀‖.
        clamped: share of facts whose ‖δ‖ reached that bound.
        loss: mean over facts of the loss at which a value was done, in nats; of a published run, the loss
            below which one is.
        load: N/d_k, facts written per dimension of a key.
        free_directions: share of the d_k directions that the projector leaves free; 1 without a projector.
        free_energy: share of the energy tr(C₀) along them.
        ridge: λ/tr(C₀), the penalty on ‖Δ‖² over the mean energy of a key.
        anchor: weight λ₀ of C₀ in the objective, in average keys; 0 without it.
    """

    step: float | None = None
    clamp: float | None = None
    clamped: float | None = None
    loss: float | None = None
    load: float | None = None
    free_directions: float | None = None
    free_energy: float | None = None
    ridge: float | None = None
    anchor: float | None = None

    def known(self) -> dict[str, float]:
        """The numbers that are known, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in found.items() if value is not None}

    def shown(self) -> dict[str, object]:
        """Known numbers by their printed names."""
        return {WORDS[name]: f"{value:.3g}" for name, value in self.known().items()}


@dataclass(frozen=True)
class Axis:
    """One number of two regimes.

    Attributes:
        name: a field of `Regime`.
        ours, theirs: its values in our run and in the published one.
    """

    name: str
    ours: float
    theirs: float

    @property
    def near(self) -> bool:
        """Whether both lie in the same regime: within a factor `SAME`, or for shares within `NEAR`."""
        if self.name in SHARES:
            return abs(self.ours - self.theirs) <= NEAR
        small, large = sorted((abs(self.ours), abs(self.theirs)))
        return large == 0 or (small > 0 and large / small <= SAME)

    def __str__(self) -> str:
        return f"{WORDS[self.name]} {self.ours:.3g} instead of {self.theirs:.3g}"


class PublishedRun(BaseModel):
    """One row of ``data/regimes.yaml``: the regime of a published run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str = Field(min_length=5)
    """Where the settings are stated."""
    numbers: dict[str, float]
    """Fields of `Regime`, as computed from stated settings and widths."""
    inferred: dict[str, str] = Field(default_factory=dict)
    """Field -> how it was inferred, where it does not follow from what is stated."""

    def regime(self) -> Regime:
        """The numbers as a regime."""
        return Regime(**self.numbers)


def published_runs() -> dict[str, PublishedRun]:
    """Published runs by name, such as ``labyrinth/LLaMA3-8B``, from ``data/regimes.yaml``.

    Raises:
        DataError: if the file cannot be read, or names a number that no regime has or that is not finite.
    """
    path = paths.root() / "data" / "regimes.yaml"
    try:
        rows: Mapping[str, object] = yaml.safe_load(path.read_text("utf-8"))
        runs = {name: PublishedRun.model_validate(row) for name, row in rows.items()}
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as published regimes ({error})") from error
    for name, run in runs.items():
        odd = [key for key in (*run.numbers, *run.inferred) if key not in WORDS]
        odd += [key for key, value in run.numbers.items() if not isfinite(value)]
        odd += [key for key in run.inferred if key not in run.numbers]
        if odd:
            raise DataError(f"{path}: {name}: {', '.join(odd)}: give finite numbers of {', '.join(WORDS)}")
    return runs


def published_regime(run: str) -> PublishedRun:
    """One published run by name.

    Raises:
        UnknownNameError: if there is none of this name.
    """
    runs = published_runs()
    if run not in runs:
        raise UnknownNameError("published run", run, list(runs))
    return runs[run]


def apart(ours: Regime, theirs: Regime) -> list[Axis]:
    """The numbers known in both regimes that do not lie near each other, in the order of `WORDS`."""
    mine, other = ours.known(), theirs.known()
    both = [Axis(name, mine[name], other[name]) for name in WORDS if name in mine and name in other]
    return [axis for axis in both if not axis.near]


def distance(ours: Regime, theirs: Regime) -> str:
    """One line that says how far a run's regime is from a published one's."""
    mine, other = ours.known(), theirs.known()
    shared = [name for name in WORDS if name in mine and name in other]
    if not shared:
        return "No number of the two regimes is known in both."
    far = apart(ours, theirs)
    if not far:
        return f"The run lies in the paper's regime, by {len(shared)} numbers."
    lie = "lies" if len(far) == 1 else "lie"
    told = "; ".join(map(str, far))
    return f"Of {len(shared)} numbers, {len(far)} {lie} outside the paper's regime: {told}."


def at_the_clamp(ours: Regime) -> str:
    """One line that says how often the clamp acted; empty for a run without a clamp."""
    if ours.clamped is None:
        return ""
    if ours.clamped == 0:
        return "No fact reached the clamp: here it has no effect, whatever its size."
    many = "Every fact" if ours.clamped == 1 else f"{100 * ours.clamped:.0f} % of facts"
    return f"{many} reached the clamp."
