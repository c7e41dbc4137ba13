"""Adam whose steps are projected: layer by layer, into the null space of features or any other map.

A step of Adam is divided, entry by entry, by the root of its second moment, so that the step of a projected
gradient lies outside the null space. Adam-NSCL therefore projects the step, not the gradient. Adam's moments
are those of the gradients as they are.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest.algebra.spectrum import HasValue, eigendirections
from palimpsest.errors import ShapeError


@runtime_checkable
class Projection(Protocol):
    """Symmetric map of feature space that an update is multiplied by from the right."""

    def apply(self, x: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """P x, for columns x."""
        ...


@dataclass(frozen=True)
class SoftProjector:
    """P = (I + C/α)⁻¹: passes the share α/(α + σ) of a direction with eigenvalue σ of C.

    Orthogonal weight modification takes it for its projector; with C = K₀K₀ᵀ and α = λ it turns AlphaEdit's
    update into ridge MEMIT's.

    Attributes:
        directions: eigenvectors of C as columns, (d, d).
        passed: α/(α + σ) of each, (d,).
    """

    directions: Float[Tensor, "d d"]
    passed: Float[Tensor, " d"]

    @classmethod
    def of(cls, moment: Tensor | HasValue, ridge: float) -> "SoftProjector":
        """The soft projector of a second moment.

        Args:
            moment: C (d, d), or an object that holds it as ``.value``.
            ridge: α > 0, in the unit of C.

        Raises:
            ShapeError: if the ridge is not positive, and as `eigendirections`.
        """
        if not ridge > 0:
            raise ShapeError(f"the ridge of a soft projector must be positive, got {ridge}")
        spectrum, directions = eigendirections(moment)
        return cls(directions, ridge / (ridge + spectrum))

    def apply(self, x: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """P x, for columns x."""
        u = self.directions.to(x)
        return u @ (self.passed.to(x)[:, None] * (u.T @ x))


@dataclass(frozen=True)
class Scaled:
    """A projection times a factor.

    Attributes:
        inner: the projection.
        factor: multiplies what it gives.
    """

    inner: Projection
    factor: float

    def apply(self, x: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """The factor times P x, for columns x."""
        return self.factor * self.inner.apply(x)


class ProjectedAdam(torch.optim.Adam):
    """Adam with every step of some weights multiplied by a projection from the right, ΔW ← ΔW·P.

    A weight (out, ...) is seen as a matrix (out, d); a convolution's d counts patches as
    `feature_columns` does. With P = 0 a weight stays as it is, bit by bit. Weight decay is part of the
    gradient, as in the released code, and so projected too. The released code adds Adam's ε before the bias
    correction, PyTorch after it.

    Args:
        params: as for ``torch.optim.Adam``.
        projections: weight -> its projection; other weights take Adam's step.
        **settings: as for ``torch.optim.Adam``.

    Source: Adam-NSCL, Eq. 6 and Algorithm 2.
    """

    def __init__(
        self, params: Iterable[Any], projections: Mapping[nn.Parameter, Projection], **settings: Any
    ) -> None:
        super().__init__(params, **settings)
        self.projections = dict(projections)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns the loss of the closure, if there is one."""
        before = {weight: weight.clone() for weight in self.projections}
        loss = super().step(closure)
        for weight, old in before.items():
            change = (weight - old).flatten(1)  # (out, d)
            weight.copy_(old + self.projections[weight].apply(change.T).T.reshape(weight.shape))
        return loss
