"""A plan of the laptop profile against what its carried records took.

The records were made on one kind of machine, which each names; nobody has probed it at rest. So the rates are
round ones, and what they are off by is one constant, CALIBRATION, the median of recorded over counted time.
Constants of the counts were read from records too: of pages 01 and 09 (the share of steps), 03 and 18
(seconds of small problems), 15 and 22 (seconds beside the work). A factor of two on these pages says less.
"""

from collections.abc import Mapping
from statistics import median

import pytest

from palimpsest.book.profiles import known_notebooks, results_of
from palimpsest.book.provenance import read_provenance
from palimpsest.planning.compared import MEMORY, MEMORY_WITHIN, TIME, TIME_WITHIN, compared
from palimpsest.planning.machine import Machine
from palimpsest.planning.memory import LIBRARIES
from palimpsest.planning.plan import ProfilePlan, plan

PROCESSOR = "Intel(R) Xeon(R) Processor, 2 cores"
RATES = {"float32": 1.0e11, "float64": 0.5e11}
CALIBRATION = 1.1
LAPTOP = Machine("the laptop of the records", "cpu", RATES, 1e10, 2**33, cores=2)


@pytest.fixture(scope="module")
def made() -> ProfilePlan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.planning.plan.probe", lambda *_: LAPTOP)
        patch.setattr("palimpsest.planning.plan.device_of", lambda _: ("cpu", ""))
        return plan("laptop", known_notebooks())


@pytest.fixture(scope="module")
def records() -> Mapping[str, Mapping[str, object]]:
    return {name: read_provenance(name, results_of("laptop")) for name in known_notebooks()}


def ratios(made: ProfilePlan, recorded: Mapping[str, float], memory: bool) -> dict[str, float]:
    """Page -> recorded over planned."""
    return {
        page.name: recorded[page.name] / ((LIBRARIES + page.held) / 2**20 if memory else page.counted)
        for page in made.pages
    }


def of(records: Mapping[str, Mapping[str, object]], name: str) -> dict[str, float]:
    return {page: float(str(record[name])) for page, record in records.items()}


def test_all_records_are_of_one_machine(records: Mapping[str, Mapping[str, object]]) -> None:
    assert {(record["processor"], record["device"]) for record in records.values()} == {(PROCESSOR, "cpu")}


def test_times_of_all_records(made: ProfilePlan, records: Mapping[str, Mapping[str, object]]) -> None:
    found = ratios(made, of(records, "wall_seconds"), memory=False)
    assert median(found.values()) == pytest.approx(CALIBRATION, rel=0.1)
    outside = {
        page: round(ratio / CALIBRATION, 2)
        for page, ratio in found.items()
        if not 1 / TIME_WITHIN <= ratio / CALIBRATION <= TIME_WITHIN
    }
    assert set(outside) == set(TIME), outside


def test_memory_of_all_records(made: ProfilePlan, records: Mapping[str, Mapping[str, object]]) -> None:
    found = ratios(made, of(records, "peak_memory_mib"), memory=True)
    outside = {page: round(ratio, 2) for page, ratio in found.items() if abs(ratio - 1) > MEMORY_WITHIN}
    assert set(outside) == set(MEMORY), outside


def test_a_plan_counts_what_earlier_pages_leave_once(made: ProfilePlan) -> None:
    """A whole run, values, moments; and all of it where the page is planned alone."""
    pages = {page.name: page for page in made.pages}
    whole = pages["15_long_run"]
    assert sum(whole.found.values()) == pytest.approx(sum(whole.seconds.values()))
    ability = pages["16_general_ability"]
    assert ability.found["values"] == pytest.approx(ability.seconds["values"])
    assert ability.found["evaluation"] == 0
    assert pages["00_try_it"].found["statistics"] == 0
    moments = pages["01_one_edit"]
    assert moments.found["statistics"] == pytest.approx(moments.seconds["statistics"]) != 0
    shared = pages["02_null_space"]  # three of its ten layers are those of the page before
    assert shared.found["statistics"] == pytest.approx(0.3 * shared.seconds["statistics"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.planning.plan.probe", lambda *_: LAPTOP)
        (alone,) = plan("laptop", ["15_long_run"]).pages
    assert alone.seconds == whole.seconds
    assert sum(alone.found.values()) == 0


def test_a_plan_names_pages_that_it_is_known_to_be_wrong_on() -> None:
    first, second, *named = compared(["15_long_run", "14_comparison"])
    assert first.endswith("memory is within 25 % and time within a factor of 2,")
    assert second == f"but for {len(MEMORY)} pages in memory and {len(TIME)} in time; of those above:"
    assert named == [
        f"  15_long_run, memory: {MEMORY['15_long_run']}",
        f"  14_comparison, time: {TIME['14_comparison']}",
    ]
    assert len(list(compared(["01_one_edit"]))) == 2
