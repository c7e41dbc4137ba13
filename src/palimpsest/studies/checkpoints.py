"""A sequence of edits measured item by item when so many facts are written, so that two runs can be paired.

`palimpsest.studies.trajectory` keeps means along a run, and `palimpsest.studies.stream` keeps items at its
end. Here every fact, window of text and choice has its own row at each of a few checkpoints, so that
differences between two runs are taken fact by fact and window by window, and several pages can read one run.
Rows are cached on disk under the hash of everything they depend on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch

from palimpsest import cache
from palimpsest.algebra.postprocess import largest_singular_value
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.steps import Step, run_key, steps
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.answers import target_nll
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.metrics import SCORES
from palimpsest.memory.keys import subject_hidden
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.sampling import passages
from palimpsest.studies.instruments import Choice
from palimpsest.studies.regimes import regime_of
from palimpsest.studies.trajectory import evenly
from palimpsest.types import EvalCase

REVISION = 1
"""Part of the cache key; increase it when the code gives different rows for the same run."""

COLUMNS = ("edits", "of", "key", "metric", "value", "text")
_Row = tuple[int, str, str, str, float, str]


@dataclass(frozen=True)
class Checkpoints:
    """When a run is measured, and what is asked then.

    Attributes:
        batch: facts per step.
        at: numbers of facts at which the run is measured, multiples of the batch, ascending.
        sample: facts asked at each of them, evenly spaced over those written so far.
        choices: asked at each of them; see `palimpsest.studies.instruments.choices_of`.
        prompts: texts that the model goes on with at the last one, by sampling.
        length: tokens of each such text, prompt included.
        seed: of the sampling.

    Raises:
        ScoreError: if batch or sample is below 1, or ``at`` is empty, not ascending, or holds a number that
            fills no whole batches.
    """

    batch: int
    at: tuple[int, ...]
    sample: int = 200
    choices: tuple[Choice, ...] = ()
    prompts: tuple[str, ...] = ()
    length: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.sample) < 1:
            raise ScoreError(f"batch and sample must be 1 or more, got {self.batch} and {self.sample}")
        ascending = list(self.at) == sorted({*self.at})
        if not self.at or not ascending or any(n % self.batch or n < 1 for n in self.at):
            raise ScoreError(
                f"checkpoints {list(self.at)} must be ascending multiples of the batch of {self.batch}"
            )


def checkpoints(
    model: EditableModel,
    editor: Sequential,
    cases: Sequence[EvalCase],
    ask: Checkpoints,
    reference: Reference,
) -> pd.DataFrame:
    """Rows of one run, read from disk if the same run was made before.

    Args:
        model: the unedited model; restored at the end.
        editor: the sequence.
        cases: facts in the order in which they are written; the last checkpoint is their number.
        ask: what is measured, and when.
        reference: held-out text with the unedited model's predictions.

    Returns:
        One row per measurement, with columns ``edits`` (facts written), ``of``, ``key``, ``metric``,
        ``value`` and ``text`` (what the model wrote, else empty):
        ``fact``, case id: the three scores of the sampled facts, in [0, 1]; and when its own batch was in,
        for every fact, ``value_norm`` and ``hidden_norm``, the norms of its value and of the state that it
        started from.
        ``early``, case id: ``hidden``, the norm of the last edited layer's output at the first batch's
        subjects, at each checkpoint.
        ``window``, its number: nll, nll_before (nats per token), agreement and kl as
        `palimpsest.evaluation.drift.Drift`.
        ``choice``, its number: ``right``, 1 or 0.
        ``text``, number of the prompt: ``length`` of the text, with the text.
        ``step``, its number from 1: ``total_norm`` (Frobenius, all layers) and ``spectrum``, an upper bound
        on σ_max(Δ)/σ_max(W) of any layer, exact above 1, with W before the step.
        ``regime``, empty: the numbers of `palimpsest.results.regime.Regime` at each checkpoint.
        The unedited model has edits 0: early, choice and text. A run that cannot go on ends with ``step``,
        ``stopped`` = 1, and has no rows for later checkpoints.

    Raises:
        ScoreError: if the last checkpoint is not the number of cases, or the sequence is post-processed only
            at its end.
        ResourceError: if a stored table is damaged or cannot be written.
    """
    if ask.at[-1] != len(cases):
        raise ScoreError(f"the last checkpoint is {ask.at[-1]}, but {len(cases)} facts are written")
    if editor.post is not None and editor.post.at_end:
        raise ScoreError("post-processing at the end changes no checkpoint before it; use `Stream`")
    key = run_key(model, editor, cases) | {
        "revision": REVISION,
        "ask": asdict(ask),
        "text": cache.digest(reference.ids.tolist()),
    }
    return cache.table("checkpoints", key, COLUMNS, lambda: _rows(model, editor, cases, ask, reference))


def _rows(
    model: EditableModel,
    editor: Sequential,
    cases: Sequence[EvalCase],
    ask: Checkpoints,
    text: Reference,
) -> Iterator[_Row]:
    batches = [[case.request for case in cases[i : i + ask.batch]] for i in range(0, len(cases), ask.batch)]
    early = cases[: ask.batch]
    yield from _of_model(model, editor, early, ask, 0, writes=True)
    tops = {layer: _top(read_weight(model, layer)) for layer in editor.layers}
    notes: list[Mapping[str, Any]] = []
    edits = 0
    try:
        for step in steps(model, editor, batches):
            notes.append(step.edit.notes)
            batch = cases[edits : edits + ask.batch]
            edits += len(batch)
            yield from _of_step(model, step, batch, edits, tops)
            if edits in ask.at:
                yield from _measured(model, cases[:edits], ask, text, edits)
                yield from _of_model(model, editor, early, ask, edits, writes=edits == ask.at[-1])
                found = regime_of(model, editor, notes, step.state.prepared)
                yield from ((edits, "regime", "", name, value, "") for name, value in found.known().items())
    except (NonFiniteError, SingularProblemError):
        yield edits, "step", str(len(notes) + 1), "stopped", 1.0, ""


def _of_step(
    model: EditableModel,
    step: Step,
    batch: Sequence[EvalCase],
    edits: int,
    tops: Mapping[int, torch.Tensor],
) -> Iterator[_Row]:
    notes, number = step.edit.notes, str(step.number + 1)
    yield edits, "step", number, "total_norm", sum(n**2 for n in notes["total_norm"].values()) ** 0.5, ""
    shares = [_share(read_weight(model, layer), step.edit.deltas[layer], tops[layer]) for layer in tops]
    yield edits, "step", number, "spectrum", max(shares), ""
    for name in ("value_norm", "hidden_norm"):
        for case, norm in zip(batch, notes.get(name, ()), strict=False):
            yield edits, "fact", case.id, name, float(norm), ""


def _top(weight: torch.Tensor) -> torch.Tensor:
    """Right singular vector (d_k,) of the largest singular value."""
    _, vectors = torch.linalg.eigh((weight.double() @ weight.double().T).cpu())
    found = weight.double().T @ vectors[:, -1].to(weight.device)
    return found / found.norm()


def _share(weight: torch.Tensor, delta: torch.Tensor, top: torch.Tensor) -> float:
    """Upper bound on σ_max(Δ)/σ_max(W) with W before the step, exact where it exceeds 1."""
    update = delta.double().to(weight.device)
    before = weight.double() - update
    bound = float(update.norm() / (before @ top).norm())
    if bound <= 1:
        return bound
    return float(largest_singular_value(update) / largest_singular_value(before))


def _measured(
    model: EditableModel,
    written: Sequence[EvalCase],
    ask: Checkpoints,
    text: Reference,
    edits: int,
) -> Iterator[_Row]:
    for record in evaluate(model, evenly(written, ask.sample), SCORES):
        yield edits, "fact", record.case, record.metric, record.value, ""
    for row in drift(model, text).windows.to_dict("records"):
        for name in ("nll", "nll_before", "agreement", "kl"):
            yield edits, "window", str(row["window"]), name, float(row[name]), ""


def _of_model(
    model: EditableModel,
    editor: Sequential,
    early: Sequence[EvalCase],
    ask: Checkpoints,
    edits: int,
    writes: bool,
) -> Iterator[_Row]:
    hidden = subject_hidden(model, [case.request for case in early], editor.layers[-1]).double().norm(dim=0)
    for case, length in zip(early, hidden.tolist(), strict=True):
        yield edits, "early", case.id, "hidden", length, ""
    if ask.choices:
        pairs = [(one.prompt, text) for one in ask.choices for text in (one.right, one.wrong)]
        right, wrong = target_nll(model, pairs).reshape(-1, 2).unbind(1)
        for number, better in enumerate((right < wrong).tolist()):
            yield edits, "choice", str(number), "right", float(better), ""
    if writes and ask.prompts:
        said = passages(model, ask.prompts, length=ask.length, seed=ask.seed)
        for number, passage in enumerate(said):
            yield edits, "text", str(number), "length", float(len(passage)), passage
