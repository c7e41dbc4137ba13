"""What is on disk of an edited model is what was written, or it is refused: every bit, in every file."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from palimpsest.errors import PalimpsestError, ResourceError
from palimpsest.workbench import folder
from palimpsest.workbench.commands import undo
from palimpsest.workbench.edited_model import EditedModel
from tests.workbench.edits import facts, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "no_texts")


def same_json(one: bytes, other: bytes) -> bool:
    """1e-5 and 1E-5 differ by a bit."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_a_changed_description_is_refused(out: Path, base: Path) -> None:
    """A fact taken out, another target, a weight: not what was written."""
    path = out / "palimpsest.json"
    whole = path.read_bytes()
    fact = facts(1)[0]
    content = json.loads(whole)
    fewer = content | {"facts": content["facts"][1:]}
    heavier = content | {"facts": [content["facts"][0] | {"weight": 2.0}, *content["facts"][1:]]}
    retold = whole.replace(fact.target.encode(), b"other", 1)
    unsummed = {name: value for name, value in content.items() if name != "sha256"}
    for text in (
        json.dumps(fewer).encode(),
        json.dumps(heavier).encode(),
        retold,
        json.dumps(unsummed).encode(),
    ):
        path.write_bytes(text)
        for act in (lambda: undo(out, ["1"]), lambda: written(base, out, 5)):
            with pytest.raises(
                ResourceError, match=r"palimpsest.json is damaged: .*; restore it from an intact"
            ):
                act()
        assert path.read_bytes() == text
    path.write_bytes(json.dumps(content).encode())  # another layout says the same
    assert len(undo(out, ["1"])) == 2


def test_a_description_that_is_hardly_json(out: Path) -> None:
    for text in (b"[" * 100_000, b"\xff\xfe", b"[]", b"3", b"", b'{"format": 2}'):
        (out / "palimpsest.json").write_bytes(text)
        with pytest.raises(
            ResourceError, match=r"palimpsest\.json is damaged: .*; restore it from an intact copy"
        ):
            EditedModel.open(out)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), kind=st.integers(0, 20))
def test_a_flipped_bit_in_any_file_is_refused(out: Path, place: float, bit: int, kind: int) -> None:
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    path = paths[kind % len(paths)]
    whole = path.read_bytes()
    content = bytearray(whole)
    content[int(place * len(content))] ^= 1 << bit
    assume(not (path.name == "palimpsest.json" and same_json(bytes(content), whole)))
    path.write_bytes(content)
    try:
        with pytest.raises(PalimpsestError):
            EditedModel.open(out)
    finally:
        path.write_bytes(whole)


def test_a_missing_file_is_named(out: Path) -> None:
    (out / "generation_config.json").unlink()
    with pytest.raises(
        ResourceError, match=r"generation_config\.json is missing; restore it from an intact copy"
    ):
        EditedModel.open(out)


def test_a_folder_of_the_first_format_is_read_and_gets_checksums(out: Path, base: Path) -> None:
    path = out / "palimpsest.json"
    content = json.loads(path.read_text())
    old = {name: value for name, value in content.items() if name not in ("sha256", "files")}
    path.write_text(json.dumps(content | {"format": 1}))  # a checksum that is there counts
    with pytest.raises(ResourceError, match=r"palimpsest\.json is damaged: it was changed since it was wri"):
        folder.read_description(out)
    path.write_text(json.dumps(old | {"format": 1}))
    (out / "README.md").write_text("mine")
    assert len(written(base, out, 4)) == 4
    assert folder.read_description(out).format == 2
    assert folder.read_description(out).files
    assert (out / "README.md").read_text() == "mine"
