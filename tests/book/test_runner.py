import json
import sys
import time
from pathlib import Path
from threading import Barrier
from typing import Self

import nbformat
import pytest

from palimpsest.book import execution, runner
from palimpsest.book.parameters import Parameter, checked, parsed, read_parameters
from palimpsest.book.profiles import check_profile, load_profile, parameters_for
from palimpsest.book.provenance import code_revision
from palimpsest.book.runner import run_all, run_notebook
from palimpsest.book.standing import stale
from palimpsest.errors import NotebookError, ProfileError, UnknownNameError
from tests.clone import DATA, Clone, enter, make_clone


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with one finished laptop run, for tests that only read it or put it back."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        clone = make_clone(tmp_path_factory.mktemp("shared") / "clone", monkeypatch)
        run_notebook("01_tiny", "laptop")
    return clone


@pytest.fixture
def finished(shared: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    enter(shared.root, monkeypatch)
    return shared


# Parameters


def test_parameters_are_read_with_type_default_and_comment(clone: Clone) -> None:
    found = read_parameters(clone.notebook)
    assert list(found) == ["profile", "seed", "rate", "careful"]
    assert found["seed"] == Parameter("seed", "int", 1, "seed of every draw")
    assert found["careful"].default is True


def test_a_profile_wins_over_defaults_and_a_call_over_the_profile(clone: Clone) -> None:
    laptop = load_profile("laptop")
    expected = {"profile": "laptop", "seed": 2, "rate": 0.5, "careful": True}
    assert parameters_for(laptop, clone.notebook) == expected
    assert parameters_for(laptop, clone.notebook, {"seed": 3})["seed"] == 3


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("seed", True, r"parameter 'seed' is True \(bool\), but the notebook declares seed: int = 1"),
        ("seed", "3", r"parameter 'seed' is '3' \(str\)"),
        ("seed", 1.0, r"parameter 'seed' is 1.0 \(float\)"),
        ("rate", "1e-3", r"YAML reads 1e-3 as text, write 1.0e-3"),
        ("rate", float("nan"), r"parameter 'rate' is nan \(float\)"),
        ("careful", 1, r"parameter 'careful' is 1 \(int\).*give true or false"),
        ("profile", 7, r"parameter 'profile' is 7 \(int\).*give a value of type str"),
    ],
)
def test_a_value_of_another_type_is_refused(clone: Clone, name: str, value: object, hint: str) -> None:
    with pytest.raises(ProfileError, match=hint):
        run_notebook("01_tiny", "smoke", {name: value})


def test_an_int_is_a_float() -> None:
    value = checked(Parameter("rate", "float", 0.5, ""), 2, "here")
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("float", "1e-3", 1e-3),
        ("int", "3", 3),
        ("bool", "false", False),
        ("str", "3", "3"),
        ("list[int]", "[1, 2]", [1, 2]),
        ("int | None", "null", None),
    ],
)
def test_texts_of_the_command_line(kind: str, text: str, value: object) -> None:
    assert parsed(Parameter("x", kind, None, ""), text) == value


def test_unknown_names_list_the_known_ones(clone: Clone) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown parameter in call of 01_tiny 'sed'; choose.*seed"):
        run_notebook("01_tiny", "smoke", {"sed": 1})
    with pytest.raises(UnknownNameError, match="unknown notebook '02_tiny'; choose one of: 01_tiny"):
        run_notebook("02_tiny", "smoke")
    with pytest.raises(UnknownNameError, match="unknown profile 'lap'; choose one of: laptop, smoke"):
        run_notebook("01_tiny", "lap")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = 1", "write each parameter as"),
        ("seed: complex = 1", "type 'complex' is not one of int, float"),
        ("seed: int = max(1, 2)", "the default must be a literal"),
    ],
)
def test_a_parameters_cell_holds_typed_literals(clone: Clone, line: str, message: str) -> None:
    notebook = nbformat.read(clone.notebook, as_version=4)
    notebook.cells[1].source = line
    nbformat.write(notebook, clone.notebook)
    with pytest.raises(NotebookError, match=message):
        read_parameters(clone.notebook)


def test_two_parameters_cells_are_refused(clone: Clone) -> None:
    notebook = nbformat.read(clone.notebook, as_version=4)
    notebook.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, clone.notebook)
    with pytest.raises(NotebookError, match="has 2 cells tagged 'parameters'; tag exactly one"):
        read_parameters(clone.notebook)


# Profiles


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"speed": 1}, ProfileError, r"laptop.yaml: speed: Extra inputs.*known keys: model"),
        ({"model": ""}, ProfileError, "laptop.yaml: model: String should have at least 1"),
        ({"notebooks": {"09": {}}}, UnknownNameError, "unknown notebook in profile laptop '09'"),
        ({"notebooks": {"01_tiny": {"sed": 1}}}, UnknownNameError, "for 01_tiny 'sed'; choose"),
        ({"defaults": {"sed": 1}}, UnknownNameError, "among the defaults of profile laptop 'sed'"),
        ({"defaults": {"seed": "a"}}, ProfileError, "parameter 'seed' is 'a'"),
    ],
)
def test_a_profile_is_checked(
    clone: Clone, content: dict[str, object], error: type[Exception], message: str
) -> None:
    clone.write_profile("laptop", **content)
    with pytest.raises(error, match=message):
        check_profile(load_profile("laptop"))


def test_a_profile_that_is_no_mapping(clone: Clone) -> None:
    (clone.root / "config/profiles/laptop.yaml").write_text("- a\n")
    with pytest.raises(ProfileError, match=r"laptop.yaml holds no mapping"):
        load_profile("laptop")
    (clone.root / "config/profiles/laptop.yaml").write_text("a: [\n")
    with pytest.raises(ProfileError, match=r"laptop.yaml is not YAML"):
        load_profile("laptop")


# Staleness


def test_what_was_never_run(clone: Clone) -> None:
    assert stale("01_tiny", "laptop") == "not run yet in this profile"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"""Twice a number."""', '"""New words."""  # why', None),
        ("FACTOR = 2.0", "FACTOR = 3.0", "changed since the run: code (toy.FACTOR)"),
        ("return x + 1", "return x + 2", None),
    ],
)
def test_a_result_is_stale_when_code_it_came_from_has_changed(
    finished: Clone, old: str, new: str, reason: str | None
) -> None:
    try:
        finished.write_toy(old, new)
        assert stale("01_tiny", "laptop") == reason
    finally:
        finished.write_toy()
    assert stale("01_tiny", "laptop") is None


@pytest.mark.slow
def test_a_result_says_which_code_its_own_run_executed(finished: Clone) -> None:
    """With the sizes of its profile: what a smaller run would not reach is named."""
    ran = finished.provenance()["ran"]
    assert {"toy.doubled", "toy.thorough", "results.records.Results.save"} <= set(ran)
    assert "toy.unreached" not in ran


def test_a_result_is_stale_when_data_that_it_read_have_changed(finished: Clone) -> None:
    path = finished.root / DATA
    before = path.read_text()
    try:
        path.write_text("a,b,d\n")
        assert stale("01_tiny", "laptop") == "changed since the run: data"
        path.unlink()
        assert stale("01_tiny", "laptop") == "changed since the run: data"
        path.with_name("unread.csv").touch()
    finally:
        path.write_text(before)
    assert stale("01_tiny", "laptop") is None


@pytest.mark.slow
def test_other_parameters_make_it_stale(finished: Clone) -> None:
    try:
        finished.write_profile("laptop", notebooks={"01_tiny": {"seed": 5}})
        assert stale("01_tiny", "laptop") == "changed since the run: parameters"
    finally:
        finished.write_profile("laptop", notebooks={"01_tiny": {"seed": 2}})


# Runs


@pytest.mark.slow
def test_a_run_leaves_a_record_and_its_provenance(finished: Clone) -> None:
    files = finished.results()
    assert list(files) == [
        "01_tiny.ipynb",
        "01_tiny.json",
        "01_tiny.provenance.json",
        "01_tiny.rows.parquet",
    ]
    provenance = json.loads(files["01_tiny.provenance.json"])
    assert len(provenance["content_hash"]) == 64
    assert provenance["device"] == "cpu"
    assert provenance["peak_memory_mib"] > 20
    assert provenance["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert json.loads(files["01_tiny.json"])["values"]["doubled"]["value"] == 4.0


@pytest.mark.slow
def test_the_kernel_is_this_environment(finished: Clone) -> None:
    executed = nbformat.reads(finished.results()["01_tiny.ipynb"].decode(), as_version=4)
    printed = [out.text for cell in executed.cells for out in cell.get("outputs", []) if "text" in out]
    assert printed == ["<object object at 0x0>\n", f"{sys.executable}\n"]


@pytest.mark.slow
def test_an_unchanged_rerun_is_an_empty_diff(finished: Clone) -> None:
    before = finished.results()
    again = run_notebook("01_tiny", "laptop")
    assert not again.changed
    assert finished.results() == before


@pytest.mark.slow
def test_a_failure_leaves_the_earlier_result(finished: Clone) -> None:
    before = finished.results()
    try:
        finished.write_profile("laptop", notebooks={"01_tiny": {"seed": -1}})
        with pytest.raises(
            NotebookError,
            match=r"01_tiny failed in the cell numbered \[3\]: ValueError: a negative seed; "
            r"earlier results are untouched, the partial copy is .*failed/laptop/01_tiny.ipynb",
        ):
            run_notebook("01_tiny", "laptop")
    finally:
        finished.write_profile("laptop", notebooks={"01_tiny": {"seed": 2}})
    assert finished.results() == before


@pytest.mark.slow
def test_new_prose_is_taken_over_without_a_run(finished: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "in_own_process", lambda *_: pytest.fail("it ran"))
    before = json.loads(finished.results()["01_tiny.provenance.json"])
    try:
        finished.write_notebook(prose="New words.")
        assert run_all("laptop") == []
        assert "New words." in finished.results()["01_tiny.ipynb"].decode()
        assert json.loads(finished.results()["01_tiny.provenance.json"]) == before
    finally:
        finished.write_notebook()
        runner.refresh_sources("01_tiny", "laptop")


@pytest.mark.slow
def test_a_run_with_other_values_does_not_pass_for_the_profile(finished: Clone) -> None:
    before = finished.results()
    run = run_notebook("01_tiny", "laptop", {"seed": 7})
    assert run.notebook == finished.root / "build" / "runs" / "laptop" / "seed=7" / "01_tiny.ipynb"
    assert finished.results() == before


def test_run_all_goes_on_after_a_failure_and_names_it(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = clone.root / "notebooks" / "02_other.ipynb"
    second.write_bytes(clone.notebook.read_bytes())
    clone.write_profile("laptop", notebooks={"01_tiny": {}, "02_other": {}})
    monkeypatch.setattr(runner, "check_gpu", lambda wanted: None)
    commands: list[list[str]] = []
    monkeypatch.setattr(
        runner, "in_own_process", lambda command, jobs: commands.append(command) or len(commands) % 2
    )
    with pytest.raises(NotebookError, match="failed: 01_tiny; the messages are above"):
        run_all("laptop", gpu="1")
    assert [command[-5:] for command in commands] == [
        ["01_tiny", "--profile", "laptop", "--gpu", "1"],
        ["02_other", "--profile", "laptop", "--gpu", "1"],
    ]
    printed = capsys.readouterr().out
    with pytest.raises(NotebookError):
        run_all("laptop", gpu="1", anyway=True)
    assert [command[-3:] for command in commands[2:]] == [["--gpu", "1", "--anyway"]] * 2
    assert "notebook 1 of 2, elapsed 00:00:00: 01_tiny (not run yet in this profile)" in printed
    assert "2 notebooks, 1 run, 1 failed" in printed


def test_two_notebooks_run_at_once_and_share_the_cores(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone.root / "notebooks" / "02_other.ipynb").write_bytes(clone.notebook.read_bytes())
    clone.write_profile("laptop", notebooks={"01_tiny": {}, "02_other": {}})
    both, threads = Barrier(2, timeout=60), []

    class Process:
        """Ends when another one has begun; the second notebook fails."""

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            self.code = int("02_other" in command)
            threads.append(env["OMP_NUM_THREADS"])

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None: ...

        def wait(self) -> int:
            both.wait()
            return self.code

    monkeypatch.setattr(execution.subprocess, "Popen", Process)
    monkeypatch.setattr(execution.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(NotebookError, match="failed: 02_other; the messages are above"):
        run_all("laptop", jobs=2)
    assert threads == ["3", "3"]
    assert "2 notebooks, 1 run, 1 failed" in capsys.readouterr().out


def test_a_notebook_that_times_something_runs_alone_after_the_others(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = nbformat.read(clone.notebook, as_version=4)
    timed.cells[-1].metadata["tags"] = ["compute", "timed"]
    nbformat.write(timed, clone.root / "notebooks" / "00_timed.ipynb")
    for name in ("02_other", "03_more"):
        (clone.root / "notebooks" / f"{name}.ipynb").write_bytes(clone.notebook.read_bytes())
    clone.write_profile("laptop", notebooks={"00_timed": {}, "01_tiny": {}, "02_other": {}, "03_more": {}})
    running, most, order = [], {}, []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            self.name = command[command.index("run") + 1]

        def __enter__(self) -> Self:
            running.append(self.name)
            order.append(self.name)
            return self

        def __exit__(self, *error: object) -> None:
            running.remove(self.name)

        def wait(self) -> int:
            time.sleep(0.05)
            most[self.name] = len(running)
            return 0

    monkeypatch.setattr(execution.subprocess, "Popen", Process)
    ran = run_all("laptop", jobs=2)
    assert order[-1] == "00_timed"
    assert most["00_timed"] == 1
    assert ran[0] == "00_timed"
    assert len(ran) == 4


def test_without_git_the_revision_is_unknown(clone: Clone) -> None:
    assert code_revision() == "unknown"
