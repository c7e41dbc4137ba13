"""What editing and undoing refuse: the message says what to do, and model and folder stay as they were."""

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palimpsest.algebra import ledger_file
from palimpsest.algebra.ledger import EditLedger
from palimpsest.errors import (
    LedgerError,
    ModelError,
    NonFiniteError,
    RequestError,
    ResourceError,
    SequenceError,
)
from palimpsest.network.model import load, read_weight, write_weight
from palimpsest.types import EditRequest
from palimpsest.workbench import edited_model, steps
from palimpsest.workbench.commands import edit_folder, undo
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.steps import rounded_weight
from palimpsest.workbench.work import Work
from tests.editing import same_bits, snapshot
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, Killed, facts, files_of, told, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "no_texts")


# Errors: the message, and nothing lost


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        ([facts(2)[0]] * 2, LedgerError, "'0'"),
        ([facts(2)[1]], LedgerError, "fact '1' is held already; forget it first, or give another id"),
        (
            [replace(facts(2)[1], id="new", target="other")],
            RequestError,
            "facts '1' and 'new' both ask .*; keep one of them, or forget the one that is held",
        ),
    ],
)
def test_facts_that_do_not_fit(requests: list[EditRequest], error: type, message: str) -> None:
    done = told(tiny_model("llama"), facts(2))
    before = snapshot(done.model)
    with pytest.raises(error, match=message):
        done.edit(requests)
    assert same_bits(done.model, before)
    assert list(done.facts) == ["0", "1"]


def test_an_unknown_fact_is_named_and_nothing_is_forgotten(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(base, out, 3)
    before = files_of(out)
    with pytest.raises(
        LedgerError, match="no fact '7', 'x' among the 3 that are held; nothing was forgotten"
    ):
        undo(out, ["1", "7", "x"])
    with pytest.raises(LedgerError, match="'1'"):
        undo(out, ["1", "1"])
    for both in ({"ids": ["1"], "everything": True}, {}):
        with pytest.raises(LedgerError, match="their ids, or all of them, and not both"):
            undo(out, **both)
    assert files_of(out) == before


def test_weights_changed_by_someone_else(base: Path, tmp_path: Path) -> None:
    done = told(tiny_model("llama"), facts(2))
    write_weight(done.model, 3, read_weight(done.model, 3) * 2)
    with pytest.raises(ModelError, match="in layers that are not edited were changed by something else than"):
        done.save(tmp_path / "x")
    write_weight(done.model, 1, read_weight(done.model, 1) * 2)
    before = snapshot(done.model)
    for act in (
        lambda: done.edit(facts(3)[2:]),
        lambda: done.forget(["1"]),
        lambda: done.save(tmp_path / "x"),
    ):
        with pytest.raises(
            ModelError, match="in layer 1 were changed by something else than this EditedModel; take"
        ):
            act()
    assert same_bits(done.model, before)
    out = tmp_path / "out"
    written(base, out, 2)
    model = load(out)
    write_weight(model, 1, read_weight(model, 1) + 1e-3)
    model.net.save_pretrained(out)
    changed = files_of(out)
    for act in (lambda: undo(out, ["1"]), lambda: written(base, out, 3)):
        with pytest.raises(
            ModelError, match="are not those that were saved with its ledgers; restore the folder"
        ):
            act()
    assert files_of(out) == changed


def no_description(out: Path, other: Path) -> None:
    (out / "palimpsest.json").unlink()


def damaged_description(out: Path, other: Path) -> None:
    path = out / "palimpsest.json"
    path.write_bytes(path.read_bytes()[:-100])


def later_format(out: Path, other: Path) -> None:
    path = out / "palimpsest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))


def no_ledger(out: Path, other: Path) -> None:
    (out / "ledgers/layer-1.safetensors").unlink()


def damaged_ledger(out: Path, other: Path) -> None:
    path = out / "ledgers/layer-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def another_layer(out: Path, other: Path) -> None:
    shutil.copyfile(out / "ledgers/layer-0.safetensors", out / "ledgers/layer-1.safetensors")


def another_model(out: Path, other: Path) -> None:
    shutil.copyfile(other / "ledgers/layer-1.safetensors", out / "ledgers/layer-1.safetensors")


def fewer_facts(out: Path, other: Path) -> None:
    ledger = EditLedger.load(out / "ledgers/layer-1.safetensors")
    ledger.forget(["2"])
    ledger.save(out / "ledgers/layer-1.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (no_description, LedgerError, "holds no edited model \\(it has no palimpsest.json\\); give a folder"),
        (
            damaged_description,
            ResourceError,
            "palimpsest.json is damaged: .*; restore it from an intact copy",
        ),
        (
            later_format,
            LedgerError,
            "has format 3, this version reads 2; open it with the version of palimpsest",
        ),
        (no_ledger, ResourceError, "layer-1.safetensors is missing; restore it from an intact copy"),
        (damaged_ledger, ResourceError, "layer-1.safetensors is damaged: .* changed since it was written"),
        (another_layer, LedgerError, "is a ledger of site 'layer 0', not of 'layer 1'"),
        (another_model, LedgerError, "is a ledger of another model than .*base: its unedited weight differs"),
        (fewer_facts, LedgerError, "lacks 1 of the facts that palimpsest.json names, '2' first; restore"),
    ],
)
def test_damage(
    base: Path, tmp_path: Path, damage: Callable[[Path, Path], None], error: type, message: str
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    written(base, out, 3)
    told(tiny_model("llama", seed=1), facts(3)).save(other)
    damage(out, other)
    before = files_of(out)
    with pytest.raises(error, match=message):
        undo(out, ["1"])
    assert files_of(out) == before


def test_a_folder_of_something_else_is_refused(base: Path, tmp_path: Path) -> None:
    before = files_of(base)
    with pytest.raises(
        ResourceError, match="exists and holds no edited model; choose a folder that does not"
    ):
        written(base, base)
    with pytest.raises(ResourceError, match="exists and holds no edited model"):
        told(tiny_model("llama"), facts(1)).save(base)
    with pytest.raises(LedgerError, match="no fact was written yet, so there is nothing to save; call edit"):
        EditedModel(tiny_model("llama"), EDITOR).save(tmp_path / "out")
    assert files_of(base) == before


def test_a_folder_is_continued_only_as_it_was_made(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(base, out, 2)
    before = files_of(out)
    other = [replace(facts(2)[1], target="other")]
    calls: list[tuple[tuple[Any, ...], type, str]] = [
        ((facts(3), out, "gpt2"), ModelError, "was made from .*base, not from gpt2; leave the model out"),
        (
            (facts(3), out, None, replace(EDITOR, ridge=1.0)),
            SequenceError,
            "was made with another sequence or other settings than Sequential.*; leave the sequence out",
        ),
        ((other, out), LedgerError, "id '1' is held by .* -> 'other'; undo the old one first"),
    ]
    for arguments, error, message in calls:
        with pytest.raises(error, match=message):
            edit_folder(*arguments)
    assert files_of(out) == before
    assert len(edit_folder(facts(3), out)) == 3


def test_an_interrupted_edit_comes_before_undo(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    written(base, out, 3)
    with monkeypatch.context() as patched:
        patched.setattr(EditedModel, "save", _killed)
        with pytest.raises(Killed):
            written(base, out, 6)
    with pytest.raises(
        SequenceError, match=r"was interrupted; finish it with the same command .*\.out\.palimpsest to"
    ):
        undo(out, ["1"])
    tiny_model("llama", seed=1).net.save_pretrained(base)
    with pytest.raises(
        ModelError, match=r"holds an unfinished run on .*, whose weights are others than those of"
    ):
        written(base, out, 6)
    tiny_model("llama").net.save_pretrained(base)
    assert len(written(base, out, 6)) == 6
    assert len(undo(out, ["1"])) == 5


def _killed(*_: Any) -> None:
    raise Killed


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_the_model_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    written(base, out, 3)
    before = files_of(out)
    with monkeypatch.context() as patched:
        patched.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(
            ResourceError, match=r"could not write .*out: .*No space left .* before is unchanged"
        ):
            undo(out, ["1"])
        with pytest.raises(ResourceError, match="No space left"):
            written(base, out, 5)
    assert files_of(out) == before
    assert not Work(out).new.exists()
    assert len(written(base, out, 5)) == 5  # from what was kept beside it


def test_a_full_disk_while_a_ledger_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(ledger_file, "save_file", full)
        with pytest.raises(ResourceError, match=r"could not write .*layer-0.safetensors: .*No space left"):
            written(base, out, 3)
    assert not out.exists()
    assert len(written(base, out, 3)) == 3


def test_a_folder_that_cannot_be_moved(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", Path.rename
    written(base, out, 3)
    before = files_of(out)

    def refused(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(ResourceError, match=r"could not write .*out: .*Permission denied"):
        undo(out, ["1"])
    assert files_of(out) == before
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_a_weight_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = told(tiny_model("llama"), facts(2))
    before = snapshot(done.model)
    monkeypatch.setattr(steps, "rounded_weight", lambda ledger: rounded_weight(ledger) * float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"layer 0: a weight does not fit into torch.float32; nothing was"
    ):
        done.forget(["1"])
    assert same_bits(done.model, before)
    assert list(done.facts) == ["0", "1"]


def test_an_edit_of_no_facts_prepares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments of a large model take minutes, and nobody asked for them."""
    model = tiny_model("llama")
    before, edited = snapshot(model), EditedModel(model, EDITOR)
    monkeypatch.setattr(edited_model.Sequential, "set_up", None)  # to prepare would fail
    edited.edit([])
    assert same_bits(model, before)
    assert not edited.facts


def test_ledgers_go_on_without_the_second_moments_that_they_hold() -> None:
    """A state keeps one copy of C₀; more facts go in as if it kept two."""
    model = tiny_model("llama")
    edited = told(model, facts(2))
    assert edited._state is not None
    assert not edited._state.prepared.moments
    edited.edit(facts(3)[2:])
    whole = told(tiny_model("llama"), facts(3), batch=2)
    for layer, ledger in edited.ledgers.items():
        assert ledger.ids == whole.ledgers[layer].ids
    assert same_bits(model, snapshot(whole.model))
