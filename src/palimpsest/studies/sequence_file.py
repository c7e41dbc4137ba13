"""Folder of a sequence of edits that goes on later: its ledgers, and the weights after its last step.

What belongs to the unedited model, contexts, second moments and projectors, is not written: it is computed
again, or read from the cache.
"""

import json
from pathlib import Path

from palimpsest import cache
from palimpsest.algebra.ledger import EditLedger
from palimpsest.editors.base import Prepared
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.errors import ResourceError
from palimpsest.files import new_folder
from palimpsest.network.model import EditableModel

ABOUT, WEIGHTS = "state.json", "weights.safetensors"


def save_state(state: SequenceState, folder: Path) -> None:
    """Write the state of a sequence to a new folder, which appears only when it is whole.

    Raises:
        ResourceError: if a file cannot be written; nothing remains then.
    """
    from safetensors.torch import save_file

    weights = {str(layer): weight.cpu().contiguous() for layer, weight in state.weights.items()}
    with new_folder(folder) as staging:
        for layer, ledger in state.ledgers.items():
            ledger.copy().save(staging / f"{layer}.safetensors")
        with cache.sealed(staging / WEIGHTS) as temporary:
            save_file(weights, temporary)
        with cache.sealed(staging / ABOUT) as temporary:
            temporary.write_text(json.dumps({"steps": state.steps}), encoding="utf-8")


def load_state(folder: Path, editor: Sequential, model: EditableModel, prepared: Prepared) -> SequenceState:
    """Read a state from `save_state`; its ledgers are solved again, so that it is the same up to rounding.

    Args:
        folder: with the files.
        editor: the sequence that wrote them.
        model: the unedited model.
        prepared: of the unedited model.

    Raises:
        ResourceError: if a file is missing or damaged.
        LedgerError: if it belongs to another model or layer.
    """
    there = [name for name in (ABOUT, WEIGHTS) if (folder / name).is_file()]
    changed = [name for name in there if not cache.stands(folder / name)]
    if changed:
        raise ResourceError(
            f"{folder} holds a state whose {' and '.join(changed)} changed since it was written (the SHA-256 "
            "differs); delete the folder and run again"
        )
    fresh = editor.set_up(model, SequenceState(prepared))
    try:
        steps = int(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ResourceError(
            f"{folder} holds no state of a sequence ({error}); delete the folder and run again"
        ) from error
    ledgers = {
        layer: EditLedger.load(folder / f"{layer}.safetensors", weight, f"layer {layer}", model.device)
        for layer, weight in fresh.unedited.items()
    }
    found = cache.read(folder / WEIGHTS)
    lacking = [str(layer) for layer in fresh.unedited if str(layer) not in found]
    if lacking:
        raise ResourceError(
            f"{folder / WEIGHTS} lacks layer {', '.join(lacking)}; delete the folder and run again"
        )
    weights = {layer: found[str(layer)].to(model.device) for layer in fresh.unedited}
    return SequenceState(fresh.prepared, ledgers, fresh.unedited, weights, steps)
