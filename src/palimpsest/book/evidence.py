"""Whether small runs speak for what changed: which definitions they executed, and why others do not matter.

A definition that a small run does not execute may change a result whose run was larger. It does not where
that run did not execute it either: its provenance says what it executed, and a new definition is not reached
by way of others that it did not execute. Where a definition that ran names a new one that did not, only a
reader of the code can tell; what a reader found is declared in ``config/not_reached.yaml``, with the reason.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from palimpsest import paths
from palimpsest.book.definitions import Definition
from palimpsest.book.dependencies import Dependencies, dependencies
from palimpsest.book.execution import Traced
from palimpsest.book.liveness import HEAD
from palimpsest.book.staleness import NOTEBOOK, Inputs
from palimpsest.errors import NotebookError, ProfileError
from palimpsest.files import UNREADABLE


class NotReached(BaseModel):
    """Definitions that no run of these pages executes: a row of ``config/not_reached.yaml``.

    Attributes:
        definitions: their names, with the module; one that ends in a dot stands for all that begin with it.
        reason: why no run of a page on record can execute them, whatever its size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    definitions: tuple[str, ...] = Field(min_length=1)
    reason: str = Field(min_length=1)

    def covers(self, name: str) -> bool:
        """Whether a definition is one of them."""
        return any(name == one or (one.endswith(".") and name.startswith(one)) for one in self.definitions)


def declared() -> list[NotReached]:
    """Rows of ``config/not_reached.yaml``; none without that file.

    Raises:
        ProfileError: if it cannot be read.
    """
    file = paths.checkout() / "config" / "not_reached.yaml"
    try:
        content = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else []
        return TypeAdapter(list[NotReached]).validate_python(content or [])
    except UNREADABLE as error:
        raise ProfileError(f"{file.name}: rows need definitions and reason: {error}") from error


@dataclass(frozen=True)
class Evidence:
    """What runs of a page say of its present code.

    Attributes:
        now: what the page reaches.
        small: trace of the small run under the present code.
        before: definitions of the code that the result was made or last confirmed with.
        executed: what the result's own run executed, and small runs since; None where its provenance does not
            say, as of results from before runs were followed.
    """

    now: Inputs
    small: Traced
    before: frozenset[str]
    executed: frozenset[str] | None

    @classmethod
    def of(cls, now: Inputs, small: Traced, made: Mapping[str, Any]) -> "Evidence":
        """From the provenance of a result."""
        ran = made.get("ran")
        return cls(now, small, frozenset(made["definitions"]), None if ran is None else frozenset(ran))

    def require(self, page: str, changed: Iterable[str]) -> list[str]:
        """Check that the runs speak for every changed definition.

        Returns:
            Those that only a declaration speaks for.

        Raises:
            NotebookError: if nothing speaks for one.
            ProfileError: if ``config/not_reached.yaml`` cannot be read.
        """
        graph = dependencies(paths.checkout() / "src" / "palimpsest")
        users = _users(graph, self.now)
        missed = [name for name in changed if not self._ran(name, graph, users)]
        missed = [name for name in missed if not self._silent(name.removesuffix(HEAD), graph, users)]
        rows = declared()
        unknown = [name for name in missed if not any(row.covers(name) for row in rows)]
        if unknown:
            raise NotebookError(
                f"{page}: its small run does not execute {', '.join(unknown)}, which changed, and so proves "
                "nothing of it; run the page, or, if no run of it can reach that code, say why in "
                "config/not_reached.yaml"
            )
        return missed

    def _ran(self, name: str, graph: Dependencies, users: Mapping[str, set[str]]) -> bool:
        """Whether the small run executed it."""
        whole, holder = name.removesuffix(HEAD), name.rpartition(".")[0]
        if whole in self.now.definitions:
            return _executed(whole, graph, users, self.small)
        return holder not in self.now.definitions or name in self.small.methods

    def _silent(
        self,
        name: str,
        graph: Dependencies,
        users: Mapping[str, set[str]],
        seen: frozenset[str] = frozenset(),
    ) -> bool:
        """Whether the result's own run did not execute it, and could not under the present code.

        An old function is silent if that run did not execute it; anything else if all that name it are, a
        method if its class is.
        """
        if self.executed is None or name == NOTEBOOK:
            return False
        if name not in users:
            holder = name.rpartition(".")[0]
            return holder in users and self._silent(holder, graph, users, seen)
        if name in self.before and _is_function(name, graph):
            return name not in self.executed
        return bool(users[name]) and all(
            not self._ran(user, graph, users) and self._silent(user, graph, users, seen | {name})
            for user in users[name] - seen - {name}
        )


def _is_function(name: str, graph: Dependencies) -> bool:
    module, _, own = name.rpartition(".")
    return isinstance(graph.node(Definition(module, own)), ast.FunctionDef | ast.AsyncFunctionDef)


def _users(graph: Dependencies, now: Inputs) -> dict[str, set[str]]:
    """Definition -> those that name it, with the notebook for what no definition names."""
    users: dict[str, set[str]] = {name: set() for name in now.definitions if name != NOTEBOOK}
    for name in users:
        module, _, own = name.rpartition(".")
        code = graph.code(Definition(module, own))
        for use in code.uses(list(code.rows)):
            if str(use.target) in users:
                users[str(use.target)].add(name)
    return users


def _executed(
    name: str,
    graph: Dependencies,
    users: Mapping[str, set[str]],
    traced: Traced,
    seen: frozenset[str] = frozenset(),
) -> bool:
    """Whether a definition ran; a constant, or a class but for its methods, if what names it did."""
    if name == NOTEBOOK or name in traced.functions:
        return True
    if _is_function(name, graph):
        return False
    if not users[name]:
        return True  # nothing but the notebook names it
    return any(_executed(user, graph, users, traced, seen | {name}) for user in users[name] - seen)
