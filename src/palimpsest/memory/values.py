"""Optimised values: hidden states that make the model predict the new object, for many requests at once.

For each request a vector δ is added to one layer's output at the subject's last token, in every context, and
Adam minimises the loss of the new object. Everything that δ cannot change is computed once
(`palimpsest.memory.upper_layers`).

Loss of one request (as in the released MEMIT and AlphaEdit code; every term is a setting):

    mean over contexts of NLL(target)/tokens + kl·KL(p‖p₀) at "{subject} is a" + decay·‖δ‖/‖h₀‖²
        + β·Σ‖Px‖² over protected activations x, where settings name some (`PreservingTargets`)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.algebra.projector import line_energy
from palimpsest.errors import NonFiniteError, ScoreError, SiteError, UnknownNameError
from palimpsest.memory.keys import last_states, subject_keys
from palimpsest.memory.settings import PreservingTargets, TargetSettings
from palimpsest.memory.upper_layers import Rows, UpperLayers
from palimpsest.network.model import EditableModel, Site, fingerprint
from palimpsest.types import SLOT, EditRequest

REVISION = 2
"""Part of the cache key; raise it when the same settings give other values than before."""

TERM = "term "
"""Prefix of the names of loss terms in the cache."""


@dataclass(frozen=True)
class Targets:
    """Optimised values of n facts.

    Attributes:
        values: h₀ + δ (d_v, n), the state each subject should reach.
        deltas: δ (d_v, n).
        losses: total loss (n, steps); NaN after a request has finished.
        terms: parts of the total, before weights (n, steps): ``nll``, ``kl``, ``decay`` and
            ``preservation`` (L_kp). Stored for `PreservingTargets`, else empty.
    """

    values: Float[Tensor, "d_v n"]
    deltas: Float[Tensor, "d_v n"]
    losses: Float[Tensor, "n steps"]
    terms: Mapping[str, Float[Tensor, "n steps"]] = field(default_factory=dict)

    @property
    def initial(self) -> Float[Tensor, "d_v n"]:
        """Unedited states h₀ (d_v, n)."""
        return self.values - self.deltas

    def converged(self, below: float = 0.05, of: str = "total") -> Float[Tensor, " n"]:
        """Number of updates until a loss first fell below a threshold (n,), float64; NaN if it never did.

        Args:
            below: threshold; published: 0.05.
            of: the ``total`` loss (published: with β·L_kp in it), or one of the terms.

        Raises:
            UnknownNameError: if that term was not stored.
            ScoreError: if a request finished before its last step with the loss above the threshold, so that
                the step at which it converges is unknown.

        Source: Diagnosing Hidden Instabilities, App. A.3 and Fig. 5.
        """
        traces = {"total": self.losses, **self.terms}
        if of not in traces:
            raise UnknownNameError("loss", of, list(traces))
        losses = traces[of]
        hit = losses < below  # (n, steps)
        cut = ~hit.any(1) & losses.isnan().any(1)  # (n,)
        if cut.any():
            row = int(cut.nonzero()[0, 0])
            raise ScoreError(
                f"fact {row} was done after {int(losses[row].isfinite().sum())} steps with its {of} loss at "
                f"{float(losses[row][losses[row].isfinite()][-1]):.3g}, above {below}; optimise with "
                f"stop_below={below} or less"
            )
        first = hit.double().argmax(1).double()  # (n,)
        return torch.where(hit.any(1), first, torch.nan)

    def of(self, columns: Sequence[int] | Int[Tensor, " k"]) -> "Targets":
        """Values of some facts, in the given order."""
        at = torch.as_tensor(columns, dtype=torch.long)
        terms = {name: trace[at] for name, trace in self.terms.items()}
        return Targets(self.values[:, at], self.deltas[:, at], self.losses[at], terms)


def optimise_targets(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    settings: TargetSettings,
    contexts: Sequence[str] = ("",),
    chunk: int = 16,
) -> Targets:
    """Optimise the values of many requests; read from disk if computed before on the same weights.

    Args:
        model: the model as it is now.
        requests: n requests; apart from rounding they do not influence each other.
        layer: layer whose output is moved.
        settings: losses and steps.
        contexts: prefixes, the empty one first; h₀ is read in the first.
        chunk: requests optimised together; changes memory, and results only by rounding.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; names the request.
        SiteError: if a layer does not exist, or the loss layer lies below the edited one.
    """
    last = settings.loss_layer if settings.loss_layer is not None else model.n_layers - 1
    for needed in (layer, last):
        model.layer(needed)
    if last < layer:
        raise SiteError(f"loss_layer {last} lies below the edited layer {layer}; raise it or leave it out")
    asked = [(r.prompt, r.subject, r.target) for r in requests]
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "requests": asked,
        "layer": layer,
        "contexts": list(contexts),
        "settings": asdict(settings),
    }

    def compute() -> dict[str, Tensor]:
        # Requests with similarly long text after the subject go together: the widest row sets the width.
        behind = [len(r.prompt.split(SLOT)[1]) + len(r.target) for r in requests]
        order = sorted(range(len(requests)), key=behind.__getitem__)
        parts, bar = [], tqdm(total=len(requests), desc="optimising values", unit="fact")
        for start in range(0, len(order), chunk):
            some = [requests[i] for i in order[start : start + chunk]]
            parts.append(_optimise_chunk(model, some, layer, last, settings, contexts))
            bar.update(len(some))
        bar.close()
        back = torch.argsort(torch.tensor(order))  # (n,), the inverse permutation
        return {name: torch.cat([p[name] for p in parts])[back] for name in parts[0]}

    found = cache.tensors("targets", key, compute)
    found = {name: tensor.to(model.device) for name, tensor in found.items()}
    # Stored as rows (n, d_v), returned as columns (d_v, n); losses stay (n, steps).
    values, deltas, losses = (found["initial"] + found["delta"]).T, found["delta"].T, found["losses"]
    terms = {name.removeprefix(TERM): t for name, t in found.items() if name.startswith(TERM)}
    return Targets(values, deltas, losses, terms)


def _optimise_chunk(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    last: int,
    settings: TargetSettings,
    contexts: Sequence[str],
) -> dict[str, Tensor]:
    rows = Rows(model, requests, contexts)
    upper = UpperLayers(model, rows, layer, last, settings.reference)
    initial = upper.initial  # (n, d_v), and so are delta and final
    limit = settings.clamp * initial.norm(dim=1, keepdim=True)  # (n, 1)
    delta = torch.zeros_like(initial, requires_grad=True)
    final = torch.zeros_like(initial)
    protected = None
    if isinstance(settings, PreservingTargets):
        protected = _Protected(model, requests, layer, settings, contexts, initial)
    losses = torch.full((len(requests), settings.steps), float("nan"))  # (n, steps)
    terms: dict[str, Tensor] = {}
    adam = torch.optim.Adam([delta], lr=settings.lr)
    active = torch.arange(len(requests), device=model.device)
    before = None  # log-probabilities of the KL prompt without an edit (n, vocabulary)
    for step in range(settings.steps):
        nll, log_p = upper.losses(delta, active)  # (a,), (a, vocabulary)
        before = log_p.detach() if before is None else before
        kl = _divergence(log_p, before[active], settings.kl_over)  # (a,)
        size = delta[active].norm(dim=1) / initial[active].norm(dim=1).square()  # (a,)
        loss = nll + settings.kl * kl + settings.decay * size
        if protected is not None:
            energy = protected.energy(delta, active)
            loss = loss + protected.beta * energy
            for name, term in {"nll": nll, "kl": kl, "decay": size, "preservation": energy}.items():
                trace = terms.setdefault(TERM + name, torch.full_like(losses, float("nan")))
                trace[active.cpu(), step] = term.detach().float().cpu()
        losses[active.cpu(), step] = loss.detach().float().cpu()
        _check_finite(loss, [requests[i] for i in active.tolist()], step)
        final[active] = delta.detach()[active]
        going = loss.detach() >= settings.stop_below
        if step == settings.steps - 1 or not going.any():
            break
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        active = active[going]
        with torch.no_grad():
            # (n, d_v) times (n, 1): projection onto the ball of radius clamp·‖h₀‖
            delta.mul_((limit / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1))
    return {"initial": initial, "delta": final, "losses": losses, **terms}


def _divergence(
    log_p: Float[Tensor, "a v"], before: Float[Tensor, "a v"], over: Literal["edited", "unedited"]
) -> Float[Tensor, " a"]:
    """KL(p‖p₀) or, over the unedited distribution, KL(p₀‖p), in nats (a,), from log-probabilities."""
    first, second = (log_p, before) if over == "edited" else (before, log_p)
    return (first.exp() * (first - second)).sum(1)


class _Protected:
    """L_kp of each request of a chunk: energy of protected activations along one direction of its edit."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        settings: PreservingTargets,
        contexts: Sequence[str],
        initial: Float[Tensor, "n d_v"],
    ) -> None:
        self.beta, self.direction, self.initial = settings.beta, settings.direction, initial
        site = Site(layer, "key" if settings.direction == "key" else settings.reference)
        self.states = last_states(model, settings.protected, site).to(initial)  # (m, d)
        if settings.direction == "key":
            self.keys = subject_keys(model, requests, layer, contexts).T.to(initial)  # (n, d_k)

    def energy(self, delta: Float[Tensor, "n d_v"], active: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        """Σ‖Px‖² (a,) with P the projector on δ, on h₀ + δ, or on the key."""
        if self.direction == "key":
            return line_energy(self.keys[active], self.states)
        along = delta if self.direction == "delta" else self.initial + delta  # (n, d_v)
        return line_energy(along[active], self.states)


def _check_finite(loss: Tensor, requests: Sequence[EditRequest], step: int) -> None:
    for value, request in zip(loss.tolist(), requests, strict=True):
        if value != value or value == float("inf"):
            raise NonFiniteError(
                f"the loss of {request.text!r} -> {request.target!r} is {value} at step {step}; "
                "lower the learning rate or the clamp. No weight was changed"
            )
