"""IKE: in-context knowledge editing (Zheng et al., EMNLP 2023): a text before prompts, and no weight changed.

The text shows how new facts bear on questions, by facts other than the edited ones, and then states the new
fact. Each demonstration states its fact and answers one prompt:

    copy      the fact's own prompt, with the new object
    update    another wording of it, with the new object
    retain    a prompt about another subject, with the object that holds there

The demonstrations shown are those whose fact is nearest to the edited one by the cosine of sentence
embeddings, the nearest last, beside the prompt. No parameter is updated, so what this edit shows too is not
due to parameter updates.

Departures from the released code: kinds follow the rank of a demonstration in a fixed order (1 : 3 : 4 of
copy, update and retain, as in the paper) where the code shuffles them; the sentences around facts are ours;
several facts of one batch share one text, with the demonstrations nearest to any of them. A demonstration
about the subject of an edited fact is passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.base import State
from palimpsest.errors import ProfileError, RequestError
from palimpsest.network.apply import PromptContext
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.tokens import encode
from palimpsest.types import EditRequest, Probe

Embed = Callable[[Sequence[str]], Float64[Tensor, "n d"]]
"""Texts -> one vector each."""

Kind = Literal["copy", "update", "retain"]
KINDS: tuple[Kind, ...] = ("retain", "update", "retain", "copy", "retain", "update", "retain", "update")
FACT = "New fact: {}.\n"
ROOM = 64
"""Tokens of the model's context that must be left for a prompt and its answer."""


@plain_dataclass(frozen=True)
class Demonstration:
    """A fact that is not edited, and what it changes and leaves.

    Attributes:
        request: the made-up fact.
        rewording: another wording of its prompt, subject filled in.
        elsewhere: a prompt about another subject and the object that holds there.
    """

    request: EditRequest
    rewording: str
    elsewhere: Probe

    def shown(self, kind: Kind) -> str:
        """The fact and one answered prompt, as a paragraph."""
        answered = {
            "copy": _statement(self.request),
            "update": f"{self.rewording} {self.request.target}",
            "retain": f"{self.elsewhere.prompt} {self.elsewhere.target}",
        }[kind]
        return f"{FACT.format(_statement(self.request))}{answered}.\n\n"


@plain_dataclass(frozen=True)
class IkeState(State):
    """What in-context editing needs beside its settings; every call uses the same.

    Attributes:
        demonstrations: facts to show, none of them asked about; see `palimpsest.studies.demonstrations`.
        embed: the sentence embedder.
    """

    demonstrations: tuple[Demonstration, ...] = ()
    embed: Embed | None = None


@dataclass(frozen=True, config={"extra": "forbid"})
class Ike:
    """In-context editing with its settings.

    Attributes:
        count: demonstrations shown; 32 in the paper.
        kinds: kind of the nearest, the second nearest, ..., from the start again when used up.
    """

    count: int = Field(default=32, ge=0)
    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[PromptContext, IkeState]:
        """The text to put before prompts; see `palimpsest.edit`.

        Raises:
            ProfileError: if demonstrations are to be shown and the state has no embedder or too few of them.
            RequestError: if the text leaves no room for a prompt.
        """
        at = state if isinstance(state, IkeState) else IkeState(**vars(state or State()))
        shown = self._nearest(at, requests)
        paragraphs = [one.shown(self.kinds[rank % len(self.kinds)]) for rank, one in enumerate(shown)]
        facts = [FACT.format(_statement(request)) for request in requests]
        text = "".join([*reversed(paragraphs), *facts])
        tokens = len(encode(model.tokenizer, model.context + text))
        longest = model.net.config.max_position_embeddings
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
        return PromptContext(text, fingerprint(model), notes), replace(at)

    def _nearest(self, state: IkeState, requests: Sequence[EditRequest]) -> list[Demonstration]:
        """The demonstrations to show, the nearest first; equally near ones in their given order."""
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
    """Largest cosine of each text's embedding with a query's (n,); 0 for an embedding of length 0."""
    unit = [torch.nn.functional.normalize(part.double(), dim=1) for part in (texts, queries)]
    return (unit[0] @ unit[1].T).amax(1)


def _statement(request: EditRequest) -> str:
    return f"{request.text} {request.target}"
