"""Adam on the values of many requests at once, in chunks that run side by side.

The loss is that of `palimpsest.memory.values`. Requests of a chunk share forward passes, and each stops on
its own: a finished one leaves the passes.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.algebra.projector import line_energy
from palimpsest.errors import NonFiniteError
from palimpsest.memory.keys import last_states, subject_keys
from palimpsest.memory.readout import Divergence, Readout, read_out
from palimpsest.memory.settings import PreservingTargets, TargetSettings
from palimpsest.memory.upper_layers import UpperLayers, sequences
from palimpsest.network.cores import in_halves, side_by_side
from palimpsest.network.model import EditableModel, Site, read_weight
from palimpsest.types import EditRequest

TERM = "term "
"""Prefix of the names of loss terms in the results."""

ACTIVATIONS = 2**29
"""Bytes of activations that a chunk keeps for its gradient: half of them cost an eighth more time."""

FEWEST_POSITIONS = 64
"""Moving positions from which a chunk is worth a core of its own: fewer make narrow matrix products."""


class Optimisation:
    """The optimisation of the values of some requests at one layer; arguments as `optimise_targets`."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        last: int,
        settings: TargetSettings,
        contexts: Sequence[str],
    ) -> None:
        self.model, self.requests, self.layer, self.last = model, requests, layer, last
        self.settings = settings
        self.encoded = [sequences(model, request, contexts) for request in requests]
        self.protected = None
        if isinstance(settings, PreservingTargets):
            self.protected = _Protected(model, requests, layer, settings, contexts)

    def run(self, chunk: int | None = None, done: Callable[[int], object] = int) -> dict[str, Tensor]:
        """Results of all requests by name, one row per request.

        Args:
            chunk: most requests optimised together; default by work and memory.
            done: is told the number of requests that were finished since the last call.
        """
        moving = [one.moving for one in self.encoded]
        cut = by_number(len(moving), chunk) if chunk else by_work(moving, self._most_positions())

        def work(some: Sequence[int]) -> list[dict[str, Tensor]]:
            found = in_halves(lambda part: _Chunk(self, part).run(), some, "facts")
            done(len(some))
            return found

        parts = [part for found in side_by_side(work, cut, self.model.device) for part in found]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _most_positions(self) -> int:
        """Moving positions whose activations fit into ACTIVATIONS."""
        weight = read_weight(self.model, self.layer)
        d_v, d_k = weight.shape
        # Kept for the gradient of a layer: some twenty tensors of width d_v, with the attention keys and
        # values of earlier positions, and six of width d_k.
        each = (20 * d_v + 6 * d_k) * weight.element_size() * max(self.last - self.layer, 1)
        return max(ACTIVATIONS // each, FEWEST_POSITIONS)


def by_number(count: int, most: int) -> list[range]:
    """Consecutive indices, at most so many together."""
    return [range(start, min(start + most, count)) for start in range(0, count, most)]


def by_work(sizes: Sequence[int], most: int) -> list[range]:
    """Consecutive indices in chunks of about equal total size.

    Chunks hold at most about ``most``. Where each of two would still be worth a core, their number is even:
    it does not depend on how many cores there are, so that results do not either.
    """
    whole = sum(sizes)
    count = -(-whole // most)
    if whole >= 2 * FEWEST_POSITIONS:
        count += count % 2
    chunks: list[list[int]] = [[] for _ in range(count)]
    behind = 0
    for index, size in enumerate(sizes):
        chunks[min((2 * behind + size) * count // (2 * whole), count - 1)].append(index)
        behind += size
    return [range(chunk[0], chunk[-1] + 1) for chunk in chunks if chunk]


class _Chunk:
    """Some requests that are optimised together."""

    def __init__(self, whole: Optimisation, chosen: Sequence[int]) -> None:
        self.whole, self.chosen, self.settings = whole, chosen, whole.settings
        encoded = [whole.encoded[i] for i in chosen]
        self.upper = UpperLayers(whole.model, encoded, whole.layer, whole.last, self.settings.reference)
        self.initial = self.upper.initial  # (n, d_v), and so are delta and final
        self.delta = torch.zeros_like(self.initial, requires_grad=True)
        self.before: Tensor | None = None  # log-probabilities of the KL rows without an edit (n, vocabulary)

    def run(self) -> dict[str, Tensor]:
        """δ, h₀ and losses of each request, and the terms of its loss where they are kept."""
        steps, n = self.settings.steps, len(self.chosen)
        final = torch.zeros_like(self.initial)
        traces = {"losses": torch.full((n, steps), float("nan"))}
        limit = self.settings.longest(self.initial.norm(dim=1, keepdim=True))  # (n, 1)
        adam = torch.optim.Adam([self.delta], lr=self.settings.lr)
        active = torch.arange(n, device=self.initial.device)
        for step in range(steps):
            states, read, terms = self._forward(active, pull=step < steps - 1)
            loss = self._total(terms)
            kept = {TERM + name: term for name, term in terms.items()} if self.whole.protected else {}
            for name, term in {"losses": loss, **kept}.items():
                trace = traces.setdefault(name, torch.full((n, steps), float("nan")))
                trace[active.cpu(), step] = term.detach().float().cpu()
            self._check_finite(loss, active, step)
            final[active] = self.delta.detach()[active]
            going = loss.detach() >= self.settings.stop_below
            if read.pull is None or not going.any():
                break
            adam.zero_grad()
            # The head has given its gradient already; the other terms are in the total's graph.
            torch.autograd.backward([states, loss.sum()], [read.pull, None])
            adam.step()
            active = active[going]
            with torch.no_grad():
                # (n, d_v) times (n, 1): projection onto the ball of radius clamp·‖h₀‖
                self.delta.mul_((limit / self.delta.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1))
        return {"initial": self.initial, "delta": final, **traces}

    def _forward(
        self, active: Int[Tensor, " a"], pull: bool
    ) -> tuple[Float[Tensor, "r d_v"], Readout, dict[str, Float[Tensor, " a"]]]:
        """Last hidden states that are read, the losses read from them, and all terms of the loss."""
        upper, delta, settings = self.upper, self.delta, self.settings
        with torch.set_grad_enabled(pull):
            states, at = upper.states(delta, active.tolist())
            before = None if self.before is None else self.before[active]
            kl = Divergence(settings.kl, settings.kl_over, before)
            read = read_out(self.whole.model, states, upper.labels[at], upper.weight[at], kl, pull)
            self.before = read.before if self.before is None else self.before
            nll = torch.zeros(len(delta), dtype=read.nll.dtype, device=delta.device)
            nll = nll.index_add(0, upper.request[at], read.nll * upper.weight[at])[active]  # (n,) -> (a,)
            size = delta[active].norm(dim=1) / self.initial[active].norm(dim=1).square()  # (a,)
            terms = {"nll": nll, "kl": read.kl, "decay": size}
            if self.whole.protected is not None:
                facts = torch.tensor(list(self.chosen), device=delta.device)[active]
                terms["preservation"] = self.whole.protected.energy(delta, self.initial, active, facts)
        return states, read, terms

    def _total(self, terms: Mapping[str, Float[Tensor, " a"]]) -> Float[Tensor, " a"]:
        total = terms["nll"] + self.settings.kl * terms["kl"] + self.settings.decay * terms["decay"]
        if self.whole.protected is None:
            return total
        return total + self.whole.protected.beta * terms["preservation"]

    def _check_finite(self, loss: Float[Tensor, " a"], active: Int[Tensor, " a"], step: int) -> None:
        for value, place in zip(loss.tolist(), active.tolist(), strict=True):
            if value != value or value == float("inf"):
                request = self.whole.requests[self.chosen[place]]
                raise NonFiniteError(
                    f"the loss of {request.text!r} -> {request.target!r} is {value} at step {step}; "
                    "lower the learning rate or the clamp. No weight was changed"
                )


class _Protected:
    """L_kp of each request: energy of protected activations along one direction of its edit."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        settings: PreservingTargets,
        contexts: Sequence[str],
    ) -> None:
        self.beta, self.direction = settings.beta, settings.direction
        site = Site(layer, "key" if settings.direction == "key" else settings.reference)
        self.states = last_states(model, settings.protected, site)  # (m, d)
        if settings.direction == "key":
            self.keys = subject_keys(model, requests, layer, contexts).T  # (all requests, d_k)

    def energy(
        self,
        delta: Float[Tensor, "n d_v"],
        initial: Float[Tensor, "n d_v"],
        active: Int[Tensor, " a"],
        facts: Int[Tensor, " a"],
    ) -> Float[Tensor, " a"]:
        """Σ‖Px‖² (a,) with P the projector on δ, on h₀ + δ, or on the key.

        Args:
            delta: δ of the requests of a chunk.
            initial: their h₀.
            active: those wanted.
            facts: their indices among all requests.
        """
        if self.direction == "key":
            return line_energy(self.keys[facts].to(delta), self.states.to(delta))
        along = delta if self.direction == "delta" else initial + delta  # (n, d_v)
        return line_energy(along[active], self.states.to(delta))
