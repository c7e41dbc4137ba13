"""Inputs that the stages share: sizes, a model, facts, contexts and text; at full size and at a tiny one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.cache import empty
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors.settings import editor_settings
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import EditableModel, load
from palimpsest.network.tokens import token_windows
from palimpsest.paths import cache_dir
from palimpsest.resources import statistics_texts
from palimpsest.types import EvalCase

MODEL = "smollm2-135m"
SEED = 0
WINDOW = 256
"""Tokens of a text window, as in `palimpsest.memory.moments.key_statistics`."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all stages; what begins with ``twin`` is the part that the twin is given.

    Attributes:
        facts, twin_facts: requests of the values.
        keyed, twin_keyed: requests whose keys are read.
        contexts: prefixes, the empty one included.
        steps: of the value optimisation.
        moment_layers: layers of the second moments.
        tokens, twin_tokens: of the second moments.
        null_space, large_null_space: widths d_k of the spectra, and `protected` the directions above the cut.
        layer: (d_v, d_k) of the ledger and of the admission; `large_layer` of one aligned step.
        held, new: facts in the ledger, and facts of the aligned step.
        pool, twin_pool, admitted_facts: directions to admit, and facts of that problem.
        scored, twin_scored: cases of the evaluation.
        batch, twin_batch, batches: facts in a batch and batches of the sequence from end to end.
        written, remembered: facts of the command ``palimpsest edit``, for its time and for its memory.
    """

    facts: int = 40
    twin_facts: int = 4
    keyed: int = 40
    twin_keyed: int = 8
    contexts: int = 6
    steps: int = 20
    moment_layers: tuple[int, ...] = (4, 5, 6, 7, 8)
    tokens: int = 50_000
    twin_tokens: int = 4_000
    null_space: int = 4096
    large_null_space: int = 14_336
    protected: int = 40
    layer: tuple[int, int] = (576, 1536)
    large_layer: tuple[int, int] = (4096, 14_336)
    held: int = 2000
    new: int = 100
    pool: int = 200
    twin_pool: int = 5
    admitted_facts: int = 120
    scored: int = 100
    twin_scored: int = 10
    batch: int = 10
    twin_batch: int = 2
    batches: int = 4
    written: int = 20
    remembered: int = 50


FULL = Sizes()
QUICK = Sizes(
    facts=3,
    twin_facts=2,
    keyed=3,
    twin_keyed=2,
    contexts=2,
    steps=4,
    moment_layers=(0, 1),
    tokens=200,
    twin_tokens=64,
    null_space=48,
    large_null_space=64,
    protected=8,
    layer=(16, 48),
    large_layer=(24, 64),
    held=20,
    new=4,
    pool=6,
    twin_pool=2,
    admitted_facts=7,
    scored=2,
    twin_scored=1,
    batch=2,
    twin_batch=1,
    batches=2,
    written=2,
    remembered=2,
)


@dataclass(frozen=True)
class Inputs:
    """What the stages read.

    Attributes:
        sizes: of all stages.
        model: float32, on the CPU.
        layers: edited layers, those on file for the model.
        targets: settings of the values on file, without early stop and with the steps of ``sizes``.
        contexts: prefixes, the empty one first.
        cases: CounterFact-style cases with two paraphrases and up to ten neighbours each.
        texts: of the second moments.
        window: tokens of a text window.
        model_source: name or folder from which ``model`` is loaded; empty where it is only in memory.
    """

    sizes: Sizes
    model: EditableModel
    layers: tuple[int, ...]
    targets: TargetSettings
    contexts: tuple[str, ...]
    cases: tuple[EvalCase, ...]
    texts: tuple[str, ...]
    window: int
    model_source: str

    def windows(self, tokens: int) -> list[list[int]]:
        """Texts cut into windows of token ids, this many ids in all."""
        return token_windows(self.model.tokenizer, self.texts, tokens, self.window)


@cache
def full() -> Inputs:
    """The embedded model with its settings on file, at the sizes of the bars."""
    model, settings = load(MODEL), editor_settings(MODEL, "alphaedit")
    targets = TargetSettings(**settings["targets"] | {"steps": FULL.steps, "stop_below": 0.0})
    return Inputs(
        sizes=FULL,
        model=model,
        layers=tuple(settings["layers"]),
        targets=targets,
        contexts=sample_contexts(model, FULL.contexts - 1),
        cases=_cases(max(FULL.scored, FULL.facts)),
        texts=tuple(statistics_texts()),
        window=WINDOW,
        model_source=MODEL,
    )


@cache
def quick() -> Inputs:
    """A tiny random model of the Llama family, which needs no download, and sizes of a few seconds."""
    from tests.tiny import SENTENCES, tiny_model

    return Inputs(
        sizes=QUICK,
        model=tiny_model("llama"),
        layers=(1, 2),
        # A short clamp and a heavy divergence, so that every term of the loss shows in the values.
        targets=TargetSettings(steps=QUICK.steps, lr=0.2, clamp=0.03, kl=1.0, stop_below=0.0),
        contexts=("", "Anna Berg plays the piano. "),
        cases=_cases(QUICK.scored + QUICK.batch * QUICK.batches),
        texts=tuple(case.request.text for case in _cases(40)) + tuple(SENTENCES),
        window=32,
        model_source="",
    )


def _cases(count: int) -> tuple[EvalCase, ...]:
    """Cases with 13 prompts: the request, two paraphrases and ten neighbours."""
    return tuple(
        case.limited(2, 10) for case in counterfact_style(load_facts(), count, SEED, min_neighbours=10)
    )


RESULTS = ("targets", "answers")
"""Folders of the cache with optimised values, and with answers of unedited models."""


@contextmanager
def without_results() -> Iterator[Path]:
    """A temporary cache with all that the present one holds except RESULTS, to time how these are made."""
    before = cache_dir()
    with empty() as folder:
        for part in before.iterdir() if before.is_dir() else ():
            if part.name not in RESULTS:
                os.symlink(part, folder / part.name)
        yield folder


def normal(seed: int, *shape: int) -> Tensor:
    """Normal numbers in float64, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class PowerLaw:
    """A second moment C₀ with eigenvalues c·i^(−1.5) in a basis that is known: reflections of the unit basis.

    Attributes:
        moment: C₀ (d_k, d_k), float64.
        threshold: between eigenvalue number ``protected`` and the next, on the logarithmic scale.
        leading: the protected eigenvectors (d_k, protected).
    """

    moment: Tensor
    threshold: float
    leading: Tensor


def power_law(d_k: int, protected: int, exponent: float = 1.5) -> PowerLaw:
    """Make a `PowerLaw` with AlphaEdit's published threshold, 2e-2."""
    threshold = 2e-2
    index = torch.arange(1, d_k + 1, dtype=torch.float64)
    spectrum = threshold * (index / (protected * (protected + 1)) ** 0.5) ** -exponent
    moment, leading = torch.diag(spectrum), torch.eye(d_k, protected, dtype=torch.float64)
    for v in _mirrors(d_k):
        # (I − 2vvᵀ) A (I − 2vvᵀ) = A − v wᵀ − w vᵀ, in place because A may be larger than a gigabyte.
        w = 2 * (moment @ v)
        w = w - v * (v @ w)
        moment.addr_(v, w, alpha=-1).addr_(w, v, alpha=-1)
        leading.addr_(v, v @ leading, alpha=-2)
    return PowerLaw(moment, threshold, leading)


def _mirrors(d_k: int, count: int = 8) -> Sequence[Tensor]:
    drawn = normal(SEED, count, d_k)
    return list(drawn / drawn.norm(dim=1, keepdim=True))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
