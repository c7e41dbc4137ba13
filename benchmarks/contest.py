"""A contest between a path of the library and its twin: results first, times only if they agree."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import peak_memory, product_rate, seconds

REPEATS = 3
"""Timed runs of a short path; the median counts."""

SHORT = 5.0
"""Seconds below which a path is timed REPEATS times after its first run, which is then not counted."""


class DisagreementError(RuntimeError):
    """A path of the library and its twin gave different results, so that no time is given."""


@dataclass(frozen=True)
class Contest:
    """One stage, ready to run.

    Attributes:
        ours: the library's path on all inputs.
        twin: the reference on a part of the inputs; its result is compared.
        differences: (result of ours, result of the twin) -> differences by name, 0 for equal results.
        tolerances: largest difference allowed, for the same names.
        sizes: sizes of the inputs, and what part of them the twin was given, in words.
        scaled: (twin, seconds it took) -> seconds it would take on all inputs.
        work: multiply-adds that the stage needs, or None where no limit is stated.
        dtype: of these multiply-adds.
        peak: memory of the stage in 10⁶ bytes, measured in a process of its own; None to measure what the
            first run of ours adds to this process.
        timed_twin: False where the twin is a known answer, whose time means nothing.
        repeats: False to run ours only once.
    """

    ours: Callable[[], Any]
    twin: Callable[[], Any]
    differences: Callable[[Any, Any], Mapping[str, float]]
    tolerances: Mapping[str, float]
    sizes: str
    scaled: Callable[[float], float] = field(default=lambda took: took)
    work: float | None = None
    dtype: torch.dtype = torch.float32
    peak: Callable[[], float] | None = None
    timed_twin: bool = True
    repeats: bool = True


@dataclass(frozen=True)
class Row:
    """One row of ``results/bench.json``.

    Attributes:
        stage: name of the stage.
        ratio: twin_s / ours_s; None where the twin has no time.
        share_of_limit: time of the multiply-adds that are needed at the machine's product rate (the higher
            of one measured before and one after), as a share of ours_s; None where no limit is stated.
        ours_s: seconds of the library's path.
        twin_s: seconds of the twin on the same inputs, scaled where it was given a part of them.
        peak_mb: memory in 10⁶ bytes: what the library's path adds to inputs and model, or that of a whole
            process where ``sizes`` says so.
        sizes: of the inputs, in words.
    """

    stage: str
    ratio: float | None
    share_of_limit: float | None
    ours_s: float
    twin_s: float | None
    peak_mb: float
    sizes: str

    def rounded(self) -> dict[str, Any]:
        """The row with three significant digits, JSON-able."""
        return {
            name: float(f"{value:.3g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def decide(stage: str, contest: Contest, tell: Callable[[str], None] = lambda text: None) -> Row:
    """Run both paths, compare their results, and time them.

    The first run of ours gives the result that is compared, and its memory. Short paths then run REPEATS
    times more, and the median counts; a long one counts as it is.

    Args:
        stage: its name.
        contest: its inputs and paths.
        tell: is given the differences in words, once they are known to be small.

    Raises:
        DisagreementError: if a difference exceeds its tolerance or is not a number, or if ours took less time
            than its work does; it names the stage.
    """
    rate = _rate(contest)
    with peak_memory() as added:
        ours, ours_s = seconds(contest.ours)
    twin, twin_s = seconds(contest.twin)
    found = contest.differences(ours, twin)
    _require_agreement(stage, contest, found)
    tell("; ".join(f"{name} differ by {d:.1e} ({contest.tolerances[name]:.0e})" for name, d in found.items()))
    del ours, twin
    if contest.repeats and ours_s < SHORT:
        ours_s = _median(contest.ours)
    if contest.timed_twin and twin_s < SHORT:
        twin_s = _median(contest.twin)
    whole = contest.scaled(twin_s) if contest.timed_twin else None
    limit = contest.work / max(rate, _rate(contest)) if contest.work is not None else None
    if limit is not None and limit > ours_s:
        raise DisagreementError(
            f"stage {stage!r}: {ours_s:.3g} s are less than the {limit:.3g} s that its multiply-adds take at "
            "this machine's product rate; it reads a stored result, or benchmarks/counts.py counts too many"
        )
    return Row(
        stage=stage,
        ratio=whole / ours_s if whole is not None else None,
        share_of_limit=limit / ours_s if limit is not None else None,
        ours_s=ours_s,
        twin_s=whole,
        peak_mb=contest.peak() if contest.peak is not None else added.megabytes,
        sizes=contest.sizes,
    )


def relative(ours: Mapping[str, Tensor], twin: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative difference ‖ours − twin‖/‖twin‖ of tensors by name, in float64; infinite for other shapes.

    Raises:
        KeyError: if the twin lacks one of the names.
    """
    return {name: _relative(tensor, twin[name]) for name, tensor in ours.items()}


def _relative(ours: Tensor, twin: Tensor) -> float:
    if ours.shape != twin.shape:
        return float("inf")
    scale = twin.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((ours.double() - twin.double()).norm() / scale)


def _require_agreement(stage: str, contest: Contest, found: Mapping[str, float]) -> None:
    for name, difference in found.items():
        allowed = contest.tolerances[name]
        if not difference <= allowed:  # also when it is not a number
            raise DisagreementError(
                f"stage {stage!r}: the {name} of the library and of its twin differ by {difference:.2e}, "
                f"{allowed:.0e} is allowed ({contest.sizes}). No time is given for different results; find "
                f"which of the two is wrong, benchmarks/stages names both"
            )


def _rate(contest: Contest) -> float:
    """Product rate for the contest's work, 0 where no limit is stated."""
    return product_rate(contest.dtype) if contest.work is not None else 0.0


def _median(work: Callable[[], Any]) -> float:
    return statistics.median(seconds(work)[1] for _ in range(REPEATS))
