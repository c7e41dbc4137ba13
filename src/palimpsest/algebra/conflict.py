"""Measures of conflict between new facts and a weight: with other keys, a projector, or present values.

Tensors only. Keys are columns (d_k, n) of any norm and float dtype; every result is float64. AlphaEdit+
measures conflict by the cosine with single keys (Eq. 3). Its square is only a lower bound of the share of a
key that a projector removes; see `projected_conflict`.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.errors import NonFiniteError, ShapeError


def conflict(
    keys: Float[Tensor, "d_k n"], others: Tensor | Iterable[Tensor], block: int = 8192
) -> Float64[Tensor, " n"]:
    """Largest absolute cosine s of each key with any single column of ``others``, in [0, 1].

    s = 0 for a zero key; zero columns, and having no columns at all, count as cosine 0.

    Args:
        keys: (d_k, n).
        others: (d_k, m), or an iterable of such blocks, each read once, for example from disk.
        block: largest number of columns compared at once, so that no m × n matrix is held.

    Raises:
        ShapeError: if widths differ, or ``block`` is below 1.
        NonFiniteError: if keys or columns hold NaN or infinity.

    Source: AlphaEdit+ Eq. 3, as printed.
    """
    if block < 1:
        raise ShapeError(f"block must be 1 or more columns, got {block}")
    _check("keys", keys)
    rows, largest = _unit(keys).T, torch.zeros(keys.shape[1], dtype=torch.float64, device=keys.device)
    for part in [others] if isinstance(others, Tensor) else others:
        _check("others", part, len(keys))
        for piece in part.split(block, dim=1) if part.shape[1] else ():
            cosines = rows @ _unit(piece.to(keys.device))  # (n, at most block)
            largest = torch.maximum(largest, cosines.abs().amax(1))
    return largest.clamp(max=1)


def conflict_weights(past: Float[Tensor, "d_k p"], new: Float[Tensor, "d_k n"]) -> Float64[Tensor, " p"]:
    """Diagonal of Λ: 1 − s(k_j, K1) for each past key k_j, in [0, 1] despite rounding.

    A past fact gets weight 0 as soon as any one new key is parallel or antiparallel to its key.

    Raises:
        ShapeError, NonFiniteError: as `conflict`.

    Source: AlphaEdit+, after Eq. 15.
    """
    return 1 - conflict(past, new)


def projected_conflict(keys: Float[Tensor, "d_k n"], projector: Projector) -> Float64[Tensor, " n"]:
    """Share of each key's squared norm that P removes, 1 − ‖Pk‖²/‖k‖², in [0, 1]; 0 for a zero key.

    This, not the squared cosine of `conflict`, limits an edit (Lemma 1). For a P that removes exactly the
    span of K0 it is at least ``conflict(keys, K0)**2``.

    Raises:
        ShapeError, NonFiniteError: as `conflict`.

    Source: AlphaEdit+ Eq. 3 and 6, corrected.
    """
    _check("keys", keys, projector.dim)
    unit = _unit(keys)
    removed = unit - projector.apply(unit)  # unlike 1 − ‖Pk‖², it keeps the digits of a small conflict
    return removed.square().sum(0).clamp(max=1)


def inconsistency(
    keys: Float[Tensor, "d_k n"], values: Float[Tensor, "d_v n"], weight: Float[Tensor, "d_v d_k"]
) -> Float64[Tensor, " n"]:
    """Distance ‖v − Wk‖ (n,) between the wanted and the present value of each fact.

    Raises:
        ShapeError, NonFiniteError: if the three do not fit together, or hold NaN or infinity.

    Source: AlphaEdit+ Section 2.2.
    """
    _check("keys", keys)
    _check("weight", weight)
    _check("values", values, len(weight))
    if (values.shape[1], weight.shape[1]) != (keys.shape[1], len(keys)):
        raise ShapeError(
            f"values {tuple(values.shape)} and weight {tuple(weight.shape)} do not fit "
            f"keys {tuple(keys.shape)}; they must be (d_v, n), (d_v, d_k) and (d_k, n)"
        )
    return (values.double() - weight.double() @ keys.double()).norm(dim=0)


def _unit(columns: Tensor) -> Tensor:
    """Columns in float64, scaled to norm 1; zero columns stay zero, and no square under- or overflows."""
    columns = columns.double()
    peak = columns.abs().amax(0)
    scaled = columns / torch.where(peak > 0, peak, 1)
    return scaled / scaled.norm(dim=0).clamp(min=1)  # the norm is at least 1 unless the column is zero


def _check(name: str, tensor: Tensor, width: int | None = None) -> None:
    if tensor.ndim != 2 or not len(tensor) or (width is not None and len(tensor) != width):
        wanted = "at least one row" if width is None else f"width {width}"
        raise ShapeError(f"{name} must be columns of {wanted}, got shape {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} hold NaN or infinity; nothing was compared")
