"""What jobs ask for by a plan: margins, the least, what the matrix says, and plans that do not fit."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.batch.estimates import Estimates, Plan, needs_of, read_plan
from palimpsest.batch.jobs import Batch, Job
from palimpsest.batch.matrix import Matrix, Needs
from palimpsest.commands import batches
from palimpsest.errors import DataError, ModelError, ProfileError
from palimpsest.planning.plan import OVERHEAD, PagePlan, ProfilePlan
from palimpsest.planning.weights import Weights
from tests.clone import Clone, make_clone
from tests.planning.test_plan import MACHINE, TINY

WEIGHTS = Weights("tiny", TINY, torch.float32, stored=16 * 10**9, missing=0)
PAGES = [
    {"page": "02_long", "seconds": 36_000.0, "seconds_by_stage": {"statistics": 9000.0}, "memory_bytes": 4e9},
    {"page": "03_short", "seconds": 60.0, "memory_bytes": int(1e9)},
    {"page": "04_unknown", "seconds": None, "not_counted": "no row"},
    {"page": "05_out", "left_out": "not in this profile"},
]
MATRIX = Matrix.model_validate(
    {
        "profiles": ["big", "small"],
        "needs": {"mem_mb": 64_000, "runtime": 720, "threads": 4},
        "needs_of": {"06_own": {"mem_mb": 1, "runtime": 2}},
        "least": {"mem_mb": 16_000, "runtime": 30},
    }
)


def plan_of(device: str = "cuda", profile: str = "big") -> dict[str, Any]:
    host = {"host_memory_bytes": 16_000_000_000, "gpu_memory_bytes": 10**11}
    return {"profile": profile, "machine": {"device": device}, **host, "pages": PAGES}


def job(page: str, gpu: int = 1, profile: str = "big") -> Job:
    needs = MATRIX.needs_of.get(page, MATRIX.needs)
    return Job(f"{profile}/{page or 'moments-1/shard-1'}", (), gpu, needs, reason="new", page=page)


@pytest.mark.parametrize(
    ("page", "device", "mem_mb", "runtime"),
    [
        ("02_long", "cuda", 20_000, 1200),  # weights pass through the host
        ("02_long", "cpu", 16_000, 1200),  # all of the page is there, which is less than the least
        ("03_short", "cuda", 20_000, 30),
        ("04_unknown", "cuda", 20_000, 720),
        ("07_not_planned", "cuda", 20_000, 720),
        ("06_own", "cuda", 1, 2),
        ("", "cuda", 20_000, 300),  # second moments: the statistics of the page with most
    ],
)
def test_what_a_job_asks_for(page: str, device: str, mem_mb: int, runtime: int) -> None:
    found = needs_of(job(page), MATRIX, Plan.model_validate(plan_of(device)))
    assert (found.mem_mb, found.runtime) == (mem_mb, runtime)
    assert found.threads == (1 if page == "06_own" else 4)


def test_without_a_plan_it_is_what_the_matrix_says() -> None:
    assert needs_of(job("02_long"), MATRIX, None) == MATRIX.needs


def test_a_plan_of_the_package_can_be_read() -> None:
    page = PagePlan("02_long", seconds={"values": 570.0}, found={"values": 70.0}, memory={"weights": 7})
    made = ProfilePlan("big", WEIGHTS, replace(MACHINE, device="cpu"), (page, PagePlan("05_out", "no")))
    found = Plan.model_validate_json(json.dumps(made.as_dict()))
    planned = found.page("02_long")
    assert (planned.seconds, planned.seconds_found, planned.memory_bytes) == (500.0 + OVERHEAD, 70.0, 7)
    assert (found.page("05_out").seconds, found.machine.device) == (None, "cpu")


def test_a_job_has_time_for_what_pages_before_it_would_have_left() -> None:
    pages = [{"page": "02_long", "seconds": 600.0, "seconds_found": found} for found in (0.0, 5400.0)]
    plans = [Plan.model_validate(plan_of() | {"pages": [page]}) for page in pages]
    assert [needs_of(job("02_long"), MATRIX, plan).runtime for plan in plans] == [
        max(math.ceil(seconds * MATRIX.margin.time / 60), MATRIX.least.runtime) for seconds in (600, 6000)
    ]


def test_plans_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    for content in ("[", json.dumps({"profile": "big"})):
        file.write_text(content)
        with pytest.raises(DataError, match=r"plan\.json cannot be read as a plan .* 'palimpsest plan PROF"):
            read_plan(file)
    file.write_text(json.dumps(plan_of(profile="other")))
    with pytest.raises(ProfileError, match=r"a plan of other, which is not in the matrix; .* big, small"):
        Estimates.read([file], MATRIX)
    file.write_text(json.dumps(plan_of("cpu")))
    with pytest.raises(ProfileError, match="a plan of big, which was given already"):
        Estimates.read([file, file], MATRIX)
    on_cpu = Estimates.read([file], MATRIX)
    with pytest.raises(
        ProfileError, match=r"made on a CPU, and big/02_long runs on a GPU; .*plan big --json"
    ):
        on_cpu.sized(Batch((job("02_long"),)), MATRIX)


def test_a_profile_is_planned_once_and_only_where_the_matrix_leaves_it_open(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def planner(profile: str, pages: Sequence[str]) -> Mapping[str, Any]:
        asked.append((profile, [*pages]))
        if profile == "small":
            raise ModelError("no such model")
        return plan_of()

    jobs = (job(""), job("02_long"), job("03_short"), job("02_long", profile="small"))
    sized = Estimates({}, planner).sized(Batch(jobs), MATRIX)
    assert [one.needs.runtime for one in sized.due] == [300, 1200, 30, 720]
    assert asked == [("big", ["02_long", "03_short"]), ("small", ["02_long"])]
    said = "no plan of small (no such model): its jobs ask for the 'needs' of the matrix\n"
    assert capsys.readouterr().out == said
    assert Estimates({}, planner).sized(Batch((job("06_own"),)), MATRIX).due[0].needs.runtime == 2
    assert len(asked) == 2
    given = Estimates({"big": Plan.model_validate(plan_of())}, planner)
    assert given.sized(Batch(jobs[:1]), MATRIX).due[0].needs == Needs(mem_mb=20_000, runtime=300, threads=4)
    assert len(asked) == 2


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


def test_without_the_device_the_memory_of_the_host_is_planned_all_the_same(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone.write_profile("big", defaults={"device": "cuda:7"})
    monkeypatch.setattr("palimpsest.planning.weights.weights_of", lambda *_: WEIGHTS)
    found = Estimates({}, batches.planned).sized(Batch((job("02_long"),)), MATRIX)
    assert (found.due[0].needs.mem_mb, found.due[0].needs.runtime) == (20_000, 720)
    assert "no device here to time big on: its jobs ask for the minutes" in capsys.readouterr().out
