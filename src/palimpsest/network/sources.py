"""Where a model is to be loaded from, checked before anything slow: why it cannot be, in seconds.

A folder is looked at file by file. An id that the local cache does not hold is asked for at the hub, once and
briefly, so that a misspelt id, one whose conditions were not accepted, and a hub out of reach are told apart.
"""

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from palimpsest.errors import ModelError, ResourceError, UnknownNameError

EMBEDDED = "smollm2-135m"

CHOICES = [EMBEDDED, "a folder in Hugging Face format", "a hub id within reach"]

PATIENCE = 4.0
"""Seconds that the hub has for its answer."""

POINTER = b"version https://git-lfs"
"""Beginning of a file that Git LFS left in place of a large one."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

Probe = Callable[[str], Any]


def check_source(name: str, probe: Probe | None = None) -> None:
    """Check that a model can be loaded by a name, before it is.

    Args:
        name: a folder, or the id of a model on a hub.
        probe: asks the hub about an id; by default the hub itself.

    Raises:
        UnknownNameError: if it is neither, or the hub has no such model.
        ModelError: if it is a file, a folder that lacks or damages what a model needs, or a model whose
            conditions were not accepted.
        ResourceError: if the hub cannot be reached.
    """
    if os.path.isdir(name):
        check_folder(Path(name))
    elif os.path.exists(name):
        raise ModelError(f"{name} is a file; give the folder with config.json, weights and tokenizer")
    else:
        check_name(name)
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            check_id(name, probe or _ask_hub)


def unusable(name: str | Path, reason: str, remedy: str) -> ModelError:
    """The error of a model that was found and cannot be used."""
    return ModelError(
        f"{name} cannot be used as a causal language model with its tokenizer: {reason.rstrip('.')}. {remedy}"
    )


def check_folder(folder: Path) -> None:
    """Check that a folder has what a model needs, without reading its weights.

    Raises:
        ModelError: for the first fault, also if a file may not be read.
    """
    try:
        _check_files(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(name: str | Path, error: OSError) -> ModelError:
    """The error of a model of which a file or folder cannot be read."""
    return unusable(name, f"it cannot be read ({error})", "Check the permissions of its files and folders")


def _check_files(folder: Path) -> None:
    held = sorted(path for path in folder.iterdir() if path.is_file())
    again = "Download the folder again, or restore it from an intact copy"
    for path in held:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                remedy = "Fetch the contents with `git lfs pull` in that folder"
                raise unusable(folder, f"{path.name} is a Git LFS pointer and not the file itself", remedy)
    names = {path.name for path in held}
    if "config.json" not in names:
        shown = ", ".join(sorted(names)[:5]) or "no files"
        remedy = "Give the folder that save_pretrained wrote, or complete it"
        raise unusable(folder, f"it has no config.json but {shown}", remedy)
    config = _json(folder, "config.json", again)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "an unnamed method")
        remedy = "Edits change weights, so choose the model in float32, bfloat16 or float16"
        raise unusable(folder, f"its weights are quantised ({method})", remedy)
    weights = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    if not weights:
        raise unusable(folder, "it has no weights (no *.safetensors)", again)
    for path in weights:
        if path.suffix == ".safetensors":
            try:
                with safe_open(str(path), "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise unusable(folder, f"{path.name} is damaged or cut short ({error})", again) from error
    for path in held:
        if path.suffix == ".json":
            _json(folder, path.name, again)


def _json(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise unusable(folder, f"{name} is no JSON ({str(error)[:80]})", remedy) from error
    if not isinstance(content, dict):
        raise unusable(folder, f"{name} holds no JSON object", remedy)
    return content


def check_name(name: str) -> None:
    """Check that a name may be an id of the hub.

    Raises:
        UnknownNameError: if not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UnknownNameError("model", name, CHOICES) from None


def check_id(name: str, probe: Probe) -> Any:
    """What the hub says of an id that its cache does not hold, or not wholly.

    Args:
        name: the id.
        probe: asks the hub.

    Raises:
        UnknownNameError, ModelError, ResourceError: as `check_source`.
    """
    found = difflib.get_close_matches(name.casefold(), [EMBEDDED])
    hint = f"did you mean {found[0]}? " if found else ""
    if constants.HF_HUB_OFFLINE:
        raise ResourceError(
            f"model {name!r}: no folder of that name, the cache of the hub does not hold it, and the hub is "
            f"switched off (HF_HUB_OFFLINE); {hint}unset that, or give a folder"
        )
    answer = _in_time(lambda: probe(name), PATIENCE)
    if isinstance(answer, GatedRepoError):
        raise ModelError(
            f"model {name!r} is gated: accept its conditions on its page of the hub, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(answer, RepositoryNotFoundError):
        raise UnknownNameError(
            "model (the hub has none of that id, or only for those who are logged in)",
            name,
            [f"{hint}{EMBEDDED}", *CHOICES[1:]],
        )
    if isinstance(answer, BaseException):
        raise ResourceError(
            f"model {name!r}: no folder of that name, the cache of the hub does not hold it, and the hub "
            f"cannot be reached ({type(answer).__name__}); {hint}connect to it once, or give a folder"
        )
    return answer


def _ask_hub(name: str) -> Any:
    """What the hub says of an id; raises its error, also for a model whose conditions are not accepted."""
    info = HfApi().model_info(name, timeout=PATIENCE)
    if info.gated:
        HfApi().auth_check(name)
    return info


def _in_time(ask: Callable[[], Any], seconds: float) -> Any:
    """The answer, or the error in its place; a TimeoutError if there was none in time."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(ask())
        except (HTTPError, OfflineModeIsEnabled, OSError) as error:
            found.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else TimeoutError()
