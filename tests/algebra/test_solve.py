"""The solver against theorems and against oracles that never form normal equations."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.solve import LeastSquares, Solution, objective, solve, solve_exact
from palimpsest.algebra.spectrum import rank
from palimpsest.errors import NonFiniteError, ShapeError, SingularProblemError
from tests.problems import EPS, Case, cases, error, gaussian, natural_floor, oracle, stacked, tolerance

pytestmark = pytest.mark.usefixtures("one_thread")

# Every way to reach the update, one line each; the properties below hold for all of them.
WAYS: dict[str, Callable[[Case], Solution]] = {
    "chosen by size": lambda case: solve(case.problem()),
    "primal, basis": lambda case: solve(case.problem(), path="primal"),
    "primal, complement": lambda case: solve(case.problem(case.co_projector), path="primal"),
    "dual, basis": lambda case: solve(case.problem(), path="dual"),
    "dual, complement": lambda case: solve(case.problem(case.co_projector), path="dual"),
    "past keys as columns": lambda case: solve(with_past_as_columns(case)),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


def with_past_as_columns(case: Case) -> LeastSquares:
    """Past keys penalised as further columns of K with residual zero instead of through M."""
    keys = torch.cat([case.keys, case.past], dim=1)
    zeros = torch.zeros(len(case.residual), case.past.shape[1], dtype=torch.float64)
    residual = torch.cat([case.residual, zeros], dim=1)
    return case.problem(keys=keys, residual=residual, preserve=None)


# Property 1: every path gives the minimiser.


@every_way
@given(case=cases())
def test_every_path_equals_the_stacked_least_squares_solution(way, case):
    found = way(case)
    assert error(found.delta, oracle(case), natural_floor(case)) < tolerance(case, found)


@given(case=cases())
def test_no_projector_is_the_identity(case):
    whole = Projector.identity(len(case.keys))
    without = solve(case.problem(projector=whole)).delta
    assert error(solve(LeastSquares(*fields(case))).delta, without) == 0


def fields(case: Case) -> tuple:
    problem = case.problem()
    return problem.keys, problem.residual, problem.preserve, problem.ridge


@given(case=cases(well_conditioned=True))
def test_half_precision_input_is_solved_in_float64(case):
    narrow = case.problem(keys=case.keys.float(), residual=case.residual.float())
    wide = case.problem(keys=case.keys.float().double(), residual=case.residual.float().double())
    assert solve(narrow).delta.dtype == torch.float64
    assert error(solve(narrow).delta, solve(wide).delta) < 1e-12


# The published forms, which are not symmetric, on problems where they are accurate.


@given(case=cases(well_conditioned=True))
def test_published_alphaedit_form(case):
    p, gram = case.matrix, case.keys @ case.keys.T + case.past @ case.past.T
    left = p @ gram + case.ridge * torch.eye(len(p), dtype=torch.float64)
    published = torch.linalg.solve(left, p @ case.keys @ case.residual.T).T
    assert error(solve(case.problem()).delta, published) < 1e-9


@given(case=cases(well_conditioned=True))
def test_published_memit_form(case):
    moment = second_moment(case)
    left = case.ridge * moment + case.keys @ case.keys.T
    published = case.residual @ torch.linalg.solve(left, case.keys).T
    problem = LeastSquares(case.keys, case.residual, case.ridge * moment)
    assert error(solve(problem, path="primal").delta, published) < 1e-9
    assert error(solve(problem, path="dual").delta, published) < 1e-9


@given(case=cases(well_conditioned=True, max_new=1, awkward=()))
def test_published_rome_form(case):
    moment = second_moment(case)
    u = torch.linalg.solve(moment, case.keys)
    published = case.residual @ u.T / (case.keys.T @ u)
    found = solve_exact(LeastSquares(case.keys, case.residual, moment))
    assert error(found.delta, published) < 1e-9


def second_moment(case: Case) -> Tensor:
    """A positive definite mean second moment of as many random keys as make it well conditioned."""
    d_k = len(case.keys)
    sample = gaussian(int(case.keys.shape[1]), d_k, 8 * d_k)
    return sample @ sample.T / (8 * d_k)


def test_memit_by_hand():
    # d_k = 2, one key e1, C0 = diag(1, 3), λ0 = 2, r = 6: Δ = r/(2·1 + 1) e1ᵀ = [2, 0].
    problem = LeastSquares(
        torch.tensor([[1.0], [0.0]]), torch.tensor([[6.0]]), 2 * torch.diag(torch.tensor([1.0, 3]))
    )
    assert solve(problem).delta.tolist() == [[2.0, 0.0]]
    assert solve(problem).fit == pytest.approx(2 / 3)


# Property 2: first-order optimality, and no feasible neighbour is better.


def plain_objective(case: Case, delta: Tensor) -> Tensor:
    """The objective written out in terms of the keys, for autograd."""
    fit = (delta @ case.keys - case.residual).square().sum()
    return fit + (delta @ case.past).square().sum() + case.ridge * delta.square().sum()


@every_way
@given(case=cases())
def test_projected_gradient_vanishes(way, case):
    found = way(case)
    delta = found.delta.clone().requires_grad_()
    start = torch.zeros_like(delta).requires_grad_()
    (gradient,) = torch.autograd.grad(plain_objective(case, delta), delta)
    (at_zero,) = torch.autograd.grad(plain_objective(case, start), start)
    assert (gradient @ case.matrix).norm() <= tolerance(case, found) * at_zero.norm() + 1e-20


@given(case=cases(), seed=st.integers(0, 999), step=st.floats(-6, 1))
def test_no_feasible_perturbation_lowers_the_objective(case, seed, step):
    problem, delta = case.problem(), solve(case.problem()).delta
    towards = gaussian(seed, *delta.shape) @ case.matrix
    best, other = objective(problem, delta), objective(problem, delta + 10**step * towards)
    assert other >= best * (1 - 1e-12)
    assert objective(problem, delta) == pytest.approx(float(plain_objective(case, delta)))


@given(case=cases(well_conditioned=True))
def test_an_infeasible_or_shortened_update_is_noticed(case):
    # Negative control for the two tests above: a 1 % shorter update is not optimal.
    problem, delta = case.problem(), solve(case.problem()).delta
    assume(delta.norm() > 1e-6)
    assert objective(problem, 0.99 * delta) > objective(problem, delta)


# Property 3: what the projector promises.


@every_way
@given(case=cases())
def test_update_ignores_protected_directions(way, case):
    delta = way(case).delta
    assert (delta @ case.span).norm() <= 1e-12 * delta.norm()
    assert (delta @ case.preserved).norm() <= 1e-12 * delta.norm() * (1 + case.preserved.norm())


@given(case=cases(min_kept=2), decay=st.floats(0.5, 3), kept=st.integers(0, 18))
def test_leak_through_a_threshold_is_bounded(case, decay, kept):
    d_k = len(case.keys)
    sizes = torch.arange(1, d_k + 1, dtype=torch.float64) ** -decay
    frame = torch.linalg.qr(gaussian(kept, d_k, d_k)).Q
    moment = (frame * sizes) @ frame.T
    projector = null_space(moment, rank(min(kept, d_k)))
    delta = solve(case.problem(projector, preserve=None)).delta
    largest_kept = sizes[d_k - projector.kept] if projector.kept else 0.0
    leak = float((delta @ moment * delta).sum())  # mean squared change on preserved keys
    assert leak <= float(largest_kept * delta.square().sum()) * (1 + 1e-9) + 1e-25


# Property 4: the residual identity, and the two factors that follow from it.


@given(case=cases())
def test_residual_identity(case):
    problem = with_past_as_columns(case)
    gram = problem.keys.T @ case.matrix @ problem.keys
    gram = gram + case.ridge * torch.eye(len(gram), dtype=torch.float64)
    wanted = -case.ridge * torch.linalg.solve(gram, problem.residual.T).T
    left = solve(problem).delta @ problem.keys - problem.residual
    assert error(left, wanted) < 1e-9 + 1e3 * EPS * float(torch.linalg.cond(gram))


@given(case=cases(awkward=("past repeated",)), weight=st.floats(0.1, 100))
def test_factor_with_any_number_of_past_keys(case, weight):
    k, r = case.keys[:, :1], case.residual[:, :1]
    shares = []
    for w in (weight, 2 * weight):
        past = case.matrix @ (w * case.past @ case.past.T) @ case.matrix
        metric = past + case.ridge * torch.eye(len(k), dtype=torch.float64)
        pk = case.matrix @ k
        wanted = 1 / (1 + float(pk.T @ torch.linalg.solve(metric, pk)))
        problem = case.problem(keys=k, residual=r, preserve=w * case.past @ case.past.T)
        shares.append(solve(problem).fit)
        slack = 1e-8 + 1e3 * EPS * float(torch.linalg.cond(metric))
        assert abs(shares[-1] - wanted) <= slack
        assert -slack <= shares[-1] <= 1 + slack
    assert shares[1] >= shares[0] - slack  # rises with the weight on the past


# Property 6: ridge MEMIT is AlphaEdit with a soft projector.


@given(case=cases(well_conditioned=True))
def test_soft_projector_reproduces_ridge_memit(case):
    moment, identity = second_moment(case), torch.eye(len(case.keys), dtype=torch.float64)
    soft = torch.linalg.inv(identity + moment / case.ridge)
    gram = case.keys @ case.keys.T
    right = case.residual @ case.keys.T @ soft
    with_soft = torch.linalg.solve((gram @ soft + case.ridge * identity).T, right.T).T
    memit = LeastSquares(case.keys, case.residual, moment, ridge=case.ridge)
    assert error(solve(memit).delta, with_soft) < 1e-9


# Property 7: the determinant identity, and why the printed argument for invertibility fails.


@given(case=cases(well_conditioned=True))
def test_determinant_identity(case):
    keys, p, ridge = case.keys, case.matrix, case.ridge
    (d_k, n), identity = keys.shape, torch.eye(64, dtype=torch.float64)
    large = torch.linalg.slogdet(keys @ keys.T @ p + ridge * identity[:d_k, :d_k])
    small = torch.linalg.slogdet(keys.T @ p @ keys + ridge * identity[:n, :n])
    wanted = (d_k - n) * np.log(ridge) + float(small.logabsdet)
    assert large.sign == small.sign == 1
    assert float(large.logabsdet) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(case=cases())
def test_eigenvalues_of_the_printed_product_are_not_negative(case):
    product = case.keys @ case.keys.T @ case.matrix
    eigenvalues = torch.linalg.eigvals(product).real
    assert eigenvalues.min() >= -1e-6 * (1e-12 + product.norm())


def test_symmetric_part_of_the_printed_product_is_indefinite():
    # k = e1 and P onto the direction at 60 degrees: lowest eigenvalue of the symmetric part −1/8.
    direction = torch.tensor([0.5, 0.75**0.5], dtype=torch.float64)
    product = torch.diag(torch.tensor([1.0, 0.0]).double()) @ torch.outer(direction, direction)
    lowest = torch.linalg.eigvalsh((product + product.T) / 2)[0]
    assert float(lowest) == pytest.approx(-1 / 8)
    assert torch.linalg.eigvals(product).real.min() >= -1e-15


# Property 8: the value of the objective at the update in closed form.


@given(case=cases())
def test_objective_at_the_update_in_closed_form(case):
    problem = with_past_as_columns(case)
    gram = problem.keys.T @ case.matrix @ problem.keys
    gram = gram + case.ridge * torch.eye(len(gram), dtype=torch.float64)
    value = case.ridge * (torch.linalg.solve(gram, problem.residual.T).T * problem.residual).sum()
    slack = 1e-8 + 100 * EPS * float(torch.linalg.cond(gram))
    assert objective(problem, solve(problem).delta) == pytest.approx(float(value), rel=slack)


# Property 20: the equality-constrained twin.


def exact_case(case: Case) -> LeastSquares:
    """As many keys as fit into range(P), a positive definite cost, and a small ridge."""
    fitting = case.keys[:, : case.basis.shape[1]]
    residual = case.residual[:, : case.basis.shape[1]]
    moment = second_moment(case)
    return case.problem(keys=fitting, residual=residual, preserve=moment, ridge=0.0)


@given(case=cases(awkward=()), co=st.booleans(), seed=st.integers(0, 99), step=st.floats(-4, 1))
def test_exact_constraint_at_least_cost(case, co, seed, step):
    problem = exact_case(case)
    problem = replace(problem, projector=case.co_projector if co else case.projector)
    found = solve_exact(problem)
    slack = 1e-8 + 100 * EPS * found.condition
    assert found.fit < slack
    assert (found.delta @ case.span).norm() <= 1e-10 * found.delta.norm()
    # A feasible change leaves the constraint alone: its rows lie in range(P), orthogonal to K.
    inside = case.basis.T @ problem.keys
    free = torch.linalg.svd(inside).U[:, inside.shape[1] :]
    change = gaussian(seed, len(found.delta), free.shape[1]) @ free.T @ case.basis.T
    assert (change @ problem.keys).norm() <= 1e-10 * (1 + change.norm()) * problem.keys.norm()
    best, other = cost(problem, found.delta), cost(problem, found.delta + 10**step * change)
    assert other >= best * (1 - slack)


def cost(problem: LeastSquares, delta: Tensor) -> float:
    return float((delta @ problem.preserve * delta).sum())


@given(case=cases(awkward=(), max_new=1))
def test_cost_of_one_exact_edit(case):
    moment = second_moment(case)
    problem = LeastSquares(case.keys, case.residual, moment)
    wanted = case.residual.square().sum() / (case.keys.T @ torch.linalg.solve(moment, case.keys))
    assert cost(problem, solve_exact(problem).delta) == pytest.approx(float(wanted), rel=1e-9)


@given(case=cases(awkward=(), well_conditioned=True))
def test_penalised_problem_tends_to_the_exact_one(case):
    problem = exact_case(case)
    assume(solve_exact(problem).condition < 1e4)
    light = replace(problem, preserve=1e-9 * problem.preserve)
    assert error(solve(light, path="dual").delta, solve_exact(problem).delta) < 1e-4


# Diagnostics.


@pytest.mark.parametrize("way", list(WAYS.values())[:-1], ids=list(WAYS)[:-1])
@given(case=cases())
def test_fit_is_the_share_of_the_residual_left(way, case):
    found = way(case)
    left = found.delta @ case.keys - case.residual
    assert found.fit == pytest.approx(float(left.norm() / case.residual.norm()))


def exact_condition(case: Case, path: str) -> float:
    a, _ = stacked(case)
    if path == "primal":
        return float(np.linalg.cond(a)) ** 2
    inside, n = case.basis.T @ case.keys, case.keys.shape[1]
    past = case.basis.T @ case.past
    metric = past @ past.T + case.ridge * torch.eye(len(past), dtype=torch.float64)
    gram = inside.T @ torch.linalg.solve(metric, inside) + torch.eye(n, dtype=torch.float64)
    outer = float(torch.linalg.cond(metric)) if case.past.shape[1] else 1.0
    return max(float(torch.linalg.cond(gram)), outer)


@pytest.mark.parametrize("path", ["primal", "dual"])
@pytest.mark.parametrize("form", ["basis", "complement"])
@given(case=cases())
def test_condition_estimate_is_a_close_lower_bound(path, form, case):
    projector = case.projector if form == "basis" else case.co_projector
    found, wanted = solve(case.problem(projector), path=path), exact_condition(case, path)
    assert wanted / 3 <= found.condition <= 1.01 * wanted + 1e-6


def test_condition_sees_a_direction_that_one_fixed_start_misses():
    problem = LeastSquares(torch.tensor([[2.0], [1.0]]), torch.ones(1, 1), None, ridge=1e-3)
    assert solve(problem, path="primal").condition == pytest.approx(5.001 / 1e-3)


def test_protected_directions_do_not_enter_the_condition():
    keys, frame = gaussian(0, 6, 20), torch.linalg.qr(gaussian(1, 6, 6)).Q
    inside = keys.T @ frame[:, 1:]
    problem = LeastSquares(keys, gaussian(2, 3, 20), None, 1e-14, Projector(complement=frame[:, :1]))
    assert solve(problem).condition == pytest.approx(float(np.linalg.cond(inside)) ** 2, rel=0.1)


# Edges and refusals.


@every_way
@given(case=cases())
def test_zero_residual_gives_zero_edit(way, case):
    found = way(replace(case, residual=torch.zeros_like(case.residual)))
    assert not found.delta.any()
    assert found.fit == 0


@pytest.mark.parametrize("finish", [solve, solve_exact])
def test_no_facts_give_zero_edit(finish):
    empty = LeastSquares(torch.ones(4, 0), torch.ones(2, 0), torch.eye(4))
    assert finish(empty).delta.tolist() == [[0.0] * 4] * 2


def test_nothing_kept_gives_zero_edit():
    none = Projector(basis=torch.zeros(4, 0, dtype=torch.float64))
    found = solve(LeastSquares(torch.ones(4, 1), torch.ones(2, 1), None, 1.0, none))
    assert not found.delta.any()
    assert found.fit == 1


ONE, TWO = torch.ones(4, 1), torch.eye(4)[:, :2]
PROTECTING = Projector(complement=torch.eye(4, dtype=torch.float64)[:, :2])
SINGULAR = {
    "no ridge, nothing preserved": (solve, LeastSquares(TWO, torch.ones(1, 2)), "nothing preserved"),
    "preserve without full rank": (
        solve,
        LeastSquares(ONE, torch.ones(1, 1), torch.diag(torch.tensor([1.0, 1, 0, 0]))),
        "pivot|condition number",
    ),
    "repeated keys, exact": (
        solve_exact,
        LeastSquares(torch.ones(4, 2), torch.ones(1, 2), torch.eye(4)),
        "pivot|condition number",
    ),
    "more keys than directions, exact": (
        solve_exact,
        LeastSquares(gaussian(0, 4, 5), torch.ones(1, 5), torch.eye(4)),
        "pivot|condition number",
    ),
    "zero key, exact": (
        solve_exact,
        LeastSquares(torch.zeros(4, 1), torch.ones(1, 1), torch.eye(4)),
        "no part in range",
    ),
    "protected key, exact": (
        solve_exact,
        LeastSquares(TWO, torch.ones(1, 2), torch.eye(4), projector=PROTECTING),
        "no part in range",
    ),
    "exact without a cost": (solve_exact, LeastSquares(ONE, torch.ones(1, 1)), "nothing preserved"),
}


@pytest.mark.parametrize(("finish", "problem", "why"), SINGULAR.values(), ids=list(SINGULAR))
def test_singular_problems_say_what_to_raise(finish, problem, why):
    with pytest.raises(SingularProblemError, match=f"(?s)({why}).*Raise ridge above 0.*preserve"):
        finish(problem)


def test_singular_message_names_the_numbers():
    with pytest.raises(SingularProblemError, match="2 keys on 4 free directions, ridge 0, no pres"):
        solve(LeastSquares(TWO, torch.ones(1, 2)))


def test_overflow_is_refused():
    huge = torch.full((2, 1), 1e200, dtype=torch.float64)
    with pytest.raises(SingularProblemError, match=r"pivot|number nan"):
        solve(LeastSquares(huge, huge[:1], None, 1.0))


BAD_SHAPES = {
    r"keys must have shape \(d_k, n\), got \(4,\)": {"keys": torch.ones(4)},
    r"residual must have shape \(d_v, 1\), got \(2, 3\)": {"residual": torch.ones(2, 3)},
    r"residual must have shape \(d_v, 1\), got \(\)": {"residual": torch.tensor(1.0)},
    r"preserve must have shape \(4, 4\), got \(4, 3\)": {"preserve": torch.ones(4, 3)},
    "projector has width 5, the keys have 4": {"projector": Projector.identity(5)},
    "ridge must be 0 or more and finite, got -1": {"ridge": -1.0},
    "ridge must be 0 or more and finite, got nan": {"ridge": float("nan")},
    "ridge must be 0 or more and finite, got inf": {"ridge": float("inf")},
}


@pytest.mark.parametrize(("message", "change"), BAD_SHAPES.items(), ids=list(BAD_SHAPES))
def test_wrong_input_is_named(message, change, unchecked):
    good = {"keys": torch.ones(4, 1), "residual": torch.ones(2, 1), "ridge": 1.0}
    assert solve(LeastSquares(**good)).delta.shape == (2, 4)
    with pytest.raises(ShapeError, match=message):
        LeastSquares(**good | change)


@pytest.mark.parametrize("name", ["keys", "residual", "preserve"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_input_is_refused(name, bad):
    fields = {"keys": ONE.clone(), "residual": torch.ones(2, 1), "preserve": torch.eye(4)}
    fields[name][0, 0] = bad
    with pytest.raises(NonFiniteError, match=f"{name} holds NaN or infinity"):
        LeastSquares(**fields)


@pytest.mark.slow  # `make check` does without these checks
def test_shape_annotations_are_checked_in_tests():
    # The import hook of conftest.py is live: an integer matrix is no Float tensor.
    with pytest.raises(TypeCheckError, match="keys"):
        LeastSquares(torch.ones(4, 1, dtype=torch.int64), torch.ones(2, 1))
