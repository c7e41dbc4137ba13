"""The ledger's file: what is saved comes back, damage is named, and a killed process loses nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.spectrum import rank
from palimpsest.cache import tensor_sha256
from palimpsest.errors import LedgerError, ResourceError
from tests.algebra.ledgers import end, histories, sites, some_ledger
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")


@given(site=sites(), history=histories)
def test_what_is_saved_comes_back(tmp_path_factory, site, history):
    path = tmp_path_factory.mktemp("ledger") / "a.safetensors"
    ledger, _, _, _, tolerance = end(site, history)
    ledger.save(path)
    found = EditLedger.load(path, site.base, "layer 3")
    assert (found.ids, found.site) == (ledger.ids, "layer 3")
    for name in ("base", "keys", "values", "weights"):
        assert torch.equal(getattr(found, name), getattr(ledger, name))
    assert error(found.weight, ledger.weight) < 2 * tolerance
    found.forget(found.ids)
    assert torch.equal(found.weight, site.base.double())


def test_an_opened_ledger_goes_on(tmp_path):
    kept = null_space(gaussian(3, 8, 8) @ gaussian(3, 8, 8).T, rank(6))
    ledger = some_ledger(projector=kept, preserve=torch.eye(8))
    ledger.save(tmp_path / "a.safetensors")
    found = EditLedger.load(tmp_path / "a.safetensors")
    for each in (ledger, found):
        each.insert(gaussian(7, 8, 2), gaussian(8, 3, 2), ["2", "x"], resolve="mean")
        each.forget(["0"])
    assert found.ids == ledger.ids
    assert error(found.weight, ledger.weight) < 1e-12
    assert found._problem.projector.protected_energy == kept.protected_energy


@pytest.mark.parametrize("facts", [0, 6, 30])  # in neither form, in the dual one, in the primal one
def test_a_ledger_whose_moment_is_in_a_file_goes_on_bit_by_bit(tmp_path, facts):
    moment = gaussian(3, 8, 8) @ gaussian(3, 8, 8).T
    here, there = (EditLedger(gaussian(0, 3, 8), moment.clone(), 0.1, site="layer 3") for _ in range(2))
    there.spill()
    assert there._problem.preserve.data_ptr() != here._problem.preserve.data_ptr()
    for ledger in (here, there):
        names = [str(i) for i in range(facts)]
        ledger.insert(gaussian(1, 8, facts), gaussian(2, 3, facts), names)
        ledger.save(tmp_path / f"{ledger is there}.safetensors")
        ledger.insert(gaussian(7, 8, 2), gaussian(8, 3, 2), ["p", "q"])
        ledger.forget(names[:29])
    assert torch.equal(there.weight, here.weight)
    first, second = (tmp_path / f"{spilled}.safetensors" for spilled in (False, True))
    assert first.read_bytes() == second.read_bytes()
    assert torch.equal(EditLedger.load(second)._problem.preserve, moment)


def test_another_model_or_site_is_refused(tmp_path):
    path, ledger = tmp_path / "a.safetensors", some_ledger()
    ledger.save(path)
    assert len(EditLedger.load(path, ledger.base, "layer 3")) == 6
    with pytest.raises(LedgerError, match=r"a ledger of another model: .*as it was before any edit"):
        EditLedger.load(path, ledger.weight)
    with pytest.raises(LedgerError, match="another model"):
        EditLedger.load(path, ledger.base.float())
    with pytest.raises(LedgerError, match="is a ledger of site 'layer 3', not of 'layer 4'"):
        EditLedger.load(path, site="layer 4")


def test_damage_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    some_ledger().save(path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ResourceError, match=r"a.safetensors is missing or damaged .*an intact copy"):
            EditLedger.load(path)
    path.write_bytes(whole[:-3] + b"abc")
    with pytest.raises(ResourceError, match=r"a.safetensors is damaged: \w+ changed since .*intact copy"):
        EditLedger.load(path)
    with pytest.raises(ResourceError, match="missing or damaged"):
        EditLedger.load(tmp_path / "none.safetensors")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(LedgerError, match=r"holds no ledger; give a file written by EditLedger\.save"):
        EditLedger.load(path)
    some_ledger().save(path)
    save_file(load_file(path), path, metadata={"ledger": json.dumps({"schema": 99})})
    with pytest.raises(LedgerError, match="has format 99, this version reads 1; open it with the version"):
        EditLedger.load(path)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path, ledger = tmp_path / "a.safetensors", some_ledger()
    ledger.save(path)
    before = path.read_bytes()
    ledger.forget(["0"])

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("palimpsest.algebra.ledger_file.save_file", full)
    monkeypatch.setattr("palimpsest.algebra.ledger_file.os.fsync", full)
    for again in (ledger, EditLedger.load(path), some_ledger()):  # a step, a step, the whole file
        again.forget(["1"])
        with pytest.raises(
            ResourceError, match=r"no space left on device.*What was there before is unchanged"
        ):
            again.save(path)
        assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_content_hash_sees_bits_type_and_shape():
    x = torch.arange(6.0).reshape(2, 3)
    variants = [x, x + 0.5, x.double(), x.bfloat16(), x.reshape(3, 2), x.T.contiguous(), x[:, :0]]
    assert len({tensor_sha256(v) for v in variants}) == len(variants)
    assert tensor_sha256(x.T) == tensor_sha256(x.T.contiguous())


STEPS, PER_STEP = 400, 2
CHILD = f"""
import sys, torch
from pathlib import Path
from palimpsest.algebra.ledger import EditLedger
path = Path(sys.argv[1])
draw = lambda seed, *s: torch.randn(*s, generator=torch.Generator().manual_seed(seed))
ledger = EditLedger.load(path) if path.exists() else EditLedger(draw(0, 16, 900), ridge=9.0, site="layer 3")
for step in range(len(ledger) // {PER_STEP}, {STEPS}):
    ids = [f"{{step}}-{{i}}" for i in range({PER_STEP})]
    ledger.insert(draw(step + 1, 900, {PER_STEP}), draw(-step - 1, 16, {PER_STEP}), ids)
    ledger.save(path)
    print(step, flush=True)
"""


def run_and_kill(path: Path, steps: int) -> int:
    """Let a process insert and save until it has reported so many more steps, kill it; its last report."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    reported = [child.stdout.readline() for _ in range(steps)]
    child.send_signal(signal.SIGKILL)
    reported += child.stdout.read().splitlines()  # written before the signal came
    assert child.wait() == -signal.SIGKILL
    return int([line for line in reported if line.strip()][-1])


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    names = [f"{step}-{i}" for step in range(STEPS) for i in range(PER_STEP)]
    for steps in (1, 7, 23):
        last = run_and_kill(path, steps)
        found = EditLedger.load(path)
        assert PER_STEP * (last + 1) <= len(found) <= PER_STEP * (last + 2)
        assert list(found.ids) == names[: len(found)]
    assert error(found.weight, from_nothing(len(found) // PER_STEP)) < 1e-12


def from_nothing(steps: int) -> torch.Tensor:
    """The weight after so many of the child's steps, in one insertion."""

    def draw(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    ledger = EditLedger(draw(0, 16, 900), ridge=9.0, projector=Projector.identity(900))
    keys = torch.cat([draw(step + 1, 900, PER_STEP) for step in range(steps)], 1)
    values = torch.cat([draw(-step - 1, 16, PER_STEP) for step in range(steps)], 1)
    ledger.insert(keys, values, [str(i) for i in range(PER_STEP * steps)])
    return ledger.weight
