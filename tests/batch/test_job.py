"""One job: what is retried, the slots of GPUs, and what nodes record."""

import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.batch import job as job_module
from palimpsest.batch import nodes
from palimpsest.batch.job import main, run_job
from palimpsest.batch.jobs import batch_dir, marker_of
from palimpsest.batch.nodes import Seen, mount_of, not_shared, seen
from palimpsest.batch.outcome import in_words, retried
from palimpsest.batch.slots import gpus, slots
from palimpsest.book.gpus import ORDER, VISIBLE
from palimpsest.book.losses import FULL, LOST, is_full, is_loss
from palimpsest.commands.doctor import _storage
from palimpsest.errors import NotebookError, OutOfMemoryError
from palimpsest.files import write_atomically
from tests.clone import Clone, make_clone


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    for name in (VISIBLE, ORDER, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.mark.parametrize("status", [LOST, -9, -15, 137])
def test_a_lost_job_is_retried(status: int) -> None:
    assert retried(status)


@pytest.mark.parametrize("status", [0, 1, 2, 70, 130])
def test_what_comes_again_is_not(status: int) -> None:
    assert not retried(status)


def test_ends_in_words() -> None:
    assert in_words(2) == "refused, status 2"
    assert in_words(-9) == "ended by SIGKILL"
    assert in_words(75) == "lost memory, GPU or node, status 75"
    assert in_words(69) == "the GPU's memory did not suffice, status 69"
    assert in_words(70) == "failed with status 70"


class CellError(Exception):
    ename, evalue = "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.parametrize(
    ("error", "lost", "full"),
    [
        (CellError(), True, True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True, True),
        (MemoryError(), True, False),
        (OutOfMemoryError("one of the facts alone does not fit: CUDA out of memory."), True, True),
        (OutOfMemoryError("one of the facts alone does not fit"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, False),
        (ValueError("a negative seed"), False, False),
    ],
)
def test_losses_are_told_from_faults_and_full_gpus_from_other_losses(
    error: Exception, lost: bool, full: bool
) -> None:
    assert (is_loss(error), is_full(error)) == (lost, full)
    outer = NotebookError("a page failed")
    outer.__cause__ = error
    assert (is_loss(outer), is_full(outer)) == (lost, full)


def plan_of(
    clone: Clone,
    name: str = "a/job",
    gpu: int = 0,
    plan: str = "one",
    fetch: Sequence[str] = (),
    gpus: Sequence[str] = ("3", "5"),
) -> Path:
    job = {"name": name, "arguments": ["status"], "gpu": gpu, "witness": ""}
    path = clone.root / "plan.json"
    path.write_text(json.dumps({"id": plan, "gpus": list(gpus), "fetch": fetch, "jobs": [job]}))
    return path


def calls(monkeypatch: pytest.MonkeyPatch, *statuses: int) -> list[dict[str, str]]:
    """Environments that the job's command was given; it ends with these statuses, one after the other."""
    given: list[dict[str, str]] = []
    left = list(statuses)

    def call(_: list[str], extra: dict[str, str]) -> int:
        given.append(extra)
        return left.pop(0)

    monkeypatch.setattr(job_module, "_call", call)
    return given


def test_an_error_that_comes_again_is_tried_once_in_a_batch(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = calls(monkeypatch, 2, 0)
    assert run_job(plan_of(clone), "a/job") == 2
    assert run_job(plan_of(clone), "a/job") == 2
    assert "refused, status 2 in this batch already, so it is not tried again" in capsys.readouterr().err
    assert len(made) == 1
    assert run_job(plan_of(clone, plan="two"), "a/job") == 0


def test_a_lost_job_is_tried_again_and_its_status_is_75(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = calls(monkeypatch, -signal.SIGKILL, LOST, 0)
    assert [run_job(plan_of(clone), "a/job") for _ in range(3)] == [LOST, LOST, 0]
    assert len(made) == 3


def test_a_job_that_its_gpu_does_not_hold_is_tried_once_more(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A retry asks for more memory of the host, which does not help; a neighbour on the GPU may be gone."""
    made = calls(monkeypatch, FULL, FULL, FULL, LOST, FULL, 0)
    assert [run_job(plan_of(clone), "a/job") for _ in range(3)] == [FULL] * 3
    assert len(made) == 2
    assert "the GPU's memory did not suffice, status 69; it may be tried again" in capsys.readouterr().err
    later = plan_of(clone, plan="two")
    assert [run_job(later, "a/job") for _ in range(4)] == [FULL, LOST, FULL, 0]


def test_the_marker_needs_the_witness(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls(monkeypatch, 0, 0)
    plan = plan_of(clone)
    content = json.loads(plan.read_text())
    content["jobs"][0]["witness"] = str(clone.root / "witness")
    plan.write_text(json.dumps(content))
    with pytest.raises(NotebookError, match=r"ended well but left no .*witness; is that folder shared"):
        run_job(plan, "a/job")
    assert not marker_of("a/job").exists()
    (clone.root / "witness").touch()
    assert run_job(plan, "a/job") == 0
    assert marker_of("a/job").is_file()


def test_jobs_do_without_a_network_where_models_were_fetched(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = calls(monkeypatch, 0, 0)
    run_job(plan_of(clone), "a/job")
    run_job(plan_of(clone, fetch=["laptop"]), "a/job")
    assert given == [{}, {"HF_HUB_OFFLINE": "1"}]


def test_a_storage_is_given_a_copy_of_the_marker(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls(monkeypatch, 2, 0, 0)
    plan, copy = plan_of(clone), clone.root / "storage" / "job.json"
    write_atomically(marker_of("a/job"), b"{}")
    monkeypatch.setattr(sys, "argv", ["job", str(plan), "a/job", str(copy)])
    assert main() == 2
    assert not copy.exists()
    plan_of(clone, plan="two")
    assert main() == 0
    assert copy.read_bytes() == b"{}"
    monkeypatch.setattr(sys, "argv", ["job", str(plan), "a/job", str(marker_of("a/job"))])
    assert main() == 0


def test_a_plan_that_cannot_be_read_or_lacks_the_job(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", str(clone.root / "absent.json"), "a"])
    assert main() == 2
    assert "keep the checkout on storage that all nodes share" in capsys.readouterr().err
    with pytest.raises(NotebookError, match="has no job 'b'; start batches with 'palimpsest batch'"):
        run_job(plan_of(clone), "b")


def test_a_job_holds_a_gpu_of_its_own(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    given = calls(monkeypatch, 0, 0)
    plan = plan_of(clone, gpu=1)
    begun, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with slots(["3"], batch_dir() / "slots"):
            begun.set()
            ended.wait(20)

    other = in_another_thread(hold)
    assert begun.wait(20)
    run_job(plan, "a/job")
    ended.set()
    other.join()
    run_job(plan, "a/job")
    assert given == [{VISIBLE: name, ORDER: "PCI_BUS_ID"} for name in ("5", "3")]


def test_a_job_holds_as_many_gpus_as_it_needs_or_none(clone: Clone, tmp_path: Path) -> None:
    taken = threading.Event()

    def wait() -> None:
        with slots(["0", "1", "2"], tmp_path, 2, pause=0.01) as seeing:
            assert seeing[VISIBLE] == "1,2"
            taken.set()

    with slots(["0", "1", "2"], tmp_path):
        with slots(["1", "2"], tmp_path) as second:
            assert second[VISIBLE] == "1"
            thread = in_another_thread(wait)
            assert not taken.wait(0.2)
            with slots(["2"], tmp_path, pause=0.001) as third:
                assert third[VISIBLE] == "2", "who waits for two does not keep one"
        assert taken.wait(20)
    thread.join()


def test_numbers_are_those_of_the_driver_unless_the_environment_lists_them(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an order CUDA counts from the fastest; numbers that a user lists are meant in the user's."""
    with slots(["1"], tmp_path) as seeing:
        assert seeing == {VISIBLE: "1", ORDER: "PCI_BUS_ID"}
    monkeypatch.setenv(VISIBLE, "1")
    with slots(gpus(), tmp_path) as seeing:
        assert seeing == {VISIBLE: "1"}


def in_another_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_slot_that_is_free_again_is_taken(tmp_path: Path, clone: Clone) -> None:
    taken = threading.Event()

    def wait() -> None:
        with slots(["0"], tmp_path, pause=0.01):
            taken.set()

    with slots(["0"], tmp_path) as seeing:
        assert seeing[VISIBLE] == "0"
        thread = in_another_thread(wait)
        assert not taken.wait(0.2)
    assert taken.wait(20)
    thread.join()
    for names, count in (([], 1), (["0"], 0)):
        with slots(names, tmp_path, count) as none:
            assert none == {}


def test_gpus_are_those_that_are_visible(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "2, 3")
    assert gpus() == ["2", "3"]
    monkeypatch.delenv(VISIBLE)
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", str(tool.parent))
    assert gpus() == []
    tool.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: another'\n")
    tool.chmod(0o755)
    assert gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("2, 3", ["2", "3"]),
        ("GPU-11aa,GPU-22bb", ["GPU-11aa", "GPU-22bb"]),
        ("MIG-5/1/0", ["MIG-5/1/0"]),
        ("", []),
        ("NoDevFiles", []),
        ("1,-1,2", ["1"]),
    ],
)
def test_what_cuda_sees_is_what_jobs_share(
    listed: str, names: list[str], clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, listed)
    assert gpus() == names


@pytest.mark.parametrize("listed", ["2,5", "GPU-11aa,GPU-22bb"])
def test_in_an_allocation_each_job_of_a_node_has_a_gpu_of_the_allocation(
    listed: str, clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node engine in a job of Slurm: without slots all its runs would share the first GPU."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(VISIBLE, listed)
    first, second = listed.split(",")
    given = calls(monkeypatch, 0, 0, 0)
    run_job(plan_of(clone, gpu=1, gpus=gpus()), "a/job")
    begun, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with slots([first], batch_dir() / "slots"):
            begun.set()
            ended.wait(20)

    other = in_another_thread(hold)
    assert begun.wait(20)
    run_job(plan_of(clone, gpu=1, gpus=gpus()), "a/job")
    ended.set()
    other.join()
    run_job(plan_of(clone, gpu=2, gpus=gpus()), "a/job")
    assert given == [{VISIBLE: first}, {VISIBLE: second}, {VISIBLE: listed}]


def test_where_slurm_gives_each_job_its_gpu_nothing_is_pinned(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(VISIBLE, "GPU-11aa")
    given = calls(monkeypatch, 0)
    run_job(plan_of(clone, gpu=1, gpus=()), "a/job")
    assert given == [{}]


def test_nodes_that_see_one_id_share_a_folder(clone: Clone, tmp_path: Path) -> None:
    nodes.record()
    here = socket.gethostname()
    found = nodes.recorded()
    assert set(found) == {here}
    assert found[here]["cache"].id == seen(tmp_path / "cache").id != ""
    there = {"results": found[here]["results"], "cache": Seen("/scratch", "ext4 /dev/sda1", "another")}
    both = found | {"zz": there}
    assert not_shared(both, "results") == ""
    assert not_shared(both, "cache").endswith("zz sees /scratch on ext4 /dev/sda1")
    assert not_shared({"zz": there}, "cache") == ""


def test_doctor_says_when_a_folder_is_not_shared(clone: Clone) -> None:
    assert [one.remedy for one in _storage()] == ["", ""]
    nodes.record()
    record = batch_dir() / "nodes" / "zz.json"
    content = json.loads((batch_dir() / "nodes" / f"{socket.gethostname()}.json").read_text())
    content["cache"] |= {"path": "/scratch", "id": "another"}
    record.write_text(json.dumps(content))
    results, cache = _storage()
    assert results.state.startswith("one folder, as far as")
    assert cache.state.startswith("not one folder: ")
    assert cache.remedy == "Set PALIMPSEST_CACHE to a folder on storage that all nodes share"


def test_the_mount_of_a_folder_is_the_innermost(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /data\\040one rw shared:1 - nfs4 server:/home rw\n"
        "3 1 0:6 / /data rw - tmpfs none rw\n"
    )
    assert mount_of(Path("/data one/results"), table) == "nfs4 server:/home"
    assert mount_of(Path("/database"), table) == "ext4 /dev/sda1"
    assert mount_of(Path("/data/x"), tmp_path / "absent") == ""


def test_a_lost_kernel_is_status_75(clone: Clone) -> None:
    """The kernel kills itself, as the system does when memory runs out."""
    clone.write_notebook(work="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    done = CliRunner().invoke(cli.app, ["run", "01_tiny"])
    assert done.exit_code == LOST, done.output
    assert "earlier results are untouched" in done.stderr
