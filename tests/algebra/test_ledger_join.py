"""Shards of facts joined: the ledger of all facts, in any division, on both sides of the switch of forms."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.algebra import ledger_join
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.ledger_join import join_ledgers
from palimpsest.algebra.primal import Primal
from palimpsest.algebra.projector import Projector
from palimpsest.errors import LedgerError
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")
D_K, D_V = 8, 3


def empty(**options: object) -> EditLedger:
    return EditLedger(gaussian(0, D_V, D_K), **{"ridge": 0.5, "site": "layer 1"} | options)


def filled(start: int, stop: int, **options: object) -> EditLedger:
    """A ledger of facts start to stop of thirty."""
    ledger = empty(**options)
    some = slice(start, stop)
    keys, values = gaussian(1, D_K, 30)[:, some], gaussian(2, D_V, 30)[:, some]
    weights = torch.linspace(0.5, 2, 30, dtype=torch.float64)[some]
    ledger.insert(keys, values, [str(i) for i in range(start, stop)], weights)
    return ledger


@given(cuts=st.lists(st.integers(0, 30), max_size=4), at_once=st.integers(1, 7))
def test_shards_joined_are_the_ledger_of_all_facts(cuts: list[int], at_once: int) -> None:
    ends = [0, *sorted(cuts), 30]
    joined = empty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_join, "AT_ONCE", at_once)
        delta = join_ledgers(joined, (filled(*pair) for pair in pairwise(ends)))
    whole = filled(0, 30)
    assert joined.ids == whole.ids
    assert isinstance(joined._solved, Primal)  # 30 facts of 8 directions
    assert error(joined.total, whole.total) < 1e-9
    assert error(delta, whole.total) < 1e-9


def test_few_facts_join_in_the_other_form() -> None:
    joined = filled(0, 2)
    before = joined.total
    delta = join_ledgers(joined, [filled(2, 4)])
    assert not isinstance(joined._solved, Primal)
    assert error(before + delta, filled(0, 4).total) < 1e-9


def test_a_joined_fact_can_be_forgotten() -> None:
    joined = filled(0, 15)
    join_ledgers(joined, [filled(15, 30)])
    joined.forget([str(i) for i in range(10, 30)])
    assert error(joined.total, filled(0, 10).total) < 1e-9


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ridge": 0.25}, "ridge"),
        ({"site": "layer 2"}, "site"),
        ({"preserve": torch.eye(D_K, dtype=torch.float64)}, "second moment"),
        ({"projector": Projector(torch.eye(D_K, dtype=torch.float64)[:, :6])}, "projector"),
    ],
)
def test_a_shard_of_another_problem_is_refused(options: dict[str, object], named: str) -> None:
    joined = filled(0, 2)
    with pytest.raises(LedgerError, match=f"shard 1 has another {named}"):
        join_ledgers(joined, [filled(2, 4, **options)])
    assert joined.ids == ("0", "1")


def test_a_shard_of_another_weight_is_refused() -> None:
    other = EditLedger(gaussian(9, D_V, D_K), ridge=0.5, site="layer 1")
    with pytest.raises(LedgerError, match="shard 2 has another unedited weight than the ledger"):
        join_ledgers(empty(), [filled(0, 2), other])


def test_a_fact_in_two_shards_is_refused_and_the_first_stays() -> None:
    joined = empty()
    with pytest.raises(LedgerError, match="shard 2 has 1 facts that are held already, among them '1'"):
        join_ledgers(joined, [filled(0, 2), filled(1, 4)])
    assert joined.ids == ("0", "1")
