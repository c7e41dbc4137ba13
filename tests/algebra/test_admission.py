"""The search for a relaxed projector: its recursion against solving anew, and what it costs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from palimpsest.algebra import admission
from palimpsest.algebra.admission import ORDERS, Candidates, admit
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares
from palimpsest.theory.alphaedit_plus import objective_at_update
from tests.algebra.admissions import every_order, matrix, pool_of, slack, smallest, updated, whole, widened
from tests.problems import cases, error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


# Property 8: the objective.


@given(case=cases())
def test_the_path_starts_at_the_objective_of_the_update(case):
    problem = whole(case)
    found = admit(problem, pool_of(case), 0.0, limit=0)
    start = float(found.objective_path[0])
    assert start == pytest.approx(smallest(problem, case.projector), rel=10 * slack(problem))
    inside = case.basis.T @ problem.keys
    closed = objective_at_update(inside.T @ inside, problem.residual, case.ridge)
    assert start == pytest.approx(closed, rel=10 * slack(problem))


@every_order
@given(case=cases(), block=st.integers(1, 4))
def test_the_objective_never_rises_and_is_bounded_by_that_without_a_projector(order, case, block):
    problem, pool = whole(case), pool_of(case)
    found = admit(problem, pool, 0.0, block, order)
    path, start = found.objective_path, float(found.objective_path[0])
    assert (found.gains >= 0).all()
    assert (path.diff() <= 0).all()
    bound = smallest(problem, Projector.identity(len(case.keys)))
    assert float(path.min()) >= bound - slack(problem) * start
    assert float(path[-1]) == pytest.approx(bound, abs=slack(problem) * start)  # everything was admitted


@given(case=cases(well_conditioned=True), factor=st.floats(0.1, 10), order=st.sampled_from(ORDERS))
def test_the_objective_scales_with_the_square_of_the_residual(case, factor, order):
    # So an absolute threshold has the unit of a squared residual, and a relative one has none.
    problem, pool = whole(case), pool_of(case)
    scaled = replace(problem, residual=factor * problem.residual)
    once, again = admit(problem, pool, 0.0, order=order), admit(scaled, pool, 0.0, order=order)
    assert torch.allclose(again.objective_path, factor**2 * once.objective_path, rtol=1e-9)
    assert torch.allclose(again.gains, factor**2 * once.gains, rtol=1e-6, atol=1e-12)
    assume(len(pool) > 0 and float(once.gains[0]) > 1e-9)
    below = 0.999 * float(once.gains[0])
    share = below / float(once.objective_path[0])
    for given_problem in (problem, scaled):
        assert len(admit(given_problem, pool, share, order=order, limit=1).admitted) == 1
    if factor < 0.99:
        assert len(admit(scaled, pool, below, order=order, relative=False, limit=1).admitted) == 0


# Property 9: the recursion.


@every_order
@pytest.mark.parametrize("held", ["basis", "complement"])
@given(case=cases(well_conditioned=True))
def test_recursion_equals_solving_anew_at_every_step(held, order, case):
    start = case.projector if held == "basis" else case.co_projector
    problem, pool = whole(case, start), pool_of(case)
    found = admit(problem, pool, 0.0, order=order)
    assert sorted(found.admitted.tolist()) == list(range(len(pool)))
    for step, value in enumerate(found.objective_path.tolist()):
        anew = smallest(problem, widened(case, pool, found.admitted[:step]))
        assert value == pytest.approx(anew, rel=1e-8)


@given(case=cases(), share=st.floats(0, 1))
def test_recursion_equals_solving_anew_also_where_the_problem_is_ill_conditioned(case, share):
    problem, pool = whole(case), pool_of(case)
    found = admit(problem, pool, 0.0, limit=int(share * len(pool)))
    anew = smallest(problem, widened(case, pool, found.admitted))
    start = float(found.objective_path[0])
    assert float(found.objective_path[-1]) == pytest.approx(anew, abs=slack(problem) * start)


@given(case=cases(well_conditioned=True), block=st.integers(2, 7), data=st.data())
def test_blocks_equal_singles_at_the_same_set(case, block, data):
    problem, pool = whole(case), pool_of(case)
    limit = data.draw(st.integers(0, len(pool)))
    singles = admit(problem, pool, 0.0, limit=limit)
    blocks = admit(problem, pool, 0.0, block, limit=limit)
    assert torch.equal(singles.admitted, blocks.admitted)
    ends = [*range(0, limit, block), limit]
    assert torch.allclose(blocks.objective_path, singles.objective_path[ends], rtol=1e-8)
    assert len(blocks.gains) == len(ends) - 1
    assert error(updated(problem, blocks.projector), updated(problem, singles.projector)) < 1e-8


@given(case=cases(well_conditioned=True), block=st.integers(1, 5))
def test_the_order_of_the_same_set_does_not_matter(case, block):
    problem, pool = whole(case), pool_of(case)
    one, *others = [admit(problem, pool, 0.0, block, order) for order in ORDERS]
    for other in others:
        assert error(matrix(one.projector), matrix(other.projector)) < 1e-10
        assert error(updated(problem, one.projector), updated(problem, other.projector)) < 1e-8
        assert one.damage == pytest.approx(other.damage, rel=1e-6, abs=1e-12)
    assert one.admitted.tolist() == others[0].admitted.tolist()[::-1] or len(pool) < 2


@given(case=cases(well_conditioned=True), share=st.floats(0, 1), block=st.integers(1, 4))
def test_a_held_complement_stays_one_and_gives_the_same(case, share, block):
    pool, limit = pool_of(case), int(share * case.span.shape[1])
    one = admit(whole(case), pool, 0.0, block, limit=limit)
    other = admit(whole(case, case.co_projector), pool, 0.0, block, limit=limit)
    assert torch.equal(one.admitted, other.admitted)
    assert torch.allclose(one.objective_path, other.objective_path, rtol=1e-8)
    assert one.projector.basis is not None
    assert other.projector.complement is not None
    assert one.projector.kept == other.projector.kept == case.basis.shape[1] + limit
    assert error(matrix(one.projector), matrix(other.projector)) < 1e-10
    complement = other.projector.complement
    assert error(complement.T @ complement, torch.eye(complement.shape[1]).double()) < 1e-10


def test_a_long_path_starts_again_from_a_new_inverse(monkeypatch):
    frame = torch.linalg.qr(gaussian(0, 150, 150)).Q
    problem = LeastSquares(gaussian(1, 150, 60), gaussian(2, 4, 60), None, 1e-3, Projector(frame[:, :20]))
    pool = Candidates(frame[:, 20:], torch.arange(130.0).double())
    assert len(pool) > 2 * admission.REFRESH
    paths = {}
    for every in (admission.REFRESH, 1, 1000):
        monkeypatch.setattr(admission, "REFRESH", every)
        found = admit(problem, pool, 0.0, block=7)
        paths[every] = found.objective_path
        anew = smallest(problem, found.projector)
        assert float(found.objective_path[-1]) == pytest.approx(anew, abs=1e-8 * float(paths[every][0]))
    assert torch.allclose(paths[1], paths[50], rtol=1e-7)
    assert torch.allclose(paths[1], paths[1000], rtol=1e-5)


def test_float32_problems_are_searched_in_float64():
    frame = torch.linalg.qr(gaussian(0, 9, 9)).Q
    keys, residual = gaussian(1, 9, 4).float(), gaussian(2, 3, 4).float()
    pool = Candidates(frame[:, 4:], torch.ones(5).double())
    small = LeastSquares(keys, residual, None, 0.1, Projector(frame[:, :4]))
    large = replace(small, keys=keys.double(), residual=residual.double())
    assert torch.equal(admit(small, pool, 0.0).objective_path, admit(large, pool, 0.0).objective_path)


# Property 10: what the search ignores.


@every_order
@given(case=cases(well_conditioned=True), share=st.floats(0, 1))
def test_damage_to_preserved_keys_is_known(order, case, share):
    problem, pool = whole(case), pool_of(case)
    found = admit(problem, pool, 0.0, order=order, limit=round(share * len(pool)))
    direct = (updated(problem, found.projector) @ case.preserved).square().sum()
    assert found.damage == pytest.approx(float(direct), rel=1e-6, abs=1e-12)
