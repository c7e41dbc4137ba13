"""A twin of a wrapped layer: one row, one token and one entry after the other, by the network's own pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from palimpsest.evaluation.answers import Answers, Pair, ask
from palimpsest.memory.keys import last_states
from palimpsest.network.codebook import Codebook
from palimpsest.network.model import EditableModel, Site, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.network.wraps import INPUT, AddedBlocks, At, LayerWrap, Replaced

ACTS = ("replaced", "added_blocks")
PLACES: tuple[At, ...] = ("map", "layer")


def wrap(
    model: EditableModel,
    prompts: Sequence[str],
    act: str = "replaced",
    at: At = "map",
    layer: int = 1,
    radius: float = 1e-3,
    seed: int = 0,
    base: str = "",
) -> LayerWrap:
    """A memory with a random entry for the last token of each prompt."""
    generator = torch.Generator().manual_seed(seed)
    keys = last_states(model, prompts, Site(layer, INPUT[at]))
    d_v, wide, m = read_weight(model, layer).shape[0], keys.shape[1], len(prompts)

    def drawn(*shape: int) -> Tensor:
        return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(keys.dtype)

    acts = {"replaced": lambda: Replaced(drawn(m, d_v)), "added_blocks": lambda: added()}

    def added() -> AddedBlocks:
        return AddedBlocks(drawn(m, 2, wide), drawn(m, d_v, 2))

    book = Codebook(keys, torch.full((m,), radius, dtype=keys.dtype), tuple(prompts))
    return LayerWrap(layer, book, acts[act](), at, base=base)


def token_by_token(edit: LayerWrap, given: Tensor, own: Tensor) -> Tensor:
    """Outputs (t, d_v) of one row, from its inputs (t, d_in)."""
    rows = []
    for x, y in zip(given, own, strict=True):
        far = [float((x - key).norm()) for key in edit.book.keys.to(x)]
        at = min(range(len(far)), key=far.__getitem__)
        if far[at] > float(edit.book.radii[at]):
            rows.append(y)
        elif isinstance(edit.act, Replaced):
            rows.append(edit.act.values[at].to(y))
        else:
            rows.append(y + edit.act.up[at].to(y) @ (edit.act.down[at].to(y) @ x))
    return torch.stack(rows)


@contextmanager
def patched(model: EditableModel, edits: Sequence[LayerWrap]) -> Iterator[None]:
    """The forward functions of the modules themselves, one around the other; for one row at a time."""

    def around(forward: Callable[..., Any], edit: LayerWrap) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            found = forward(*args, **kwargs)
            own = found[0] if isinstance(found, tuple) else found
            assert given.ndim == 2 or len(given) == 1
            new = token_by_token(edit, given.flatten(0, -2), own.flatten(0, -2)).reshape(own.shape)
            return (new, *found[1:]) if isinstance(found, tuple) else new

        return run

    with ExitStack() as stack:
        for edit in edits:
            layers = model.net.get_submodule(model.family.layers)
            module: Any = layers[edit.layer]
            module = module.get_submodule(model.family.value_projection) if edit.at == "map" else module
            before = module.__dict__.get("forward")
            stack.callback(restore, module, before)
            module.forward = around(module.forward, edit)
        yield


def restore(module: Any, before: Any) -> None:
    if before is None:
        del module.forward
    else:
        module.forward = before


def plain_nll(
    model: EditableModel, edits: Sequence[LayerWrap], pairs: Sequence[Pair], text: str = ""
) -> Tensor:
    """Mean NLL of each pair's target (n,), each row alone in a whole pass of the network."""
    found = []
    for prompt, target in pairs:
        ids, wanted = encode(model.tokenizer, text + prompt), encode_target(model.tokenizer, target, prompt)
        with torch.no_grad(), patched(model, edits):
            logits = model.net(input_ids=torch.tensor([ids + wanted[:-1]]), use_cache=False).logits[0]
        log_p = logits[len(ids) - 1 :].float().log_softmax(1)
        found.append(-log_p[torch.arange(len(wanted)), wanted].double().mean())
    return torch.stack(found)


def plain_greedy(model: EditableModel, edits: Sequence[LayerWrap], prompt: str, tokens: int) -> str:
    """Greedy continuation, each token by a whole pass without any cache."""
    ids = start = encode(model.tokenizer, prompt)
    with torch.no_grad(), patched(model, edits):
        for _ in range(tokens):
            logits = model.net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            token = int(logits.argmax())
            if token == model.tokenizer.eos_token_id:
                break
            ids = [*ids, token]
    whole = str(model.tokenizer.decode(ids, skip_special_tokens=True))
    return whole[len(model.tokenizer.decode(start, skip_special_tokens=True)) :]


def asked(model: EditableModel, pairs: Sequence[Pair], batch_size: int = 64) -> Answers:
    return ask(model, pairs, batch_size)
