"""The forms a one-time problem is held in: when each is taken, and that none loses accuracy over time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given

from palimpsest.algebra import dual, one_time
from palimpsest.algebra.dual import Dual
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.primal import Primal
from palimpsest.algebra.problem import WELL_CONDITIONED, Problem
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.errors import SingularProblemError
from tests.algebra.ledgers import Site, histories, sites, some_ledger, walk
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


def form(ledger: EditLedger) -> type:
    return type(ledger._solved)


@given(site=sites(unique=True), history=histories)
def test_the_low_rank_path_equals_the_primal_solution(site, history):
    site = replace(site, ridge=site.ridge + 1.0)
    moment = site.half @ site.half.T if site.half.shape[1] else None
    for ledger, _, _, _, _ in walk(site, history):
        root = ledger.weights.sqrt()
        missing = ledger.values - site.base.double() @ ledger.keys
        problem = LeastSquares(root * ledger.keys, root * missing, moment, site.ridge, site.projector)
        wanted = solve(problem, path="primal").delta
        assert (ledger.total - wanted).norm() < 1e-9 * (site.base.norm() + wanted.norm())


def forbidden(problem: Problem, facts: object) -> None:
    raise AssertionError("solved anew")


@pytest.mark.parametrize("moment", [None, torch.eye(8, dtype=torch.float64)])
def test_a_well_conditioned_step_solves_nothing_anew(moment, monkeypatch):
    ledger = some_ledger(preserve=moment)
    monkeypatch.setattr(one_time, "solve", forbidden)
    steps = [
        ledger.insert(gaussian(7, 8, 2), gaussian(8, 3, 2), ["x", "y"]),
        ledger.replace(["x", "2"], gaussian(9, 3, 2)),
        ledger.reweight(["1"], torch.tensor([2.0])),
        ledger.forget(["x", "1"]),
    ]
    assert form(ledger) is Dual
    assert [int(torch.linalg.matrix_rank(step)) for step in steps] == [2, 2, 1, 2]
    with pytest.raises(AssertionError, match="solved anew"):
        ledger.insert(gaussian(7, 8, 3), gaussian(8, 3, 3), list("stu"))  # more facts than directions


CASES = {
    "few facts": (1e-3, 0, 4, Dual),
    "more facts than directions": (1e-3, 0, 20, Primal),
    "as many facts as directions": (10.0, 0, 8, Dual),
    "no ridge": (0.0, 0, 20, Primal),
    "keys fill what M leaves open": (1e-9, 5, 6, Primal),
    "M alone is enough": (0.0, 20, 6, Dual),
}


@pytest.mark.parametrize(("ridge", "rank", "n", "wanted"), CASES.values(), ids=list(CASES))
def test_the_form_follows_the_conditioning(ridge, rank, n, wanted):
    half = gaussian(4, 8, rank)
    site = Site(gaussian(0, 3, 8), half, ridge, torch.eye(8).double(), gaussian(0, 8, 0), "none")
    ledger = site.ledger()
    keys, values, names = gaussian(1, 8, n), gaussian(2, 3, n), [str(i) for i in range(n)]
    ledger.insert(keys, values, names)
    exact, _ = site.oracle({name: (keys[:, i], values[:, i], 1.0) for i, name in enumerate(names)})
    assert form(ledger) is wanted
    assert error(ledger.weight, exact) < 1e-11
    assert ledger.condition < WELL_CONDITIONED
    ledger.forget(names)
    assert not ledger.total.any()


def contaminated() -> tuple[EditLedger, EditLedger]:
    """A ledger that held a value of size 1e8 at its first key for a while, and one that never did."""
    keys, values, names = gaussian(1, 8, 6), gaussian(2, 3, 6), list("abcdef")
    ledger, clean = (EditLedger(gaussian(0, 3, 8), ridge=0.5) for _ in range(2))
    ledger.insert(keys[:, :1], 1e8 * gaussian(8, 3, 1), ["x"])
    for each in (ledger, clean):
        each.insert(keys, values, names)
    ledger.forget(["x"])
    return ledger, clean


def test_lost_accuracy_is_noticed_and_restored():
    ledger, clean = contaminated()
    assert error(ledger.weight, clean.weight) < 1e-12


def test_without_the_check_accuracy_would_stay_lost(monkeypatch):
    monkeypatch.setattr(dual, "DRIFT", float("inf"))
    ledger, clean = contaminated()
    assert error(ledger.weight, clean.weight) > 1e-9  # negative control


def test_a_long_history_does_not_drift(monkeypatch):
    rng, ledger = np.random.default_rng(0), EditLedger(gaussian(0, 4, 60), ridge=1.0)
    weight = ledger.weight
    ledger.insert(gaussian(1, 60, 20), gaussian(2, 4, 20), [str(i) for i in range(20)])
    weight = ledger.weight
    monkeypatch.setattr(one_time, "solve", forbidden)
    for i in range(300):
        n = int(rng.integers(1, 6))
        weight = weight + ledger.insert(
            gaussian(i, 60, n), gaussian(-i, 4, n), [f"{i}-{j}" for j in range(n)]
        )
        weight = weight + ledger.forget(list(rng.permutation(np.array(ledger.ids, dtype=object))[:n]))
    monkeypatch.undo()
    exact = one_time.solve(ledger._problem, ledger._solved.facts).total()
    assert error(ledger.total, exact) < 1e-12
    assert error(weight, ledger.base + exact) < 1e-12


def test_protected_keys_do_not_pass_for_directions():
    frame = torch.linalg.qr(gaussian(5, 4, 4)).Q
    site = Site(gaussian(0, 2, 4), gaussian(0, 4, 0), 0.0, frame[:, :1], frame[:, 1:], "complement")
    ledger = site.ledger()
    with pytest.raises(SingularProblemError):
        ledger.insert(site.span[:, :2], gaussian(1, 2, 2), ["a", "b"])
    ledger.insert(gaussian(2, 4, 1), gaussian(3, 2, 1), ["a"])  # the one free direction
    assert error(ledger.weight @ ledger.keys, ledger.values) < 1e-12
    small = replace(site, ridge=1e-9).ledger()
    small.insert(1e3 * site.span[:, :2], gaussian(1, 2, 2), ["a", "b"])
    assert torch.equal(small.weight, site.base)


@given(site=sites(unique=True), history=histories)
def test_the_estimate_of_the_primal_condition(site, history):
    for ledger, held, _, _, _ in walk(site, history):
        if form(ledger) is Dual and held and site.basis.shape[1] and ledger.condition < 1e8:
            _, cond = site.oracle(held)
            assert cond / 5 <= ledger._solved.primal_extremes.condition <= 1.1 * cond + 1e-6
