"""Files for those who carry the project on: what they say is what the project has."""

import re
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from palimpsest import cli
from tests.editors import test_new_method
from tests.network import test_new_family

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
CHANGES = (ROOT / "CHANGELOG.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def cited() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    return content


# CONTRIBUTING.md


def test_what_the_guide_names_is_there() -> None:
    paths = set(re.findall(r"`((?:src|tests|book|config|data|notebooks)/[\w/.]*)`", GUIDE))
    examples = {"src/palimpsest/editors/toy.py", "notebooks/NN_name.ipynb"}
    assert len(paths) > 10
    assert {path for path in paths if not (ROOT / path).exists()} <= examples
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]
    used = set(re.findall(r"palimpsest\s+(check-notebooks|run|confirm|status)\b", GUIDE))
    assert {name.replace("-", "_") for name in used} <= commands
    targets = set(re.findall(r"\]\(([\w/.]+\.md)\)", GUIDE))
    assert targets == {"book/add_a_result.md"}
    makes = set(re.findall(r"`make (\w+)`", GUIDE))
    assert all(re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for name in makes)


def test_the_rows_of_the_guide_are_those_that_the_tests_add() -> None:
    for row in (test_new_method.ROW, test_new_family.ROW):
        quoted = row.strip().replace("Method(Toy, Style(", "Method(editor=Toy, style=Style(")
        assert f"`{quoted}`" in GUIDE
    for name in ("editors/test_new_method.py", "network/test_new_family.py", "book/test_new_result.py"):
        assert f"`tests/{name}`" in GUIDE
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text("utf-8")


# CHANGELOG.md


def test_the_changelog_keeps_its_form_and_knows_this_version() -> None:
    heads = re.findall(r"^## (.*)$", CHANGES, re.MULTILINE)
    released = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", head)
        for head in heads
        if head != "[Unreleased]"
    ]
    assert released[0] is not None
    assert released[0][1] == PROJECT["version"]
    days = [date.fromisoformat(one[2]) for one in released if one is not None]
    assert len(days) == len(released)
    assert days == sorted(days, reverse=True)
    assert set(re.findall(r"^### (.*)$", CHANGES, re.MULTILINE)) <= set(KINDS)


# CITATION.cff


def test_the_citation_has_what_its_schema_requires() -> None:
    """Citation File Format 1.2.0: its required keys, and of each reference and author theirs."""
    content = cited()
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert content["cff-version"] == "1.2.0"
    assert content["type"] in ("software", "dataset")
    assert isinstance(content["date-released"], date)
    assert all({"type", "title", "authors"} <= set(reference) for reference in content["references"])
    every = [content, *content["references"]]
    authors = [author for one in every for author in one["authors"]]
    assert all(set(author) & {"name", "family-names"} for author in authors)
    assert all({"type", "value"} <= set(i) for one in every for i in one.get("identifiers", []))


def test_the_citation_is_of_this_version_and_names_the_sources() -> None:
    content = cited()
    assert (content["version"], content["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"[{content['version']}] - {content['date-released']}" in CHANGES
    bibliography = re.sub(r"[{}]", "", (ROOT / "book/references.bib").read_text("utf-8"))
    for reference in content["references"]:
        assert reference["title"] in bibliography
        for identifier in reference.get("identifiers", []):
            assert identifier["value"].removeprefix("arXiv:") in bibliography


# Versions of Python


def test_supported_versions_of_python_are_named_and_this_is_one() -> None:
    named = {
        match[1]
        for text in PROJECT["classifiers"]
        if (match := re.search(r"Python :: (3\.\d+)$", text)) is not None
    }
    assert PROJECT["requires-python"] == ">=3.11"
    assert named == {"3.11", "3.12", "3.13"}
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in named


@pytest.mark.parametrize(
    "name", ["imp", "asynchat", "asyncore", "smtpd", "distutils", "cgi", "pipes", "telnetlib"]
)
def test_nothing_imports_a_module_that_newer_versions_lack(name: str) -> None:
    sources = [
        path for folder in ("src", "scripts", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    pattern = re.compile(rf"^\s*(import {name}|from {name})\b", re.MULTILINE)
    assert [str(path) for path in sources if pattern.search(path.read_text("utf-8"))] == []
