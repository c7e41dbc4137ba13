"""Difficulty of edits on the current model: conflict with other keys, and norm of the requested change.

These measures select the hard members of `palimpsest.datasets.alphaset`. They read the model and do not edit
it. `palimpsest.evaluation.evaluate.knows` says which facts the model already knows.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.conflict import conflict, projected_conflict
from palimpsest.algebra.projector import Projector
from palimpsest.errors import NonFiniteError, ShapeError
from palimpsest.memory.keys import subject_hidden, subject_keys
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest


def difficulty_of(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    values: Float[Tensor, "d_v n"] | None = None,
    contexts: Sequence[str] = ("",),
    preserved: Mapping[int, Iterable[Tensor]] | None = None,
    projectors: Mapping[int, Projector] | None = None,
) -> pd.DataFrame:
    """Conflict and inconsistency of each edit at each edited layer, on the unedited model.

    The residual norm ‖r‖ is taken at the output of the last edited layer, where values are optimised; all
    layers together have to supply it. Layer i of L (from 0) supplies 1/(L − i) of the residual that remains
    after the lower layers. On the unedited model no lower layer has been edited, so ``share`` is ‖r‖/(L − i),
    an upper bound: in an edit the lower layers reduce the residual first. Within one layer ``inconsistency``
    and ``share`` rank the edits in the same order.

    Args:
        model: the unedited model.
        requests: n edits.
        layers: edited layers, ascending.
        values: (d_v, n), optimised at ``layers[-1]`` (`palimpsest.memory.values.optimise_targets`); without
            them the residual columns are NaN.
        contexts: prefixes over which keys are averaged, the empty one first.
        preserved: layer -> preserved keys in blocks (d_k, b), each iterated once, for example
            `palimpsest.memory.moments.text_keys` chained with keys of known facts; layers may be left out.
        projectors: layer -> P; layers may be left out.

    Returns:
        One row per layer and request, in that order, with ``layer``, ``request`` (id or text) and, NaN where
        an input was not given, ``conflict_preserved`` (s_K0 in [0, 1]), ``conflict_projected``
        (1 − ‖Pk‖²/‖k‖²), ``inconsistency`` (‖r‖) and ``share`` (of ‖r‖, for this layer).

    Raises:
        ShapeError: if no layer or request is given, layers do not ascend, or widths or counts differ.
        NonFiniteError: if values, keys or preserved keys hold NaN or infinity.

    Source: AlphaEdit+ sections 2.2 and B.1; division of the residual as in MEMIT Algorithm 1.
    """
    _check(requests, layers)
    ids = [request.id or request.text for request in requests]
    full = None if values is None else _residual(model, requests, layers[-1], values)
    tables = []
    for index, layer in enumerate(layers):
        table = pd.DataFrame({"layer": layer, "request": ids})
        keys = subject_keys(model, requests, layer, contexts).double()
        blocks, projector = (preserved or {}).get(layer), (projectors or {}).get(layer)
        table["conflict_preserved"] = _column(None if blocks is None else conflict(keys, blocks))
        table["conflict_projected"] = _column(
            None if projector is None else projected_conflict(keys, projector)
        )
        table["inconsistency"] = _column(full)
        table["share"] = _column(None if full is None else full / (len(layers) - index))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def past_conflict(keys: Float[Tensor, "d_k n"], batches: Sequence[int]) -> Float64[Tensor, " n"]:
    """Conflict s_Kp with earlier edits: the largest |cosine| of each key with a key of an earlier batch.

    Args:
        keys: (d_k, n), in the order of writing.
        batches: size of each batch; they add up to n.

    Returns:
        (n,) in [0, 1], float64; 0 in the first batch.

    Raises:
        ShapeError: if the sizes do not add up to n, or one is below 1.
        NonFiniteError: if keys hold NaN or infinity.

    Source: AlphaEdit+ Eq. 3 with K_p instead of K0.
    """
    if sum(batches) != keys.shape[1] or min(batches, default=1) < 1:
        raise ShapeError(
            f"batches {list(batches)} must be 1 or more each and add up to the {keys.shape[1]} keys; "
            "give the sizes in the order of writing"
        )
    found, done = [keys.new_zeros(0, dtype=torch.float64)], 0
    for size in batches:
        found.append(conflict(keys[:, done : done + size], keys[:, :done]))
        done += size
    return torch.cat(found)


def pair_conflict(keys: Float[Tensor, "d_k n"], earlier: Float[Tensor, "d_k n"]) -> Float64[Tensor, " n"]:
    """|Cosine| (n,) of each key with the key of the edit that it rewrites, in [0, 1]; 0 for zero keys.

    Raises:
        NonFiniteError: if either holds NaN or infinity.
    """
    if not (torch.isfinite(keys).all() and torch.isfinite(earlier).all()):
        raise NonFiniteError("keys hold NaN or infinity; nothing was compared")
    return torch.cosine_similarity(keys.double(), earlier.double(), dim=0).abs().clamp(max=1)


def _check(requests: Sequence[EditRequest], layers: Sequence[int]) -> None:
    if not requests or not layers or sorted(set(layers)) != list(layers):
        raise ShapeError(
            f"{len(requests)} requests at layers {list(layers)}; give at least one request, and distinct "
            "layers in ascending order"
        )


def _residual(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, values: Tensor
) -> Float64[Tensor, " n"]:
    """‖values − output of the layer‖ (n,) at each subject."""
    hidden = subject_hidden(model, requests, layer).double()
    if values.shape != hidden.shape:
        raise ShapeError(
            f"values have shape {tuple(values.shape)}, expected (d_v, n) = {tuple(hidden.shape)}; optimise "
            f"them for these requests at layer {layer}"
        )
    if not torch.isfinite(values).all():
        raise NonFiniteError("values hold NaN or infinity; optimise them again")
    return (values.to(hidden) - hidden).norm(dim=0)


def _column(numbers: Tensor | None) -> list[float] | float:
    return float("nan") if numbers is None else numbers.tolist()
