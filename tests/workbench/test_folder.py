"""A folder of an edited model goes on where it was left, and no death at any moment costs a fact."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palimpsest.algebra import ledger_file
from palimpsest.network.model import load, read_weight
from palimpsest.types import EditRequest
from palimpsest.workbench import folder
from palimpsest.workbench.commands import undo
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.work import Work
from tests.editing import same_bits, snapshot
from tests.tiny import tiny_model
from tests.workbench.edits import LAYERS, Killed, differing, facts, gap, told, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "no_texts")


# On disk


def test_a_folder_is_a_model_for_transformers_and_goes_on_where_it_was_left(
    base: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "deep" / "out", tmp_path / "whole"
    done = written(base, out, 6)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    assert differing(done.model, load(out)) == 0
    net = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(net.get_submodule("model.layers.1.mlp.down_proj").weight, read_weight(done.model, 1))
    again = EditedModel.open(out)
    assert (again.facts, again.base, again.editor) == (done.facts, done.base, done.editor)
    again.edit(facts(8)[6:], 3)
    longer = written(base, out, 8)  # skips the six that are held
    straight = written(base, whole, 8)
    assert list(longer.facts) == [fact.id for fact in facts(8)]
    assert differing(longer.model, straight.model) == differing(again.model, straight.model) == 0
    assert written(base, out, 8).facts == longer.facts  # nothing left to do


def test_undo_on_disk(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(base, out)
    assert len(undo(out, ["4", "1"])) == 6
    saved = EditedModel.open(out)
    assert list(saved.facts) == ["0", "2", "3", "5", "6", "7"]
    assert gap(saved, told(load(base), list(saved.facts.values()))) <= 1e-6  # other batches, in float32
    assert undo(out, everything=True).is_unedited
    assert same_bits(load(out), snapshot(load(base)))
    assert len(written(base, out)) == 8  # facts can be told again


KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import palimpsest.memory.moments
from tests.editing import texts
palimpsest.memory.moments.statistics_texts = texts
from palimpsest.workbench.commands import edit_folder
from palimpsest.algebra.ledger import EditLedger
from tests.workbench.edits import EDITOR, facts
save, calls = EditLedger.save, []
def dying(ledger, path):
    calls.append(path)
    if len(calls) == 5:  # in the second batch, after one of three ledgers
        os.kill(os.getpid(), signal.SIGKILL)
    save(ledger, path)
EditLedger.save = dying
edit_folder(facts(8), sys.argv[3], sys.argv[2], EDITOR, batch=3)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_with_nothing_lost(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-c", KILL, str(Path(__file__).parents[2]), str(base), str(out)]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    assert not out.exists()
    assert len(folder.read_description(Work(out).partial).facts) == 3
    asked = []
    monkeypatch.setattr(EditedModel, "edit", _noting(asked, EditedModel.edit))
    resumed = written(base, out)
    straight = written(base, whole)
    assert asked == [["3", "4", "5", "6", "7"], [str(i) for i in range(8)]]
    assert resumed.facts == straight.facts
    assert differing(resumed.model, straight.model) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]


def _noting(asked: list[list[str]], edit: Callable[..., Any]) -> Callable[..., Any]:
    def noting(self: EditedModel, requests: list[EditRequest], *rest: Any, **options: Any) -> Any:
        asked.append([request.id for request in requests])
        return edit(self, requests, *rest, **options)

    return noting


def dies_at(call: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> bool:
    """Run something that dies at its nth move of a file or folder and does nothing more; whether it died."""
    moves = count(1)

    def counted(move: Callable[..., Any]) -> Callable[..., Any]:
        def moved(*arguments: Any, **options: Any) -> Any:
            number = next(moves)
            if number == call:
                raise Killed
            return move(*arguments, **options) if number < call else None

        return moved

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted(os.replace))
        patched.setattr(os, "fsync", counted(os.fsync))  # after a step was appended to a ledger's file
        patched.setattr(Path, "rename", counted(Path.rename))
        patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        try:
            act()
        except Killed:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 20, 200])
def test_a_checkpoint_that_was_cut_short_is_left_where_the_description_was(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    out, straight, sizes = tmp_path / "out", written(base, tmp_path / "whole"), []
    append = ledger_file.append

    def dying(saved: ledger_file.Saved, *rest: Any) -> None:
        if saved.path.name == "layer-1.safetensors":
            sizes.append(saved.path.stat().st_size)
            append(saved, *rest)
            os.truncate(saved.path, sizes[-1] + left)
            raise Killed
        append(saved, *rest)

    with monkeypatch.context() as patched:
        patched.setattr("palimpsest.algebra.ledger.append", dying)
        with pytest.raises(Killed):
            written(base, out)
    partial = Work(out).partial
    assert folder.ledger_path(partial, 1).stat().st_size == sizes[0] + left
    assert len(folder.read_description(partial).facts) == 3
    resumed = written(base, out)
    assert resumed.facts == straight.facts
    assert differing(resumed.model, straight.model) == 0


@pytest.mark.slow
def test_a_checkpoint_appends(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, write = [], ledger_file.append

    def noting(saved: ledger_file.Saved, *rest: Any) -> ledger_file.Saved:
        before = saved.path.stat().st_size
        after = write(saved, *rest)
        sizes.append(after.path.stat().st_size - before)
        return after

    monkeypatch.setattr("palimpsest.algebra.ledger.append", noting)
    written(base, tmp_path / "out", 7, batch=1)
    assert len(sizes) == 6 * len(LAYERS)  # the first fact wrote whole files
    assert max(sizes) == min(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_death_at_any_moment_costs_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Of an edit, of a new folder or of one that goes on: run again, it ends at the same bits."""
    straight = written(base, tmp_path / "whole")
    if begun:
        written(base, tmp_path / "begun", 3)
    for call in range(1, 100):
        out = tmp_path / f"out{call}"
        if begun:
            shutil.copytree(tmp_path / "begun", out)
        died = dies_at(call, monkeypatch, partial(written, base, out))
        resumed = written(base, out)
        assert resumed.facts == straight.facts
        assert differing(resumed.model, straight.model) == 0
        assert differing(load(out), straight.model) == 0
        assert [path.name for path in tmp_path.glob(f"out{call}*")] == [out.name]
        if not died:
            break
    assert call > 10


@pytest.mark.slow
def test_a_death_during_undo_leaves_one_of_the_two_models(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(base, tmp_path / "begun", 3)
    for call in range(1, 100):
        out = tmp_path / f"out{call}"
        shutil.copytree(tmp_path / "begun", out)
        died = dies_at(call, monkeypatch, partial(undo, out, ["1"]))
        held = set(EditedModel.open(out).facts)
        assert held in ({"0", "2"}, {"0", "1", "2"})
        if "1" in held:
            undo(out, ["1"])
        assert set(EditedModel.open(out).facts) == {"0", "2"}
        if not died:
            break
    assert call > 5


def test_weights_are_written_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Never two copies at once; transformers reads the parts as one."""
    monkeypatch.setattr("palimpsest.workbench.folder.SMALLEST_SHARD", 1)
    edited = told(tiny_model("llama"), facts(2))
    edited.save(tmp_path / "parts")
    parts = sorted(path.stat().st_size for path in (tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) >= 4
    assert parts[-1] < sum(parts) / 2
    assert differing(EditedModel.open(tmp_path / "parts").model, edited.model) == 0
