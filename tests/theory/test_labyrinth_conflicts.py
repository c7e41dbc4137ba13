"""Conflicts, deletions and other changes of stored facts, against the direct fit of what is left."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.theory import labyrinth as eq
from palimpsest.theory.labyrinth import FactBatch
from tests.problems import EPS, error, gaussian
from tests.theory.labyrinths import SEEDS, eye

pytestmark = pytest.mark.usefixtures("one_thread")


# L07: Proposition 3.5.


@dataclass(frozen=True, repr=False)
class Conflict:
    """Old facts in C and W, of which some are met again with other values."""

    weight: Tensor
    moment: Tensor
    cross: Tensor
    keys: Tensor  # of the overlap
    old: Tensor
    new: Tensor
    fresh: FactBatch

    def fit(self, resolved: Tensor) -> Tensor:
        """W*: (B − V_oldK_oᵀ + V_resolvedK_oᵀ + VKᵀ of fresh facts)(C + KKᵀ)⁻¹."""
        cross = self.cross + (resolved - self.old) @ self.keys.T + self.fresh.values @ self.fresh.keys.T
        moment = self.moment + self.fresh.keys @ self.fresh.keys.T
        return torch.from_numpy(np.linalg.solve(moment.numpy(), cross.T.numpy())).T

    def update(self, entered: Tensor, subtracted: Tensor) -> Tensor:
        overlap = FactBatch(self.keys, entered)
        return self.weight + eq.conflict_update(self.weight, self.moment, self.fresh, overlap, subtracted)


@st.composite
def conflicts(draw: st.DrawFn) -> Conflict:
    """Keys of length about one, C well conditioned, values of the overlap that differ by about one."""
    d_k, d_v, seed = draw(st.integers(2, 8)), draw(st.integers(1, 4)), draw(SEEDS)
    shared, more, fresh = (draw(st.integers(low, 4)) for low in (1, 0, 0))
    old_keys, old_values = (
        gaussian(seed, d_k, shared + more) / d_k**0.5,
        gaussian(seed + 1, d_v, shared + more),
    )
    base = gaussian(seed + 2, d_k, 2 * d_k + 4) / d_k**0.5
    weight = gaussian(seed + 3, d_v, d_k)
    cross = weight @ base @ base.T + old_values @ old_keys.T
    moment = base @ base.T + old_keys @ old_keys.T
    keys, old = old_keys[:, :shared], old_values[:, :shared]
    new_keys = gaussian(seed + 4, d_k, fresh) / d_k**0.5
    return Conflict(
        weight=torch.linalg.solve(moment, cross.T).T,
        moment=moment,
        cross=cross,
        keys=keys,
        old=old,
        new=old + 1 + gaussian(seed + 5, *old.shape).abs(),  # a sign in common: nothing cancels
        fresh=FactBatch(new_keys, gaussian(seed + 6, d_v, fresh)),
    )


RESOLVE = {"new": lambda old, new: new, "old": lambda old, new: old, "mean": lambda old, new: (old + new) / 2}


def slack(case: Conflict) -> float:
    return 1e-8 + 100 * EPS * float(torch.linalg.cond(case.moment))


@given(case=conflicts(), rule=st.sampled_from(sorted(RESOLVE)))
def test_corrected_conflict_update_is_the_direct_fit(case, rule):
    resolved = RESOLVE[rule](case.old, case.new)
    assert error(case.update(resolved, case.old), case.fit(resolved)) < slack(case)
    # If V_t is to hold the new values, what is subtracted is new + old − resolved.
    assert error(case.update(case.new, case.new + case.old - resolved), case.fit(resolved)) < slack(case)


@given(case=conflicts())
def test_printed_conflict_update_takes_new_for_old_and_old_for_new(case):
    for rule, other in (("new", "old"), ("old", "new"), ("mean", "mean")):
        resolved = RESOLVE[rule](case.old, case.new)
        printed, instead = case.update(case.new, resolved), case.fit(RESOLVE[other](case.old, case.new))
        assert error(printed, instead) < slack(case)
        if rule != other:
            assert error(printed, case.fit(resolved)) > 1e-3


@given(case=conflicts())
def test_other_readings_of_the_conflict_update_hold_for_one_rule_each(case):
    for rule, resolve in RESOLVE.items():
        resolved = resolve(case.old, case.new)
        proof = error(case.update(resolved, resolved), case.fit(resolved))  # as the proof has it
        mixed = error(case.update(case.new, case.old), case.fit(resolved))
        for found, right in ((proof, "old"), (mixed, "new")):
            assert found < slack(case) if rule == right else found > 1e-3


@st.composite
def changes(draw: st.DrawFn) -> tuple[Tensor, float, list[tuple[str, int, float]], int]:
    """W₀, λ, a list of operations (name, fact, weight) on up to five facts, and a seed."""
    seed = draw(SEEDS)
    operation = st.tuples(
        st.sampled_from(["insert", "forget", "overwrite", "reweight"]), st.integers(0, 4), st.floats(0.1, 4)
    )
    return (
        gaussian(seed, 2, draw(st.integers(2, 6))),
        10 ** draw(st.floats(-2, 1)),
        draw(st.lists(operation, min_size=1, max_size=12)),
        seed,
    )


def apply_change(
    kept: dict[int, tuple[Tensor, Tensor, float]],
    name: str,
    fact: int,
    weight: float,
    fresh: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """dC and dB of one operation; ``kept`` is changed. An operation without its fact does nothing."""
    was = kept.pop(fact, None)
    key, value = fresh
    if (name == "insert") == (was is None) and name != "forget":
        now = {"insert": (key, value, weight)}.get(name)
        if was is not None:
            now = (was[0], value, was[2]) if name == "overwrite" else (*was[:2], weight)
        kept[fact] = now
    elif was is not None and name != "forget":
        kept[fact] = was
    pairs = [(sign, fact_) for sign, fact_ in ((-1, was), (1, kept.get(fact))) if fact_ is not None]
    zero = torch.zeros(len(key), len(key)).double(), torch.zeros(len(value), len(key)).double()
    moment = sum((sign * w * k @ k.T for sign, (k, _, w) in pairs), start=zero[0])
    return moment, sum((sign * w * v @ k.T for sign, (k, v, w) in pairs), start=zero[1])


@given(given_=changes())
def test_any_sequence_of_changes_ends_at_the_fit_of_what_is_left(given_):
    start, ridge, operations, seed = given_
    d_v, d_k = start.shape
    weight, moment, kept = start, ridge * eye(d_k), {}
    for number, (name, fact, level) in enumerate(operations):
        fresh = gaussian(seed + 2 * number + 1, d_k, 1), gaussian(seed + 2 * number + 2, d_v, 1)
        d_moment, d_cross = apply_change(kept, name, fact, level, fresh)
        weight = weight + eq.general_update(weight, moment, d_moment, d_cross)
        moment = moment + d_moment
        rows = [ridge**0.5 * eye(d_k), *(w**0.5 * k.T for k, _, w in kept.values())]
        right = [ridge**0.5 * start.T, *(w**0.5 * v.T for _, v, w in kept.values())]
        wanted = np.linalg.lstsq(torch.cat(rows).numpy(), torch.cat(right).numpy(), rcond=None)[0]
        cond = float(torch.linalg.cond(moment))
        assert error(weight, torch.from_numpy(wanted).T) < 1e-8 + 1000 * EPS * cond
    if not kept:
        assert error(weight, start) < 1e-8 + 1000 * EPS / ridge * 100


@given(case=conflicts())
def test_insert_then_forget_and_an_overwrite_with_the_same_value_do_nothing(case):
    k, v = case.fresh.keys, case.fresh.values
    inserted = case.weight + eq.general_update(case.weight, case.moment, k @ k.T, v @ k.T)
    back = inserted + eq.general_update(inserted, case.moment + k @ k.T, -k @ k.T, -v @ k.T)
    assert error(back, case.weight) < slack(case)
    nothing = FactBatch(case.keys[:, :0], case.old[:, :0])
    same = eq.conflict_update(
        case.weight, case.moment, nothing, FactBatch(case.keys, case.old), subtracted=case.old
    )
    assert float(same.norm()) < slack(case) * float(case.weight.norm())


@given(case=conflicts())
def test_forgetting_at_another_key_than_the_stored_one_must_fail(case):
    assume(case.fresh.keys.shape[1] > 0)
    k, v = case.fresh.keys, case.fresh.values
    inserted = case.weight + eq.general_update(case.weight, case.moment, k @ k.T, v @ k.T)
    other = k + 0.2 * gaussian(0, *k.shape) / len(k) ** 0.5
    back = inserted + eq.general_update(inserted, case.moment + k @ k.T, -other @ other.T, -v @ other.T)
    assert error(back, case.weight) > 1e-4


# Eq. 31 and 32: memorise-the-latest by deletion or anew.


@given(case=conflicts(), seed=SEEDS, offset=st.floats(0.1, 10))
def test_deletion_keeps_an_initial_error_for_ever_and_solving_anew_forgets_it(case, seed, offset):
    d_v, d_k = case.weight.shape
    c, cross, nothing = case.moment, case.cross, FactBatch(case.keys[:, :0], case.old[:, :0])
    batches = [FactBatch(gaussian(seed + i, d_k, 2), gaussian(seed + 9 + i, d_v, 2)) for i in range(3)]
    started = offset * gaussian(seed + 20, d_v, d_k)
    exact, moved, previous = case.weight, case.weight + started, nothing
    for batch in batches:
        system = c + batch.keys @ batch.keys.T
        wanted = torch.from_numpy(
            np.linalg.solve(system.numpy(), (cross + batch.values @ batch.keys.T).T.numpy())
        ).T
        anew = moved + eq.latest_anew(moved, c, cross, batch)
        exact = exact + eq.latest_by_deletion(exact, c, previous, batch)
        moved = moved + eq.latest_by_deletion(moved, c, previous, batch)
        allowed = 1e-8 + 1000 * EPS * float(torch.linalg.cond(system))
        assert error(exact, wanted) < allowed
        assert error(anew, wanted, offset) < allowed
        assert error((moved - wanted) @ system, started @ c) < allowed * (1 + 1 / offset)
        previous = batch
