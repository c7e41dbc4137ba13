"""Forward passes that read activations at chosen sites, stopping after the last, or that share a prefix."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from palimpsest.errors import SiteError
from palimpsest.network.layer_types import mask_of_body, mask_of_padded, taken_by
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.packed import Packed
from palimpsest.network.tokens import Batch

_ORDER = {"input": 0, "key": 1, "value": 2, "before_norm": 3, "hidden": 4}


class _Stop(Exception):  # noqa: N818 -- a signal, not an error
    """Ends a forward pass after the last requested site."""


def capture(
    model: EditableModel, batch: Batch | Packed, sites: Sequence[Site], stop: bool = True
) -> dict[Site, Float[Tensor, "b t d"]]:
    """Run the model on a batch and return the activations at each site.

    Args:
        model: the model, edited or not.
        batch: rows of token ids, padded on either side or packed into lines.
        sites: sites to read, in any order.
        stop: end the pass after the last site, so that layers above cost nothing.

    Returns:
        For each site a tensor (b, t, d_k) or (b, t, d_v), padding positions included.

    Raises:
        SiteError: if a site does not exist or did not fire.
    """
    found: dict[Site, Tensor] = {}
    last = max(sites, key=lambda s: (s.layer, _ORDER[s.part]))

    def reader(site: Site) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            found[site] = value.detach().reshape(*batch.ids.shape, -1)  # OPT's maps see (b·t, d)
            if stop and site == last:
                raise _Stop

        return read

    with ExitStack() as stack, torch.no_grad():
        for site in sites:
            stack.enter_context(watched(model, site, reader(site)))
        run_body(model, batch)
    missing = [site for site in sites if site not in found]
    if missing:
        raise _silent(model, missing)
    return found


def _silent(model: EditableModel, sites: Sequence[Site]) -> SiteError:
    return SiteError(
        f"sites that never fired: {list(sites)}; the forward pass does not call "
        f"{model.family.value_projection!r} there. Check the family row of {model.name}"
    )


def capture_in(
    model: EditableModel, layer: int, hidden: Float[Tensor, "b t d_v"], batch: Packed
) -> Float[Tensor, "b t d_k"]:
    """Keys of one layer from its input (b, t, d_v); the pass ends there.

    Raises:
        SiteError: if the layer does not call its edited map.
    """
    found: list[Tensor] = []

    def read(value: Tensor) -> None:
        found.append(value.reshape(*hidden.shape[:2], -1))
        raise _Stop

    with torch.no_grad(), watched(model, Site(layer), read):
        try:
            run_layers(model, [layer], hidden, batch.positions, batch.attention(hidden.dtype))
        except _Stop:
            return found[0]
    raise _silent(model, [Site(layer)])


def run_body(model: EditableModel, batch: Batch | Packed, seen: int = 0, **kwargs: Any) -> Any:
    """Forward pass without the output head; None if a reader stopped it.

    Args:
        model: the model, edited or not.
        batch: rows of token ids, padded or packed.
        seen: positions before every row, whose states are in ``past_key_values``.
        kwargs: go to the network.
    """
    body = model.net.get_submodule(model.family.norm.rsplit(".", 1)[0])
    if isinstance(batch, Packed):
        mask = mask_of_body(model, batch.attention(next(body.parameters()).dtype, seen))
    else:
        mask = mask_of_padded(model, batch.attention(torch.bool, seen).bool(), batch.ids.shape[1])
    try:
        return body(input_ids=batch.ids, attention_mask=mask, position_ids=batch.positions + seen, **kwargs)
    except _Stop:
        return None


def run_layers(
    model: EditableModel,
    layers: Iterable[int],
    hidden: Float[Tensor, "b t d_v"],
    positions: Int[Tensor, "b t"],
    mask: Float[Tensor, "b 1 t s"],
    past: Any = None,
) -> Float[Tensor, "b t d_v"]:
    """Output of the last of some decoder layers that run one after the other.

    Args:
        model: the model, edited or not.
        layers: consecutive ones, ascending; without any, ``hidden`` itself is returned.
        hidden: input of the first.
        positions: of the tokens in their rows.
        mask: added to attention, over s = earlier positions and t.
        past: attention keys and values of earlier positions, with the ``update`` of a cache of transformers.
    """
    extra: dict[str, Any] = {} if past is None else {model.family.past: past}
    for layer, own in taken_by(model, layers, hidden, positions, mask).items():
        run = model.layer(layer)
        hidden = first_tensor(run(hidden, position_ids=positions, use_cache=past is not None, **own, **extra))
    return hidden


def context_of(model: EditableModel, rows: Sequence[Sequence[int]]) -> list[int]:
    """Longest common token prefix of all rows where the model has a context installed; else none.

    At least one token of each row is left outside the prefix.
    """
    if not model.context:
        return []
    shortest = min(len(ids) for ids in rows) - 1
    columns = enumerate(zip(*(ids[:shortest] for ids in rows), strict=True))
    shared = next((at for at, column in columns if len(set(column)) > 1), shortest)
    return list(rows[0][:shared])


def read_once(model: EditableModel, prefix: Sequence[int], rows: int) -> Any:
    """Key/value cache of a prefix that many rows share, computed for one row and repeated."""
    ids = torch.tensor([list(prefix)], device=model.device)  # (1, p)
    # Of all positions in all layers: a cache made by the network drops what is outside a window.
    cache = DynamicCache()
    with torch.no_grad():
        run_body(model, Batch(ids, torch.ones_like(ids).bool()), use_cache=True, past_key_values=cache)
    cache.batch_repeat_interleave(rows)  # (1, heads, p, d_head) -> (rows, heads, p, d_head) in each layer
    return cache


def run_behind(
    model: EditableModel, prefix: Sequence[int], batch: Batch | Packed
) -> Float[Tensor, "b t d_v"]:
    """Last hidden states (b, t, d_v) of rows that follow a shared prefix, which is read once.

    Args:
        model: the model, edited or not.
        prefix: token ids; may be empty.
        batch: ids that follow it in each row, padded on either side or packed.
    """
    if not prefix:
        return run_body(model, batch, use_cache=False).last_hidden_state
    past = read_once(model, prefix, len(batch.ids))
    return run_body(model, batch, len(prefix), past_key_values=past, use_cache=True).last_hidden_state


@contextmanager
def watched(model: EditableModel, site: Site, read: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``read`` with the activations at a site in every forward pass of this thread inside the block."""
    handle = _attach(model, site, read)
    try:
        yield
    finally:
        handle.remove()


def _place(model: EditableModel, site: Site) -> nn.Module:
    if site.part in ("input", "hidden"):
        return model.layer(site.layer)
    if site.part != "before_norm":
        return model.projection(site.layer)
    norm = model.norm_behind(site.layer)
    if norm is None:
        raise SiteError(
            f"{site} does not exist: in {model.name} no norm follows {model.family.value_projection!r}; read "
            "the part 'value'"
        )
    return norm


def _attach(
    model: EditableModel, site: Site, read: Callable[[Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    module, own = _place(model, site), model.device
    thread = get_ident()  # passes of other threads through the same module are not read

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if get_ident() == thread:
            read(inputs[0].to(own))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        if get_ident() == thread:
            read(first_tensor(output).to(own))

    if site.part in ("input", "key", "before_norm"):
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


def first_tensor(output: Any) -> Tensor:
    """Hidden states of a layer's output, which is a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output
