"""Sequential knowledge editing of language models: one library behind every notebook of the book.

The names below are imported when first used, so that parts without a network (records, claims, reports, the
command line) start without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.apply import PromptContext as PromptContext
    from palimpsest.apply import WeightDelta as WeightDelta
    from palimpsest.apply import commit as commit
    from palimpsest.apply import installed as installed
    from palimpsest.configurations import configuration as configuration
    from palimpsest.edited import EditedModel as EditedModel
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
    from palimpsest.embedding import embedder as embedder
    from palimpsest.ledger import EditLedger as EditLedger
    from palimpsest.model import EditableModel as EditableModel
    from palimpsest.model import generate as generate
    from palimpsest.model import load as load
    from palimpsest.sequential import Sequential as Sequential
    from palimpsest.sequential import steps as steps
    from palimpsest.stability import diagnose as diagnose
    from palimpsest.types import EditRequest as EditRequest
    from palimpsest.types import EvalCase as EvalCase

_HOMES = {
    "apply": ("PromptContext", "WeightDelta", "commit", "installed"),
    "configurations": ("configuration",),
    "edited": ("EditedModel",),
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
    "embedding": ("embedder",),
    "ledger": ("EditLedger",),
    "model": ("EditableModel", "generate", "load"),
    "sequential": ("Sequential", "steps"),
    "stability": ("diagnose",),
    "types": ("EditRequest", "EvalCase"),
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
