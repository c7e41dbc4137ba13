"""Base of editors that keep facts in a codebook at one layer and change its output near their keys.

The key of a fact is the layer's input at the last token of its prompt; its label is the target. All facts are
kept with their keys, and the codebook is a function of them in the order in which they were written
(`palimpsest.network.codebook.Codebook.with_key`): it is made anew at every edit. An edit holds all facts of
its sequence, and is made for the model without the earlier edits.

Facts of one entry share its contents (a value, a block), which are trained on all of them whenever one is
added. A fact that is written again replaces what was written for the same key before, whatever its target
was: of two facts in conflict the newest counts, or the second is refused, as the editor's ``conflicts`` says.

Forgetting a fact gives the memory of a sequence that never had it: the codebook of the facts that are left,
radii included, also where the forgotten one had split or expanded an entry. Where it shared its entry with
others, or they come to share other entries without it, the facts that are left are taught anew, in the edits
in which they were written. What a forgotten fact had replaced does not come back.
"""

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.base import Editor, Prepared, State
from palimpsest.editors.lessons import Contents, Schedule, teach
from palimpsest.errors import RequestError, SequenceError
from palimpsest.memory.keys import last_states
from palimpsest.network.codebook import Codebook
from palimpsest.network.model import EditableModel, Site, fingerprint
from palimpsest.network.wraps import INPUT, OUTPUT, Act, At, LayerWrap
from palimpsest.types import EditRequest

SAME = 1e-4
"""Two keys are the same if they differ by at most this share of their length, or by two units in the last
place of the model's dtype: what the same prompt read in another batch may differ by."""


@plain_dataclass(frozen=True, eq=False)
class Remembered:
    """A fact in memory.

    Attributes:
        request: the fact.
        key: the layer's input at the last token of its prompt (d_in,), float32 or float64.
        contents: of its entry.
        written: number of the edit of its sequence that wrote it.
    """

    request: EditRequest
    key: Float[Tensor, " d_in"]
    contents: Contents
    written: int = 0

    @property
    def name(self) -> str:
        """The fact's id, or its prompt."""
        return self.request.id or self.request.text


@plain_dataclass(frozen=True, repr=False)
class RememberedState(State):
    """State of a sequence of edits that keep facts in memory.

    Attributes:
        facts: in the order in which they were written.
        base: fingerprint of the model whose keys they have; empty before the first.
        edits: number of edits so far.
    """

    facts: tuple[Remembered, ...] = ()
    base: str = ""
    edits: int = 0


@plain_dataclass(frozen=True)
class Written:
    """A codebook made of facts.

    Attributes:
        book: the codebook.
        entry: index of the entry of each fact.
        rule: by which each fact was written.
    """

    book: Codebook
    entry: list[int]
    rule: list[str]


def written(facts: Sequence[Remembered], radius: float) -> Written:
    """The codebook of facts written one after the other, each with this radius at first."""
    found = Written(Codebook(), [], [])
    for fact in facts:
        book, entry, rule = found.book.with_key(fact.key, fact.request.target, radius)
        found = Written(book, [*found.entry, entry], [*found.rule, rule])
    return found


@dataclass(frozen=True, config={"extra": "forbid"})
class RememberingEditor(Editor):
    """Base of editors with a codebook; the fields are their settings.

    Attributes:
        layers: the one wrapped layer.
        at: what of it is wrapped: its edited ``map``, or the whole ``layer``, which is the place where a norm
            stands behind the map (Gemma 2 and 3, OLMo 2) and takes the length of what it gives.
        radius: ε, of a new entry, in the unit of the layer's inputs.
        steps: steps of Adam for the contents of an entry.
        lr: Adam's learning rate.
        stop_below: an entry is learnt when the NLL (nats a token) of each of its facts is below this; 0 as
            released, for all steps.
        batch: facts that are trained in one pass.
        conflicts: what a fact does to another target with the same key: ``newest`` replaces it, ``refuse`` is
            an error.
        seed: of initial contents.
    """

    layers: tuple[int]
    at: At = "map"
    radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    steps: int = Field(default=100, ge=1)
    lr: float = Field(default=1.0, gt=0)
    stop_below: float = Field(default=0.0, ge=0)
    batch: int = Field(default=64, ge=1)
    conflicts: Literal["newest", "refuse"] = "newest"
    seed: int = 0

    def initial(self, inputs: Tensor, outputs: Tensor, generator: torch.Generator) -> Contents:
        """Contents of a new entry before training.

        Args:
            inputs: the layer's input at the last token of the prompt (d_in,).
            outputs: its output there (d_v,).
            generator: for random contents; its numbers depend on the fact alone.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what an entry holds")

    def act(self, contents: Contents) -> Act:
        """What is done with contents, stacked over entries."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its contents do")

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[LayerWrap, Any]:
        """Put the requests into memory; see `palimpsest.edit`. The edit holds all facts of the sequence.

        Raises:
            SequenceError: if the state was made on a model with other weights, or the earlier edit is
                installed.
            RequestError: if ``conflicts`` is ``refuse``, and the key of a request has another target.
            NonFiniteError: if training leads to NaN or infinity.
            SiteError: if there is no such layer.
        """
        own: RememberedState = self.own(state)
        base = fingerprint(model)
        _require_same(own, base, model)
        fresh = [replace(fact, written=own.edits) for fact in self._read(model, requests)]
        kept, renewed = self._without_renewed(own.facts, fresh, _tolerance(model))
        facts = [*kept, *fresh]
        made = written(facts, self.radius)
        facts, losses = self._taught(model, facts, made, len(kept))
        rules = made.rule[len(kept) :]
        after = replace(own, facts=tuple(facts), base=base, edits=own.edits + 1)
        edit = self._wrap(after, made)
        notes: dict[str, Any] = {
            "facts": len(requests),
            "facts_in_memory": len(facts),
            "entries": len(made.book),
            "bytes": edit.bytes,
            "rules": {rule: rules.count(rule) for rule in ("new", "expanded", "split")},
            "renewed": renewed,
            "uncovered": _uncovered(facts, made.book),
            "loss_history": losses,
        }
        return replace(edit, notes=notes), after

    def forget(
        self, model: EditableModel, state: RememberedState, ids: Sequence[str]
    ) -> tuple[LayerWrap, Any]:
        """Take facts out of memory, exactly: what is left is what was never written with them.

        Args:
            model: the model that the edit is for.
            state: of this method.
            ids: ids of facts, or their prompts where they have none.

        Returns:
            The edit that holds the other facts, and the state without these.

        Raises:
            RequestError: if a fact is not in memory.
            SequenceError: if the state was made on a model with other weights.
        """
        own: RememberedState = self.own(state)
        _require_same(own, fingerprint(model), model)
        names = [fact.name for fact in own.facts]
        missing = [name for name in ids if name not in names]
        if missing:
            raise RequestError(
                f"{missing[0]!r} is none of the {len(names)} facts in memory; name them by id, or by prompt "
                "where they have none"
            )
        left = replace(own, facts=tuple(fact for fact in own.facts if fact.name not in set(ids)))
        made = written(left.facts, self.radius)
        staying = [name not in set(ids) for name in names]
        if not _same_entries(written(own.facts, self.radius).entry, made.entry, staying):
            left = self._again(model, left)
            made = written(left.facts, self.radius)
        edit = self._wrap(left, made)
        notes = {
            "method": self.printed,
            "facts": len(left.facts),
            "entries": len(made.book),
            "bytes": edit.bytes,
            "uncovered": _uncovered(left.facts, made.book),
        }
        return replace(edit, notes=notes), left

    def _again(self, model: EditableModel, state: RememberedState) -> RememberedState:
        """The state of a new sequence that writes the same facts, each in the same edit as before."""
        new = replace(state, facts=(), base="", edits=0)
        for number, facts in groupby(state.facts, key=lambda fact: fact.written):
            _, new = self.edit(model, [fact.request for fact in facts], replace(new, edits=number))
        return replace(new, edits=state.edits)

    def _read(self, model: EditableModel, requests: Sequence[EditRequest]) -> list[Remembered]:
        """Keys and initial contents of facts that are new."""
        layer, texts = self.layers[0], [model.before(one.text) + one.text for one in requests]
        inputs = last_states(model, texts, Site(layer, INPUT[self.at]))
        outputs = last_states(model, texts, Site(layer, OUTPUT[self.at]))
        exact = torch.promote_types(inputs.dtype, torch.float32)
        return [
            Remembered(request, given, self.initial(given, own, _generator(self.seed, request)))
            for request, given, own in zip(requests, inputs.to(exact), outputs.to(exact), strict=True)
        ]

    def _without_renewed(
        self, facts: Sequence[Remembered], fresh: Sequence[Remembered], tolerance: float
    ) -> tuple[list[Remembered], list[str]]:
        """Facts whose key is that of no new one, and the names of the others."""
        kept, renewed = [], []
        for old in facts:
            same = [new for new in fresh if _far(old, new) <= tolerance * float(old.key.double().norm())]
            other = [new for new in same if new.request.target != old.request.target]
            if other and self.conflicts == "refuse":
                raise RequestError(
                    f"{other[0].name!r} asks for {other[0].request.target!r}, and the same key has "
                    f"{old.request.target!r} in memory ({old.name!r}); forget that fact first, or set "
                    'conflicts="newest"'
                )
            if same:
                renewed.append(old.name)
            else:
                kept.append(old)
        return kept, renewed

    def _taught(
        self, model: EditableModel, facts: Sequence[Remembered], made: Written, old: int
    ) -> tuple[list[Remembered], list[list[float]]]:
        """Facts with the contents of their entries, and the losses of those from index ``old`` on."""
        members: dict[int, list[int]] = {}
        for index, entry in enumerate(made.entry):
            members.setdefault(entry, []).append(index)
        # Those with a new fact, and those that facts of different contents came to share.
        todo = [
            own
            for own in members.values()
            if own[-1] >= old or any(facts[i].contents is not facts[own[0]].contents for i in own)
        ]
        schedule = Schedule(self.steps, self.lr, self.stop_below, self.batch)
        groups = [[facts[i].request for i in own] for own in todo]
        start = [facts[own[0]].contents for own in todo]
        contents, history = teach(model, groups, start, self.layers[0], self.at, self.act, schedule)
        found, losses = list(facts), {}
        for own, trained, rows in zip(todo, contents, history, strict=True):
            for index, row in zip(own, rows, strict=True):
                found[index], losses[index] = replace(facts[index], contents=trained), row
        return found, [losses[index] for index in range(old, len(facts))]

    def _wrap(self, state: RememberedState, made: Written) -> LayerWrap:
        """The edit that holds a state's facts."""
        first = {entry: fact for fact, entry in zip(reversed(state.facts), reversed(made.entry), strict=True)}
        parts = zip(*(first[entry].contents for entry in range(len(made.book))), strict=True)
        stacked = tuple(torch.stack([part.cpu() for part in own]) for own in parts)
        book = Codebook(made.book.keys.cpu(), made.book.radii.cpu(), made.book.labels)
        act = self.act(stacked or self._nothing())
        return LayerWrap(self.layers[0], book, act, self.at, base=state.base)

    def _nothing(self) -> Contents:
        """Contents of no entry."""
        empty = self.initial(torch.zeros(1), torch.zeros(1), torch.Generator())
        return tuple(part[None][:0] for part in empty)


def _generator(seed: int, request: EditRequest) -> torch.Generator:
    """Random numbers that depend on seed, prompt and target."""
    key = sha256(f"{seed} {request.text} -> {request.target}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(key, "big"))


def _tolerance(model: EditableModel) -> float:
    """Share of its length by which the same key may differ."""
    return max(SAME, 2 * torch.finfo(next(model.net.parameters()).dtype).eps)


def _far(one: Remembered, other: Remembered) -> float:
    return float((one.key.double() - other.key.double()).norm())


def _uncovered(facts: Sequence[Remembered], book: Codebook) -> list[str]:
    """Facts whose key has no entry with their target any more: a split made that entry's radius shorter."""
    if not facts:
        return []
    entry = book.nearest(torch.stack([fact.key for fact in facts])).tolist()
    return [
        fact.name
        for fact, at in zip(facts, entry, strict=True)
        if at < 0 or book.labels[at] != fact.request.target
    ]


def _same_entries(before: Sequence[int], after: Sequence[int], staying: Sequence[bool]) -> bool:
    """Whether facts that stay share their entries with the same facts as before, and with none that goes.

    Args:
        before: index of the entry of each fact.
        after: the same of those that stay.
        staying: which of the first do.
    """
    theirs = [entry for entry, stays in zip(before, staying, strict=True) if stays]
    gone = {entry for entry, stays in zip(before, staying, strict=True) if not stays}
    pairs = set(zip(theirs, after, strict=True))
    return gone.isdisjoint(theirs) and len(pairs) == len(set(theirs)) == len(set(after))


def _require_same(state: RememberedState, base: str, model: EditableModel) -> None:
    if state.base and state.base != base:
        raise SequenceError(
            f"the {len(state.facts)} facts in memory were read on {model.name} with fingerprint "
            f"{state.base[:12]}, and it has {base[:12]} now; go on with those weights and without the "
            "earlier edit installed, which the next one holds too, or begin a new sequence"
        )
