"""What an edited model says about the facts written into it: one line a fact, a summary, and JSON.

A fact is said if its new object is the model's first answer: every token of the object is the most probable
one after the prompt, so that greedy decoding gives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import LedgerError
from palimpsest.evaluation.said import Said, say
from palimpsest.files import as_json, replacing
from palimpsest.network.apply import restored
from palimpsest.network.model import EditableModel, write_weight
from palimpsest.types import EditRequest, plain

SHOWN = 24
"""Characters of an id, an object or an answer that a line of the table shows."""


@dataclass(frozen=True)
class FactReport:
    """What the model says about one fact, unedited and edited.

    Attributes:
        id: of the fact.
        prompt: with the subject filled in.
        target: the new object.
        before: first answer, probability and rank of the new object in the unedited model.
        after: the same in the edited model.
        loss: of the value's optimisation at its end, in nats; None if the value was not computed by this
            process.
        stop_below: loss at which the optimisation is finished.
        effort: what was tried to have the fact said beyond the settings on file, one text a level.
    """

    id: str
    prompt: str
    target: str
    before: Said
    after: Said
    loss: float | None
    stop_below: float
    effort: tuple[str, ...] = ()

    @property
    def said(self) -> bool:
        """Whether the new object is the edited model's first answer."""
        return self.after.rank == 1

    @property
    def converged(self) -> bool | None:
        """Whether the optimisation ended below ``stop_below``; None if its loss is not known."""
        return None if self.loss is None else self.loss < self.stop_below

    def cells(self) -> list[str]:
        """The line of the table."""
        loss = "" if self.loss is None else f"{self.loss:.2f}{'' if self.converged else ' (above)'}"
        chances = [f"{100 * said.probability:.1f} %" for said in (self.before, self.after)]
        ranks = [f"{said.rank:,}" for said in (self.before, self.after)]
        answers = [_short(said.answer) for said in (self.before, self.after)]
        said = "yes" if self.said else "NO"
        return [_short(self.id), _short(plain(self.target)), said, *answers, *chances, *ranks, loss]


HEAD = (
    "fact",
    "new object",
    "said",
    "answered",
    "answers",
    "p before",
    "p now",
    "rank before",
    "rank now",
    "loss",
)


@dataclass(frozen=True)
class EditReport:
    """What an edited model says about some of its facts.

    Attributes:
        model: name of the unedited model.
        facts: one row per fact.
        cost: measure -> what raising the effort cost, where it was raised; see
            `palimpsest.workbench.effort`.
    """

    model: str
    facts: tuple[FactReport, ...]
    cost: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unsaid(self) -> tuple[FactReport, ...]:
        """Facts whose new object is not the first answer."""
        return tuple(fact for fact in self.facts if not fact.said)

    def with_effort(self, tried: Mapping[str, tuple[str, ...]], cost: Mapping[str, Any]) -> "EditReport":
        """The same report with what was tried for some facts, by id, and what it cost."""
        facts = tuple(replace(fact, effort=tried.get(fact.id, ())) for fact in self.facts)
        return replace(self, facts=facts, cost=cost)

    def __str__(self) -> str:
        rows = [list(HEAD), *(fact.cells() for fact in self.facts)]
        return "\n".join([*aligned(rows, right=range(5, len(HEAD))), "", *self._summary()])

    def _summary(self) -> list[str]:
        count = len(self.facts)
        before = sum(fact.before.rank == 1 for fact in self.facts)
        said = f"{count - len(self.unsaid)} of {count} facts are the first answer ({before} unedited)"
        known = [fact for fact in self.facts if fact.converged is not None]
        above = sum(fact.converged is False for fact in known)
        if known:
            said += f"; {above} of {len(known)} values ended above the loss at which they are finished"
        lines = [said, *(f"{name}: {text}" for name, text in self.cost.items())]
        tried = [fact for fact in self.unsaid if fact.effort]
        lines += [f"not said: {fact.id}; tried {'; '.join(fact.effort)}" for fact in tried]
        if len(tried) < len(self.unsaid):
            names = ", ".join(fact.id for fact in self.unsaid if not fact.effort)
            lines.append(f"not said: {names}; --until-said optimises harder values for them")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON, facts as mappings with ``said`` and ``converged``."""
        facts = [asdict(fact) | {"said": fact.said, "converged": fact.converged} for fact in self.facts]
        said = len(self.facts) - len(self.unsaid)
        return {
            "model": self.model,
            "said": said,
            "of": len(self.facts),
            "cost": dict(self.cost),
            "facts": facts,
        }

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically.

        Raises:
            ResourceError: if the file cannot be written.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(as_json(self.as_dict()))


def report_on(
    model: EditableModel,
    unedited: Mapping[int, Float[Tensor, "d_v d_k"]],
    facts: Sequence[EditRequest],
    losses: Mapping[str, float],
    stop_below: float,
    name: str,
) -> EditReport:
    """Ask an edited model and the unedited one about facts; every weight is restored bit by bit.

    Args:
        model: with the edits in force.
        unedited: layer -> W_0 (d_v, d_k).
        facts: what to ask about.
        losses: id of a fact -> loss at the end of its value's optimisation, where it is known.
        stop_below: loss at which an optimisation is finished.
        name: of the unedited model.

    Raises:
        As `palimpsest.evaluation.said.say`.
    """
    if not facts:
        return EditReport(name, ())
    pairs = [(fact.text, fact.target) for fact in facts]
    after = say(model, pairs)
    with restored(model, unedited):
        for layer, weight in unedited.items():
            write_weight(model, layer, weight)
        before = say(model, pairs)
    rows = [
        FactReport(fact.id, fact.text, fact.target, old, new, losses.get(fact.id), stop_below)
        for fact, old, new in zip(facts, before, after, strict=True)
    ]
    return EditReport(name, tuple(rows))


def chosen(facts: Mapping[str, EditRequest], ids: Sequence[str] | None) -> list[EditRequest]:
    """The facts of some ids, in their order; all without ids.

    Raises:
        LedgerError: if an id is unknown.
    """
    unknown = [name for name in ids or () if name not in facts]
    if unknown:
        raise LedgerError(
            f"no fact {unknown[0]!r} among the {len(facts)} that are held; the ids are the keys of "
            "EditedModel.facts"
        )
    return list(facts.values()) if ids is None else [facts[name] for name in ids]


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines with aligned columns, two spaces apart.

    Args:
        rows: the same number of cells each; the first is the head.
        right: columns that are aligned at their right end.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
