"""Carry a result over a change of code that is not meant to change it, on the proof of its small run.

The page is run at smoke size under the old and the new revision, on this machine, with one thread and nothing
computed before. If the runs speak for every definition that changed (`palimpsest.book.evidence`) and all
values agree, the result's provenance gets the new hashes and names both revisions. A change that is meant to
alter numbers never qualifies: run the page.
"""

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from palimpsest import paths
from palimpsest.book.changes import Side, changed_code
from palimpsest.book.evidence import Evidence
from palimpsest.book.execution import with_bar
from palimpsest.book.profiles import find_notebook, known_notebooks, load_profile, parameters_for, results_of
from palimpsest.book.provenance import (
    DIRTY,
    UNKNOWN,
    clean_up,
    code_revision,
    git,
    hashes_of,
    in_history,
    not_vouched,
    path_of,
    read_provenance,
    result_place,
    write_provenance,
)
from palimpsest.book.regression import DIGITS, Allowance, differences, load_tolerances
from palimpsest.book.small_runs import small_run, with_shared, workplace, worktree
from palimpsest.book.staleness import Inputs, file_hashes, inputs
from palimpsest.book.standing import changed_settings, standing
from palimpsest.errors import NotebookError, PalimpsestError, ProfileError
from palimpsest.files import UNREADABLE, locked


class Numerical(BaseModel):
    """A change declared beforehand to move numbers by rounding: a row of ``config/numerical.yaml``.

    Attributes:
        definitions: their names, with the module.
        relative: largest share of a value's size by which it may move.
        reason: what changes in the arithmetic.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    definitions: tuple[str, ...] = Field(min_length=1)
    relative: float = Field(gt=0, le=1e-3, allow_inf_nan=False)
    reason: str = Field(min_length=1)


@dataclass(frozen=True)
class Confirmed:
    """What was confirmed.

    Attributes:
        page: name of the notebook.
        values: how many were compared.
        relative: how far they may lie apart.
        before: the revision that the result was made with, or last confirmed under.
        after: the present one.
    """

    page: str
    values: int
    relative: float
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.page}: {self.values} values agree under {self.before} and {self.after}, confirmed"


def confirm(name: str, profile: str) -> Confirmed | None:
    """Confirm a stale result of a profile by the page's small run; None if it stands already.

    Raises:
        NotebookError: if it cannot be confirmed: never run, made or changed without a revision, a revision
            that is not in the history, something else than code has changed, a changed definition that the
            small run does not execute, or values that differ. The message says which.
        ProfileError: if ``config/numerical.yaml`` cannot be read.
    """
    source, folder = find_notebook(name), results_of(profile)
    with locked(result_place(source.stem, folder)):
        clean_up(source.stem, folder)
        return _confirmed(source.stem, profile)


def _confirmed(name: str, profile: str) -> Confirmed | None:
    """As `confirm`, for a result whose lock is held."""
    source, setting, folder = find_notebook(name), load_profile(profile), results_of(profile)
    state = standing(name, setting)
    if state.kind in ("fresh", "confirmed"):
        return None
    made = read_provenance(source.stem, folder)
    if state.kind == "left out":
        raise NotebookError(f"{source.stem}: {state.reason}; there is nothing to confirm")
    if state.kind == "not run" or "definitions" not in made:
        raise NotebookError(f"{source.stem}: {state.reason}; run it")
    now = inputs(source, parameters_for(setting, source), made["files"])
    if other := not_vouched(source.stem, folder, made):
        raise NotebookError(
            f"{source.stem}: {', '.join(other)}: not what the run wrote, so nothing to confirm; run it"
        )
    _only_code(source.stem, made, now)
    before, after = _revisions(source.stem, profile, made)
    old, _ = small_run(source.stem, before, made["inputs"]["code"])
    new, traced = small_run(source.stem, after, now.parts["code"])
    with workplace(source.stem) as around, worktree(before, around) as root:
        sides = [
            Side(
                place,
                source.stem,
                parameters_for(setting, place / "notebooks" / source.name),
                traced.functions,
            )
            for place in (root, paths.checkout())
        ]
        changed = changed_code(*sides)
    relative = tolerance(changed)
    declared = Evidence.of(now, with_shared(traced), made).require(source.stem, changed)
    found = list(differences(old, new, _allowed(source.stem, relative)))
    if found:
        raise NotebookError(
            f"{source.stem}: not confirmed, {len(found)} values differ between {before} and {after}:\n"
            + "\n".join(map(str, found))
        )
    done = Confirmed(source.stem, len(new["values"]), relative, before, after)
    step = {
        "revision": after,
        "compared_with": before,
        "profile": "smoke",
        "values": done.values,
        "relative": relative,
        "declared": declared,
        "on": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    renewed = {
        **{name: value for name, value in made.items() if name != "executed"},  # not of its own run alone
        **hashes_of(now, file_hashes(made["files"])),
        "confirmed": [*made.get("confirmed", []), step],
    }
    if "ran" in made:
        renewed["ran"] = sorted({*made["ran"], *traced.names})
    write_provenance(source.stem, folder, renewed)
    return done


def confirm_all(pages: Sequence[str] | None, profile: str, jobs: int = 1) -> Iterator[str]:
    """Confirm results one after the other, or some at once; yields a line for each.

    Args:
        pages: names of notebooks; all by default.
        profile: whose results.
        jobs: pages at once.

    Raises:
        NotebookError: after the last page, if any could not be confirmed.
    """

    def one(name: str) -> tuple[bool, str]:
        try:
            done = confirm(name, profile)
        except PalimpsestError as error:
            return False, str(error)
        return True, str(done) if done else f"{name}: stands already"

    names = pages or known_notebooks()
    with ThreadPoolExecutor(jobs) as pool:
        failed = 0
        for well, line in with_bar(pool.map(one, names), len(names), "confirming"):
            failed += not well
            yield line
    if failed:
        raise NotebookError(f"{failed} results could not be confirmed; the reasons are above")


def _only_code(page: str, made: Mapping[str, Any], now: Inputs) -> None:
    """Whether nothing but code changed; rows of settings that new code may ask for are part of it."""
    parts = [name for name, digest in now.parts.items() if made["inputs"].get(name) != digest]
    others = [name for name in parts if name not in ("code", "settings")]
    others += changed_settings(made.get("settings", {}), now.settings)
    if others:
        raise NotebookError(f"{page}: {', '.join(others)} changed, not only code; run it")


def _allowed(page: str, relative: float) -> dict[str, Allowance]:
    """Six digits, or what was declared; times may differ as they may on another machine."""
    free = {name: row for name, row in load_tolerances().pages.get(page, {}).items() if row.anything}
    return free | {"": Allowance(relative=relative, reason="two revisions on one machine")}


def _revisions(page: str, profile: str, made: Mapping[str, Any]) -> tuple[str, str]:
    """The revision that a result stands for, and the present one."""
    after, steps = code_revision(), made.get("confirmed", [])
    before = steps[-1]["revision"] if steps else made.get("code_revision", UNKNOWN)
    carried = _carrying(page, profile)
    if not steps and carried and _stands(page, profile, made, carried):
        before = carried
    if before == UNKNOWN or before.endswith(DIRTY):
        raise NotebookError(f"{page}: made with {before}, which cannot be run again for a comparison; run it")
    if after == UNKNOWN or after.endswith(DIRTY):
        raise NotebookError(f"{page}: the present revision is {after}; commit first, then confirm")
    if in_history(before) is False:
        raise NotebookError(
            f"{page}: {before}, with which it was made or confirmed, is not in the history of {after}; fetch "
            "the whole history, or run it"
        )
    return before, after


def _carrying(page: str, profile: str) -> str:
    """The revision that brought the provenance as it is; empty where it is not committed."""
    file = str(path_of(page, results_of(profile)))
    try:
        changed = git("status", "--porcelain", "--", file)
        return "" if changed else git("log", "-1", "--format=%h", "--abbrev=12", "--", file)
    except (OSError, subprocess.CalledProcessError):
        return ""


def _stands(page: str, profile: str, made: Mapping[str, Any], revision: str) -> bool:
    """Whether a result has the code of a revision: that is nearer than the one it was made with."""
    with workplace(page) as place, worktree(revision, place) as root:
        source = root / "notebooks" / f"{page}.ipynb"
        then = inputs(source, parameters_for(load_profile(profile), source), made["files"], root)
    return then.parts["code"] == made["inputs"]["code"]


def tolerance(changed: Iterable[str]) -> float:
    """How far values may lie apart: six digits, or more where a changed definition was declared numerical.

    Raises:
        ProfileError: if ``config/numerical.yaml`` cannot be read.
    """
    file = paths.checkout() / "config" / "numerical.yaml"
    try:
        content = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else []
        rows = TypeAdapter(list[Numerical]).validate_python(content or [])
    except UNREADABLE as error:
        raise ProfileError(f"{file.name}: rows need definitions, relative and reason: {error}") from error
    names = {name for part in changed for name in (part, part.rpartition(".")[0])}
    return max([10.0**-DIGITS, *(row.relative for row in rows if names & set(row.definitions))])
