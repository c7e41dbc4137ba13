"""Factors and largest singular values of large matrices, kept on disk by the bits of what they come from.

They belong to the unedited model and are asked for again by every process that opens a ledger, and in every
step of a sequence that keeps none. On one core of a laptop's kind a factor of 8,192 columns takes 18 s, and
its checksums and reading 5 s (3 s in the same process, 14 s more when it is first written); one of 2,048
columns 1.1 s and 0.7 s, one of 1,536 columns 0.2 s and 0.1 s, which is not kept. The largest singular value
of 2,048 × 8,192 takes 5 s and 0.4 s. On a GPU, whose products are many times faster, nothing is kept.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest import cache
from palimpsest.algebra.cholesky import Cholesky
from palimpsest.algebra.projector import LARGE
from palimpsest.cache import tensor_sha256

REVISION = 1
"""Part of the cache key; raise it when the same matrix gives another factor or value than before."""


def factor_of(matrix: Float64[Tensor, "n n"]) -> Cholesky:
    """As `Cholesky.of`, with the same bits; read from disk if the same matrix was factorised before.

    A factor has its columns one after the other in memory, as LAPACK leaves it, and so has the one from disk.

    Raises:
        SingularProblemError: if the matrix is not positive definite.
        ResourceError: if the factor cannot be read or written; the message names the file.
    """
    return Cholesky(_kept("factors", matrix, lambda: Cholesky.of(matrix).lower.mT).mT)


def largest_of(weight: Float[Tensor, "d_v d_k"], compute: Callable[[Tensor], Tensor]) -> Float[Tensor, ""]:
    """Largest singular value of an unedited weight; read from disk if it was computed before.

    Args:
        weight: the weight.
        compute: gives the value, as `palimpsest.algebra.postprocess.largest_singular_value`.

    Raises:
        ResourceError: if the value cannot be read or written; the message names the file.
    """
    return _kept("singular", weight, lambda: compute(weight))


def _kept(kind: str, matrix: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor that follows from a matrix; computed each time where that is small, or not on a CPU."""
    if max(matrix.shape) < LARGE or matrix.device.type != "cpu":
        return compute()
    key = {
        "revision": REVISION,
        "matrix": tensor_sha256(matrix),
        "threads": torch.get_num_threads(),  # several differ from one in the last bits
    }
    # A copy, in memory that begins where that of any tensor may: products can round by that.
    return cache.tensors(kind, key, lambda: {"found": compute()})["found"].clone()
