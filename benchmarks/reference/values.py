"""Twin of `palimpsest.memory.values`: one request, a forward pass of the whole model at each step.

A hook adds δ to the output of the edited layer at the subject's last token of every row: the prompt in each
context, followed by the target without its last token, and the KL prompt "{subject} is a". Logits are
computed at all positions of all rows. Loss, Adam and the projection onto the clamp's ball are those of the
released ``compute_z`` of MEMIT and AlphaEdit:

    mean over contexts of NLL(target)/tokens + kl · KL(p‖p₀) + decay · ‖δ‖/‖h₀‖²
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.reference.forward import first, layer_of
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_around_subject, encode_target
from palimpsest.types import EditRequest

KL_PROMPT = "{} is a"


class Rows:
    """Rows of one request, padded on the right.

    Attributes:
        ids, mask: (c + 1, t), the KL prompt last.
        ends: index of the subject's last token in each row (c + 1,).
        targets: (row, position, token) of every target token.
        tokens: number of target tokens.
    """

    def __init__(self, model: EditableModel, request: EditRequest, contexts: Sequence[str]) -> None:
        target = encode_target(model.tokenizer, request.target)
        rows: list[list[int]] = []
        ends: list[int] = []
        self.targets: list[tuple[int, int, int]] = []
        for context in contexts:
            ids, end = encode_around_subject(model.tokenizer, request.prompt, request.subject, context)
            self.targets += [(len(rows), len(ids) - 1 + j, token) for j, token in enumerate(target)]
            rows.append(ids + target[:-1])
            ends.append(end)
        ids, end = encode_around_subject(model.tokenizer, KL_PROMPT, request.subject)
        rows.append(ids)
        ends.append(end)
        width = max(map(len, rows))
        self.ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        self.mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        self.ends, self.tokens = torch.tensor(ends), len(target)


def optimise(
    model: EditableModel,
    request: EditRequest,
    layer: int,
    settings: TargetSettings,
    contexts: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Optimise the value of one request at a layer's output.

    Args:
        model: the model as it is now.
        request: the fact.
        layer: whose output is moved.
        settings: of the loss and the steps; ``reference`` hidden, the loss at the model's output.
        contexts: prefixes, the empty one first.

    Returns:
        h₀ and δ, (d_v,) each.
    """
    rows = Rows(model, request, contexts)
    everywhere = torch.arange(len(rows.ends))
    delta = torch.zeros(model.net.config.hidden_size, requires_grad=True)
    start: Tensor | None = None  # h₀ (d_v,)

    def add(module: Any, inputs: Any, output: Any) -> Any:
        nonlocal start
        states = first(output)
        start = states[0, rows.ends[0]].detach().clone() if start is None else start
        moved = states.clone()
        moved[everywhere, rows.ends] += delta
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    adam = torch.optim.Adam([delta], lr=settings.lr)
    before: Tensor | None = None  # log p₀ (vocabulary,)
    handle = layer_of(model, layer).register_forward_hook(add)
    try:
        for step in range(settings.steps):
            log_p = model.net(input_ids=rows.ids, attention_mask=rows.mask).logits.log_softmax(2)
            log_p_kl = log_p[-1, rows.ends[-1]]
            before = log_p_kl.detach().clone() if before is None else before
            assert start is not None
            loss = _loss(log_p, rows, len(contexts), delta, start, settings)
            loss = loss + settings.kl * _divergence(log_p_kl, before, settings.kl_over)
            if loss < settings.stop_below or step == settings.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            longest = settings.clamp * start.norm()
            if delta.norm() > longest:
                delta.data.mul_(longest / delta.detach().norm())
    finally:
        handle.remove()
    assert start is not None
    return start, delta.detach()


def _loss(
    log_p: Tensor, rows: Rows, contexts: int, delta: Tensor, start: Tensor, settings: TargetSettings
) -> Tensor:
    """NLL of the target per token, mean over contexts, and the decay of δ."""
    picked = torch.stack([log_p[row, position, token] for row, position, token in rows.targets])
    return -picked.sum() / (rows.tokens * contexts) + settings.decay * delta.norm() / start.norm() ** 2


def _divergence(log_p: Tensor, log_p0: Tensor, over: str) -> Tensor:
    """KL(p‖p₀), averaged over the edited distribution p, or KL(p₀‖p), over the unedited one."""
    difference = log_p - log_p0
    return (log_p.exp() * difference).sum() if over == "edited" else -(log_p0.exp() * difference).sum()
