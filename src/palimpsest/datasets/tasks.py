"""Tasks of general ability that need no data beside the project's own: facts, and minimal pairs of sentences.

Facts are those of the validation split whose subjects no edit is about. Pairs are written for this project
(``data/ability``). Nothing here is drawn at random: the same facts give the same tasks.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from palimpsest.datasets.facts import Fact, FactSet, load_facts
from palimpsest.datasets.files import read_text
from palimpsest.errors import DataError, RequestError, UnknownNameError
from palimpsest.files import UNREADABLE
from palimpsest.paths import package_root
from palimpsest.types import SLOT, Item, Task

PAIRS = package_root() / "data" / "ability" / "pairs.yaml"
BUILT_IN = ("facts", "cloze", "grammar", "words")
"""Names of the tasks: facts to choose and to complete, and pairs of the two parts of the file."""
OPTIONS = 4
"""Objects among which a fact's is chosen."""
FACTS = 120
"""Facts of each of the two tasks, by default."""

_PAIR = re.compile(r"(?P<before>[^{}|]*\S) \{(?P<right>[^{}|]+)\|(?P<wrong>[^{}|]+)\}(?P<behind>[^{}|]*)")


def built_in_tasks(
    written: Collection[str] = (),
    names: Collection[str] = BUILT_IN,
    facts: FactSet | None = None,
    count: int = FACTS,
    pairs: int | None = None,
) -> tuple[Task, ...]:
    """The tasks that the package brings with it.

    Args:
        written: subjects of facts that are or will be written; no item is about them.
        names: tasks, of ``BUILT_IN``, in the order wanted.
        facts: by default the project's own.
        count: facts of each task of facts, spread evenly over the relations.
        pairs: minimal pairs of each task of pairs, spread evenly over the phenomena; by default all.

    Raises:
        UnknownNameError: if a task does not exist.
        DataError: if no fact is left, or the file of pairs is malformed.
    """
    for name in names:
        if name not in BUILT_IN:
            raise UnknownNameError("built-in task", name, list(BUILT_IN))
    made = {task.name: _thinned(task, pairs) for task in pair_tasks()}
    if {"facts", "cloze"} & {*names}:
        made |= {task.name: task for task in fact_tasks(facts or load_facts(), written, count)}
    return tuple(made[name] for name in names)


def fact_tasks(facts: FactSet, written: Collection[str] = (), count: int = FACTS) -> tuple[Task, Task]:
    """Facts as choices among objects of their relation, and as sentences to complete.

    Chance is a quarter for the choice, and none for a word among tens of thousands. A choice can be right by
    the relation alone where its other objects are rarer words.

    Args:
        facts: their validation split is asked.
        written: subjects to leave out.
        count: facts asked.

    Raises:
        DataError: if no fact is left.
    """
    asked = _spread([fact for fact in facts.select("validation") if fact.subject not in written], count)
    choices = [item for fact in asked if (item := _choice(facts, fact)) is not None]
    if not choices:
        raise DataError(
            f"no fact of the validation split is left to ask beside {len(written)} written subjects; "
            "write fewer of them, or ask the tasks 'grammar' and 'words' alone"
        )
    cloze = [Item(fact.id, _prompt(facts, fact), (fact.object,), group=fact.relation) for fact in asked]
    return (
        Task("facts", tuple(choices), 1 / OPTIONS, about="facts that are not written, one of four objects"),
        Task("cloze", tuple(cloze), 0.0, about="facts that are not written, the object word by word"),
    )


def _spread(facts: list[Fact], count: int) -> list[Fact]:
    """At most ``count`` facts in an order that takes the relations in turn, in each by a hash."""
    mixed = sorted(facts, key=lambda fact: sha256(fact.id.encode()).digest())
    place: Counter[str] = Counter()
    turn: dict[str, int] = {}
    for fact in mixed:
        turn[fact.id] = place[fact.relation]
        place[fact.relation] += 1
    return sorted(mixed, key=lambda fact: (turn[fact.id], fact.relation))[:count]


def _prompt(facts: FactSet, fact: Fact) -> str:
    return facts.relations[fact.relation].prompt.replace(SLOT, fact.subject)


def _choice(facts: FactSet, fact: Fact) -> Item | None:
    """The fact among other objects of its relation, none of them true of the subject; None if too few are."""
    known = facts.known_objects[fact.subject]
    others = [name for name in facts.objects[fact.relation] if name not in known]
    order = sorted(others, key=lambda name: sha256(f"{fact.id} {name}".encode()).digest())
    if len(order) < OPTIONS - 1:
        return None
    options = tuple(sorted([fact.object, *order[: OPTIONS - 1]]))
    return Item(fact.id, _prompt(facts, fact), options, options.index(fact.object), fact.relation)


def _thinned(task: Task, count: int | None) -> Task:
    """At most ``count`` items of a task, evenly spaced, so that every phenomenon keeps its share."""
    total = len(task.items)
    if count is None or count >= total:
        return task
    places = [place * total // count for place in range(max(count, 1))]
    return replace(task, items=tuple(task.items[place] for place in places))


def pair_tasks(path: str | Path = PAIRS) -> tuple[Task, ...]:
    """Minimal pairs as one task for each part of their file.

    The wrong wording of every second pair stands first, so that no place is right more often.

    Args:
        path: YAML: task -> phenomenon -> sentences with ``{right|wrong}`` in the place where they differ.

    Raises:
        DataError: if the file is malformed; the message lists the sentences and the reasons.
    """
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
        rows = {name: list(_rows(part)) for name, part in content.items()}
    except UNREADABLE as error:
        raise DataError(f"{path}: not pairs by task and phenomenon ({error})") from error
    tasks, faults = [], []
    for name, sentences in rows.items():
        items = []
        for number, (phenomenon, sentence) in enumerate(sentences):
            try:
                items.append(_pair(f"{name}:{number + 1}", phenomenon, sentence, number % 2))
            except RequestError as error:
                faults.append(f"  {phenomenon}: {error}")
        if items:
            tasks.append(Task(name, tuple(items), 0.5, total=True, about="minimal pairs of sentences"))
    if faults:
        raise DataError("\n".join([f"{path}: {len(faults)} malformed pairs:", *faults]))
    return tuple(tasks)


def _rows(part: Any) -> Iterator[tuple[str, str]]:
    for phenomenon, sentences in part.items():
        yield from ((str(phenomenon), str(sentence)) for sentence in sentences)


def _pair(name: str, phenomenon: str, sentence: str, right: int) -> Item:
    found = _PAIR.fullmatch(sentence)
    if found is None:
        raise RequestError(
            f"{sentence!r} needs words, a space, and one '{{right|wrong}}' where the two sentences differ"
        )
    options = [found["right"] + found["behind"], found["wrong"] + found["behind"]]
    ordered = tuple(options if right == 0 else options[::-1])
    return Item(name, found["before"], ordered, right, phenomenon)
