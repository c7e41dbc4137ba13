"""The project's fact set: triples and sentence templates, read and checked.

``data/facts/triples.csv`` holds (subject, relation, object), ``relations.yaml`` the templates of each
relation, and ``PROVENANCE.md`` says where both come from.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from palimpsest.datasets.files import Rejected, read_text, refusal
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.files import UNREADABLE, file_sha256
from palimpsest.paths import package_root
from palimpsest.types import SLOT

FACTS_FOLDER = package_root() / "data" / "facts"
LEVELS = (1, 2, 3, 4, 5, 6)
"""Perturbation levels, from one exchanged word (1) to a metaphorical sentence (6)."""
VALIDATION_SHARE = 0.3
"""Share of subjects in the validation split, for tuning."""

SPLITS = ("all", "test", "validation")


@dataclass(frozen=True)
class Fact:
    """A true triple; ``relation`` is a Wikidata property id."""

    subject: str
    relation: str
    object: str

    @property
    def id(self) -> str:
        """Unique id ``<relation>:<subject>``."""
        return f"{self.relation}:{self.subject}"


@dataclass(frozen=True)
class Relation:
    """Sentence templates of one relation; each has one ``{}`` for the subject and ends before the object.

    Attributes:
        id: Wikidata property id.
        name: short name.
        description: meaning of the relation, in plain words.
        prompt: the statement with which edits are made.
        paraphrases: at least three other statements.
        questions: at least two questions; the first is the edit prompt of ZsRE-style cases.
        perturbations: level 1-6 -> rewordings of the prompt.
        question_perturbations: level 1-6 -> rewordings of the first question.
    """

    id: str
    name: str
    description: str
    prompt: str
    paraphrases: tuple[str, ...]
    questions: tuple[str, ...]
    perturbations: Mapping[int, tuple[str, ...]]
    question_perturbations: Mapping[int, tuple[str, ...]]

    @property
    def statements(self) -> tuple[str, ...]:
        """The prompt and its paraphrases."""
        return (self.prompt, *self.paraphrases)

    @property
    def templates(self) -> tuple[str, ...]:
        """All templates of the relation: statements, questions and perturbations of both."""
        levels = (*self.perturbations.values(), *self.question_perturbations.values())
        return (*self.statements, *self.questions, *(t for texts in levels for t in texts))


@dataclass(frozen=True)
class FactSet:
    """All facts and relations.

    Attributes:
        facts: in file order.
        relations: by property id.
        sha256: hash of both files, for the record of a run.
    """

    facts: tuple[Fact, ...]
    relations: Mapping[str, Relation]
    sha256: str

    @cached_property
    def objects(self) -> dict[str, tuple[str, ...]]:
        """Distinct objects of each relation, sorted."""
        found: dict[str, set[str]] = {name: set() for name in self.relations}
        for fact in self.facts:
            found[fact.relation].add(fact.object)
        return {name: tuple(sorted(objects)) for name, objects in found.items()}

    @cached_property
    def known_objects(self) -> dict[str, frozenset[str]]:
        """All objects recorded for each subject, under any relation."""
        found: dict[str, set[str]] = {}
        for fact in self.facts:
            found.setdefault(fact.subject, set()).add(fact.object)
        return {subject: frozenset(objects) for subject, objects in found.items()}

    def select(self, split: str = "all", relations: list[str] | None = None) -> tuple[Fact, ...]:
        """Facts of one split and, if given, of some relations.

        Raises:
            UnknownNameError: if a split or a relation does not exist.
        """
        if split not in SPLITS:
            raise UnknownNameError("split", split, list(SPLITS))
        for name in relations or ():
            if name not in self.relations:
                raise UnknownNameError("relation", name, list(self.relations))
        return tuple(
            fact
            for fact in self.facts
            if (split == "all" or split_of(fact.subject) == split)
            and (relations is None or fact.relation in relations)
        )


def split_of(subject: str) -> str:
    """The split of a subject, from a hash of its name: always the same, in every data set."""
    share = int.from_bytes(sha256(subject.encode()).digest()[:8], "big") / 2**64
    return "validation" if share < VALIDATION_SHARE else "test"


def load_facts(path: str | Path | None = None) -> FactSet:
    """Read and check the fact set.

    Args:
        path: folder with ``triples.csv`` and ``relations.yaml``; by default that of the project.

    Raises:
        DataError: if a file is missing or malformed; the message lists the lines and reasons.
    """
    folder = Path(path) if path is not None else FACTS_FOLDER
    for name in ("triples.csv", "relations.yaml"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: no {name} there; pass the folder that holds triples.csv and "
                "relations.yaml as load_facts(path)"
            )
    relations = _read_relations(folder / "relations.yaml")
    facts = _read_triples(folder / "triples.csv", relations)
    hashes = file_sha256(folder / "triples.csv") + file_sha256(folder / "relations.yaml")
    return FactSet(facts, relations, sha256(hashes.encode()).hexdigest())


def _read_triples(path: Path, relations: Mapping[str, Relation]) -> tuple[Fact, ...]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    try:
        columns, rows = reader.fieldnames, [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV: {error}; correct line {reader.line_num + 1}") from error
    if columns != ["subject", "relation", "object"]:
        raise DataError(f"{path}: columns must be subject,relation,object, not {columns}")
    facts: dict[str, Fact] = {}
    rejected: list[Rejected] = []
    for line, row in rows:
        reason = _triple_fault(row, relations, facts)
        if reason:
            rejected.append(Rejected(line, reason))
            continue
        fact = Fact(**row)
        facts[fact.id] = fact
    if rejected:
        raise refusal(path, rejected, "correct these lines")
    return tuple(facts.values())


def _triple_fault(
    row: Mapping[Any, Any], relations: Mapping[str, Relation], facts: Mapping[str, Fact]
) -> str:
    """Description of the fault of a row, or an empty text."""
    if None in row or any(not isinstance(v, str) or not v or v != v.strip() for v in row.values()):
        return f"three texts without outer spaces are needed, not {list(row.values())!r}"
    if row["relation"] not in relations:
        return f"relation {row['relation']!r} is not in relations.yaml"
    fact = Fact(**row)
    if fact.id in facts:
        return f"{fact.subject!r} already has the object {facts[fact.id].object!r} here"
    subject, object_ = fact.subject.casefold(), fact.object.casefold()
    if subject in object_ or object_ in subject:
        return f"subject {fact.subject!r} and object {fact.object!r} contain one another"
    relation = relations[fact.relation]
    for template in relation.templates:
        if template.replace(SLOT, fact.subject).count(fact.subject) != 1:
            return f"subject {fact.subject!r} occurs twice in {template!r}"
    return ""


def _read_relations(path: Path) -> dict[str, Relation]:
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except UNREADABLE as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: must map property ids to relations")
    faults = [fault for name, entry in content.items() for fault in _relation_faults(name, entry)]
    if faults:
        raise DataError("\n".join([f"{path}: {len(faults)} faults:", *faults]))
    return {name: _relation(name, entry) for name, entry in content.items()}


def _relation(name: str, entry: Mapping[str, Any]) -> Relation:
    def levels(key: str) -> dict[int, tuple[str, ...]]:
        return {level: tuple(texts) for level, texts in entry[key].items()}

    return Relation(
        id=name,
        name=entry["name"],
        description=entry["description"],
        prompt=entry["prompt"],
        paraphrases=tuple(entry["paraphrases"]),
        questions=tuple(entry["questions"]),
        perturbations=levels("perturbations"),
        question_perturbations=levels("question_perturbations"),
    )


def _relation_faults(name: object, entry: Any) -> Iterator[str]:
    """Yield descriptions of the faults of one relation."""
    fields = list(Relation.__dataclass_fields__)[1:]
    if not isinstance(name, str) or not isinstance(entry, dict) or set(entry) != set(fields):
        found = sorted(map(str, entry)) if isinstance(entry, dict) else entry
        yield f"  {name}: needs the fields {', '.join(fields)}; found {found}"
        return
    for field in ("perturbations", "question_perturbations"):
        if not isinstance(entry[field], dict) or tuple(entry[field]) != LEVELS:
            yield f"  {name}: {field} must have the levels 1 to 6 in order"
            return
    lists = [entry["paraphrases"], entry["questions"]]
    lists += [*entry["perturbations"].values(), *entry["question_perturbations"].values()]
    texts = [entry["name"], entry["description"], entry["prompt"]]
    texts += [text for held in lists if isinstance(held, list) for text in held]
    odd = [one for one in lists if not isinstance(one, list)]
    odd += [text for text in texts if not isinstance(text, str)]
    if odd:
        kind = type(odd[0]).__name__
        yield f"  {name}: must hold texts and lists of texts, not {str(odd[0])[:80]!r} ({kind})"
        return
    for field, least in (("paraphrases", 3), ("questions", 2)):
        if len(entry[field]) < least:
            yield f"  {name}: {field} must be at least {least}, not {len(entry[field])}"
    templates = _relation(name, entry).templates
    for template in templates:
        if not isinstance(template, str) or template.count(SLOT) != 1:
            yield f"  {name}: template {template!r} must hold {SLOT!r} exactly once"
    for template in sorted({t for t in templates if templates.count(t) > 1}, key=str):
        yield f"  {name}: template {template!r} occurs twice"
