"""Models in other formats than a Hugging Face folder: GGUF files, and folders with a PEFT adapter.

A GGUF file is read by transformers, which turns its weights into floating-point numbers. An adapter is no
model: it holds changes of one, which are merged into its weights where the library that made it is installed.
"""

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palimpsest.errors import ModelError
from palimpsest.network.sources import unreadable

ADAPTER = "adapter_config.json"
"""The file by which a folder of PEFT is known."""

MAGIC = b"GGUF"


@dataclass(frozen=True)
class Source:
    """Where transformers is to load a model from.

    Attributes:
        path: folder or id.
        options: further arguments of ``from_pretrained``, for a GGUF file ``gguf_file``.
        adapter: folder of an adapter to merge into the model; None for none.
    """

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    adapter: Path | None = None


def source_of(name: str) -> Source:
    """Find out in which format a model is given.

    Args:
        name: a GGUF file; a folder with an adapter, or with nothing but GGUF files; or anything else, which
            is returned as it is.

    Raises:
        ModelError: if the file is no GGUF, a folder holds several, an adapter does not name its model, the
            library that reads the format is not installed, or something may not be read.
    """
    try:
        return _format_of(name)
    except OSError as error:
        raise unreadable(name, error) from error


def _format_of(name: str) -> Source:
    path = Path(name)
    if path.suffix.casefold() == ".gguf" and path.is_file():
        return _gguf(path)
    if not path.is_dir() or (path / "config.json").is_file():
        return Source(name)
    if (path / ADAPTER).is_file():
        return _adapter(path)
    found = sorted(one for one in path.iterdir() if one.suffix.casefold() == ".gguf")
    if len(found) > 1:
        raise ModelError(
            f"{path} holds {len(found)} GGUF files, {', '.join(one.name for one in found[:5])}; give the "
            "path of one of them, the one with the widest weights (F32, F16 or BF16 if there is one)"
        )
    return _gguf(found[0]) if found else Source(name)


def merged(net: Any, adapter: Path) -> Any:
    """A network with an adapter merged into its weights.

    Raises:
        ModelError: if the adapter does not fit the network, or cannot be merged.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(net, str(adapter)).merge_and_unload()
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise ModelError(
            f"the adapter in {adapter} cannot be merged into its model ({type(error).__name__}: {first}); "
            f"check that {ADAPTER} names the model it was trained on, and that the folder is complete"
        ) from error


def _gguf(path: Path) -> Source:
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise ModelError(f"{path} is no GGUF file: it begins with {start!r}; download it again")
    if find_spec("gguf") is None:
        raise ModelError(
            f"{path} is a GGUF file, which is read by the package gguf, and that is not installed: run "
            "`pip install gguf`, or give the folder of the model in Hugging Face format"
        )
    return Source(str(path.parent), {"gguf_file": path.name})


def _adapter(path: Path) -> Source:
    try:
        about = json.loads((path / ADAPTER).read_bytes())
        base, kind = about["base_model_name_or_path"], about.get("peft_type", "of an unnamed kind")
    except (ValueError, KeyError, TypeError, AttributeError):
        base, kind = None, ""
    if not base or not isinstance(base, str):
        raise ModelError(
            f"{path} is a PEFT adapter, and its {ADAPTER} does not name the model it belongs to; write it "
            "there as base_model_name_or_path"
        )
    if find_spec("peft") is None:
        raise ModelError(
            f"{path} is a PEFT adapter ({kind}) and no model: it holds changes of {base}. Run "
            "`pip install peft` and load it again, which merges it, or merge it once where peft is there:\n"
            "    from peft import AutoPeftModelForCausalLM\n"
            f"    net = AutoPeftModelForCausalLM.from_pretrained({str(path)!r}).merge_and_unload()\n"
            "    net.save_pretrained('merged')\n"
            f"and save the tokenizer of {base} beside it; the folder 'merged' loads as any other"
        )
    return Source(base, adapter=path)
