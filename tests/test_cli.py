from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from palimpsest import cli, resources
from palimpsest.book import browser_check, runner
from palimpsest.errors import ResourceError
from tests.clone import Clone, make_clone

COMMANDS = CliRunner()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run 02_tiny", "unknown notebook '02_tiny'; choose one of: 01_tiny"),
        ("run 01_tiny --profile lap", "unknown profile 'lap'; choose one of: laptop, smoke"),
        ("run 01_tiny -p sed=1", "unknown parameter of 01_tiny 'sed'; choose one of: careful,"),
        ("run 01_tiny -p seed=true", "parameter 'seed' is True (bool), but the notebook declares"),
        ("run 01_tiny -p seed", "-p seed: write NAME=VALUE, for example -p seed=1"),
        ("parameters 01_tiny --profile lap", "unknown profile 'lap'"),
        ("run-all --profile lap", "unknown profile 'lap'"),
        ("status --profile lap", "unknown profile 'lap'"),
        ("book --profile lap", "unknown profile 'lap'"),
        ("edit absent.jsonl --out out", "absent.jsonl: cannot be read"),
        ("undo absent 17", "absent holds no edited model (it has no palimpsest.json); give a folder that"),
        ("check-book", "holds no book; build it with 'make html PROFILE=laptop'"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(clone: Clone, arguments: str, message: str) -> None:
    result = COMMANDS.invoke(cli.app, arguments.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("palimpsest: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_edit_says_when_undo_is_exact() -> None:
    text = " ".join(COMMANDS.invoke(cli.app, ["edit", "--help"]).stdout.split())
    assert "Keys and values are read on the unedited model and computed once" in text
    assert "undo is exact: bit by bit, or, with a batch above 1, up to rounding in the optimisation" in text


def test_fetch_reports_a_failed_download(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ResourceError("no network and an empty cache")

    monkeypatch.setattr(resources, "fetch_all", fail)
    result = COMMANDS.invoke(cli.app, ["fetch"])
    assert (result.exit_code, result.stderr) == (2, "palimpsest: no network and an empty cache\n")


def test_a_stop_says_how_to_go_on(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resources, "fetch_all", stop)
    result = COMMANDS.invoke(cli.app, ["fetch"])
    message = "palimpsest: stopped; the same command goes on from what is done\n"
    assert (result.exit_code, result.stderr) == (130, message)


def test_fetch_leaves_nothing_for_the_first_loads_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that load the model side by side afterwards would make its folder all at once."""
    done: list[str] = []
    monkeypatch.setattr(resources, "fetch_all", lambda: done.append("fetched"))
    monkeypatch.setattr("palimpsest.network.embedded.unpacked_model", lambda: done.append("unpacked"))
    assert COMMANDS.invoke(cli.app, ["fetch"]).exit_code == 0
    assert done == ["fetched", "unpacked"]


def test_parameters_are_printed_for_papermill(clone: Clone) -> None:
    result = COMMANDS.invoke(cli.app, ["parameters", "01_tiny", "--profile", "laptop"])
    assert yaml.safe_load(result.stdout) == {
        "profile": "laptop",
        "seed": 2,
        "rate": 0.5,
        "careful": True,
    }


def test_values_arrive_in_the_declared_types(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def pretend(
        notebook: str,
        profile: str,
        overrides: object,
        gpu: str | None,
        folder: object,
        wait: float,
        check: object,
    ) -> runner.Run:
        assert folder is None
        assert callable(check)
        seen.update(notebook=notebook, profile=profile, overrides=overrides, gpu=gpu, wait=wait)
        return runner.Run(Path("out.ipynb"), 61.0, True)

    monkeypatch.setattr(runner, "run_notebook", pretend)
    arguments = "run 01_tiny --profile laptop -p rate=1e-3 -p profile=7 -p careful=false --gpu 1"
    result = COMMANDS.invoke(cli.app, arguments.split())
    assert result.stdout == "out.ipynb (changed, 61 s)\n"
    assert seen == {
        "notebook": "01_tiny",
        "profile": "laptop",
        "overrides": {"rate": 1e-3, "profile": "7", "careful": False},
        "gpu": "1",
        "wait": -1,
    }
    COMMANDS.invoke(cli.app, ["run", "01_tiny", "--no-wait"])
    assert seen["wait"] == 0


def test_status_says_what_is_stale_and_why(clone: Clone) -> None:
    result = COMMANDS.invoke(cli.app, ["status"])
    assert result.stdout == "01_tiny: not run\n"
    (row,) = yaml.safe_load(COMMANDS.invoke(cli.app, ["status", "--json"]).stdout)
    assert (row["notebook"], row["state"], row["run"]) == ("01_tiny", "not run", True)


def test_without_a_browser_the_check_is_not_run_rather_than_passed(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = clone.root / "build/book/laptop/_build/html"
    html.mkdir(parents=True)
    (html / "index.html").touch()
    monkeypatch.setattr(browser_check, "find_browser", lambda: None)
    result = COMMANDS.invoke(cli.app, ["check-book"])
    assert result.exit_code == 3
    assert result.stdout.startswith("NOT RUN: no browser found; install")


def test_outside_a_checkout_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path))
    result = COMMANDS.invoke(cli.app, ["status"])
    assert result.exit_code == 2
    assert "is not a checkout of Palimpsest" in result.stderr
