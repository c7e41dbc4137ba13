"""SERAC: a memory of facts, each of which answers the prompts in its scope (Mitchell et al., ICML 2022).

A classifier tells which fact in memory, if any, a prompt is in the scope of. The prompt is then answered by a
counterfactual model, which reads the fact before the prompt; otherwise by the unedited model, bit by bit. No
weight changes. Both parts are trained beforehand on other facts (`palimpsest.training.readers`) and kept in
one file for one set of weights; without it the editor refuses, unless it has a scope of its own.

With ``scope`` it is not trained: the classifier is a threshold of the cosine in a sentence embedding, which
`calibrated_threshold` finds, and the counterfactual model is the network as it is.

Differences from the paper and the released code: the classifier is a logistic regression on a frozen sentence
embedder (there a fine-tuned DistilBERT). The counterfactual model is the network itself with low-rank
matrices (LoRA), in force at the tokens of fact and prompt and not at those of the answer, where the release
trains a smaller second model, which is not at hand here. The fact stands before the prompt in the words of
in-context editing (`palimpsest.editors.ike.FACT`). A fact replaces an earlier one with the same prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

import torch
from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.base import Editor, Prepared, State
from palimpsest.editors.ike import FACT
from palimpsest.editors.reader import Reader, reader_file, reader_for
from palimpsest.editors.reader import Scope as Scope
from palimpsest.errors import ProfileError, RequestError
from palimpsest.files import file_sha256
from palimpsest.network.chosen import ChosenContext, Embed
from palimpsest.network.embedder import embedder
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.read_context import ReadContext
from palimpsest.types import EditRequest, joined

Pair = tuple[str, str]
"""(statement of a fact, prompt)."""


def calibrated_threshold(embed: Embed, inside: Sequence[Pair], outside: Sequence[Pair]) -> Scope:
    """The threshold that tells pairs in scope from others best, by the mean of both shares told right.

    Args:
        embed: texts -> embeddings (n, d).
        inside: statements and prompts that they should answer, for example rewordings.
        outside: statements and prompts that they should leave alone, for example neighbours.

    Returns:
        The threshold, halfway between two cosines; of equally good ones the highest, which leaves more
        prompts alone. And its accuracy on these pairs, which is an estimate from above for others.

    Raises:
        ProfileError: if either kind has no pair, or no threshold above 0 leaves a pair in scope.
    """
    if not inside or not outside:
        raise ProfileError(
            f"{len(inside)} pairs in scope and {len(outside)} out of it tell no threshold; give some of both "
            "kinds"
        )
    near, far = (_paired(embed, pairs) for pairs in (inside, outside))
    if not near.max() > 0:
        raise ProfileError(
            f"the largest cosine of a pair in scope is {float(near.max()):.3g}: the embedder does not find "
            "the statements near to their prompts; give another embedder"
        )
    return best_cut(near, far)


def best_cut(near: Float64[Tensor, " n"], far: Float64[Tensor, " m"]) -> Scope:
    """The threshold above 0 that tells scores of pairs in scope from others best, as `calibrated_threshold`.

    Args:
        near: scores of pairs in scope, of which one is above 0.
        far: scores of pairs out of scope.
    """
    known = torch.cat([near, far, near.new_zeros(1)]).clamp(min=0).unique()  # ascending, from 0 on
    cuts = ((known[1:] + known[:-1]) / 2)[known[1:] <= near.max()]
    right = torch.stack([((near >= cut).double().mean() + (far < cut).double().mean()) / 2 for cut in cuts])
    best = int((right == right.max()).nonzero()[-1])
    return Scope(float(cuts[best]), float(right[best]), len(near), len(far))


def _paired(embed: Embed, pairs: Sequence[Pair]) -> Float64[Tensor, " n"]:
    """Cosine of statement and prompt of each pair."""
    statements, prompts = (embed([pair[i] for pair in pairs]) for i in (0, 1))
    return torch.nn.functional.cosine_similarity(statements.double(), prompts.double(), dim=1).round(
        decimals=12
    )


@plain_dataclass(frozen=True, repr=False)
class SeracState(State):
    """State of SERAC.

    Attributes:
        facts: in memory, in the order in which they were written.
        embed: the sentence embedder, the one of the training or calibration; None for the embedded one.
        reader: what was trained; None to look for it at the first edit, and for an untrained editor.
    """

    facts: tuple[EditRequest, ...] = ()
    embed: Embed | None = None
    reader: Reader | None = None


@dataclass(frozen=True, config={"extra": "forbid"})
class Serac(Editor):
    """SERAC; the fields are its settings.

    Attributes:
        network: file of the trained classifier and adapter; None for the one that was trained for the
            model's weights, of the project or in the cache.
        scope: from `calibrated_threshold`, for an editor that is not trained; None for a trained one.

    Source: Mitchell et al., ICML 2022, Eq. 1.
    """

    keeps = SeracState
    printed = "SERAC"

    network: str | None = None
    scope: Scope | None = Field(default=None)

    def __post_init__(self) -> None:
        if self.network is not None and self.scope is not None:
            raise ProfileError(
                f"SERAC has both a trained network ({self.network}) and a scope of its own (threshold "
                f"{self.scope.threshold:g}); give the one for a trained editor, or the other for an untrained"
            )

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[ChosenContext, SeracState]:
        """Put the requests into memory; see `palimpsest.edit`. The edit holds all facts of the sequence.

        Raises:
            ResourceError: if it has no scope and nothing was trained for these weights.
        """
        own = self._ready(model, self.own(state))
        new = {request.text for request in requests}
        kept = [fact for fact in own.facts if fact.text not in new]
        after = replace(own, facts=(*kept, *requests))
        edit = self._holding(model, after)
        notes = {
            "facts": len(requests),
            "facts_in_memory": len(after.facts),
            "entries": len(after.facts),
            "bytes": size(edit),
            "renewed": [fact.id or fact.text for fact in own.facts if fact.text in new],
            "threshold": edit.threshold,
            **({} if after.reader is None else {"network": dict(after.reader.about)}),
        }
        return replace(edit, notes=notes), after

    def forget(
        self, model: EditableModel, state: SeracState, ids: Sequence[str]
    ) -> tuple[ChosenContext, SeracState]:
        """Take facts out of memory, exactly: what is left is what was never written with them.

        Args:
            model: the model that the edit is for.
            state: of this method.
            ids: ids of facts, or their prompts where they have none.

        Raises:
            RequestError: if a fact is not in memory.
        """
        names = [fact.id or fact.text for fact in state.facts]
        missing = [name for name in ids if name not in names]
        if missing:
            raise RequestError(
                f"{missing[0]!r} is none of the {len(names)} facts in memory; name them by id, or by prompt "
                "where they have none"
            )
        left = tuple(fact for fact, name in zip(state.facts, names, strict=True) if name not in set(ids))
        after = replace(self._ready(model, state), facts=left)
        edit = self._holding(model, after)
        notes = {"method": self.printed, "facts": len(left), "entries": len(left), "bytes": size(edit)}
        return replace(edit, notes=notes), after

    def _holding(self, model: EditableModel, state: SeracState) -> ChosenContext:
        """The edit with a state's facts."""
        embed = state.embed or embedder()
        statements = [joined(fact.text, fact.target) for fact in state.facts]
        texts, base = tuple(FACT.format(statement) for statement in statements), fingerprint(model)
        if state.reader is None:
            assert self.scope is not None  # or `_ready` would have found a reader
            return ChosenContext(texts, embed(statements), self.scope.threshold, embed, base=base)
        threshold, head = state.reader.scope.threshold, state.reader.head
        return ReadContext(
            texts, embed(statements), threshold, embed, base=base, head=head, adapter=state.reader.adapter
        )

    def learnt(self, model: EditableModel) -> str:
        """Hash of the file of what was trained; empty for an editor with a scope of its own.

        Raises:
            ResourceError: if nothing was trained for these weights.
        """
        return "" if self.scope is not None else file_sha256(reader_file(model, self.network))

    def _ready(self, model: EditableModel, state: SeracState) -> SeracState:
        """The state with what was trained, unless the editor has a scope of its own."""
        if self.scope is not None:
            return replace(state, reader=None)
        if state.reader is not None:
            return state
        return replace(state, reader=reader_for(model, self.network))


def size(edit: ChosenContext) -> int:
    """Bytes of the texts, in UTF-8, and of their embeddings."""
    return sum(len(text.encode()) for text in edit.texts) + edit.vectors.numel() * edit.vectors.element_size()
