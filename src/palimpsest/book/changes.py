"""Definitions whose code differs between two checkouts, as far as a page can run them.

A definition that only moved or was renamed is not changed, nor is one that names it: renamed definitions are
matched by their code. Rows of EDITORS count if the small run asked for them or the page's parameters name
them: other methods are reached by name alone.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.book.canonical import Form, Use
from palimpsest.book.definitions import Definition
from palimpsest.book.dependencies import Dependencies, Vocabulary, notebook_code
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
        asked: rows that the small run asked for; every row that can be asked for if None.
    """

    def __init__(
        self, root: Path, page: str, parameters: Mapping[str, Any], asked: Iterable[str] | None = None
    ) -> None:
        self.graph = Dependencies(root / "src" / "palimpsest")
        code = notebook_code(root / "notebooks" / f"{page}.ipynb", self.graph.package)
        found, _ = reach(code, parameters, root)
        self.reached = list(found.definitions)
        self.rows = {definition: set(rows) for definition, rows in found.rows.items()}
        if asked is not None:
            named = Vocabulary().with_texts([*asked, *texts_of(parameters)]).texts
            methods = {
                row.rpartition(".")[0] for d, rows in self.rows.items() if d.name == METHODS for row in rows
            }
            unasked = methods - named
            texts = frozenset(found.vocabulary.texts - unasked)
            within = self.graph.within(code.form, Vocabulary(texts))
            self.reached = [definition for definition in self.reached if definition in within]
            self.rows = {
                d: {row for row in rows if row.rpartition(".")[0] not in unasked}
                for d, rows in self.rows.items()
            }

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


def changed_code(old: Side, new: Side) -> tuple[str, ...]:
    """Definitions of the new side whose code is not that of one of the old side, with their module."""
    namesakes = (d for definition in new.reached for d in old.graph.named(definition.name))
    before = {definition: old.text(definition, None) for definition in (*old.reached, *namesakes)}
    matched: dict[Definition, Definition] = {}
    for definition in new.reached:
        blank = new.text(definition, None)
        same = [d for d, text in before.items() if text == blank]
        namesake = [d for d in before if d.name == definition.name]
        candidates = [d for d in same if d.name == definition.name] or namesake or same
        if candidates:
            matched[definition] = candidates[0]
    olds, news = {d: str(d) for d in old.reached}, {d: str(matched.get(d, d)) for d in new.reached}
    return tuple(
        str(definition)
        for definition in new.reached
        if definition not in matched or new.text(definition, news) != old.text(matched[definition], olds)
    )
