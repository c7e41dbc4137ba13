"""The command ``palimpsest diagnose``: measure the stability of an edit on disk."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from palimpsest.datasets import load_facts
from palimpsest.datasets.wordings import load_wordings, wordings_of
from palimpsest.errors import ScoreError
from palimpsest.evaluation.responses import Decoding, Wordings, cost
from palimpsest.evaluation.stability import diagnose, summary
from palimpsest.files import as_json, replacing
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.embedder import embedder
from palimpsest.network.model import EditableModel, describe, load, read_weight, write_weight
from palimpsest.types import EditRequest
from palimpsest.workbench import folder as files
from palimpsest.workbench.edit_file import load_edit
from palimpsest.workbench.edited_model import DEFAULT_MODEL, EditedModel
from palimpsest.workbench.places import place

SHOWN = ("fact", "total_before", "total_after", "delta_total", "delta_drift_squared", "unchanged")
FEWEST = 2


@dataclass(frozen=True)
class Written:
    """A diagnosis and the file to which it was written.

    Attributes:
        table: one row per fact, see `palimpsest.evaluation.stability.compared`.
        summary: growth over facts with intervals; empty for a single fact, which has no interval.
        path: CSV of the table; a JSON file of the same name holds the summary and the settings.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    path: Path

    def __str__(self) -> str:
        shown = self.table[list(SHOWN)].to_string(index=False, float_format=lambda value: f"{value:.3f}")
        if self.summary.empty:
            return f"{shown}\n\none fact has no interval; diagnose an edit of two or more"
        lines = [
            f"{row.measure}: {row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}] over {row.n} facts"
            for row in self.summary.itertuples()
        ]
        return "\n".join([shown, "", "95 % intervals, bootstrap over facts; growth is relative:", *lines])


def diagnose_on_disk(
    edit: Path,
    out: Path | None = None,
    model: str | None = None,
    wordings: Path | None = None,
    embed: str = "minilm",
    decoding: Decoding | None = None,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = print,
) -> Written:
    """Measure an edit's stability and write the table.

    The cost is reported before sampling starts. Responses are cached as they are drawn, so that the same call
    continues after an interruption.

    Args:
        edit: a folder of ``palimpsest edit``, or a file of `palimpsest.workbench.edit_file.save_edit`.
        out: CSV to write; by default ``<edit>.uncertainty.csv``.
        model: name, folder or hub id of the unedited model; by default the one that the edit names.
        wordings: file of facts with a member ``wordings``; by default the six levels of the fact set.
        embed: name or folder of the sentence embedder.
        decoding: settings of sampling.
        limit: largest number of facts to diagnose, the first ones.
        device: where to compute, such as ``cpu`` or ``cuda``.
        say: called with the cost as text.

    Raises:
        ModelError: if the edit was made for another model.
        LedgerError, ResourceError: if there is no edit, or it is damaged.
        DataError: if a fact has no wordings.
        UnknownNameError: if the model or the embedder is unknown.
        ScoreError: if the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ScoreError(f"limit is {limit}; diagnose at least 1 fact")
    unedited, change, requests = _read(edit, model, device)
    ways = wordings_of(requests[:limit], load_facts(), load_wordings(wordings) if wordings else None)
    chosen = decoding or Decoding()
    with installed(unedited, change):  # raises for another model before an embedder is loaded
        takes = cost(unedited, ways, chosen)
    say(f"before and after: {takes + cost(unedited, ways, chosen)}")
    reader = embedder(embed, device=device)
    table = diagnose(unedited, change, ways, reader, chosen).table
    found = summary(table, chosen.seed) if len(table) >= FEWEST else pd.DataFrame()
    path = out or files.beside(place(edit), "uncertainty.csv")
    about = {
        "edit": str(edit),
        "model": describe(unedited),
        "embedder": {"name": reader.name, "digest": reader.digest},
        "decoding": asdict(chosen),
    }
    _write(path, table, found, about, ways)
    return Written(table, found, path)


def _read(
    edit: Path, model: str | None, device: str | torch.device
) -> tuple[EditableModel, WeightDelta, Sequence[EditRequest]]:
    """The unedited model, the edit, and the facts that it writes."""
    if edit.is_dir() or not edit.exists():
        edited = EditedModel.open(edit, device)
        ledgers, unedited = edited.ledgers, edited.model
        deltas = {i: read_weight(unedited, i).double() - own.base.double() for i, own in ledgers.items()}
        if model is None:
            for layer, ledger in ledgers.items():
                write_weight(unedited, layer, ledger.base)
        else:
            unedited = load(model, getattr(torch, edited.base["dtype"]), device)
        return unedited, WeightDelta(deltas, edited.base["fingerprint"]), list(edited.facts.values())
    saved = load_edit(edit)
    return load(model or saved.model or DEFAULT_MODEL, device=device), saved.edit, saved.requests


def _write(
    path: Path, table: pd.DataFrame, found: pd.DataFrame, about: Mapping[str, object], ways: Wordings
) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
    rows = [
        {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in row.items()
        }
        for row in found.to_dict("records")
    ]
    content = {**about, "wordings": {fact: list(own) for fact, own in ways.items()}, "summary": rows}
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_bytes(as_json(content))
