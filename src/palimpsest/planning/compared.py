"""How plans compare with records of the profile ``laptop``: what ``tests/planning/test_records.py`` finds."""

from collections.abc import Iterable, Iterator

MEMORY_WITHIN, TIME_WITHIN = 0.25, 2.0
"""Largest relative difference of memory, and largest factor of time, of records outside the tables below."""

_READ = "its record read values from the cache that an earlier run of the page had left"

MEMORY = {
    "05_memorize_the_latest": "its record is 1.3 times the plan; what holds the rest is not known",
    "15_long_run": "its record found the whole run of page 05 in the cache",
    "24_other_editors": "its record is 2.4 times the plan; what holds the rest is not known",
}
"""Pages whose record differs more in memory, and why."""

TIME = {
    "06_alignment": _READ,
    "10_uncertainty": _READ,
    "14_comparison": _READ,
    "17_hidden_representations": _READ,
}
"""Pages whose record differs more in time, and why."""


def compared(pages: Iterable[str]) -> Iterator[str]:
    """What is known of the error of a plan, in lines, with those pages named that are among the given."""
    yield (
        "compared with the records of the profile laptop, "
        f"memory is within {100 * MEMORY_WITHIN:.0f} % and time within a factor of {TIME_WITHIN:g},"
    )
    yield f"but for {len(MEMORY)} pages in memory and {len(TIME)} in time; of those above:"
    chosen = set(pages)
    for what, table in (("memory", MEMORY), ("time", TIME)):
        yield from (f"  {page}, {what}: {why}" for page, why in table.items() if page in chosen)
