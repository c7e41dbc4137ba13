"""How all results of a profile stand, for people and for programs that decide what is to be run."""

from dataclasses import dataclass
from pathlib import Path

from palimpsest.book.execution import with_bar
from palimpsest.book.profiles import find_notebook, known_notebooks, load_profile, own_seed, seed_folder
from palimpsest.book.provenance import path_of
from palimpsest.book.standing import Standing, standing_of_seed
from palimpsest.files import as_json


@dataclass(frozen=True)
class Entry:
    """One notebook under one profile.

    Attributes:
        notebook, profile: their names.
        seed: of the run; None for a notebook without one.
        standing: how its result stands.
        witness: file of its provenance, which a finished run writes last.
    """

    notebook: str
    profile: str
    seed: int | None
    standing: Standing
    witness: Path


def entry(notebook: str, profile: str, seed: int | None = None) -> Entry:
    """How the result of one notebook stands; for the profile's own seed if none is given.

    Raises:
        UnknownNameError: if there is no such notebook or profile, or the notebook has no seed.
    """
    setting, source = load_profile(profile), find_notebook(notebook)
    found = standing_of_seed(source, setting, seed)
    witness = path_of(source.stem, seed_folder(setting, source, seed))
    return Entry(source.stem, profile, own_seed(setting, source) if seed is None else seed, found, witness)


def entries(profile: str, seed: int | None = None) -> list[Entry]:
    """How the results of all notebooks stand, in the book's order; with a seed, of those that have one.

    Raises:
        UnknownNameError: if there is no such profile.
    """
    setting, names = load_profile(profile), known_notebooks()
    if seed is not None:
        names = [name for name in names if own_seed(setting, find_notebook(name)) is not None]
    return list(with_bar((entry(name, profile, seed) for name in names), len(names), "looking"))


def shown(found: list[Entry]) -> str:
    """A JSON list: ``state`` is that of `palimpsest.book.standing.Standing`, ``run`` whether a run is due."""
    rows = [
        {
            "notebook": one.notebook,
            "profile": one.profile,
            "seed": one.seed,
            "state": one.standing.kind,
            "run": one.standing.due,
            "reason": one.standing.reason,
            "note": one.standing.note,
            "changed": list(one.standing.changed),
            "witness": str(one.witness),
        }
        for one in found
    ]
    return as_json(rows).decode().rstrip()
