"""Hidden states of a fixed set of prompts before and after editing, and how far they shifted.

`representations` reads the states of the current model, `representation_shift` compares two readings of the
same prompts with every measure of `palimpsest.evaluation.shift`, each with an interval over prompts.
Two places are read in one pass:

    subject   output of the last edited layer at the subject's last token, as in the released code of The
              Labyrinth and the Thread, which takes a thousand facts that are not edited
    prompt    output of the last layer at the prompt's last token, from which the head predicts the object
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import NonFiniteError, ScoreError, UnknownNameError
from palimpsest.evaluation.shift import SHIFT_MEASURES, Shift
from palimpsest.evaluation.shift_measures import States
from palimpsest.network.activations import capture
from palimpsest.network.cores import side_by_side
from palimpsest.network.model import EditableModel, Site, fingerprint
from palimpsest.network.packed import pack
from palimpsest.network.tokens import encode_around_subject
from palimpsest.results.intervals import Interval
from palimpsest.types import EditRequest

REVISION = 1
"""Part of the cache key; raise it when the same prompts give other states than before."""

Place = Literal["subject", "prompt"]
PLACES: tuple[Place, ...] = ("subject", "prompt")

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Representations:
    """Hidden states of the same prompts in one model.

    Attributes:
        subject: output of ``layer`` at the subject's last token (n, d_v), float64.
        prompt: output of the last layer, before the final norm, at the prompt's last token (n, d_v), float64.
        layer: of ``subject``.
        requests: the n prompts.
        model: name of the model.
    """

    subject: Float64[np.ndarray, "n d_v"]
    prompt: Float64[np.ndarray, "n d_v"]
    layer: int
    requests: tuple[EditRequest, ...]
    model: str

    def at(self, place: Place) -> States:
        """States at a place.

        Raises:
            UnknownNameError: if there is no such place.
        """
        if place not in PLACES:
            raise UnknownNameError("place", place, list(PLACES))
        return self.subject if place == "subject" else self.prompt


def representations(model: EditableModel, requests: Sequence[EditRequest], layer: int) -> Representations:
    """Read the states of some prompts; from disk if they were read on the same weights before.

    Args:
        model: the model as it is now.
        requests: facts of which prompt and subject are read; take facts that no edit touches.
        layer: whose output is read at the subject: the last edited one.

    Raises:
        ScoreError: if there is no prompt.
        SiteError: if there is no such layer.
        RequestError: if a subject's last character belongs to no token.
        NonFiniteError: if a state is not finite.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    if not requests:
        raise ScoreError("hidden states need at least one prompt to be read at, got none")
    sites = {"subject": Site(layer, "hidden"), "prompt": Site(model.n_layers - 1, "hidden")}
    for site in sites.values():
        model.layer(site.layer)
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "prompts": [(one.prompt, one.subject) for one in requests],
        "layer": layer,
    }
    found = cache.tensors("representations", key, lambda: _read(model, requests, sites))
    states = {name: found[name].double().numpy() for name in PLACES}
    return Representations(**states, layer=layer, requests=tuple(requests), model=model.name)


def _read(
    model: EditableModel, requests: Sequence[EditRequest], sites: Mapping[str, Site]
) -> dict[str, Tensor]:
    """States (n, d_v) at both places, in the model's dtype, in passes over packed rows."""
    rows, subjects = zip(
        *(
            encode_around_subject(model.tokenizer, r.prompt, r.subject, model.before(r.text))
            for r in requests
        ),
        strict=True,
    )

    def run(start: int) -> dict[str, Tensor]:
        packed = pack(rows[start : start + _ROWS_AT_ONCE]).to(model.device)
        found = capture(model, packed, list(dict.fromkeys(sites.values())))
        columns = torch.tensor(subjects[start : start + _ROWS_AT_ONCE])
        ends = {"subject": packed.place[torch.arange(len(columns)), columns], "prompt": packed.last}
        # (b, t, d_v) -> (b·t, d_v), of which one position of each row is kept
        return {name: found[site].flatten(0, 1)[ends[name]].cpu() for name, site in sites.items()}

    starts = tqdm(range(0, len(rows), _ROWS_AT_ONCE), desc="reading states", unit="pass", leave=False)
    parts = side_by_side(run, starts, model.device)
    states = {name: torch.cat([part[name] for part in parts]) for name in sites}
    for name, found in states.items():
        bad = int((~found.isfinite()).any(1).sum())
        if bad:
            raise NonFiniteError(
                f"{model.name} gives NaN or infinity at the {name} of {bad} of {len(rows)} prompts: its "
                "weights hold such values or its activations overflow; undo the last edit, weaken it, or "
                "load the model in a wider dtype"
            )
    return states


def representation_shift(
    before: Representations,
    after: Representations,
    place: Place = "subject",
    seed: int = 0,
    resamples: int = 200,
    draws: int = 200,
) -> pd.DataFrame:
    """Every measure of the shift between two readings of the same prompts.

    Args:
        before: of the unedited model.
        after: of the edited one.
        place: where the states are compared.
        seed: of bootstrap and controls.
        resamples: of the prompts, for each interval.
        draws: of each control.

    Returns:
        One row per measure, with columns ``measure``, ``value``, ``low`` and ``high`` (95 % over prompts; NaN
        for a single prompt), ``control``, ``control_low`` and ``control_high`` (see `Shift.control`),
        ``same`` (the value if no state moved), ``unit`` and ``n``.

    Raises:
        ScoreError: if the readings are of other prompts or another layer.
        UnknownNameError: if there is no such place.
        NonFiniteError: if a state is not finite.
    """
    names = [[(one.prompt, one.subject) for one in reading.requests] for reading in (before, after)]
    if names[0] != names[1] or before.layer != after.layer:
        raise ScoreError(
            f"the readings are of {len(names[0])} prompts at layer {before.layer} and of {len(names[1])} at "
            f"layer {after.layer}, which differ; read the same prompts at the same layer in both models"
        )
    shift = Shift.between(before.at(place), after.at(place))
    rows = []
    for name, about in tqdm(SHIFT_MEASURES.items(), desc="comparing states", unit="measure", leave=False):
        value = shift.measure(name)
        found = Interval(value, np.nan, np.nan, 1)
        if shift.prompts > 1:
            found = shift.interval(name, seed, resamples)
        null = shift.control(name, seed, draws)
        told = {"measure": name, "value": value, "low": found.low, "high": found.high}
        told |= {"control": null.mean, "control_low": null.low, "control_high": null.high}
        rows.append(told | {"same": about.same, "unit": about.unit, "n": found.n})
    return pd.DataFrame(rows)
