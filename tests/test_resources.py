"""Pinned wheels: only what was pinned gets in, and what stops it is said. No test goes to the network."""

import bz2
import hashlib
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mwparserfromhell
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mwparserfromhell.nodes import Tag, Wikilink

from palimpsest import resources
from palimpsest.errors import ResourceError, UnknownNameError
from palimpsest.resources import DUMP_FILE, PINS, Resource, fetch, pip_download, wikipedia_articles

FILES = {"a.txt": b"hello " * 500, "deep/b.txt": b"there"}


def pin(files: dict[str, bytes]) -> Resource:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return Resource("fake==1.0", "fake/data", hashes, "MIT", "a fake")


@pytest.fixture(autouse=True)
def _fake(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PINS", {"fake": pin(FILES)})


def wheel_of(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[str, Path], Path]:
    """A download function that makes a wheel with these files and one that was not asked for."""

    def download(requirement: str, folder: Path) -> Path:
        assert requirement == "fake==1.0"
        path = folder / "fake-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in (files | {"unasked.txt": b"code"}).items():
                archive.writestr(f"fake/data/{name}", content)
        return path

    return download


def never(requirement: str, folder: Path) -> Path:
    raise AssertionError("downloaded although it is in the cache")


def left_behind(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_only_pinned_files_are_taken_and_only_once(own_cache: Path) -> None:
    folder = fetch("fake", wheel_of(FILES))
    assert left_behind(folder) == ["a.txt", "deep/b.txt"]
    assert (folder / "deep/b.txt").read_bytes() == b"there"
    assert fetch("fake", never) == folder
    assert folder.is_relative_to(own_cache)


def test_unknown_resource() -> None:
    with pytest.raises(UnknownNameError, match="unknown resource 'nothing'; choose one of: fake"):
        fetch("nothing", never)


def test_what_a_killed_download_left_is_removed(own_cache: Path) -> None:
    """It lies beside the resource, under a name that the next one knows."""
    places = []

    def stops(requirement: str, folder: Path) -> Path:
        places.append(folder)
        assert folder.is_relative_to(own_cache)
        raise ResourceError("no network")

    with pytest.raises(ResourceError, match="no network"):
        fetch("fake", stops)
    assert not places[0].exists()
    places[0].mkdir()
    (places[0] / "half.whl").touch()
    folder = fetch("fake", wheel_of(FILES))
    assert list(folder.parent.iterdir()) == [folder]
    assert left_behind(folder) == ["a.txt", "deep/b.txt"]


def test_a_tampered_wheel(own_cache: Path) -> None:
    tampered = FILES | {"deep/b.txt": b"Xhere"}
    message = r"fake-1\.0-py3-none-any\.whl is not the wheel that was pinned: deep/b\.txt of fake==1\.0 is "
    with pytest.raises(
        ResourceError, match=f"{message}damaged or was changed: sha256 .*; fetch again"
    ) as found:
        fetch("fake", wheel_of(tampered))
    assert str(own_cache) not in str(found.value)  # no folder that is gone by then
    assert left_behind(own_cache) == []
    assert fetch("fake", wheel_of(FILES)).is_dir()


def test_a_wheel_without_a_pinned_file(own_cache: Path) -> None:
    with pytest.raises(ResourceError, match=r"not the wheel that was pinned: .*deep/b\.txt"):
        fetch("fake", wheel_of({"a.txt": FILES["a.txt"]}))
    assert left_behind(own_cache) == []


def damaging(change: Callable[[bytes], bytes]) -> Callable[[str, Path], Path]:
    def download(requirement: str, folder: Path) -> Path:
        path = wheel_of(FILES, zipfile.ZIP_DEFLATED)(requirement, folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return download


def first_bytes_of_content(content: bytes) -> bytes:
    """The compressed stream of a.txt made unreadable, the directory of the archive left whole."""
    start = content.index(b"a.txt") + len(b"a.txt")
    return content[:start] + b"\xff" * 8 + content[start + 8 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another file": lambda content: b"<html>not found</html>",
    "stream": first_bytes_of_content,
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_download(change: Callable[[bytes], bytes], own_cache: Path) -> None:
    message = r"fake-1\.0-py3-none-any\.whl is not the wheel that was pinned: .*; fetch again"
    with pytest.raises(ResourceError, match=message):
        fetch("fake", damaging(change))
    assert left_behind(own_cache) == []


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_file_damaged_in_the_cache_is_fetched_again(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch("fake", wheel_of(FILES))
    if damage == "changed":
        (folder / "a.txt").write_bytes(b"hello")
    else:
        (folder / "a.txt").unlink()

    def offline(requirement: str, folder: Path) -> Path:
        raise ResourceError(f"could not download {requirement}")

    with pytest.raises(ResourceError, match=r"could not download fake==1\.0"):
        fetch("fake", offline)
    line = (
        rf"palimpsest: {folder}: a\.txt of fake==1\.0 is damaged or was changed: sha256 \w+, expected \w+; "
    )
    assert re.fullmatch(f"{line}it is fetched again\n", capsys.readouterr().err)
    assert fetch("fake", wheel_of(FILES)) == folder
    assert (folder / "a.txt").read_bytes() == FILES["a.txt"]
    assert fetch("fake", never) == folder


def test_a_cache_that_is_a_file(own_cache: Path) -> None:
    own_cache.write_text("a file")
    message = rf"cannot write in {own_cache}/resources: .*; choose another folder, .*PALIMPSEST_CACHE is"
    with pytest.raises(ResourceError, match=message):
        fetch("fake", never)
    assert own_cache.read_text() == "a file"


def test_a_changed_pin_has_its_own_folder() -> None:
    first = fetch("fake", wheel_of(FILES))
    other = FILES | {"a.txt": b"new"}
    resources.PINS["fake"] = pin(other)  # the fixture's own dictionary
    assert fetch("fake", wheel_of(other)) != first
    assert (first / "a.txt").read_bytes() == FILES["a.txt"]


def test_no_network_and_empty_cache(own_cache: Path) -> None:
    def offline(requirement: str, folder: Path) -> Path:
        raise ResourceError(f"could not download {requirement}")

    with pytest.raises(ResourceError, match=r"could not download fake==1\.0"):
        fetch("fake", offline)
    assert left_behind(own_cache) == []


def test_pip_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    message = (
        rf"could not download fake==1\.0 and the cache {own_cache} is empty of it: .*No matching distribution"
        r".*run `palimpsest fetch`, or set PIP_FIND_LINKS"
    )
    with pytest.raises(ResourceError, match=message):
        fetch("fake", pip_download)


def test_pip_finds_a_wheel_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links, target = tmp_path / "links", tmp_path / "target"
    links.mkdir()
    target.mkdir()
    info = "fake-1.0.dist-info"
    with zipfile.ZipFile(links / "fake-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("fake/data/a.txt", "hello")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert pip_download("fake==1.0", target) == target / "fake-1.0-py3-none-any.whl"


def test_real_pins_are_exact() -> None:
    """Each pin names one version and one hash of 64 digits per file."""
    assert set(PINS) == {"smollm2-135m", "wikipedia-sample", "minilm"}
    for resource in PINS.values():
        assert resource.requirement.count("==") == 1
        assert resource.licence
        assert resource.files
        assert all(len(found) == 64 and int(found, 16) for found in resource.files.values())


WIKITEXT = """{{Infobox person
| name = Anna Berg
| born = {{birth date|1900|1|1}}
}}
'''Anna Berg''' (born in [[Rome|the city of Rome]]) was a ''physicist''.<ref name="x">A note {{cite|y}}.</ref>
[[File:Anna.jpg|thumb|A picture of [[Anna]]]]

== Life ==
{| class="wikitable"
! Year !! Place
|-
| 1920 || Paris
|}
She lived in [[Paris]] and <math>x^2</math> [https://example.org elsewhere]; 5&nbsp;km away.<ref name="x" />
<gallery>
A.jpg|Caption
</gallery>

[[Category:Physicists]]
[[de:Anna Berg]]
"""


def test_cleaning_wikitext() -> None:
    clean = resources._plain(WIKITEXT).replace("\xa0", " ")
    assert clean.splitlines() == [
        "Anna Berg (born in the city of Rome) was a physicist.",
        "Life",
        "She lived in Paris and  elsewhere; 5 km away.",
    ]


def by_removal(wikitext: str) -> str:
    """A slow twin: each unread node is searched for in the whole text, and removed."""
    code = mwparserfromhell.parse(wikitext)
    unread = [node for node in code.filter(forcetype=(Tag, Wikilink)) if resources._unread(node)]
    for node in unread:
        with suppress(ValueError):  # removed with what holds it
            code.remove(node)
    return "\n".join(filter(None, map(str.strip, code.strip_code().splitlines())))


WIKI_PARTS = (
    *(
        "word ",
        "[[Rome]] ",
        "[[File:A.jpg|thumb|",
        "[[a:b|",
        "[[Rome|the ",
        "]]",
        "<ref>",
        "<ref name='x' />",
    ),
    *(
        "</ref>",
        "{{cite|",
        "}}",
        "\n{|\n| ",
        "\n|}\n",
        "''",
        "<math>",
        "</math>",
        "\n== ",
        " ==\n",
        "<b>",
        "</b>",
    ),
)


@given(parts=st.lists(st.sampled_from(WIKI_PARTS), max_size=25))
def test_one_pass_takes_out_what_removal_does(parts: list[str]) -> None:
    assert resources._plain("".join(parts)) == by_removal("".join(parts))


def dump(folder: Path, articles: list[str]) -> dict[str, bytes]:
    pages = "".join(f"<page><revision><text>{text}</text></revision></page>" for text in articles)
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{pages}</mediawiki>'
    return {DUMP_FILE: bz2.compress(xml.encode())}


def test_articles_in_order_without_redirects_and_stubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleaned once, then read from disk."""
    long = ["first " + "word " * 120, "second " + "word " * 120]
    files = dump(tmp_path, [long[0], "#REDIRECT [[Rome]]", "  #redirect [[Rome]]", "a stub", "", long[1]])
    monkeypatch.setattr(resources, "PINS", {"wikipedia-sample": pin(files)})
    fetch("wikipedia-sample", wheel_of(files))
    assert wikipedia_articles() == [text.strip() for text in long]
    monkeypatch.setattr(resources, "_plain", never)
    assert wikipedia_articles() == [text.strip() for text in long]
