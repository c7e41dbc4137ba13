"""What jobs ask of a machine by a plan of their profile, as ``palimpsest plan PROFILE --json`` prints it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from palimpsest.batch.jobs import Batch, Job
from palimpsest.batch.matrix import Matrix, Needs
from palimpsest.errors import DataError, PalimpsestError, ProfileError

LOOSE = ConfigDict(extra="ignore", frozen=True)


class PlannedPage(BaseModel):
    """What a plan says of a page; of one that its profile leaves out, the name alone."""

    model_config = LOOSE
    page: str
    seconds: float | None = None
    seconds_found: float = 0.0
    """What earlier pages of the plan save; jobs run side by side and cannot count on it."""
    seconds_by_stage: dict[str, float] = {}
    memory_bytes: int = 0


class PlannedOn(BaseModel):
    """On what a plan was made: ``device`` is empty where nothing was timed."""

    model_config = LOOSE
    device: str = ""


class Plan(BaseModel):
    """What batches read of a plan: bytes of the host, and seconds of each page."""

    model_config = LOOSE
    profile: str
    machine: PlannedOn
    host_memory_bytes: int
    pages: list[PlannedPage]

    def page(self, name: str) -> PlannedPage:
        """A page's entry; an empty one where the plan has none."""
        return next((page for page in self.pages if page.page == name), PlannedPage(page=name))


Planner = Callable[[str, Sequence[str]], Mapping[str, Any]]
"""Profile and names of pages -> a plan."""


def read_plan(path: Path) -> Plan:
    """Read a plan from a file.

    Raises:
        DataError: if it is none.
    """
    try:
        return Plan.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).partition("\n")[0]
        raise DataError(
            f"{path} cannot be read as a plan ({first}); make it with 'palimpsest plan PROFILE --json > "
            "FILE' on a machine like those that are to run the jobs"
        ) from error


@dataclass(frozen=True)
class Estimates:
    """Where plans come from.

    Attributes:
        given: profile -> its plan.
        planner: makes a plan for another profile; None for none.
    """

    given: Mapping[str, Plan]
    planner: Planner | None = None

    @classmethod
    def read(cls, paths: Sequence[Path], matrix: Matrix, planner: Planner | None = None) -> "Estimates":
        """Read the plans that were given.

        Raises:
            DataError: if a file is no plan.
            ProfileError: if one is of a profile that the matrix does not have, or of one that another is of.
        """
        given: dict[str, Plan] = {}
        for path in paths:
            plan = read_plan(path)
            if plan.profile not in matrix.profiles or plan.profile in given:
                why = "was given already" if plan.profile in given else "is not in the matrix"
                raise ProfileError(
                    f"{path} is a plan of {plan.profile}, which {why}; give one plan for each profile of: "
                    f"{', '.join(matrix.profiles)}"
                )
            given[plan.profile] = plan
        return cls(given, planner)

    def sized(self, batch: Batch, matrix: Matrix) -> Batch:
        """The same jobs with what their plans say that they need; it says where there is no plan.

        Raises:
            ProfileError: if a plan was made on a CPU for jobs that run on GPUs.
        """
        plans: dict[str, Plan] = {}
        for profile in dict.fromkeys(job.profile for job in batch.due):
            open_to = [job for job in batch.due if job.profile == profile and job.page not in matrix.needs_of]
            plan = self._plan(profile, open_to) if open_to else None
            if plan is not None:
                _check_device(plan, open_to)
                plans[profile] = plan
        due = [replace(job, needs=needs_of(job, matrix, plans.get(job.profile))) for job in batch.due]
        return replace(batch, due=tuple(due))

    def _plan(self, profile: str, jobs: Sequence[Job]) -> Plan | None:
        if profile in self.given:
            return self.given[profile]
        if self.planner is None:
            return None
        try:
            pages = [*dict.fromkeys(job.page for job in jobs if job.page)]
            plan = Plan.model_validate(self.planner(profile, pages))
        except PalimpsestError as error:
            print(f"no plan of {profile} ({error}): its jobs ask for the 'needs' of the matrix", flush=True)
            return None
        if not plan.machine.device:
            print(
                f"no device here to time {profile} on: its jobs ask for the minutes of the matrix; or give "
                f"--plan with what 'palimpsest plan {profile} --json' prints on a node that runs them",
                flush=True,
            )
        return plan


def _check_device(plan: Plan, jobs: Sequence[Job]) -> None:
    on_gpu = next((job for job in jobs if job.gpu), None)
    if on_gpu is not None and plan.machine.device == "cpu":
        raise ProfileError(
            f"the plan of {plan.profile} was made on a CPU, and {on_gpu.name} runs on a GPU; make it with "
            f"'palimpsest plan {plan.profile} --json' on a node that has one"
        )


def needs_of(job: Job, matrix: Matrix, plan: Plan | None) -> Needs:
    """What a job asks for: by the matrix where it names the page, else by its plan, else by the matrix.

    Memory and minutes by a plan are multiplied by the matrix's margins, and at least its least. Second
    moments take the statistics of the page that sums the most, for each shard too.

    Args:
        job: the job.
        matrix: with what is given for all jobs, for single pages, and at least.
        plan: of the job's profile; None for none.
    """
    if plan is None or job.page in matrix.needs_of:
        return job.needs
    page = plan.page(job.page)
    held = page.memory_bytes if plan.machine.device == "cpu" and job.page else plan.host_memory_bytes
    sums = [page.seconds_by_stage.get("statistics", 0.0) for page in plan.pages]
    alone = (page.seconds or 0.0) + page.seconds_found
    seconds = alone if job.page else max(sums, default=0.0)
    margin, least = matrix.margin, matrix.least
    minutes = math.ceil(seconds * margin.time / 60) if seconds else matrix.needs.runtime
    return Needs(
        mem_mb=max(math.ceil(held * margin.memory / 1e6), least.mem_mb),
        runtime=max(minutes, least.runtime),
        threads=matrix.needs.threads,
    )
