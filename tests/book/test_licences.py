"""Every resource and every folder of data says its licence, on one page."""

from pathlib import Path

import pytest

from palimpsest.book.licences import data_licences, pinned, write_licences
from palimpsest.errors import BookError
from palimpsest.resources import PINS

ROOT = Path(__file__).parents[2]


def test_every_pin_and_every_folder_of_data_has_a_row(tmp_path: Path) -> None:
    write_licences(tmp_path / "licences.md")
    page = (tmp_path / "licences.md").read_text("utf-8")
    for name, resource in PINS.items():
        assert f"| `{name}`: " in page
        assert f"| `{resource.requirement}` | {resource.licence} |" in page
    folders = {path.name for path in (ROOT / "data").iterdir() if path.is_dir()}
    assert folders == {one.what.removeprefix("data/") for one in data_licences(ROOT / "data")}
    assert all(f"| `data/{name}/` | " in page for name in folders)
    assert all(resource.licence for resource in PINS.values())
    assert len(list(pinned())) == len(PINS)


def test_a_folder_without_a_licence_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(BookError, match=r"data/new has no licence; write one under '## Licence' in its PROV"):
        data_licences(tmp_path)
    (tmp_path / "new" / "README.md").write_text(
        "# New\n\n## Licence\nCC0 1.0,\nfrom nobody.\n\n## More\n\nx\n"
    )
    assert [one.licence for one in data_licences(tmp_path)] == ["CC0 1.0, from nobody."]


def test_the_readme_says_the_same_of_the_resources() -> None:
    text = " ".join((ROOT / "README.md").read_text("utf-8").partition("## Licence")[2].split())
    assert all(resource.licence in text for resource in PINS.values())
