"""What the tests of the search for a relaxed projector share: pools, problems, and solving anew."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from palimpsest.algebra.admission import ORDERS, Candidates
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares, objective, solve, with_past
from tests.problems import EPS, Case

every_order = pytest.mark.parametrize("order", ORDERS)


def pool_of(case: Case) -> Candidates:
    """Eigenvectors of K0K0ᵀ outside range(P), by ascending eigenvalue."""
    inside = case.span.T @ case.preserved
    values, vectors = torch.linalg.eigh(inside @ inside.T)
    return Candidates(case.span @ vectors, values.clamp(min=0))


def whole(case: Case, held: Projector | None = None) -> LeastSquares:
    """The case with its past keys as further columns."""
    return with_past(case.problem(held, preserve=None), case.past)


def smallest(problem: LeastSquares, held: Projector) -> float:
    """The objective at the update, solved anew."""
    problem = replace(problem, projector=held)
    return objective(problem, solve(problem).delta)


def updated(problem: LeastSquares, held: Projector) -> Tensor:
    return solve(replace(problem, projector=held)).delta


def matrix(held: Projector) -> Tensor:
    return held.apply(torch.eye(held.dim, dtype=torch.float64))


def widened(case: Case, pool: Candidates, admitted: Tensor) -> Projector:
    return Projector(basis=torch.cat([case.basis, pool.vectors[:, admitted]], 1))


def slack(problem: LeastSquares) -> float:
    """1e-8, plus 100 roundings times the condition number without a projector, which is the largest."""
    gram = problem.keys.T @ problem.keys
    return 1e-8 + 100 * EPS * (1 + float(torch.linalg.matrix_norm(gram, 2)) / problem.ridge)
