"""Beside an edited folder nothing of the user's is touched, and no fact of one process is lost to another."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.errors import BusyError, LedgerError, ModelError, RequestError, ResourceError, SequenceError
from palimpsest.files import lock_file
from palimpsest.workbench.commands import edit_folder, undo
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.work import OWNER, Owner, Work
from tests.test_locks import other_process
from tests.workbench.edits import EDITOR, Killed, differing, facts, files_of, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "no_texts")


def around(out: Path) -> list[str]:
    """What else than the folder itself is called after it."""
    return sorted(path.name for path in out.parent.glob(f"*{out.name}*") if path != out)


# Folders of the user's

NAMES = ("partial", "new", "replaced")


@pytest.mark.parametrize("edited", [False, True], ids=["anything", "an edited model"])
def test_folders_of_the_users_beside_it_are_left_alone(out: Path, base: Path, edited: bool) -> None:
    """Whatever their names; also edited models, which the user may have put aside."""
    for name in NAMES:
        if edited:
            shutil.copytree(out, out.with_name(f"out.{name}"))
        else:
            out.with_name(f"out.{name}").mkdir()
            (out.with_name(f"out.{name}") / "thesis.txt").write_text("three years")
    before = {name: files_of(out.with_name(f"out.{name}")) for name in NAMES}
    with pytest.raises(LedgerError, match="no fact 'wrong'"):
        undo(out, ["wrong"])
    written(base, out, 5)
    undo(out, ["1"])
    written(base, out.with_name("other"), 1)
    assert {name: files_of(out.with_name(f"out.{name}")) for name in NAMES} == before
    shutil.rmtree(out)
    assert len(written(base, out, 1)) == 1  # not what lies in out.replaced
    assert {name: files_of(out.with_name(f"out.{name}")) for name in NAMES} == before


@pytest.mark.parametrize(
    "content",
    [
        {"thesis.txt": "three years"},
        {OWNER: "{}"},
        {OWNER: "[1]"},
        {OWNER: "["},
        {OWNER: json.dumps({"of": "other", "task": "edit", "start": "", "end": ""})},
        {"new/palimpsest.json": "{}", "partial/palimpsest.json": "{}"},
    ],
)
def test_a_folder_that_has_the_name_of_the_work_folder_and_is_not_ours(
    out: Path, base: Path, content: dict[str, str]
) -> None:
    work = Work(out)
    for name, text in content.items():
        (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (work.folder / name).write_text(text)
    before = files_of(work.folder), files_of(out)
    message = r"/\.out\.palimpsest is in the way: .* move it away, or choose another folder than .*/out"
    for act in (lambda: written(base, out, 5), lambda: undo(out, ["1"]), lambda: undo(out, ["wrong"])):
        with pytest.raises(ResourceError, match=message):
            act()
    assert (files_of(work.folder), files_of(out)) == before
    assert around(out) == [".out.palimpsest"]


def test_a_command_that_is_not_valid_changes_nothing(
    out: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where an earlier one died between its moves: that one is finished by the next valid one."""
    finished_but_not_moved(out, monkeypatch)
    out.rename(Work(out).replaced)  # as if it had died after the first move
    before = files_of(out.parent)
    other = [replace(facts(1)[0], target="other")]
    calls = [
        lambda: undo(out, ["wrong"]),
        lambda: undo(out, ["0", "0"]),
        lambda: undo(out),
        lambda: edit_folder(other, out),
        lambda: edit_folder(facts(4), out, "gpt2"),
        lambda: edit_folder(facts(4), out, editor=replace(EDITOR, ridge=1.0)),
        lambda: edit_folder(facts(4), out, batch=0),
    ]
    for act in calls:
        with pytest.raises((LedgerError, ModelError, SequenceError, RequestError)):
            act()
    assert files_of(out.parent) == before
    assert list(EditedModel.open(out).facts) == ["0", "2"]  # also readable as it is
    assert list(undo(out, ["1"]).facts) == ["0", "2"]  # the command that died, again
    assert around(out) == []
    with pytest.raises(LedgerError, match="no fact '1'"):
        undo(out, ["1"])


def killed_second(settle):  # type: ignore[no-untyped-def]
    """`Work.settle` for a process that dies where it would move a finished folder."""

    def dying(work: Work) -> None:
        if work.current == work.new:
            raise Killed
        settle(work)

    return dying


def finished_but_not_moved(out: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """The work folder of an undo that died before the first of its moves."""
    with monkeypatch.context() as patched:
        patched.setattr(Work, "settle", killed_second(Work.settle))
        patched.setattr(Work, "abandon", lambda self: None)
        with pytest.raises(Killed):
            undo(out, ["1"])
    return Work(out)


@pytest.mark.parametrize("moved", [False, True], ids=["before its moves", "between them"])
def test_a_complete_folder_is_never_removed_for_another_model(
    out: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """An older copy was put back, or a work folder copied beside another model: both stay as they are."""
    written(base, tmp_path / "other", 1)
    work = finished_but_not_moved(out, monkeypatch)
    if moved:
        out.rename(work.replaced)
    else:
        shutil.rmtree(out)
    shutil.copytree(tmp_path / "other", out)
    before = files_of(tmp_path)
    lost = f"{work.new} and {work.replaced}" if moved else f"{work.new}"
    message = rf"out is another model than .*: {lost} would be lost; .* delete {work.folder}$"
    for act in (
        lambda: written(base, out, 4),
        lambda: undo(out, ["0"]),
        lambda: EditedModel.open(out).save(out),
    ):
        with pytest.raises(SequenceError, match=message):
            act()
    assert files_of(tmp_path) == before
    shutil.rmtree(work.folder)
    assert list(undo(out, ["0"]).facts) == []


@pytest.mark.parametrize("moved", [False, True], ids=["before its moves", "between them"])
def test_files_that_came_between_the_moves_stay(
    out: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    work = finished_but_not_moved(out, monkeypatch)
    (out / "notes").mkdir()
    (out / "notes" / "one.txt").write_text("mine")
    if moved:
        out.rename(work.replaced)
    assert list(undo(out, ["0"]).facts) == ["2"]
    assert (out / "notes" / "one.txt").read_text() == "mine"
    assert around(out) == []
    assert list(EditedModel.open(out).facts) == ["2"]


def test_files_of_the_users_in_it_stay(out: Path, base: Path) -> None:
    (out / "README.md").write_text("mine")
    (out / "notes" / "deep").mkdir(parents=True)
    (out / "notes" / "deep" / "one.txt").write_text("mine too")
    (out / "link").symlink_to("nowhere")
    written(base, out, 5)
    undo(out, ["1"])
    assert (out / "README.md").read_text() == "mine"
    assert (out / "notes" / "deep" / "one.txt").read_text() == "mine too"
    assert os.readlink(out / "link") == "nowhere"


def test_a_symbolic_link_stays_one(out: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for target, link in ((out, tmp_path / "link"), (tmp_path / "disk" / "new", tmp_path / "fresh")):
        link.symlink_to(target)
        written(base, link, 5)
        undo(link, ["1"])
        saved = EditedModel.open(link)
        saved.edit(facts(6)[5:])
        saved.save(link)
        assert link.is_symlink()
        assert list(EditedModel.open(target).facts) == ["0", "2", "3", "4", "5"]
        assert around(target) == []


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_has_the_permissions_of_any_new_file(base: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        written(base, tmp_path / "out", 2)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


# Several processes

EDIT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import palimpsest.memory.moments
from tests.editing import texts
palimpsest.memory.moments.statistics_texts = texts
from palimpsest.workbench.commands import edit_folder
from tests.workbench.edits import EDITOR, facts
first, last = int(sys.argv[4]), int(sys.argv[5])
edit_folder(facts(last)[first:], sys.argv[3], sys.argv[2], EDITOR)
"""


@pytest.mark.slow
def test_two_edits_of_one_folder_at_once_lose_no_fact(base: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", str(Path(__file__).parents[2])
    command = [sys.executable, "-c", EDIT, root, str(base), str(out)]
    both = [
        subprocess.Popen([*command, *numbers], stderr=subprocess.PIPE, text=True)
        for numbers in (("0", "4"), ("4", "8"))
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done, whole = EditedModel.open(out), written(base, tmp_path / "whole", 8, batch=1)
    assert set(done.facts) == set(whole.facts)
    assert differing(done.model, whole.model) == 0
    assert around(out) == []


def test_a_folder_that_is_in_use(out: Path, base: Path) -> None:
    with other_process(out) as process:
        for act in (lambda: edit_folder(facts(4), out, wait=0), lambda: undo(out, ["1"], wait=0)):
            with pytest.raises(BusyError, match=rf"/out is in use by process {process.pid} on .* since "):
                act()
        said = CliRunner().invoke(cli.app, ["undo", str(out), "1", "--no-wait"])
        assert (said.exit_code, f"/out is in use by process {process.pid} on" in said.stderr) == (2, True)
    assert len(written(base, out, 4)) == 4
    assert not lock_file(out).exists()


def test_a_model_opened_before_another_process_wrote_is_not_saved_over_it(out: Path, base: Path) -> None:
    mine = EditedModel.open(out)
    written(base, out, 5)
    mine.forget(["0"])
    with pytest.raises(
        SequenceError, match="was changed by another process since it was opened, which would"
    ):
        mine.save(out)
    assert len(EditedModel.open(out)) == 5
    mine.save(out.with_name("elsewhere"))
    mine.forget(["1"])
    mine.save(out.with_name("elsewhere"))  # its own work is no obstacle
    assert list(EditedModel.open(out.with_name("elsewhere")).facts) == ["2"]


# Unfinished edits


def interrupted(base: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int = 6) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(EditedModel, "save", killed)
        with pytest.raises(Killed):
            written(base, out, number)


def test_an_unfinished_edit_of_a_folder_that_was_changed_since(
    out: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To finish it would lose what a user put in its place."""
    shutil.copytree(out, tmp_path / "copy")
    undo(tmp_path / "copy", ["0"])
    interrupted(base, out, monkeypatch)
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "copy", out)
    before = files_of(tmp_path)
    with pytest.raises(
        SequenceError, match=r"out was changed since the unfinished edit in .* delete .* to keep"
    ):
        written(base, out, 6)
    with pytest.raises(SequenceError, match=r"an edit of .* was interrupted; finish it with the same"):
        EditedModel.open(out).save(out)
    assert files_of(tmp_path) == before
    shutil.rmtree(Work(out).folder)
    assert list(written(base, out, 4).facts) == ["1", "2", "0", "3"]


def test_the_first_edit_is_finished_wherever_it_was_moved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    interrupted(base, tmp_path / "here" / "m", monkeypatch, 3)
    (tmp_path / "here").rename(tmp_path / "there")
    assert len(written(base, tmp_path / "there" / "m", 4)) == 4
    assert around(tmp_path / "there" / "m") == []


def test_an_empty_work_folder_of_a_process_that_died_at_once(out: Path, base: Path) -> None:
    (Work(out).folder).mkdir()
    (Work(out).folder / f".owner-{'0' * 32}.json").write_text("{")
    written(base, out, 4)
    assert around(out) == []


def test_an_owner_is_read_as_it_was_written(tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    assert work.owner() is None
    work.begin("edit")
    assert work.owner() == Owner("out", "edit", "")
    work.begin("undo")  # it has begun already
    assert work.owner() == Owner("out", "edit", "")
    work.remove()
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_none_and_sizes_of_batches(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="the model's name is empty; leave it out for the default, or name one"
    ):
        edit_folder(facts(1), tmp_path / "out", "", EDITOR)
    for batch in (0, -1):
        with pytest.raises(RequestError, match=f"batch is {batch}; optimise the values of 1 or more facts"):
            edit_folder(facts(1), tmp_path / "out", str(base), EDITOR, batch=batch)
    with pytest.raises(ResourceError, match="/ is the root of the file system; choose a folder in it"):
        edit_folder(facts(1), "/", str(base), EDITOR)
    assert around(tmp_path / "out") == []
