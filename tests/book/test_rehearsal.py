"""Rehearsals of GPU profiles: what is made smaller, a sample of pages, and what is said of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from palimpsest.book.needs import left_out
from palimpsest.book.profiles import load_profile
from palimpsest.editors import editor_for
from tests.rehearsal import FEWER, MOVING, REHEARSED, Layers, environment, parameter, room, smaller
from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
PROFILES = sorted(path.stem for path in (ROOT / "config" / "profiles").glob("gpu-*.yaml"))
XL = Layers((0, 13, 14, 15, 16, 17, 47))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("rehearse")


def test_the_first_the_edited_and_the_last_layer_are_kept() -> None:
    content = yaml.safe_load((ROOT / "config" / "models" / "gpt2-xl.yaml").read_text("utf-8"))
    assert Layers.of(content) == XL
    assert [XL.new(layer) for layer in (0, 13, 17, 36, 47)] == [0, 1, 5, 6, 6]


def test_settings_keep_all_but_layers_and_large_numbers() -> None:
    given = {"layers": [13, 14, 46, 47], "targets": {"steps": 20, "clamp": 0.75, "loss_layer": 47}, "lr": 0.5}
    assert smaller(given, XL) == {
        "layers": [1, 2, 6],
        "targets": {"steps": FEWER["steps"], "loss_layer": 6, **MOVING},
        "lr": 0.5,
    }


@pytest.mark.parametrize(
    ("name", "asked", "own", "wanted"),
    [
        ("layers", [0, 14, 47], [3], [0, 2, 6]),
        ("layers", 5, 2, 2),
        ("facts", 300, 4, 4),
        ("runs", ["rome 4"], ["memit_naive 4"], ["rome 4"]),
        ("regime", "", "other", ""),
        ("betas", [0, 0.1], [0], [0]),
        ("further", [], ["rome 4"], []),
        ("changes", ["layers=[14, 47]", "targets.steps=2"], [], ["layers=[2, 6]", "targets.steps=2"]),
    ],
)
def test_a_page_keeps_names_and_has_its_own_sizes(name: str, asked: Any, own: Any, wanted: Any) -> None:
    assert parameter(name, asked, own, XL) == wanted


@pytest.mark.parametrize("name", PROFILES)
def test_a_room_has_a_profile_for_the_tiny_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile(name)
    listed = [page for page in profile.listed if not left_out(profile, ROOT / "notebooks" / f"{page}.ipynb")]
    rehearsed, pages = room(name, _folder(tmp_path, name))
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path / name))
    made = load_profile(rehearsed)
    assert list(made.listed) == pages == listed
    file = tmp_path / name / "config" / "models" / f"{made.settings}.yaml"
    settings = yaml.safe_load(file.read_text("utf-8"))
    for each in settings["editors"]:
        assert max(getattr(editor_for(each, made.settings), "layers", (0,))) < settings["shape"]["depth"]


def _folder(where: Path, name: str) -> Path:
    (where / name).mkdir()
    return where / name


def test_a_run_finds_the_room_its_cache_and_the_double(tmp_path: Path) -> None:
    found = environment(_folder(tmp_path, "a"))
    assert found["PALIMPSEST_ROOT"] == str(tmp_path / "a")
    assert Path(found["PALIMPSEST_CACHE"]).parent == tmp_path
    assert found["PYTHONPATH"].split(":")[0] == str(tmp_path / "a" / "start")


def test_what_a_random_model_cannot_show_is_told_from_a_fault(script: ModuleType, tmp_path: Path) -> None:
    class Done:
        def is_alive(self) -> bool:
            return False

        def join(self) -> None:
            pass

    def outcome(content: str | None) -> Any:
        (tmp_path / "00_try_it.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "00_try_it.json").write_text(content)
        run = script.Run(PROFILES[0], "00_try_it", "fork", tmp_path, begun=0.0)
        run.process = Done()
        return run.outcome()

    assert (outcome('[1.0, ""]').status, outcome('[1.0, ""]').cells) == ("ran", 1.0)
    assert outcome('[0.5, "ScoreError: no fact is known"]').status == "wanting"
    assert outcome('[0.5, "MixedDevicesError: aten.mul"]').status == "failed"
    assert "killed" in outcome(None).said


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_a_page_of_each_family_runs_on_the_double(name: str, tmp_path: Path) -> None:
    """In a process of its own, since one that has computed gradients must not be forked."""
    out = tmp_path / "made.json"
    asked = f"--profile {name} --page 00_try_it --no-papermill --out".split()
    command = [sys.executable, str(ROOT / "scripts" / "rehearse.py"), *asked, str(out)]
    around = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PALIMPSEST_ROOT": str(ROOT)}
    done = subprocess.run(command, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = json.loads(out.read_text("utf-8"))["outcomes"]
    assert (made["page"], made["status"], made["cells"]) == ("00_try_it", "ran", 1.0)


def test_profiles_say_that_they_were_rehearsed_where_all_their_pages_were() -> None:
    content = json.loads((ROOT / "results" / "rehearsal.json").read_text("utf-8"))
    assert not [one for one in content["outcomes"] if one["status"] == "failed"]
    made = {(one["profile"].removeprefix(REHEARSED), one["page"]) for one in content["outcomes"]}
    for name in PROFILES:
        profile = load_profile(name)
        suit = {p for p in profile.listed if not left_out(profile, ROOT / "notebooks" / f"{p}.ipynb")}
        whole = suit <= {page for other, page in made if other == name}
        run = (ROOT / "results" / name).is_dir()
        assert profile.description.endswith("; rehearsed, never run") is (whole and not run), name


def test_each_page_is_run_by_a_kernel_under_a_profile_that_has_it(script: ModuleType) -> None:
    """Profiles that leave out a page do not shift the turns of the others."""
    listed = {"a": ["00", "01", "03"], "b": ["00", "01"], "c": ["02"]}
    assert script.in_turn(listed) == {"00": "a", "01": "b", "02": "c", "03": "a"}


def test_pages_of_no_gpu_profile_are_rehearsed_as_on_a_laptop(script: ModuleType) -> None:
    listed = {name: load_profile(name).listed for name in (*PROFILES, "laptop")}
    rest = script.rest(PROFILES)
    assert rest
    assert all(
        (page in rest) is not any(page in listed[name] for name in PROFILES) for page in listed["laptop"]
    )


def test_what_was_rehearsed_with_the_present_code_is_not_run_again(
    script: ModuleType, tmp_path: Path
) -> None:
    page = {"profile": f"{REHEARSED}{PROFILES[0]}", "page": "00_try_it"}
    one = page | {"by": "fork", "status": "ran", "cells": 1.0, "seconds": 2.0, "said": ""}
    code, out = script.code_of(*page.values()), tmp_path / "record.json"
    assert script.kept(out) == []
    assert code != script.code_of(page["profile"], "01_one_edit")
    for made, status, left in (
        (code, "ran", 1),
        ("0" * 64, "ran", 0),
        (code, "wanting", 1),
        (code, "failed", 0),
    ):
        out.write_text(json.dumps({"outcomes": [one | {"code": made, "status": status}]}))
        assert len(script.kept(out)) == left
