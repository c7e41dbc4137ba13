"""Search of editors' settings on validation facts: candidates, how one is scored, and the best of them.

One batch of facts, whose true objects the model prefers, is written with each candidate. The score is the
worst margin, in points, to a bar: efficacy at least 95, generalisation at least 85, at most 5 points of
specificity lost. Every editor is searched over the same number of candidates. How values are optimised
(steps, learning rate, clamp) is the same for all and is not searched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from palimpsest.datasets import hold_out
from palimpsest.editors.base import Editor, Prepared
from palimpsest.errors import ScoreError
from palimpsest.evaluation.evaluate import evaluate, first_known, records_frame
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.network.apply import installed
from palimpsest.network.model import EditableModel
from palimpsest.results.intervals import Interval, bootstrap_rows
from palimpsest.types import EvalCase

RATES = ("efficacy", "generalisation", "specificity")
BAR = {"efficacy": 95.0, "generalisation": 85.0, "specificity_lost": 5.0}
"""Least efficacy and generalisation, and most specificity lost, in percent and points."""

CANDIDATES = 6
"""Settings tried for each editor."""

WEIGHTS, RIDGES, ROME_RIDGES = (100, 1000, 10000), (1, 3, 10), (0.0, 0.03, 0.3)
STEP_SIZES, LEAST_DROPS = (1e-3, 2e-3, 5e-3), (1e-4, 3e-4, 1e-3)


def windows(layers: int) -> tuple[list[int], list[int]]:
    """Two windows of layers to try in a model of so many: early ones and middle ones.

    They lie where the published ones do: those of LLaMA-3-8B begin at an eighth of the depth (layers 4 to 8
    of 32), those of GPT2-XL at 0.27 of it (13 to 17 of 48). A window has a sixth of the layers, five at most.
    """
    width = max(1, min(5, layers // 6))
    starts = (round(layers / 8), max(round(layers / 8) + 1, round(0.27 * layers)))
    early, middle = (list(range(min(a, layers - width), min(a, layers - width) + width)) for a in starts)
    return early, middle


def candidates(layers: int) -> dict[str, list[dict[str, Any]]]:
    """Editor -> settings to try in a model of so many layers, CANDIDATES of each.

    FT-L follows from FT, with a limit of one step of Adam, and in-context editing has nothing to search; see
    `following`.
    """
    both = windows(layers)
    last = [[window[-1]] for window in both]
    return {
        "memit": [{"layers": at, "preserve_weight": w} for at in both for w in WEIGHTS],
        "alphaedit": [{"layers": at, "ridge": ridge} for at in both for ridge in RIDGES],
        "alphaedit_plus": [
            {"layers": at, "perturbation": {"threshold": least, "block": 10}}
            for at in both
            for least in LEAST_DROPS
        ],
        "rome": [{"layers": at, "ridge": ridge} for at in last for ridge in ROME_RIDGES],
        "ft": [{"layers": at, "lr": rate} for at in last for rate in STEP_SIZES],
    }


def following(chosen: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that follow from those found by a search: FT-L from FT."""
    return {"ft_l": {**chosen["ft"], "limit": chosen["ft"]["lr"]}} if "ft" in chosen else {}


@dataclass(frozen=True)
class Trial:
    """What one candidate gave.

    Attributes:
        cases: case id -> value of each of RATES with the edit in force, and ``before``, the specificity of
            the unedited model, in percent; NaN where a case has no prompts of a kind.
        norm: Frobenius norm of the edit.
        seconds: that it took.
    """

    cases: pd.DataFrame
    norm: float
    seconds: float

    def row(self) -> dict[str, float]:
        """Means and score, as a table of a search holds them."""
        told = {name: round(float(self.cases[name].mean()), 2) for name in RATES}
        before = round(float(self.cases["before"].mean()), 2)
        told["specificity_lost"] = round(before - told["specificity"], 2)
        score = worst_margin(told["efficacy"], told["generalisation"], told["specificity_lost"])
        return told | {"score": round(score, 2), "norm": round(self.norm, 3)}

    def score(self, seed: int = 0) -> Interval:
        """The score with a 95 % bootstrap interval over cases."""

        def of(columns: Mapping[str, NDArray[Any]]) -> float:
            mean = {name: float(np.nanmean(columns[name])) for name in (*RATES, "before")}
            return worst_margin(
                mean["efficacy"], mean["generalisation"], mean["before"] - mean["specificity"]
            )

        return bootstrap_rows(self.cases.reset_index(names="case"), of, "case", seed)


def worst_margin(efficacy: float, generalisation: float, lost: float) -> float:
    """Smallest margin to BAR, in points; 0 or more if all of it is met."""
    return min(
        efficacy - BAR["efficacy"], generalisation - BAR["generalisation"], BAR["specificity_lost"] - lost
    )


def rates(model: EditableModel, cases: Sequence[EvalCase]) -> pd.DataFrame:
    """Success rates of the model as it is, in percent: a row per case, a column for each of RATES."""
    frame = records_frame(evaluate(model, cases, RATES))
    wide = 100 * frame.pivot(index="case", columns="metric", values="value")
    return wide.reindex(index=[case.id for case in cases], columns=list(RATES))


def try_settings(
    model: EditableModel,
    cases: Sequence[EvalCase],
    editor: Editor,
    prepared: Prepared,
    before: pd.DataFrame,
) -> tuple[Trial, Prepared]:
    """Write all cases in one batch with an editor and score it; the weights are restored.

    An editor that scores its own edits gets one paraphrase of each case, which is left out of its
    generalisation.

    Args:
        model: the unedited model.
        cases: validation facts.
        editor: the method with the settings to try.
        prepared: what earlier candidates computed of the unedited model, without projectors.
        before: rates of the unedited model, as `rates`.

    Returns:
        What came of it, and what the next candidate can share.

    Raises:
        As the editor.
    """
    started, by = perf_counter(), None
    prepared = replace(prepared, projectors={})
    if editor.score_rule:
        apart = [hold_out(case) for case in cases]
        cases = [case for case, _ in apart]
        by = score_by("validation", cases, {case.request.id: [wording] for case, wording in apart})
    edit, after = editor.edit(model, [case.request for case in cases], editor.begin(prepared, by))
    with installed(model, edit):
        found = rates(model, cases)
    found["before"] = before["specificity"]
    return Trial(found, edit.norm(), perf_counter() - started), after.prepared


def usable(
    model: EditableModel, cases: Sequence[EvalCase], count: int, paraphrases: int = 1
) -> list[EvalCase]:
    """The first so many cases that a search can use: complete, and known to the model.

    Args:
        model: the unedited model.
        cases: validation facts.
        count: how many are needed.
        paraphrases: that each needs at least.

    Raises:
        ScoreError: if there are fewer complete ones, the model knows none of them, or fewer than needed.
    """
    whole = [
        case
        for case in cases
        if case.target_true and len(case.paraphrases) >= paraphrases and case.neighbours
    ]
    if len(whole) < count:
        raise ScoreError(
            f"{len(whole)} of {len(cases)} facts have a true object, {paraphrases} or more paraphrases and a "
            f"neighbour, and the search needs {count}; give more such facts, or ask for fewer with --batch"
        )
    try:
        first_known(model, whole, 1)
    except ScoreError as error:
        raise ScoreError(
            f"{model.name} knows none of the {len(whole)} facts: it prefers every new object to the true "
            "one. Give facts that it knows, or check that model and language fit"
        ) from error
    return first_known(model, whole, count)
