"""Carrying a result over a change of code on the proof of its small run, in a real history."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from palimpsest import cli, paths
from palimpsest.book import confirm as confirming
from palimpsest.book import small_runs
from palimpsest.book.confirm import Confirmed, confirm, confirm_all, tolerance
from palimpsest.book.definitions import Definition
from palimpsest.book.dependencies import dependencies
from palimpsest.book.evidence import declared
from palimpsest.book.execution import Traced
from palimpsest.book.regression import Allowance
from palimpsest.book.small_runs import small_run
from palimpsest.book.standing import standing
from palimpsest.errors import NotebookError, ProfileError
from palimpsest.files import holders
from tests.clone import DATA, PACKAGE, TOY, WORK, Clone, enter, make_clone

NUMERICAL = {"definitions": ["toy.FACTOR"], "relative": 1e-4, "reason": "a sum in another order"}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirming, "small_run", lambda *_: pytest.fail("it ran"))


@pytest.fixture
def made(clone: Clone, nothing_runs: None) -> str:
    """The revision of the clone that its result was made with."""
    revision = clone.commit()
    clone.pretend_run(code_revision=revision)
    return revision


def refused() -> str:
    """Why the result is not confirmed."""
    with pytest.raises(NotebookError) as error:
        confirm("01_tiny", "laptop")
    return str(error.value)


# What is refused before anything runs


def test_a_result_that_stands_needs_no_confirmation(clone: Clone, made: str) -> None:
    before = clone.results()
    assert confirm("01_tiny", "laptop") is None
    assert list(confirm_all(None, "laptop")) == ["01_tiny: stands already"]
    assert clone.results() == before


def test_what_was_never_run_is_refused(clone: Clone, nothing_runs: None) -> None:
    assert refused() == "01_tiny: not run yet in this profile; run it"


def test_a_result_of_an_older_scheme_is_refused(clone: Clone, made: str) -> None:
    clone.write_provenance({"content_hash": "a", "inputs": {}, "code_revision": made})
    assert refused().startswith("01_tiny: its provenance is of scheme 1 and hashes of today's scheme 2")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"data"}, "data"),
        ({"parameters"}, "parameters"),
        ({"settings"}, "tiny/architecture"),
        ({"data", "parameters", "settings"}, "parameters, data, tiny/architecture"),
    ],
)
def test_a_change_of_more_than_code_is_refused(clone: Clone, made: str, what: set[str], said: str) -> None:
    if "settings" in what:
        (clone.root / "config/models").mkdir()
        settings = clone.root / "config/models/tiny.yaml"
        settings.write_text("architecture: llama\n")
        clone.pretend_run()
        clone.commit()
        settings.write_text("architecture: gpt2\n")
    clone.write_toy("2.0", "3.0")
    if "data" in what:
        (clone.root / DATA).write_text("a,b,d\n")
    if "parameters" in what:
        clone.write_profile("laptop", notebooks={"01_tiny": {"seed": 3}})
    clone.commit()
    assert refused() == f"01_tiny: {said} changed, not only code; run it"


@pytest.mark.parametrize("revision", ["unknown", "0123456789ab+changes"])
def test_a_result_made_without_a_revision_is_refused(clone: Clone, made: str, revision: str) -> None:
    clone.pretend_run(code_revision=revision)
    clone.write_toy("2.0", "3.0")
    clone.commit()
    assert refused() == (f"01_tiny: made with {revision}, which cannot be run again for a comparison; run it")


def test_uncommitted_changes_are_refused(clone: Clone, made: str) -> None:
    clone.write_toy("2.0", "3.0")
    assert refused() == (f"01_tiny: the present revision is {made}+changes; commit first, then confirm")


def test_a_checkout_without_git_is_refused(clone: Clone, nothing_runs: None) -> None:
    clone.pretend_run(code_revision="0123456789ab")
    clone.write_toy("2.0", "3.0")
    assert refused() == "01_tiny: the present revision is unknown; commit first, then confirm"


@pytest.mark.parametrize("last", [False, True])
def test_a_revision_that_is_not_in_the_history_is_refused(clone: Clone, made: str, last: bool) -> None:
    gone = "0123456789ab"
    steps = {"confirmed": [{"revision": gone}]} if last else {"code_revision": gone}
    clone.pretend_run(**({"code_revision": made} | steps))
    clone.write_toy("2.0", "3.0")
    now = clone.commit()
    assert refused() == (
        f"01_tiny: {gone}, with which it was made or confirmed, is not in the history of {now}; "
        "fetch the whole history, or run it"
    )


# Tolerances declared beforehand


def test_a_declared_change_has_its_tolerance_and_any_other_six_digits(clone: Clone) -> None:
    assert tolerance(["toy.FACTOR"]) == 1e-6
    rows = [
        NUMERICAL,
        {**NUMERICAL, "relative": 1e-8},
        {**NUMERICAL, "definitions": ["a.b"], "relative": 1e-3},
    ]
    (clone.root / "config/numerical.yaml").write_text(yaml.safe_dump(rows))
    assert (tolerance(["toy.doubled", "toy.FACTOR"]), tolerance(["toy.doubled"])) == (1e-4, 1e-6)
    (clone.root / "config/numerical.yaml").write_text("")
    assert tolerance(["toy.FACTOR"]) == 1e-6


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "a: 1",
        "- a",
        yaml.safe_dump([{**NUMERICAL, "relative": 0.01}]),
        yaml.safe_dump([{**NUMERICAL, "relative": 0}]),
        yaml.safe_dump([{**NUMERICAL, "definitions": []}]),
        yaml.safe_dump([{**NUMERICAL, "reason": ""}]),
        yaml.safe_dump([{**NUMERICAL, "absolute": 1}]),
    ],
)
def test_a_declaration_that_cannot_be_read_is_named(clone: Clone, content: str) -> None:
    (clone.root / "config/numerical.yaml").write_text(content)
    with pytest.raises(ProfileError, match=r"^numerical.yaml: rows need definitions, relative and reason: "):
        tolerance([])


def test_times_may_differ_as_they_may_on_another_machine(clone: Clone) -> None:
    rows = {"ratio": {"anything": True, "reason": "of times"}, "small": {"relative": 0.1, "reason": "r"}}
    content = {"default": {"reason": "r", "relative": 0.5}, "pages": {"01_tiny": rows}}
    (clone.root / "results/smoke/tolerances.yaml").write_text(yaml.safe_dump(content))
    allowed = confirming._allowed("01_tiny", 1e-6)
    assert allowed.keys() == {"ratio", ""}
    assert allowed[""] == Allowance(relative=1e-6, reason="two revisions on one machine")


# Runs of both revisions


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone with one commit whose small run is kept, and that revision."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        clone = make_clone(tmp_path_factory.mktemp("history") / "clone", monkeypatch)
    return clone, clone.commit()


@pytest.fixture
def again(history: tuple[Clone, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Clone, str]:
    """The same, back at its first commit, with a result made there."""
    clone, first = history
    clone.git("checkout", "--quiet", "--detach", first)
    enter(clone.root, monkeypatch)
    clone.pretend_run(code_revision=first)
    return clone, first


def change(clone: Clone, source: str, **files: Any) -> str:
    """Commit another toy module, and settings files."""
    clone.toy.write_text(source)
    for name, content in files.items():
        (clone.root / "config" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    revision = clone.commit()
    dependencies.cache_clear()
    return revision


@pytest.mark.slow
def test_a_refactoring_is_confirmed_and_the_provenance_names_both_revisions(again: tuple[Clone, str]) -> None:
    clone, first = again
    old = clone.provenance()
    second = change(clone, TOY.replace("return FACTOR * x", "return x * FACTOR"))
    assert standing("01_tiny", "laptop").changed == ("toy.doubled",)
    done = confirm("01_tiny", "laptop")
    assert done == Confirmed("01_tiny", 1, 1e-6, first, second)
    assert str(done) == f"01_tiny: 1 values agree under {first} and {second}, confirmed"
    state = standing("01_tiny", "laptop")
    assert state.kind == "confirmed"
    assert str(state) == f"up to date (made with {first}, confirmed at smoke size with {second})"
    new = clone.provenance()
    (step,) = new["confirmed"]
    assert (step["compared_with"], step["revision"], step["values"]) == (first, second, 1)
    assert new["content_hash"] != old["content_hash"]
    assert (new["code_revision"], new["wall_seconds"]) == (first, old["wall_seconds"])
    third = change(clone, TOY.replace("return FACTOR * x", "return (x * FACTOR) + 0"))
    assert confirm("01_tiny", "laptop") == Confirmed("01_tiny", 1, 1e-6, second, third)
    assert [step["revision"] for step in clone.provenance()["confirmed"]] == [second, third]
    assert clone.git("worktree", "list").count("\n") == 0


@pytest.mark.slow
def test_another_value_is_refused_unless_it_was_declared(again: tuple[Clone, str]) -> None:
    clone, first = again
    before = clone.results()
    second = change(clone, TOY.replace("2.0", "2.0001"))
    assert refused() == (
        f"01_tiny: not confirmed, 1 values differ between {first} and {second}:\n"
        "01_tiny: doubled was 2.0, is 2.0001"
    )
    assert clone.results() == before
    result = CliRunner().invoke(cli.app, ["confirm", "01_tiny"])
    assert result.exit_code == 2
    assert "doubled was 2.0, is 2.0001" in result.stdout
    assert result.stderr == "palimpsest: 1 results could not be confirmed; the reasons are above\n"
    third = change(clone, TOY.replace("2.0", "2.0001"), numerical=[NUMERICAL])
    assert confirm("01_tiny", "laptop") == Confirmed("01_tiny", 1, 1e-4, first, third)


@pytest.mark.slow
def test_a_changed_definition_that_the_small_run_does_not_execute_is_refused(
    again: tuple[Clone, str],
) -> None:
    clone, _ = again
    change(clone, TOY.replace("return x - 1", "return -1 + x"))
    assert refused() == (
        "01_tiny: its small run does not execute toy.thorough, which changed, and so proves nothing of it; "
        "run the page, or, if no run of it can reach that code, say why in config/not_reached.yaml"
    )


@pytest.mark.slow
def test_what_the_results_own_run_did_not_execute_does_not_matter(again: tuple[Clone, str]) -> None:
    clone, _ = again
    change(
        clone,
        TOY.replace("return x - 1", "return spare(x)")
        + "\n\ndef spare(x):\n    return x - LESS\n\n\nLESS = 1\n",
    )
    clone.pretend_run_again(ran=["toy.doubled", "toy.thorough"])
    assert "does not execute toy.spare, toy.thorough, which changed" in refused()
    clone.pretend_run_again(ran=["toy.doubled"])
    assert confirm("01_tiny", "laptop") is not None
    made = clone.provenance()
    assert made["confirmed"][-1]["declared"] == []
    assert {"toy.doubled"} < set(made["ran"])  # and what records and paths ran in the small run
    assert not {"toy.thorough", "toy.spare"} & set(made["ran"])


@pytest.mark.slow
def test_new_code_behind_code_that_ran_is_declared(again: tuple[Clone, str]) -> None:
    clone, _ = again
    source = TOY.replace("return FACTOR * x", "return FACTOR * x if x else spare(x)")
    change(clone, f"{source}\n\ndef spare(x):\n    return x\n")
    clone.pretend_run_again(ran=["toy.doubled"])
    assert "its small run does not execute toy.spare, which changed" in refused()
    row = {"definitions": ["toy.sp"], "reason": "numbers are never 0"}
    change(clone, clone.toy.read_text(), not_reached=[row])
    assert "toy.spare" in refused()
    change(clone, clone.toy.read_text(), not_reached=[row | {"definitions": ["toy."]}])
    assert confirm("01_tiny", "laptop") is not None
    assert clone.provenance()["confirmed"][-1]["declared"] == ["toy.spare"]
    assert "(1 definitions that no run of it reaches by declaration)" in str(standing("01_tiny", "laptop"))


@pytest.mark.parametrize("content", ["[", "- definitions: []\n  reason: x", "- definitions: [toy.x]", "text"])
def test_declared_code_that_cannot_be_read_is_named(clone: Clone, content: str) -> None:
    (clone.root / "config/not_reached.yaml").write_text(content)
    with pytest.raises(ProfileError, match=r"^not_reached.yaml: rows need definitions and reason: "):
        declared()


def test_every_row_names_definitions_that_exist() -> None:
    graph = dependencies(paths.checkout() / "src" / "palimpsest")
    definitions = [
        Definition(module, name)
        for module in graph.package.modules
        for name in graph.package.bindings(module).definitions
    ]
    known = {f"{one}{'.' * bool(part)}{part}" for one in definitions for part in ("", *graph.members(one))}
    for name in (name for row in declared() for name in row.definitions):
        assert any(one == name or (one.startswith(name) and name.endswith(".")) for one in known), name


@pytest.mark.slow
def test_a_constant_is_executed_by_what_names_it(again: tuple[Clone, str]) -> None:
    clone, _ = again
    constants = "FACTOR = 4.0 / 2\nLESS = 1.25 - 0.25"
    change(clone, TOY.replace("x - 1", "x - LESS").replace("FACTOR = 2.0", constants))
    assert refused().startswith("01_tiny: its small run does not execute toy.LESS, toy.thorough, which")


@pytest.mark.slow
def test_a_new_class_is_executed_method_by_method(again: tuple[Clone, str]) -> None:
    clone, _ = again
    kind = "class Scale:\n    size = 1\n\n    def of(self, x):\n        return x\n"
    change(
        clone, f"{TOY}\n\n{kind}".replace("return FACTOR * x", "return FACTOR * x if x else Scale().of(x)")
    )
    assert refused().startswith("01_tiny: its small run does not execute toy.Scale.of, which changed")


CLASS = """

class Scale:
    size = 2.0

    def of(self, x):
        return self.size * x

    def spare(self, x):
        return x
"""
SHOW = "    def __repr__(self):\n        return 'a scale'\n\n    def _repr_html_(self):\n        return ''\n"


@pytest.mark.slow
def test_a_class_is_confirmed_method_by_method(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = "return Scale().of(x) if x else Scale().spare(x)"
    source = f"{TOY}{CLASS}".replace("return FACTOR * x", calls)
    clone.toy.write_text(source)
    first = clone.commit()
    clone.pretend_run(code_revision=first)
    for old, new in (("return self.size * x", "return x * self.size"), ("size = 2.0", "size = 4.0 / 2")):
        source = source.replace(old, new)
        change(clone, source)
        assert confirm("01_tiny", "laptop") is not None
    unnamed = "    def unnamed(self):\n        return 1\n\n"
    source = source.replace("    def spare", f"{SHOW}\n{unnamed}    def spare")
    change(clone, source)
    assert confirm("01_tiny", "laptop") is not None
    change(clone, source.replace("        return x\n", "        return -x\n"))
    assert refused().startswith("01_tiny: its small run does not execute toy.Scale.spare, which changed")


@pytest.mark.slow
def test_a_small_run_is_kept_and_used_again(
    again: tuple[Clone, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, first = again
    code = clone.provenance()["inputs"]["code"]
    record, traced = small_run("01_tiny", first, code)
    assert record["values"]["doubled"]["value"] == 2.0
    assert "toy.doubled" in traced.functions
    assert len(list((clone.root / "build" / "confirm").glob("01_tiny-*/01_tiny.json"))) >= 1
    monkeypatch.setattr(small_runs, "nbval_run", lambda *_: pytest.fail("it ran"))
    assert small_run("01_tiny", first, code) == (record, traced)


@pytest.mark.slow
def test_a_small_run_that_fails_is_no_confirmation(again: tuple[Clone, str]) -> None:
    clone, _ = again
    clone.write_notebook(work=f"{WORK}\nraise OSError('no such thing')")
    clone.commit()
    dependencies.cache_clear()
    for _ in range(2):
        assert "01_tiny failed under nbval:" in refused()
    assert clone.git("worktree", "list").count("\n") == 0


def killed(clone: Clone) -> Path:
    """What a process leaves that is killed while a checkout is in use, and git with it while it makes one."""
    code = """
import os, signal
from palimpsest.book.small_runs import workplace, worktree
with workplace("01_tiny") as place, worktree("HEAD", place):
    (place / "01_tiny").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    whole = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=whole, check=False)
    assert done.returncode == -signal.SIGKILL
    (note,) = (clone.root / ".git/worktrees").iterdir()
    (note / "locked").write_text("initializing")  # as git leaves it
    (left,) = (clone.root / "build/confirm").glob(".01_tiny-*")
    return left


def test_the_next_run_removes_what_a_killed_one_left(clone: Clone) -> None:
    clone.commit()
    left = killed(clone)
    mine = [left.with_name(name) for name in (".01_tiny-notes", ".01_tiny-" + "f" * 31, "tmp.01_tiny")]
    for folder in mine:
        folder.mkdir()
    with small_runs.workplace("02_other"):
        assert left.is_dir()
    with small_runs.workplace("01_tiny") as place:
        assert not left.exists()
        assert place.is_dir()
        assert clone.git("worktree", "list").count("\n") == 0
        assert not list((clone.root / ".git").glob("worktrees/*"))
    assert sorted((clone.root / "build/confirm").iterdir()) == sorted(mine)


def test_checkouts_of_others_stay(clone: Clone, tmp_path: Path) -> None:
    clone.commit()
    clone.git("worktree", "add", "--detach", str(tmp_path / "checkout"), "HEAD")
    killed_one = clone.root / "build/confirm" / f".01_tiny-{'0' * 32}"
    killed_one.mkdir(parents=True)
    with small_runs.workplace("01_tiny") as place, small_runs.worktree("HEAD", place):
        pass
    assert (tmp_path / "checkout").is_dir()
    assert str(tmp_path / "checkout") in clone.git("worktree", "list")


def test_one_process_has_the_folder_of_a_page(clone: Clone) -> None:
    with small_runs.workplace("01_tiny"):
        assert holders(clone.root / "build/confirm") != {}
    assert holders(clone.root / "build/confirm") == {}


def test_a_revision_that_cannot_be_checked_out_is_named(clone: Clone, tmp_path: Path) -> None:
    clone.commit()
    with (
        pytest.raises(NotebookError, match=r"^revision 0123456789ab cannot be checked out: fatal: "),
        small_runs.worktree("0123456789ab", tmp_path),
    ):
        pass


def test_nothing_that_was_computed_is_used_but_second_moments(own_cache: Path, tmp_path: Path) -> None:
    for name in ("models", "targets"):
        (own_cache / name).mkdir(parents=True)
        (own_cache / name / "file").touch()
    (tmp_path / "shared").mkdir()
    folder = small_runs._little_computed(tmp_path / "little", tmp_path / "shared")
    assert sorted(path.name for path in folder.iterdir()) == ["models", "statistics"]
    assert (folder / "models" / "file").is_file()
    (folder / "statistics" / "moment").touch()
    assert (own_cache / "models" / "file").is_file()
    assert (tmp_path / "shared" / "moment").is_file()


def test_shared_code_counts_as_executed_with_its_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "confirm" / "another page"
    kept.mkdir(parents=True)
    places = ["memory/moments.py:SecondMoment.add_rows", "algebra/ledger.py:EditLedger.save"]
    (kept / "trace.json").write_text(json.dumps({"compute": {"functions": places}}))
    monkeypatch.setattr(small_runs.paths, "build_dir", lambda: tmp_path)
    found = small_runs.with_shared(Traced((), frozenset({"theory.one"}), frozenset()))
    assert found.functions == {"theory.one", "memory.moments.SecondMoment"}
    assert found.methods == {"memory.moments.SecondMoment.add_rows"}
