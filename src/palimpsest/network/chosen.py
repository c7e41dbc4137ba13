"""An edit that is a text before some prompts: the nearest of its texts, where that is near enough.

Nearness is the cosine of sentence embeddings (`palimpsest.network.embedder`). A prompt to which no text is
near enough is read as by the unedited model, token by token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.cache import digest
from palimpsest.errors import ShapeError
from palimpsest.network.model import EditableModel
from palimpsest.network.wraps import Wrap

Embed = Callable[[Sequence[str]], Float64[Tensor, "n d"]]
"""Texts -> one embedding each (n, d), float64."""


@dataclass(frozen=True, repr=False, eq=False)
class ChosenContext(Wrap):
    """Edit that places one of its texts before a prompt, or none.

    Attributes:
        texts: m texts, each as it stands before a prompt, with its last space or line end.
        vectors: embedding of what each text is chosen by (m, d).
        threshold: least cosine at which a text is chosen, in (0, 1].
        embed: embeds a prompt, with no context before it.
        kept: prompts that were asked, with the index of their text; grows while the edit is in force.
    """

    reads: ClassVar[bool] = True

    texts: tuple[str, ...]
    vectors: Float64[Tensor, "m d"]
    threshold: float
    embed: Any
    kept: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.vectors):
            raise ShapeError(
                f"{len(self.texts)} texts have {len(self.vectors)} embeddings; give one for each text"
            )
        if not 0 < self.threshold <= 1:
            raise ShapeError(
                f"the threshold of a cosine is {self.threshold:g}; give one in (0, 1], such as "
                "palimpsest.editors.serac.calibrated_threshold finds"
            )

    @property
    def digest(self) -> str:
        """Hash of texts, embeddings and threshold."""
        bits = self.vectors.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return digest([list(self.texts), sha256(bits).hexdigest(), self.threshold])

    @property
    def what(self) -> str:
        """A text before some prompts."""
        return "a text before some prompts"

    @contextmanager
    def in_force(self, model: EditableModel) -> Iterator[None]:
        """Nothing to do: the model asks `before`."""
        yield

    def before(self, prompt: str) -> str:
        """The text chosen for a prompt, or an empty one."""
        chosen = self.chosen(prompt)
        return "" if chosen < 0 else self.texts[chosen]

    def chosen(self, prompt: str) -> int:
        """Index of the text chosen for a prompt, −1 for none. Of equally near ones the later counts."""
        if prompt not in self.kept:
            self.kept[prompt] = self._nearest(prompt)
        return self.kept[prompt]

    def near(self, prompt: str) -> Float64[Tensor, " m"]:
        """How near each text is to a prompt, on the scale of the threshold."""
        return cosines(self.embed([prompt]), self.vectors)[0]

    def _nearest(self, prompt: str) -> int:
        if not self.texts:
            return -1
        near = self.near(prompt)
        best = float(near.max())
        return int((near == best).nonzero()[-1]) if best >= self.threshold else -1

    def shown(self) -> dict[str, object]:
        """Method, facts, texts and threshold; and how to use it."""
        return {
            **self.told(),
            "texts": len(self.texts),
            "threshold": f"{self.threshold:.3g}",
            "use": "installed(model, edit) for a block",
        }


def cosines(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """Cosine of each row with each of the others, float64; 0 where a row has norm 0."""
    first, second = (torch.nn.functional.normalize(part.double(), dim=1) for part in (one, other))
    return first @ second.T
