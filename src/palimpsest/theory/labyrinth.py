"""Propositions of the Labyrinth paper as functions, each with its equation and whether it is right.

All tensors are float64 and every matrix is explicit, as in the paper; nothing here is meant for a model.
W is (d_v, d_k), keys are columns (d_k, n), values (d_v, n). Batch t holds K_t and V_t. Over a run,

    R'_t = V_t − W₀K_t        R_t = V_t − W_{t−1}K_t        D_t = W_t − W₀ = Δ_1 + … + Δ_t
    S_t  = CP + Σ_{τ≤t} K_τK_τᵀP + λI        C = K0K0ᵀ

P is any square matrix that multiplies an update from the right. One-time means one problem with all facts so
far, anchored at W₀; sequential means one problem per batch. Nearly everything follows from one line:

    D_t S_t = D_{t−1}S_{t−1} + D_{t−1}K_tK_tᵀP + R_tK_tᵀP = D_{t−1}S_{t−1} + R'_tK_tᵀP

"As printed" and "corrected" refer to the Labyrinth paper; a function of either kind says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.solve import CONDITION_LIMIT
from palimpsest.errors import ShapeError, SingularProblemError

Update = Float[Tensor, "d_v d_k"]
Square = Float[Tensor, "d_k d_k"]
Post = Callable[[Tensor], Tensor]
Penalty = Callable[[Tensor], Tensor]
Inverse = Literal["exact", "printed", "symmetrised"]
"""S⁻¹; the pseudo-inverse of S as printed; or that of PᵀS, which is symmetric for a symmetric projector."""
Correction = Literal["overwritten", "summed", "none"]

PSEUDO = 1e-11
"""Singular values below this share of the largest count as zero in a pseudo-inverse."""


@dataclass(frozen=True)
class FactBatch:
    """Facts of one step: K_t (d_k, n) and V_t (d_v, n)."""

    keys: Float[Tensor, "d_k n"]
    values: Float[Tensor, "d_v n"]


@dataclass(frozen=True)
class RunProblem:
    """Quantities that all steps of a run share.

    Args:
        weight: W₀ (d_v, d_k), which stores the preserved facts exactly, W₀K0 = V0.
        moment: C = K0K0ᵀ (d_k, d_k).
        projector: P (d_k, d_k), any square matrix.
        ridge: λ ≥ 0.

    Raises:
        ShapeError: if λ is negative.
    """

    weight: Update
    moment: Square
    projector: Square
    ridge: float

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise ShapeError(f"ridge must be 0 or more, got {self.ridge}")


def joined(batches: Sequence[FactBatch]) -> FactBatch:
    """All facts of a run as one batch.

    Raises:
        ShapeError: if there is no batch.
    """
    if not batches:
        raise ShapeError("a run needs at least one batch, got none; give an empty batch of known width")
    keys, values = ([getattr(b, name) for b in batches] for name in ("keys", "values"))
    return FactBatch(torch.cat(keys, 1), torch.cat(values, 1))


def system(problem: RunProblem, keys: Float[Tensor, "d_k n"]) -> Square:
    """S = CP + KKᵀP + λI, the bracket of Prop. 3.2, as printed."""
    return (problem.moment + keys @ keys.T) @ problem.projector + problem.ridge * torch.eye(
        len(problem.moment)
    ).double()


def conditions(problem: RunProblem, batches: Sequence[FactBatch]) -> list[float]:
    """Condition number of S_t after each batch."""
    reached = (joined(batches[: t + 1]).keys for t in range(len(batches)))
    return [float(torch.linalg.cond(system(problem, keys))) for keys in reached]


# Lemma 3.1 and Proposition 3.2: one-time and sequential editing.


def one_time(problem: RunProblem, batches: Sequence[FactBatch], inverse: Inverse = "exact") -> Update:
    """Δ_total = Σ R'_τK_τᵀP (CP + ΣK_τK_τᵀP + λI)⁻¹. Prop. 3.2, as printed; Lemma 3.1 for C = 0, λ = 1.

    Raises:
        SingularProblemError: if the system is singular and ``inverse`` is ``exact``.
    """
    facts = joined(batches)
    right = (facts.values - problem.weight @ facts.keys) @ facts.keys.T @ problem.projector
    return _apply_inverse(right, problem, facts.keys, inverse)


def sequential(
    problem: RunProblem | Sequence[RunProblem],
    batches: Sequence[FactBatch],
    residuals: Literal["current", "original"] = "current",
    inverse: Inverse = "exact",
    past_weight: Callable[[Tensor, Tensor], Tensor] | None = None,
    remembered: Sequence[Float[Tensor, "d_k _"]] = (),
) -> list[Update]:
    """D_1, …, D_T of the steps Δ_t = R_tK_tᵀP S_t⁻¹. Eq. 2 and Prop. 3.2, as printed in the main text.

    Args:
        problem: one problem for all steps, or one per step with its own λ_t or P_t (breaks the equivalence).
        batches: K_t, V_t.
        residuals: ``current`` for R_t from W_{t−1}; ``original`` for R'_t from W₀, as A.3 prints it (wrong).
        inverse: how to invert S_t.
        past_weight: (past keys, new keys) -> weight of each past key in S_t, a β or Λ (breaks it unless 1).
        remembered: keys of each batch as later steps count them (breaks it unless the batch's own).

    Raises:
        SingularProblemError: if some S_t is singular and ``inverse`` is ``exact``. Prop. 3.2 says "any P and
            λ ≥ 0" but needs every S_t to be invertible, which λ > 0 and P + Pᵀ ⪰ 0 guarantee.
    """
    problems = [problem] * len(batches) if isinstance(problem, RunProblem) else problem
    total, totals = torch.zeros_like(problems[0].weight), list[Tensor]()
    past = batches[0].keys[:, :0]
    for step, (now, batch) in enumerate(zip(problems, batches, strict=True)):
        start = now.weight + total if residuals == "current" else now.weight
        right = (batch.values - start @ batch.keys) @ batch.keys.T @ now.projector
        scale = past_weight(past, batch.keys).sqrt() if past_weight else torch.ones(past.shape[1])
        counted = torch.cat([past * scale, batch.keys], 1)
        total = total + _apply_inverse(right, now, counted, inverse)
        past = torch.cat([past, remembered[step] if remembered else batch.keys], 1)
        totals.append(total)
    return totals


def stated_objective(problem: RunProblem, batches: Sequence[FactBatch], total: Update) -> float:
    """‖(W₀+D)K − V‖² + tr(DCDᵀ) + λ‖D‖², which A.3 says the one-time solution minimises over D = DP.

    This holds if P is a symmetric projector, and for no other kind of P (corrected).
    """
    facts = joined(batches)
    value = ((problem.weight + total) @ facts.keys - facts.values).square().sum()
    value = value + (total @ problem.moment * total).sum() + problem.ridge * total.square().sum()
    return float(value)


# Memorise-the-latest, Eq. 3 and 4, and the terms that Eq. 3 omits.


def latest(problem: RunProblem, batches: Sequence[FactBatch], omit: bool) -> list[Update]:
    """D_1, …, D_T when each step fits its own batch and the preserved facts. As printed, with λI for I.

    Args:
        problem: quantities that all steps share.
        batches: K_t, V_t.
        omit: True for Eq. 3, which omits K0 on both sides; False for Eq. 4.
    """
    total, totals = torch.zeros_like(problem.weight), []
    used = replace(problem, moment=torch.zeros_like(problem.moment)) if omit else problem
    for batch in batches:
        right = (batch.values - (problem.weight + total) @ batch.keys) @ batch.keys.T
        right = (right - total @ used.moment) @ problem.projector  # (V0 − W_{t−1}K0)K0ᵀ = −D_{t−1}C
        total = total + _apply_inverse(right, used, batch.keys, "exact")
        totals.append(total)
    return totals


def left_out(preserved: FactBatch, weight: Update, delta: Update, projector: Square) -> Update:
    """Terms of Eq. 4 that Eq. 3 drops, by definition: −Δ_tK0K0ᵀP + (V0 − W_{t−1}K0)K0ᵀP."""
    k0 = preserved.keys
    return (preserved.values - (weight + delta) @ k0) @ k0.T @ projector


def printed_omission(deltas: Sequence[Update], moment: Square, projector: Square) -> Update:
    """−Σ_τ Δ_τ K0K0ᵀP = −D_tCP. After Eq. 4: right as printed, and zero when P removes all of C."""
    return -torch.stack(list(deltas)).sum(0) @ moment @ projector


# Proposition 3.4: the difference of two one-time optima solves a re-centred problem.


def one_time_objective(
    weight: Update, facts: FactBatch, penalty: Penalty, total: Update
) -> Float[Tensor, ""]:
    """L_t(D) + R(D) with L_t(D) = ‖(W₀+D)K_{0:t} − V_{0:t}‖². Prop. 3.4; the facts include K0, V0."""
    return ((weight + total) @ facts.keys - facts.values).square().sum() + penalty(total)


def step_objective(
    weight: Update, facts: FactBatch, penalty: Penalty, before: Update, delta: Update
) -> Float[Tensor, ""]:
    """ℓ_t(Δ) + ⟨∇L_t(D_{t−1}), Δ⟩ + R(D_{t−1} + Δ), with ℓ_t(Δ) = ‖ΔK_{0:t}‖². Prop. 3.4: right as printed.

    It equals the one-time objective at D_{t−1} + Δ minus L_t(D_{t−1}), for any R and D_{t−1}. Its minimiser
    is unique only if L_t + R is strictly convex; the stated assumption says convex.
    """
    gradient = 2 * ((weight + before) @ facts.keys - facts.values) @ facts.keys.T
    return (delta @ facts.keys).square().sum() + (gradient * delta).sum() + penalty(before + delta)


def ridge_step(weight: Update, facts: FactBatch, ridge: float, before: Update) -> Update:
    """Minimiser of ‖(W_{t−1}+Δ)K − V‖² + λ‖D_{t−1}+Δ‖². Cor. A.2, Eq. 23: right as printed."""
    k = facts.keys
    right = (facts.values - (weight + before) @ k) @ k.T - ridge * before
    return _divide(right, k @ k.T + ridge * torch.eye(len(k), dtype=k.dtype))


# Algorithm 1 and Proposition A.3: post-processing with error feedback.


@dataclass(frozen=True)
class Feedback:
    """Record of a run of Algorithm 1.

    Attributes:
        before: W^R_{t−1} + Δ_t of each step, before post-processing.
        after: W^R_t of each step, the weights returned.
        errors: E_t of each step.
    """

    before: list[Update] = field(default_factory=list)
    after: list[Update] = field(default_factory=list)
    errors: list[Update] = field(default_factory=list)

    def add(self, before: Tensor, after: Tensor, error: Tensor) -> Tensor:
        """Append a step; returns W^R_t."""
        for steps, value in ((self.before, before), (self.after, after), (self.errors, error)):
            steps.append(value)
        return after


def error_feedback(
    problem: RunProblem,
    batches: Sequence[FactBatch],
    post: Post,
    correction: Correction = "overwritten",
    error_ridge: float | None = None,
    start: Update | None = None,
) -> Feedback:
    """Algorithm 1. As printed with P = I, λ = 0; here also with S_t for C_t.

    Args:
        problem: quantities that all steps share; its ridge is that of the one-time optimum.
        batches: K_t, V_t.
        post: post-processing, Δ -> Δ of the same shape; need not be deterministic.
        correction: E_t ``overwritten`` (as printed), ``summed`` over steps (wrong), or ``none``.
        error_ridge: λ in E_t alone, wrong unless it is the problem's; None for the problem's.
        start: E_0; None for zero as printed, right if W₀K0 = V0, else −(V0 − W₀K0)K0ᵀP.
    """
    run, weight, past = Feedback(), problem.weight, batches[0].keys[:, :0]
    error = torch.zeros_like(weight) if start is None else start
    for batch in batches:
        past = torch.cat([past, batch.keys], 1)
        right = (batch.values - weight @ batch.keys) @ batch.keys.T @ problem.projector - error
        delta = _apply_inverse(right, problem, past, "exact")
        processed = post(delta)
        metric = system(problem if error_ridge is None else replace(problem, ridge=error_ridge), past)
        lost = (processed - delta) @ metric
        error = {"overwritten": lost, "summed": error + lost, "none": torch.zeros_like(lost)}[correction]
        weight = run.add(weight + delta, weight + processed, error)
    return run


def state_feedback(problem: RunProblem, batches: Sequence[FactBatch], post: Post) -> Feedback:
    """Algorithm 1 without E: Δ_t = W₀ + one-time_t − W^R_{t−1}. Not in the paper; corrects rounding too."""
    run, weight = Feedback(), problem.weight
    for step in range(len(batches)):
        wanted = problem.weight + one_time(problem, batches[: step + 1])
        weight = run.add(wanted, weight + post(wanted - weight), torch.zeros_like(weight))
    return run


# Proposition 3.5, Eq. 30 to 32: facts that change.


def conflict_update(
    weight: Update, moment: Square, fresh: FactBatch, overlap: FactBatch, subtracted: Float[Tensor, "d_v o"]
) -> Update:
    """[R_tK_tᵀ − (V_Bo − W_{t−1}K_o)K_oᵀ] (C_{t−1} + K_tK_tᵀ − K_oK_oᵀ)⁻¹. Prop. 3.5, Eq. 30.

    As printed, V_t holds the new values on the overlap and V_Bo the resolved ones, which is right neither for
    "resolve to new" nor for "resolve to old". Corrected: V_t holds the resolved values, V_Bo the old ones.

    Args:
        weight: W_{t−1}.
        moment: C_{t−1}, including K0, the ridge and the old facts.
        fresh: new facts whose keys are not among the old ones.
        overlap: keys K_o that old and new facts share, with the values that V_t holds there.
        subtracted: V_Bo.
    """
    new = joined([fresh, overlap])
    right = (new.values - weight @ new.keys) @ new.keys.T
    right = right - (subtracted - weight @ overlap.keys) @ overlap.keys.T
    return _divide(right, moment + new.keys @ new.keys.T - overlap.keys @ overlap.keys.T)


def general_update(weight: Update, moment: Square, moment_change: Square, cross_change: Update) -> Update:
    """Δ = (dB − W dC)(C + dC)⁻¹ for weights with WC = B. Not in the paper; includes Eq. 30 corrected.

    Insert (k, v, w): dC += w kkᵀ, dB += w vkᵀ. Forget: subtract the pair as it was stored. Overwrite: both.
    """
    return _divide(cross_change - weight @ moment_change, moment + moment_change)


def latest_by_deletion(weight: Update, moment: Square, previous: FactBatch, new: FactBatch) -> Update:
    """Δ_t of Eq. 31: delete the previous batch, insert the new. As printed; V_{t−1} are the old values.

    An error of W_{t−1} persists: (W_t − W*_t)C_t is the same at every t.
    """
    right = (new.values - weight @ new.keys) @ new.keys.T
    right = right - (previous.values - weight @ previous.keys) @ previous.keys.T
    return _divide(right, moment + new.keys @ new.keys.T)


def latest_anew(weight: Update, moment: Square, cross: Update, new: FactBatch) -> Update:
    """Δ_t of Eq. 32, as printed; ``cross`` is V0K0ᵀ. It removes an error of W_{t−1} in one step."""
    right = (new.values - weight @ new.keys) @ new.keys.T + cross - weight @ moment
    return _divide(right, moment + new.keys @ new.keys.T)


def _apply_inverse(right: Tensor, problem: RunProblem, keys: Tensor, inverse: Inverse) -> Tensor:
    """``right`` S⁻¹, by the chosen inverse."""
    if inverse == "exact":
        return _divide(right, system(problem, keys))
    if inverse == "printed":
        return right @ torch.linalg.pinv(system(problem, keys), rtol=PSEUDO)
    inside = problem.projector.T @ system(problem, keys)
    return right @ torch.linalg.pinv(inside, rtol=PSEUDO)


def _divide(right: Tensor, matrix: Tensor) -> Tensor:
    """``right`` times the inverse of a square matrix, which need not be symmetric."""
    condition = float(torch.linalg.cond(matrix))
    if not condition <= CONDITION_LIMIT:
        raise SingularProblemError(
            f"the system has no inverse (condition number {condition:.1e}): λ must be above 0 and P + Pᵀ "
            "positive semidefinite, or keys independent; raise the ridge or choose a pseudo-inverse"
        )
    return torch.linalg.solve(matrix.T, right.T).T
