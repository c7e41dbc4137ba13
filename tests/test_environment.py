"""pyproject.toml, requirements.lock and environment.yml name the same versions."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FIXED = [
    *("jupyter-book", "jupyterlab", "matplotlib", "nbval", "papermill"),
    *("pytest", "seaborn", "sentence-transformers", "torch", "transformers"),
]


def direct() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


def conda() -> tuple[list[str], list[str]]:
    """The conda and the pip section of environment.yml."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in content if isinstance(entry, dict))
    return [entry for entry in content if isinstance(entry, str)], pip


def test_the_lock_pins_every_line_exactly() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert lines[0].startswith("#")
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line) for line in pins)
    assert len(pins) == len(locked()) > 100


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_locked_to_a_version_it_admits(requirement: Requirement) -> None:
    version = locked()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_packages_are_named_everywhere(name: str) -> None:
    assert name in {canonicalize_name(requirement.name) for requirement in direct()}
    assert f"{name}=={locked()[name]}" in conda()[1]


def test_conda_installs_the_lock_and_agrees_with_it() -> None:
    packages, pip = conda()
    assert "python=3.11" in packages
    assert "-r requirements.lock" in pip
    assert "-e ." in pip
    named = {entry for entry in pip if not entry.startswith("-")}
    assert named == {
        f"{name}=={locked()[name]}"
        for name in (canonicalize_name(requirement.name) for requirement in direct())
    }


def test_torch_brings_its_own_cuda_and_the_kubernetes_client_stays_out() -> None:
    unwanted = re.compile(r"nvidia|^cuda|^triton|kubernetes")
    assert [name for name in locked() if unwanted.search(name)] == []


def test_the_engine_of_batches_is_locked_so_that_its_tests_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(project["batch"]) <= set(project["dev"])
    assert {canonicalize_name(Requirement(text).name) for text in project["batch"]} <= set(locked())


def test_the_lock_of_the_optional_scorer_pins_what_it_asks_for_and_changes_little() -> None:
    lines = (ROOT / "requirements.ability.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["optional-dependencies"]["ability"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert {name for name in pins if name in locked()} <= {"python-dateutil"}


@pytest.mark.slow
def test_what_is_installed_fits_together() -> None:
    check = [sys.executable, "-m", "pip", "check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_time_of_the_laptop_book_is_one_number_everywhere() -> None:
    machine = yaml.safe_load((ROOT / "config" / "profiles" / "laptop.yaml").read_text())["machine"]
    told = re.search(r"about (\S+ hours)", machine)
    assert told is not None
    for place, count in ((ROOT / "README.md", 2), (ROOT / "book" / "how_to_read.md", 1)):
        assert re.findall(r"about (\S+ hours)", place.read_text()) == [told[1]] * count, place
