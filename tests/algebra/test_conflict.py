"""Conflict and inconsistency: range, what is defined at zero, streaming, and the two measures compared."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra import conflict as module
from palimpsest.algebra.conflict import conflict, conflict_weights, inconsistency, projected_conflict
from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.solve import LeastSquares, solve, solve_exact
from palimpsest.errors import NonFiniteError, ShapeError
from tests.problems import Case, cases, error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


def unit(tensor: Tensor) -> Tensor:
    return tensor / tensor.norm(dim=0)


def parallel(case: Case) -> Tensor:
    """The part of each unit key inside span(K0), from the case's own basis of that span."""
    return case.span @ (case.span.T @ unit(case.keys))


# The cosine with single keys.


@given(case=cases(), block=st.integers(1, 9), cut=st.integers(0, 20))
def test_streaming_equals_dense(case, block, cut):
    others = torch.cat([case.past, case.preserved], 1)
    dense = torch.zeros(case.keys.shape[1], dtype=torch.float64)
    if others.shape[1]:
        pairs = torch.nan_to_num(unit(case.keys).T @ unit(others))
        dense = pairs.abs().amax(1)
    sizes = [min(cut, others.shape[1]), 0, max(others.shape[1] - cut, 0)]  # one block is empty
    for given_others in (others, others.split(sizes, 1), iter(others.split(sizes, 1))):
        found = conflict(case.keys, given_others, block)
        assert torch.allclose(found, dense, rtol=0, atol=1e-14)


def test_no_more_than_a_block_of_columns_is_compared_at_once(monkeypatch):
    widths, real = [], module._unit
    monkeypatch.setattr(module, "_unit", lambda x: (widths.append(x.shape[1]), real(x))[1])
    found = conflict(gaussian(0, 5, 3), (gaussian(i, 5, 1000) for i in range(100)), block=256)
    assert max(widths) == 256
    assert sum(widths) == 3 + 100 * 1000
    monkeypatch.undo()
    assert torch.equal(
        found, conflict(gaussian(0, 5, 3), torch.cat([gaussian(i, 5, 1000) for i in range(100)], 1))
    )


@given(case=cases(), power=st.integers(-150, 150), flip=st.booleans(), narrow=st.booleans())
def test_conflict_sees_neither_length_nor_sign_and_stays_in_range(case, power, flip, narrow):
    keys, others = (t.float() if narrow else t for t in (case.keys, case.past))
    found = conflict(keys, others)
    assert found.dtype == torch.float64
    assert ((found >= 0) & (found <= 1)).all()
    scaled = conflict(10.0**power * keys.double() * (-1) ** flip, 10.0**-power * others.double())
    assert error(scaled, found) < 1e-13


@given(case=cases(min_kept=2, awkward=("zero", "repeated")))
def test_a_key_among_the_others_has_conflict_one_and_orthogonal_keys_none(case):
    real = (case.keys.norm(dim=0) > 0).double()
    for others in (case.keys, -3 * case.keys, torch.cat([case.past, case.keys.flip(1)], 1)):
        assert error(conflict(case.keys, others), real) < 1e-12  # a zero key: 0
    if case.preserved.shape[0] and case.preserved.any():
        assert conflict(case.basis, case.preserved).max() < 1e-10


def test_zero_keys_zero_columns_and_no_columns_count_zero():
    keys = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    zeros = torch.zeros(2, 3)
    nothing = (zeros[:, :0], zeros, [], [zeros[:, :0]], [zeros, zeros[:, :0]])
    assert [conflict(keys, others).tolist() for others in nothing] == [[0, 0]] * 5
    assert conflict(keys, keys).tolist() == [1, 0]
    assert conflict(zeros[:, :0], keys).tolist() == []


def test_conflict_by_hand():
    # (3, 4)/5 has cosine 0.6 and 0.8 with the axes; the sign does not matter.
    key = torch.tensor([[3.0], [4.0]])
    axes = torch.tensor([[2.0, 0.0], [0.0, -7.0]])
    assert conflict(key, axes[:, :1]).tolist() == pytest.approx([0.6])
    assert conflict(key, axes).tolist() == pytest.approx([0.8])
    assert conflict_weights(key, axes).tolist() == pytest.approx([0.2])


# Property 12: weights of past keys.


@given(case=cases())
def test_weights_lie_between_zero_and_one_also_in_float32(case):
    past = torch.cat([case.past, case.keys, -case.keys], 1).float()
    new = case.keys[:, : max(1, case.keys.shape[1] // 2)].float()
    weights = conflict_weights(past, new)
    assert ((weights >= 0) & (weights <= 1)).all()
    repeated = conflict_weights(torch.cat([new, -new], 1), new)
    real = torch.cat([new, new], 1).norm(dim=0) > 0
    assert not real.any() or repeated[real].max() < 1e-12
    assert (repeated[~real] == 1).all()  # a zero key collides with nothing


def test_the_formula_as_printed_leaves_the_range_in_float32():
    # Negative control: one minus the cosine of a repeated key is negative by rounding, its root no number.
    keys = gaussian(0, 64, 2000).float()
    printed = 1 - (unit(keys) * unit(keys)).sum(0)
    assert 0.1 < float((printed < 0).double().mean()) < 0.6
    weights = conflict_weights(keys[:, :50], keys)
    assert (weights.min() >= 0, bool(torch.isfinite(weights.sqrt()).all())) == (True, True)


# Property 5: a cosine is only a lower bound of what a projector removes.


@given(case=cases(awkward=("repeated", "opposite")))
def test_squared_cosine_is_a_lower_bound_of_the_share_removed(case):
    for held in (case.projector, case.co_projector):
        removed = projected_conflict(case.keys, held)
        assert torch.allclose(removed, parallel(case).square().sum(0), atol=1e-12)
        assert (conflict(case.keys, case.preserved).square() <= removed + 1e-12).all()


@given(case=cases(awkward=()))
def test_what_the_squared_cosine_is(case):
    # s² = ‖k_∥‖² × the largest squared cosine between k_∥ and a column of K0.
    assume(case.span.shape[1] > 0)
    inside = parallel(case)
    share = conflict(inside, case.preserved).square()
    s = conflict(case.keys, case.preserved)
    assert torch.allclose(s.square(), inside.square().sum(0) * share, atol=1e-10)


@given(d_k=st.integers(2, 12), seed=st.integers(0, 999))
def test_equality_for_a_single_preserved_key(d_k, seed):
    preserved, key = gaussian(seed, d_k, 1), gaussian(seed + 1, d_k, 1)
    removed = projected_conflict(key, Projector(complement=unit(preserved)))
    assert torch.allclose(conflict(key, preserved).square(), removed, atol=1e-12)


def test_two_preserved_keys_break_the_equality():
    # k = (e1 + e2)/√2 lies inside the span of K0 = [e1, e2], yet its cosine with either is 1/√2.
    preserved = torch.eye(3, dtype=torch.float64)[:, :2]
    key = preserved.sum(1, keepdim=True)
    assert float(conflict(key, preserved) ** 2) == pytest.approx(0.5)
    assert float(projected_conflict(key, Projector(complement=preserved))) == pytest.approx(1)


def test_a_threshold_breaks_even_the_bound():
    # A preserved key in a direction of little energy: s = 1, but the projector keeps all of it.
    preserved = torch.tensor([[10.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    held = null_space(preserved @ preserved.T / 2)
    key = preserved[:, 1:]
    assert float(conflict(key, preserved)) == pytest.approx(1)
    assert float(projected_conflict(key, held)) == 0


# The share that a projector removes.


@given(case=cases(), power=st.integers(-150, 150), narrow=st.booleans())
def test_share_removed_is_in_range_and_complements_the_share_kept(case, power, narrow):
    keys = case.keys.float() if narrow else case.keys
    for held in (case.projector, case.co_projector):
        removed = projected_conflict(keys, held)
        assert ((removed >= 0) & (removed <= 1)).all()
        assert error(projected_conflict(10.0**power * keys.double(), held), removed) < 1e-13
        real = keys.norm(dim=0) > 0
        assert (removed[~real] == 0).all()
        for column, share in zip(keys.T[real], removed[real].tolist(), strict=True):
            assert 1 - share == pytest.approx(held.leakage(column[:, None]), abs=1e-12)


def test_a_small_conflict_keeps_its_digits():
    key = torch.tensor([[1.0], [1e-9]], dtype=torch.float64)
    held = Projector(complement=torch.tensor([[0.0], [1.0]]).double())
    assert float(projected_conflict(key, held)) == pytest.approx(1e-18, rel=1e-6)
    assert projected_conflict(key, Projector.identity(2)).tolist() == [0]


# Inconsistency.


@given(case=cases(well_conditioned=True, awkward=()), factor=st.floats(0.1, 10))
def test_inconsistency_is_the_length_of_what_is_missing(case, factor):
    weight = gaussian(9, len(case.residual), len(case.keys))
    values = weight @ case.keys + case.residual
    found = inconsistency(case.keys, values, weight)
    assert error(found, case.residual.norm(dim=0)) < 1e-12
    # A fact told twice as loudly, in key and value, misses twice as much.
    assert error(inconsistency(factor * case.keys, factor * values, weight), factor * found) < 1e-12
    # An edit leaves of it what its fit says.
    solution = solve(LeastSquares(case.keys, case.residual, None, case.ridge))
    left = inconsistency(case.keys, values, weight + solution.delta)
    assert float(left.norm() / found.norm()) == pytest.approx(solution.fit, rel=1e-6)


@given(case=cases(well_conditioned=True, awkward=(), max_new=1))
def test_nothing_is_missing_after_an_exact_edit(case):
    weight = gaussian(9, len(case.residual), len(case.keys))
    values = weight @ case.keys + case.residual
    delta = solve_exact(LeastSquares(case.keys, case.residual, None, case.ridge)).delta
    assert float(inconsistency(case.keys, values, weight + delta)) < 1e-10 * float(1 + values.norm())


def test_inconsistency_by_hand_in_float32():
    weight, keys = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = inconsistency(keys, torch.tensor([[4.0, 0.0], [6.0, 0.0]]), weight)
    assert (found.tolist(), found.dtype) == ([5, 0], torch.float64)


# Every error.

ONES = torch.ones(3, 2, dtype=torch.float64)
NAN = ONES / 0
ERRORS = {
    "block": (ShapeError, "block must be 1 or more columns, got 0", lambda: conflict(ONES, ONES, 0)),
    "widths": (ShapeError, r"others must be columns of width 3, got shape \(2, 2\)",
               lambda: conflict(ONES, ONES[:2])),
    "width of a later block": (ShapeError, r"others must be columns of width 3, got shape \(2, 0\)",
                               lambda: conflict(ONES, [ONES, ONES[:2, :0]])),
    "not columns": (ShapeError, r"keys must be columns of at least one row, got shape \(3,\)",
                    lambda: conflict(ONES[:, 0], ONES)),
    "no rows": (ShapeError, r"at least one row, got shape \(0, 2\)", lambda: conflict(ONES[:0], ONES[:0])),
    "keys not finite": (NonFiniteError, "keys hold NaN or infinity", lambda: conflict(NAN, ONES)),
    "others not finite": (NonFiniteError, "others hold NaN or infinity", lambda: conflict(ONES, [ONES, NAN])),
    "weights": (ShapeError, "others must be columns of width 3", lambda: conflict_weights(ONES, ONES[:1])),
    "weights not finite": (NonFiniteError, "keys hold NaN", lambda: conflict_weights(NAN, ONES)),
    "projector": (ShapeError, "keys must be columns of width 2, got shape",
                  lambda: projected_conflict(ONES, Projector.identity(2))),
    "projected not finite": (NonFiniteError, "keys hold NaN",
                             lambda: projected_conflict(NAN, Projector.identity(3))),
    "values": (ShapeError, r"values \(3, 1\) and weight \(3, 3\) do not fit keys \(3, 2\); they must be",
               lambda: inconsistency(ONES, ONES[:, :1], torch.eye(3))),
    "weight": (ShapeError, r"weight \(3, 2\) do not fit keys \(3, 2\)",
               lambda: inconsistency(ONES, ONES, ONES)),
    "height": (ShapeError, r"values must be columns of width 2, got shape \(3, 2\)",
               lambda: inconsistency(ONES, ONES, torch.ones(2, 3))),
    "values not finite": (NonFiniteError, "values hold NaN", lambda: inconsistency(ONES, NAN, torch.eye(3))),
    "weight not finite": (NonFiniteError, "weight hold NaN",
                          lambda: inconsistency(ONES, ONES, torch.eye(3) / 0)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "call"), ERRORS.values(), ids=list(ERRORS))
def test_wrong_input_is_named(kind, message, call, unchecked):
    with pytest.raises(kind, match=message):
        call()
