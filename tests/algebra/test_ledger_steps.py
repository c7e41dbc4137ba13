"""Steps appended to a ledger's file: together they are what one save writes; a torn one costs only itself."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.ledger_file import MARK
from palimpsest.cache import tensor_sha256
from palimpsest.errors import LedgerError, ResourceError, SingularProblemError
from tests.algebra.ledgers import histories, plan, same_facts, sites, some_ledger
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(path: Path) -> int:
    return path.read_bytes().count(MARK)


def added(ledger: EditLedger, name: str, seed: int = 7) -> None:
    ledger.insert(gaussian(seed, 8, 1), gaussian(seed + 1, 3, 1), [name])


def alike(one: EditLedger, two: EditLedger) -> bool:
    names = ("keys", "values", "weights", "base")
    return one.ids == two.ids and all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


@given(site=sites(unique=True), history=histories, reopened=st.sets(st.integers(0, 11)))
def test_steps_appended_load_as_one_save(tmp_path_factory, site, history, reopened):
    folder = tmp_path_factory.mktemp("ledger")
    ledger, held = site.ledger(), {}
    for i, (operation, seed) in enumerate(history):
        method, given_, options, after = plan(site, held, operation, seed)
        try:
            getattr(ledger, method)(*given_, **options)
            held = after
        except SingularProblemError:
            pass
        ledger.save(folder / "steps")
        ledger.copy().save(folder / f"{i}")
        found = EditLedger.load(folder / "steps")
        assert alike(found, ledger)
        assert alike(found, EditLedger.load(folder / f"{i}"))
        assert same_facts(found, held)
        if i in reopened:
            ledger = found


@pytest.mark.parametrize("held", [6, 60])  # fewer and more facts than directions
def test_a_step_writes_what_changed(tmp_path, held):
    path, ledger = tmp_path / "a", some_ledger(held)
    ledger.save(path)
    whole, sizes = path.stat().st_size, [path.stat().st_size]
    operations = [
        lambda: added(ledger, "x"),
        lambda: ledger.replace(["3"], gaussian(9, 3, 1)),
        lambda: ledger.forget(["2"]),
        lambda: ledger.reweight(["5"], torch.tensor([2.0])),
        lambda: None,
    ]
    for i, operation in enumerate(operations):
        operation()
        ledger.save(path)
        sizes.append(path.stat().st_size)
        assert blocks(path) == min(i + 1, 4)
    grown = [after - before for before, after in pairwise(sizes)]
    assert grown[-1] == 0  # nothing had changed
    assert all(0 < step < 500 for step in grown[:-1])
    assert whole > 8 * (held * 12 + 24)
    assert alike(EditLedger.load(path), ledger)


def test_an_opened_ledger_appends_too(tmp_path):
    path = tmp_path / "a"
    some_ledger().save(path)
    for i in range(3):
        ledger = EditLedger.load(path)
        added(ledger, f"x{i}", i)
        ledger.save(path)
    assert blocks(path) == 3
    assert EditLedger.load(path).ids[-3:] == ("x0", "x1", "x2")


def test_a_torn_step_costs_only_itself(tmp_path):
    path, ledger = tmp_path / "a", some_ledger()
    ledger.save(path)
    added(ledger, "x")
    ledger.save(path)
    before, whole = ledger.copy(), path.stat().st_size
    ledger.forget(["0"])
    added(ledger, "y")
    ledger.save(path)
    content = path.read_bytes()
    torn = [content[:size] for size in range(whole, len(content))]
    torn += [content[:whole] + bytes(len(content) - whole), content[:-9] + bytes(1) + content[-8:]]
    for some in torn:
        path.write_bytes(some)
        found = EditLedger.load(path)
        assert alike(found, before)
    added(found, "z")
    found.save(path)  # as a whole, because nothing can follow what was torn
    assert blocks(path) == 0
    assert alike(EditLedger.load(path), found)


def test_a_damaged_step_before_another_is_named(tmp_path):
    path, ledger = tmp_path / "a", some_ledger()
    ledger.save(path)
    start = path.stat().st_size
    for name in "xy":
        added(ledger, name, ord(name))
        ledger.save(path)
    content = bytearray(path.read_bytes())
    for at in (start, start + 12, start + 20, start + 200):
        changed = content.copy()
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(
            ResourceError, match=rf"a is damaged: the step at byte {start} changed.*intact copy"
        ):
            EditLedger.load(path)


def test_what_something_else_wrote_is_not_appended_to(tmp_path):
    path, ledger, other = tmp_path / "a", some_ledger(), some_ledger()
    ledger.save(path)
    other.save(path)  # the same model and site, another history
    for each, name in ((ledger, "x"), (other, "y")):
        added(each, name)
        each.save(path)
        assert blocks(path) == 0
        assert alike(EditLedger.load(path), each)
    path.unlink()
    other.save(path)
    assert alike(EditLedger.load(path), other)


def test_a_file_that_is_mostly_outdated_is_written_again(tmp_path):
    path, ledger = tmp_path / "a", some_ledger()
    ledger.save(path)
    sizes = []
    for i in range(250):
        ledger.replace(["3"], gaussian(i, 3, 1))
        ledger.save(path)
        sizes.append(path.stat().st_size)
    assert sorted(sizes) != sizes
    assert alike(EditLedger.load(path), ledger)


def test_a_ledger_of_another_model_or_site_is_not_overwritten(tmp_path):
    path, ledger = tmp_path / "a", some_ledger()
    ledger.save(path)
    before = path.read_bytes()
    for other in (EditLedger(gaussian(5, 3, 8), ridge=1.0, site="layer 3"), some_ledger(site="layer 4")):
        with pytest.raises(
            LedgerError, match=r"another model or site \('layer 3'\), which would be lost; save to"
        ):
            other.save(path)
        assert path.read_bytes() == before
    path.write_bytes(b"no ledger at all")
    other.save(path)
    assert EditLedger.load(path).site == "layer 4"


def test_a_file_without_steps_is_read_as_earlier_versions_wrote_it(tmp_path):
    ledger = some_ledger(preserve=torch.eye(8, dtype=torch.float64))
    tensors = {name: getattr(ledger, name).contiguous() for name in ("base", "keys", "values", "weights")}
    tensors |= {"preserve": torch.eye(8, dtype=torch.float64), "complement": torch.zeros(8, 0).double()}
    sums = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    about = {"schema": 1, "sha256": sums, "site": "layer 3", "ridge": 0.5, "ids": ledger.ids}
    save_file(tensors, tmp_path / "a", metadata={"ledger": json.dumps(about)})
    found = EditLedger.load(tmp_path / "a", ledger.base, "layer 3")
    assert alike(found, ledger)
    assert error(found.total, ledger.total) < 1e-12
    added(found, "x")
    found.save(tmp_path / "a")
    assert blocks(tmp_path / "a") == 1
    assert EditLedger.load(tmp_path / "a").ids == (*ledger.ids, "x")
