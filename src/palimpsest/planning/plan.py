"""A plan of a profile: for each page what it takes, from counts, a probe, and the runs that are on record.

Times are those of the counted operations at a share of the machine's own matrix products, which differs by
stage (SHARES), when the pages run in their order from an empty cache: what an earlier one leaves there is
counted once. Where pages of the same profile were run on this machine, the others are scaled by how much
these took of their estimates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from palimpsest.book.needs import left_out, needs
from palimpsest.book.profiles import Profile, find_notebook, load_profile, parameters_for, results_of
from palimpsest.book.provenance import machine_of, read_provenance
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.named_sequences import changed, stepwise
from palimpsest.errors import ModelError, ProfileError
from palimpsest.planning.counts import STAGES, Method, Operations, operations
from palimpsest.planning.machine import Machine, device_of, probe
from palimpsest.planning.memory import LIBRARIES, disk, freed, memory
from palimpsest.planning.pages import PAGES
from palimpsest.planning.weights import Weights, weights_of
from palimpsest.planning.work import Work

SHARES = {
    "values": 0.6,
    "keys": 0.6,
    "solve": 0.4,
    "statistics": 0.54,
    "projector": 0.25,
    "evaluation": 0.65,
    "other": 0.25,
}
"""Stage -> share of the machine's matrix products that it reaches: of values, statistics and evaluation as in
``results/bench.json``, keys as values; the others are guesses, for small products and eigenvectors."""

OVERHEAD = 20.0
"""Seconds of a page beside its stages: a kernel, imports, loading of the model, figures. Records of pages
with next to nothing else are 16 s without a model (22) and 22 s with one (15)."""

NOT_COUNTED = "its work is not counted: planning/pages.py has no row for it in PAGES"

FIRST = ("memit", "alphaedit", "alphaedit_plus", "rome")
"""Editors whose settings stand for those of a page's edits, the first that it needs."""

SEQUENCE_OF = {"memit": "memit_aligned", "alphaedit": "alphaedit_aligned"}
"""Editor -> a sequence with its settings, to which the changes of a page apply."""


@dataclass(frozen=True)
class PagePlan:
    """What one page takes.

    Attributes:
        name: of the notebook.
        left: why the profile does not run it; the rest is then empty.
        seconds: stage -> seconds from an empty cache; empty where the model does nothing, or the page's work
            is not counted.
        found: stage -> seconds of them that earlier pages of the plan save, by what they leave in the cache.
        memory: part -> bytes of the device.
        disk: part and name -> bytes; what has the same name on two pages is there once.
        recorded: seconds of its run on record, on whatever machine; None if there is none.
        here: whether that was this machine.
        unknown: why its work is not counted; the page is then left out of times and memory.
    """

    name: str
    left: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    found: Mapping[str, float] = field(default_factory=dict)
    disk: Mapping[tuple[str, str], int] = field(default_factory=dict)
    recorded: float | None = None
    here: bool = False
    unknown: str = ""

    @property
    def counted(self) -> float:
        """Seconds of all stages, by count, after the pages before it; 0 where they are not counted."""
        if self.left or self.unknown:
            return 0.0
        return sum(self.seconds.values()) - sum(self.found.values()) + OVERHEAD

    @property
    def held(self) -> int:
        """Bytes of the device, by formula."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class ProfilePlan:
    """What a profile takes.

    Attributes:
        profile: its name.
        weights: of its model.
        machine: on which it was asked.
        pages: in the book's order.
    """

    profile: str
    weights: Weights
    machine: Machine
    pages: tuple[PagePlan, ...]

    @property
    def factor(self) -> float:
        """Recorded time of pages on this machine over their counted time: the median, 1 without records."""
        found = [
            page.recorded / page.counted
            for page in self.pages
            if page.here and page.recorded and page.counted
        ]
        return median(found) if found else 1.0

    def expected(self, page: PagePlan) -> float:
        """Seconds: the record on this machine, else the count times the factor of others; 0 if neither.

        Where the device is none of this machine there is no count, and any record is taken.
        """
        if page.recorded and (page.here or self.machine.unprobed):
            return page.recorded
        return 0.0 if self.machine.unprobed else page.counted * self.factor

    @property
    def disk_by_part(self) -> dict[str, int]:
        """Bytes on disk, by part: the model's files, and all that the pages leave in cache and results."""
        kept: dict[tuple[str, str], int] = {}
        for page in self.pages:
            kept |= page.disk
        parts = dict.fromkeys(("moments", "projectors", "values", "ledgers", "results"), 0)
        for (part, _), count in kept.items():
            parts[part] += count
        return {"weights": self.weights.stored, **parts}

    @property
    def disk(self) -> int:
        """Bytes on disk."""
        return sum(self.disk_by_part.values())

    @property
    def host(self) -> int:
        """Bytes of host memory: all on a CPU; else libraries, and the weights that pass through it."""
        most = max((page.held for page in self.pages), default=0)
        return LIBRARIES + (most if self.machine.device == "cpu" else self.weights.stored)

    @property
    def device(self) -> int:
        """Bytes of GPU memory that the fullest page takes; 0 on a CPU."""
        most = max((page.held for page in self.pages), default=0)
        return 0 if self.machine.device == "cpu" else most

    def as_dict(self) -> dict[str, Any]:
        """For a scheduler: sizes in bytes, times in seconds."""
        return {
            "profile": self.profile,
            "model": self.weights.model,
            "dtype": str(self.weights.dtype).removeprefix("torch."),
            "machine": {
                "name": self.machine.name,
                "device": self.machine.device,
                "memory_bytes": self.machine.memory,
                "multiply_adds_per_second": dict(self.machine.products),
                "bytes_per_second": self.machine.bandwidth,
                "not_probed": self.machine.unprobed,
            },
            "download_bytes": self.weights.missing,
            "disk_bytes": self.disk,
            "disk_by_part": self.disk_by_part,
            "host_memory_bytes": self.host,
            "gpu_memory_bytes": self.device,
            "factor": self.factor,
            "seconds": sum(self.expected(page) for page in self.pages if not page.left) or None,
            "pages": [self._page(page) for page in self.pages],
        }

    def _page(self, page: PagePlan) -> dict[str, Any]:
        if page.left:
            return {"page": page.name, "left_out": page.left}
        return {
            "page": page.name,
            "seconds": self.expected(page) or None,
            "seconds_by_stage": dict(page.seconds),
            "seconds_found": sum(page.found.values()),
            "memory_bytes": page.held,
            "memory_by_part": dict(page.memory),
            "recorded_seconds": page.recorded,
            "recorded_here": page.here,
            "not_counted": page.unknown,
        }


def plan(profile: str, pages: Sequence[str], seconds: float = 10.0, device: str | None = None) -> ProfilePlan:
    """Plan some pages of a profile.

    Sizes are those on the profile's own device, whether or not this machine has it. Without it there are no
    times but those on record.

    Args:
        profile: its name.
        pages: names of notebooks.
        seconds: that the probe of the machine may take.
        device: to plan for and to probe, instead of the profile's; it has to be here.

    Raises:
        UnknownNameError: if there is no such profile, notebook or parameter.
        ProfileError: if the profile is malformed.
        ModelError: if ``device`` is not here, no machine has the profile's, or the model's folder is none.
        ResourceError: if nothing tells the size of the model.
    """
    setting = load_profile(profile)
    sources = [find_notebook(name) for name in pages]
    place = device or str(setting.defaults.get("device", "cpu"))
    kind, missing = device_of(place)
    if missing and device is not None:
        raise ModelError(missing)
    weights = weights_of(setting.model, kind)
    rates = tuple(dict.fromkeys((weights.dtype, torch.float64)))
    machine = Machine("", kind, {}, 0.0, unprobed=missing) if missing else probe(place, rates, seconds)
    made: list[PagePlan] = []
    for source in sources:
        made.append(_page(setting, source, weights, machine, made))
    return ProfilePlan(setting.name, weights, machine, tuple(made))


def _page(
    setting: Profile, source: Path, weights: Weights, machine: Machine, before: Sequence[PagePlan]
) -> PagePlan:
    if left := left_out(setting, source):
        return PagePlan(source.stem, left)
    provenance = read_provenance(source.stem, results_of(setting.name))
    recorded = provenance.get("wall_seconds")
    here = bool(provenance) and machine_of(provenance) == machine.name
    if source.stem not in PAGES:
        return PagePlan(source.stem, recorded=recorded, here=here, unknown=NOT_COUNTED)
    parameters = parameters_for(setting, source)
    work = PAGES[source.stem](parameters)
    if not work.uses_model:
        return PagePlan(source.stem, recorded=recorded, here=here)
    method = Method.of(method_of(source, parameters))
    shape, dtype = weights.shape, weights.dtype
    held = memory(shape, work, method, dtype, machine.cores)
    made = PagePlan(
        source.stem,
        memory=freed(held) if machine.device == "cpu" else held,
        disk=disk(shape, work, method, source.stem),
        recorded=recorded,
        here=here,
    )
    if machine.unprobed:
        return made

    def seconds(some: Work) -> dict[str, float]:
        return seconds_of(operations(shape, some, method, dtype.itemsize, machine.cores), machine, dtype)

    whole = seconds(work)
    found = dict.fromkeys(STAGES, 0.0)
    if work.found and work.after in {page.name for page in before if page.seconds}:
        found |= seconds(work.found)
    kept = {name for page in before for name in page.disk}
    for stage, part in (("statistics", "moments"), ("projector", "projectors")):
        wanted = {name for name in made.disk if name[0] == part}
        found[stage] = whole[stage] * len(wanted & kept) / max(len(wanted), 1)
    return replace(made, seconds=whole, found=found)


def method_of(source: Path, parameters: Mapping[str, Any]) -> WeightEditor:
    """The editor whose settings stand for a page's, in its regime and with its changes.

    Raises:
        ProfileError: if a page with edits needs no editor that optimises values.
    """
    wanted = needs(source, parameters).editors
    name = next((name for name in FIRST if name in wanted), "")
    if not name:
        raise ProfileError(
            f"{source.stem} needs none of {', '.join(FIRST)}, whose settings a plan counts with"
        )
    model = str(parameters["model"])
    regimes = parameters.get("regimes") or [parameters.get("regime", "")]
    return changed(stepwise(SEQUENCE_OF.get(name, name), model, regimes[0]), parameters.get("changes", ()))


def seconds_of(counted: Operations, machine: Machine, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of each stage on a machine."""
    own = machine.products[str(dtype).removeprefix("torch.")]
    exact = machine.products["float64"]
    return {
        stage: counted.model.get(stage, 0) / (own * SHARES[stage])
        + counted.exact.get(stage, 0) / (exact * SHARES[stage])
        + counted.moved.get(stage, 0) / machine.bandwidth
        + counted.waits.get(stage, 0)
        for stage in STAGES
    }
