"""The shift of states of the same prompts from one model to another: measures, intervals and controls.

The measures are those of `palimpsest.evaluation.shift_measures`. The states of both models stand in one
table, and a measure is a function of pairs of its rows, (unedited, edited): a resample repeats some pairs and
leaves out others, a control pairs other rows. So distances, kernels and coordinates are computed once.

Intervals resample prompts. The plane, the unit of H and the width of the kernel belong to all unedited states
and stay as they are. H is a maximum, and a resample holds only a part of the points: its interval says how
much hangs on few prompts. A prompt that is drawn twice is like itself, so that resampled overlaps are
somewhat lower, and a resampled CKA somewhat higher, than those of as many different prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from palimpsest.errors import UnknownNameError
from palimpsest.evaluation import shift_measures as measures
from palimpsest.evaluation.shift_measures import Plane, Points, States
from palimpsest.results.intervals import Interval, bootstrap_rows

Rows = Int64[np.ndarray, " k"]
Fit = Literal["before", "both"]


class Pairs(NamedTuple):
    """Rows of unedited states, and those of the edited states that belong to them."""

    before: Rows
    after: Rows


class Measure(NamedTuple):
    """A measure of the shift.

    Attributes:
        title: as it is printed.
        unit: of its values, as records have it.
        same: its value if no state moved.
        of: the measure itself.
        control: what a control draws for each prompt: which of its two states counts as the edited one
            (``exchange``), or the prompt whose edited state it gets (``mismatch``).
    """

    title: str
    unit: str
    same: float
    of: "Callable[[Shift, Pairs], float]"
    control: Literal["exchange", "mismatch"]


@dataclass(frozen=True)
class Shift:
    """States of the same n prompts in the unedited and the edited model.

    Attributes:
        states: the n unedited states, then the n edited ones (2n, d), float64.
        plane: the two components in which D1, D2, H and P are taken.
        width: of the Gaussian kernel of the MMD.
        spread: unit of ``moved``.
    """

    states: States = field(repr=False)
    plane: Plane
    width: float
    spread: float

    @classmethod
    def between(cls, before: States, after: States, to: Fit = "before") -> "Shift":
        """Compare two sets of states, in a plane that is fitted to the unedited ones or to both.

        Raises:
            ShapeError, NonFiniteError: if the states do not fit together or are not finite.
        """
        plane = Plane.fit(before, after, to)
        states = np.concatenate([before, after])
        return cls(states, plane, measures.width(before), measures.spread(before))

    @property
    def prompts(self) -> int:
        """Number of prompts n."""
        return len(self.states) // 2

    def pairs(self, of: Rows | None = None) -> Pairs:
        """Both rows of some prompts, by default of all."""
        rows = np.arange(self.prompts) if of is None else of
        return Pairs(rows, rows + self.prompts)

    def measure(self, name: str, of: Rows | None = None) -> float:
        """A measure of some prompts, by default of all; a prompt may count more than once.

        Raises:
            UnknownNameError: if there is no such measure.
        """
        return measure_of(name).of(self, self.pairs(of))

    def interval(self, name: str, seed: int, resamples: int = 200) -> Interval:
        """A measure with a bootstrap interval over prompts.

        Raises:
            UnknownNameError: if there is no such measure.
            ScoreError: if there are fewer than two prompts.
        """
        return over_prompts(lambda of: self.measure(name, of), self.prompts, seed, resamples)

    def control(self, name: str, seed: int, draws: int = 200) -> Interval:
        """Mean of a measure over random controls, with the range that holds 95 % of them.

        Exchanged states give the values that D1, D2, H, P and MMD have if editing did not change the
        distribution. Mismatched ones give the values that the others have for states that have nothing to
        do with each other.

        Raises:
            UnknownNameError: if there is no such measure.
        """
        about, rows = measure_of(name), self.pairs()
        generator, found = np.random.default_rng(seed), []
        for _ in range(draws):
            if about.control == "mismatch":
                drawn = Pairs(rows.before, generator.permutation(rows.after))
            else:
                swapped = generator.random(self.prompts) < 0.5
                drawn = Pairs(np.where(swapped, *rows[::-1]), np.where(swapped, *rows))
            found.append(about.of(self, drawn))
        low, high = np.quantile(found, [0.025, 0.975])
        return Interval(float(np.mean(found)), float(low), float(high), draws)

    @cached_property
    def points(self) -> Points:
        """All states in the plane (2n, 2), in units of the plane's scale."""
        return self.plane.points(self.states) / self.plane.scale

    @cached_property
    def gram(self) -> Float64[np.ndarray, "m m"]:
        """Inner products of all states with the plane's centre as origin (2n, 2n)."""
        return measures.gram(self.states - self.plane.centre)

    @cached_property
    def kernel(self) -> Float64[np.ndarray, "m m"]:
        """Gaussian kernel of all states (2n, 2n)."""
        return measures.gaussian_kernel(self.states, self.width)

    def _overlap(self, component: int, of: Pairs) -> float:
        before, after = (self.points[rows, component] for rows in of)
        return 100 * measures.overlap(before, after)

    def _cka(self, of: Pairs) -> float:
        before, after = (self.gram[np.ix_(rows, rows)] for rows in of)
        return measures.linear_cka(before, after)

    def _mmd(self, of: Pairs) -> float:
        before, after = (self.kernel[np.ix_(rows, rows)] for rows in of)
        return measures.mmd(before, after, self.kernel[np.ix_(*of)])

    def _of_points(self, of: Pairs, measure: Callable[[Points, Points], float]) -> float:
        return measure(self.points[of.before], self.points[of.after])

    def _of_states(self, of: Pairs, measure: Callable[[States, States], Float64[np.ndarray, " k"]]) -> float:
        return float(measure(self.states[of.before], self.states[of.after]).mean())


SHIFT_MEASURES: dict[str, Measure] = {
    "d1": Measure("D1, overlap, %", "percent", 100, lambda s, of: s._overlap(0, of), "exchange"),
    "d2": Measure("D2, overlap, %", "percent", 100, lambda s, of: s._overlap(1, of), "exchange"),
    "h": Measure("H, Hausdorff", "ratio", 0, lambda s, of: s._of_points(of, measures.hausdorff), "exchange"),
    "p": Measure(
        "P, inside, %",
        "percent",
        100 * measures.LEVEL,
        lambda s, of: 100 * s._of_points(of, measures.inside),
        "exchange",
    ),
    "cka": Measure("linear CKA", "score", 1, Shift._cka, "mismatch"),
    "mmd": Measure("MMD", "score", 0, Shift._mmd, "exchange"),
    "moved": Measure(
        "moved", "ratio", 0, lambda s, of: s._of_states(of, measures.moved) / s.spread, "mismatch"
    ),
    "turned": Measure(
        "turned, degrees", "score", 0, lambda s, of: s._of_states(of, measures.turned), "mismatch"
    ),
}
"""Name -> measure. H is in units of the root mean square distance of the unedited points from their mean in
the plane, ``moved`` in units of the same distance of the unedited states in all dimensions."""


def measure_of(name: str) -> Measure:
    """A row of SHIFT_MEASURES.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    if name not in SHIFT_MEASURES:
        raise UnknownNameError("measure of a shift", name, list(SHIFT_MEASURES))
    return SHIFT_MEASURES[name]


def over_prompts(statistic: Callable[[Rows], float], prompts: int, seed: int, resamples: int) -> Interval:
    """A statistic of prompts with a bootstrap interval.

    Args:
        statistic: of the numbers of the prompts that count, some of them more than once.
        prompts: how many there are.
        seed: of the generator.
        resamples: number of resamples.

    Raises:
        ScoreError: if there are fewer than two prompts.
    """
    rows = pd.DataFrame({"prompt": np.arange(prompts)})
    return bootstrap_rows(rows, lambda of: statistic(of["prompt"]), "prompt", seed, resamples=resamples)
