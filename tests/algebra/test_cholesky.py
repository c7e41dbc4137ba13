"""The growing and shrinking factor against one factorisation of the matrix it should belong to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.cholesky import PANEL, WIDTH, Cholesky, Extremes, random_columns, times
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


@given(
    n=st.integers(0, 3 * PANEL),
    m=st.integers(0, 2 * PANEL),
    seed=st.integers(0, 2**20),
    floor=st.floats(-12, 0),
)
def test_adding_equals_factorising_the_sum(n, m, seed, floor):
    whole, columns = definite(seed, n, floor), gaussian(seed + 1, n, m)
    assert gap(Cholesky.of(whole).plus(columns), whole + columns @ columns.T) < 100 * EPS


@given(
    n=st.integers(1, 3 * PANEL),
    m=st.integers(0, 2 * PANEL),
    seed=st.integers(0, 2**20),
    floor=st.floats(-6, 0),
)
def test_subtracting_equals_factorising_the_difference(n, m, seed, floor):
    rest, columns = definite(seed, n, floor), gaussian(seed + 1, n, m)
    whole = rest + columns @ columns.T
    found = Cholesky.of(whole).minus(columns)
    assert torch.equal(found.lower, found.lower.tril())
    # Relative to what was subtracted from: the rounding of S − C Cᵀ itself.
    assert gap(found, rest) * float(rest.norm()) < 100 * EPS * float(whole.norm())


@given(n=st.integers(1, 60), m=st.integers(1, 20), seed=st.integers(0, 2**20))
def test_subtracting_what_was_added_gives_the_factor_back(n, m, seed):
    whole, columns = definite(seed, n), gaussian(seed + 1, n, m)
    before = Cholesky.of(whole)
    after = before.plus(columns).minus(columns)
    assert (after.lower - before.lower).norm() < 1e-10 * before.lower.norm()


def test_subtracting_too_much_is_refused():
    whole = definite(0, 10)
    direction = torch.linalg.eigh(whole).eigenvectors[:, :1]
    with pytest.raises(SingularProblemError, match="not positive definite"):
        Cholesky.of(whole).minus(1.01 * (whole @ direction).norm().sqrt() * direction)


@given(n=st.integers(WIDTH + 1, 40), changes=st.integers(1, 12), seed=st.integers(0, 2**20))
def test_extremes_follow_small_changes_with_one_iteration_each(n, changes, seed):
    whole = definite(seed, n, -4)
    extremes = Cholesky.of(whole).extremes
    for i in range(changes):
        column = 3 * gaussian(seed + i, n, 1)
        whole = whole + column @ column.T
        factor = Cholesky.of(whole)
        big, small = (
            torch.cat([extremes.big, column], 1),
            torch.cat([extremes.small, factor.solve(column)], 1),
        )
        extremes = extremes.after(factor.product, factor.solve, big, small)
        values = torch.linalg.eigvalsh(whole)
        assert float(values[-1]) / 2 <= extremes.largest <= 1.01 * float(values[-1])
        assert 0.99 * float(values[0]) <= extremes.least


@given(n=st.integers(WIDTH + 1, 40), seed=st.integers(0, 2**20))
def test_a_direction_that_nearly_vanishes_is_seen_at_once(n, seed):
    # What a removed column leaves behind along S⁻¹c is small; the earlier extremes alone do not contain it.
    rest, column = definite(seed, n, 0), gaussian(seed + 1, n, 1)
    axis = torch.linalg.eigh(rest).eigenvectors[:, :1]
    rest = rest - (1 - 1e-8) * (axis.T @ rest @ axis) * (axis @ axis.T)  # the least eigenvalue times 1e-8
    whole = rest + (column.norm() * axis) @ (column.norm() * axis).T
    was, after = Cholesky.of(whole).extremes, Cholesky.of(rest)
    seen = was.after(after.product, after.solve, was.big, torch.cat([was.small, after.solve(axis)], 1))
    wanted = float(np.linalg.cond(rest.numpy()))
    assert wanted / 5 <= seen.condition <= 1.01 * wanted


def test_an_overflow_has_an_infinite_condition():
    start = random_columns(5, WIDTH, torch.zeros(1).double())
    assert Extremes.of(lambda x: x * float("inf"), lambda x: x, start).condition == float("inf")


@given(a=st.integers(0, 9), b=st.integers(0, 9), n=st.integers(0, 5), turned=st.booleans())
def test_times_is_the_product(a, b, n, turned):
    matrix = gaussian(0, b, a).T if turned else gaussian(0, a, b)
    torch.testing.assert_close(times(matrix, gaussian(1, b, n)), matrix @ gaussian(1, b, n))


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
