"""A search of settings for one model that goes on where it stopped: its table of candidates and its file.

Each candidate's score is a row of ``<out>.search.csv`` as soon as it is known. Candidates are tried in turns,
one of each editor, so that all have had the same effort whenever the search ends. The settings file holds the
best of the rounds that are complete, in the format of ``config/models``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from palimpsest.cache import digest
from palimpsest.editors.base import Prepared
from palimpsest.errors import (
    DataError,
    NonFiniteError,
    RequestError,
    ScoreError,
    ShapeError,
    SingularProblemError,
    UnknownNameError,
)
from palimpsest.files import UNREADABLE, locked, replacing, write_atomically
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.studies.search_base import Base
from palimpsest.studies.search_base import base_of as base_of
from palimpsest.studies.tuning import CANDIDATES, candidates, following, rates, try_settings, usable
from palimpsest.types import EvalCase, span

FAILURES = (NonFiniteError, SingularProblemError, ShapeError, ScoreError)
"""Errors of single candidates, which count as tried and lose."""

SCORES = ("score", "low", "high", "efficacy", "generalisation", "specificity", "specificity_lost", "norm")


@dataclass(frozen=True)
class Search:
    """What is searched, and with what.

    Attributes:
        model: the unedited model.
        cases: validation facts, all written in one batch by every candidate.
        out: the settings file to write.
        editors: names in `palimpsest.studies.tuning.candidates`.
        base: settings that hold what is not searched.
        seed: of the draw of the facts and of the bootstrap.

    Raises:
        RequestError: if the file does not end in .yaml.
    """

    model: EditableModel
    cases: Sequence[EvalCase]
    out: Path
    editors: tuple[str, ...]
    base: Base
    seed: int = 0

    def __post_init__(self) -> None:
        if self.out.suffix != ".yaml":
            raise RequestError(f"settings file {self.out}: the ending must be .yaml, as in config/models")

    @property
    def table(self) -> Path:
        """File of the candidates."""
        return self.out.with_suffix(".search.csv")

    @property
    def key(self) -> str:
        """Hash of all that scores depend on beside the candidates."""
        facts = [asdict(case) for case in self.cases]
        parts = {"model": fingerprint(self.model), "facts": facts, "seed": self.seed}
        return digest(parts | {"base": {name: self.base.settings[name] for name in self.editors}})[:16]

    def planned(self) -> list[tuple[str, dict[str, Any]]]:
        """All candidates in the order of their trials: the first of each editor, and so on."""
        known = candidates(self.model.n_layers)
        return [(name, known[name][turn]) for turn in range(CANDIDATES) for name in self.editors]


@dataclass(frozen=True)
class Found:
    """How far a search has come.

    Attributes:
        search: what was searched.
        rows: of its table, all candidates that were scored.
        rounds: complete ones, in which each editor had a candidate.
    """

    search: Search
    rows: pd.DataFrame
    rounds: int

    @property
    def best(self) -> dict[str, "pd.Series[Any]"]:
        """Editor -> row of its best candidate in the complete rounds; of equal scores the smaller edit."""
        done = self.rows[self.rows["round"] <= self.rounds].sort_values(
            ["score", "norm"], ascending=[False, True], kind="stable"
        )
        done = done[done["score"].notna()]
        firsts = {str(row["editor"]): row for _, row in done.groupby("editor", sort=False).head(1).iterrows()}
        return {name: firsts[name] for name in self.search.editors if name in firsts}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Editor -> all its settings, those that were not searched from the base."""
        searched = {
            name: {**self.search.base.settings[name], **json.loads(row["settings"])}
            for name, row in self.best.items()
        }
        return searched | following(searched)

    def text(self) -> str:
        """The settings file."""
        search = self.search
        head = [
            f"{search.model.name}: the best of {self.rounds} candidates for each editor by palimpsest tune,",
            f"on {len(search.cases)} facts (seed {search.seed}), all of them in {search.table.name}.",
            *search.base.told({name: list(json.loads(row["settings"])) for name, row in self.best.items()}),
            "FT-L is FT with a limit of one step of Adam.",
        ]
        head += [
            f"{name}: score {row['score']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
            for name, row in self.best.items()
        ]
        also = {"also": [search.model.name]} if search.model.name != search.out.stem else {}
        kind = str(search.model.net.config.model_type)
        content = also | {"architecture": kind, "editors": self.settings()}
        body = yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True, width=100)
        return "".join(f"# {line}\n" for line in head) + body

    def __str__(self) -> str:
        total, seconds = len(self.search.planned()), float(self.rows["seconds"].sum())
        lines = [
            f"{len(self.rows)} of {total} candidates scored on {len(self.search.cases)} facts, "
            f"{self.rounds} for each of {len(self.search.editors)} editors; {seconds / 60:.1f} minutes of "
            "computing"
        ]
        for name, row in self.best.items():
            told = ", ".join(
                f"{key} {span(value) if key == 'layers' else value}"
                for key, value in json.loads(row["settings"]).items()
            )
            lines.append(
                f"{name}: {told}; score {row['score']:.1f} [{row['low']:.1f}, {row['high']:.1f}], efficacy "
                f"{row['efficacy']:.1f}, generalisation {row['generalisation']:.1f}, specificity "
                f"{row['specificity']:.1f} ({row['specificity_lost']:.1f} lost)"
            )
        failed = self.rows[self.rows["score"].isna()]
        lines += [f"failed: {row.editor} {row.settings}: {row.failed}" for row in failed.itertuples()]
        return "\n".join(lines)


def searched(names: Sequence[str]) -> tuple[str, ...]:
    """The editors to search, all by default.

    Raises:
        UnknownNameError: if one of them is not searched.
    """
    known = list(candidates(CANDIDATES))
    for name in names:
        if name not in known:
            raise UnknownNameError("editor with settings to search", name, known)
    return tuple(dict.fromkeys(names)) or tuple(known)


def facts_for(
    model: EditableModel, cases: Sequence[EvalCase], count: int, editors: Sequence[str], base: Base
) -> list[EvalCase]:
    """The first so many facts that all these editors can be searched on.

    Raises:
        ScoreError: as `palimpsest.studies.tuning.usable`.
        ProfileError: if settings of the base are out of range.
    """
    scored = any(base.editor(name).score_rule for name in editors)
    return usable(model, cases, count, 2 if scored else 1)


def run_search(
    search: Search,
    minutes: float | None = None,
    anew: bool = False,
    wait: float = -1,
    say: Callable[[str], None] | None = None,
) -> Found:
    """Score the candidates that have no row yet, and write the settings file; killed, it goes on.

    Args:
        search: what to search.
        minutes: begin no candidate that would probably end later.
        anew: forget an earlier table, and replace a settings file with any content.
        wait: seconds to wait for another process that writes the same; without end if negative.
        say: gets a line for every candidate.

    Raises:
        DataError: if the table is damaged or of another search, or the settings file has other content.
        BusyError: if another process writes it.
    """
    with locked(search.out, wait):
        rows = [] if anew else _read(search)
        _require_ours(search, rows, anew)
        known, prepared = {row["candidate"] for row in rows}, Prepared()
        plan = [one for one in search.planned() if _candidate(*one) not in known]
        started, longest = monotonic(), max((row["seconds"] for row in rows), default=0.0)
        before = rates(search.model, search.cases) if plan else pd.DataFrame()
        for name, settings in tqdm(plan, desc="candidates", unit="candidate", delay=2):
            if minutes is not None and monotonic() - started + longest > 60 * minutes:
                break
            row, prepared = _scored(search, name, settings, prepared, before)
            rows.append(row)
            longest = max(longest, row["seconds"])
            with replacing(search.table) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
            if say is not None:
                say(f"{name} {row['settings']}: {row['failed'] or format(row['score'], '.1f')}")
        found = _found(search, rows)
        if found.best:
            write_atomically(search.out, found.text().encode())
        return found


def _scored(
    search: Search, name: str, settings: Mapping[str, Any], prepared: Prepared, before: pd.DataFrame
) -> tuple[dict[str, Any], Prepared]:
    """Row of one candidate, and what the next one can share."""
    turn = candidates(search.model.n_layers)[name].index(dict(settings)) + 1
    row: dict[str, Any] = {"search": search.key, "candidate": _candidate(name, settings), "round": turn}
    row |= {"editor": name, "settings": json.dumps(settings), **dict.fromkeys(SCORES), "failed": ""}
    editor, began = search.base.editor(name, **settings), monotonic()
    try:
        trial, prepared = try_settings(search.model, search.cases, editor, prepared, before)
    except FAILURES as error:
        row |= {"failed": str(error).partition("\n")[0], "seconds": monotonic() - began}
    else:
        ends = trial.score(search.seed)
        row |= trial.row() | {"low": round(ends.low, 2), "high": round(ends.high, 2)}
        row["seconds"] = trial.seconds
    row["seconds"] = round(row["seconds"], 2)
    return row | {"facts": len(search.cases), "seed": search.seed}, prepared


def _candidate(name: str, settings: Mapping[str, Any]) -> str:
    return digest([name, settings])[:16]


def _found(search: Search, rows: Sequence[Mapping[str, Any]]) -> Found:
    done = {row["candidate"] for row in rows}
    known = candidates(search.model.n_layers)
    rounds = 0
    while rounds < CANDIDATES and all(
        _candidate(name, known[name][rounds]) in done for name in search.editors
    ):
        rounds += 1
    columns = ["round", "editor", "settings", *SCORES, "failed", "seconds"]
    frame = pd.DataFrame(rows, columns=columns)
    return Found(search, frame.astype(dict.fromkeys([*SCORES, "seconds"], float)), rounds)


def _read(search: Search) -> list[dict[str, Any]]:
    """Rows of an earlier run of the same search."""
    if not search.table.exists():
        return []
    try:
        frame = pd.read_csv(search.table, dtype={"search": str, "candidate": str})
        frame = frame.astype({"failed": object, "seconds": float, "round": int}).fillna({"failed": ""})
        missing = [name for name in ("search", "candidate", "settings", *SCORES) if name not in frame]
        if missing or frame["candidate"].isna().any():
            raise ValueError(f"columns or cells are missing: {', '.join(missing) or 'candidate'}")
    except UNREADABLE as error:
        raise DataError(
            f"{search.table} cannot be read as the table of a search ({error}); move it away, or begin anew "
            "with --replace"
        ) from error
    if {*frame["search"]} - {search.key}:
        raise DataError(
            f"{search.table} holds candidates of another search (other model, facts, editors, seed or base "
            "settings); choose another --out, or begin anew with --replace"
        )
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _require_ours(search: Search, rows: Sequence[Mapping[str, Any]], anew: bool) -> None:
    """Check that the settings file is one that this search wrote, or not there."""
    if anew or not search.out.exists():
        return
    ours = []
    for turn in range(1, CANDIDATES + 1):
        found = _found(search, [row for row in rows if row["round"] <= turn])
        ours += [found.text()] if found.best else []
    if not search.out.is_file() or search.out.read_bytes() not in [text.encode() for text in ours]:
        raise DataError(
            f"{search.out} exists and is not what this search has written; choose another --out, or replace "
            "it with --replace"
        )


def _plain(value: Any) -> Any:
    """Settings in the types of YAML."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
