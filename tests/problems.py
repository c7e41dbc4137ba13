"""Random editing problems, and oracles that share no code with the package.

A hypothesis example fixes the structure (sizes, ranks, scale, ridge, which awkward columns occur);
the entries come from a seeded generator, so that a failing example shrinks to a small structure.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares, Solution

EPS = float(np.finfo(float).eps)
AWKWARD = ("repeated", "opposite", "zero", "past repeated")


@dataclass(frozen=True, repr=False)
class Case:
    """One problem: preserved keys K0, new keys K, past keys Kp, residual R, ridge, projector P."""

    preserved: Tensor  # K0 (d_k, m), of rank ``protected``
    keys: Tensor  # K (d_k, n)
    past: Tensor  # Kp (d_k, p)
    residual: Tensor  # R (d_v, n)
    ridge: float
    basis: Tensor  # orthonormal basis of the complement of span(K0), (d_k, r)
    span: Tensor  # orthonormal basis of span(K0), (d_k, d_k - r)

    @property
    def projector(self) -> Projector:
        """P, held by its basis."""
        return Projector(basis=self.basis)

    @property
    def co_projector(self) -> Projector:
        """The same P, held by its complement."""
        return Projector(complement=self.span)

    @property
    def matrix(self) -> Tensor:
        """P as a (d_k, d_k) matrix."""
        return self.basis @ self.basis.T

    def __repr__(self) -> str:
        sizes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in vars(self).items() if k != "ridge")
        return f"Case({sizes}, ridge {self.ridge:.3g}, ‖K‖ {float(self.keys.norm()):.3g})"

    def problem(self, projector: Projector | None = None, **changes: Any) -> LeastSquares:
        """AlphaEdit's problem: past keys preserved, updates inside range(P)."""
        fields = {
            "keys": self.keys,
            "residual": self.residual,
            "preserve": self.past @ self.past.T if self.past.shape[1] else None,
            "ridge": self.ridge,
            "projector": projector or self.projector,
        }
        return LeastSquares(**(fields | changes))


def gaussian(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 entries from their own generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@st.composite
def cases(
    draw: st.DrawFn,
    well_conditioned: bool = False,
    min_kept: int = 1,
    max_new: int = 28,
    awkward: tuple[str, ...] = AWKWARD,
) -> Case:
    """Shapes with N above and below d_k, any rank of K0, awkward columns, λ from 1e-6 to 1e3."""
    d_k = draw(st.integers(max(2, min_kept), 18))
    d_v, n = draw(st.integers(1, 5)), draw(st.integers(1, max_new))
    past, rank = draw(st.integers(0, 8)), draw(st.integers(0, d_k - min_kept))
    scale = 10 ** (draw(st.floats(-0.3, 0.3)) if well_conditioned else draw(st.floats(-1, 1)))
    ridge = 10 ** (draw(st.floats(-1, 2)) if well_conditioned else draw(st.floats(-6, 3)))
    seed = draw(st.integers(0, 2**20))
    chosen = draw(st.sets(st.sampled_from(awkward))) if awkward else set()
    frame = torch.linalg.qr(gaussian(seed, d_k, d_k)).Q
    span, basis = frame[:, :rank], frame[:, rank:]
    keys, kp = scale * gaussian(seed + 1, d_k, n), scale * gaussian(seed + 2, d_k, past)
    if "repeated" in chosen and n > 1:
        keys[:, -1] = keys[:, 0]
    if "opposite" in chosen and n > 2:
        keys[:, 1] = -keys[:, 0]
    if "zero" in chosen:
        keys[:, n // 2] = 0
    if "past repeated" in chosen and past:
        kp[:, 0] = -keys[:, 0]
    preserved = span @ gaussian(seed + 3, rank, rank + 3)
    return Case(preserved, keys, kp, gaussian(seed + 4, d_v, n), ridge, basis, span)


def stacked(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The problem in the coordinates of range(P) as one tall system ``A x ≈ b``."""
    d_v, r = case.residual.shape[0], case.basis.shape[1]
    ridge = case.ridge**0.5 * torch.eye(r, dtype=torch.float64)
    a = torch.cat([case.keys.T @ case.basis, case.past.T @ case.basis, ridge])
    b = torch.zeros(len(a), d_v, dtype=torch.float64)
    b[: case.keys.shape[1]] = case.residual.T
    return a.numpy(), b.numpy()


def oracle(case: Case) -> Tensor:
    """Δ by numpy's SVD least squares on the stacked system: no normal equations, no Cholesky."""
    a, b = stacked(case)
    x = np.linalg.lstsq(a, b, rcond=None)[0]
    return torch.from_numpy(x.T) @ case.basis.T


def tolerance(case: Case, found: Solution) -> float:
    """1e-8, plus 100 roundings times the condition number.

    That of the normal matrix on range(P), or the one reported where another matrix was factorised:
    with more keys than directions the dual's is the larger of the two.
    """
    a, _ = stacked(case)
    return 1e-8 + 100 * EPS * max(float(np.linalg.cond(a)) ** 2, found.condition)


def error(found: Tensor, wanted: Tensor, floor: float = 1e-6) -> float:
    """‖found − wanted‖ relative to ‖wanted‖, or to ``floor`` where that is smaller."""
    return float((found - wanted).norm()) / max(float(wanted.norm()), floor)


def natural_floor(case: Case) -> float:
    """No update is longer than ‖R‖/(2√λ); one a ten-thousandth of that is rounding in an oracle."""
    return 1e-4 * float(case.residual.norm()) / (2 * case.ridge**0.5)
