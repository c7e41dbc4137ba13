"""Stability of a model's answers under rewording, before and after an edit, with confidence intervals.

    report = diagnose(model, edit, wordings, embedder())    # the edit is removed afterwards
    report.table                                            # one row per fact
    summary(report.table)                                   # growth over facts, with intervals

Both models answer the same wordings with the same random numbers (`palimpsest.evaluation.responses`), and the
same embedder embeds the answers; `palimpsest.evaluation.uncertainty` defines what is computed from them.
Responses and embeddings are cached on disk.
Source: Diagnosing Hidden Instabilities in Model Editing via Uncertainty Quantification, section 4 and C.1.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import pandas as pd
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import ModelError, ScoreError
from palimpsest.evaluation.responses import Decoding, Texts, Wordings, responses
from palimpsest.evaluation.uncertainty import (
    Decomposition,
    by_wording,
    compare,
    decompose,
    growth,
    shift_squared,
)
from palimpsest.network.apply import Edit, installed
from palimpsest.network.embedder import Embedder
from palimpsest.network.model import EditableModel
from palimpsest.results.intervals import Interval, bootstrap_mean, relative_growth

PARTS = ("aleatoric", "epistemic", "total", "drift_squared")


@dataclass(frozen=True)
class Measured:
    """Responses of a model to the wordings of one fact, and their uncertainty.

    Attributes:
        wordings: the M wordings.
        texts: K responses to each.
        embeddings: of the texts, (M, K, d), float64.
        parts: their uncertainty.
    """

    wordings: tuple[str, ...]
    texts: Texts
    embeddings: Float64[Tensor, "m k d"]
    parts: Decomposition


Measurements = Mapping[str, Measured]
"""Id of a fact -> its responses and uncertainty."""


def measure_stability(
    model: EditableModel,
    wordings: Wordings,
    embed: Embedder,
    decoding: Decoding | None = None,
) -> dict[str, Measured]:
    """Sample responses to every wording of every fact, embed them and decompose their uncertainty.

    Cached responses and embeddings are read from disk. Empty responses are embedded like any other text, and
    a fact whose responses are all equal has uncertainty 0; neither is an error.

    Args:
        model: the current model, edited or not.
        wordings: fact -> two or more wordings, subject filled in.
        embed: from `palimpsest.network.embedder.embedder`.
        decoding: settings of sampling; use the same before and after an edit.

    Raises:
        As `palimpsest.evaluation.responses.responses` and the embedder.
    """
    said = responses(model, wordings, decoding)
    bar = tqdm(said.items(), desc="embedding", unit="fact", leave=False)
    return {fact: measured(wordings[fact], texts, embed) for fact, texts in bar}


def measured(wordings: Sequence[str], texts: Texts, embed: Embedder) -> Measured:
    """Embed the responses to one fact's wordings and decompose their uncertainty; embeddings are cached.

    Args:
        wordings: the M wordings of the fact.
        texts: K responses to each, as `palimpsest.evaluation.responses.responses` gives them.
        embed: from `palimpsest.network.embedder.embedder`.
    """
    embeddings = _embedded(texts, embed)
    return Measured(tuple(wordings), texts, embeddings, decompose(embeddings))


def _embedded(texts: Texts, embed: Embedder) -> Float64[Tensor, "m k d"]:
    def compute() -> dict[str, Tensor]:
        flat = embed([text for own in texts for text in own])
        return {"embeddings": flat.unflatten(0, (len(texts), len(texts[0])))}

    return cache.tensors("embeddings", {"embedder": embed.digest, "texts": texts}, compute)["embeddings"]


@dataclass(frozen=True)
class Diagnosis:
    """Stability of a model before and after an edit.

    Attributes:
        before: of the unedited model.
        after: of the edited model.
        table: one row per fact, see `compared`.
    """

    before: Measurements
    after: Measurements
    table: pd.DataFrame


def diagnose(
    model: EditableModel,
    edit: Edit | EditableModel,
    wordings: Wordings,
    embed: Embedder,
    decoding: Decoding | None = None,
) -> Diagnosis:
    """Measure the unedited and the edited model and compare them fact by fact.

    Args:
        model: the unedited model; restored bit by bit at the end.
        edit: an edit of this model, or the edited model itself.
        wordings: fact -> two or more wordings, subject filled in.
        embed: from `palimpsest.network.embedder.embedder`.
        decoding: settings of sampling.

    Raises:
        ModelError: if the edit was made for another model, or the edited model has another shape.
        ScoreError, NonFiniteError: as `measure_stability`.
    """
    with _in_force(model, edit):  # raises before anything is sampled if the edit does not fit
        pass
    before = measure_stability(model, wordings, embed, decoding)
    with _in_force(model, edit) as edited:
        after = measure_stability(edited, wordings, embed, decoding)
    return Diagnosis(before, after, compared(before, after))


def _in_force(model: EditableModel, edit: Edit | EditableModel) -> AbstractContextManager[EditableModel]:
    if not isinstance(edit, EditableModel):
        return installed(model, edit)
    shapes = [
        {name: tuple(p.shape) for name, p in one.net.named_parameters()} | {"": (len(one.tokenizer),)}
        for one in (model, edit)
    ]
    if shapes[0] != shapes[1]:
        odd = sorted(name for name, _ in set(shapes[0].items()) ^ set(shapes[1].items()))[0]
        raise ModelError(
            f"{edit.name} is no edited {model.name}: {odd or 'the vocabulary'} has another shape; give the "
            "model that the edit was made from"
        )
    return nullcontext(edit)


def compared(before: Measurements, after: Measurements) -> pd.DataFrame:
    """Compare the measurements of two models, one row per fact.

    Columns: fact; wordings (M) and samples (K); each of aleatoric, epistemic, total and drift_squared with
    ``_before`` and ``_after``; delta_total, delta_aleatoric, delta_epistemic (relative growth, infinite from
    0); delta_drift_squared (difference, unbiased); shift_squared (squared distance by which the answers to a
    wording moved, unbiased) and shift_squared_biased; unchanged, the share of responses that are the same
    text; empty_before and empty_after, the shares of responses that are empty or white space.

    Raises:
        ScoreError: if the facts or their wordings differ.
        ShapeError: if the numbers of samples or the embedders differ.
    """
    if list(before) != list(after) or any(before[f].wordings != after[f].wordings for f in before):
        raise ScoreError(
            f"{len(before)} facts were measured before and {len(after)} after, and they are not the same "
            "with the same wordings; measure both with one list of wordings"
        )
    return pd.DataFrame([_row(fact, before[fact], after[fact]) for fact in before])


def _row(fact: str, before: Measured, after: Measured) -> dict[str, object]:
    biased, unbiased = shift_squared(before.embeddings, after.embeddings)
    first, second = ([text for own in side.texts for text in own] for side in (before, after))
    m, k, _ = before.embeddings.shape
    sides = {"before": before.parts, "after": after.parts}
    return {
        "fact": fact,
        "wordings": m,
        "samples": k,
        **{f"{part}_{side}": getattr(parts, part) for part in PARTS for side, parts in sides.items()},
        **asdict(compare(before.parts, after.parts)),
        "shift_squared": unbiased,
        "shift_squared_biased": biased,
        "unchanged": sum(a == b for a, b in zip(first, second, strict=True)) / len(first),
        "empty_before": sum(not text.strip() for text in first) / len(first),
        "empty_after": sum(not text.strip() for text in second) / len(second),
    }


def wording_table(before: Measurements, after: Measurements, labels: Sequence[object]) -> pd.DataFrame:
    """One row per fact and wording, for growth by perturbation level.

    Args:
        before: of the unedited model.
        after: of the edited model, for the same facts and wordings.
        labels: of the wordings in their order, for example the levels 1 to 6; one for each wording of a fact.

    Returns:
        Columns fact, wording (its label), and each of aleatoric, epistemic, total, drift_squared with
        ``_before`` and ``_after``: the contribution of that wording, see
        `palimpsest.evaluation.uncertainty.by_wording`.

    Raises:
        ScoreError: if the facts or their wordings differ, or a fact has more or fewer wordings than labels.
        ShapeError: if the numbers of samples or the embedders differ.
    """
    compared(before, after)  # raises if the measurements do not match
    rows = []
    for fact, measured in before.items():
        if len(measured.wordings) != len(labels):
            raise ScoreError(
                f"fact {fact!r} has {len(measured.wordings)} wordings and there are {len(labels)} labels; "
                "give one label for each"
            )
        sides = {"before": by_wording(measured.embeddings), "after": by_wording(after[fact].embeddings)}
        for place, label in enumerate(labels):
            parts = {f"{part}_{s}": getattr(own[place], part) for part in PARTS for s, own in sides.items()}
            rows.append({"fact": fact, "wording": label, **parts})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, seed: int = 0, level: float = 0.95) -> pd.DataFrame:
    """Growth of uncertainty over all facts, each measure with a bootstrap interval over facts.

    Args:
        table: from `compared`, of two or more facts; tables may be concatenated if their ids are distinct.
        seed: of the bootstrap.
        level: nominal coverage of the intervals.

    Returns:
        Columns measure, mean, low, high, n. Measures: growth of ``total``, ``aleatoric`` and ``epistemic`` as
        a ratio of means (0.2 is 20 % more); ``delta_total``, the mean of Δ_U over the n facts where it is
        finite (no row if fewer than two), which noise alone makes positive; ``delta_drift_squared``,
        ``shift_squared`` and ``drift_squared_before``, unbiased squared distances; ``unchanged``, a share.
        If the uncertainty before is 0 in every fact, growth is 0 if it stays 0, and infinite otherwise.

    Raises:
        ScoreError: for fewer than two facts.
    """
    facts = table.set_index("fact")
    found: dict[str, Interval] = {}
    for part in ("total", "aleatoric", "epistemic"):
        before, after = facts[f"{part}_before"], facts[f"{part}_after"]
        if before.any() or len(before) < 2:
            found[part] = relative_growth(before, after, seed, level)
        else:
            certain = growth(0.0, float(after.mean()))
            found[part] = Interval(certain, certain, certain, len(before))
    finite = facts["delta_total"][facts["delta_total"] < math.inf]
    if len(finite) >= 2:
        found["delta_total"] = bootstrap_mean(finite, seed, level)
    for name in ("delta_drift_squared", "shift_squared", "drift_squared_before", "unchanged"):
        found[name] = bootstrap_mean(facts[name], seed, level)
    rows = [{"measure": name, **vars(interval)} for name, interval in found.items()]
    return pd.DataFrame(rows, columns=["measure", "mean", "low", "high", "n"])
