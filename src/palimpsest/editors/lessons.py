"""Training of what a wrapped layer gives at the last token of each prompt, everything else frozen.

Prompts with their targets run as one padded batch; the change acts at the last token of each prompt alone,
and the target tokens read it by attention. Adam works entry by entry, and an entry that is learnt keeps its
contents from then on, so the result for an entry does not depend on the others in the batch but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from palimpsest.errors import NonFiniteError
from palimpsest.network.activations import run_body
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_target, pad
from palimpsest.network.wraps import Act, At, changed
from palimpsest.types import EditRequest

Contents = tuple[Tensor, ...]
"""What an entry holds, for example (value (d_v,),); stacked over entries where several are meant."""


@dataclass(frozen=True)
class Schedule:
    """How contents are trained.

    Attributes:
        steps: steps of Adam.
        lr: its learning rate.
        stop_below: an entry is learnt when the NLL (nats a token) of each of its facts is below this.
        batch: most facts of a forward pass; an entry with more has a pass of its own.
    """

    steps: int
    lr: float
    stop_below: float
    batch: int


class Lessons:
    """Prompts with their targets as one batch.

    Args:
        model: the frozen model; contexts in force come before the prompts.
        requests: n facts.
    """

    def __init__(self, model: EditableModel, requests: Sequence[EditRequest]) -> None:
        self.model, self.requests = model, requests
        rows: list[list[int]] = []
        labels: list[tuple[int, int, int, float]] = []
        ends = []
        for row, request in enumerate(requests):
            ids = model.encode(request.text)
            target = encode_target(model.tokenizer, request.target, request.text)
            labels += [(row, len(ids) - 1 + j, token, 1 / len(target)) for j, token in enumerate(target)]
            ends.append(len(ids) - 1)
            rows.append(ids + target[:-1])
        self.batch = pad(model.tokenizer, rows).to(model.device)
        row_, position_, token_, weight = zip(*labels, strict=True)
        self.row, self.position, self.token = (
            torch.tensor(numbers, device=model.device) for numbers in (row_, position_, token_)
        )
        self.weight = torch.tensor(weight, dtype=torch.float64, device=model.device)
        width = self.batch.ids.shape[1]
        self.last = torch.tensor([row * width + end for row, end in enumerate(ends)], device=model.device)

    def losses(self, layer: int, at: At, act: Act, entry: Tensor) -> Float[Tensor, " n"]:
        """NLL of each target (n,), nats a token, with contents in force at the last token of its prompt."""

        def change(inputs: Tensor, outputs: Tensor) -> Tensor:
            found = act(inputs[self.last], outputs[self.last], entry)
            return outputs.index_copy(0, self.last, found)

        with changed(self.model, layer, at, change):
            hidden = run_body(self.model, self.batch, use_cache=False).last_hidden_state
        logits = logits_of(self.model, hidden[self.row, self.position])
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
        picked = -log_p.gather(1, self.token[:, None])[:, 0] * self.weight.to(log_p)
        return picked.new_zeros(len(self.requests)).index_add(0, self.row, picked)


def teach(
    model: EditableModel,
    groups: Sequence[Sequence[EditRequest]],
    start: Sequence[Contents],
    layer: int,
    at: At,
    act: Callable[[Contents], Act],
    schedule: Schedule,
) -> tuple[list[Contents], list[list[list[float]]]]:
    """Contents with which the facts of each entry are answered.

    Args:
        model: frozen.
        groups: facts of each entry, at least one.
        start: contents to begin with, one for each entry.
        layer: the wrapped layer.
        at: what of it is wrapped.
        act: contents stacked over entries -> what is done with them.
        schedule: see `Schedule`.

    Returns:
        Contents of each entry, and the losses of each of its facts before every step and after the last.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; the message names the fact.
    """
    contents: list[Contents] = []
    history: list[list[list[float]]] = []
    with tqdm(total=len(groups), desc="learning entries", unit="entry", leave=False) as bar:
        for some in _parts(groups, schedule.batch):
            part = [groups[i] for i in some]
            found, losses = _taught(model, part, [start[i] for i in some], layer, at, act, schedule)
            contents += found
            history += losses
            bar.update(len(some))
    return contents, history


def _parts(groups: Sequence[Sequence[EditRequest]], most: int) -> Iterator[list[int]]:
    """Indices of consecutive entries with at most so many facts together, or of one with more."""
    part: list[int] = []
    for i, group in enumerate(groups):
        if part and sum(len(groups[j]) for j in part) + len(group) > most:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _taught(
    model: EditableModel,
    groups: Sequence[Sequence[EditRequest]],
    start: Sequence[Contents],
    layer: int,
    at: At,
    act: Callable[[Contents], Act],
    schedule: Schedule,
) -> tuple[list[Contents], list[list[list[float]]]]:
    """As `teach`, all entries in one batch."""
    lessons = Lessons(model, [request for group in groups for request in group])
    owner = [i for i, group in enumerate(groups) for _ in group]
    entry = torch.tensor(owner, device=model.device)
    size = torch.tensor([float(len(groups[i])) for i in owner], device=model.device)
    trained = [torch.stack(parts).to(model.device).requires_grad_() for parts in zip(*start, strict=True)]
    final = [part.detach().clone() for part in trained]
    going = torch.ones(len(groups), dtype=torch.bool, device=model.device)
    adam = torch.optim.Adam(trained, lr=schedule.lr)
    rows: list[list[float]] = [[] for _ in owner]
    for step in range(schedule.steps + 1):
        with torch.set_grad_enabled(step < schedule.steps):
            losses = lessons.losses(layer, at, act(tuple(trained)), entry)
        _require_finite(losses, lessons.requests, step)
        for row, value in enumerate(losses.tolist()):
            if going[owner[row]]:
                rows[row].append(value)
        for kept, now in zip(final, trained, strict=True):
            kept[going] = now.detach()[going]
        worst = losses.new_zeros(len(groups)).scatter_reduce(0, entry, losses.detach(), "amax")
        going &= worst >= schedule.stop_below
        if step == schedule.steps or not going.any():
            break
        adam.zero_grad()
        (losses / size.to(losses)).sum().backward()
        adam.step()
    ordered = iter(rows)
    return (
        [tuple(part[i] for part in final) for i in range(len(groups))],
        [[next(ordered) for _ in group] for group in groups],
    )


def _require_finite(losses: Tensor, requests: Sequence[EditRequest], step: int) -> None:
    for value, request in zip(losses.tolist(), requests, strict=True):
        if not value < float("inf"):
            raise NonFiniteError(
                f"the loss of {request.text!r} -> {request.target!r} is {value} at step {step}; lower the "
                "learning rate. Nothing was changed"
            )
