"""The trainings that there are: what each learns, in which layers, and how it is looked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.editors import mend, reader
from palimpsest.editors.settings import editor_settings
from palimpsest.network.model import EditableModel
from palimpsest.training import hypernetworks, readers, runs


@dataclass(frozen=True)
class Training:
    """What is trained for one editor.

    Attributes:
        plan: class of its plans, whose defaults are its own.
        train: (model, kinds, plan, file, about of the data) -> what was trained, with its ``about``.
        layers: (model) -> layers that it changes where none are asked for.
        file: (model) -> where the editor finds it.
        instructed: whether each kind of request has an instruction.
    """

    plan: type[runs.Plan]
    train: Callable[..., Any]
    layers: Callable[[EditableModel], tuple[int, ...]]
    file: Callable[[EditableModel], Path]
    instructed: bool = False


def _of_hypernetwork(kind: str, instructed: bool = False) -> Training:
    return Training(
        hypernetworks.Plan,
        hypernetworks.train,
        lambda model: tuple(editor_settings(model.name, kind)["layers"]),
        lambda model: mend.trained_file(model, kind),
        instructed,
    )


def _middle(model: EditableModel) -> tuple[int, ...]:
    """From a quarter to two thirds of the depth, where a network looks up what it has just read."""
    return tuple(range(model.n_layers // 4, max(2 * model.n_layers // 3, 1)))


TRAININGS: dict[str, Training] = {
    "mend": _of_hypernetwork("mend"),
    "instruct_edit": _of_hypernetwork("instruct_edit", instructed=True),
    reader.KIND: Training(readers.Plan, readers.train, _middle, reader.reader_file),
}
"""Name of an editor -> its training."""
