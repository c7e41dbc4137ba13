"""A page is compared with the memory of its GPU before its first cell; the driver is a stand-in."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book import runner
from palimpsest.book.gpus import ORDER, VISIBLE, room_of
from palimpsest.book.losses import FULL
from palimpsest.book.profiles import find_notebook, load_profile, parameters_for
from palimpsest.errors import FullGpuError, NotebookError
from palimpsest.planning import plan as plan_module
from palimpsest.planning.fits import check_fits, held_by
from palimpsest.planning.plan import plan

ROOT = Path(__file__).parents[2]
PAGE, PROFILE = "02_null_space", "gpu-llama3-8b"
LARGE, SMALL = 143771, 24564
"""MiB of an H200 and of a card of 24 GiB."""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_ROOT", str(ROOT))
    monkeypatch.setattr("palimpsest.planning.weights.try_to_load_from_cache", lambda *_: None)
    for name in (VISIBLE, ORDER):
        monkeypatch.delenv(name, raising=False)


def cards(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """Let the driver list cards of so many MiB, in the order of the bus."""
    lines = [f"{number}, a card, GPU-{number}{number}, {size}, 550.54\n" for number, size in enumerate(sizes)]
    listed = SimpleNamespace(stdout="".join(lines))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: listed)


def parameters(**overrides: Any) -> dict[str, Any]:
    return parameters_for(load_profile(PROFILE), find_notebook(PAGE), overrides)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of notebooks whose first cell would run; each fails there."""
    names: list[str] = []

    def execute(source: Path, *_: Any) -> None:
        names.append(source.stem)
        raise NotebookError("begun")

    monkeypatch.setattr(runner, "papermill_run", execute)
    monkeypatch.setattr(runner, "keep_partial", lambda *_: None)
    monkeypatch.setattr(runner, "results_of", lambda _: tmp_path)
    monkeypatch.setattr(runner, "runs_of", lambda *_: tmp_path)
    return names


def page(*options: str) -> Result:
    return CliRunner().invoke(cli.app, ["run", PAGE, "--profile", PROFILE, *options])


def test_what_is_compared_is_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "device_of", lambda _: ("cuda", "device 'cuda' cannot be used here"))
    (planned,) = plan(PROFILE, [PAGE]).pages
    assert held_by(find_notebook(PAGE), parameters()) == dict(planned.memory)
    assert sum(planned.memory.values()) > 2**35


@pytest.mark.parametrize("room", [0, 2**40])
def test_enough_memory_or_none_that_is_known_refuses_nothing(room: int) -> None:
    check_fits(find_notebook(PAGE), parameters(), room)


def test_the_limit_is_what_the_plan_says() -> None:
    source = find_notebook(PAGE)
    needed = sum(held_by(source, parameters()).values())
    check_fits(source, parameters(), needed)
    with pytest.raises(FullGpuError, match=r"02_null_space needs 38\.\d GiB of GPU memory by its plan"):
        check_fits(source, parameters(), needed - 1)
    fewer = parameters(layers=[4], written=10)
    assert sum(held_by(source, fewer).values()) < needed
    check_fits(source, fewer, needed - 1)


def test_pages_that_are_not_counted_and_models_of_unknown_size_are_not_compared(tmp_path: Path) -> None:
    uncounted = tmp_path / "99_new.ipynb"
    assert held_by(uncounted, parameters()) == {}
    assert held_by(find_notebook(PAGE), parameters(model="no/such")) == {}
    check_fits(uncounted, parameters(), 1)


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ((), r"device cuda has 24\.0 GiB"),
        (("--gpu", "1"), r"device cuda has 24\.0 GiB"),
        (("--gpu", "1", "-p", "device=auto"), r"all GPUs that it sees have 24\.0 GiB"),
    ],
)
def test_a_page_that_does_not_fit_is_refused_before_its_first_cell(
    options: tuple[str, ...], there: str, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(monkeypatch, SMALL, SMALL)
    done = page(*options)
    assert done.exit_code == FULL, done.output
    said = (
        r"palimpsest: 02_null_space needs 38\.\d GiB of GPU memory by its plan \(weights 15\.0, .*\), "
        rf"and {there}\. Choose a GPU with more, spread .* narrower dtype; --anyway runs it all the same\n"
    )
    assert re.fullmatch(said, done.stderr)
    assert begun == []


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((SMALL,), ("--anyway",)),
        ((LARGE,), ()),
        ((SMALL, LARGE), ("--gpu", "1")),
        ((SMALL, SMALL), ("-p", "device=auto")),
        ((), ()),
        ((SMALL,), ("-p", "device=cpu")),
    ],
)
def test_a_page_that_fits_or_is_not_to_be_compared_begins(
    sizes: tuple[int, ...], options: tuple[str, ...], begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(monkeypatch, *sizes)
    assert page(*options).exit_code == 2
    assert begun == [PAGE]


@pytest.mark.parametrize(
    ("device", "visible", "order", "gib"),
    [
        ("cuda", None, None, 40),  # CUDA begins with the fastest, which is not known: it may be the largest
        ("cuda", None, "PCI_BUS_ID", 16),
        ("cuda:1", None, "PCI_BUS_ID", 40),
        ("auto", None, "PCI_BUS_ID", 80),
        ("auto", "1, 2", None, 64),
        ("cuda:1", "2,0", None, 16),
        ("cuda", "GPU-11", None, 40),
        ("auto", "GPU-00,GPU-2", None, 40),
        ("cuda", "MIG-5", None, 0),
        ("auto", "MIG-5,0", None, 0),
        ("cuda:7", None, None, 0),
        ("cuda", "", None, 0),
        ("cpu", None, None, 0),
    ],
)
def test_the_memory_of_what_a_run_sees(
    device: str, visible: str | None, order: str | None, gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(monkeypatch, 16 * 1024, 40 * 1024, 24 * 1024)
    if order is not None:
        monkeypatch.setenv(ORDER, order)
    assert room_of(device, visible) == gib * 2**30
    if visible is not None and not visible[:1].isdigit():
        monkeypatch.setenv(VISIBLE, visible)
        assert room_of(device) == gib * 2**30
