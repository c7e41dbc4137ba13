"""GRACE: values of a codebook in place of a layer's output (Hartvigsen et al., NeurIPS 2023).

    h′ = v_i    where d(h, k_i) ≤ ε_i and i = argmin d(h, k_i)        else h′ = f(h)

h is the input of the wrapped layer f, k_i the one read at the last token of an edited prompt, and v_i is
trained so that the target follows. The radius ε_i begins at ``radius``, grows where a fact with the same
target is near and is halved where one with another target is (`palimpsest.network.codebook`). No weight
changes. What is kept, forgotten and replaced: `palimpsest.editors.remembered`.

Differences from the released code and from EasyEdit's: there one token of a text is asked and replaced, the
last one of the prompt, which the caller points at (``replace_last``). Here every token is asked for itself: a
text that goes on behind an edited prompt is then answered from memory too, whoever reads it, and a token in
the middle of another text is changed if its own input is that near. Two targets are the same if their texts
are, where the code compares means of token ids. The distance is Euclidean; keys never move (``coverage``).
Values are trained without perturbation, at the fact's own entry, and where facts share an entry on all of
them. The wrapped map is the second one of the MLP, also in GPT-2, where the release takes the first. A fact
with the key of another is no split of radius 0, which would answer neither: see ``conflicts``.
"""

from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.lessons import Contents
from palimpsest.editors.remembered import RememberedState, RememberingEditor
from palimpsest.network.wraps import Act, Replaced


@plain_dataclass(frozen=True, repr=False)
class GraceState(RememberedState):
    """State of GRACE: the facts in memory, each with its key and value."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Grace(RememberingEditor):
    """GRACE; the fields are its settings, see `palimpsest.editors.remembered.RememberingEditor`.

    Attributes:
        begin_at: value before training: ``random`` in [0, 1) (``cold``, as released), or the ``output`` that
            the layer gives there (``warm``).

    Source: Hartvigsen et al., NeurIPS 2023, Eq. 1 and Algorithm 1.
    """

    keeps = GraceState
    printed = "GRACE"

    begin_at: Literal["random", "output"] = "random"

    def initial(self, inputs: Tensor, outputs: Tensor, generator: torch.Generator) -> Contents:
        """(value (d_v,),) before training."""
        if self.begin_at == "output":
            return (outputs,)
        return (torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype).to(outputs.device),)

    def act(self, contents: Contents) -> Act:
        """Outputs are replaced by the values."""
        return Replaced(*contents)
