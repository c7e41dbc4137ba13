"""How a carried result stands to the present sources: fresh, confirmed, stale, not run, or left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palimpsest.book.needs import left_out
from palimpsest.book.profiles import (
    SEED,
    Profile,
    find_notebook,
    load_profile,
    parameters_for,
    results_of,
    seed_folder,
)
from palimpsest.book.provenance import in_history, not_vouched, other_versions, read_provenance
from palimpsest.book.staleness import SCHEME, Inputs, inputs

NOT_RUN = "not run yet in this profile"
NAMED = 6
"""As many changed definitions are named; the others are counted."""


@dataclass(frozen=True)
class Standing:
    """How a result stands.

    Attributes:
        kind: ``fresh``, ``confirmed`` (made by other code, whose small run gave the same values), ``stale``
            ``not run``, or ``left out`` (the profile does not run the page).
        reason: of the last three.
        note: what a reader should know of a result that stands.
        changed: definitions, with their module, whose code is not that of the result.
    """

    kind: Literal["fresh", "confirmed", "stale", "not run", "left out"]
    reason: str = ""
    note: str = ""
    changed: tuple[str, ...] = ()

    @property
    def stands(self) -> bool:
        """Whether there is a result, and it may be shown as that of the present sources."""
        return self.kind in ("fresh", "confirmed")

    @property
    def due(self) -> bool:
        """Whether the page is to be run: not where its result stands, or the profile leaves it out."""
        return self.kind in ("stale", "not run")

    def __str__(self) -> str:
        if self.kind == "left out":
            return self.reason
        state = {"fresh": "up to date", "confirmed": "up to date"}.get(self.kind, self.kind)
        detail = self.reason if self.kind == "stale" else self.note
        return f"{state} ({detail})" if detail else state


def standing(
    name: str | Path,
    profile: str | Profile,
    folder: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Standing:
    """How a notebook's result stands.

    Args:
        name: of the notebook, or its path.
        profile: whose result.
        folder: where it is, if not in ``results``.
        overrides: values with which it was run that win over the profile's.
    """
    setting = load_profile(profile) if isinstance(profile, str) else profile
    source, place = find_notebook(name), folder or results_of(setting.name)
    if reason := left_out(setting, source):
        return Standing("left out", reason)
    made = read_provenance(source.stem, place)
    if not made or not (place / f"{source.stem}.json").is_file():
        return Standing("not run", NOT_RUN)
    if other := not_vouched(source.stem, place, made):
        return Standing(
            "stale",
            f"{', '.join(other)}: not what the run wrote; take it back from the history, or run the page",
        )
    if made.get("scheme", 1) != SCHEME:
        return Standing(
            "stale",
            f"its provenance is of scheme {made.get('scheme', 1)} and hashes of today's scheme {SCHEME} "
            "cannot be compared with it",
        )
    now = inputs(source, parameters_for(setting, source, overrides), made.get("files", []))
    if made.get("content_hash") != now.content_hash:
        changed = changed_definitions(made.get("definitions", {}), now)
        return Standing("stale", _reason(made, now, changed), changed=changed)
    notes = [confirmation(made), _other_library(made), _on_gpu(made)]
    kind: Literal["fresh", "confirmed"] = "confirmed" if made.get("confirmed") else "fresh"
    return Standing(kind, note="; ".join(note for note in notes if note))


def standing_of_seed(name: str | Path, profile: Profile, seed: int | None) -> Standing:
    """How the result of one seed stands; the profile's own where the seed is None.

    Raises:
        UnknownNameError: if the notebook has no seed.
    """
    source = find_notebook(name)
    overrides = {} if seed is None else {SEED: seed}
    return standing(source, profile, seed_folder(profile, source, seed), overrides)


def stale(name: str | Path, profile: str | Profile, folder: Path | None = None) -> str | None:
    """Why a notebook's result no longer stands for the present sources; None if it does."""
    return standing(name, profile, folder).reason or None


def changed_definitions(made: Mapping[str, str], now: Inputs) -> tuple[str, ...]:
    """Definitions whose code is not that of a result; one that only moved does not count.

    Returns:
        Names with their module, first those of the present code, then those that are gone, marked so.
    """

    def bare(definitions: Mapping[str, str]) -> set[tuple[str, str]]:
        return {(name.rpartition(".")[2], digest) for name, digest in definitions.items()}

    before, after = bare(made), bare(now.definitions)
    names = {name.rpartition(".")[2] for name in now.definitions}
    new = [n for n, digest in now.definitions.items() if (n.rpartition(".")[2], digest) not in before]
    gone = [
        f"{n} (gone)"
        for n, digest in made.items()
        if (n.rpartition(".")[2], digest) not in after and n.rpartition(".")[2] not in names
    ]
    return (*new, *gone)


def changed_settings(made: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Rows of settings that counted before and count now, and whose values changed."""
    return tuple(row for row, digest in now.items() if made.get(row, digest) != digest)


def _named(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _reason(made: Mapping[str, Any], now: Inputs, changed: tuple[str, ...]) -> str:
    before = made.get("inputs", {})
    parts = [part for part, digest in now.parts.items() if before.get(part) != digest]
    rows = changed_settings(made.get("settings", {}), now.settings)
    detail = {"code": _named(changed) or "what it reaches", "settings": _named(rows) or "which rows count"}
    shown = [f"{part} ({detail[part]})" if part in detail else part for part in parts]
    return "changed since the run: " + (", ".join(shown) or "how the hash is made")


def confirmation(made: Mapping[str, Any]) -> str:
    """Under which code a result was made and confirmed."""
    steps = made.get("confirmed", [])
    if not steps:
        return ""
    revision = steps[-1]["revision"]
    text = f"made with {made.get('code_revision', 'unknown')}, confirmed at smoke size with {revision}"
    told = sorted({name for step in steps for name in step.get("declared", ())})
    if told:
        text += f" ({len(told)} definitions that no run of it reaches by declaration)"
    missing = in_history(revision) is False
    return f"{text}, which is not in this history" if missing else text


def _on_gpu(made: Mapping[str, Any]) -> str:
    if not (gpu := made.get("gpu")):
        return ""
    peak = gpu.get("peak_memory_mib", 0) / 1024
    driver = f"driver {gpu.get('driver', 'unknown')}, CUDA {gpu.get('cuda', 'unknown')}"
    return f"made on {gpu.get('name', 'a GPU')}, {driver}, {peak:.1f} GiB at most"


def _other_library(made: Mapping[str, Any]) -> str:
    differing = other_versions(made)
    return f"made with another library: {differing}" if differing else ""
