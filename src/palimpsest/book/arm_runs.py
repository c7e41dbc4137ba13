"""Make long runs one after the other, the most urgent first, as long as there is time."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from palimpsest.book.arms import Arm, plan
from palimpsest.book.profiles import results_of
from palimpsest.book.provenance import read_provenance
from palimpsest.book.standing import Standing, standing

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class ArmStanding:
    """How one long run stands.

    Attributes:
        arm: the run.
        standing: of its result.
        hours: that it took; None if it was not made yet.
    """

    arm: Arm
    standing: Standing
    hours: float | None

    @property
    def done(self) -> bool:
        """Whether its result belongs to the present sources."""
        return self.standing.kind in ("fresh", "confirmed")

    @property
    def expected(self) -> float:
        """Hours that it is to take: those it took, or the predicted ones."""
        return self.arm.hours if self.hours is None else self.hours

    def __str__(self) -> str:
        took = f"{self.arm.hours:g} h predicted" if self.hours is None else f"{self.hours:.2f} h"
        return f"{self.arm.priority}  {self.arm.page}  {self.arm.name}: {took}, {self.standing}"


def standings(page: str = "") -> list[ArmStanding]:
    """How every long run stands, by priority.

    Args:
        page: only those of one notebook.

    Raises:
        ProfileError: if ``config/arms.yaml`` is malformed.
    """
    known = plan()
    found = []
    for arm in known.arms():
        if page in ("", arm.page):
            made = read_provenance(known.notebook, results_of(arm.profile))
            seconds = made.get("wall_seconds") if made else None
            hours = None if seconds is None else float(seconds) / SECONDS_PER_HOUR
            found.append(ArmStanding(arm, standing(known.notebook, arm.profile), hours))
    return found


def run_arms(
    make: Callable[[Arm], int], page: str = "", minutes: float | None = None, jobs: int = 1
) -> list[tuple[Arm, int]]:
    """Make the runs that are missing or stale; returns each with its exit status.

    Args:
        make: makes one and returns its exit status.
        page: only those of one notebook.
        minutes: none is begun that is expected to end later; all by default.
        jobs: runs at once.

    Raises:
        ProfileError: if ``config/arms.yaml`` is malformed.
    """
    waiting = [one for one in standings(page) if not one.done]
    begun, lock = time.monotonic(), Lock()

    def following() -> Arm | None:
        """The most urgent run that still fits."""
        gone = (time.monotonic() - begun) / SECONDS_PER_HOUR
        left = float("inf") if minutes is None else minutes / 60 - gone
        with lock:
            for one in waiting:
                if one.expected <= left:
                    waiting.remove(one)
                    return one.arm
        return None

    def work(_: int) -> list[tuple[Arm, int]]:
        made = []
        while (arm := following()) is not None:
            made.append((arm, make(arm)))
        return made

    with ThreadPoolExecutor(jobs) as pool:
        return [pair for made in pool.map(work, range(jobs)) for pair in made]
