"""How much of each kind of work a page does with the model, apart from the model's size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Parameters = Mapping[str, Any]

TOGETHER = 100
"""Facts whose values are optimised at once where all are asked for, as in `palimpsest.memory.values`."""


@dataclass(frozen=True)
class Run:
    """One sequence of edits.

    Attributes:
        sequence: row of ``config/sequences.yaml``, or an editor.
        facts: written in it.
        batch: facts of a step.
    """

    sequence: str
    facts: int
    batch: int


@dataclass(frozen=True)
class Work:
    """What a page does with the model.

    Attributes:
        optimised: facts whose values are optimised at once -> facts that are optimised so.
        steps: forward passes of each; None for those on file.
        contexts: sampled prefixes; None for those on file.
        runs: sequences of edits that are solved.
        asked: prompts that are asked, with two objects each.
        read: tokens of text that the whole model reads.
        drawn: tokens that are generated one after the other, of texts side by side.
        sampled: tokens that are generated in all texts.
        tokens: behind each second moment; None for those on file.
        layers: layers with a second moment; None for the edited ones, 0 for none.
        projected: whether projectors of these layers are made.
        by_layer: prompts that are asked again for each layer of the model.
        decomposed: keys -> singular value decompositions of so many.
        exact: multiply-adds in float64 beside those that follow from the rest.
        waits: seconds of small work whose time no size of the model changes, on one core.
        saved: facts of a run whose ledgers are written to disk.
        after: a page that leaves a part of this work in the cache.
        found: that part.
    """

    optimised: Mapping[int, int] = field(default_factory=dict)
    steps: int | None = None
    contexts: int | None = None
    runs: tuple[Run, ...] = ()
    asked: int = 0
    read: int = 0
    drawn: int = 0
    sampled: int = 0
    tokens: int | None = None
    layers: int | None = None
    projected: bool = True
    by_layer: int = 0
    decomposed: Mapping[int, int] = field(default_factory=dict)
    exact: int = 0
    waits: float = 0.0
    saved: int = 0
    after: str = ""
    found: "Work | None" = None

    @property
    def values(self) -> int:
        """Facts whose values are optimised."""
        return sum(self.optimised.values())

    @property
    def uses_model(self) -> bool:
        """Whether the model does anything."""
        return any((self.runs, self.values, self.asked, self.read, self.by_layer, self.layers))


def prompts_of(p: Parameters) -> int:
    """Prompts asked of each fact."""
    return 1 + int(p.get("paraphrases", 2)) + int(p.get("neighbours", 4))


def together(facts: int) -> dict[int, int]:
    """Values of facts that are asked for at once."""
    return {min(facts, TOGETHER): facts} if facts else {}


def stepwise(runs: Sequence[Run], orders: int = 1) -> dict[int, int]:
    """Values that are optimised batch by batch; the first batch of an order is the same in all its runs."""
    found: dict[int, int] = {}
    for run in runs:
        found[run.batch] = found.get(run.batch, 0) + run.facts
    again = max(len(runs) - orders, 0)
    return {size: facts - again * size if len(found) == 1 else facts for size, facts in found.items()}


def joined(*parts: Mapping[int, int]) -> dict[int, int]:
    """Values of several pieces of work."""
    sizes = {size for part in parts for size in part}
    return {size: sum(part.get(size, 0) for part in parts) for size in sorted(sizes)}


def names_of(texts: Sequence[str]) -> list[str]:
    """Sequences of run descriptions such as ``memit_naive each_step 1``."""
    return [text.split()[0] for text in texts]


def values_of(runs: Sequence[Run], orders: int) -> Work:
    """The values of some runs and nothing else."""
    return Work(stepwise(runs, orders), layers=0, projected=False)


def watched(p: Parameters, runs: int) -> tuple[int, int, int]:
    """Prompts, tokens read, and tokens drawn of some runs that are measured after every so many steps."""
    moments = runs * (1 + p["facts"] // p["batch"] // p["every"])
    asked = moments * (3 * p["sample"] + p["choices"])
    return asked, moments * p["tokens"], moments * p["length"]
