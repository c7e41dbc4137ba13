"""An editor, facts and a folder that the tests of edited models share, and how two models differ."""

import random
from pathlib import Path

import torch

from palimpsest.editors.sequential import Sequential
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest
from palimpsest.workbench.commands import edit_folder
from palimpsest.workbench.edited_model import EditedModel
from tests.tiny import tiny_model

LAYERS = (0, 1, 2)
EDITOR = Sequential(
    layers=LAYERS,
    preserve_weight=20.0,
    statistics_tokens=1500,
    targets=TargetSettings(steps=2, lr=0.3),
    contexts=ContextSettings(count=0),  # a random model cannot write readable ones
    reads="unedited",
)


def facts(number: int, seed: int = 1) -> list[EditRequest]:
    """Facts about subjects of random letters; the ids are "0", "1", ..."""
    chooser = random.Random(seed)

    def word(length: int) -> str:
        return "".join(chooser.choices("abcdefghijklmnopqrstuvwxyz", k=length))

    return [
        EditRequest(f"The {word(4)} of {{}} is", f"{word(5)} {word(4)}", word(4), str(i))
        for i in range(number)
    ]


def told(model: EditableModel, requests: list[EditRequest], batch: int = 3) -> EditedModel:
    done = EditedModel(model, EDITOR)
    done.edit(requests, batch)
    return done


def weights(model: EditableModel) -> list[torch.Tensor]:
    return [read_weight(model, layer) for layer in LAYERS]


def gap(a: EditedModel, b: EditedModel) -> float:
    """Largest difference of two edited models' float64 weights, relative to the largest entry."""
    pairs = [(a.ledgers[layer].weight, b.ledgers[layer].weight) for layer in LAYERS]
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def differing(a: EditableModel, b: EditableModel) -> int:
    return sum(int((x != y).sum()) for x, y in zip(weights(a), weights(b), strict=True))


def tiny_folder(folder: Path) -> Path:
    """The tiny model as a folder, so that it has a name to be loaded by."""
    model = tiny_model("llama")
    model.net.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def written(base: Path, out: Path, number: int = 8, batch: int = 3) -> EditedModel:
    return edit_folder(facts(number), out, str(base), EDITOR, batch=batch)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file in a folder, by its path there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the package catches it."""
