"""The one-time solution of a ledger, in two forms, and its change when facts enter or leave.

    dual     X S = R, one n × n system: `palimpsest.algebra.dual`
    primal   D H = C, one d_k × d_k system: `palimpsest.algebra.primal`

Both are changed by matrices of low rank, and neither is factorised again in an ordinary step. The dual form
is used up to as many facts as there are free directions, and the primal form for more, with the facts in a
file; back to the dual form only when half as many are left. The primal form is also used if A is singular, or
if the condition number of A or S exceeds `WELL_CONDITIONED` and that of A + KKᵀ is estimated to be ten times
smaller: with a small λ, or with keys that fill the null space of M.

Rounding accumulates over a sequence of steps, so each step ends with checks. If the relative backward error
on fixed random probes exceeds `DRIFT`, or the condition number a limit, the problem is solved anew from the
facts.
"""

from collections.abc import Sequence

from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.dual import Dual
from palimpsest.algebra.fact_file import FactFile
from palimpsest.algebra.ledger_facts import Facts
from palimpsest.algebra.primal import Primal
from palimpsest.algebra.problem import Problem, SolutionStep
from palimpsest.errors import SingularProblemError

Solution = Dual | Primal
Step = SolutionStep[Dual] | SolutionStep[Primal] | SolutionStep[Solution]


def solve(problem: Problem, facts: Facts | FactFile) -> Solution:
    """One-time solution over these facts, computed without an earlier one.

    Raises:
        SingularProblemError: if it is not unique; the message says what to raise.
        ResourceError: if there are more facts than free directions, and they cannot be written to a file.
    """
    if len(facts) > problem.projector.kept:
        try:
            return Primal.of(problem, FactFile.of(facts))
        except SingularProblemError:
            dual = Dual.of(problem, facts.take(range(len(facts))))
            if dual is None:
                raise
            return dual
    facts = facts.take(range(len(facts)))
    dual = Dual.of(problem, facts)
    if dual is not None and not dual.primal_is_better():
        return dual
    try:
        primal = Primal.of(problem, facts)
    except SingularProblemError:
        if dual is None:
            raise
        return dual
    return primal if dual is None or primal.condition < dual.condition else dual


def change(before: Solution, gone: Sequence[int], fresh: Facts) -> Step:
    """Facts in some columns leave, others enter at the end.

    Raises:
        SingularProblemError, ResourceError: as `solve`, for the resulting facts.
    """
    step = before.change(gone, fresh) if _fits(before, len(before.facts) - len(gone) + len(fresh)) else None
    return step or _anew(before, before.facts.without(gone).join(fresh))


def put(before: Solution, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> Step:
    """Facts in some columns get other values.

    Raises:
        SingularProblemError, ResourceError: as `solve`, for the resulting facts.
    """
    return before.put(columns, values) or _anew(before, before.facts.put(columns, values))


def _fits(before: Solution, facts: int) -> bool:
    """Whether so many facts can stay in the present form."""
    kept = before.problem.projector.kept
    return facts <= kept if isinstance(before, Dual) else isinstance(before.facts, FactFile) or facts <= kept


def _anew(before: Solution, facts: Facts | FactFile) -> Step:
    """Step to other facts by solving their problem without the earlier solution."""
    after = solve(before.problem, facts)
    delta = after.total() - before.total()
    return SolutionStep(after, delta, None)
