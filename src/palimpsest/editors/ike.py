"""IKE: in-context knowledge editing (Zheng et al., EMNLP 2023), a text before the prompt; no weight changes.

The text demonstrates, with facts other than the edited ones, which answers a new fact changes, and then
states the new fact. Each demonstration states its fact and answers one prompt:

    copy      the fact's own prompt, with the new object
    update    a rewording of it, with the new object
    retain    a prompt about another subject, with that subject's true object

The demonstrations are those whose fact is nearest to the edited one by the cosine of sentence embeddings; the
nearest comes last, next to the prompt. IKE is a control for parameter updates: an effect that it shows too is
not caused by changed weights.

Differences from the released code: the kind of a demonstration follows from its rank in a fixed order
(1 : 3 : 4 of copy, update and retain, as in the paper), where the code shuffles the kinds; the sentence
templates are ours; several facts of one batch share one text, with the demonstrations nearest to any of them.
Demonstrations about the subject of an edited fact are not used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.base import Editor, Prepared, State
from palimpsest.errors import ProfileError, RequestError
from palimpsest.network.apply import PromptContext
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.tokens import encode
from palimpsest.types import EditRequest, Probe, joined

Embed = Callable[[Sequence[str]], Float64[Tensor, "n d"]]
"""Texts -> one embedding each (n, d), float64."""

Kind = Literal["copy", "update", "retain"]
KINDS: tuple[Kind, ...] = ("retain", "update", "retain", "copy", "retain", "update", "retain", "update")
FACT = "New fact: {}.\n"
ROOM = 64
"""Tokens of the model's context reserved for a prompt and its answer."""


@plain_dataclass(frozen=True)
class Demonstration:
    """A fact that is not edited, with one answer that it changes and one that it leaves unchanged.

    Attributes:
        request: the counterfactual fact.
        rewording: a rewording of its prompt, subject filled in.
        elsewhere: a prompt about another subject, with that subject's true object.
    """

    request: EditRequest
    rewording: str
    elsewhere: Probe

    def paragraph(self, kind: Kind) -> str:
        """Text of the demonstration: the fact and one answered prompt, as a paragraph."""
        answered = {
            "copy": _statement(self.request),
            "update": joined(self.rewording, self.request.target),
            "retain": joined(self.elsewhere.prompt, self.elsewhere.target),
        }[kind]
        return f"{FACT.format(_statement(self.request))}{answered}.\n\n"


@plain_dataclass(frozen=True, repr=False)
class IkeState(State):
    """State of in-context editing: inputs beside the settings, the same in every call.

    Attributes:
        demonstrations: facts to show, none of which is tested; see `palimpsest.studies.demonstrations`.
        embed: the sentence embedder.
    """

    demonstrations: tuple[Demonstration, ...] = ()
    embed: Embed | None = None


@dataclass(frozen=True, config={"extra": "forbid"})
class Ike(Editor):
    """In-context editing; the fields are its settings.

    Attributes:
        count: number of demonstrations; 32 in the paper.
        kinds: kinds of the nearest, the second nearest, ... demonstration, repeated cyclically.
    """

    keeps = IkeState
    printed = "IKE"

    count: int = Field(default=32, ge=0)
    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[PromptContext, IkeState]:
        """Make the text to put before prompts; see `palimpsest.edit`.

        Raises:
            ProfileError: if the state has no embedder or too few demonstrations, and ``count`` is not 0.
            RequestError: if the text leaves no room for a prompt.
        """
        at: IkeState = self.own(state)
        shown = self._nearest(at, requests)
        paragraphs = [one.paragraph(self.kinds[rank % len(self.kinds)]) for rank, one in enumerate(shown)]
        facts = [FACT.format(_statement(request)) for request in requests]
        text = "".join([*reversed(paragraphs), *facts])
        tokens = len(encode(model.tokenizer, model.context + text))
        longest = model.config.max_position_embeddings
        if tokens + ROOM > longest:
            raise RequestError(
                f"{len(requests)} facts behind {len(shown)} demonstrations make {tokens} tokens of the "
                f"{longest} that {model.name} can read, and {ROOM} must stay for a prompt; show fewer "
                "demonstrations or edit fewer facts at once"
            )
        notes = {
            "facts": len(requests),
            "tokens": tokens,
            "demonstrations": [one.request.id or one.request.text for one in shown],
        }
        return PromptContext(text, fingerprint(model), notes), at

    def _nearest(self, state: IkeState, requests: Sequence[EditRequest]) -> list[Demonstration]:
        """The demonstrations to show, the nearest first; ties in their given order."""
        if self.count == 0:
            return []
        subjects = {request.subject for request in requests}
        pool = [one for one in state.demonstrations if one.request.subject not in subjects]
        if state.embed is None or len(pool) < self.count:
            raise ProfileError(
                f"{self.count} demonstrations are to be shown, and the state has {len(pool)} about other "
                f"subjects and {'no' if state.embed is None else 'an'} embedder; pass "
                "state=IkeState(demonstrations=..., embed=...) with enough of them, or set count lower"
            )
        near = nearness(
            state.embed([_statement(one.request) for one in pool]),
            state.embed([_statement(request) for request in requests]),
        )
        order = torch.argsort(near, descending=True, stable=True)[: self.count]
        return [pool[index] for index in order.tolist()]


def nearness(texts: Float[Tensor, "n d"], queries: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """Largest cosine of each text's embedding with a query's (n,), float64; 0 for an embedding of norm 0."""
    unit = [torch.nn.functional.normalize(part.double(), dim=1) for part in (texts, queries)]
    return (unit[0] @ unit[1].T).amax(1)


def _statement(request: EditRequest) -> str:
    return joined(request.text, request.target)
