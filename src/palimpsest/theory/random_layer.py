"""Memorize-the-latest on random keys: drift of the weights and of preserved outputs over many steps.

A simulated layer has a random weight W_0 (d_v, d_k) and preserved keys whose second moment C has a power-law
spectrum. Keys of facts are drawn from the same distribution as preserved keys; values have the norm of an
average output. All computation takes place on range(P) in the eigenvectors of C, where C is diagonal, so that
a step costs d_v d_k n and widths of real layers take seconds. With S = diag(nσ) on the kept directions, D the
total update and R′ = V − W_0K:

    simplified   D ← (λD + R′Kᵀ)(KKᵀ + λI)⁻¹             Labyrinth Eq. 3: S omitted
    full         D ← (λD + R′Kᵀ)(S + KKᵀ + λI)⁻¹         Labyrinth Eq. 4
    aligned      as simplified with all earlier keys in KKᵀ and R′Kᵀ, and λI once: AlphaEdit as released
    restart      D ← R′Kᵀ(KKᵀ + λI)⁻¹                    one edit of the last batch alone

For a projector that removes every direction with energy, S = 0 and the first two are the same run. For one
cut at a threshold the weights of ``simplified`` are the same, and only their effect on preserved outputs
differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.spectrum import PUBLISHED_THRESHOLD
from palimpsest.errors import ShapeError, UnknownNameError

UPDATES = ("simplified", "full", "aligned", "restart")


@dataclass(frozen=True)
class Layer:
    """Settings of the random layer.

    Attributes:
        d_k: width of a key.
        d_v: width of a value.
        protected: number of directions with mean energy above the published threshold; P removes them.
        decay: the i-th largest energy is proportional to i to minus this power.
        ridge: λ.
        preserve_weight: number of average keys that C stands for (n in S).
        batch: facts per step.

    Raises:
        ShapeError: if ``protected`` is not between 1 and d_k − 1.
    """

    d_k: int = 128
    d_v: int = 64
    protected: int = 10
    decay: float = 1.5
    ridge: float = 10.0
    preserve_weight: float = 15_000.0
    batch: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.protected < self.d_k:
            raise ShapeError(
                f"protected directions must lie between 1 and {self.d_k - 1}, got {self.protected}"
            )

    @property
    def spectrum(self) -> Float[Tensor, " d_k"]:
        """Mean energy of each direction, largest first; the last protected one is 1 % above the threshold."""
        place = torch.arange(1, self.d_k + 1, dtype=torch.float64)
        return 1.01 * PUBLISHED_THRESHOLD * (self.protected / place) ** self.decay


def simulate(layer: Layer, steps: int, seed: int, rules: Sequence[str] = UPDATES) -> pd.DataFrame:
    """Run every rule on the same random draws.

    Args:
        layer: settings of the layer.
        steps: steps of each run.
        seed: seed of weight and facts.
        rules: names from `UPDATES`.

    Returns:
        One row per rule and step (from 1): ``norm`` ‖D‖; ``damage``, the squared change of preserved outputs
        relative to those outputs, tr(DCDᵀ)/tr(W_0CW_0ᵀ), under the thresholded projector; ``omission``, the
        norm ‖D·S‖ of the term that Eq. 3 omits, relative to its right-hand side ‖R_tKᵀ‖ with
        R_t = V − W_{t−1}K. Under an exact projector damage and omission are zero.

    Raises:
        UnknownNameError: if there is no such rule.
    """
    for rule in rules:
        if rule not in UPDATES:
            raise UnknownNameError("rule of the random layer", rule, list(UPDATES))
    energy, outputs = layer.spectrum[layer.protected :], _outputs(layer, seed)
    rows = []
    for rule in rules:
        for step, (total, asked) in enumerate(_run(layer, steps, seed, rule), 1):
            damage = float((total.square() * energy).sum()) / outputs
            omission = layer.preserve_weight * float((total * energy).norm()) / asked
            rows.append((rule, step, float(total.norm()), damage, omission))
    return pd.DataFrame(rows, columns=["rule", "step", "norm", "damage", "omission"])


def _run(layer: Layer, steps: int, seed: int, rule: str) -> Iterator[tuple[Float[Tensor, "d_v c"], float]]:
    """Total update on the kept directions after each step, and the norm of the step's right-hand side."""
    energy = layer.spectrum[layer.protected :]
    kept, nothing = len(energy), torch.zeros_like(energy)
    damping = layer.preserve_weight * energy if rule == "full" else nothing
    total = torch.zeros(layer.d_v, kept, dtype=torch.float64)  # (d_v, c)
    ledger = EditLedger(total, ridge=layer.ridge)
    for step, (keys, wanted) in enumerate(_facts(layer, steps, seed)):
        right = (wanted - total @ keys) @ keys.T  # (d_v, c)
        if rule == "aligned":
            total = total + ledger.insert(keys, wanted, [f"{step}.{i}" for i in range(layer.batch)])
        else:
            carried = total * layer.ridge if rule != "restart" else torch.zeros_like(total)
            total = divide(carried + wanted @ keys.T, damping + layer.ridge, keys)
        yield total, float(right.norm())


def divide(
    x: Float[Tensor, "d_v c"], diagonal: Float[Tensor, " c"], keys: Float[Tensor, "c n"]
) -> Float[Tensor, "d_v c"]:
    """X (diag(a) + KKᵀ)⁻¹ through an n × n system (Woodbury)."""
    y = keys / diagonal[:, None]  # (c, n)
    inner = keys.T @ y + torch.eye(keys.shape[1], dtype=keys.dtype)  # (n, n)
    return x / diagonal - torch.linalg.solve(inner, (x @ y).T).T @ y.T


def _weight(layer: Layer, seed: int) -> Float[Tensor, "d_v d_k"]:
    return torch.randn(layer.d_v, layer.d_k, dtype=torch.float64, generator=_generator(seed, 0))


def _outputs(layer: Layer, seed: int) -> float:
    """Mean squared norm of a preserved output, tr(W_0 C W_0ᵀ)."""
    return float((_weight(layer, seed).square() * layer.spectrum).sum())


def _facts(layer: Layer, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Kept part of the keys (c, n) and R′ (d_v, n) per step; values have the norm of an average output."""
    draws, weight = _generator(seed, 1), _weight(layer, seed)
    length = (_outputs(layer, seed) / layer.d_v) ** 0.5
    for _ in range(steps):
        keys = torch.randn(layer.d_k, layer.batch, dtype=torch.float64, generator=draws)
        keys = keys * layer.spectrum.sqrt()[:, None]
        values = length * torch.randn(layer.d_v, layer.batch, dtype=torch.float64, generator=draws)
        yield keys[layer.protected :], values - weight @ keys


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(2 * seed + stream)
