"""A sample of `make torture` on a tiny model: killed and repeated, a command ends the same."""

import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import loaded
from tests.workbench.test_commands import checkout  # noqa: F401 -- a fixture

ROOT = Path(__file__).parents[2]
PRELUDE = f"""
sys.path.insert(0, {str(ROOT)!r})
import palimpsest.memory.moments
from tests.editing import texts
palimpsest.memory.moments.statistics_texts = texts
"""


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
    made = script.torture(deed, kills, random.Random(number), tmp_path / "torture")
    assert [kill.fault for kill in made if kill.fault] == []
    assert sum(kill.reached for kill in made) >= min(kills, 2)


def test_a_difference_is_named(script: ModuleType) -> None:
    """The comparison can fail."""
    wanted = {"a": "1", "b": "2"}
    assert script.difference(wanted, dict(wanted)) == ""
    found = {"a": "1", "c": "3"}
    assert script.difference(wanted, found) == "missing: b; left behind: c"
    assert script.difference(wanted, {"a": "2", "b": "2"}) == "changed: a"


def test_provenances_are_compared_without_times(script: ModuleType, tmp_path: Path) -> None:
    for name, text in (("one", '{"started": 1, "hash": "x"}'), ("two", '{"started": 2, "hash": "x"}')):
        (tmp_path / name / "results").mkdir(parents=True)
        (tmp_path / name / "results" / "p.provenance.json").write_text(text)
    one, two = (script.snapshot(tmp_path / name, ["results"]) for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "results" / ".p.palimpsest-lock").touch()
    assert script.difference(one, script.snapshot(tmp_path / "two", ["results"])) == (
        "left behind: results/.p.palimpsest-lock"
    )


def test_a_record_of_the_same_code_is_gone_on_with(script: ModuleType, tmp_path: Path) -> None:
    out, about = tmp_path / "torture.json", {"seed": 0, "code": "x"}
    assert script._kept(out, about) == {**about, "kills made": {}, "faults": [], "seconds": 0}
    out.write_text(json.dumps({**about, "kills made": {"edit": 3}, "faults": [], "seconds": 9}))
    assert script._kept(out, about)["kills made"] == {"edit": 3}
    assert script._kept(out, about | {"code": "y"})["kills made"] == {}
    assert len(script.code_hash()) == 64
