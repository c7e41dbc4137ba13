"""Optimised values: hidden states that make the model predict the new object, for many requests at once.

For each request a vector δ is added to one layer's output at the subject's last token, in every context, and
Adam minimises the loss of the new object (`palimpsest.memory.optimisation`). Everything that δ cannot change
is computed once (`palimpsest.memory.upper_layers`).

Loss of one request (as in the released MEMIT and AlphaEdit code; every term is a setting):

    mean over contexts of NLL(target)/tokens + kl·KL(p‖p₀) at "{subject} is a" + decay·‖δ‖/‖h₀‖²
        + β·Σ‖Px‖² over protected activations x, where settings name some (`PreservingTargets`)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import ScoreError, SiteError, UnknownNameError
from palimpsest.memory.optimisation import TERM, Optimisation, by_number
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest

REVISION = 2
"""Part of the cache key; raise it when the same settings give other values than before."""

TOGETHER = 100
"""Facts whose values are one file on disk: so many are lost at most by an interruption, and two studies of
the same first facts share the files that both need."""


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
    chunk: int | None = None,
) -> Targets:
    """Optimise the values of many requests; read from disk if computed before on the same weights.

    The requests are taken by the hundred, in their order: each hundred is optimised and stored on its own, as
    if it were asked for alone.

    Args:
        model: the model as it is now.
        requests: n requests; apart from rounding they do not influence each other.
        layer: layer whose output is moved.
        settings: losses and steps.
        contexts: prefixes, the empty one first; h₀ is read in the first.
        chunk: requests optimised together at most; default by work and memory. It changes results only by
            rounding. Chunks are computed side by side on all cores.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; names the request.
        SiteError: if a layer does not exist, or the loss layer lies below the edited one.
        OutOfMemoryError: if a single request does not fit into memory.
    """
    last = settings.loss_layer if settings.loss_layer is not None else model.n_layers - 1
    for needed in (layer, last):
        model.layer(needed)
    if last < layer:
        raise SiteError(f"loss_layer {last} lies below the edited layer {layer}; raise it or leave it out")
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "layer": layer,
        "contexts": list(contexts),
        "settings": asdict(settings),
    }
    parts = []
    with tqdm(total=len(requests), desc="optimising values", unit="fact", delay=1) as bar:
        for at in by_number(len(requests), TOGETHER):
            some = requests[at.start : at.stop]

            def compute(some: Sequence[EditRequest] = some) -> dict[str, Tensor]:
                whole = Optimisation(model, some, layer, last, settings, contexts)
                return whole.run(chunk, bar.update)

            asked = [(r.prompt, r.subject, r.target) for r in some]
            parts.append(cache.tensors("targets", key | {"requests": asked}, compute))
            bar.update(at.stop - bar.n)  # those read from disk too
    found = {name: torch.cat([part[name] for part in parts]).to(model.device) for name in parts[0]}
    # Stored as rows (n, d_v), returned as columns (d_v, n); losses stay (n, steps).
    values, deltas, losses = (found["initial"] + found["delta"]).T, found["delta"].T, found["losses"]
    terms = {name.removeprefix(TERM): t for name, t in found.items() if name.startswith(TERM)}
    return Targets(values, deltas, losses, terms)
