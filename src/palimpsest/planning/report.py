"""A plan in words and columns."""

from collections.abc import Iterator

from palimpsest.planning.counts import STAGES
from palimpsest.planning.plan import PagePlan, ProfilePlan

GIB = 2**30


def report(made: ProfilePlan) -> str:
    """The plan as a text for a terminal."""
    return "\n".join(_lines(made))


def _lines(made: ProfilePlan) -> Iterator[str]:
    weights, machine = made.weights, made.machine
    dtype = str(weights.dtype).removeprefix("torch.")
    yield f"profile {made.profile}: {weights.model} in {dtype} on {machine.device}"
    if machine.unprobed:
        yield f"times: only of runs on record, because {machine.unprobed}"
    else:
        rates = ", ".join(f"{rate / 1e9:,.0f} in {name}" for name, rate in machine.products.items())
        yield f"machine: {machine.name}, {machine.memory / GIB:.0f} GiB"
        yield f"probe: 10⁹ multiply-adds a second: {rates}; memory {machine.bandwidth / 1e9:,.0f} GB a second"
    yield f"download: {_size(weights.missing)}" + (" (all is here)" if not weights.missing else "")
    yield f"disk: {_size(made.disk)} of weights, moments and projectors"
    yield f"memory: {_size(made.host)} of the host" + (
        f", {_size(made.device)} of the GPU" if made.device else ""
    )
    most = made.device or made.host
    if machine.memory and most > machine.memory:
        yield f"        MORE THAN THIS MACHINE HAS ({_size(machine.memory)})"
    yield ""
    head = ["page", *STAGES, "memory", "time", "recorded"]
    rows = [_row(made, page) for page in made.pages if not page.left]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
    yield ""
    together = sum(made.expected(page) for page in made.pages if not page.left)
    yield f"together: {_time(together) if together else '–'}"
    if made.factor != 1:
        yield f"times are scaled by {made.factor:.2f}, the median of recorded over counted on this machine"
    if any(page.recorded and not page.here for page in made.pages):
        yield "recorded times with * are of another machine, or of one that the record does not name"
    yield "counted are upper bounds: values may be finished early, and found in the cache"
    for page in made.pages:
        if page.left or page.unknown:
            yield f"{page.name}: {page.left or page.unknown}"


def _row(made: ProfilePlan, page: PagePlan) -> list[str]:
    stages = [_time(page.seconds[stage]) if page.seconds.get(stage) else "–" for stage in STAGES]
    seconds = made.expected(page)
    recorded = "–" if page.recorded is None else _time(page.recorded) + ("" if page.here else "*")
    return [
        page.name,
        *stages,
        _size(page.held) if page.held else "–",
        _time(seconds) if seconds else "–" if made.machine.unprobed else "unknown",
        recorded,
    ]


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
