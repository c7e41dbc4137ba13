"""Losses read from last hidden states, and their gradient, a few states at a time.

Log-probabilities over the vocabulary are the largest tensors of an optimisation of values. They are made for
HEAD_ROWS states at a time, whose gradient is taken before those of the next are made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.network.head import final_states, logits_of
from palimpsest.network.model import EditableModel

HEAD_ROWS = 128


@dataclass(frozen=True)
class Readout:
    """Losses of l labels and a KL rows.

    Attributes:
        nll: of each label, nats (l,).
        kl: divergence of each KL row, nats (a,).
        before: log-probabilities of the KL rows without an edit (a, vocabulary).
        pull: gradient of Σ weight·nll + kl weight·Σ kl with respect to the states (l + a, d_v), or None.
    """

    nll: Float[Tensor, " l"]
    kl: Float[Tensor, " a"]
    before: Float[Tensor, "a vocabulary"]
    pull: Float[Tensor, "r d_v"] | None


@dataclass(frozen=True)
class Divergence:
    """How the KL term is measured.

    Attributes:
        weight: of the term in the loss.
        over: see `palimpsest.memory.settings.TargetSettings`.
        before: log-probabilities without an edit (a, vocabulary); None if δ is zero, where the term and its
            gradient vanish.
    """

    weight: float
    over: Literal["edited", "unedited"]
    before: Float[Tensor, "a vocabulary"] | None


def read_out(
    model: EditableModel,
    states: Float[Tensor, "r d_v"],
    labels: Int[Tensor, " l"],
    weights: Float[Tensor, " l"],
    kl: Divergence,
    pull: bool,
) -> Readout:
    """Losses at last hidden states.

    Args:
        model: whose final norm and head read the states.
        states: of the l labels, then of the a KL rows, r = l + a.
        labels: target ids.
        weights: of the labels' losses, in the gradient only.
        kl: the KL term.
        pull: whether to take the gradient.
    """
    nll, divergences, befores, pulls = [], [], [], []
    with torch.set_grad_enabled(pull):
        for at, piece in _pieces(states[: len(labels)], pull):
            # (k, vocabulary) gathered at (k, 1) -> (k,)
            loss = -_log_probabilities(model, piece).gather(1, labels[at, None])[:, 0]
            nll.append(loss.detach())
            pulls.append(_gradient((loss * weights[at]).sum(), piece) if pull else piece)
        for at, piece in _pieces(states[len(labels) :], pull and kl.before is not None):
            log_p = _log_probabilities(model, piece)  # (k, vocabulary)
            before = log_p.detach() if kl.before is None else kl.before[at]
            loss = divergence(log_p, before, kl.over)
            divergences.append(loss.detach())
            befores.append(before)
            moved = pull and kl.before is not None
            pulls.append(_gradient((kl.weight * loss).sum(), piece) if moved else torch.zeros_like(piece))
    return Readout(
        torch.cat(nll), torch.cat(divergences), torch.cat(befores), torch.cat(pulls) if pull else None
    )


def divergence(
    log_p: Float[Tensor, "a v"], before: Float[Tensor, "a v"], over: Literal["edited", "unedited"]
) -> Float[Tensor, " a"]:
    """KL(p‖p₀) or, over the unedited distribution, KL(p₀‖p), in nats (a,), from log-probabilities."""
    first, second = (log_p, before) if over == "edited" else (before, log_p)
    return (first.exp() * (first - second)).sum(1)


def _pieces(states: Tensor, wanted: bool) -> Iterator[tuple[slice, Tensor]]:
    """States cut loose from their graph, HEAD_ROWS at a time."""
    for start in range(0, len(states), HEAD_ROWS):
        at = slice(start, start + HEAD_ROWS)
        yield at, states[at].detach().requires_grad_(wanted)


def _gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of)
    return found


def _log_probabilities(model: EditableModel, hidden: Float[Tensor, "k d_v"]) -> Float[Tensor, "k vocabulary"]:
    return logits_of(model, final_states(model, hidden)).float().log_softmax(1)
