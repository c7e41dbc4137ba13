"""Which page runs under which profile: sizes, and settings of the editors that it asks for."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from palimpsest import cli, paths
from palimpsest.book import runner
from palimpsest.book.model_files import file_of
from palimpsest.book.needs import COUNTS, Needs, check_needed, left_out, needs, require
from palimpsest.book.profiles import (
    check_profile,
    find_notebook,
    known_notebooks,
    known_profiles,
    load_profile,
    parameters_for,
)
from palimpsest.book.runner import run_all, run_notebook, runs_of
from palimpsest.book.standing import standing
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.errors import NotebookError, ProfileError, UnknownNameError
from palimpsest.studies.long_horizon import without_conflicts
from tests.clone import Clone, make_clone

COMMANDS = CliRunner()
NO_REGIME = ("06_alignment", "07_drift", "16_general_ability", "17_hidden_representations")
PLUS = ("11_building_alphaset", "12_alphaset_tables", "13_alphaedit_plus_parts")
NOT_LISTED = {f"gpu-{name}": NO_REGIME for name in ("gpt2-xl", "gpt-j-6b", "llama3-8b", "qwen2.5-7b")}
LISTED = {
    "long": ("01", "02", "03", "08", "09", "12", "16", "17", "19", "20"),
    "gpu-gemma": ("00", "02", "14", "24"),
    "gpu-phi-1.5": ("00", "02", "14", "24"),
}
"""Profile -> numbers of its pages, where it has few."""
NO_SETTINGS = {f"gpu-{name}": PLUS for name in ("llama3-8b", "qwen2.5-7b")}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = make_clone(tmp_path / "clone", monkeypatch)
    (made.root / "config" / "models").mkdir()
    write_settings(made, memit={"layers": [1]})
    return made


def write_settings(clone: Clone, **editors: object) -> None:
    text = yaml.safe_dump({"also": ["hub/tiny"], "editors": editors})
    (clone.root / "config" / "models" / "tiny.yaml").write_text(text)


@pytest.mark.parametrize("profile", known_profiles())
def test_every_page_has_sizes_and_settings_or_is_left_out(profile: str) -> None:
    setting = load_profile(profile)
    found = {name: left_out(setting, find_notebook(name)) for name in known_notebooks()}
    for name, reason in found.items():
        listed = name[:2] in LISTED.get(profile, (name[:2],))
        if name in NOT_LISTED.get(profile, ()) or not listed:
            assert reason.startswith("not in this profile"), name
        elif name in NO_SETTINGS.get(profile, ()):
            assert reason.startswith("not for this model: "), name
            assert "alphaedit_plus" in reason
        elif (profile, name) == ("long", "20_long_horizon"):
            assert reason.startswith("short of facts: at asks for 10,000, and the project has 2,502")
            assert reason.endswith("or a file of more with data")
            assert left_out(setting, find_notebook(name), {"data": "facts.json"}) == ""
        else:
            assert reason == "", name


@pytest.mark.parametrize(
    ("notebook", "editors"),
    [
        ("09_protection", {"rome"}),
        ("10_uncertainty", {"rome", "memit", "alphaedit", "ft", "ft_l", "kn", "mend", "ike"}),
        ("13_alphaedit_plus_parts", {"alphaedit_plus"}),
        ("16_general_ability", {"memit", "alphaedit"}),
        ("22_alphaedit_theorems", set()),
    ],
)
def test_needs_are_the_names_in_code_and_parameters(notebook: str, editors: set[str]) -> None:
    source = find_notebook(notebook)
    found = needs(source, parameters_for(load_profile("smoke"), source))
    assert found.editors == editors


def test_a_parameter_names_what_is_needed_too() -> None:
    source = find_notebook("16_general_ability")
    given = parameters_for(load_profile("smoke"), source, {"beside": ["alphaedit_plus"], "regime": ""})
    found = needs(source, given)
    assert "alphaedit_plus" in found.editors
    assert found.a_regime
    assert not found.regimes
    assert "its parameter 'regime' names none" in found.lacking("smollm2-135m")


@pytest.mark.parametrize(
    ("wanted", "model", "message"),
    [
        (Needs(), "anything", ""),
        (Needs(frozenset({"memit"})), "hub/tiny", ""),
        (Needs(frozenset({"ike", "memit"})), "tiny", "tiny.yaml has no settings for ike; add them there"),
        (Needs(regimes=frozenset({"long"})), "tiny", "tiny.yaml has no regime long; add it there"),
        (Needs(frozenset({"memit"})), "hub/x", "no file in config/models holds for hub/x; add one, or name"),
    ],
)
def test_what_a_model_lacks(clone: Clone, wanted: Needs, model: str, message: str) -> None:
    assert wanted.lacking(model).startswith(message)
    assert bool(wanted.lacking(model)) == bool(message)


def test_a_page_that_is_not_for_the_model_is_said_skipped_and_refused(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone.write_notebook(work='name = "ike"')
    write_settings(clone, memit={"layers": [1]})
    (clone.root / "config/models/other.yaml").write_text("editors: {ike: {count: 2}}\n")
    monkeypatch.setattr(runner, "in_own_process", lambda *_: pytest.fail("it ran"))
    reason = "not for this model: tiny.yaml has no settings for ike"
    assert reason in COMMANDS.invoke(cli.app, ["status"]).stdout
    assert standing("01_tiny", "laptop").kind == "left out"
    assert run_all("laptop") == []
    assert reason in capsys.readouterr().out
    refused = COMMANDS.invoke(cli.app, ["run", "01_tiny", "--profile", "laptop"])
    assert refused.exit_code == 2
    assert f"01_tiny under laptop (tiny) is {reason}; add them there under 'editors'" in refused.stderr


def test_a_page_without_sizes_is_never_run_at_those_of_another_profile(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "in_own_process", lambda *_: pytest.fail("it ran"))
    clone.write_profile("laptop", notebooks={})
    assert run_all("laptop") == []
    assert "01_tiny is not in this profile, which gives no sizes for it\n" in capsys.readouterr().out
    with pytest.raises(
        ProfileError, match=r"01_tiny under laptop \(tiny\) is not in this profile.*has: none"
    ):
        run_notebook("01_tiny", "laptop")
    clone.write_profile("laptop", pages=[])
    check_profile(load_profile("laptop"))
    assert str(standing("01_tiny", "laptop")) == "not in this profile, which gives no sizes for it"
    clone.write_profile("laptop", pages=["01_tiny"])
    assert standing("01_tiny", "laptop").kind == "not run"


def test_sizes_of_a_page_that_is_left_out_are_a_mistake(clone: Clone) -> None:
    clone.write_profile("laptop", pages=[], notebooks={"01_tiny": {"seed": 2}})
    with pytest.raises(ProfileError, match="gives sizes for 01_tiny, but does not name them under 'pages'"):
        check_profile(load_profile("laptop"))
    clone.write_profile("laptop", pages=["02_tiny"])
    with pytest.raises(UnknownNameError, match="unknown notebook in profile laptop '02_tiny'"):
        check_profile(load_profile("laptop"))


def test_a_run_that_asks_for_more_than_its_page_needs_is_no_result(clone: Clone) -> None:
    check_needed(clone.notebook, {}, ["a word", "alphaedit_aligned"])
    with pytest.raises(NotebookError, match="01_tiny asked for the settings of memit, which does not count"):
        check_needed(clone.notebook, {}, ["memit"])
    check_needed(clone.notebook, {"editor": "memit"}, ["memit"])


# A folder of weights


def test_settings_hold_for_a_folder_that_a_profile_names(clone: Clone) -> None:
    clone.write_profile("laptop", model="/data/tiny", settings="hub/tiny", notebooks={"01_tiny": {}})
    load_profile("laptop")
    found = file_of("/data/tiny")
    assert found is not None
    assert (found[0], found[1]["editors"]) == ("laptop.local.yaml", {"memit": {"layers": [1]}})
    write_settings(clone, memit={"layers": [2]})
    load_profile("laptop")
    found = file_of("/data/tiny")
    assert found is not None
    assert found[1]["editors"] == {"memit": {"layers": [2]}}
    own = file_of("hub/tiny")
    assert own is not None
    assert own[0] == "tiny.yaml"


def test_editors_find_the_settings_of_a_folder(clone: Clone) -> None:
    from palimpsest.editors.settings import editor_settings

    with pytest.raises(UnknownNameError, match="unknown model with settings"):
        editor_settings("/data/tiny", "memit")
    clone.write_profile("laptop", model="/data/tiny", settings="tiny")
    load_profile("laptop")
    assert editor_settings("/data/tiny", "memit") == {"layers": [1]}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            {"model": "/data/x", "settings": "big"},
            UnknownNameError,
            "unknown settings in profile laptop 'big'",
        ),
        ({"model": "tiny", "settings": "tiny"}, ProfileError, "tiny.yaml holds for tiny already"),
    ],
)
def test_settings_that_cannot_be_lent(
    clone: Clone, content: dict[str, str], error: type[Exception], message: str
) -> None:
    clone.write_profile("laptop", **content)
    with pytest.raises(error, match=message):
        load_profile("laptop")
    assert not (clone.root / "config/models/laptop.local.yaml").exists()


def test_git_ignores_copies_of_settings() -> None:
    assert "config/models/*.local.yaml" in (paths.root() / ".gitignore").read_text().splitlines()


# Folders of runs with other parameters


def test_runs_with_other_parameters_have_folders_of_their_own(clone: Clone) -> None:
    runs = clone.root / "build" / "runs" / "laptop"
    assert runs_of("laptop", {"seed": 1}) == runs / "seed=1"
    assert runs_of("laptop", {"seed": 1, "rate": 0.5}) == runs / "rate=0.5,seed=1"
    long = [runs_of("laptop", {"facts": text}).name for text in ("a/b", "../c", "x" * 80)]
    assert len(set(long)) == 3
    assert all(len(name) == 12 and name.isalnum() for name in long)


def test_sizes_of_gpu_profiles_are_parameters_of_their_pages() -> None:
    """What a profile for a GPU gives is never what the notebook runs at smoke size."""
    for profile in NOT_LISTED:
        setting = load_profile(profile)
        for name in setting.listed:
            if name != "00_try_it":
                smoke = parameters_for(load_profile("smoke"), find_notebook(name))
                made = parameters_for(setting, find_notebook(name))
                assert json.dumps(made) != json.dumps(smoke | {"profile": profile, "model": setting.model})
                assert setting.notebooks[name], f"{profile}: {name}"


def test_sizes_of_gpu_profiles_have_facts_enough() -> None:
    """Facts of the test split that a page takes; pages 12 and 13 choose among ``base`` statements."""
    facts = load_facts()
    most = len(without_conflicts(counterfact_style(facts, seed=0, split="test")))
    for profile in NOT_LISTED:
        setting = load_profile(profile)
        for name in setting.listed:
            made = parameters_for(setting, find_notebook(name))
            for count in (value for key in COUNTS for value in np.atleast_1d(made.get(key, 0))):
                assert int(count) <= most, f"{profile}: {name}"
            if name == "24_other_editors":
                assert made["facts"] <= 0.6 * most, "of which a model must know the true object"


def test_a_page_that_asks_for_more_facts_than_there_are_is_refused_beforehand() -> None:
    page, setting = find_notebook("20_long_horizon"), load_profile("laptop")
    with pytest.raises(
        ProfileError, match=r"is short of facts: at asks for 3,000, .*a file of more with data"
    ):
        require(setting, page, {"at": [100, 3000]})
    require(setting, page, {"at": [100, 3000], "data": "more.json"})
