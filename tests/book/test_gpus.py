"""GPUs: which there are, what a run used, and which failures may be tried again."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import papermill
import pytest
from typer.testing import CliRunner

from palimpsest import cli, resources
from palimpsest.book import gpus, runner
from palimpsest.book.assemble import provenance_box
from palimpsest.book.execution import Traced, papermill_run, surroundings
from palimpsest.book.gpus import check_gpu, used
from palimpsest.book.profiles import load_profile
from palimpsest.book.provenance import Measured, gpu_lines, machine_of, provenance
from palimpsest.book.staleness import Inputs
from palimpsest.book.tracing import Trace
from palimpsest.errors import FullGpuError, LostRunError, NotebookError, OutOfMemoryError, ResourceError
from palimpsest.results.prose import plain
from tests.clone import Clone, make_clone

COMMANDS = CliRunner()
LISTED = "0, NVIDIA H200, GPU-11aa, 143771, 550.54.15\n1, NVIDIA H200, GPU-22bb, 143771, 550.54.15\n"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


def listed(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """Let the driver list this; None for no driver."""

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        if text is None:
            raise FileNotFoundError(command[0])
        return SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    gpus._driver.cache_clear()


@pytest.mark.parametrize("wanted", [None, "", "0", "1,0", "GPU-22", "MIG-1234"])
def test_a_gpu_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> None:
    listed(monkeypatch, LISTED)
    check_gpu(wanted)


@pytest.mark.parametrize("wanted", ["3", "0,3", "-1", "first", "GPU-99", "0,"])
def test_a_gpu_that_is_not_there_is_refused_and_the_others_named(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    listed(monkeypatch, LISTED)
    with pytest.raises(ResourceError, match=r"there is no GPU '.*'; here are: 0 \(NVIDIA H200, 140 GiB\), 1"):
        check_gpu(wanted)


def test_a_gpu_without_a_driver(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, None)
    done = COMMANDS.invoke(cli.app, ["run", "01_tiny", "--gpu", "3"])
    assert done.exit_code == 2
    assert done.stderr.startswith("palimpsest: --gpu 3: there is no GPU '3'; the driver lists none")
    assert COMMANDS.invoke(cli.app, ["run-all", "--gpu", "3"]).exit_code == 2


def fake_torch(started: bool = True) -> Any:
    """What `used` asks of torch, with two devices of which the second is fuller."""
    cuda = SimpleNamespace(
        is_initialized=lambda: started,
        device_count=lambda: 2,
        max_memory_allocated=lambda number: (1 + number) * 2**30,
        get_device_name=lambda number: f"NVIDIA H200 number {number}",
    )
    flags = SimpleNamespace(allow_tf32=True)
    backends = SimpleNamespace(
        cudnn=SimpleNamespace(version=lambda: 90100, allow_tf32=False), cuda=SimpleNamespace(matmul=flags)
    )
    return SimpleNamespace(
        cuda=cuda,
        backends=backends,
        version=SimpleNamespace(cuda="12.4"),
        __version__="2.13.0+cu124",
        are_deterministic_algorithms_enabled=lambda: False,
    )


FACTS = {
    "name": "NVIDIA H200 number 1",
    "count": 2,
    "driver": "550.54.15",
    "cuda": "12.4",
    "cudnn": "9.1.0",
    "torch": "2.13.0+cu124",
    "peak_memory_mib": 2048,
    "deterministic": False,
    "tf32_matmul": True,
    "tf32_cudnn": False,
    "visible": "0,1",
}


def test_what_is_known_of_a_gpu_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert used(fake_torch()) == FACTS
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "visible" not in used(fake_torch())


@pytest.mark.parametrize("torch", [None, SimpleNamespace(), fake_torch(started=False)])
def test_nothing_is_known_where_none_was_used(torch: Any) -> None:
    assert used(torch) == {}


def test_the_trace_of_a_run_carries_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    listed(monkeypatch, LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    trace = Trace(tmp_path, tmp_path / "trace.json")
    monkeypatch.setitem(sys.modules, "torch", fake_torch(started=False))
    trace.write()
    assert Traced.gpu(tmp_path / "trace.json") == {}
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    trace.write()
    assert Traced.gpu(tmp_path / "trace.json") == FACTS
    assert Traced.read(tmp_path / "trace.json").files == ()


def test_a_provenance_holds_it_and_the_book_shows_it(clone: Clone) -> None:
    from datetime import UTC, datetime

    measured = Measured(datetime(2026, 11, 29, tzinfo=UTC), 12.0, "cuda", FACTS)
    made = provenance(Inputs({}, {}, {}), {}, measured)
    assert made["gpu"] == FACTS
    assert machine_of(made) == "NVIDIA H200 number 1"
    box = provenance_box({}, made, load_profile("laptop"))
    for what, value in {"driver": "550.54.15", "TF32 in products": "yes", "cuDNN": "9.1.0"}.items():
        assert f"| GPU: {what} | {plain(value)} |" in box
    bare = provenance(Inputs({}, {}, {}), {}, Measured(measured.started, 12.0))
    assert "gpu" not in bare
    assert gpu_lines(bare) == {}
    assert machine_of(bare) == bare["processor"]
    assert machine_of({}) == ""


def test_status_names_the_gpu_of_a_result(clone: Clone) -> None:
    clone.pretend_run(gpu=FACTS)
    shown = (
        "01_tiny: up to date (made on NVIDIA H200 number 1, driver 550.54.15, CUDA 12.4, 2.0 GiB at most)\n"
    )
    assert COMMANDS.invoke(cli.app, ["status"]).stdout == shown
    clone.pretend_run()
    assert COMMANDS.invoke(cli.app, ["status"]).stdout == "01_tiny: up to date\n"


@pytest.mark.parametrize(
    ("kind", "text", "raised"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB", FullGpuError),
        (
            "RuntimeError",
            "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.",
            LostRunError,
        ),
        ("RuntimeError", "the device reported a Hardware Error", LostRunError),
        ("RuntimeError", "CUDA error: unspecified launch failure", LostRunError),
        ("DeadKernelError", "Kernel died", LostRunError),
        (
            "RuntimeError",
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
            LostRunError,
        ),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", NotebookError),
        ("ProfileError", "no such setting", NotebookError),
    ],
)
def test_which_failed_runs_are_lost(
    clone: Clone,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    text: str,
    raised: type[Exception],
) -> None:
    class CellError(Exception):
        exec_count, ename, evalue = 3, kind, text

    def fail(*_: Any, **__: Any) -> None:
        raise CellError

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    with pytest.raises(NotebookError) as found:
        papermill_run(clone.notebook, tmp_path, {}, None)
    assert type(found.value) is raised
    assert str(found.value) == f"01_tiny failed in the cell numbered [3]: {kind}: {text}"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (LostRunError("01_tiny failed: OutOfMemoryError"), 75, "01_tiny failed: OutOfMemoryError"),
        (OutOfMemoryError("one of the facts alone does not fit"), 75, "one of the facts alone"),
        (FullGpuError("01_tiny failed: OutOfMemoryError"), 69, "01_tiny failed: OutOfMemoryError"),
        (OutOfMemoryError("one alone does not fit: CUDA out of memory."), 69, "one alone does not fit"),
        (RuntimeError("CUDA error: out of memory"), 69, "memory did not suffice, or the GPU was lost"),
        (NotebookError("01_tiny failed: ValueError"), 2, "01_tiny failed: ValueError"),
        (RuntimeError("an index is wrong"), 70, "fetch failed with an error that it does not expect"),
    ],
)
def test_exit_statuses_say_whether_to_try_again(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(resources, "fetch_all", fail)
    done = COMMANDS.invoke(cli.app, ["fetch"])
    assert (done.exit_code, done.stderr.startswith(f"palimpsest: {message}")) == (status, True)


@pytest.mark.parametrize(("codes", "kind"), [([75, 69], LostRunError), ([75, 2], NotebookError)])
def test_a_whole_profile_may_be_tried_again_if_each_failure_may(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, codes: list[int], kind: type[Exception]
) -> None:
    (clone.root / "notebooks" / "02_other.ipynb").write_bytes(clone.notebook.read_bytes())
    clone.write_profile("laptop", notebooks={"01_tiny": {}, "02_other": {}})
    left = iter(codes)
    monkeypatch.setattr(runner, "in_own_process", lambda *_: next(left))
    with pytest.raises(NotebookError, match="failed: 01_tiny, 02_other") as found:
        runner.run_all("laptop")
    assert type(found.value) is kind


@pytest.mark.parametrize("kind", [LostRunError, FullGpuError])
def test_a_failed_run_keeps_its_kind(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise kind("01_tiny failed: OutOfMemoryError: CUDA out of memory")

    monkeypatch.setattr(runner, "papermill_run", fail)
    with pytest.raises(kind, match="CUDA out of memory; earlier results are untouched") as found:
        runner.run_notebook("01_tiny", "laptop")
    assert type(found.value) is kind


def test_a_kernel_counts_gpus_as_the_driver_does(clone: Clone, tmp_path: Path) -> None:
    with surroundings(clone.notebook, tmp_path, "1") as values:
        assert (values["CUDA_VISIBLE_DEVICES"], values["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    with surroundings(clone.notebook, tmp_path) as values:
        assert not {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"} & {*values}
