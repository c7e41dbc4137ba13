"""`tune`: a search of settings that gives every editor the same effort, goes on after a kill, and refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from palimpsest.editors import editor_for
from palimpsest.editors.settings import editor_settings
from palimpsest.errors import NonFiniteError, ProfileError
from palimpsest.evaluation.evaluate import knows
from palimpsest.network.model import load
from palimpsest.studies import settings_search, tuning
from palimpsest.studies.settings_search import base_of
from palimpsest.studies.tuning import CANDIDATES
from palimpsest.types import EvalCase, Probe
from tests.commands.rooms import ROW, make_room, run
from tests.workbench.edits import facts

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

TUNE = ("tune", "base", "--facts", "validation.jsonl", "--settings", "small", "--batch", 3)
BOTH = (*TUNE, "--editors", "memit,alphaedit", "--out", "mine.yaml")


def complete(count: int) -> list[EvalCase]:
    """Facts of random letters with a paraphrase and a neighbour each."""
    some, others = facts(2 * count)[:count], facts(2 * count)[count:]
    return [
        EvalCase(
            one.id,
            one,
            other.target,
            (f"Of {one.subject} they say it is",),
            (Probe(other.text, f"{other.target}x"),),
        )
        for one, other in zip(some, others, strict=True)
    ]


def write(path: Path, cases: list[EvalCase]) -> None:
    rows = [
        {"id": case.id, "prompt": case.request.prompt, "subject": case.request.subject}
        | {"target": case.request.target, "target_true": case.target_true}
        | {"paraphrases": list(case.paraphrases), "neighbours": [vars(probe) for probe in case.neighbours]}
        for case in cases
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = make_room(tmp_path_factory.mktemp("room") / "room", patch)
        write(folder / "validation.jsonl", complete(16))
        projecting = {name: value for name, value in ROW.items() if name != "preserve_weight"}
        editors = {"memit": ROW, "alphaedit": projecting | {"rule": "energy", "threshold": 0.5}}
        (folder / "config/models/small.yaml").write_text(yaml.safe_dump({"editors": editors}))
        yield folder


@pytest.fixture(autouse=True)
def _clean(room: Path) -> None:
    for name in ("mine.yaml", "mine.search.csv"):
        (room / name).unlink(missing_ok=True)


def table(room: Path) -> pd.DataFrame:
    return pd.read_csv(room / "mine.search.csv").drop(columns="seconds")


def said(*arguments: object) -> str:
    """The one message of a command that is refused."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.stderr.split())


# The command


def test_a_search_writes_the_best_of_every_editor(room: Path) -> None:
    done = run(*BOTH)
    assert done.exit_code == 0, done.output
    rows = table(room)
    assert rows.groupby("editor").size().to_dict() == {"memit": CANDIDATES, "alphaedit": CANDIDATES}
    assert rows["editor"].tolist()[:4] == ["memit", "alphaedit"] * 2  # in turns
    content = yaml.safe_load((room / "mine.yaml").read_text())
    assert list(content) == ["also", "architecture", "editors"]
    for name in ("memit", "alphaedit"):
        own = rows[rows["editor"].eq(name) & rows["score"].notna()]
        best = own[own["score"].eq(own["score"].max())].sort_values("norm", kind="stable").iloc[0]
        settings = content["editors"][name]
        for key, value in json.loads(best["settings"]).items():
            assert settings[key] == value
        assert settings["statistics_tokens"] == 1500  # from the base
        assert f"{name}: " in done.stdout
        assert f"score {best['score']:.1f} [{best['low']:.1f}, {best['high']:.1f}]" in done.stdout
    assert "12 of 12 candidates scored on 3 facts, 6 for each of 2 editors;" in done.stdout
    assert "minutes of computing" in done.stdout
    (room / "mine.yaml").rename(room / "config/models/mine.yaml")
    assert editor_for("memit", "mine").layers == tuple(content["editors"]["memit"]["layers"])
    (room / "config/models/mine.yaml").unlink()


def test_killed_and_repeated_it_goes_on(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*BOTH).exit_code == 0
    whole, text = table(room), (room / "mine.yaml").read_text()
    for name in ("mine.yaml", "mine.search.csv"):
        (room / name).unlink()
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return tuning.try_settings(*arguments)

    monkeypatch.setattr(settings_search, "try_settings", counted)
    assert run(*BOTH).exit_code == 130
    assert len(table(room)) == 5
    assert not (room / "mine.yaml").exists()
    assert run(*BOTH).exit_code == 0
    assert len(calls) == 6 + 12 - 5
    assert table(room).equals(whole)
    assert (room / "mine.yaml").read_text() == text
    assert run(*BOTH).exit_code == 0  # nothing is left, and the file is its own
    assert len(calls) == 6 + 12 - 5


def test_out_of_time_it_keeps_complete_rounds_and_says_what_is_left(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(*BOTH, "--minutes", 0)
    assert "12 candidates are left; the same command goes on" in done.stdout
    assert "mine.yaml is not written yet" in done.stdout
    clock = iter(range(0, 100000, 12))
    monkeypatch.setattr(settings_search, "monotonic", lambda: float(next(clock)))
    done = run(*BOTH, "--minutes", 1)
    assert done.exit_code == 0, done.output
    assert 0 < len(table(room)) < 12
    rounds = len(table(room)) // 2
    assert f"the best of {rounds} candidates for each editor" in (room / "mine.yaml").read_text()
    assert run(*BOTH).exit_code == 0  # its own file of fewer rounds is replaced
    assert "the best of 6 candidates for each editor" in (room / "mine.yaml").read_text()


def test_a_candidate_that_fails_counts_and_loses(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise NonFiniteError("values overflow; take fewer steps")
        return tuning.try_settings(*arguments)

    monkeypatch.setattr(settings_search, "try_settings", failing)
    done = run(*TUNE, "--editors", "memit", "--out", "mine.yaml")
    assert done.exit_code == 0, done.output
    assert len(table(room)) == CANDIDATES
    assert "failed: memit" in done.stdout
    assert "values overflow; take fewer steps" in done.stdout
    assert run(*TUNE, "--editors", "memit", "--out", "mine.yaml").exit_code == 0
    assert len(calls) == CANDIDATES


# What is not searched


@pytest.fixture
def other(room: Path) -> Any:
    """A model without settings, beside an embedded one whose settings a tiny model can use."""
    shutil.copytree(room / "base", room / "other")
    shape = {"depth": 8, "width": 32, "gated": True, "family": "llama"}
    rows = {"shape": shape, "editors": {"memit": ROW | {"layers": [2, 3]}, "rome": ROW | {"layers": [5]}}}
    del rows["editors"]["rome"]["preserve_weight"]
    file = room / "config/models/smollm2-135m.yaml"
    file.write_text(yaml.safe_dump(rows))
    yield room
    shutil.rmtree(room / "other")
    file.unlink()
    for left in (room / "config/models").glob("other.*"):
        left.unlink()


ITSELF = ("tune", "other", "--facts", "validation.jsonl", "--batch", 3, "--editors", "memit")


def test_what_is_not_searched_is_derived_for_the_model_with_its_reasons(other: Path) -> None:
    """The model has that file from then on, and the same command still begins with derived ones."""
    file = other / "config/models/other.yaml"
    arguments = (*ITSELF, "--out", "config/models/other.yaml")
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "other has no settings in" in done.stdout
    assert "those of memit are derived and were not searched:" in done.stdout
    text = file.read_text()
    comments = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    assert "# What was not searched of memit is derived for this model:\n" in comments
    assert "#   statistics_tokens 1500: as for smollm2-135m\n" in comments
    assert "#   targets lr=0.3 steps=3 stop_below=0.5: as for smollm2-135m\n" in comments
    assert "preserve_weight" not in comments  # it was searched, as were the layers
    assert "layers" not in comments
    assert yaml.safe_load(text)["editors"]["memit"]["targets"] == ROW["targets"]
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert file.read_text() == text
    assert run("edit", "facts.jsonl", "--model", "other", "--out", "told").exit_code == 0


def test_an_explicit_choice_and_a_models_own_file_come_first(other: Path) -> None:
    done = run(*ITSELF, "--settings", "small", "--out", "mine.yaml")
    assert done.exit_code == 0, done.output
    assert "# What was not searched is as for small.\n" in (other / "mine.yaml").read_text()
    assert "derived" not in done.output
    done = run("tune", "base", *ITSELF[2:], "--out", "mine.yaml", "--replace")
    assert done.exit_code == 0, done.output
    assert "# What was not searched is as for base.\n" in (other / "mine.yaml").read_text()


def test_what_a_models_file_lacks_is_derived(other: Path) -> None:
    base = base_of(load("base"), ["memit", "rome"], other / "mine.yaml")
    assert base.source == {"memit": "base"}
    assert set(base.derived) == {"rome"}
    assert base.settings["memit"] == editor_settings("base", "memit")
    assert base.settings["rome"]["layers"] == (3,)  # 5 of 8 layers
    with pytest.raises(ProfileError, match=r"small\.yaml has no settings for editor 'rome'"):
        base_of(load("base"), ["memit", "rome"], other / "mine.yaml", "small")


# Bad input


def test_what_stands_at_the_place_is_not_overwritten(room: Path) -> None:
    (room / "mine.yaml").write_text("editors: {}\n")
    assert "mine.yaml exists and is not what this search has written; choose another --out" in said(*BOTH)
    assert (room / "mine.yaml").read_text() == "editors: {}\n"
    assert run(*BOTH, "--replace").exit_code == 0
    assert "memit" in (room / "mine.yaml").read_text()


def test_a_table_of_another_search_or_a_damaged_one_is_refused(room: Path) -> None:
    assert run(*TUNE, "--editors", "memit", "--out", "mine.yaml").exit_code == 0
    before = (room / "mine.search.csv").read_bytes()
    assert "holds candidates of another search" in said(*BOTH)
    (room / "mine.search.csv").write_text("a,b\n1,2\n")
    assert "cannot be read as the table of a search" in said(*BOTH)
    (room / "mine.search.csv").write_bytes(before)
    assert run(*BOTH, "--replace").exit_code == 0


def test_names_and_endings_are_checked(room: Path) -> None:
    message = said(*TUNE, "--editors", "memit,memitt", "--out", "mine.yaml")
    assert (
        "unknown editor with settings to search 'memitt'; choose one of: alphaedit, alphaedit_plus" in message
    )
    assert "the ending must be .yaml" in said(*TUNE, "--editors", "memit", "--out", "mine.txt")


def test_too_few_facts_and_unknown_ones_are_refused(room: Path) -> None:
    several = (*TUNE[:-1], 17, "--editors", "memit", "--out", "mine.yaml")
    assert (
        "16 of 16 facts have a true object, 1 or more paraphrases and a neighbour, and the search needs 17"
        in said(*several)
    )
    bare = [replace(case, paraphrases=()) for case in complete(4)]
    write(room / "bare.jsonl", bare)
    options = ("--settings", "small", "--batch", 3, "--editors", "memit", "--out", "mine.yaml")
    assert "0 of 4 facts have a true object" in said("tune", "base", "--facts", "bare.jsonl", *options)
    model, cases = load("base"), complete(16)
    turned = [
        replace(case, request=replace(case.request, target=case.target_true), target_true=case.request.target)
        if known
        else case
        for case, known in zip(cases, knows(model, cases), strict=True)
    ]
    write(room / "unknown.jsonl", turned)
    message = said("tune", "base", "--facts", "unknown.jsonl", *options)
    assert "knows none of the 16 facts: it prefers every new object to the true one" in message
    assert not (room / "mine.yaml").exists()
