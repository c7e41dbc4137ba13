"""Control edits: random updates of the same norm as a real one.

Δ is a real update of one layer, U (d_v, q) an orthonormal basis of its range, and Q (d_v, q) and Q' (d_k, q)
have orthonormal columns drawn uniformly (Haar, by QR of Gaussian columns with the signs of R's diagonal).
With UᵀΔ = RᵀVᵀ, V orthonormal:

    `random_direction`    Q RᵀQ'ᵀ        the singular values of Δ, hence its norm ‖Δ‖_F and its rank
    `random_value`        Q UᵀΔ          in addition ‖Δ'k‖ = ‖Δk‖ for every key k

A random direction is nearly orthogonal to any given key, so it is a control for the norm of the update. A
random value is a control for writing at the keys of a fact, whatever the value.

An edit by IKE is a text, demonstrations and then the facts; `without_facts` leaves its demonstrations alone.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.errors import RequestError
from palimpsest.network.apply import PromptContext, WeightDelta

_EXACT = 1e-12
"""A basis spans the range if the norm of Δ outside it is at most this share of ‖Δ‖."""
_FIRST_WIDTH = 1


def random_direction(edit: WeightDelta, seed: int) -> WeightDelta:
    """Control edit with the singular values of the real updates and random singular vectors.

    Args:
        edit: a real edit; it is not changed.
        seed: of all draws, which are independent between layers. Use a different seed for each fact.

    Returns:
        An edit of the same model and layers, float64; its notes hold kind, seed and the norm of ``edit``.
    """

    def turned(delta: Tensor, generator: torch.Generator) -> Tensor:
        inner = _basis(delta, generator).T @ delta
        left = _orthonormal(delta.shape[0], len(inner), generator)
        right = _orthonormal(delta.shape[1], len(inner), generator)
        return left @ torch.linalg.qr(inner.T).R.T @ right.T

    return _turned(edit, seed, "random_direction", turned)


def random_value(edit: WeightDelta, seed: int) -> WeightDelta:
    """Control edit that maps every key to a vector of the same norm as the real edit, in a random direction.

    Args:
        edit: a real edit; it is not changed.
        seed: of all draws, as in `random_direction`.

    Returns:
        As `random_direction`.
    """

    def turned(delta: Tensor, generator: torch.Generator) -> Tensor:
        inner = _basis(delta, generator).T @ delta
        return _orthonormal(delta.shape[0], len(inner), generator) @ inner

    return _turned(edit, seed, "random_value", turned)


def without_facts(edit: PromptContext, seed: int = 0) -> PromptContext:
    """Control edit with the demonstrations of an edit by IKE, and none of its facts.

    Args:
        edit: a real edit by `palimpsest.editors.ike.Ike`; it is not changed.
        seed: ignored, as nothing is drawn; so that every control is called alike.

    Returns:
        The text up to its last paragraph, for the same model.

    Raises:
        RequestError: if what follows the last paragraph is not as many facts as the edit notes.
    """
    shown, mark, stated = edit.text.rpartition("\n\n")
    facts = stated.splitlines() if mark else edit.text.splitlines()
    if len(facts) != edit.notes.get("facts"):
        raise RequestError(
            f"the text ends in {len(facts)} lines and its edit notes {edit.notes.get('facts')} facts; "
            "pass an edit made by IKE"
        )
    return PromptContext(shown + mark if mark else "", edit.base, {"null": "without_facts"})


def _turned(
    edit: WeightDelta, seed: int, name: str, turn: Callable[[Tensor, torch.Generator], Tensor]
) -> WeightDelta:
    deltas = {}
    generator = torch.Generator().manual_seed(seed)
    for layer, delta in sorted(edit.deltas.items()):
        deltas[layer] = turn(delta.cpu().double(), generator).to(delta.device)
    return WeightDelta(deltas, edit.base, {"null": name, "seed": seed, "norm_of": edit.norm()})


def _basis(delta: Float64[Tensor, "d_v d_k"], generator: torch.Generator) -> Float64[Tensor, "d_v q"]:
    """Orthonormal columns that span the range of a matrix, from random combinations of its columns."""
    limit, width = min(delta.shape), _FIRST_WIDTH
    while True:
        sketch = delta @ _normal(delta.shape[1], width, generator)
        basis = torch.linalg.qr(sketch).Q
        left_over = delta - basis @ (basis.T @ delta)
        if width == limit or left_over.norm() <= _EXACT * delta.norm():
            return basis
        width = min(4 * width, limit)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Float64[Tensor, "rows columns"]:
    q, r = torch.linalg.qr(_normal(rows, columns, generator))
    return q * r.diagonal().sign()


def _normal(rows: int, columns: int, generator: torch.Generator) -> Float64[Tensor, "rows columns"]:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
