"""Causal tracing: which states of a network carry a fact (Meng et al. 2022, ROME, Sec. 2 and App. B).

A prompt is run three times. The clean run gives the states, and the probability of the answer. The corrupted
run has Gaussian noise on the embeddings of the subject's tokens, so that the answer is mostly lost. In each
restored run one token gets back a clean output at one layer, or at a window of layers, and what that returns
of the answer's probability is the indirect effect of those states.

Attention is causal, so all that stands before the subject is as in the clean run: it is read once, and rows
begin at the subject. A restored run begins at its first restored layer and at its token, from the states of
the corrupted run. The runs for all tokens and draws of the noise are computed together.

Differences from the released code: the probability is that of the whole answer, the product over its tokens,
and the spread of embeddings is that of the subjects' tokens as they stand in their prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from palimpsest.cache import digest
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.statements import Statement, logits, statements, traceable
from palimpsest.evaluation.traced import CausalTrace, role_of, window_around
from palimpsest.network.activations import capture, read_once, run_layers
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.packed import added_mask
from palimpsest.network.restoring import KINDS, module_of, put_back, recorded
from palimpsest.network.tokens import Batch
from palimpsest.types import EditRequest, EvalCase, plain

QUIET = 2.0
"""Seconds before a progress bar appears."""

SHARE = 0.2
"""Window by default, as a share of the layers: 10 of GPT2-XL's 48, as published."""


def trace(
    model: EditableModel,
    facts: str | Sequence[EvalCase | EditRequest],
    subject: str = "",
    *,
    kinds: Sequence[str] = KINDS,
    window: int | None = None,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    every: int = 1,
    most: int | None = None,
    rows: int = 128,
) -> CausalTrace:
    """Trace facts that a model knows: how much each restored state returns of the answer's probability.

    Args:
        model: the model, edited or not; it is left as it was.
        facts: a prompt that names ``subject``, answered by the model's next token; or facts, whose answer is
            the true object, or the target where there is none.
        subject: of a prompt that is given as a text.
        kinds: of `palimpsest.network.restoring.KINDS`. A state is restored at one layer, outputs of MLP and
            attention in a window of layers.
        window: number of layers; a fifth of the model's by default.
        noise: standard deviation of the noise, in standard deviations of the subjects' embeddings.
        samples: draws of the noise for each fact.
        seed: of the noise, which for a fact depends on no other fact, and of the bootstrap.
        every: restore at the first layer and at every so many after it.
        most: trace the first so many facts that can be traced; all by default.
        rows: restored runs that are computed together; affects only speed and memory.

    Returns:
        Effects of each fact, kind, layer and token. Facts that the model does not answer rightly, and those
        whose subject is the first token of the input, are left out and named.

    Raises:
        UnknownNameError: if a kind does not exist.
        RequestError: if a prompt does not name its subject, or an answer gives no token.
        ScoreError: if a number is out of range, ids repeat, a fact is longer than the model's context, or no
            fact is left.
        ModelError: if the model's attention cannot be told from its other modules.
        NonFiniteError: if the model gives NaN or infinity.
    """
    wide = _window(model, window)
    _check(model, kinds, noise, {"samples": samples, "every": every, "most": most, "rows": rows})
    given = statements(model, facts, subject)
    spread = embedding_spread(model, given)
    kept, left_out = traceable(model, given, most)
    layers = range(0, model.n_layers, every)
    tables: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    with tqdm(total=len(kept) * len(kinds) * len(layers), desc="tracing", delay=QUIET, leave=False) as bar:
        for one in kept:
            line = _Line(model, one, kinds, noise_of(model, one, samples, seed, noise * spread))
            tables[0].append(line.told())
            for kind, layer in product(kinds, layers):
                tables[1].extend(line.effects(kind, layer, 1 if kind == "state" else wide, rows))
                bar.update()
    told = (float(noise), spread, samples, seed)
    done, effects = map(pd.DataFrame, tables)
    return CausalTrace(model.name, model.n_layers, wide, *told, done, left_out, effects)


def embedding_spread(model: EditableModel, facts: Sequence[Statement]) -> float:
    """Standard deviation of the embeddings of all subjects' tokens, over tokens and dimensions together."""
    ids = torch.tensor([token for one in facts for token in one.subject], device=model.device)
    return float(model.net.get_input_embeddings().weight[ids].float().std())


def noise_of(
    model: EditableModel, fact: Statement, samples: int, seed: int, deviation: float
) -> Float[Tensor, "s m d_v"]:
    """Noise on the m tokens of a fact's subject, in float32 on the CPU; the same on every device."""
    generator = torch.Generator().manual_seed(int(digest([seed, list(fact.ids)])[:15], 16))
    width = model.net.get_input_embeddings().weight.shape[1]
    return deviation * torch.randn(samples, len(fact.subject), width, generator=generator)


def _window(model: EditableModel, window: int | None) -> int:
    """The window asked for, or the one by default, if the model has as many layers."""
    wide = max(1, round(SHARE * model.n_layers)) if window is None else window
    if not 1 <= wide <= model.n_layers:
        raise ScoreError(
            f"a window of {wide} layers does not fit into {model.name}, which has {model.n_layers}; choose 1 "
            f"to {model.n_layers}"
        )
    return wide


def _check(
    model: EditableModel, kinds: Sequence[str], noise: float, counts: Mapping[str, int | None]
) -> None:
    for kind in kinds:
        module_of(model, kind, 0)
    if not kinds or len({*kinds}) != len(kinds):
        raise ScoreError(f"kinds are {list(kinds)}; give one or more of {', '.join(KINDS)}, each once")
    if not 0 < noise < float("inf"):
        raise ScoreError(f"noise is {noise}; it must be finite and above 0 (3 in the paper)")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ScoreError(f"{name} is {value}; it must be 1 or more")


class _Line:
    """One fact from its subject on, behind what stands before it.

    A restored run differs from the corrupted one only from its token on. So the runs for several tokens are
    branches of one row, each of the t − i positions from its token i on: they attend to what stands before
    the subject, to positions of the corrupted run before i, and to themselves.

    Attributes:
        clean: kind and layer -> outputs of the clean run at all t positions (t, d_v).
        entering: layer -> its input in the corrupted run (s, t, d_v).
        seen: attention keys and values of the corrupted run.
        corrupted: probability of the answer in the corrupted run, for each draw (s,).
    """

    def __init__(
        self, model: EditableModel, fact: Statement, kinds: Sequence[str], noise: Float[Tensor, "s m d_v"]
    ) -> None:
        self.model, self.fact = model, fact
        ids = [*fact.ids, *fact.answer[:-1]]
        self.length = len(ids) - fact.first
        whole, start = torch.tensor([ids], device=model.device), Site(0, "input")
        embedded = capture(model, Batch(whole, torch.ones_like(whole).bool()), [start])[start]
        embedded = embedded[:, fact.first :]  # (1, t, d_v)
        before = read_once(model, ids[: fact.first], 1)
        own = torch.arange(self.length, device=model.device)
        causal = torch.ones(self.length, self.length, dtype=torch.bool, device=model.device).tril()
        with recorded(model, kinds) as found:
            self.p_clean = float(self._run(embedded, 0, own, causal, deepcopy(before))[0, 0])
            self.clean = {place: states[0] for place, states in found.items()}
        noised = embedded.repeat(len(noise), 1, 1)
        noised[:, : noise.shape[1]] += noise.to(embedded)
        before.batch_repeat_interleave(len(noise))
        self.seen = before  # to which the pass adds its own
        with recorded(model, ["state"]) as found:
            self.corrupted = self._run(noised, 0, own, causal, self.seen)[:, 0]
            self.entering = {0: noised} | {layer + 1: states for (_, layer), states in found.items()}

    def _run(
        self,
        hidden: Float[Tensor, "s q d_v"],
        first: int,
        at: Int[Tensor, " q"],
        allowed: Bool[Tensor, "q u"],
        past: Any,
    ) -> Float[Tensor, "s b"]:
        """Probability of the answer at the end of each of b branches, float64 on the CPU.

        Args:
            hidden: states that enter layer ``first``.
            first: the layer.
            at: position of each state, counted from the subject; a branch ends with the last one.
            allowed: which of u = positions in ``past`` behind the prefix, and states, each state attends to.
            past: attention keys and values of earlier positions; the pass adds to it.
        """
        model, rows, prefix = self.model, len(hidden), self.fact.first
        with torch.no_grad():
            hidden = run_layers(
                model,
                range(first, model.n_layers),
                hidden,
                (prefix + at).expand(rows, -1),
                added_mask(allowed[None], hidden.dtype, prefix).expand(rows, -1, -1, -1),
                past,
            )
            # the answer's tokens are predicted at the last positions of every branch
            ends = (at == self.length - 1).nonzero() - torch.arange(len(self.fact.answer), device=at.device)
            log_p = logits(model, hidden[:, ends.flip(1)]).log_softmax(-1)  # (s, b, a, v)
        wanted = torch.tensor(self.fact.answer, device=at.device).expand(log_p.shape[:3])
        found = log_p.gather(3, wanted[..., None])[..., 0].double().sum(2).exp().cpu()
        if not torch.isfinite(found).all():
            raise NonFiniteError(
                f"{model.name} gives NaN or infinity after {self.fact.request.text!r}: load it in a wider "
                "dtype, or take less noise"
            )
        return found

    def effects(self, kind: str, layer: int, window: int, rows: int) -> Iterator[dict[str, Any]]:
        """Indirect effect at each token of the prompt of restoring a kind around a layer, over all draws."""
        layers = window_around(layer, window, self.model.n_layers)
        tokens = len(self.fact.ids) - self.fact.first
        parts = torch.arange(tokens).split(max(1, rows // len(self.corrupted)))
        found = torch.cat([self._restored(kind, layers, part.tolist()) for part in parts], 1)
        last = self.fact.last - self.fact.first
        for token, effect in enumerate((found - self.corrupted[:, None]).mean(0).tolist()):
            at = self.fact.first + token
            yield {
                "case": self.fact.id,
                "kind": kind,
                "layer": layer,
                "token": at,
                "text": str(self.model.tokenizer.decode([self.fact.ids[at]])),
                "role": role_of(token, 0, last, tokens),
                "effect": effect,
            }

    def _restored(self, kind: str, layers: range, tokens: list[int]) -> Float[Tensor, "s b"]:
        """Probability of the answer with each of b tokens restored, under each draw of the noise."""
        device, whole = self.model.device, torch.arange(self.length)
        at = torch.cat([whole[token:] for token in tokens]).to(device)
        branch = torch.cat([torch.full((self.length - token,), token) for token in tokens]).to(device)
        earlier = whole.to(device) < branch[:, None]  # (q, t), of the corrupted run
        own = (branch[:, None] == branch) & (at <= at[:, None])  # (q, q)
        allowed, starts = torch.cat([earlier, own], 1), (at == branch).nonzero()[:, 0]
        clean = {layer: self.clean[kind, layer][at[starts]] for layer in layers}
        past = deepcopy(self.seen)
        if kind == "state":  # nothing else of the layer remains at that token
            first = layers[-1] + 1
            hidden = self.entering[first][:, at]
            hidden[:, starts] = clean[layers[-1]]
            return self._run(hidden, first, at, allowed, past)
        with put_back(self.model, kind, clean, starts):
            return self._run(self.entering[layers[0]][:, at], layers[0], at, allowed, past)

    def told(self) -> dict[str, Any]:
        """The fact and its probabilities."""
        p = float(self.corrupted.mean())
        request = self.fact.request
        told = {"case": self.fact.id, "prompt": request.text, "subject": request.subject}
        odds = {"clean": self.p_clean, "corrupted": p, "total": self.p_clean - p}
        return told | {"answer": plain(self.fact.text)} | odds
