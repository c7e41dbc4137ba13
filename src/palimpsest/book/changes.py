"""Definitions whose code differs between two checkouts, as far as a page can run them.

A definition that only moved or was renamed is not changed, nor is one that names it: renamed definitions are
matched by their code. A method counts if the small run ran it or the page's parameters name it: others are
reached by name alone.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.book.canonical import Form, Use
from palimpsest.book.definitions import Definition
from palimpsest.book.dependencies import Dependencies, Vocabulary
from palimpsest.book.liveness import HEAD, Live
from palimpsest.book.page_code import notebook_code
from palimpsest.book.staleness import reach, texts_of

METHODS = "EDITORS"
"""The table of methods."""

_CLASS = re.compile(r"\(ClassDef \w+")


class Side:
    """What a page reaches in one checkout.

    Args:
        root: of the checkout.
        page: name of the notebook.
        parameters: of the result.
        ran: functions and classes that ran in the small run, to leave out methods that did not; all count if
            None.
    """

    def __init__(
        self, root: Path, page: str, parameters: Mapping[str, Any], ran: Iterable[str] | None = None
    ) -> None:
        self.graph = Dependencies(root / "src" / "palimpsest")
        code = notebook_code(root / "notebooks" / f"{page}.ipynb", self.graph.package)
        found, _ = reach(code, parameters, root)
        self.live = Live(self.graph, code.form, code.trees, found.rows)
        self.reached = list(found.definitions)
        self.rows = {definition: set(rows) for definition, rows in found.rows.items()}
        if ran is not None:
            idle = self._idle({name.rpartition(".")[2] for name in ran})
            idle -= Vocabulary().with_texts(texts_of(parameters)).texts
            within = self.graph.within(code.form, Vocabulary(frozenset(found.vocabulary.texts - idle)))
            self.reached = [definition for definition in self.reached if definition in within]
            self.rows = {d: {row for row in rows if _key(row) not in idle} for d, rows in self.rows.items()}

    def _idle(self, ran: set[str]) -> set[str]:
        """Methods of whose classes nothing ran."""
        tables = [definition for definition in self.rows if definition.name == METHODS]
        used: dict[str, set[str]] = {}
        for table in tables:
            for row in self.rows[table]:
                targets = (part.target for part in self.graph.code(table).rows[row] if isinstance(part, Use))
                classes = {target.name for target in targets if isinstance(target, Definition)}
                used[_key(row)] = used.get(_key(row), set()) | classes
        return {key for key, classes in used.items() if not classes & ran}

    def text(self, definition: Definition, names: Mapping[Definition, str] | None) -> str:
        """Code with references replaced by names, or left out; without the name of a class.

        Args:
            definition: one of those reached.
            names: of all that are reached; None to leave references out.
        """
        code = self.graph.code(definition)
        rows = [(key, code.rows[key]) for key in sorted(self.rows.get(definition, ()))]
        return "\n".join(
            [self._text(code.form, names), *(f"{key}: {self._text(row, names)}" for key, row in rows)]
        )

    def _text(self, form: Form, names: Mapping[Definition, str] | None) -> str:
        parts = [part if isinstance(part, str) else self._name(part, names) for part in form]
        return _CLASS.sub("(ClassDef", "".join(parts), count=1)

    def _name(self, use: Use, names: Mapping[Definition, str] | None) -> str:
        target = use.target
        known = names.get(target, str(target)) if names is not None and isinstance(target, Definition) else ""
        return f"<{known}>"

    def members(self, definition: Definition, names: Mapping[Definition, str]) -> dict[str, str]:
        """Functions of a class, and under the empty name what is left of it, as texts; empty for no class."""
        return {name: self._text(form, names) for name, form in self.graph.members(definition).items()}


def _key(row: str) -> str:
    return row.rpartition(".")[0]


def changed_code(old: Side, new: Side) -> tuple[str, ...]:
    """Definitions of the new side whose code is not that of one of the old side, with their module.

    Of a class the methods that changed are named, and the class ``but for its methods`` where the rest did;
    what no code behind the page names is left out.
    """
    namesakes = (d for definition in new.reached for d in old.graph.named(definition.name))
    before = {definition: old.text(definition, None) for definition in (*old.reached, *namesakes)}
    matched: dict[Definition, Definition] = {}
    for definition in new.reached:
        blank = new.text(definition, None)
        same = [d for d, text in before.items() if text == blank]
        namesake = [d for d in before if d.name == definition.name]
        itself = [definition] if definition in before else []
        candidates = itself or [d for d in same if d.name == definition.name] or namesake or same
        if candidates:
            matched[definition] = candidates[0]
    olds, news = {d: str(d) for d in old.reached}, {d: str(matched.get(d, d)) for d in new.reached}
    found: list[str] = []
    for definition in new.reached:
        if definition not in matched:
            found += _parts(definition, {}, new.members(definition, news))
        elif new.text(definition, news) != old.text(matched[definition], olds):
            found += _parts(definition, old.members(matched[definition], olds), new.members(definition, news))
    return tuple(name for name in found if new.live.counts(name))


def _parts(definition: Definition, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What changed of a definition: of a class its methods by name and the rest of it, else the whole."""
    if not after:
        return [str(definition)]
    changed = [name for name in after if name and before.get(name) != after[name]]
    head = before.get("") != after[""] or before.keys() - after.keys()
    return [*([f"{definition}{HEAD}"] if head else []), *(f"{definition}.{name}" for name in changed)]
