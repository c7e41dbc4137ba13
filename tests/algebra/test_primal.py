"""The form for many facts: it equals the dense solution, costs no factorisation, and its memory is flat."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra import one_time, primal
from palimpsest.algebra.cholesky import Cholesky
from palimpsest.algebra.dual import Dual
from palimpsest.algebra.fact_file import FactFile
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.primal import PENDING, Primal
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.errors import ResourceError, SingularProblemError
from tests.algebra.ledgers import sites
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


def names(start: int, n: int) -> list[str]:
    return [str(i) for i in range(start, start + n)]


def twin(ledger: EditLedger) -> Tensor:
    """The total D by one dense primal solution of `palimpsest.algebra.solve` over the facts held."""
    root, p = ledger.weights.sqrt(), ledger._problem
    missing = ledger.values - ledger.base.double() @ ledger.keys
    problem = LeastSquares(root * ledger.keys, root * missing, p.preserve, p.ridge, p.projector)
    return solve(problem, path="primal").delta


def filled(n: int, d_k: int = 8, d_v: int = 3, **options) -> EditLedger:
    ledger = EditLedger(gaussian(0, d_v, d_k), **{"ridge": 0.5} | options)
    ledger.insert(gaussian(1, d_k, n), gaussian(2, d_v, n), names(0, n))
    return ledger


steps = st.lists(
    st.tuples(st.sampled_from(["insert", "forget", "replace", "reweight"]), st.integers(0, 2**20)),
    min_size=1,
    max_size=30,
)


def taken(ledger: EditLedger, operation: str, seed: int) -> Tensor:
    """One operation with random facts; the update it returned."""
    rng, (d_v, d_k) = np.random.default_rng(seed), ledger.base.shape
    n = int(rng.integers(1, 2 * d_k))
    some = list(rng.permutation(np.array(ledger.ids, dtype=object))[:n])
    if operation == "insert":
        weights = torch.from_numpy(10 ** rng.uniform(-1, 1, n))
        ids = [f"{seed}-{i}" for i in range(n)]
        return ledger.insert(gaussian(seed, d_k, n), gaussian(seed + 1, d_v, n), ids, weights, resolve="new")
    if operation == "replace":
        return ledger.replace(some, gaussian(seed, d_v, len(some)))
    if operation == "reweight":
        return ledger.reweight(some, torch.from_numpy(10 ** rng.uniform(-1, 1, len(some))))
    return ledger.forget(some)


@given(site=sites(unique=True), history=steps)
def test_any_history_over_the_switch_equals_the_dense_solution(site, history):
    site = dataclasses.replace(site, ridge=site.ridge + 0.1)
    ledger = site.ledger()
    weight, longest = ledger.weight, 1.0
    for operation, seed in history:
        weight = weight + taken(ledger, operation, seed)
        kept = ledger._problem.projector.kept
        assert isinstance(ledger._solved, Primal) or len(ledger) <= kept
        wanted = twin(ledger)
        longest = max(longest, float(wanted.norm()))
        assert (ledger.total - wanted).norm() < 1e-9 * (1 + wanted.norm())
        assert (weight - ledger.base.double() - wanted).norm() < 1e-9 * longest


@given(site=sites(unique=True), history=steps)
def test_the_condition_estimate_follows(site, history):
    site = dataclasses.replace(site, ridge=site.ridge + 0.1)
    ledger = site.ledger()
    for operation, seed in history:
        taken(ledger, operation, seed)
        if isinstance(ledger._solved, Primal) and len(ledger) and site.basis.shape[1]:
            inside = ledger._problem.projector.apply(ledger.weights.sqrt() * ledger.keys)
            whole = site.half @ site.half.T + inside @ inside.T
            whole.diagonal().add_(site.ridge)
            wanted = float(np.linalg.cond((site.basis.T @ whole @ site.basis).numpy()))
            assert wanted / 3 <= ledger.condition <= 1.01 * wanted


@pytest.mark.parametrize("moment", [None, torch.eye(8, dtype=torch.float64)])
def test_the_switch_in_both_directions(moment):
    ledger, forms = filled(8, preserve=moment), []
    for operation in ([names(8, 1)] * 1, names(4, 5)):
        if len(ledger) == 8:
            ledger.insert(gaussian(5, 8, 1), gaussian(6, 3, 1), operation[0])
        else:
            for name in operation:
                before = form(ledger)
                ledger.forget([name])
                forms.append((len(ledger), before, form(ledger)))
                assert error(ledger.total, twin(ledger)) < 1e-9
    # Facts stay in the file until half as many are left as there are directions.
    assert forms == [(n, Primal, Primal) for n in (8, 7, 6, 5)] + [(4, Primal, Dual)]


def form(ledger: EditLedger) -> type:
    return type(ledger._solved)


@given(site=sites(unique=True), extra=st.integers(-2, 3), seed=st.integers(0, 99))
def test_both_forms_agree_around_the_switch(site, extra, seed):
    site = dataclasses.replace(site, ridge=site.ridge + 0.1)
    ledger, d_k = site.ledger(), site.base.shape[1]
    n = max(1, ledger._problem.projector.kept + extra)
    ledger.insert(gaussian(seed, d_k, n), gaussian(seed + 1, len(site.base), n), names(0, n))
    facts = ledger._solved.facts.take(range(n))
    dual, primal_ = Dual.of(ledger._problem, facts), Primal.of(ledger._problem, facts)
    assert (dual.total() - primal_.total()).norm() < 1e-9 * (1 + dual.total().norm())


@given(seed=st.integers(0, 99), n=st.integers(9, 40), m=st.integers(1, 3))
def test_insert_then_forget_gives_the_ledger_back(seed, n, m):
    ledger, (keys, values) = filled(n), (gaussian(seed, 8, m), gaussian(seed + 1, 3, m))
    before, ids = ledger.total, ledger.ids
    step = ledger.insert(keys, values, names(n, m)) + ledger.forget(names(n, m))
    assert ledger.ids == ids
    assert error(ledger.total, before) < 1e-9
    assert step.norm() < 1e-9 * before.norm()


@given(seed=st.integers(0, 99), n=st.integers(9, 40))
def test_the_order_of_the_facts_does_not_matter(seed, n):
    ledger, other = filled(n), EditLedger(gaussian(0, 3, 8), ridge=0.5)
    order = np.random.default_rng(seed).permutation(n)
    for i in order:
        other.insert(ledger.keys[:, i : i + 1], ledger.values[:, i : i + 1], [str(i)])
    assert error(other.total, ledger.total) < 1e-9


def test_the_same_facts_in_the_same_order_give_the_same_bits():
    ledger = filled(700, 20, 3)
    other = filled(500, 20, 3)
    other.forget(names(3, 400))
    other.forget(other.ids)
    other.insert(ledger.keys, ledger.values, ledger.ids)
    assert form(other) is Primal
    assert torch.equal(other.total, ledger.total)


def counted(monkeypatch) -> list[int]:
    """Sizes of the matrices that are factorised from now on."""
    sizes, factorise = [], Cholesky.of.__func__

    def noting(cls, matrix):
        sizes.append(len(matrix))
        return factorise(cls, matrix)

    monkeypatch.setattr(Cholesky, "of", classmethod(noting))
    return sizes


@pytest.mark.parametrize("moment", [None, torch.eye(90, dtype=torch.float64)])
def test_no_step_solves_anew_or_factorises_more_than_what_waits(moment, monkeypatch):
    projector = Projector(complement=torch.linalg.qr(gaussian(3, 90, 4)).Q)
    ledger = filled(150, 90, projector=projector, preserve=moment)
    monkeypatch.setattr(one_time, "solve", forbidden)
    sizes, rng = counted(monkeypatch), np.random.default_rng(0)
    for i in range(3 * PENDING):
        some = list(rng.permutation(np.array(ledger.ids, dtype=object))[:2])
        ledger.forget(some)
        ledger.replace(list(ledger.ids[:1]), gaussian(i, 3, 1))
        ledger.insert(gaussian(-i, 90, 2), gaussian(i, 3, 2), [f"{i}-{j}" for j in range(2)])
    assert max(sizes) <= PENDING + 2  # once in a while, when the factor gives columns back
    assert error(ledger.total, twin(ledger)) < 1e-11


def forbidden(*_: object) -> None:
    raise AssertionError("solved anew")


def bytes_held(ledger: EditLedger) -> int:
    """Bytes of all tensors that a ledger refers to, each memory counted once."""
    found: dict[int, int] = {}
    waiting: list[object] = [ledger]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            found[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, np.ndarray):
            found[id(item)] = item.nbytes
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif type(item).__module__.startswith("palimpsest."):
            waiting.extend(vars(item).values())
    return sum(found.values())


def test_memory_is_flat_up_to_20_000_facts():
    d_k, d_v, batch = 24, 5, 500
    ledger, sizes = filled(batch, d_k, d_v), {}
    for start in range(batch, 20_000, batch):
        ledger.insert(gaussian(start, d_k, batch), gaussian(-start, d_v, batch), names(start, batch))
        ledger.insert(gaussian(start + 1, d_k, 1), gaussian(1, d_v, 1), [f"{start} more"])
        ledger.forget([f"{start} more"])
        sizes[len(ledger)] = bytes_held(ledger)
    assert max(sizes) == 20_000
    assert set(sizes.values()) == {sizes[2 * batch]}
    assert error(ledger.total, twin(ledger)) < 1e-9
    assert sum(n for _, n in ledger._solved.facts.runs) == 20_000
    few = {n: bytes_held(filled(n, 64)) for n in (16, 32)}  # negative control: the dual form grows
    assert few[32] > few[16] + 16 * 64 * 8
    # W₀ and D, C z, L, H z and four extreme directions each way; nothing of the facts.
    parts = 2 * d_v * d_k + 4 * d_v + d_k * d_k + 12 * d_k
    assert bytes_held(filled(1000, d_k, d_v)) == 8 * parts


def contaminated() -> tuple[EditLedger, EditLedger]:
    """A ledger that held a value of size 1e10 for a while, and one that never did."""
    ledger, clean = filled(40), filled(40)
    ledger.insert(gaussian(7, 8, 1), 1e10 * gaussian(8, 3, 1), ["x"])
    ledger.forget(["x"])
    return ledger, clean


def test_lost_accuracy_is_noticed_and_restored():
    ledger, clean = contaminated()
    assert form(ledger) is Primal
    assert error(ledger.total, clean.total) < 1e-11


@given(size=st.floats(0, 6), seed=st.integers(0, 99))
def test_a_key_of_any_size_leaves_no_trace(size, seed):
    ledger, clean = filled(40), filled(40)
    ledger.insert(10**size * gaussian(seed, 8, 1), gaussian(8, 3, 1), ["x"])
    ledger.forget(["x"])
    assert error(ledger.total, clean.total) < 1e-9


def test_without_the_checks_accuracy_would_stay_lost(monkeypatch):
    monkeypatch.setattr(primal, "DRIFT", float("inf"))
    ledger, clean = contaminated()
    assert error(ledger.total, clean.total) > 1e-9  # negative control


def test_forgetting_below_the_rank_is_refused():
    ledger = filled(10, ridge=0.0)
    ledger.forget(names(0, 2))
    before = ledger.total
    with pytest.raises(SingularProblemError, match=r"7 keys on 8 free directions, ridge 0.*Raise ridge"):
        ledger.forget(["5"])
    assert len(ledger) == 8
    assert torch.equal(ledger.total, before)
    assert error(ledger.total, twin(ledger)) < 1e-9


def test_keys_of_the_file_do_not_change_under_the_callers_hands():
    ledger = filled(30)
    keys, total = ledger.keys, ledger.total
    kept = keys.clone()
    keys += 1
    assert torch.equal(ledger.keys, kept)
    held = ledger.keys
    ledger.forget(["3"])
    ledger.insert(gaussian(7, 8, 2), gaussian(8, 3, 2), ["a", "b"])
    assert torch.equal(held, kept)
    assert not torch.equal(ledger.total, total)


def test_copies_share_the_file_and_go_their_own_ways():
    ledger = filled(30)
    one, two = ledger.copy(), ledger.copy()
    for each, seed in ((one, 3), (two, 4)):
        each.insert(gaussian(seed, 8, 2), gaussian(seed + 9, 3, 2), ["a", "b"])
        each.replace(["5"], gaussian(seed, 3, 1))
    assert one._solved.facts.records is two._solved.facts.records
    for each, seed in ((one, 3), (two, 4)):
        assert torch.equal(each.keys[:, -2:], gaussian(seed, 8, 2))
        assert torch.equal(each.values[:, 5:6], gaussian(seed, 3, 1))
        assert error(each.total, twin(each)) < 1e-11
    assert torch.equal(ledger.keys, gaussian(1, 8, 30))


def test_a_full_disk_is_named_and_changes_nothing(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    ledger, few = filled(30), filled(8)
    before = ledger.total
    with monkeypatch.context() as patched:
        patched.setattr("palimpsest.algebra.fact_file.tempfile.TemporaryFile", full)
        with pytest.raises(
            ResourceError, match=r"temporary file in .*no space left.*TMPDIR.*Nothing was changed"
        ):
            few.insert(gaussian(7, 8, 1), gaussian(8, 3, 1), ["a"])
    assert len(few) == 8

    class Full:
        write = full

        def __getattr__(self, name: str) -> object:
            return getattr(kept, name)

    records = ledger._solved.facts.records
    kept, records._file = records._file, Full()
    with pytest.raises(ResourceError, match="no space left"):
        ledger.insert(gaussian(7, 8, 1), gaussian(8, 3, 1), ["a"])
    records._file = kept
    assert len(ledger) == 30
    assert torch.equal(ledger.total, before)
    ledger.insert(gaussian(7, 8, 1), gaussian(8, 3, 1), ["a"])
    assert error(ledger.total, twin(ledger)) < 1e-11


def test_the_file_is_gone_with_its_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr("palimpsest.algebra.fact_file.tempfile.tempdir", str(tmp_path))
    ledger = filled(30)
    assert isinstance(ledger._solved.facts, FactFile)
    assert list(tmp_path.iterdir()) == []  # it has no name, so a crash leaves nothing either
