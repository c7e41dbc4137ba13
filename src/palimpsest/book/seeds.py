"""Runs of one profile for several seeds, side by side: each value by seed, its mean and its range."""

from pathlib import Path

from palimpsest.book.profiles import (
    SEED,
    find_notebook,
    known_notebooks,
    known_profiles,
    load_profile,
    own_seed,
)
from palimpsest.book.standing import standing_of_seed
from palimpsest.results.claims import Claim, Verdict, load_records, verdict
from palimpsest.results.labels import badge
from palimpsest.results.prose import plain, readable
from palimpsest.results.rules import Entry
from palimpsest.results.tables import table


def seeds_with_results(folder: Path, notebook: str) -> list[int]:
    """Seeds beside the profile's own for which its folder holds a record of a notebook, ascending."""
    records = folder.glob(f"{SEED}-*/{notebook}.json")
    texts = (path.parent.name.removeprefix(f"{SEED}-") for path in records)
    return sorted(int(text) for text in texts if text.removeprefix("-").isdecimal())


def spread(claim: Claim, chosen: Verdict, results_root: Path) -> str:
    """Table of a claim's values over the seeds of one profile; empty where there is only one run.

    Args:
        claim: the claim.
        chosen: the verdict of the profile whose seeds are shown; the profile's own run is its first column.
        results_root: folder with one folder of records for each profile.
    """
    folder, notebook = results_root / chosen.profile, claim.notebook or ""
    others = seeds_with_results(folder, notebook) if notebook and claim.rule is not None else []
    if not others:
        return ""
    runs = {_own(chosen.profile, notebook): chosen}
    for seed in others:
        runs[f"{SEED} {seed}"] = verdict(claim, load_records(folder, f"{SEED}-{seed}"), chosen.profile)
    names = [name for name in chosen.values if all(name in run.values for run in runs.values())]
    rows = [[f"`{name}`", *_row([run.values[name] for run in runs.values()])] for name in names]
    rows.append(["verdict", *(badge(run.label) for run in runs.values()), "", ""])
    older = [seed for seed in others if _stale(chosen.profile, notebook, seed)]
    note = f" Older than their sources: {SEED} {', '.join(map(str, older))}." if older else ""
    head = f"Over {len(runs)} seeds of the profile {chosen.profile}; the verdict above is that of the first."
    return f"{head}{note}\n\n" + table(["value", *runs, "mean", "range"], rows)


def _own(profile: str, notebook: str) -> str:
    """Heading of the profile's own run."""
    if profile in known_profiles() and notebook in known_notebooks():
        return f"{SEED} {own_seed(load_profile(profile), find_notebook(notebook))}"
    return f"the profile's {SEED}"


def _stale(profile: str, notebook: str, seed: int) -> bool:
    if profile not in known_profiles() or notebook not in known_notebooks():
        return False
    return not standing_of_seed(notebook, load_profile(profile), seed).stands


def _row(entries: list[Entry]) -> list[str]:
    """The values, then their mean and range where they are numbers."""
    shown = [plain(readable(entry)) for entry in entries]
    values = [entry["value"] for entry in entries]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return [*shown, "", ""]
    first = entries[0]

    def bare(value: float) -> str:
        return plain(readable({**first, "value": value, "low": None, "high": None}))

    return [*shown, bare(sum(numbers) / len(numbers)), f"{bare(min(numbers))} to {bare(max(numbers))}"]
