"""Claims of the five papers, and the verdict on each, computed from recorded results.

``data/claims.yaml`` has one row for each claim: its statement, the notebook that tests it, and the rule
(`palimpsest.results.rules`) that turns the notebook's values into a verdict. No model is needed, so verdicts
can be recomputed from the records alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as Day
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from palimpsest import paths
from palimpsest.errors import DataError
from palimpsest.files import UNREADABLE
from palimpsest.results import records
from palimpsest.results.effects import Count, Effect, Limit, Parts
from palimpsest.results.printed_audit import Audit, Row, Rows, load_audit
from palimpsest.results.reservations import Awaited, elsewhere, reserved
from palimpsest.results.rules import (
    UNTESTED,
    Absent,
    Bias,
    Bound,
    Counterexample,
    Entry,
    Identity,
    Judgement,
    Misprint,
    MissingIntervalError,
    Readings,
)

PUBLISHED = "published tables"
"""Profile name of verdicts that are computed from the printed numbers alone."""

Rule = (
    Identity
    | Bound
    | Misprint
    | Bias
    | Counterexample
    | Absent
    | Effect
    | Limit
    | Count
    | Parts
    | Readings
    | Audit
)

KINDS: tuple[str, ...] = tuple(rule.model_fields["kind"].default for rule in get_args(Rule))

Values = Mapping[str, Entry]

Records = Mapping[str, Values]
"""Notebook -> name of a value -> entry, for one profile."""


class Paper(BaseModel):
    """One of the sources, or the group of claims that compare papers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    title: str
    cite: str = ""
    """Keys in ``book/references.bib``; empty for the group that compares papers."""


class Changed(BaseModel):
    """A rule or limit that was changed after its run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    on: Day = Field(alias="date")
    why: str = Field(min_length=10)


class Claim(BaseModel):
    """One row of ``data/claims.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(pattern=r"^[PALNUX][0-9]{2}[b-z]?$")
    paper: str
    place: str = Field(min_length=1)
    kind: Literal["T", "N", "Q"]
    """Theorem or formula, published numbers, qualitative trend."""
    statement: str = Field(min_length=20)
    notebook: str | None = None
    rule: Annotated[Rule, Field(discriminator="kind")] | None = None
    not_run: str | None = Field(None, min_length=5)
    """Why there is no rule yet."""
    untested: str | None = Field(None, min_length=5)
    """Why the claim is not tested in the paper's regime, where there is no rule to try."""
    profile: str | None = None
    """The profile whose records decide; by default the first with a label."""
    only_there: bool = False
    """Whether the claim is about the model of that profile, so that no other profile's records test it."""
    paper_ran: str = ""
    """Model and size of the paper's own run, for a claim about an effect."""
    awaits: Awaited | None = None
    own_data: str | None = Field(None, min_length=10)
    """What stands in for the paper's data; a label that is earned on it is "own data"."""
    changed: tuple[Changed, ...] = ()
    mathematics: str = ""
    """What mathematics says about the claim, without a computation."""
    shows: tuple[str, ...] = ()
    """Names of values to print for a claim that has no rule yet."""
    audit: Rows | None = None
    """Rows of the audit that concern the claim without deciding it."""

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if sum(given is not None for given in (self.rule, self.not_run, self.untested)) != 1:
            raise ValueError("give one of a rule, a reason in not_run, and a reason in untested")
        if self.rule is not None and self.notebook is None and not isinstance(self.rule, Audit):
            raise ValueError("a rule needs the notebook whose values it judges")
        if self.only_there and self.profile is None:
            raise ValueError("only_there needs the profile whose model the claim is about")
        if self.kind == "T" and not self.mathematics:
            raise ValueError("a theorem (kind T) needs a note under mathematics")
        if isinstance(self.rule, Effect | Limit | Count | Parts) and not self.paper_ran:
            raise ValueError("a rule about an effect needs paper_ran: model and size of the paper's own run")
        return self


@dataclass(frozen=True)
class Claims:
    """All claims and the papers from which they come, in the order of the file."""

    papers: tuple[Paper, ...]
    claims: tuple[Claim, ...]

    def of(self, paper: str) -> tuple[Claim, ...]:
        """The claims of one paper."""
        return tuple(claim for claim in self.claims if claim.paper == paper)


@dataclass(frozen=True)
class Verdict:
    """Verdict on one claim under one profile.

    Attributes:
        claim: id of the claim.
        label: one of `palimpsest.results.rules.LABELS`.
        profile: of the records, or ``PUBLISHED``.
        reason: one sentence that explains the label.
        values: recorded values to print with it.
        parts: of a statement with several effects: name, label and reason of each.
    """

    claim: str
    label: str
    profile: str
    reason: str
    values: Values = field(default_factory=dict)
    parts: tuple[tuple[str, Judgement], ...] = ()


def load_claims(path: Path | None = None) -> Claims:
    """Read and check the claims file.

    Args:
        path: the file; ``data/claims.yaml`` by default.

    Raises:
        DataError: if the file cannot be read or has malformed rows, which the message lists with reasons. In
            the project's own file a notebook that does not exist is a fault, too.
    """
    own = path is None
    path = path or paths.root() / "data" / "claims.yaml"
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        papers = tuple(Paper(**row) for row in content["papers"])
        rows = list(content["claims"])
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as claims ({error}); it needs the lists 'papers' and 'claims'"
        ) from error
    claims, problems = _parse(rows, {paper.id for paper in papers})
    if own and not paths.is_installed(paths.root()):  # a wheel has no notebooks
        problems += _unknown_notebooks(claims)
    if problems:
        raise DataError(f"{path}: {len(problems)} problems\n" + "\n".join(problems))
    return Claims(papers, tuple(claims))


def _parse(rows: Sequence[Any], papers: set[str]) -> tuple[list[Claim], list[str]]:
    claims: list[Claim] = []
    problems: list[str] = []
    for position, row in enumerate(rows, 1):
        name = str(row.get("id", "")) if isinstance(row, dict) else ""
        name = name or f"row {position}"
        found = _problems(row, sorted(papers), [claim.id for claim in claims])
        if not found:
            try:
                claims.append(Claim(**row))
            except ValidationError as error:
                found = [_plain(detail) for detail in error.errors()]
        problems += [f"{name}: {text}" for text in found]
    return claims, problems


def _unknown_notebooks(claims: Sequence[Claim]) -> list[str]:
    """Claims whose notebook does not exist, with the nearest name; none where all pages are others."""
    known = sorted(path.stem for path in paths.notebooks_dir().glob("*.ipynb"))
    found = []
    for claim in claims if any(one.notebook in known for one in claims) else ():
        if claim.notebook is not None and claim.notebook not in known:
            near = get_close_matches(claim.notebook, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; choose one of: {', '.join(known)}"
            found.append(f"{claim.id}: unknown notebook {claim.notebook!r}{hint}")
    return found


def _problems(row: Any, papers: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Faults of a row for which pydantic's messages are less clear."""
    if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
        return ["is not a mapping of fields"]
    problems = []
    if row.get("id") in seen:
        problems.append("this id is used twice; give each claim its own")
    if "paper" in row and row["paper"] not in papers:
        problems.append(f"unknown paper {row['paper']!r}; choose {', '.join(papers)}")
    rule = row.get("rule")
    if rule is not None and (not isinstance(rule, dict) or rule.get("kind") not in KINDS):
        kind = rule.get("kind") if isinstance(rule, dict) else rule
        problems.append(f"unknown rule kind {kind!r}; choose {', '.join(KINDS)}")
    return problems


def _plain(detail: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def load_records(results_root: Path, profile: str) -> dict[str, Values]:
    """Read the values of every notebook run under a profile; empty for an unknown profile.

    Raises:
        DataError: if a file is not a record.
    """
    found = sorted((results_root / profile).glob("*.json"))
    files = [path for path in found if not path.name.endswith(".provenance.json")]
    return {path.stem: records.read(path)["values"] for path in files}


def profiles_with_results(results_root: Path) -> list[str]:
    """Profiles with at least one record, ``laptop`` first; ``smoke`` only if there is no other."""
    names = [folder.name for folder in sorted(results_root.glob("*")) if any(folder.glob("*.json"))]
    large = [name for name in names if name != "smoke"] or names
    return sorted(large, key=lambda name: (name != "laptop", name != "long", name)) or ["laptop"]


def verdict(
    claim: Claim,
    results: Records,
    profile: str = "laptop",
    audit: Sequence[Row] | None = None,
) -> Verdict:
    """Judge one claim by the records of one profile.

    Args:
        claim: the claim with its rule.
        results: values of each notebook, from `load_records`.
        profile: name of the profile of the results.
        audit: rows of the audit, for rules that judge printed numbers; by default those on file.

    Raises:
        DataError: if the rule cannot judge a recorded value because of its type.
    """
    if isinstance(claim.rule, Audit):
        label, reason = claim.rule.judge(load_audit() if audit is None else audit)
        return Verdict(claim.id, label, PUBLISHED, reason)
    if claim.only_there and profile != claim.profile:
        reason = f"needs the model of the profile {claim.profile}, and this profile runs another"
        return Verdict(claim.id, "not run", profile, reason)
    values = results.get(claim.notebook or "", {})
    if claim.rule is None:
        shown = {name: values[name] for name in claim.shows if name in values}
        label = "not run" if claim.not_run else UNTESTED
        return Verdict(claim.id, label, profile, claim.not_run or claim.untested or "", shown)
    names = claim.rule.names()
    where = f"results/{profile}/{claim.notebook}.json"
    absent = [name for name in names if name not in values]
    shown = {name: values[name] for name in (*names, *claim.rule.shows) if name in values}
    if not values:
        return Verdict(claim.id, "not run", profile, f"there is no {where}")
    if absent:
        reason = f"value {', '.join(absent)} missing in {where}"
        return Verdict(claim.id, "not run", profile, reason, shown)
    found = _judge(claim, values, where)
    label, reason = reserved(found, claim.awaits, claim.own_data, claim.notebook)
    parts = tuple(claim.rule.judged(values)) if isinstance(claim.rule, Parts) and label != "not run" else ()
    if claim.own_data:
        parts = tuple((name, elsewhere(part)) for name, part in parts)
    return Verdict(claim.id, label, profile, reason, shown, parts)


def _judge(claim: Claim, values: Values, where: str) -> Judgement:
    assert claim.rule is not None
    assert not isinstance(claim.rule, Audit)
    try:
        return claim.rule.judge(values)
    except MissingIntervalError as error:
        return Judgement("not run", f"{error} in {where}")
    except DataError as error:
        raise DataError(f"claim {claim.id}, {where}: {error}") from error


def headline(claim: Claim, verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that stands for a claim: of its deciding profile, else the first that was run.

    Args:
        claim: the claim.
        verdicts: one for each profile, in the order of preference.
    """
    run = [item for item in verdicts if item.label != "not run"] or list(verdicts)
    return next((item for item in run if item.profile == claim.profile), run[0])


def judged(claims: Claims, results_root: Path | None = None) -> dict[str, list[Verdict]]:
    """Id of a claim -> one verdict for each profile with results, in the order of `profiles_with_results`.

    Args:
        claims: to judge.
        results_root: folder with one folder of records for each profile; by default that of the checkout.
    """
    root = results_root or paths.results_root()
    results = {profile: load_records(root, profile) for profile in profiles_with_results(root)}
    return {
        claim.id: [verdict(claim, found, profile) for profile, found in results.items()]
        for claim in claims.claims
    }
