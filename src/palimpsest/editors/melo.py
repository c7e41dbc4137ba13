"""MELO: low-rank blocks chosen by a codebook (Yu et al., AAAI 2024); no weight changes.

    f′(h) = W h + B_i A_i h    where d(h, k_i) ≤ ε_i and i = argmin d(h, k_i)        else W h

Each entry of the codebook, a cluster of facts with one target, has a block of its own: A_i (r, d_k) begins
random and B_i (d_v, r) with zeros, as in LoRA, and both are trained on the facts of the cluster. The codebook
is GRACE's (`palimpsest.network.codebook`), as in the paper; what is kept, forgotten and replaced:
`palimpsest.editors.remembered`.

Differences from the released code: there the index stands at one layer, the blocks at maps of later ones, and
the last token of a prompt chooses the block for all tokens of its text. Here index and block stand at the
same map, and every token chooses for itself (see `palimpsest.editors.grace`): a token's state may depend on
earlier ones only. The blocks' scale is 1 (``lora_alpha`` = ``lora_r`` in the release), a cluster's key stays
where its first fact is, and a cluster has one block, where the release gives one to every few facts in their
order. As of 2025 EasyEdit's copy adds all blocks at once when it is asked; here only the chosen one is added.
"""

from dataclasses import dataclass as plain_dataclass

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.lessons import Contents
from palimpsest.editors.remembered import RememberedState, RememberingEditor
from palimpsest.network.wraps import Act, AddedBlocks


@plain_dataclass(frozen=True, repr=False)
class MeloState(RememberedState):
    """State of MELO: the facts in memory, each with its key and block."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Melo(RememberingEditor):
    """MELO; the fields are its settings, see `palimpsest.editors.remembered.RememberingEditor`.

    Attributes:
        rank: r of a block; 2 as released.

    Source: Yu et al., AAAI 2024.
    """

    keeps = MeloState
    printed = "MELO"

    rank: int = Field(default=2, ge=1)

    def initial(self, inputs: Tensor, outputs: Tensor, generator: torch.Generator) -> Contents:
        """(A (r, d_in), B (d_v, r)) before training: A uniform within 1/√d_in, B zero."""
        limit = len(inputs) ** -0.5
        uniform = torch.rand(self.rank, len(inputs), generator=generator, dtype=inputs.dtype)
        down = (limit * (2 * uniform - 1)).to(inputs.device)
        return down, torch.zeros(len(outputs), self.rank, dtype=outputs.dtype, device=outputs.device)

    def act(self, contents: Contents) -> Act:
        """The blocks' products are added to the outputs."""
        return AddedBlocks(*contents)
