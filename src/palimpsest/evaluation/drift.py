"""Drift of an edited model on held-out text, relative to the unedited model: perplexity, agreement, KL.

`reference` runs the unedited model over held-out text once; `drift` compares the current model with it,
position by position. Of the unedited model only the final hidden state at every position is stored, after the
final norm. The head recomputes the next-token distributions from it, a few positions at a time, so that
49 152 probabilities per position are never stored. This requires an unchanged head; edits of MLP weights do
not change it, and a changed head raises an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest import cache
from palimpsest.errors import ModelError, NonFiniteError, ShapeError
from palimpsest.network.activations import run_body
from palimpsest.network.cores import side_by_side
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.tokens import Batch, encode
from palimpsest.resources import held_out_texts
from palimpsest.results.intervals import Interval, bootstrap_mean

LINE = 80
"""Least number of characters of a line of prose; headings and list entries are usually shorter."""

REVISION = 1
"""Part of the cache key; raise it when the same windows give another reference than before."""

_WINDOWS_AT_ONCE = 4
_LOGITS_AT_ONCE = 2**23  # 32 MB in float32; about six such tensors live at once
_SAME = 1e-3  # nats; the same head gives the same NLL up to rounding, which depends on threads and device
_LARGEST = torch.finfo(torch.float32).max / 4  # differences of two such logits are still finite


@dataclass(frozen=True)
class Reference:
    """Windows of text with the unedited model's hidden states and NLL at each position.

    Attributes:
        ids: token ids (w, t); all windows have t tokens.
        hidden: final hidden states after the final norm, at all positions but the last of each window
            (w, t - 1, d_v), in the model's dtype, on its device.
        nll: -log p of tokens 2 to t of each window under the unedited model (w, t - 1), float64, nats.
        model: name of the model.
    """

    ids: Int[Tensor, "w t"]
    hidden: Float[Tensor, "w p d_v"]
    nll: Float[Tensor, "w p"]
    model: str

    @property
    def tokens(self) -> int:
        """Number of predicted tokens: all but the first of each window."""
        return self.nll.numel()


@dataclass(frozen=True)
class Drift:
    """Comparison of the current model with the unedited one over the windows of a Reference.

    Attributes:
        perplexity: exp of the mean NLL per predicted token of the current model; ``inf`` on float64 overflow.
            Range [1, ∞], lower is better. Source: Labyrinth, Eq. 40; the mean leaves out the first token of
            each window.
        perplexity_before: perplexity of the unedited model.
        agreement: share of positions at which both models have the same most probable token. Range [0, 1],
            higher is closer. Source: Labyrinth, Eq. 41.
        kl: mean over positions of KL(p_before ‖ p_now), nats; accurate to about 1e-6. Range [0, ∞).
        tokens: number of predicted tokens, over all windows.
        windows: one row per window with columns window, nll, nll_before, agreement, kl (means over the
            window) and tokens. All windows have equally many tokens, so the mean of a column is the mean over
            tokens, and `palimpsest.results.intervals` can resample windows.
    """

    perplexity: float
    perplexity_before: float
    agreement: float
    kl: float
    tokens: int
    windows: pd.DataFrame

    def ratio(self, seed: int, level: float = 0.95) -> Interval:
        """Ratio of current to unedited perplexity, with a paired bootstrap interval over windows.

        Raises:
            ScoreError: as `palimpsest.results.intervals.bootstrap_mean`, for example for one window.
        """
        log = bootstrap_mean(self.windows["nll"] - self.windows["nll_before"], seed, level)
        mean, low, high = _exp(np.array([log.mean, log.low, log.high]))
        return Interval(mean, low, high, log.n)


def reference(
    model: EditableModel, tokens: int = 2048, window: int = 256, texts: Sequence[str] | None = None
) -> Reference:
    """Run the unedited model over held-out text, for later comparison; read from disk if it was run before.

    Windows are taken in turn: the first of every text, then the second of every text, and so on, so that few
    tokens still cover many subjects. Only whole windows are used; a text shorter than one gives none.

    Args:
        model: the model before any edit.
        tokens: number of tokens to read, rounded down to whole windows.
        window: tokens per sequence. Windows are run independently; the first token of each is not predicted.
        texts: default the embedded Wikipedia articles that are not used for key statistics, without lines of
            fewer than ``LINE`` characters; texts given here are used unchanged.

    Raises:
        ShapeError: if a window has fewer than two tokens, there is less than one window to read, or the texts
            hold too few whole windows.
        NonFiniteError: if the model gives NaN.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    ids = torch.tensor(_windows(model, tokens, window, texts))

    def compute() -> dict[str, Tensor]:
        hidden = _hidden(model, ids)
        nll = _in_parts(model, _nll, [hidden], ids).double().reshape(len(ids), -1)
        _require_numbers(nll, model.name)
        return {"hidden": hidden, "nll": nll}

    key = {"revision": REVISION, "model": fingerprint(model), "ids": ids.tolist()}
    found = cache.tensors("references", key, compute)
    return Reference(ids, found["hidden"].to(model.device), found["nll"], model.name)


def drift(model: EditableModel, reference: Reference) -> Drift:
    """Compare the current model with the unedited one of the reference.

    Collapsed models are measured too: logits are clamped to a quarter of the float32 range, which keeps every
    NLL finite, and perplexity may be ``inf``. Only NaN is an error: it means weights with NaN or infinity, or
    squares of activations beyond float32, which needs weights of about 1e19.

    Raises:
        NonFiniteError: if the model gives NaN.
        ModelError: if the output head differs from that of the reference.
    """
    hidden = _hidden(model, reference.ids)
    if hidden.shape != reference.hidden.shape:
        raise _other_head(model, reference, f"width {hidden.shape[-1]}, not {reference.hidden.shape[-1]}")
    compared = _in_parts(model, _compare, [reference.hidden.to(hidden), hidden], reference.ids)
    before, now, agreement, kl = compared.reshape(*reference.nll.shape, 4).double().unbind(-1)
    off = float((before - reference.nll).abs().max())
    if off > max(_SAME, 32 * torch.finfo(hidden.dtype).eps):
        raise _other_head(model, reference, f"the unedited NLL differs by up to {off:.2g} nats")
    _require_numbers(now, model.name)
    return _summary(before, now, agreement, kl)


def _windows(model: EditableModel, tokens: int, window: int, texts: Sequence[str] | None) -> list[list[int]]:
    wanted = tokens // max(window, 1)
    if window < 2 or wanted < 1:
        raise ShapeError(
            f"{tokens} tokens in windows of {window} hold no prediction; "
            "a window needs two tokens or more, and tokens at least one window"
        )
    own = [_prose(text) for text in held_out_texts()] if texts is None else texts
    cut = (_whole(encode(model.tokenizer, text), window) for text in own)
    found = [ids for ids in chain(*zip_longest(*cut)) if ids]
    if len(found) < wanted:
        raise ShapeError(
            f"the texts hold {len(found)} whole windows of {window} tokens, {wanted} were asked for; "
            "ask for fewer tokens or shorter windows"
        )
    return found[:wanted]


def _whole(ids: list[int], window: int) -> list[list[int]]:
    return [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]


def _prose(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if len(line) >= LINE)


def _hidden(model: EditableModel, ids: Int[Tensor, "w t"]) -> Float[Tensor, "w p d_v"]:
    """Inputs of the head at all positions but the last of each window."""

    def run(some: Int[Tensor, "b t"]) -> Tensor:
        batch = Batch(some, torch.ones_like(some, dtype=torch.bool)).to(model.device)
        with torch.no_grad():
            return run_body(model, batch, use_cache=False).last_hidden_state[:, :-1]

    return torch.cat(side_by_side(run, ids.split(_WINDOWS_AT_ONCE), model.device))


def _in_parts(
    model: EditableModel,
    measure: Callable[..., Tensor],
    states: Sequence[Float[Tensor, "w p d_v"]],
    ids: Int[Tensor, "w t"],
) -> Float[Tensor, "c ..."]:
    """What ``measure`` makes of logits (c, vocabulary) of each of the states and of the next tokens (c,).

    It is called on a few positions at a time; its results are joined, on the CPU.
    """
    head = model.net.get_submodule(model.family.head)
    at_once = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
    flat = [state.flatten(0, 1).split(at_once) for state in states]
    following = ids[:, 1:].flatten().to(model.device).split(at_once)

    def run(given: tuple[Tensor, ...]) -> Tensor:
        *parts, token = given
        with torch.no_grad():
            logits = [logits_of(model, part).float().clamp(-_LARGEST, _LARGEST) for part in parts]
            return measure(*logits, token).cpu()

    return torch.cat(side_by_side(run, list(zip(*flat, following, strict=True)), model.device))


def _nll(logits: Float[Tensor, "c v"], token: Int[Tensor, " c"]) -> Float[Tensor, " c"]:
    return -logits.log_softmax(1).gather(1, token[:, None])[:, 0]


def _compare(
    before: Float[Tensor, "c v"], now: Float[Tensor, "c v"], token: Int[Tensor, " c"]
) -> Float[Tensor, "c 4"]:
    """NLL before, NLL now, agreement and KL of c positions."""
    same = (before.argmax(1) == now.argmax(1)).float()
    log_p, log_q = before.log_softmax(1), now.log_softmax(1)
    nll = [-logs.gather(1, token[:, None])[:, 0] for logs in (log_p, log_q)]
    kl = (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0)  # negative by rounding only
    return torch.stack([*nll, same, kl], 1)


def _summary(
    before: Float[Tensor, "w p"],
    now: Float[Tensor, "w p"],
    agreement: Float[Tensor, "w p"],
    kl: Float[Tensor, "w p"],
) -> Drift:
    columns = {"nll": now, "nll_before": before, "agreement": agreement, "kl": kl}
    means = {name: values.mean(1).numpy() for name, values in columns.items()}
    windows = pd.DataFrame({"window": range(len(now)), **means, "tokens": now.shape[1]})
    perplexity, perplexity_before = _exp(np.array([float(now.mean()), float(before.mean())]))
    return Drift(
        perplexity, perplexity_before, float(agreement.mean()), float(kl.mean()), now.numel(), windows
    )


def _exp(values: np.ndarray) -> list[float]:
    with np.errstate(over="ignore"):  # a perplexity of inf is a valid result
        return [float(value) for value in np.exp(values)]


def _require_numbers(nll: Float[Tensor, "w p"], name: str) -> None:
    bad = nll.isnan().any(1).nonzero()[:, 0].tolist()
    if bad:
        raise NonFiniteError(
            f"{name} gives NaN in {len(bad)} of {len(nll)} windows of text, first {bad[0]}: "
            "its weights hold NaN or infinity or its activations overflow; undo the last edit, weaken it, "
            "or load the model in a wider dtype"
        )


def _other_head(model: EditableModel, reference: Reference, how: str) -> ModelError:
    return ModelError(
        f"the output head of {model.name} is not the one the reference was made with ({how}; reference of "
        f"{reference.model}); make a reference of the unedited model you compare with"
    )
