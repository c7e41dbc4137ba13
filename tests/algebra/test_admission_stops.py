"""What stops the search for a relaxed projector, what it may search among, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra import admission
from palimpsest.algebra.admission import ORDERS, Candidates, admit, candidates
from palimpsest.algebra.conflict import conflict_weights
from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.solve import LeastSquares, solve, with_past
from palimpsest.algebra.spectrum import eigendirections, rank, relative
from palimpsest.errors import NonFiniteError, ShapeError, SingularProblemError, UnknownNameError
from tests.algebra.admissions import every_order, matrix, pool_of, smallest, updated, whole, widened
from tests.problems import Case, cases, error

pytestmark = pytest.mark.usefixtures("one_thread")


# What stops the search.


@st.composite
def without_conflict(draw: st.DrawFn) -> tuple[Case, Tensor]:
    """Lemma 4's conditions: K1 ⟂ K0 and K1 ⟂ Kp, while Kp may lie anywhere else."""
    case = draw(cases(well_conditioned=True, min_kept=4, awkward=("repeated",)))
    new, rest = case.basis[:, :2], torch.cat([case.basis[:, 2:], case.span], 1)
    keys = new @ new.T @ case.keys
    return replace(case, keys=keys, past=rest @ rest.T @ case.past), case.keys


@every_order
@given(given_=without_conflict(), power=st.floats(-10, 0), absolute=st.booleans(), block=st.integers(1, 10))
def test_without_conflict_nothing_is_admitted_and_alphaedit_is_left(order, given_, power, absolute, block):
    case, _ = given_
    weighted = case.past * conflict_weights(case.past, case.keys).sqrt()
    problem = with_past(case.problem(preserve=None), weighted)
    found = admit(problem, pool_of(case), 10**power, block, order, relative=not absolute)
    assert found.projector is problem.projector
    assert (len(found.admitted), found.damage) == (0, 0)
    assert not len(found.gains) or found.gains.max() < 1e-20 * found.objective_path[0]
    assert error(updated(problem, found.projector), solve(case.problem()).delta) < 1e-8


@given(given_=without_conflict())
def test_with_conflict_directions_are_admitted(given_):
    # Negative control: the same problem with the keys' conflicting parts put back.
    case, keys = given_
    assume(float((case.span.T @ keys).norm()) > 0.1)
    problem = replace(case, keys=keys).problem(preserve=None)
    found = admit(problem, pool_of(case), 0.0)
    assert len(found.admitted) == len(pool_of(case))
    assert found.gains.max() > 1e-8 * found.objective_path[0]


@given(case=cases(well_conditioned=True), share=st.floats(0.0, 1.0), block=st.integers(1, 4))
@pytest.mark.parametrize("relative", [True, False])
def test_the_search_stops_at_the_first_block_below_the_threshold(relative, case, share, block):
    problem, pool = whole(case), pool_of(case)
    assume(len(pool) > 0)
    all_ = admit(problem, pool, 0.0, block)
    sizes = torch.tensor([min(block, len(pool) - start) for start in range(0, len(pool), block)])
    drops = all_.gains / (all_.objective_path[:-1] * sizes) if relative else all_.gains
    threshold = float(drops[int(share * (len(drops) - 1))]) * 1.001 + 1e-12
    found = admit(problem, pool, threshold, block, relative=relative)
    blocks = int((drops >= threshold).long().cumprod(0).sum())
    assert len(found.admitted) == int(sizes[:blocks].sum())
    assert len(found.objective_path) == blocks + 1
    assert len(found.gains) == blocks + (blocks < len(drops))
    assert torch.allclose(found.gains, all_.gains[: len(found.gains)], rtol=1e-9)


def axes(first: float = 1.0, second: float = 1.0) -> tuple[LeastSquares, Candidates]:
    """Two unit keys that P removes, with residuals 1 and 1, λ = 1: J = 2, each direction lowers it by ½."""
    eye = torch.eye(3, dtype=torch.float64)
    residual = torch.diag(torch.tensor([first, second])).double()
    problem = LeastSquares(eye[:, :2], residual, None, 1.0, Projector(complement=eye[:, :2]))
    return problem, Candidates(eye[:, :2], torch.tensor([4.0, 9.0]).double())


def test_thresholds_by_hand():
    problem, pool = axes()
    assert admit(problem, pool, 0.0).objective_path.tolist() == pytest.approx([2, 1.5, 1])
    admitted = lambda *args, **options: len(admit(problem, pool, *args, **options).admitted)  # noqa: E731
    # Relative: ½ of 2 is a quarter, then ½ of 1.5 is a third; a block of two loses half, a quarter each.
    assert [admitted(t) for t in (0.24, 0.26)] == [2, 0]
    assert [admitted(t, block=2) for t in (0.24, 0.26)] == [2, 0]
    # A share of J before each block: with a second residual of 0.9, 0.5/1.81 = 0.28, then 0.405/1.31 = 0.31.
    other, _ = axes(1.0, 0.9)
    assert len(admit(other, pool, 0.25).admitted) == 2  # 0.405 is only 0.22 of the first J
    # Absolute: ½ for one, 1 for a block of two, whatever its size.
    assert [admitted(t, relative=False) for t in (0.49, 0.51)] == [2, 0]
    assert [admitted(t, block=2, relative=False) for t in (0.51, 0.99, 1.01)] == [2, 2, 0]


def test_damage_by_hand():
    # Δ = ½ on each admitted axis, σ = 4 and 9: 1, then 1 + 9/4.
    problem, pool = axes()
    assert admit(problem, pool, 0.0, limit=1).damage == pytest.approx(1)
    assert admit(problem, pool, 0.0).damage == pytest.approx(3.25)


def test_orders_by_hand():
    problem, pool = axes(1.0, 3.0)
    first = {order: int(admit(problem, pool, 0.0, order=order).admitted[0]) for order in ORDERS}
    assert first == {"ascending": 0, "descending": 1, "gain": 1}


@given(case=cases(well_conditioned=True, awkward=()))
def test_order_by_gain_takes_the_largest_drop_of_all_that_are_left(case):
    problem, pool = whole(case), pool_of(case)
    found = admit(problem, pool, 0.0, order="gain")
    for step, chosen in enumerate(found.admitted.tolist()):
        before, left = found.admitted[:step], set(range(len(pool))) - set(found.admitted[:step].tolist())
        values = {i: smallest(problem, widened(case, pool, torch.tensor([*before, i]))) for i in left}
        assert values[chosen] <= min(values.values()) * (1 + 1e-9)


@every_order
@given(case=cases(well_conditioned=True), block=st.integers(1, 5), data=st.data())
def test_a_limit_is_kept_and_changes_nothing_else(order, case, block, data):
    problem, pool = whole(case), pool_of(case)
    limit = data.draw(st.integers(0, len(pool) + 3))
    found = admit(problem, pool, 0.0, block, order, limit=limit)
    assert len(found.admitted) == min(limit, len(pool))
    full = admit(problem, pool, 0.0, block, order)
    whole_blocks = limit // block * block
    assert torch.equal(found.admitted[:whole_blocks], full.admitted[:whole_blocks])


@every_order
@given(case=cases(), threshold=st.sampled_from([1e6, float("inf")]), absolute=st.booleans())
def test_a_huge_threshold_admits_nothing(order, case, threshold, absolute):
    problem = whole(case)
    threshold = threshold * float(problem.residual.square().sum()) + 1
    found = admit(problem, pool_of(case), threshold, order=order, relative=not absolute)
    assert found.projector is problem.projector
    assert len(found.admitted) == 0
    assert len(found.objective_path) == 1


def test_nothing_to_gain_or_to_admit_leaves_the_projector():
    problem, pool = axes(0.0, 0.0)
    for share in (True, False):
        found = admit(problem, pool, 1e-300, relative=share)
        assert (found.projector is problem.projector, found.gains.tolist()) == (True, [0])
    assert len(admit(problem, pool, 0.0).admitted) == 2
    none = Candidates(torch.zeros(3, 0).double(), torch.zeros(0).double())
    assert admit(problem, none, 0.0).projector is problem.projector
    assert admit(replace(problem, projector=None), none, 0.0).projector.kept == 3


# Candidates.


@given(case=cases(min_kept=2))
def test_candidates_are_the_directions_that_null_space_protects(case):
    assume(case.span.shape[1] > 0)
    c0 = case.preserved @ case.preserved.T
    found, held = eigendirections(c0), null_space(c0, rank(case.basis.shape[1]))
    pool = candidates(found, held)
    assert torch.equal(pool.vectors, candidates(c0, held).vectors)
    assert len(pool) == held.dim - held.kept
    assert torch.equal(pool.eigenvalues, held.spectrum[: len(pool)])
    assert error(pool.vectors @ pool.vectors.T, torch.eye(held.dim).double() - matrix(held)) < 1e-10
    all_ = admit(whole(case, held), pool, 0.0).projector
    assert (all_.kept, all_.spectrum, all_.rule) == (held.dim, None, None)
    assert error(matrix(all_), torch.eye(held.dim).double()) < 1e-10


def test_a_decomposition_at_hand_is_not_made_again(monkeypatch):
    c0 = torch.diag(torch.tensor([3.0, 2.0, 0.0])).double()
    found, held = eigendirections(c0), null_space(c0, relative(0.1))
    monkeypatch.setattr(admission, "eigendirections", None)
    assert candidates(found, held).eigenvalues.tolist() == [3, 2]


@given(case=cases(well_conditioned=True, min_kept=2))
def test_the_published_pool_overlaps_a_thresholded_projector_and_is_refused(case):
    # Every eigenvector with σ > 0, although P keeps the weakest of them: counted twice, P is none any more.
    assume(case.span.shape[1] > 1)
    spectrum, vectors = eigendirections(case.preserved @ case.preserved.T)
    held = null_space(case.preserved @ case.preserved.T, rank(case.basis.shape[1] + 1))
    positive = case.span.shape[1]
    pool = Candidates(vectors[:, :positive], spectrum[:positive])
    doubled = matrix(held) + pool.vectors @ pool.vectors.T
    assert float(torch.linalg.eigvalsh(doubled)[-1]) == pytest.approx(2)
    with pytest.raises(ShapeError, match=r"lies inside range\(P\) \(length 1\) and would count twice"):
        admit(whole(case, held), pool, 0.0)


# Every error.

PROBLEM, POOL = axes()
EYE = torch.eye(3, dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)
ERRORS = {
    "preserve": (ShapeError, "with preserve; give past keys, times the root",
                 lambda: admit(replace(PROBLEM, preserve=EYE), POOL, 0.0)),
    "no ridge": (SingularProblemError, "needs a ridge above 0, got 0; raise it",
                 lambda: admit(replace(PROBLEM, ridge=0.0), POOL, 0.0)),
    "overlap": (ShapeError, r"candidate 1 lies inside range\(P\) \(length 1\) and would count twice",
                lambda: admit(PROBLEM, Candidates(EYE[:, 1:], ONES), 0.0)),
    "overlap with no projector": (ShapeError, "candidate 0 lies inside range",
                                  lambda: admit(replace(PROBLEM, projector=None), POOL, 0.0)),
    "not of length 1": (ShapeError, r"not orthonormal \(their products are off by 3.0e\+00\)",
                        lambda: admit(PROBLEM, Candidates(2 * EYE[:, :2], ONES), 0.0)),
    "repeated": (ShapeError, "not orthonormal",
                 lambda: admit(PROBLEM, Candidates(EYE[:, [0, 0]], ONES), 0.0)),
    "width": (ShapeError, "candidates have width 2, the keys have 3",
              lambda: admit(PROBLEM, Candidates(EYE[:2, :2], ONES), 0.0)),
    "negative threshold": (ShapeError, "threshold must be 0 or more, got -1.0; 0 admits every",
                           lambda: admit(PROBLEM, POOL, -1.0)),
    "threshold not a number": (ShapeError, "threshold must be 0 or more, got nan",
                               lambda: admit(PROBLEM, POOL, float("nan"))),
    "block": (ShapeError, "block must be 1 or more, got 0", lambda: admit(PROBLEM, POOL, 0.0, block=0)),
    "limit": (ShapeError, "limit must be 0 or more, got -1; None sets no limit",
              lambda: admit(PROBLEM, POOL, 0.0, limit=-1)),
    "order": (UnknownNameError, "unknown order 'random'; choose one of: ascending, descending, gain",
              lambda: admit(PROBLEM, POOL, 0.0, order="random")),
    "eigenvalues": (ShapeError, r"need vectors \(d_k, m\) and eigenvalues \(m,\), got \(3, 3\) and \(2,\)",
                    lambda: Candidates(EYE, ONES)),
    "negative eigenvalue": (ShapeError, "negative eigenvalue -1.0e.00; clamp it at 0",
                            lambda: Candidates(EYE[:, :2], -ONES)),
    "not finite": (NonFiniteError, "candidates hold NaN or infinity; take them from eigendirections",
                   lambda: Candidates(EYE[:, :2] / 0, ONES)),
    "another moment": (ShapeError, "second moment has width 2, the projector 3",
                       lambda: candidates(EYE[:2, :2], PROBLEM.projector)),
    "no moment": (NonFiniteError, "collect it again", lambda: candidates(EYE / 0, PROBLEM.projector)),
    "relaxed spectrum": (ShapeError, "has no spectrum",
                         lambda: admit(PROBLEM, POOL, 0.0).projector.protected_energy),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "call"), ERRORS.values(), ids=list(ERRORS))
def test_wrong_input_is_named(kind, message, call, unchecked):
    with pytest.raises(kind, match=message):
        call()
