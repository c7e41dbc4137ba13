"""The ledger against a stacked least-squares fit of the facts that should be left, after any history."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.ledger import EditLedger
from palimpsest.errors import LedgerError, NonFiniteError, ShapeError, SingularProblemError
from tests.algebra.ledgers import Random, columns, end, histories, plan, sites, some_ledger, walk
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


@given(site=sites(), history=histories)
def test_any_history_ends_at_the_one_time_solution(site, history):
    longest = 0.0
    for ledger, _, weight, wanted, tolerance in walk(site, history):
        longest = max(longest, float(wanted.norm()))
        assert error(ledger.weight, wanted) < tolerance
        assert (weight - wanted).norm() < tolerance * longest


@given(site=sites(), history=histories)
def test_forgetting_everything_restores_the_weight(site, history):
    longest = float(site.base.double().norm())
    for ledger, held, weight, wanted, tolerance in walk(site, history):
        longest = max(longest, float(wanted.norm()))
        emptied = ledger.copy()
        weight = weight + emptied.forget(list(held))
        assert torch.equal(emptied.weight, site.base.double())
        assert emptied.ids == ()
        assert (weight - site.base.double()).norm() < tolerance * longest


@given(site=sites(), history=histories, seed=st.integers(0, 999))
def test_neither_order_nor_batches_matter(site, history, seed):
    ledger, held, _, _, tolerance = end(site, history)
    names = list(np.random.default_rng(seed).permutation(np.array(list(held), dtype=object)))
    other = site.ledger()
    for batch in (names,) if site.ridge == 0 else (names[:3], names[3:4], names[4:]):
        other.insert(*columns(site, [held[name] for name in batch], batch))
    assert error(other.weight, ledger.weight) < 2 * tolerance


@given(site=sites(unique=True), history=histories, seed=st.integers(0, 2**20))
def test_operations_that_undo_themselves(site, history, seed):
    ledger, held, _, _, tolerance = end(site, history)
    before, names = ledger.weight, Random(seed).some(list(held))
    assert not ledger.copy().replace(names, columns(site, [held[n] for n in names], names)[1]).any()
    same = ledger.copy()
    same.reweight(names, ledger.weights[[ledger.ids.index(n) for n in names]])
    assert error(same.weight, before) < tolerance
    back = ledger.copy()
    _, new, options, _ = plan(site, held, "insert", seed)
    back.insert(*new, **options)
    back.forget(new[2])
    assert error(back.weight, before) < tolerance
    assert back.ids == ledger.ids


@given(site=sites(), history=histories, n=st.integers(0, 5))
def test_outputs_are_those_of_the_weight(site, history, n):
    ledger, _, _, _, _ = end(site, history)
    keys = gaussian(n, site.base.shape[1], n)
    wanted = ledger.weight @ keys
    assert (ledger.outputs(keys) - wanted).norm() <= 1e-9 * (1 + float(ledger.weight.norm() * keys.norm()))


# What the operations mean, by hand.


def test_one_fact_by_hand():
    # W₀ = 0, k = (1, 2), v = 6, λ = 1: D = v kᵀ/(kᵀk + λ) = (1, 2); with w = 2 it is 12 kᵀ/11.
    ledger = EditLedger(torch.zeros(1, 2), ridge=1.0)
    step = ledger.insert(torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]]), ["a"])
    torch.testing.assert_close(step, torch.tensor([[1.0, 2.0]]).double())
    ledger.reweight(["a"], torch.tensor([2.0]))
    torch.testing.assert_close(ledger.weight, torch.tensor([[12.0, 24.0]]).double() / 11)


@pytest.mark.parametrize("ridge", [0.5, 0.0])
def test_a_weight_counts_facts(ridge):
    n, moment = 3, torch.eye(8, dtype=torch.float64)
    once, thrice = (some_ledger(ridge=ridge, preserve=moment) for _ in range(2))
    key, value = gaussian(5, 8, 1), gaussian(6, 3, 1)
    once.insert(key, value, ["x"], torch.tensor([3.0]))
    thrice.insert(key.expand(8, n), value.expand(3, n), ["x", "y", "z"])
    assert error(once.weight, thrice.weight) < 1e-12


@pytest.mark.parametrize("rule", ["new", "old", "mean"])
def test_a_collision_is_forgotten_where_it_was_stored(rule):
    ledger, plain = some_ledger(), some_ledger()
    key, value, other = gaussian(7, 8, 2), gaussian(8, 3, 2), ["9", "2"]
    ledger.insert(key, value, other, resolve=rule)
    old = plain.values[:, 2].clone()
    if rule == "old":
        plain.insert(key[:, :1], value[:, :1], ["9"])
    else:
        plain.forget(["2"])
        value[:, 1] = value[:, 1] if rule == "new" else (value[:, 1] + old) / 2
        plain.insert(key, value, other)
    assert ledger.ids == plain.ids
    assert error(ledger.weight, plain.weight) < 1e-12


def test_a_function_sees_colliding_values_in_the_order_of_the_call():
    ledger, seen = some_ledger(), []

    def largest(old: Tensor, new: Tensor) -> Tensor:
        seen.append((old, new))
        return torch.maximum(old, new)

    stored, value = ledger.values.clone(), gaussian(8, 3, 3)
    ledger.insert(gaussian(7, 8, 3), value, ["4", "new", "1"], resolve=largest)
    ((old, new),) = seen
    assert torch.equal(old, stored[:, [4, 1]])
    assert torch.equal(new, value[:, [0, 2]])
    assert torch.equal(ledger.values[:, [-3, -1]], torch.maximum(old, new))


def removed_at(ledger: EditLedger, key: Tensor, value: Tensor) -> Tensor:
    """W + (dB − W dC)(C + dC)⁻¹ for dC = −kkᵀ, dB = −vkᵀ: the weight less one fact, by normal equations."""
    total = ledger.keys @ ledger.keys.T + 0.5 * torch.eye(len(key))
    change = (ledger.weight @ key - value) @ key.T
    return ledger.weight + torch.linalg.solve(total - key @ key.T, change.T).T


def test_a_fact_must_be_removed_at_the_key_it_was_stored_with():
    ledger = some_ledger()
    key, value = ledger.keys[:, 2:3], ledger.values[:, 2:3]
    stored, elsewhere = removed_at(ledger, key, value), removed_at(ledger, key + 0.1, value)
    ledger.forget(["2"])
    assert error(stored, ledger.weight) < 1e-12
    assert error(elsewhere, ledger.weight) > 1e-3  # negative control


# Precision, copies, and tensors that the caller goes on using.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_last_product_is_rounded(dtype):
    ledger, exact = some_ledger(), some_ledger()
    key, value = gaussian(7, 8, 2), gaussian(8, 3, 2)
    for name, given_ in {"insert": (key, value, ["x", "y"]), "forget": (["x", "3"],)}.items():
        narrow, wide = getattr(ledger, name)(*given_, dtype=dtype), getattr(exact, name)(*given_)
        assert (narrow.dtype, wide.dtype) == (dtype, torch.float64)
        assert 0 < error(narrow.double(), wide) < 4 * torch.finfo(dtype).eps
        assert torch.equal(ledger.total, exact.total)


def test_a_ledger_has_tensors_of_its_own():
    weight, key, value = gaussian(0, 3, 8), gaussian(1, 8, 2), gaussian(2, 3, 2)
    ledger, strength = EditLedger(weight, ridge=1.0), torch.ones(2, dtype=torch.float64)
    weight += ledger.insert(key, value, ["a", "b"], strength)
    ledger.replace(["b"], value[:, :1])
    before = ledger.weight
    for tensor in (weight, key, value, strength):
        tensor += 1
    assert torch.equal(ledger.weight, before)
    assert error(ledger.weight, ledger.base + ledger.total) == 0
    ledger.forget(["a", "b"])
    assert torch.equal(ledger.weight, gaussian(0, 3, 8))


def test_a_copy_goes_its_own_way():
    ledger = some_ledger()
    other, before = ledger.copy(), ledger.weight
    other.forget(["0"])
    other.replace(["1"], gaussian(9, 3, 1))
    assert torch.equal(ledger.weight, before)
    assert len(ledger) == 6
    assert len(other) == 5
    assert "6 facts, site 'layer 3'" in repr(ledger)


def test_operations_on_nothing_do_nothing():
    ledger = some_ledger()
    none = torch.zeros(8, 0), torch.zeros(3, 0)
    for step in (ledger.insert(*none, []), ledger.forget([]), ledger.replace([], none[1])):
        assert step.shape == (3, 8)
        assert not step.any()
    assert torch.equal(ledger.weight, some_ledger().weight)


# Refusals: the message names what is wrong, and nothing has changed.

K, V = gaussian(7, 8, 2), gaussian(8, 3, 2)
NAN, INFINITE = torch.full((8, 2), torch.nan), torch.full((3, 2), torch.inf)
REFUSED: dict[str, tuple[Callable[[EditLedger], object], type[Exception], str]] = {
    "held id": (lambda x: x.insert(K, V, ["a", "4"]), LedgerError, "id '4' is held already; replace or"),
    "repeated id": (lambda x: x.insert(K, V, ["a", "a"]), LedgerError, "'a' is given 2 times in one call"),
    "repeated, resolved": (
        lambda x: x.insert(K, V, ["4", "4"], resolve="new"),
        LedgerError,
        "'4' is given 2",
    ),
    "one text": (lambda x: x.forget("12"), LedgerError, r"got the one text '12'; write \['12'\]"),
    "a number": (lambda x: x.forget([1]), LedgerError, "id 1 is no text; write '1'"),
    "unknown id": (
        lambda x: x.forget(["1", "z"]),
        LedgerError,
        "no fact 'z' at site 'layer 3', where 6 facts",
    ),
    "unknown, replace": (lambda x: x.replace(["z"], V[:, :1]), LedgerError, "no fact 'z'"),
    "unknown, reweight": (lambda x: x.reweight(["z"], torch.ones(1)), LedgerError, "no fact 'z'"),
    "forgotten twice": (lambda x: x.forget(["1", "1"]), LedgerError, "'1' is given 2 times"),
    "few ids": (lambda x: x.insert(K, V, ["a"]), ShapeError, r"keys must have shape \(8, 1\), got \(8, 2\)"),
    "narrow keys": (lambda x: x.insert(K[:7], V, ["a", "b"]), ShapeError, r"\(8, 2\), got \(7, 2\)"),
    "few values": (
        lambda x: x.insert(K, V[:, :1], ["a", "b"]),
        ShapeError,
        r"values .*\(3, 2\), got \(3, 1\)",
    ),
    "few new values": (lambda x: x.replace(["1", "2"], V[:, :1]), ShapeError, r"values .*\(3, 2\), got"),
    "few weights": (
        lambda x: x.reweight(["1", "2"], torch.ones(1)),
        ShapeError,
        r"weights .*\(2,\), got \(1,\)",
    ),
    "key not finite": (lambda x: x.insert(NAN, V, ["a", "b"]), NonFiniteError, "keys holds NaN or infinity"),
    "value not finite": (lambda x: x.insert(K, INFINITE, ["a", "b"]), NonFiniteError, "values holds NaN"),
    "new value not finite": (lambda x: x.replace(["1", "2"], INFINITE), NonFiniteError, "values holds NaN"),
    "weight not finite": (lambda x: x.reweight(["1"], NAN[:1, 0]), NonFiniteError, "weights holds NaN"),
    "weight 0": (
        lambda x: x.reweight(["1"], torch.zeros(1)),
        LedgerError,
        "'1' is 0; .* above 0, and forget",
    ),
    "weight below 0": (
        lambda x: x.insert(K, V, ["a", "b"], -K[0]),
        LedgerError,
        "weight of '[ab]' is -.*above 0",
    ),
    "unknown rule": (lambda x: x.insert(K, V, ["a", "b"], resolve="newest"), LedgerError, "got 'newest'"),
    "rule of a wrong shape": (
        lambda x: x.insert(K, V, ["a", "1"], resolve=lambda old, new: new[:1]),
        ShapeError,
        r"resolved values must have shape \(3, 1\), got \(1, 1\)",
    ),
    "rule without a value": (
        lambda x: x.insert(K, V, ["a", "1"], resolve=lambda old, new: new / 0),
        NonFiniteError,
        "resolved values holds NaN",
    ),
    "outputs of narrow keys": (lambda x: x.outputs(K[:7]), ShapeError, r"keys must have shape \(8, n\)"),
    "outputs of keys that are not finite": (lambda x: x.outputs(NAN), NonFiniteError, "keys holds NaN"),
    "overflow": (lambda x: x.insert(1e200 * K, V, ["a", "b"]), SingularProblemError, "Raise ridge"),
}


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_refused_operation_changes_nothing(call, kind, message, unchecked):
    ledger, before = some_ledger(), some_ledger()
    with pytest.raises(kind, match=message):
        call(ledger)
    assert ledger.ids == before.ids
    for name in ("keys", "values", "weights", "total", "weight"):
        assert torch.equal(getattr(ledger, name), getattr(before, name))


def test_a_problem_without_a_unique_solution_is_refused():
    ledger = EditLedger(gaussian(0, 3, 8))
    with pytest.raises(SingularProblemError, match=r"7 keys on 8 free directions, ridge 0.*Raise ridge"):
        ledger.insert(gaussian(1, 8, 7), gaussian(2, 3, 7), list("abcdefg"))
    assert len(ledger) == 0
    ledger.insert(gaussian(1, 8, 8), gaussian(2, 3, 8), list("abcdefgh"))
    assert (ledger.weight @ ledger.keys - ledger.values).norm() < 1e-10
    with pytest.raises(SingularProblemError, match="Raise ridge"):
        ledger.forget(["a"])
    assert len(ledger) == 8
    assert ledger.insert(gaussian(3, 8, 1), gaussian(4, 3, 1), ["a"], resolve="new").any()
    ledger.forget(ledger.ids)
    assert torch.equal(ledger.weight, gaussian(0, 3, 8))


BAD_SITES = {
    "weight must have shape": {"weight": torch.ones(3)},
    "preserve must have shape": {"preserve": torch.eye(7)},
    "ridge must be 0 or more": {"ridge": -1.0},
    "weight holds NaN": {"weight": NAN},
}


@pytest.mark.parametrize(("message", "change"), BAD_SITES.items(), ids=list(BAD_SITES))
def test_a_site_that_does_not_fit_is_refused(message, change, unchecked):
    with pytest.raises((ShapeError, NonFiniteError), match=message):
        EditLedger(**{"weight": torch.ones(3, 8)} | change)
