"""The engine: how it is called, and three pages of which one fails and one is killed."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.batch import engine, kubernetes
from palimpsest.batch.engine import ENGINES, check_engine, command, run_batch
from palimpsest.batch.job import refusal_of
from palimpsest.batch.jobs import batch_dir, marker_of
from palimpsest.batch.matrix import Matrix, load_matrix
from palimpsest.book.gpus import ORDER, VISIBLE
from palimpsest.book.losses import FULL, LOST
from palimpsest.errors import BusyError, ProfileError, UnknownNameError
from palimpsest.files import as_json, write_atomically
from tests.clone import SAVE, WORK, Clone, make_clone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    for name in (VISIBLE, ORDER, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    made = make_clone(tmp_path / "clone", monkeypatch, whole=True)
    shutil.copytree(ROOT / "workflow", made.root / "workflow")
    return made


def write_matrix(clone: Clone, **content: Any) -> None:
    whole = {"profiles": ["laptop"], "book": None, "fetch": False, "retries": 1, **content}
    (clone.root / "config" / "batch.yaml").write_text(yaml.safe_dump(whole))


def add_page(clone: Clone, name: str, work: str) -> None:
    clone.notebook = clone.root / "notebooks" / f"{name}.ipynb"
    clone.write_notebook(work=work, save=SAVE.replace("01_tiny", name))


def batch(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["batch", *arguments])


def due(done: Result) -> list[str]:
    """Names of the jobs that a batch lists before it starts."""
    return re.findall(r"^(\S+): (?!snakemake)", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_of_three_pages_one_fails_and_one_is_killed(clone: Clone, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    add_page(clone, "02_fails", "raise ValueError('a mistake')")
    kill = f"""\
import os, signal
from pathlib import Path
with Path({str(tries)!r}).open("a") as handle:
    handle.write("tried\\n")
if len(Path({str(tries)!r}).read_text().splitlines()) == 1:
    os.kill(os.getppid(), signal.SIGKILL)  # the run of the page
"""
    add_page(clone, "03_killed", kill + WORK)
    clone.write_profile("laptop", notebooks={"01_tiny": {"seed": 2}, "02_fails": {}, "03_killed": {}})
    write_matrix(clone)
    names = [
        f"laptop/{page}/seed-{seed}" for page, seed in (("01_tiny", 2), ("02_fails", 1), ("03_killed", 1))
    ]
    done = batch()
    assert due(done) == names
    assert done.exit_code == 2
    assert f"failed: {names[1]}. Their logs are in" in done.stderr
    assert "2 of 3 jobs are done" in done.stdout
    assert tries.read_text().splitlines() == ["tried", "tried"]
    assert marker_of(names[0]).is_file()
    log = (batch_dir() / "logs" / f"{names[1]}.log").read_text()
    assert "refused, status 2 in this batch already, so it is not tried again" in log
    first = clone.results()
    assert {"01_tiny.provenance.json", "03_killed.provenance.json"} <= set(first)
    add_page(clone, "02_fails", WORK)
    again = batch()
    assert due(again) == [names[1]]
    assert again.exit_code == 0, again.output
    after = clone.results()
    assert "02_fails.provenance.json" in after
    assert {name: after[name] for name in first} == first
    last = batch()
    assert (last.exit_code, last.stdout) == (0, "0 jobs are due, 3 results stand\n")


FAKES = {
    "sbatch": """\
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})
minutes = int(sys.argv[sys.argv.index("-t") + 1])
number = str(len(list(folder.glob("job-*"))) + 1)
wrap = next(a for a in sys.argv if a.startswith("--wrap="))[7:]
(folder / f"asked-{{number}}").write_text(" ".join(sys.argv[1:]))
environment = dict(os.environ, SLURM_JOB_ID=number)
job = subprocess.Popen(wrap, shell=True, env=environment, stdout=sys.stderr, start_new_session=True)
late = False
while job.poll() is None and not late:
    time.sleep(0.05)
    late = minutes < 40 and (folder / "begun").exists()
if late:
    os.killpg(job.pid, signal.SIGTERM)
state = "TIMEOUT" if late else "FAILED" if job.wait() else "COMPLETED"
job.wait()
(folder / f"job-{{number}}").write_text(state)
print(number)
""",
    "sacct": """\
from pathlib import Path
for path in Path({folder!r}).glob("job-*"):
    print(path.name[4:] + "|" + path.read_text())
""",
    "srun": """\
import os, sys
arguments = sys.argv[1:]
while arguments[0].startswith("-"):
    arguments.pop(0)
os.execvp(arguments[0], arguments)
""",
    "sinfo": "print('PARTITION'); print('main*')",
    "squeue": "",
    "scontrol": "print('MinJobAge = 300 sec')",
}


QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--slurm-no-account", "--latency-wait", "1")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm's names that stand in for it; its folder.

    sbatch runs the job at once; one that asked for less than 40 minutes is out of time as soon as it leaves
    the file ``begun`` in that folder.
    """
    tools, folder = tmp_path / "bin", tmp_path / "slurm"
    for place in (tools, folder):
        place.mkdir()
    for name, code in FAKES.items():
        (tools / name).write_text(f"#!{sys.executable}\n" + code.format(folder=str(folder)))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin")
    return folder


@pytest.mark.slow
def test_under_slurm_a_job_asks_for_its_gpus_and_is_given_them(clone: Clone, slurm: Path) -> None:
    work = "import os\nassert 'CUDA_VISIBLE_DEVICES' not in os.environ\nassert os.environ['SLURM_JOB_ID']\n"
    clone.write_notebook(work=work + WORK)
    notebook = nbformat.read(clone.notebook, as_version=4)
    notebook.cells[1].source += '\ndevice: str = "cpu"  # where'
    nbformat.write(notebook, clone.notebook)
    clone.write_profile("laptop", notebooks={"01_tiny": {"device": "auto"}})
    write_matrix(clone, needs={"mem_mb": 2000, "runtime": 30}, retries=0, gpus={"laptop": 2})
    done = batch("--profile", "slurm", *(f"--option={part}" for part in QUICK))
    assert done.exit_code == 0, [path.read_text() for path in (batch_dir() / "logs").rglob("*.log")]
    assert "no plan of laptop (model 'tiny' is not on this machine" in done.stdout
    asked = (slurm / "asked-1").read_text()
    assert "--gpus=2" in asked
    assert "--nodes=1" in asked
    assert "--mem 2000" in asked
    assert "-t 30" in asked
    assert "01_tiny.provenance.json" in clone.results()
    assert json.loads((batch_dir() / "plan.json").read_text())["fetch"] == []


@pytest.mark.slow
def test_a_job_that_is_out_of_time_gets_more_by_its_plan(clone: Clone, slurm: Path, tmp_path: Path) -> None:
    wait = f"""\
import time
from pathlib import Path
begun = Path({str(slurm / "begun")!r})
if not begun.exists():
    begun.touch()
    time.sleep(60)
"""
    clone.write_notebook(work=wait + WORK)
    plan = tmp_path / "plan.json"
    page = {"page": "01_tiny", "seconds": 900.0, "memory_bytes": 1_600_000_000}
    content = {"profile": "laptop", "machine": {"device": "cpu"}, "host_memory_bytes": 1, "pages": [page]}
    plan.write_text(json.dumps(content))
    write_matrix(clone, least={"mem_mb": 1000, "runtime": 10})
    done = batch("--profile", "slurm", "--plan", str(plan), *(f"--option={part}" for part in QUICK))
    assert done.exit_code == 0, [path.read_text() for path in (batch_dir() / "logs").rglob("*.log")]
    first, second = ((slurm / f"asked-{number}").read_text() for number in (1, 2))
    assert (slurm / "job-1").read_text() == "TIMEOUT"
    assert re.search(r"--mem 2000 .*-t 30|-t 30 .*--mem 2000", first)
    assert re.search(r"--mem 3000 .*-t 45|-t 45 .*--mem 3000", second)
    assert "gpu" not in first
    assert "01_tiny.provenance.json" in clone.results()


def test_a_dry_run_lists_what_is_due_and_runs_nothing(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(engine.subprocess, "call", lambda asked, env: given.append(asked) or 0)
    clone.pretend_run()
    write_matrix(clone, seeds=[2, 3, 4])
    done = batch("--dry-run")
    assert due(done) == ["laptop/01_tiny/seed-3", "laptop/01_tiny/seed-4"]
    assert done.stdout.endswith("2 jobs are due, 1 results stand\n")
    assert "--dry-run" in given[0]
    assert not (clone.root / "results/laptop/seed-3").exists()


def test_pages_of_a_batch_may_run_whatever_their_plan_says(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.subprocess, "call", lambda *_, **__: 0)
    write_matrix(clone, seeds=[3])
    for options, last in (((), ["--seed", "3"]), (("--anyway",), ["--seed", "3", "--anyway"])):
        assert batch("--dry-run", *options).exit_code == 0
        (job,) = json.loads((batch_dir() / "plan.json").read_text())["jobs"]
        assert job["arguments"] == ["run", "01_tiny", "--profile", "laptop", *last]


def test_the_engine_is_called_with_its_profile_and_the_gpus_of_a_node(clone: Clone) -> None:
    node = command(Path("plan.json"), "node", 4)
    assert node[:3] == [sys.executable, "-m", "snakemake"]
    assert node[node.index("--resources") + 1] == "gpu=4"
    slurm = command(Path("plan.json"), "slurm", 0, extra=["--quiet"])
    assert "--resources" not in slurm
    assert slurm[-1] == "--quiet"
    assert str(clone.root / "workflow/profiles/slurm") in slurm


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_a_profile_that_lets_nothing_but_markers_decide(name: str) -> None:
    found = yaml.safe_load((ROOT / "workflow/profiles" / name / "config.yaml").read_text())
    assert found["executor"] == (ENGINES[name] or "local")
    assert found["keep-going"]
    assert found["rerun-incomplete"]
    assert found["rerun-triggers"] == ["mtime"]


def test_an_engine_that_is_unknown_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UnknownNameError, match="unknown engine 'pbs'; choose one of: kubernetes, node, slurm"
    ):
        check_engine("pbs")
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProfileError, match=r"snakemake is not installed, .* run python -m pip install -e"):
        check_engine("node")


def test_what_kubernetes_needs_of_a_cluster(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kubernetes.profile_file()
    monkeypatch.setattr(kubernetes.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(
        ProfileError, match=r"config\.yaml leaves container-image, .*storage-prefix empty; fill"
    ):
        check_engine("kubernetes")
    filled = dict.fromkeys(kubernetes.KEYS, "fs") | {"default-storage-prefix": "/data/snakemake/"}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | filled))
    check_engine("kubernetes")
    plan = clone.root / "plan.json"
    plan.write_text(json.dumps({"id": "17"}))
    called = command(plan, "kubernetes", 0)
    assert called[called.index("--default-storage-prefix") + 1] == "/data/snakemake/17"
    for name in yaml.safe_load(file.read_text())["envvars"]:
        assert engine._environment()[name]
    monkeypatch.setattr(kubernetes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProfileError, match=r"snakemake_storage_plugin_fs is not installed, .* pip install"):
        kubernetes.filled()
    file.write_text("[")
    with pytest.raises(ProfileError, match=r"(?s)config\.yaml cannot be read as YAML .*restore it"):
        kubernetes.filled()


def test_a_node_without_gpus_and_a_second_batch_are_refused(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "check_engine", lambda name: None)
    monkeypatch.setenv(VISIBLE, "")
    matrix = Matrix(profiles=["laptop"], book=None)
    needing = 1
    monkeypatch.setattr(
        engine, "expand", lambda *_: engine.Batch((engine.Job("a", (), needing, matrix.needs, reason="new"),))
    )
    with pytest.raises(ProfileError, match=r"a needs a GPU, and this node shows none .* --profile slurm"):
        run_batch(matrix)
    needing = 4
    monkeypatch.setenv(VISIBLE, "0,1")
    with pytest.raises(ProfileError, match=r"a needs 4 GPUs, and this node shows 2 "):
        run_batch(matrix)
    monkeypatch.setattr(engine, "locked", _busy)
    with pytest.raises(BusyError):
        run_batch(matrix)


def _busy(*_: object) -> None:
    raise BusyError("plan.json is in use by another")


@pytest.mark.parametrize(("name", "told"), [("node", ["GPU-11aa", "GPU-22bb"]), ("slurm", [])])
def test_a_batch_in_an_allocation_shares_its_gpus_and_one_of_slurm_pins_none(
    name: str, told: list[str], clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(VISIBLE, "GPU-11aa,GPU-22bb")
    given: list[str] = []

    def call(asked: list[str], **_: Any) -> int:
        given.extend(asked)
        return 0

    monkeypatch.setattr(engine, "check_engine", lambda _: None)
    monkeypatch.setattr(engine.subprocess, "call", call)
    write_matrix(clone)
    run_batch(load_matrix(), name, dry=True)
    assert json.loads((batch_dir() / "plan.json").read_text())["gpus"] == told
    assert ("gpu=2" in given) == (name == "node")


def test_jobs_that_were_lost_make_the_status_75(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "check_engine", lambda name: None)
    monkeypatch.setattr(engine.subprocess, "call", lambda asked, env: 1)
    write_matrix(clone)
    done = batch()
    assert done.exit_code == LOST
    assert "lost or not begun: laptop/01_tiny/seed-2. Their logs are in" in done.stderr
    write_atomically(refusal_of("laptop/01_tiny/seed-2"), as_json({}))
    assert batch().exit_code == LOST, "a note of an earlier batch counts for none"


def test_jobs_that_a_gpu_did_not_hold_are_told_apart(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(asked: list[str], env: dict[str, str]) -> int:
        plan = json.loads((batch_dir() / "plan.json").read_text())
        note = {"plan": plan["id"], "status": FULL, "final": True}
        write_atomically(refusal_of(plan["jobs"][0]["name"]), as_json(note))
        return 1

    monkeypatch.setattr(engine, "check_engine", lambda name: None)
    monkeypatch.setattr(engine.subprocess, "call", call)
    write_matrix(clone)
    done = batch()
    assert done.exit_code == FULL
    assert "too large for their GPUs: laptop/01_tiny/seed-2. Their logs are in" in done.stderr
