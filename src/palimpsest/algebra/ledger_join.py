"""Ledgers of shards of facts, made apart, joined into one that holds the facts of all.

Keys and values that are read on the unedited model depend on no other fact, so shards of facts can be
prepared on several machines. From as many facts as there are free directions on, the joined ledger keeps sums
over the facts (`palimpsest.algebra.primal`) and the facts themselves in a file, so that its memory is flat.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.ledger import PROJECTOR, EditLedger
from palimpsest.cache import tensor_sha256
from palimpsest.errors import LedgerError

AT_ONCE = 1000
"""Facts of a shard that are inserted together; affects only speed, memory and rounding."""


def join_ledgers(ledger: EditLedger, shards: Iterable[EditLedger]) -> Float64[Tensor, "d_v d_k"]:
    """Insert the facts of other ledgers of the same problem; ΔW to add to the weight.

    Args:
        ledger: holds the facts of all shards afterwards, beside its own.
        shards: read one after the other; none is changed.

    Raises:
        LedgerError: if a shard belongs to another weight, site, second moment, ridge or projector, or has a
            fact that is held already. Shards before it stay in the ledger.
        SingularProblemError: as `EditLedger.insert`.
    """
    whole = torch.zeros_like(ledger.base, dtype=torch.float64)
    mine = _problem(ledger)
    for number, shard in enumerate(shards, 1):
        other = [name for name, value in _problem(shard).items() if value != mine[name]]
        if other:
            raise LedgerError(
                f"shard {number} has another {' and '.join(other)} than the ledger it is to join; make it "
                "with the same model, texts and settings"
            )
        twice = sorted({*shard.ids} & {*ledger.ids})
        if twice:
            raise LedgerError(
                f"shard {number} has {len(twice)} facts that are held already, among them {twice[0]!r}; "
                "give each fact to one shard"
            )
        for start in range(0, len(shard), AT_ONCE):
            some = shard._solved.facts.take(range(start, min(start + AT_ONCE, len(shard))))
            whole += ledger.insert(some.keys, some.values, some.ids, some.weights)
    return whole


def _problem(ledger: EditLedger) -> dict[str, object]:
    """What two ledgers must share, by its name in messages."""
    problem = ledger._problem
    parts = {"second moment": problem.preserve} | {
        f"projector ({name})": getattr(problem.projector, name) for name in PROJECTOR
    }
    hashes = {name: tensor_sha256(part) for name, part in parts.items() if part is not None}
    return {
        "unedited weight": ledger.base_sha256,
        "site": ledger.site,
        "ridge": problem.ridge,
        **dict.fromkeys(parts),
        **hashes,
    }
