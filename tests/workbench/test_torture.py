"""A sample of `make torture` on a tiny model: killed and repeated, a command ends the same."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import killing
from tests.clone import TOY, WORK, Clone, make_clone
from tests.scripts import loaded
from tests.workbench.test_commands import checkout  # noqa: F401 -- a fixture

ROOT = Path(__file__).parents[2]
PRELUDE = f"""
sys.path.insert(0, {str(ROOT)!r})
import palimpsest.memory.moments
from tests.editing import texts
palimpsest.memory.moments.statistics_texts = texts
"""


def small_clone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A repository of one page, whose code ends in a function that the page runs."""
    clone = make_clone(folder, monkeypatch, whole=True)
    clone.toy.write_text(f"{TOY.partition('def thorough')[0].rstrip()}\n")
    clone.write_notebook(work=WORK.partition("if seed < 0")[0].replace(", thorough", ""))
    clone.commit()
    clone.git("add", "--force", "results/smoke/tolerances.yaml")
    clone.commit()
    return clone


def commands_of(script: ModuleType, clone: Clone) -> dict[str, Any]:
    """Commands on the page of a small clone, by name."""
    return {deed.name: deed for deed in script.pages(clone.root, "01_tiny", "toy.py")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("torture")


@pytest.mark.nightly
@pytest.mark.parametrize(("number", "kills"), [(0, 4), (1, 3), (2, 4)], ids=["edit", "edit on", "undo"])
def test_killed_at_random_moments(
    number: int,
    kills: int,
    script: ModuleType,
    base: Path,
    tmp_path: Path,
    own_cache: Path,
    checkout: Path,  # noqa: F811
) -> None:
    """The seed is fixed; `make torture` chooses others."""
    deed = script.edits(str(base), {"TORTURE_PRELUDE": PRELUDE})[number]
    made = killing.torture(deed, kills, random.Random(number), tmp_path / "torture")
    assert [kill.fault for kill in made if kill.fault] == []
    assert sum(kill.reached for kill in made) >= min(kills, 2)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["run", "confirm"])
def test_pages_killed_at_random_moments(
    name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a small clone, half of them between two operations, one of all processes of the command."""
    deed = commands_of(script, small_clone(tmp_path / "clone", monkeypatch))[name]
    made = killing.torture(deed, 4, random.Random(5), tmp_path / "torture")
    assert [kill.fault for kill in made if kill.fault] == []
    assert sum(kill.reached for kill in made) >= 2


def test_a_child_that_lives_on_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    around = os.environ | {"TMPDIR": str(tmp_path / killing.TEMPORARY)}
    with subprocess.Popen(command, env=around) as process:
        assert killing.survivors(tmp_path / "another", 0.0) == []
        (name,) = killing.survivors(tmp_path, 0.0)
        assert "python" in name
        assert process.wait() == -signal.SIGKILL
    assert killing.survivors(tmp_path, 0.0) == []


def test_temporary_files_and_what_is_made_anew(tmp_path: Path) -> None:
    for name in (
        "tmp/tmp12345678.json",
        "tmp/left",
        "checkout/build/book/a.html",
        "checkout/build/confirm/b",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    one = killing.snapshot(tmp_path, ["checkout/build"])
    assert {"tmp/left", "checkout/build/book/a.html"} <= one.keys()
    assert not [name for name in one if name.endswith(".json")]
    for name in ("checkout/build/book/a.html", "checkout/build/confirm/b"):
        (tmp_path / name).write_text("2")
    other = killing.snapshot(tmp_path, ["checkout/build"])
    assert killing.difference(one, other) == "changed: checkout/build/confirm/b"


def test_the_readme_tells_a_number_of_kills_only_if_they_were_made_without_a_fault() -> None:
    readme, file = (ROOT / "README.md").read_text("utf-8"), ROOT / "results" / "torture.json"
    record = (
        json.loads(file.read_text("utf-8")) if file.is_file() else {"kills made": {}, "faults": ["none made"]}
    )
    number = "" if record["faults"] else str(sum(record["kills made"].values()))
    assert re.findall(r"(\d[\d,]*) (?:\w+ )?kills", readme) == ([number] if number else [])


def test_a_difference_is_named() -> None:
    """The comparison can fail."""
    wanted = {"a": "1", "b": "2"}
    assert killing.difference(wanted, dict(wanted)) == ""
    found = {"a": "1", "c": "3"}
    assert killing.difference(wanted, found) == "missing: b; left behind: c"
    assert killing.difference(wanted, {"a": "2", "b": "2"}) == "changed: a"


def test_provenances_are_compared_without_times(tmp_path: Path) -> None:
    for name, text in (("one", '{"started": 1, "hash": "x"}'), ("two", '{"started": 2, "hash": "x"}')):
        (tmp_path / name / "results").mkdir(parents=True)
        (tmp_path / name / "results" / "p.provenance.json").write_text(text)
    one, two = (killing.snapshot(tmp_path / name, ["results"]) for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "results" / ".p.palimpsest-lock").touch()
    assert killing.difference(one, killing.snapshot(tmp_path / "two", ["results"])) == (
        "left behind: results/.p.palimpsest-lock"
    )


def test_a_record_of_the_same_code_is_gone_on_with(script: ModuleType, tmp_path: Path) -> None:
    out, about = tmp_path / "torture.json", {"seed": 0, "code": "x"}
    assert script._kept(out, about) == {**about, "kills made": {}, "faults": [], "seconds": 0}
    out.write_text(json.dumps({**about, "kills made": {"edit": 3}, "faults": [], "seconds": 9}))
    assert script._kept(out, about)["kills made"] == {"edit": 3}
    assert script._kept(out, about | {"code": "y"})["kills made"] == {}
    assert len(script.code_hash()) == 64
