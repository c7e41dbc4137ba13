"""Folders by path: names with room for what is added to them, and none made by mistake."""

from pathlib import Path

import pytest

from palimpsest.errors import LedgerError, ResourceError
from palimpsest.workbench.commands import edit_folder, undo
from palimpsest.workbench.places import LONGEST
from tests.workbench.edits import EDITOR, facts, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "no_texts")


def test_the_longest_name_has_room_for_all_that_is_added(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / ("ä" * (LONGEST // 2))
    written(base, out, 2)
    assert len(undo(out, ["1"])) == 1
    with pytest.raises(ResourceError, match=f"has {LONGEST + 1} bytes, and {LONGEST} is the most; choose a"):
        written(base, out.with_name(f"{out.name}x"), 1)
    for name in (out / "palimpsest.json" / "deep" / "out", "a\0b"):
        with pytest.raises(ResourceError, match=r"cannot be the path of a folder: .*; choose another"):
            edit_folder(facts(1), name, str(base), EDITOR)


def test_a_folder_that_does_not_exist_is_not_begun_by_undo(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"out holds no edited model"):
        undo(tmp_path / "deep" / "out", ["1"])
    assert list(tmp_path.iterdir()) == []
