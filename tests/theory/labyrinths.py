"""Random runs of batches for the tests of the Labyrinth's propositions, and the oracle they are held to."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.theory import labyrinth as eq
from palimpsest.theory.labyrinth import FactBatch, RunProblem
from tests.problems import EPS, gaussian

KINDS = ("identity", "exact", "thresholded", "soft", "psd", "oblique", "arbitrary")
SYMMETRIC = ("identity", "exact", "thresholded")
"""Orthogonal projectors."""
POSITIVE = (*SYMMETRIC, "soft", "psd")
SEEDS = st.integers(0, 2**20)


@dataclass(frozen=True, repr=False)
class Run:
    """A problem, its batches and its preserved facts."""

    problem: RunProblem
    batches: list[FactBatch]
    preserved: FactBatch
    kind: str

    def __repr__(self) -> str:
        sizes = [batch.keys.shape[1] for batch in self.batches]
        shape = tuple(self.problem.weight.shape)
        return f"Run({self.kind}, W {shape}, batches {sizes}, ridge {self.problem.ridge:.3g})"


def eye(d: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)


def projector(kind: str, preserved: Tensor, ridge: float, seed: int) -> Tensor:
    """P of each kind; those that look at the preserved keys remove or damp what they span."""
    d, moment = len(preserved), preserved @ preserved.T
    values, vectors = torch.linalg.eigh(moment)
    if kind == "identity":
        return eye(d)
    if kind == "exact":
        kept = vectors[:, values <= 1e-9 * max(float(values[-1]), 1e-9)]
        return kept @ kept.T
    if kind == "thresholded":
        kept = vectors[:, : (d + 1) // 2]
        return kept @ kept.T
    if kind == "soft":
        return torch.linalg.inv(eye(d) + moment / max(ridge, 1e-3))
    mixed = gaussian(seed, d, d)
    if kind == "psd":
        return mixed @ mixed.T / d
    if kind == "oblique":  # P² = P but P ≠ Pᵀ
        left, right = (
            mixed[:, : (d + 1) // 2],
            mixed[:, : (d + 1) // 2] + 0.5 * gaussian(seed + 1, d, (d + 1) // 2),
        )
        return left @ torch.linalg.solve(right.T @ left, right.T)
    return mixed


@st.composite
def runs(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = KINDS,
    ridge: tuple[float, float] = (-6, 3),
    steps: tuple[int, int] = (1, 5),
    awkward: bool = True,
    scale: tuple[float, float] = (-1, 1),
) -> Run:
    """Shapes with N above and below d_k, any rank of K0, repeated and zero keys, W₀K0 = V0."""
    d_k, d_v, kind = draw(st.integers(2, 10)), draw(st.integers(1, 4)), draw(st.sampled_from(kinds))
    rank, seed = draw(st.integers(0, d_k - 1)), draw(SEEDS)
    lam, size = 10 ** draw(st.floats(*ridge)), 10 ** draw(st.floats(*scale))
    sizes = draw(st.lists(st.integers(1, 6), min_size=steps[0], max_size=steps[1]))
    keys = size * gaussian(seed, d_k, sum(sizes))
    if awkward and draw(st.booleans()):
        keys[:, -1] = -keys[:, 0]
    if awkward and draw(st.booleans()):
        keys[:, len(keys.T) // 2] = 0
    preserved = gaussian(seed + 1, d_k, rank) @ gaussian(seed + 2, rank, rank + 2)
    weight = gaussian(seed + 3, d_v, d_k)
    values = weight @ keys + gaussian(seed + 4, d_v, sum(sizes))
    batches = [FactBatch(*pair) for pair in zip(keys.split(sizes, 1), values.split(sizes, 1), strict=True)]
    p = projector(kind, preserved, lam, seed + 5)
    problem = RunProblem(weight, preserved @ preserved.T, p, lam)
    return Run(problem, batches, FactBatch(preserved, weight @ preserved), kind)


def solvable(run: Run, limit: float = 1e10) -> float:
    """Allowed relative error; discards what is singular, as the proposition's corrected form does."""
    worst = max(eq.conditions(run.problem, run.batches))
    assume(worst < limit)
    return 1e-8 + 100 * EPS * worst


def longest(totals: list[Tensor]) -> float:
    """Rounding grows with the largest total on the way."""
    return max(1e-9, *(float(total.norm()) for total in totals))


def references(run: Run) -> list[Tensor]:
    return [eq.one_time(run.problem, run.batches[: t + 1]) for t in range(len(run.batches))]


def right_divide(left: Tensor, system: Tensor) -> Tensor:
    return torch.linalg.solve(system.T, left.T).T


def all_facts(run: Run) -> FactBatch:
    return eq.joined([run.preserved, *run.batches])


def stacked_least_squares(run: Run) -> Tensor:
    """D = X√P for the X that minimises ‖X√PK − R'‖² + ‖X√PK0‖² + λ‖X‖², by SVD; no normal equations."""
    facts, p = eq.joined(run.batches), run.problem.projector
    values, vectors = torch.linalg.eigh((p + p.T) / 2)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    ridge = run.problem.ridge**0.5 * eye(len(p))
    a = torch.cat([(root @ facts.keys).T, (root @ run.preserved.keys).T, ridge])
    b = torch.zeros(len(a), len(run.problem.weight)).double()
    b[: facts.keys.shape[1]] = (facts.values - run.problem.weight @ facts.keys).T
    found = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
    return torch.from_numpy(found).T @ root
