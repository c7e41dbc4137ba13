"""Every example of the help and every console line of the README runs: on tiny models, stubs or a dry run."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from palimpsest import cli, resources
from palimpsest.book import arm_runs, confirm, render, runner, smoke, standing
from palimpsest.network import model
from palimpsest.workbench import diagnosis
from palimpsest.workbench.edited_model import EditedModel
from tests.clone import make_clone
from tests.commands.rooms import make_room, run

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
ORDER = ("new-result", "edit", "join", "evaluate", "compare", "diagnose", "replace", "undo", "doctor")
"""Commands on models, each in the folder that those before it left."""
STATUS = {"edit": (0, 3), "replace": (0, 3), "doctor": (0, 1)}
BY_HAND = ("papermill", "pytest", "jupyter")
PARSED = ("trace", "tune", "train", "stats", "crate", "batch", "plan", "fetch")
"""Commands that tests of their own run; here their options are read."""
STUBBED = ("run", "status", "confirm", "render", "arms", "check-notebooks", "parameters")


def of_the_help() -> list[str]:
    """The example in the help of every command that has one."""
    texts = [command.callback.__doc__ or "" for command in cli.app.registered_commands if command.callback]
    return [line for text in texts for line in re.findall(r"Example: palimpsest (.+)", text)]


def in_help(first: tuple[str, ...]) -> list[str]:
    """Examples of some commands."""
    return [line for line in of_the_help() if line.split()[0] in first]


def of_the_readme() -> list[str]:
    """Console lines without their comments, and commands in the first column of tables."""
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    lines += re.findall(r"^\| `((?:make|\.venv)[^`]+)` \|", README, re.MULTILINE)
    return [re.split(r"\s+#\s", line)[0].strip().removeprefix(".venv/bin/") for line in lines]


def having(first: tuple[str, ...], under: str = "") -> list[str]:
    """Lines of the README that begin with one of some words, behind another word if wanted."""
    found = [line.removeprefix(f"{under} ") for line in of_the_readme() if line.startswith(under)]
    return [line for line in found if line.split()[0] in first]


def test_every_line_of_the_readme_is_run_by_a_test_below() -> None:
    lines = of_the_readme()
    assert len(lines) > 20
    run_here = {f"palimpsest {line}" for line in having((*ORDER, *PARSED, *STUBBED), "palimpsest")}
    run_here |= {*having(("make",)), *having(BY_HAND), "palimpsest --install-completion"}
    assert set(lines) - run_here == set()
    assert {line.split()[0] for line in of_the_help()} <= {*ORDER, *PARSED}


@pytest.mark.parametrize("line", [*having(PARSED, "palimpsest"), *in_help(PARSED)])
def test_options_of_commands_with_tests_of_their_own(line: str) -> None:
    done = run(*shlex.split(line), "--help")
    assert done.exit_code == 0, done.output
    wrong = run(*shlex.split(line), "--no-such-option", "--help")
    assert wrong.exit_code == 2


@pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed; install it")
@pytest.mark.parametrize("line", having(("make",)))
def test_make_has_the_target(line: str) -> None:
    """A dry run: what these do is what `make test` is."""
    done = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_room(tmp_path_factory.mktemp("room") / "room", patch)


@pytest.mark.parametrize("lines", [in_help(ORDER), having(ORDER, "palimpsest")], ids=["help", "README"])
def test_commands_on_models(
    lines: list[str], room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model under the embedded one's name, in a checkout of two pages."""
    for folder in ("notebooks", "book", "tests/book"):
        (room / folder).mkdir(parents=True, exist_ok=True)
    for name in ("notebooks/22_alphaedit_theorems.ipynb", "book/_toc.yml"):
        shutil.copyfile(ROOT / name, room / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "unpacked_model", lambda: room / "base")
    settings = room / "config/models/tiny.yaml"
    if "smollm2-135m" not in settings.read_text():
        settings.write_text(settings.read_text().replace("- base\n", "- base\n- smollm2-135m\n"))
    text = (room / "facts.jsonl").read_text().replace('"id": "0"', '"id": "pompidou"')
    (tmp_path / "facts.jsonl").write_text(text)

    def diagnosed(edit: Path, *_: Any) -> Any:
        assert len(EditedModel.open(edit)) > 0
        return SimpleNamespace(path="edited.uncertainty.csv")

    monkeypatch.setattr(diagnosis, "diagnose_on_disk", diagnosed)  # tests of its own; needs an embedder
    for line in sorted(lines, key=lambda line: ORDER.index(line.split()[0])):
        done = run(*shlex.split(line))
        assert done.exit_code in STATUS.get(line.split()[0], (0,)), (line, done.output)
    for page in (room / "notebooks").glob("23_*"):
        page.unlink()
        (room / f"tests/book/test_page_{page.stem}.py").unlink()


def _made(*_: Any, **__: Any) -> runner.Run:
    return runner.Run(Path("out.ipynb"), 1.0, True)


def _nothing(*_: Any, **__: Any) -> list[str]:
    return []


STUBS: list[tuple[Any, str, Callable[..., Any]]] = [
    (runner, "run_notebook", _made),
    (standing, "standing", lambda *_: standing.Standing("fresh")),
    (confirm, "confirm_all", _nothing),
    (render, "render_all", _nothing),
    (arm_runs, "standings", _nothing),
    (arm_runs, "run_arms", _nothing),
    (smoke, "check_notebooks", _nothing),
    (resources, "fetch_all", _nothing),
]


@pytest.mark.parametrize("line", [*having(STUBBED, "palimpsest")])
def test_commands_of_the_book(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of pages, profiles, parameters and options are checked; the hours of work are stubs."""
    monkeypatch.setenv("PALIMPSEST_ROOT", str(ROOT))
    for module, name, stub in STUBS:
        monkeypatch.setattr(module, name, stub)
    done = run(*shlex.split(line.partition(" > ")[0]))
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_notebooks_without_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the README, on a quick notebook in place of its own."""
    clone = make_clone(tmp_path / "clone", monkeypatch, whole=True)
    lines = having(("parameters",), "palimpsest") + having(BY_HAND)
    modules = {"papermill": "papermill", "pytest": "pytest", "jupyter": "", "parameters": "palimpsest.cli"}
    assert len(lines) == 4
    for line in lines:
        program, *rest = shlex.split(re.sub(r"\d\d_[a-z_]+", "01_tiny", line.partition(" > ")[0]))
        program, rest = ("nbconvert", rest[1:]) if program == "jupyter" else (modules[program], rest)
        rest = ["parameters", *rest] if program == "palimpsest.cli" else rest
        done = subprocess.run(
            [sys.executable, "-m", program, *rest], cwd=clone.root, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done.stdout[-2000:] + done.stderr[-2000:])
        if " > " in line:
            (clone.root / line.partition(" > ")[2].strip()).write_text(done.stdout)
    assert (clone.root / "out.ipynb").is_file()
    assert (clone.root / "01_tiny.html").is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell: str) -> None:
    """What `palimpsest --install-completion` sets up is there; nothing is installed here."""
    words = {"bash": "palimpsest repl", "zsh": "palimpsest repl", "fish": "palimpsest repl"}
    environment = {
        "_PALIMPSEST_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words[shell],
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": words[shell],
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, [], env=environment, prog_name="palimpsest")
    assert "replace" in done.stdout
    assert "--install-completion" in run("--help").stdout
