"""Harder values for facts that an edited model does not say, within stated limits, and what they cost.

Each level optimises the value of a fact with more steps, a lower loss at which it is finished, and a larger
clamp than the settings on file (`LEVELS`); the last level is the limit. A fact that even this does not have
said is written with the settings on file again, so that it costs nothing for nothing. Harder values belong
to their fact alone, as all values do, and undo stays exact; but which level a fact needs depends on the facts
that are written beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from palimpsest.algebra.ledger import EditLedger
from palimpsest.datasets.facts import FactSet
from palimpsest.editors.sequential import Sequential
from palimpsest.evaluation.said import first_answers, say
from palimpsest.network.apply import restored
from palimpsest.network.model import EditableModel, write_weight
from palimpsest.types import EditRequest

CONTROLS = 64
"""Control prompts, about subjects that are not edited."""

ANSWER = 3
"""Tokens of the first answer to a control prompt that are compared."""


@dataclass(frozen=True)
class Level:
    """One level of effort, in units of the settings on file.

    Attributes:
        steps: factor of the steps of the optimisation.
        stop: factor of the loss at which it is finished.
        clamp: factor of the largest norm of δ.
    """

    steps: int
    stop: float
    clamp: float

    def of(self, editor: Sequential) -> Sequential:
        """The sequence with the settings of its values at this level."""
        targets = editor.targets
        steps, stop, clamp = (
            self.steps * targets.steps,
            self.stop * targets.stop_below,
            self.clamp * targets.clamp,
        )
        return replace(editor, targets=replace(targets, steps=steps, stop_below=stop, clamp=clamp))

    def text(self, editor: Sequential) -> str:
        """The level in words, with the numbers that the settings on file give."""
        hard = self.of(editor).targets
        return f"{hard.steps} steps to a loss of {hard.stop_below:.3g} with clamp {hard.clamp:.3g}"


LEVELS = (Level(2, 0.2, 1), Level(3, 0.1, 2), Level(4, 0.1, 4))
"""From the least effort to the limit: four times the steps, a tenth of the loss, four times the clamp."""


@dataclass(frozen=True)
class Effort:
    """What was done to have facts said.

    Attributes:
        tried: id -> levels tried, in words; only of facts for which effort was raised.
        cost: kind of prompts -> in words, how many keep their first answer, with and without the effort.
    """

    tried: Mapping[str, tuple[str, ...]]
    cost: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.tried)


@runtime_checkable
class Rewritable(Protocol):
    """A model with facts that can be written again: `palimpsest.workbench.edited_model.EditedModel`."""

    model: EditableModel
    editor: Sequential
    facts: dict[str, EditRequest]
    losses: dict[str, float]

    @property
    def ledgers(self) -> dict[int, EditLedger]:
        """Layer -> ledger of its facts."""

    def forget(self, ids: Sequence[str]) -> None:
        """Remove facts."""

    def edit(
        self,
        requests: Sequence[EditRequest],
        batch: int = 1,
        *,
        editor: Sequential | None = None,
        report: bool = True,
    ) -> object:
        """Write facts, with other settings of their values."""


def until_said(
    edited: Rewritable,
    ids: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
    batch: int = 1,
    levels: Sequence[Level] = LEVELS,
) -> Effort:
    """Rewrite facts that the model does not say with harder values, level by level, until it says them.

    Args:
        edited: the edited model; changed.
        ids: of the facts that should be said.
        prompts: kind -> prompts about other subjects, on which the cost is measured.
        batch: facts whose values are optimised in one batch.
        levels: from the least effort to the limit.

    Returns:
        What was tried, and what it cost; nothing if all facts were said.

    Raises:
        As `palimpsest.workbench.edited_model.EditedModel.edit`.
    """
    missing = [name for name, rank in ranks(edited, ids).items() if rank > 1]
    if not missing:
        return Effort({}, {})
    asked = {kind: list(texts) for kind, texts in prompts.items() if texts}
    with restored(edited.model, edited.ledgers):
        for layer, ledger in edited.ledgers.items():
            write_weight(edited.model, layer, ledger.base)
        unedited = {kind: first_answers(edited.model, texts, ANSWER) for kind, texts in asked.items()}
    kept = {kind: _same(edited.model, asked[kind], unedited[kind]) for kind in asked}
    tried: dict[str, tuple[str, ...]] = {}
    for level in levels:
        if not missing:
            break
        rewritten(edited, list(missing), batch, level.of(edited.editor))
        found = ranks(edited, list(missing))
        for name, rank in found.items():
            ended = f"{level.text(edited.editor)} ended at {edited.losses[name]:.2f}, rank {rank}"
            tried[name] = (*tried.get(name, ()), ended)
        missing = [name for name, rank in found.items() if rank > 1]
    if missing:
        rewritten(edited, missing, batch, edited.editor)
    cost = {}
    for kind, texts in asked.items():
        now = _same(edited.model, texts, unedited[kind])
        cost[f"{kind} that keep the unedited model's answer"] = (
            f"{now} of {len(texts)}, {kept[kind]} before the effort was raised"
        )
    return Effort(tried, cost)


def ranks(edited: Rewritable, ids: Sequence[str]) -> dict[str, int]:
    """Id -> rank of the fact's new object in the model as it is; 1 for a fact that is said."""
    facts = [edited.facts[name] for name in ids]
    found = say(edited.model, [(fact.text, fact.target) for fact in facts], tokens=1)
    return {fact.id: said.rank for fact, said in zip(facts, found, strict=True)}


def rewritten(edited: Rewritable, ids: Sequence[str], batch: int, editor: Sequential) -> None:
    """Write facts again with other settings of their values."""
    facts = [edited.facts[name] for name in ids]
    edited.forget(ids)
    edited.edit(facts, batch, editor=editor, report=False)


def control_prompts(facts: FactSet, requests: Sequence[EditRequest], count: int = CONTROLS) -> list[str]:
    """Prompts of the fact set about subjects that no request is about, the first of the validation split."""
    edited = {request.subject.casefold() for request in requests}
    return [
        facts.relations[fact.relation].prompt.replace("{}", fact.subject)
        for fact in facts.select("validation")
        if fact.subject.casefold() not in edited
    ][:count]


def _same(model: EditableModel, prompts: Sequence[str], answers: Sequence[str]) -> int:
    """Number of prompts whose first answer is the given one."""
    return sum(now == old for now, old in zip(first_answers(model, prompts, ANSWER), answers, strict=True))
