"""Twin of `palimpsest.algebra.ledger`: the one-time problem over all facts, solved anew."""

from torch import Tensor

from benchmarks.reference.solve import released


def total(keys: Tensor, residual: Tensor, preserve: Tensor | None, ridge: float, p: Tensor | None) -> Tensor:
    """Total update D (d_v, d_k) over all facts, whose residuals (d_v, n) are those of the unedited weight."""
    gram = keys @ keys.T
    return released(p, gram if preserve is None else gram + preserve, ridge, keys, residual)
