"""The row of FAMILIES that an unsupported architecture probably needs, read from the names of its modules."""

from inspect import signature
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

FILE = "src/palimpsest/network/families.py"


def refused(kind: str, name: str, net: Any, known: list[str]) -> str:
    """The message for an architecture without a row: its modules, the row to add, and where.

    Args:
        kind: ``model_type`` of the architecture.
        name: of the model.
        net: the network, possibly without data.
        known: architectures that have a row.
    """
    head = f"architecture {kind!r} is not supported; known: {', '.join(known)}"
    found = modules_of(net)
    lacking = [part for part in ("layers", "value_projection", "norm", "head") if not found.get(part)]
    if lacking:
        return (
            f"{head}. Modules of {name} for {', '.join(lacking)} were not found, for example because it is a "
            "mixture of experts, whose layers have several maps: it cannot be edited as it is. Others are "
            + (", ".join(f"{part} {where!r}" for part, where in found.items() if where) or "not there either")
        )
    return (
        f"{head}. Add a row to FAMILIES in {FILE}; the modules of {name} suggest\n    {row(kind, found)}\n"
        "and a tiny model of it to NETS in tests/tiny.py, with which the tests in tests/network check the "
        "row. Fields for what a configuration switches on and off (unless, and norm_after and out where this "
        "model has none) cannot be read from one model: see Family there"
    )


def row(kind: str, found: dict[str, str]) -> str:
    """A row of FAMILIES as a line of Python."""
    parts = [f'"{found[name]}"' for name in ("layers", "value_projection", "norm")]
    usual = {"head": "lm_head", "past": "past_key_values"}
    for name in ("head", "rotary", "past", "norm_after", "out", "cap"):
        if found.get(name) and found[name] != usual.get(name):
            parts.append(f'{name}="{found[name]}"')
    if found.get("rotary_by_type"):
        parts.append("rotary_by_type=True")
    return f'"{kind}": Family({", ".join(parts)}),'


def modules_of(net: Any) -> dict[str, str]:
    """Field of `palimpsest.network.families.Family` -> module that it needs; empty if none was found."""
    named = dict(net.named_modules())
    lists = {name: part for name, part in named.items() if isinstance(part, nn.ModuleList) and len(part)}
    layers = max(lists, key=lambda name: sum(w.numel() for w in lists[name].parameters()), default="")
    outside = {name: part for name, part in named.items() if layers and not name.startswith(f"{layers}.")}
    norms = [name for name, part in outside.items() if "norm" in type(part).__name__.casefold()]
    body = layers.rsplit(".", 1)[0]
    head = net.get_output_embeddings()
    rotary = next((name for name in outside if name.endswith("rotary_emb")), "")
    config = net.config.get_text_config()
    return {
        "layers": layers,
        "value_projection": _value_projection(lists[layers][0], config.hidden_size) if layers else "",
        "norm": next((name for name in reversed(norms) if name.startswith(body)), ""),
        "head": next((name for name, part in named.items() if part is head), ""),
        "rotary": rotary,
        "past": next((name for name in PAST if layers and name in _takes(lists[layers][0])), ""),
        "norm_after": _norm_after(lists[layers][0]) if layers else "",
        "out": next((name for name in outside if name.endswith("project_out")), ""),
        "cap": CAP if hasattr(config, CAP) else "",
        "rotary_by_type": "yes" if rotary and "layer_type" in _takes(named[rotary]) else "",
    }


PAST = ("past_key_values", "layer_past")
CAP = "final_logit_softcapping"


def _takes(part: nn.Module) -> set[str]:
    """Names of the arguments of a module."""
    return set(signature(type(part).forward).parameters)


def _norm_after(layer: nn.Module) -> str:
    """A norm of a layer whose name says that it follows the MLP."""
    norms = [name for name, part in layer.named_children() if "norm" in type(part).__name__.casefold()]
    behind = [name for name in norms if name.startswith("post_") and name.split("_")[1] in MLP]
    return behind[-1] if behind else ""


MLP = ("feedforward", "mlp", "ffn", "ff")
"""Names of the part of a layer that is edited, in the names of norms."""


def _value_projection(layer: Any, width: int) -> str:
    """The last map of a layer, outside attention, that leads from a wider state back to the model's width."""
    maps = {
        name: _sizes(part)
        for name, part in layer.named_modules()
        if getattr(getattr(part, "weight", None), "ndim", 0) == 2
        and "attn" not in name
        and "attention" not in name
    }
    found = [name for name, (taken, given) in maps.items() if given == width < taken]
    return found[-1] if found else ""


def _sizes(part: Any) -> tuple[int, int]:
    """Numbers that a map takes and gives; Conv1D stores its matrix transposed."""
    rows, columns = part.weight.shape
    return (rows, columns) if isinstance(part, transformers.pytorch_utils.Conv1D) else (columns, rows)


def without_data(config: Any) -> Any:
    """The network of a configuration with modules and shapes, and no memory behind its weights.

    Raises:
        ValueError: if transformers has no causal language model for it.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
