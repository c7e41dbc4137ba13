"""Smoothed targets of AlphaEdit+ are a scan over one scalar (claim P07)."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.algebra.smoothing import hard_part, scale_at, scales, scan, smoothed_targets
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.errors import ShapeError
from palimpsest.theory import alphaedit_plus as theory
from tests.problems import Case, cases, error, gaussian


@given(case=cases(well_conditioned=True), steps=st.integers(1, 12), data=st.data())
def test_every_smoothed_update_is_two_updates_and_a_scalar(case: Case, steps: int, data: Any) -> None:
    step, present = data.draw(st.integers(0, steps)), gaussian(5, *case.residual.shape)
    threshold = 0.999 * float(case.residual.norm(dim=0).median())
    targets = smoothed_targets(present + case.residual, present, threshold, step, steps)
    direct = solve(case.problem(residual=targets - present)).delta
    found = scan(case.problem(), hard_part(case.residual, threshold))
    assert error(found.at(scale_at(step, steps)), direct) < 1e-8
    plain = solve(case.problem()).delta
    assert error(found.at(scale_at(steps, steps)), plain) < 1e-8  # t = T is the unsmoothed edit


@given(case=cases(awkward=()), steps=st.integers(1, 9))
def test_a_hard_key_alone_never_gets_below_the_unsmoothed_residual(case: Case, steps: int) -> None:
    k, r = case.keys[:, :1], case.residual[:, :1]
    found = scan(LeastSquares(k, r, None, case.ridge, case.projector), r)
    assert not found.easy.any()
    energy = float(theory.projected_energy(k, case.projector))
    for step in range(steps + 1):
        scale = scale_at(step, steps)
        left = float((found.at(scale) @ k - r).norm() / r.norm())
        wanted = 1 - scale * energy / (case.ridge + energy)
        assert left == pytest.approx(wanted, abs=1e-6)
        assert left >= theory.residual_factor(energy, case.ridge) - 1e-6


def test_hard_columns_and_scales_by_hand() -> None:
    residual = torch.tensor([[3.0, 0.5]])
    assert hard_part(residual, 1.0).tolist() == [[3.0, 0.0]]
    assert scales(hard_part(residual, 1.0), 2) == [0.5, 0.75, 1.0]
    assert scales(hard_part(residual, 5.0), 2) == [1.0]


@pytest.mark.parametrize(("step", "steps"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_schedules_are_refused(step: int, steps: int) -> None:
    with pytest.raises(ShapeError, match=f"T ≥ 1 steps and t from 0 to T, got t = {step}"):
        scale_at(step, steps)
