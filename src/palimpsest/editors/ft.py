"""Fine-tuning of the edited weights: FT, and FT-L with every entry changed by at most ε (Zhu et al., 2020).

    minimise over Δ    mean over facts and contexts of NLL(target)/tokens        ‖Δ‖_∞ ≤ ε where ε is given

Adam optimises Δ alone, from Δ = 0; after each step Δ is clipped to ±ε. As in the baseline code of ROME, a
batch whose mean loss is below a threshold is not updated, so facts that the model already knows get no edit.

Differences from that code: the weights are never written; Δ is applied to the inputs of the edited maps, in
float32 or wider. All tokens of a target are trained, each after the target tokens before it (FT-M of the
EasyEdit survey); ``objective="prompt_last"`` predicts every token at the last position of the prompt, as
ROME's FT did. Prompts may follow sampled prefixes; as published they do not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from palimpsest.editors.base import Prepared, State, WeightEditor, start, step_norms
from palimpsest.editors.settings import Layers
from palimpsest.errors import NonFiniteError
from palimpsest.memory.settings import ContextSettings
from palimpsest.network.activations import run_body
from palimpsest.network.apply import WeightDelta
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.network.tokens import encode, encode_target, pad
from palimpsest.types import EditRequest

Objective = Literal["target_new", "prompt_last"]


class FineTuneState(State):
    """State of fine-tuning; it keeps nothing of earlier edits."""


@dataclass(frozen=True, config={"extra": "forbid"})
class FineTune(WeightEditor):
    """Fine-tuning; the fields are its settings, with the defaults of ROME's baseline.

    Attributes:
        layers: edited layers, ascending; all are trained together.
        limit: ε, the largest change of an entry; None for no constraint.
        steps: largest number of passes over the facts.
        lr: Adam's learning rate.
        stop_below: a batch whose mean loss (nats) is below this is not updated; training ends when none is.
        batch: facts per update.
        objective: ``target_new`` predicts each target token after those before it, ``prompt_last`` all of
            them at the last position of the prompt.
        contexts: settings of the prefixes over which the loss is averaged; none as published.

    Source: ROME (Meng et al., NeurIPS 2022), App. E.1, FT and FT+L.
    """

    keeps = FineTuneState
    printed = "FT"

    layers: Layers
    limit: float | None = Field(default=None, gt=0)
    steps: int = Field(default=25, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    stop_below: float = Field(default=1e-2, ge=0)
    batch: int = Field(default=64, ge=1)
    objective: Objective = "target_new"
    contexts: ContextSettings = ContextSettings(count=0)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, FineTuneState]:
        """Train Δ on all requests; see `palimpsest.edit`.

        Raises:
            NonFiniteError: if a loss or an update becomes NaN or infinite; no weight is changed.
        """
        own: FineTuneState = self.own(state)
        at = self.prepare(model, own.prepared)
        parts = parts_of(model, requests, at.contexts, self.objective, self.batch)
        deltas = {layer: _nothing(model, layer) for layer in self.layers}
        history = self._train(model, parts, deltas)
        return trained_edit(model, deltas, history, at.contexts), replace(own, prepared=at)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Sample the prefixes; no other quantity is needed."""
        return start(model, prepared, self.contexts, (), 0)

    def _train(
        self, model: EditableModel, parts: Sequence["Part"], deltas: Mapping[int, Tensor]
    ) -> list[list[float]]:
        """Optimise the deltas in place; returns the losses of all facts at each pass, before its updates."""
        adam = torch.optim.Adam(deltas.values(), lr=self.lr)
        return train(
            model, parts, adam, lambda: deltas, self.steps, self.stop_below, lambda: self._clip(deltas)
        )

    def _clip(self, deltas: Mapping[int, Tensor]) -> None:
        if self.limit is not None:
            with torch.no_grad():
                for delta in deltas.values():
                    delta.clamp_(-self.limit, self.limit)


def train(
    model: EditableModel,
    parts: Sequence["Part"],
    optimiser: torch.optim.Optimizer,
    change: Callable[[], Mapping[int, Tensor]],
    steps: int,
    stop_below: float,
    after: Callable[[], None],
) -> list[list[float]]:
    """Minimise the mean loss of each part in turn, pass after pass; the weights are never written.

    Args:
        model: restored before returning.
        parts: the facts of one update each.
        optimiser: of the parameters.
        change: layer -> Δ (d_v, d_k) as the parameters are now; it is added to the edited maps.
        steps: largest number of passes over all parts.
        stop_below: a part whose mean loss (nats) is below this is not updated; training ends when none is.
        after: called after each update.

    Returns:
        Losses of all facts at each pass, each before the update it is for.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite.
    """
    history: list[list[float]] = []
    for step in tqdm(range(steps), desc="fine-tuning", unit="pass", leave=False):
        losses, moved = [], False
        for part in parts:
            with _added(model, change()):
                loss = part.losses(model)
            part.require_finite(loss, step)
            losses += loss.detach().tolist()
            if loss.mean() < stop_below:
                continue
            moved = True
            optimiser.zero_grad()
            loss.mean().backward()
            optimiser.step()
            after()
        history.append(losses)
        if not moved:
            break
    return history


def trained_edit(
    model: EditableModel,
    deltas: Mapping[int, Tensor],
    history: Sequence[Sequence[float]],
    contexts: Sequence[str],
) -> WeightDelta:
    """The edit that training led to, with its notes.

    Args:
        model: on which it was trained.
        deltas: layer -> Δ (d_v, d_k).
        history: losses of all facts at each pass, as `train`.
        contexts: prefixes over which they were averaged.

    Raises:
        NonFiniteError: if a Δ holds NaN or infinity.
    """
    found = {layer: delta.detach().double() for layer, delta in deltas.items()}
    _require_finite(found)
    notes = {
        "contexts": list(contexts),
        "facts": len(history[0]),
        "loss_history": [list(losses) for losses in zip(*history, strict=True)],
        "largest_change": {layer: float(delta.abs().max()) for layer, delta in found.items()},
        "step_norm": step_norms(found),
    }
    return WeightDelta(found, fingerprint(model), notes)


def parts_of(
    model: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    objective: Objective,
    batch: int,
) -> list["Part"]:
    """Requests as padded batches of so many facts.

    Args:
        model: the model.
        requests: n facts.
        contexts: prefixes, the empty one first.
        objective: as in `FineTune`.
        batch: facts in a part.
    """
    starts = range(0, len(requests), batch)
    return [Part(model, requests[first : first + batch], contexts, objective) for first in starts]


class Part:
    """The facts of one update as one padded batch, and the position that predicts each target token."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        objective: Objective,
    ) -> None:
        self.requests = requests
        rows: list[list[int]] = []
        labels: list[tuple[int, int, int, int, float]] = []
        for index, request in enumerate(requests):
            target = encode_target(model.tokenizer, request.target, request.text)
            behind = target[:-1] if objective == "target_new" else []
            for context in contexts:
                ids = encode(model.tokenizer, context + request.text)
                for offset, token in enumerate(target):
                    position = len(ids) - 1 + (offset if behind else 0)
                    labels.append((index, len(rows), position, token, 1 / len(target) / len(contexts)))
                rows.append(ids + behind)
        self.batch = pad(model.tokenizer, rows).to(model.device)
        owner, row, position_, token_, weight = zip(*labels, strict=True)
        self.owner, self.row, self.position, self.token = (
            torch.tensor(numbers, device=model.device) for numbers in (owner, row, position_, token_)
        )
        self.weight = torch.tensor(weight, dtype=torch.float64, device=model.device)

    def losses(self, model: EditableModel) -> Float[Tensor, " n"]:
        """NLL of each target (n,) in nats, averaged over its tokens and the prefixes."""
        hidden = run_body(model, self.batch, use_cache=False).last_hidden_state[self.row, self.position]
        logits = logits_of(model, hidden)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
        picked = -log_p.gather(1, self.token[:, None])[:, 0] * self.weight.to(log_p)
        return picked.new_zeros(len(self.requests)).index_add(0, self.owner, picked)

    def require_finite(self, losses: Tensor, step: int) -> None:
        """Raise NonFiniteError, naming the fact, if a loss is NaN or infinite."""
        for value, request in zip(losses.tolist(), self.requests, strict=True):
            if not value < float("inf"):
                raise NonFiniteError(
                    f"the loss of {request.text!r} -> {request.target!r} is {value} at pass {step}; "
                    "lower the learning rate or set a limit. No weight was changed"
                )


def _nothing(model: EditableModel, layer: int) -> Tensor:
    """Δ = 0 (d_v, d_k) with gradients, in float32 or wider."""
    weight = read_weight(model, layer)
    exact = torch.promote_types(weight.dtype, torch.float32)
    return torch.zeros(weight.shape, dtype=exact, device=weight.device, requires_grad=True)


@contextmanager
def _added(model: EditableModel, deltas: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside the block the edited maps return W k + Δ k."""

    def adding(delta: Tensor) -> Any:
        return lambda _, inputs, output: output + inputs[0] @ delta.to(output).T

    with ExitStack() as stack:
        for layer, delta in deltas.items():
            handle = model.projection(layer).register_forward_hook(adding(delta))
            stack.callback(handle.remove)
        yield


def _require_finite(deltas: Mapping[int, Tensor]) -> None:
    for layer, delta in deltas.items():
        if not torch.isfinite(delta).all():
            raise NonFiniteError(
                f"layer {layer}: fine-tuning led to NaN or infinity; lower the learning rate or set a "
                "limit. No weight was changed"
            )
