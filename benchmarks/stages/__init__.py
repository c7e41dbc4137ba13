"""Table of the stages: name -> inputs and paths, and the bars on two cores with smollm2-135m."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contest import Contest
from benchmarks.inputs import Inputs
from benchmarks.stages import algebra, edits, passes


@dataclass(frozen=True)
class Stage:
    """One row of STAGES.

    Attributes:
        contest: inputs -> the contest.
        ratio: the least ratio to the twin that is asked for, or None.
        share: the least share of the limit, or None.
        peak_mb: the most memory in 10⁶ bytes, or None.
    """

    contest: Callable[[Inputs], Contest]
    ratio: float | None = None
    share: float | None = None
    peak_mb: float | None = None


STAGES: dict[str, Stage] = {
    "values": Stage(passes.values, ratio=8, share=0.55),
    "keys": Stage(passes.keys, ratio=15),
    "moments": Stage(passes.moments, ratio=8, share=0.60),
    "null_space": Stage(algebra.null_space, ratio=20),
    "null_space_large": Stage(algebra.large_null_space),
    "aligned_step": Stage(algebra.aligned_step, ratio=50),
    "ledger_alphaedit": Stage(algebra.ledger_alphaedit, ratio=20),
    "ledger_memit": Stage(algebra.ledger_memit, ratio=20),
    "admission": Stage(algebra.admission, ratio=1000),
    "evaluation": Stage(passes.evaluation, ratio=6, share=0.35),
    "end_to_end": Stage(edits.end_to_end, ratio=8),
    "edit": Stage(edits.edit, ratio=1 / 1.3, peak_mb=1300),
}
"""Name of each stage, as in ``results/bench.json``, in the order in which they run."""
