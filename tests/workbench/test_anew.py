"""A recomputed ledger has no history, in the form for few facts and in the one for many."""

import numpy as np
import pytest
import torch

from palimpsest.algebra.ledger import EditLedger
from palimpsest.workbench.steps import anew
from tests.problems import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


def written(n: int, batch: int) -> EditLedger:
    """A ledger of 12 × 40 with facts 0 to n − 1, the later batches first."""
    keys, values = gaussian(1, 40, n), gaussian(2, 12, n)
    ledger = EditLedger(gaussian(0, 12, 40).float(), torch.eye(40), 0.5)
    for start in reversed(range(0, n, batch)):
        at = slice(start, start + batch)
        ledger.insert(keys[:, at], values[:, at], [f"{i:04}" for i in range(n)][at])
    return ledger


@pytest.mark.parametrize("n", [30, 600])  # below and above the switch at 40 facts
def test_the_history_has_no_effect_on_a_bit(n: int) -> None:
    straight, wandering = anew(written(n, n)), written(n, 7)
    rng = np.random.default_rng(0)
    for i in range(20):
        gone = [str(name) for name in rng.permutation(np.array(wandering.ids))[:5]]
        at = [wandering.ids.index(name) for name in gone]
        keys, values = wandering.keys[:, at], wandering.values[:, at]
        wandering.forget(gone)
        wandering.insert(keys, values, gone)
        wandering.insert(gaussian(i, 40, 3), gaussian(-i, 12, 3), ["x", "y", "z"])
        wandering.forget(["y", "x", "z"])
    assert not torch.equal(wandering.weight, straight.weight)  # negative control: history leaves rounding
    assert torch.equal(anew(wandering).weight, straight.weight)
    assert anew(wandering).ids == straight.ids
