"""What `palimpsest evaluate --what` asks beside the scores of facts, for a model that is named.

Drift and hidden states compare the model with the unedited one, which is read first and let go of. An edited
folder says which model that is, and which layer was edited last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors.settings import editor_settings
from palimpsest.errors import ModelError, PalimpsestError, SiteError
from palimpsest.evaluation.ability import Ability
from palimpsest.evaluation.drift import Drift, reference
from palimpsest.evaluation.representation import representations
from palimpsest.network.model import EditableModel, load
from palimpsest.types import EvalCase
from palimpsest.workbench import folder as files
from palimpsest.workbench.measurements import MEASURED, measure

PROMPTS = 200
"""Prompts whose hidden states are read."""


def beside_facts(
    model: EditableModel, what: Sequence[str], cases: Sequence[EvalCase], given: dict[str, Any], seed: int
) -> dict[str, pd.DataFrame]:
    """Tables of further measurements of a model, by name.

    Args:
        model: the model as it is now.
        what: rows of `palimpsest.workbench.measurements.MEASURED`.
        cases: facts that were scored; no item of ability is about their subjects.
        given: what `unedited_readings` returned.
        seed: of the bootstrap.

    Raises:
        As `palimpsest.workbench.measurements.measure`.
    """
    found = measure(model, what, cases, **given)
    return {name: _table(made, seed) for name, made in found.items()}


def unedited_readings(
    model: str,
    what: Sequence[str],
    cases: Sequence[EvalCase],
    unedited: str | None,
    layer: int | None,
    device: str | torch.device,
) -> dict[str, Any]:
    """What the measurements need of the unedited model, as arguments of `measure`; empty if nothing.

    Args:
        model: name, folder or hub id of the model to be measured.
        what: rows of MEASURED.
        cases: facts that were scored; states of other subjects are read.
        unedited: name of the unedited model; by default the one that an edited folder was made from.
        layer: whose output is compared at the subjects; by default the last that was edited.
        device: where to compute.

    Raises:
        ModelError: if the unedited model is needed and not known.
        SiteError: if the last edited layer is needed and not known.
        As `palimpsest.network.model.load`.
    """
    needs = {MEASURED[name].needs for name in what if name in MEASURED}
    if not needs & {"reference", "states"}:
        return {}
    about = files.read_description(Path(model)) if files.is_edited(Path(model)) else None
    name = unedited or (about.base["name"] if about else None)
    if name is None:
        raise ModelError(
            f"{model} is no folder of edits, so that the unedited model it is compared with is not known; "
            "name it with --unedited"
        )
    base = load(name, device=device)
    given: dict[str, Any] = {"reference": reference(base)} if "reference" in needs else {}
    if "states" in needs:
        at = layer if layer is not None else about.editor.layers[-1] if about else _last_layer(name)
        written = {case.request.subject for case in cases}
        written |= {fact.subject for fact in about.facts} if about else set()
        others = [
            case.request
            for case in counterfact_style(load_facts(), seed=0, split="validation")
            if case.request.subject not in written
        ]
        given["states"] = representations(base, others[:PROMPTS], at)
    return given


def _last_layer(name: str) -> int:
    """The last layer that MEMIT edits in a model with settings on file."""
    try:
        return int(max(editor_settings(name, "memit")["layers"]))
    except PalimpsestError as error:
        raise SiteError(
            f"{name} has no settings, so that the last edited layer is not known; give it with --layer"
        ) from error


def _table(found: Any, seed: int) -> pd.DataFrame:
    """Rows to print and to write."""
    if isinstance(found, Ability):
        return found.table()
    if isinstance(found, Drift):
        ratio = found.ratio(seed)
        rows = [
            ("perplexity", found.perplexity, None, None),
            ("unedited perplexity", found.perplexity_before, None, None),
            ("ratio of perplexities", ratio.mean, ratio.low, ratio.high),
            ("same most probable token", found.agreement, None, None),
            ("KL(unedited || now), nats", found.kl, None, None),
        ]
        return pd.DataFrame(rows, columns=["measure", "value", "low", "high"]).astype(
            dict.fromkeys(("value", "low", "high"), float)
        )
    return pd.DataFrame(found)
