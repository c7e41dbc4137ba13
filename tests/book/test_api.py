"""Pages of the reference: every name that is handed out, docstrings as written, links from the glossary."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from palimpsest.book import api, build
from palimpsest.book.definitions import Package
from palimpsest.book.reference import Docstrings, as_written, escaped, place
from tests.clone import Clone, make_clone

ROOT = Path(__file__).parents[2]


def test_every_name_that_is_handed_out_has_a_line_and_a_place(tmp_path: Path) -> None:
    api.write_index(tmp_path / "api.md")
    index = (tmp_path / "api.md").read_text("utf-8")
    names = api.handed_out(api.source())
    rows = re.findall(r"^\| \{py:obj\}`(\w+) <([\w.]+)>` \| (.*) \|$", index, re.MULTILINE)
    assert {(name, full) for name, full, _ in rows} == set(names.items())
    assert [name for name, _, text in rows if not text.strip()] == []
    pages = ""
    for wing in api.WINGS:
        api.write_wing(wing, tmp_path / "page.md")
        pages += (tmp_path / "page.md").read_text("utf-8")
    shown = re.findall(r"automodule:: ([\w.]+)\n   :members:(.*)", pages)
    members = {f"{module}.{name.strip()}" for module, listed in shown for name in listed.split(",")}
    assert set(names.values()) <= members | {module for module, _ in shown}


def test_the_main_parts_show_all_that_is_public_and_nothing_that_is_not(tmp_path: Path) -> None:
    api.write_wing("algebra", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text("utf-8")
    assert page.startswith("(api-algebra)=\n# The least-squares problem\n")
    assert re.search(r"automodule:: palimpsest.algebra.solve\n   :members: .*\bobjective\b", page)
    assert not re.search(r":members:.*[ ,]_", page)


def test_the_pages_are_those_of_the_contents_and_of_the_package() -> None:
    contents = (ROOT / "book/_toc.yml").read_text()
    assert all(f"book/_generated/{api.page_name(wing)}" in contents for wing in api.WINGS)
    parts = {path.name for path in (ROOT / "src/palimpsest").iterdir() if (path / "__init__.py").is_file()}
    assert {wing for wing in api.WINGS if wing} <= parts
    alone = {path.stem for path in (ROOT / "src/palimpsest").glob("*.py")} - {"__init__", "cli"}
    assert set(api.ALONE) == alone


def test_code_in_a_first_line_stays_code_and_the_rest_is_no_markup(tmp_path: Path) -> None:
    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.pyi").write_text("from .part import f as f\nfrom .part import TABLE as TABLE\n")
    (package / "__init__.py").touch()
    (package / "part.py").write_text(
        'def f():\n    """What `x` a_b ``y`` is."""\n\nTABLE = {}\n"""Rows.\n\nMore."""\n'
    )
    made = Package(package)
    assert api.handed_out(made) == {"f": "made.part.f", "TABLE": "made.part.TABLE"}
    assert api.summary(made, "made.part.f") == "What `x` a_b ``y`` is."
    assert api.summary(made, "made.part.TABLE") == "Rows."
    assert api._shown("What `x` a_b ``y`` is.") == "What `x` a\\_b `y` is."


# Docstrings


def test_an_indented_block_is_literal_and_sections_are_left_alone() -> None:
    block, section = ["    |a|  one", "         two"], ["Args:", "    x: of {0}d{0}.", "", "        More."]
    text = ["A sum.", "", *block, "", "The |b| of `|c|`.", "", *(line.format("|") for line in section)]
    shown = ["A sum.", "", "::", "", *block, "", "The \\|b\\| of `|c|`.", ""]
    assert list(as_written(text)) == [*shown, *(line.format("\\|") for line in section)]


def test_a_block_that_is_marked_already_is_left_alone() -> None:
    text = ["As here::", "", "    f(|x|)", "", "Then."]
    assert list(as_written(text)) == text
    assert escaped("``|x|`` and |y|") == "``|x|`` and \\|y\\|"


def test_a_colon_in_the_description_of_a_constant_ends_no_type() -> None:
    hooks = Docstrings()
    for what, kept in (("data", True), ("property", True), ("function", False)):
        lines = ["Orders: |a| or |b|."]
        hooks.before(None, what, "p.ORDERS", None, None, lines)
        assert lines == ["Orders: \\|a\\| or \\|b\\|."]
        lines[:] = ["changed meanwhile"]
        hooks.after(None, what, "p.ORDERS", None, None, lines)
        assert (lines != ["changed meanwhile"]) == kept


# Links of the glossary


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("admit", "p.algebra.admit"),
        ("pl.admit", "p.algebra.admit"),
        ("smallest(multiple)", "p.algebra.smallest"),
        ("Projector.kept", "p.algebra.Projector.kept"),
        ("Projector.no_place", "p.algebra.Projector"),
        ("Course.drift", "p.training.Course"),
        ("Twice", ""),
        ("keys", ""),
        ("absent", ""),
        ("d_k", ""),
    ],
)
def test_a_name_in_code_leads_to_its_place(text: str, full: str) -> None:
    public = {name: f"p.algebra.{name}" for name in ("admit", "smallest", "Projector", "absent")}
    members = ("admit", "smallest", "Projector", "Projector.kept", "keys")
    objects = dict.fromkeys(
        [*(f"p.algebra.{name}" for name in members), "p.training.Course", "p.a.Twice", "p.b.Twice"]
    )
    assert place(text, objects, public) == full


@pytest.mark.slow
def test_the_reference_of_a_part_builds_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest part, with the glossary whose names lead to it."""
    clone: Clone = make_clone(tmp_path / "clone", monkeypatch, whole=True)
    monkeypatch.setattr(build, "assemble", lambda _: None)
    for name in ("_config.yml", "book/static"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, clone.root / name)
    (clone.root / "book/references.bib").touch()
    (clone.root / "book/glossary.md").write_text(
        "(glossary)=\n# Glossary\n\n`NullSpace.null_spaces`, `d_k`\n"
    )
    contents = {"format": "jb-book", "root": "book/glossary", "chapters": [{"file": "book/api_continual"}]}
    (clone.root / "book/_toc.yml").write_text(yaml.safe_dump(contents))
    api.write_wing("continual", clone.root / "book/api_continual.md")
    pages = build.build("laptop").parent / "book"
    linked = re.findall(
        r'<a class="[^"]*internal[^"]*" href="(api_continual.html#[\w.]+)" title="[\w.]+"><code',
        (pages / "glossary.html").read_text(),
    )
    assert linked == ["api_continual.html#palimpsest.continual.learners.NullSpace.null_spaces"]
    assert 'id="palimpsest.continual.adam.ProjectedAdam"' in (pages / "api_continual.html").read_text()
