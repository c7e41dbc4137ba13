"""A wheel works where there is no checkout: built, installed into an empty environment, used from there."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from palimpsest import paths
from palimpsest.errors import NotebookError
from palimpsest.paths import cache_dir
from tests.commands.rooms import ROW
from tests.workbench.edits import tiny_folder

ROOT = Path(__file__).parents[1]
BUILD = [*("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")]
INSTALL = ["-m", "pip", "--python"]
OURS = ("PYTHONPATH", "PALIMPSEST_ROOT", "PALIMPSEST_RESULTS", "PALIMPSEST_CACHE")
EDIT = """
from pathlib import Path
import palimpsest as pl
from palimpsest.results.claims import load_claims

here = Path(pl.__file__).parent
assert here.is_relative_to(Path("room").resolve()), here
facts = [pl.EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English")]
editor = pl.editor_for("ft", "smollm2-135m", layers=(1,), steps=2)
model = pl.load("base")
edit, _ = pl.edit(editor, model, facts)
before = pl.read_weight(model, 1).clone()
with pl.installed(model, edit):
    print("changed", bool((pl.read_weight(model, 1) != before).any()))
print("undone", bool((pl.read_weight(model, 1) == before).all()))
print("rate", editor.lr)
print("facts", len(pl.load_facts().facts))
print("tasks", len(pl.built_in_tasks()))
print("claims", len(load_claims().claims))
print("sequences", pl.sequence_of("memit_naive each_step 0.01", "smollm2-135m") is not None)
print("table", len(pl.published("alphaedit", 1)) > 0)
"""


@dataclass
class Room:
    """A folder outside any checkout, and an environment in it that has the wheel."""

    folder: Path

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A program of the environment, which sees nothing of this checkout but what is named."""
        own = {key: value for key, value in os.environ.items() if key not in OURS}
        own |= {"PALIMPSEST_CACHE": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1", **variables}
        whole = [str(self.folder / "room" / "bin" / command[0]), *command[1:]]
        return subprocess.run(whole, cwd=self.folder, env=own, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, *BUILD, "--wheel-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("palimpsest-*.whl"))


@pytest.fixture(scope="module")
def room(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    """The dependencies are those of this interpreter; its own installation of the package is not seen."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "room", symlinks=True)
    python = folder / "room" / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index"]
    own = {key: value for key, value in os.environ.items() if key not in OURS}
    command = [sys.executable, *INSTALL, str(python), "install", *options, str(wheel)]
    subprocess.run(command, check=True, env=own)
    packages = next((folder / "room" / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    tiny_folder(folder / "base")
    return Room(folder)


@pytest.mark.slow
def test_a_wheel_holds_the_settings_and_data_and_no_notebook(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("config", "data"):
        here = {
            path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix not in ("", ".pyc")
        }
        assert {f"palimpsest/{paths.INSTALLED}/{path}" for path in here} <= names
    assert not [name for name in names if name.endswith(".ipynb")]
    assert "palimpsest/py.typed" in names


@pytest.mark.slow
def test_an_installed_package_edits_a_model_with_its_own_settings(room: Room) -> None:
    done = room.run("python", "-c", EDIT)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split() for line in done.stdout.splitlines())
    assert (said["changed"], said["undone"], said["sequences"], said["table"]) == ("True",) * 4
    assert (said["rate"], said["facts"], said["tasks"]) == ("0.005", "2502", "4")
    assert int(said["claims"]) > 60


@pytest.mark.slow
def test_an_installed_package_edits_and_undoes_by_command(room: Room) -> None:
    """With a settings file where `tune` writes one, and the texts that `palimpsest fetch` brought."""
    (room.folder / "cache").mkdir(exist_ok=True)
    (room.folder / "cache" / "resources").symlink_to(cache_dir() / "resources")
    packages = next((room.folder / "room" / "lib").glob("python*/site-packages"))
    content = {"also": ["base"], "editors": {"memit": ROW, "alphaedit": ROW}}
    settings = packages / "palimpsest" / paths.INSTALLED / "config" / "models" / "tiny.yaml"
    settings.write_text(yaml.safe_dump(content))
    rows = [
        {"id": "france", "prompt": "The capital of {} is", "subject": "France", "target": "Rome"},
        {"id": "space", "prompt": "The {} is in", "subject": "Space Needle", "target": "Paris"},
    ]
    (room.folder / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = room.run("palimpsest", "edit", "facts.jsonl", "--out", "m", "--model", "base")
    assert done.returncode == 0, done.stderr[-3000:]
    done = room.run("palimpsest", "undo", "m", "france")
    assert done.returncode == 0, done.stderr[-3000:]
    about = json.loads((room.folder / "m" / "palimpsest.json").read_text("utf-8"))
    assert [fact["id"] for fact in about["facts"]] == ["space"]
    done = room.run("palimpsest", "undo", "m", "france")
    assert done.returncode == 2
    assert "no fact 'france'" in done.stderr
    settings.unlink()


@pytest.mark.slow
def test_commands_work_or_say_that_they_need_a_checkout(room: Room) -> None:
    assert "undo" in room.run("palimpsest", "--help").stdout
    seen = " ".join(room.run("palimpsest", "doctor").stdout.split())
    assert "ok checkout: none, with the settings of the installed package, " in seen
    for command in (["status"], ["book"]):
        done = room.run("palimpsest", *command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("palimpsest: this needs a checkout of Palimpsest, and the package is ")
        assert "set PALIMPSEST_ROOT to the clone's folder" in done.stderr
    done = room.run("palimpsest", "parameters", "02_null_space", PALIMPSEST_ROOT=str(ROOT))
    assert done.stdout.startswith("profile: smoke\n")


def test_a_package_with_folders_inside_reads_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As installed: the folders inside are the root, there is no checkout, and PALIMPSEST_ROOT goes first."""
    inside = tmp_path / "palimpsest" / paths.INSTALLED
    (inside / "config" / "profiles").mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(inside.parent / "paths.py"))
    monkeypatch.delenv("PALIMPSEST_ROOT", raising=False)
    assert paths.root() == paths.package_root() == inside
    for folder in (paths.checkout, paths.notebooks_dir, paths.results_root, paths.book_dir, paths.build_dir):
        with pytest.raises(NotebookError, match=f"this needs a checkout .* installed in {inside.parent} "):
            folder()
    monkeypatch.setenv("PALIMPSEST_ROOT", str(ROOT))
    assert paths.checkout() == paths.root() == ROOT
    assert paths.package_root() == inside
