"""The lemmas' closed forms against the solver, each wrong print with the counter-example it fails on."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import EPS, Case, cases, error, gaussian
from torch import Tensor

from palimpsest import theory
from palimpsest.errors import ShapeError, SingularProblemError
from palimpsest.projector import Projector, null_space
from palimpsest.solve import LeastSquares, objective, solve

pytestmark = pytest.mark.usefixtures("one_thread")

RIDGES = st.floats(-3, 2).map(lambda power: 10**power)


def unit(tensor: Tensor) -> Tensor:
    return tensor / tensor.norm(dim=0)


def one_key(case: Case) -> tuple[Tensor, Tensor]:
    return case.keys[:, 0], case.residual[:, 0]


def alone(case: Case) -> LeastSquares:
    return case.problem(keys=case.keys[:, :1], residual=case.residual[:, :1], preserve=None)


def slack(problem: LeastSquares, projector: Projector) -> float:
    g = theory.gram(problem.keys, projector)
    cond = torch.linalg.cond(g + problem.ridge * torch.eye(len(g), dtype=g.dtype))
    return 1e-8 + 100 * EPS * float(cond)


# P01: Lemma 1. The residual is right, the update printed beside it is not.


@given(case=cases(awkward=()))
def test_residual_factor_of_one_edit(case):
    energy = float(theory.projected_energy(case.keys[:, :1], case.projector))
    wanted = solve(alone(case)).fit
    assert float(theory.residual_factor(energy, case.ridge)) == pytest.approx(wanted, rel=1e-7)


@given(case=cases(awkward=()))
def test_corrected_update_of_one_edit(case):
    k, r = one_key(case)
    corrected = theory.single_update(k, r, case.projector, case.ridge)
    assert error(corrected, solve(alone(case)).delta, 1e-9) < 1e-8


@given(case=cases(awkward=()))
def test_printed_update_of_one_edit_is_off_by_the_factor_ridge(case):
    k, r = one_key(case)
    printed = theory.printed_single_update(k, r, case.projector, case.ridge)
    right = solve(alone(case)).delta
    assert error(printed, case.ridge * right, 1e-12) < 1e-8
    assume(abs(case.ridge - 1) > 0.01)
    assert error(printed, right, 1e-12) > 1e-3 * min(1, float(right.norm()) * 1e12)
    left = (printed @ k - r).norm() / r.norm()
    energy = float(theory.projected_energy(k[:, None], case.projector))
    wanted = float(theory.printed_residual_factor(energy, case.ridge))
    assert float(left) == pytest.approx(abs(wanted), rel=1e-7, abs=1e-12)


def test_residual_of_one_edit_by_hand():
    # λ = 0.1 and ‖Pk‖ = 1: 0.1/1.1 of the residual stays, and 1/1.1 of it with the printed update.
    assert theory.residual_factor(1.0, 0.1) == pytest.approx(1 / 11)
    assert theory.printed_residual_factor(1.0, 0.1) == pytest.approx(10 / 11)


# P02: Eq. 6. A bound, not an equality.


def parallel(case: Case) -> Tensor:
    """The part of each key inside span(K0), from the case's own basis of that span."""
    return case.span @ (case.span.T @ unit(case.keys))


@given(case=cases(awkward=("repeated", "opposite")))
def test_squared_cosine_is_a_lower_bound_of_the_conflict(case):
    conflict = theory.conflict(case.keys, case.projector)
    assert torch.allclose(conflict, parallel(case).square().sum(0), atol=1e-10)
    s = theory.largest_cosine(case.keys, case.preserved)
    assert (s.square() <= conflict + 1e-10).all()
    energy = theory.projected_energy(unit(case.keys), case.projector)
    bound = theory.cosine_residual_factor(s, case.ridge)
    assert (bound <= theory.residual_factor(energy, case.ridge) * (1 + 1e-9) + 1e-9).all()


@given(case=cases(awkward=()))
def test_what_the_squared_cosine_is(case):
    # s² = ‖k_∥‖² × the largest squared cosine between k_∥ and a column of K0.
    assume(case.span.shape[1] > 0)
    inside = parallel(case)
    share = theory.largest_cosine(inside, case.preserved).square()
    s = theory.largest_cosine(case.keys, case.preserved)
    assert torch.allclose(s.square(), inside.square().sum(0) * share, atol=1e-10)


@given(d_k=st.integers(2, 12), seed=st.integers(0, 999))
def test_equality_for_a_single_preserved_key(d_k, seed):
    preserved, key = gaussian(seed, d_k, 1), gaussian(seed + 1, d_k, 1)
    projector = Projector(complement=unit(preserved))
    s = theory.largest_cosine(key, preserved)
    assert torch.allclose(s.square(), theory.conflict(key, projector), atol=1e-10)


def test_two_preserved_keys_break_the_equality():
    # k = (e1 + e2)/√2 lies inside the span of K0 = [e1, e2], yet its cosine with either is 1/√2.
    preserved = torch.eye(3, dtype=torch.float64)[:, :2]
    key = unit(preserved.sum(1, keepdim=True))
    assert float(theory.largest_cosine(key, preserved) ** 2) == pytest.approx(0.5)
    assert float(theory.conflict(key, Projector(complement=preserved))) == pytest.approx(1)


def test_a_threshold_breaks_even_the_bound():
    # A preserved key in a direction of little energy: s = 1, but the projector keeps all of it.
    preserved = torch.tensor([[10.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    projector = null_space(preserved @ preserved.T / 2)
    key = preserved[:, 1:]
    assert float(theory.largest_cosine(key, preserved)) == pytest.approx(1)
    assert float(theory.conflict(key, projector)) == 0


def test_no_preserved_key_is_no_conflict():
    assert theory.largest_cosine(gaussian(0, 3, 2), torch.zeros(3, 0).double()).tolist() == [0, 0]


# P03: Lemma 2 and A.5.


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Two unit keys at a chosen signed cosine, and a residual."""
    d_k, cosine = draw(st.integers(2, 12)), draw(st.floats(-1, 1))
    frame = torch.linalg.qr(gaussian(draw(st.integers(0, 999)), d_k, 2)).Q
    prior = cosine * frame[:, 0] + (1 - cosine**2) ** 0.5 * frame[:, 1]
    return frame[:, 0], prior, gaussian(7, 4)


@given(pair=pairs(), ridge=RIDGES, weight=st.floats(0.01, 100))
def test_one_earlier_edit(pair, ridge, weight):
    key, prior, residual = pair
    problem = LeastSquares(key[:, None], residual[:, None], weight * torch.outer(prior, prior), ridge)
    found, cosine = solve(problem), key @ prior
    factor = float(theory.prior_residual_factor(cosine, ridge, weight))
    assert found.fit == pytest.approx(factor, rel=1e-7)
    assert error(theory.prior_update(key, prior, residual, ridge, weight), found.delta) < 1e-8
    whole = Projector.identity(len(key))
    beside = theory.many_priors_factor(
        key, prior[:, None], whole, ridge, torch.tensor([weight], dtype=torch.float64)
    )
    assert beside == pytest.approx(factor, rel=1e-7)


@given(pair=pairs(), ridge=RIDGES)
def test_unsigned_cosine_is_wrong_exactly_for_negative_products(pair, ridge):
    key, prior, residual = pair
    cosine = float(key @ prior)
    right = theory.prior_update(key, prior, residual, ridge)
    printed = theory.prior_update(key, prior, residual, ridge, signed=False)
    if cosine >= 0:
        assert torch.equal(printed, right)
    elif cosine < -0.01:
        # The two differ by 2|s| r kₚᵀ over the determinant.
        gap = 2 * abs(cosine) * float(residual.norm()) / ((ridge + 1) ** 2 - cosine**2)
        assert float((printed - right).norm()) == pytest.approx(gap, rel=1e-6)


def test_one_earlier_edit_by_hand():
    # λ = 1, s = 1: (λ+1)/(λ+2) = 2/3 of the residual stays, not all of it; β = 3 leaves 4/5.
    assert theory.prior_residual_factor(1.0, 1.0) == pytest.approx(2 / 3)
    assert theory.prior_residual_factor(1.0, 1.0, weight=3.0) == pytest.approx(4 / 5)
    assert theory.prior_residual_factor(0.0, 0.5) == pytest.approx(theory.residual_factor(1.0, 0.5))


@given(case=cases(awkward=("past repeated",)), low=st.floats(0, 5), more=st.floats(0.1, 5))
def test_any_number_of_earlier_keys(case, low, more):
    k, _ = one_key(case)
    factors = []
    for level in (low, low + more):
        weights = torch.full((case.past.shape[1],), level, dtype=torch.float64)
        problem = replace(alone(case), preserve=(case.past * weights) @ case.past.T)
        factors.append(theory.many_priors_factor(k, case.past, case.projector, case.ridge, weights))
        found = solve(problem)
        assert found.fit == pytest.approx(factors[-1], abs=1e-8 + 1e3 * EPS * found.condition)
    assert 0 <= factors[0] <= factors[1] + 1e-6 <= 1 + 2e-6  # weight on the past costs the new edit


# P04: Lemma 3.


@given(case=cases())
def test_post_edit_error_identity(case):
    problem = case.problem(preserve=None)
    wanted = solve(problem).delta @ case.keys - case.residual
    found = theory.post_edit_error(theory.gram(case.keys, case.projector), case.residual, case.ridge)
    assert error(found, wanted) < 10 * slack(problem, case.projector)


@st.composite
def two_edits(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """G of two keys inside range(P), r₁ and ρ."""
    seed, d_k = draw(st.integers(0, 999)), draw(st.integers(1, 6))
    return (
        theory.gram(gaussian(seed, d_k, 2), Projector.identity(d_k)),
        gaussian(seed + 1, 3),
        draw(st.floats(1, 50)),
    )


@given(given_=two_edits(), ridge=RIDGES, seed=st.integers(0, 999))
def test_two_edit_bounds_hold(given_, ridge, seed):
    g, first, ratio = given_
    second = ratio * first.norm() * unit(gaussian(seed, 3))
    errors = theory.post_edit_error(g, torch.stack([first, second], 1), ridge).norm(dim=0)
    bounds = theory.two_edit_bounds(g, ridge, ratio)
    for found, bound in zip(errors.tolist(), bounds, strict=True):
        assert found <= bound * float(first.norm()) * (1 + 1e-7)


@given(given_=two_edits(), ridge=RIDGES)
def test_two_edit_bounds_are_reached(given_, ridge):
    g, first, ratio = given_
    assume(abs(float(g[0, 1])) > 1e-6)
    second = theory.worst_second_residual(g, first, ratio)
    errors = theory.post_edit_error(g, torch.stack([first, second], 1), ridge).norm(dim=0)
    bounds = first.norm() * torch.tensor(theory.two_edit_bounds(g, ridge, ratio)).double()
    assert torch.allclose(errors, bounds, rtol=1e-6)


def test_the_error_itself_can_fall_to_zero_as_the_ratio_grows():
    # λ = 0.1, G = [[1, 1.6], [1.6, 4]], r₂ = ρ r₁: e₁ ∝ (λ + g₂₂) − ρ g₁₂ vanishes at ρ = 4.1/1.6.
    g = torch.tensor([[1.0, 1.6], [1.6, 4.0]], dtype=torch.float64)
    lengths = {}
    for ratio in (1.0, 4.1 / 1.6):
        both = torch.tensor([[1.0, ratio]], dtype=torch.float64)
        lengths[ratio] = float(theory.post_edit_error(g, both, 0.1)[0, 0].abs())
    assert lengths[1.0] == pytest.approx(0.1 * 2.5 / 1.95)
    assert lengths[4.1 / 1.6] < 1e-12


# P05 and P06: Lemma 4 and the search.


def pool_of(case: Case) -> tuple[Tensor, Tensor]:
    """Eigenvectors of K0K0ᵀ outside range(P), by ascending eigenvalue, and their eigenvalues."""
    inside = case.span.T @ case.preserved
    values, vectors = torch.linalg.eigh(inside @ inside.T)
    return values, case.span @ vectors


def searchable(case: Case) -> LeastSquares:
    return case.problem(preserve=None)


@given(case=cases())
def test_objective_in_closed_form(case):
    problem = theory.with_past(searchable(case), case.past)
    closed = theory.objective_at_update(
        theory.gram(problem.keys, case.projector), problem.residual, case.ridge
    )
    value = objective(problem, solve(problem).delta)
    assert value == pytest.approx(closed, rel=10 * slack(problem, case.projector))


@given(case=cases(well_conditioned=True))
def test_recursion_equals_recomputation_at_every_step(case):
    _, pool = pool_of(case)
    found = theory.search(searchable(case), pool, 0.0, case.past)
    assert found.admitted == pool.shape[1]
    for admitted, value in enumerate(found.objectives.tolist()):
        relaxed = Projector(basis=torch.cat([case.basis, pool[:, :admitted]], 1))
        problem = theory.with_past(searchable(case), case.past)
        again = replace(problem, projector=relaxed)
        assert objective(again, solve(again).delta) == pytest.approx(value, rel=1e-8)
    assert error(found.update, solve(again).delta) < 1e-8


@given(case=cases())
def test_no_direction_raises_the_objective(case):
    _, pool = pool_of(case)
    found = theory.search(searchable(case), pool, 0.0, case.past)
    assert (found.gains >= 0).all()
    assert len(found.gains) == found.admitted == pool.shape[1]  # ε = 0 never stops it
    everything = theory.objective_at_update(
        theory.gram(case.keys, Projector.identity(len(case.keys))), case.residual, case.ridge
    )
    assume(case.past.shape[1] == 0)
    rounding = 10 * slack(replace(searchable(case), projector=None), Projector.identity(len(pool)))
    start = float(found.objectives[0])
    assert float(found.objectives[-1]) == pytest.approx(everything, abs=rounding * start)


@given(case=cases(well_conditioned=True), factor=st.floats(0.1, 10))
def test_objective_scales_with_the_square_of_the_residual(case, factor):
    # So an absolute ε has the unit of the residual squared.
    _, pool = pool_of(case)
    once = theory.search(searchable(case), pool, 0.0)
    scaled = replace(searchable(case), residual=factor * case.residual)
    again = theory.search(scaled, pool, 0.0)
    assert torch.allclose(again.objectives, factor**2 * once.objectives, rtol=1e-9)
    assert torch.allclose(again.gains, factor**2 * once.gains, rtol=1e-6, atol=1e-12)


@given(case=cases(well_conditioned=True))
def test_final_update_does_not_depend_on_the_order(case):
    _, pool = pool_of(case)
    forward = theory.search(searchable(case), pool, 0.0, case.past).update
    backward = theory.search(searchable(case), pool.flip(1), 0.0, case.past).update
    assert error(forward, backward) < 1e-8


@given(case=cases(well_conditioned=True), share=st.floats(0.0, 1.0))
def test_search_stops_at_the_first_gain_below_epsilon(case, share):
    _, pool = pool_of(case)
    assume(pool.shape[1] > 0)
    gains = theory.search(searchable(case), pool, 0.0).gains
    epsilon = float(gains[int(share * (len(gains) - 1))]) * 1.001 + 1e-12
    found = theory.search(searchable(case), pool, epsilon)
    assert found.admitted == int((gains >= epsilon).long().cumprod(0).sum())
    assert len(found.objectives) == found.admitted + 1
    assert len(found.gains) == found.admitted + (found.admitted < pool.shape[1])


@given(case=cases(well_conditioned=True))
def test_damage_to_preserved_keys_is_known(case):
    values, pool = pool_of(case)
    found = theory.search(searchable(case), pool, 0.0, case.past)
    residual = theory.with_past(searchable(case), case.past).residual
    closed = theory.preservation_damage(found, residual, values)
    direct = float((found.update @ case.preserved).square().sum())
    assert closed == pytest.approx(direct, rel=1e-6, abs=1e-12)


@st.composite
def without_conflict(draw: st.DrawFn) -> tuple[Case, Tensor]:
    """Lemma 4's conditions: K1 ⟂ K0 and K1 ⟂ Kp, while Kp may lie anywhere else."""
    case = draw(cases(well_conditioned=True, min_kept=4, awkward=("repeated",)))
    new, rest = case.basis[:, :2], torch.cat([case.basis[:, 2:], case.span], 1)
    keys = new @ new.T @ case.keys
    return replace(case, keys=keys, past=rest @ rest.T @ case.past), case.keys


@given(given_=without_conflict(), epsilon=st.floats(-10, 0))
def test_without_conflict_nothing_is_admitted_and_alphaedit_is_left(given_, epsilon):
    case, _ = given_
    _, pool = pool_of(case)
    weighted = case.past * theory.past_weights(case.past, case.keys).sqrt()
    found = theory.search(searchable(case), pool, 10**epsilon, weighted)
    assert found.admitted == 0
    assert not len(found.gains) or found.gains.max() < 1e-20 * found.objectives[0]
    assert error(found.update, solve(case.problem()).delta) < 1e-8


@given(given_=without_conflict())
def test_with_conflict_directions_are_admitted(given_):
    # Negative control: the same problem with the keys' conflicting parts put back.
    case, keys = given_
    case = replace(case, keys=keys)
    _, pool = pool_of(case)
    assume(float((case.span.T @ keys).norm()) > 0.1)
    found = theory.search(searchable(case), pool, 0.0)
    assert found.admitted == pool.shape[1]
    assert found.gains.max() > 1e-8 * found.objectives[0]


@given(case=cases())
def test_past_weights_lie_between_zero_and_one_also_in_float32(case):
    past = torch.cat([case.past, case.keys, -case.keys], 1).float()
    new = case.keys[:, : max(1, case.keys.shape[1] // 2)].float()
    assume(bool((new.norm(dim=0) > 0).all() and (past.norm(dim=0) > 0).all()))
    weights = theory.past_weights(past, new)
    assert ((weights >= 0) & (weights <= 1)).all()
    repeated = theory.past_weights(torch.cat([new, -new], 1), new)
    assert repeated.max() < 1e-6


def test_a_pool_that_overlaps_the_projector_is_refused():
    problem = LeastSquares(torch.ones(3, 1).double(), torch.ones(1, 1).double(), None, 1.0)
    with pytest.raises(ShapeError, match=r"lies inside range.*would count twice"):
        theory.search(problem, torch.eye(3).double()[:, :1], 0.0)


def test_past_keys_as_preserve_are_refused():
    problem = LeastSquares(torch.ones(3, 1).double(), torch.ones(1, 1).double(), torch.eye(3), 1.0)
    with pytest.raises(ShapeError, match="takes past keys as 'past'"):
        theory.search(problem, torch.zeros(3, 0).double(), 0.0)


def test_closed_forms_need_a_ridge():
    with pytest.raises(SingularProblemError, match="ridge above 0, got 0"):
        theory.objective_at_update(torch.eye(2), torch.ones(1, 2), 0.0)


# P07: smoothing is a scan over one scalar.


@given(case=cases(well_conditioned=True), steps=st.integers(1, 12), data=st.data())
def test_every_smoothed_update_is_two_updates_and_a_scalar(case, steps, data):
    step, present = data.draw(st.integers(0, steps)), gaussian(5, *case.residual.shape)
    lengths = case.residual.norm(dim=0)
    threshold = 0.999 * float(lengths.median())
    targets = theory.smoothed_targets(present + case.residual, present, threshold, step, steps)
    direct = solve(case.problem(residual=targets - present)).delta
    easy, hard = theory.smoothing_scan(case.problem(), threshold)
    assert error(easy + theory.smoothing_scale(step, steps) * hard, direct) < 1e-8
    plain = solve(case.problem()).delta
    assert error(easy + hard, plain) < 1e-8  # t = T is the unsmoothed edit


@given(case=cases(awkward=()), steps=st.integers(1, 9))
def test_a_hard_key_alone_never_gets_below_the_unsmoothed_residual(case, steps):
    _, hard = theory.smoothing_scan(alone(case), 0.0)
    k, r = one_key(case)
    energy = float(theory.projected_energy(k[:, None], case.projector))
    for step in range(steps + 1):
        scale = theory.smoothing_scale(step, steps)
        left = float((scale * hard @ k - r).norm() / r.norm())
        wanted = 1 - scale * energy / (case.ridge + energy)
        assert left == pytest.approx(wanted, abs=1e-6)
        assert left >= theory.residual_factor(energy, case.ridge) - 1e-6


def test_smoothing_scales_by_hand():
    residual = torch.tensor([[3.0, 0.5]])
    assert theory.smoothing_scales(residual, 1.0, 2) == [0.5, 0.75, 1.0]
    assert theory.smoothing_scales(residual, 5.0, 2) == [1.0]


@pytest.mark.parametrize(("step", "steps"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_schedules_are_refused(step, steps):
    with pytest.raises(ShapeError, match=f"T ≥ 1 steps and t from 0 to T, got t = {step}"):
        theory.smoothing_scale(step, steps)
