"""Post-processing of an update after the solve: RECT sparsifies it, PRUNE compresses its spectrum.

Both take an editor's update Δ_t, the weight W_{t−1} it would be added to and the unedited weight W_0, and
return the update to add instead. The released codes disagree with the papers and with each other, so every
choice is an option, and its docstring names who made it.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

TINY = 1e-8
"""Added to |W| before dividing by it, as the AlphaEdit code does (it adds to W, and the sum may be 0)."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Rect:
    """Keep the entries of Δ that change their weight most, relative to it; set the others to zero.

    Attributes:
        keep: share of entries kept. 0.4 in the AlphaEdit and Labyrinth codes, 0.2 in RECT's own and in the
            Labyrinth's error-corrected one (its Table 6).
        against: the weight in |Δ/W|: the present one (``current``, as released) or the unedited one
            (``start``).

    Source: RECT (Gu et al., EMNLP 2024), Sec. 5.
    """

    kind: Literal["rect"] = "rect"
    keep: float = Field(default=0.4, gt=0, le=1)
    against: Literal["current", "start"] = "current"

    @property
    def at_end(self) -> bool:
        """False: RECT processes each step."""
        return False

    def __call__(
        self,
        delta: Float[Tensor, "d_v d_k"],
        weight: Float[Tensor, "d_v d_k"],
        start: Float[Tensor, "d_v d_k"],
    ) -> Float[Tensor, "d_v d_k"]:
        """Update with ⌈keep · entries⌉ entries kept, more only if the smallest kept ones tie."""
        change = delta.abs() / ((weight if self.against == "current" else start).abs() + TINY)
        dropped = change.numel() - math.ceil(self.keep * change.numel())
        if dropped == 0:
            return delta
        limit = change.flatten().kthvalue(dropped + 1).values
        return torch.where(change >= limit, delta, 0.0)


@dataclass(frozen=True, config={"extra": "forbid"})
class Prune:
    """Compress singular values σ of an update that exceed σ_max, the largest singular value of the weight.

        σ → log_a(σ) − log_a(σ_max) + σ_max      where σ > σ_max

    Attributes:
        base: a of the logarithm; e in PRUNE's code (1.2, 1.5 and 2 are its other choices).
        of: what is compressed: each step's Δ (``step``, the Labyrinth code) or the whole W − W_0 (``total``,
            PRUNE's code).
        bound: σ_max of the unedited weight (``start``, PRUNE) or of the present one (``current``, the
            Labyrinth code).
        when: with each ``step``, or once at the ``end`` of the sequence (PRUNE and the AlphaEdit code).
        doubled: add the compressed total to the edited weight, W_0 + D + f(D), as the AlphaEdit code does by
            mistake; PRUNE's is W_0 + f(D). Only with ``of="total"`` and ``when="end"``.

    Raises:
        ValueError: if the options contradict each other, or a field is out of range.

    Source: PRUNE (Ma et al., ICLR 2025), Eq. 7.
    """

    kind: Literal["prune"] = "prune"
    base: float = Field(default=math.e, gt=1)
    of: Literal["step", "total"] = "step"
    bound: Literal["start", "current"] = "start"
    when: Literal["step", "end"] = "step"
    doubled: bool = False

    def __post_init__(self) -> None:
        if self.when == "end" and self.of == "step":
            raise ValueError("a single step cannot be pruned at the end; set of='total' or when='step'")
        if self.doubled and self.when == "step":
            raise ValueError("doubled belongs to pruning at the end; set when='end' or leave doubled out")

    @property
    def at_end(self) -> bool:
        """Whether steps stay unprocessed and the sequence's total is processed once."""
        return self.when == "end"

    def __call__(
        self,
        delta: Float[Tensor, "d_v d_k"],
        weight: Float[Tensor, "d_v d_k"],
        start: Float[Tensor, "d_v d_k"],
    ) -> Float[Tensor, "d_v d_k"]:
        """Update to add to ``weight`` instead of ``delta``."""
        limit = largest_singular_value(start if self.bound == "start" else weight)
        if self.of == "step":
            return compress(delta, limit, self.base)
        total = weight + delta - start
        pruned = compress(total, limit, self.base)
        return delta + pruned if self.doubled else delta + (pruned - total)


Post = Rect | Prune


def compress(delta: Float[Tensor, "d_v d_k"], limit: Tensor | float, base: float) -> Float[Tensor, "d_v d_k"]:
    """Replace singular values above ``limit`` by PRUNE's logarithm; the same tensor if there are none.

    A value is lowered only where σ · ln(base) > 1; below that, the published formula raises it.
    """
    if largest_singular_value(delta) <= limit:
        return delta
    u, sigma, vt = torch.linalg.svd(delta, full_matrices=False)
    above = (sigma / limit).clamp(min=1).log() / math.log(base) + limit
    return (u * torch.where(sigma > limit, above, sigma)) @ vt


def largest_singular_value(matrix: Float[Tensor, "d_v d_k"]) -> Float[Tensor, ""]:
    """Largest singular value, from the smaller Gram matrix; relative error about 1e-15 in float64."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt()
