"""Random problems are what their docstrings say, for every seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import UnknownNameError
from palimpsest.theory.random_problems import PROJECTORS, RIDGES, Draws

pytestmark = pytest.mark.usefixtures("one_thread")
seeds = st.integers(0, 2**31)


def test_a_seed_names_the_whole_series() -> None:
    one, other = Draws(3), Draws(3)
    assert torch.equal(one.normal(2, 3), other.normal(2, 3))
    assert [one.whole(1, 9), one.power(-1, 1)] == [other.whole(1, 9), other.power(-1, 1)]
    assert not torch.equal(one.normal(2, 3), Draws(4).normal(2, 3))


@given(seeds, st.integers(1, 5), st.integers(0, 4))
def test_an_edit_problem_has_a_projector_that_removes_exactly_its_preserved_keys(
    seed: int, new: int, past: int
) -> None:
    problem, preserved, earlier = Draws(seed).edit_problem(new, past)
    d_k, rank = len(preserved), preserved.shape[1]
    assert problem.keys.shape == (d_k, new)
    assert problem.residual.shape[1] == new
    assert earlier.shape == (d_k, past)
    assert problem.projector is not None
    assert problem.projector.kept == d_k - rank
    assert float(problem.projector.apply(preserved).norm()) < 1e-8 * float(preserved.norm())
    assert 10 ** RIDGES[0] <= problem.ridge <= 10 ** RIDGES[1]


@given(seeds, st.sampled_from(PROJECTORS))
def test_a_run_problem_has_the_kind_of_projector_it_was_asked_for(seed: int, kind: str) -> None:
    problem, batches, preserved = Draws(seed).run_problem(kind, 0.5)
    p, scale = problem.projector, float(problem.projector.norm())
    symmetric, idempotent = torch.allclose(p, p.T), torch.allclose(p @ p, p, atol=1e-6 * (1 + scale**2))
    assert symmetric == (kind not in ("oblique", "arbitrary"))
    assert idempotent == (kind not in ("semidefinite", "arbitrary"))
    assert float((p @ preserved).norm() < 1e-6) == (kind == "exact")
    if kind == "semidefinite":
        assert float(torch.linalg.eigvalsh(p).min()) > -1e-9
    assert problem.ridge == 0.5
    assert torch.allclose(problem.moment, preserved @ preserved.T)
    assert 2 <= len(batches) <= 6
    assert all(1 <= batch.keys.shape[1] <= 6 for batch in batches)


def test_residuals_of_batches_have_unit_variance() -> None:
    draws = Draws(1)
    weight = draws.normal(200, 30)
    (batch,) = draws.batches(weight, [500])
    assert float((batch.values - weight @ batch.keys).std()) == pytest.approx(1, rel=0.02)
    assert float(batch.keys.norm(dim=0).mean()) == pytest.approx(1, rel=0.05)


def test_an_unknown_kind_of_projector_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of projector 'orthogonal'; choose one of: "):
        Draws(1).run_problem("orthogonal")
