"""Sequential knowledge editing of language models: one library behind every notebook of the book.

The names below are imported when first used, so that parts without a network (records, claims, reports, the
command line) start without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.algebra.ledger import EditLedger as EditLedger
    from palimpsest.editors import AlphaEdit as AlphaEdit
    from palimpsest.editors import AlphaEditPlus as AlphaEditPlus
    from palimpsest.editors import FineTune as FineTune
    from palimpsest.editors import Ike as Ike
    from palimpsest.editors import IkeState as IkeState
    from palimpsest.editors import Memit as Memit
    from palimpsest.editors import PlusState as PlusState
    from palimpsest.editors import Rome as Rome
    from palimpsest.editors import State as State
    from palimpsest.editors import edit as edit
    from palimpsest.editors import editor_for as editor_for
    from palimpsest.editors.named_sequences import configuration as configuration
    from palimpsest.editors.sequential import Sequential as Sequential
    from palimpsest.editors.steps import steps as steps
    from palimpsest.evaluation.stability import diagnose as diagnose
    from palimpsest.network.apply import PromptContext as PromptContext
    from palimpsest.network.apply import WeightDelta as WeightDelta
    from palimpsest.network.apply import commit as commit
    from palimpsest.network.apply import installed as installed
    from palimpsest.network.embedder import embedder as embedder
    from palimpsest.network.model import EditableModel as EditableModel
    from palimpsest.network.model import generate as generate
    from palimpsest.network.model import load as load
    from palimpsest.types import EditRequest as EditRequest
    from palimpsest.types import EvalCase as EvalCase
    from palimpsest.workbench.edited_model import EditedModel as EditedModel

_HOMES = {
    "algebra.ledger": ("EditLedger",),
    "editors": (
        "AlphaEdit",
        "AlphaEditPlus",
        "FineTune",
        "Ike",
        "IkeState",
        "Memit",
        "PlusState",
        "Rome",
        "State",
        "edit",
        "editor_for",
    ),
    "editors.named_sequences": ("configuration",),
    "editors.sequential": ("Sequential",),
    "editors.steps": ("steps",),
    "evaluation.stability": ("diagnose",),
    "network.apply": ("PromptContext", "WeightDelta", "commit", "installed"),
    "network.embedder": ("embedder",),
    "network.model": ("EditableModel", "generate", "load"),
    "types": ("EditRequest", "EvalCase"),
    "workbench.edited_model": ("EditedModel",),
}
HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(HOME_OF)


def __getattr__(name: str) -> Any:
    if name in HOME_OF:
        return getattr(import_module(f"palimpsest.{HOME_OF[name]}"), name)
    try:
        return import_module(f"palimpsest.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"palimpsest.{name}":
            raise
        raise AttributeError(f"module 'palimpsest' has no attribute {name!r}") from None
