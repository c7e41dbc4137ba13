"""The growing and shrinking factor against one factorisation of the matrix it should belong to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.cholesky import PANEL, Cholesky
from palimpsest.errors import SingularProblemError
from tests.problems import EPS, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


def definite(seed: int, n: int, log_floor: float = -2.0) -> Tensor:
    """A positive definite matrix whose eigenvalues reach down to about 10**log_floor times the largest."""
    half = gaussian(seed, n, n) * torch.logspace(0, log_floor / 2, n, dtype=torch.float64)
    return half @ half.T + 10**log_floor * torch.eye(n, dtype=torch.float64)


def gap(found: Cholesky, matrix: Tensor) -> float:
    """Backward error of a factor, which must also be lower triangular with a positive diagonal."""
    assert torch.equal(found.lower, found.lower.tril())
    assert (found.lower.diagonal() > 0).all()
    scale = float(matrix.norm()) if len(matrix) else 1.0
    return float((found.lower @ found.lower.T - matrix).norm()) / scale


@given(n=st.integers(0, 40), m=st.integers(0, 40), seed=st.integers(0, 2**20), floor=st.floats(-12, 0))
def test_appending_equals_factorising_the_larger_matrix(n, m, seed, floor):
    whole = definite(seed, n + m, floor)
    found = Cholesky.of(whole[:n, :n]).append(whole[:n, n:], whole[n:, n:])
    assert gap(found, whole) < 100 * EPS


@given(data=st.data(), n=st.integers(1, 4 * PANEL), seed=st.integers(0, 2**20), floor=st.floats(-12, 0))
def test_removing_equals_factorising_the_smaller_matrix(data, n, seed, floor):
    whole = definite(seed, n, floor)
    gone = data.draw(st.lists(st.integers(0, n - 1), max_size=n))
    stay = [i for i in range(n) if i not in gone]
    assert gap(Cholesky.of(whole).remove(gone), whole[stay][:, stay]) < 100 * EPS


@pytest.mark.parametrize("size", [1, 2, PANEL, PANEL + 1, 3 * PANEL])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_blocks_of_every_size_are_removed_from_everywhere(size, where):
    n = 7 * PANEL
    start = {"first": 0, "middle": n // 2 - size // 2, "last": n - size}[where]
    whole = definite(size, n)
    stay = [i for i in range(n) if not start <= i < start + size]
    found = Cholesky.of(whole).remove(range(start, start + size))
    assert gap(found, whole[stay][:, stay]) < 100 * EPS
    wanted = torch.linalg.cholesky(whole[stay][:, stay])
    assert (found.lower - wanted).norm() < 1e-11 * wanted.norm()


@given(data=st.data(), seed=st.integers(0, 2**20))
def test_any_history_gives_the_factor_of_what_is_left(data, seed):
    whole, held = definite(seed, 60, -3), list[int]()
    found, rest = Cholesky.of(whole[:0, :0]), list(range(60))
    for _ in range(data.draw(st.integers(1, 8))):
        new = data.draw(st.lists(st.sampled_from(rest), unique=True, max_size=20)) if rest else []
        found = found.append(whole[held][:, new], whole[new][:, new])
        held += new
        gone = data.draw(st.lists(st.sampled_from(range(len(held))), unique=True)) if held else []
        found = found.remove(gone)
        held = [at for i, at in enumerate(held) if i not in gone]
        rest = [i for i in range(60) if i not in held]
    assert gap(found, whole[held][:, held]) < 1000 * EPS


@given(n=st.integers(1, 30), m=st.integers(0, 4), seed=st.integers(0, 2**20))
def test_solve_and_condition(n, m, seed):
    whole, right = definite(seed, n), gaussian(seed + 1, n, m)
    factor, wanted = Cholesky.of(whole), float(np.linalg.cond(whole.numpy()))
    assert (whole @ factor.solve(right) - right).norm() <= 1e-12 * wanted * (1 + right.norm())
    assert wanted / 3 <= factor.condition <= 1.01 * wanted


@given(n=st.integers(1, 30), m=st.integers(1, 10), seed=st.integers(0, 2**20))
def test_tail_is_the_factor_of_the_schur_complement(n, m, seed):
    whole = definite(seed, n + m)
    schur = whole[n:, n:] - whole[n:, :n] @ torch.linalg.solve(whole[:n, :n], whole[:n, n:])
    assert gap(Cholesky.of(whole).tail(m), schur) < 1e-10


def test_nothing_is_changed_in_place():
    factor = Cholesky.of(definite(0, 120))
    before = factor.lower.clone()
    factor.remove([3, 50])
    factor.append(gaussian(1, 120, 2), 1e6 * torch.eye(2, dtype=torch.float64))
    assert torch.equal(factor.lower, before)
    assert factor.remove([]) is factor


def test_empty():
    empty = Cholesky.of(torch.zeros(0, 0, dtype=torch.float64))
    assert (len(empty), empty.condition, empty.solve(gaussian(0, 0, 3)).shape) == (0, 1.0, (0, 3))
    assert len(Cholesky.of(definite(0, 3)).remove(range(3))) == 0


def test_what_is_not_positive_definite_is_refused():
    one, cross = torch.eye(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(SingularProblemError, match=r"1 × 1 matrix .*pivot 1.*raise the ridge"):
        Cholesky.of(-one)
    with pytest.raises(SingularProblemError, match="not positive definite"):
        Cholesky.of(one).append(2 * cross, one)


def test_a_removal_that_only_deletes_rows_is_noticed():
    # Negative control: without the update the factor belongs to another matrix.
    whole = definite(0, 20)
    stay = list(range(5)) + list(range(8, 20))
    bare = Cholesky(Cholesky.of(whole).lower[stay][:, stay])
    assert gap(bare, whole[stay][:, stay]) > 1e-6
