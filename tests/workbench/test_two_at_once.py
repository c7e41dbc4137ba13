"""Two processes of one command at once: they end as one does, on disk to the byte, and neither is hurt."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import killing
from tests.scripts import loaded
from tests.workbench.test_commands import checkout  # noqa: F401 -- a fixture
from tests.workbench.test_torture import PRELUDE, commands_of, small_clone

pytestmark = pytest.mark.slow

FETCH = """
import zipfile
import palimpsest.resources as resources
from palimpsest.files import file_sha256
def download(requirement, folder):
    path = folder / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake/data/a.txt", "hello")
    return path
sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
resources.PINS = {"fake": resources.Resource("fake==1.0", "fake/data", {"a.txt": sha256}, "MIT", "a fake")}
resources.fetch.__defaults__ = (download,)
resources.wikipedia_articles = lambda: []
import palimpsest.network.embedded
palimpsest.network.embedded.unpacked_model = lambda: None
"""
"""A resource that is made where others are downloaded."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("torture")


def ends_alike(deed: Any, folder: Path, statuses: tuple[int, ...] = (0, 0)) -> None:
    """Run a command once, and two of it at once from the same state; compare what is there then."""
    (folder / "before").mkdir(parents=True)
    deed.prepare(folder / "before")
    place = folder / "place"  # the same for both, since some files name it
    killing.again(folder / "before", place)
    code, _, said = killing.executed(deed, place)
    assert code == 0, said
    wanted = killing.snapshot(place, deed.watched)
    killing.again(folder / "before", place)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda _: killing.executed(deed, place), range(2)))
    assert sorted(code for code, _, _ in ended) == list(statuses), ended
    assert killing.difference(wanted, killing.snapshot(place, deed.watched)) == ""


@pytest.mark.parametrize("name", ["run", "confirm"])
def test_pages(name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = small_clone(tmp_path / "clone", monkeypatch)
    ends_alike(commands_of(script, clone)[name], tmp_path / "two")


def test_render(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a page whose sentence changed since its run."""
    clone = small_clone(tmp_path / "clone", monkeypatch)
    run = commands_of(script, clone)["run"]

    def improved(place: Path) -> None:
        run.prepare(place)
        code, _, said = killing.executed(run, place)
        assert code == 0, said
        notebook = place / "checkout" / "notebooks" / "01_tiny.ipynb"
        notebook.write_text(notebook.read_text().replace("is twice", "really is twice"))

    deed = killing.Deed(
        "render", improved, lambda place: ["render", "--profile", "smoke"], run.watched, run.environment
    )
    ends_alike(deed, tmp_path / "two")


def test_undo(script: ModuleType, base: Path, tmp_path: Path, own_cache: Path, checkout: Path) -> None:  # noqa: F811
    """The second finds that the fact is gone, and says so."""
    undo = {deed.name: deed for deed in script.edits(str(base), {"TORTURE_PRELUDE": PRELUDE})}["undo"]
    ends_alike(undo, tmp_path / "two", (0, 2))


def test_fetch(tmp_path: Path) -> None:
    def around(place: Path) -> dict[str, str]:
        return {"PALIMPSEST_CACHE": str(place / "cache"), "TORTURE_PRELUDE": FETCH}

    deed = killing.Deed("fetch", lambda place: None, lambda place: ["fetch"], ("cache",), around)
    ends_alike(deed, tmp_path / "two")
    assert (next((tmp_path / "two/place/cache/resources").iterdir()) / "a.txt").read_text() == "hello"
