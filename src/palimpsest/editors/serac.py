"""SERAC: a memory of facts, each of which answers the prompts in its scope (Mitchell et al., ICML 2022).

A prompt is in the scope of the fact whose statement is nearest to it, if their cosine in a sentence embedding
reaches a threshold. It is then answered by a counterfactual model, which reads the fact before the prompt;
otherwise by the unedited model, bit by bit. No weight changes.

Differences from the paper and the released code: the scope classifier is not trained (there a fine-tuned
DistilBERT); the embedder is used as it is and the threshold is calibrated on pairs (`calibrated_threshold`),
without which the editor refuses to edit. The counterfactual model is the frozen network itself with the fact
as a prefix, in the words of in-context editing (`palimpsest.editors.ike.FACT`), where the release trains a
smaller one on other edits. Its adaptation, by low-rank matrices, needs training data and is not done here:
how far an answer follows the prefix depends on the network. A fact replaces an earlier one with the same
prompt.
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
from palimpsest.errors import ProfileError, RequestError
from palimpsest.network.chosen import ChosenContext, Embed
from palimpsest.network.embedder import embedder
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest, joined

Pair = tuple[str, str]
"""(statement of a fact, prompt)."""


@plain_dataclass(frozen=True)
class Scope:
    """A threshold with the pairs that it was calibrated on.

    Attributes:
        threshold: least cosine of a prompt in scope, in (0, 1].
        accuracy: mean of the shares of pairs in and out of scope that it tells right, in [0, 1].
        inside: number of pairs in scope, at least 1.
        outside: number of pairs out of scope, at least 1.

    Raises:
        ProfileError: if a number is out of range; so a threshold alone is no scope.
    """

    threshold: float
    accuracy: float
    inside: int
    outside: int

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and 0 <= self.accuracy <= 1 and min(self.inside, self.outside) >= 1):
            raise ProfileError(
                f"a scope has threshold {self.threshold:g} in (0, 1], accuracy {self.accuracy:g} in [0, 1] "
                f"and {self.inside} and {self.outside} pairs, of which there must be one in scope and one "
                "out of it; take what calibrated_threshold finds"
            )


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
    known = torch.cat([near, far, near.new_zeros(1)]).clamp(min=0).unique()  # ascending, from 0 on
    cuts = ((known[1:] + known[:-1]) / 2)[known[1:] <= near.max()]
    if not len(cuts):
        raise ProfileError(
            f"the largest cosine of a pair in scope is {float(near.max()):.3g}: the embedder does not find "
            "the statements near to their prompts; give another embedder"
        )
    right = torch.stack([((near >= cut).double().mean() + (far < cut).double().mean()) / 2 for cut in cuts])
    best = int((right == right.max()).nonzero()[-1])
    return Scope(float(cuts[best]), float(right[best]), len(inside), len(outside))


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
        embed: the sentence embedder, the one of the calibration; None for the embedded one.
    """

    facts: tuple[EditRequest, ...] = ()
    embed: Embed | None = None


@dataclass(frozen=True, config={"extra": "forbid"})
class Serac(Editor):
    """SERAC; the fields are its settings.

    Attributes:
        scope: from `calibrated_threshold`; without it nothing is edited.

    Source: Mitchell et al., ICML 2022, Eq. 1.
    """

    keeps = SeracState
    printed = "SERAC"

    scope: Scope | None = Field(default=None)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[ChosenContext, SeracState]:
        """Put the requests into memory; see `palimpsest.edit`. The edit holds all facts of the sequence.

        Raises:
            ProfileError: if no scope was calibrated.
        """
        own: SeracState = self.own(state)
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
        after = replace(state, facts=left)
        edit = self._holding(model, after)
        notes = {"method": self.printed, "facts": len(left), "entries": len(left), "bytes": size(edit)}
        return replace(edit, notes=notes), after

    def _holding(self, model: EditableModel, state: SeracState) -> ChosenContext:
        """The edit with a state's facts."""
        if self.scope is None:
            raise ProfileError(
                "SERAC has no scope: which prompts a fact answers is told by a threshold that was calibrated "
                "with the embedder in use; pass scope=calibrated_threshold(embed, inside, outside)"
            )
        embed = state.embed or embedder()
        statements = [joined(fact.text, fact.target) for fact in state.facts]
        texts = tuple(FACT.format(statement) for statement in statements)
        return ChosenContext(texts, embed(statements), self.scope.threshold, embed, base=fingerprint(model))


def size(edit: ChosenContext) -> int:
    """Bytes of the texts, in UTF-8, and of their embeddings."""
    return sum(len(text.encode()) for text in edit.texts) + edit.vectors.numel() * edit.vectors.element_size()
