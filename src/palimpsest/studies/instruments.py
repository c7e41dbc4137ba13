"""What tells whether a model still works, beside its perplexity.

Perplexity alone says little about a collapse: it is a mean that a few windows can carry, and has no level at
which nothing is left. So it gets an interval over windows; a choice between two objects has the level of
chance; and what the model writes by itself is kept, with its repetitions counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from palimpsest.editors.base import Prepared, WeightEditor
from palimpsest.errors import ScoreError
from palimpsest.evaluation.answers import target_nll
from palimpsest.evaluation.drift import Drift
from palimpsest.evaluation.fluency import repetition
from palimpsest.network.model import EditableModel
from palimpsest.network.sampling import sample
from palimpsest.results.intervals import bootstrap_mean
from palimpsest.studies.regimes import regime_of
from palimpsest.types import EvalCase

REVISION = 1
"""Part of a cache key; increase it when the same instruments give other readings."""

CHANCE = 0.5
"""Share of choices that a model without any knowledge gets right."""

TEXT = "text"
"""Metric of rows that hold what the model wrote."""


class Choice(NamedTuple):
    """A prompt with the object that is right and one that is not."""

    prompt: str
    right: str
    wrong: str


class Reading(NamedTuple):
    """One number of the model at a moment, and the text that it stands for where there is one."""

    metric: str
    value: float
    n: int
    text: str = ""


@dataclass(frozen=True)
class Instruments:
    """What is read beside a trajectory's own rows.

    Attributes:
        choices: of facts that are not written; see `choices_of`.
        prompts: texts that the model continues with its most probable tokens.
        length: tokens of each continuation.
        seed: of the bootstrap over windows of text.
        stop_above: perplexity, times the unedited model's, above which the run has collapsed and ends.

    Raises:
        ScoreError: if there is no choice or no prompt, or a continuation has fewer than five tokens.
    """

    choices: tuple[Choice, ...]
    prompts: tuple[str, ...]
    length: int = 50
    seed: int = 0
    stop_above: float = 1e4

    def __post_init__(self) -> None:
        if not self.choices or not self.prompts:
            raise ScoreError("instruments need at least one choice and one prompt to continue")
        if self.length < 5:
            raise ScoreError(f"a text of {self.length} tokens can hardly repeat itself; take 5 or more")

    def key(self) -> dict[str, Any]:
        """Everything that the readings depend on, for a cache."""
        return {"revision": REVISION, **asdict(self)}

    def read(self, model: EditableModel, moved: Drift) -> Iterator[Reading]:
        """Readings of the model as it is now.

        Args:
            model: the model.
            moved: its comparison with the unedited one.
        """
        if len(moved.windows) > 1:
            ratio = moved.ratio(self.seed)
            for name, value in zip(
                ("ratio", "ratio_low", "ratio_high"), (ratio.mean, ratio.low, ratio.high), strict=True
            ):
                yield Reading(name, value, len(moved.windows))
        pairs = [(choice.prompt, text) for choice in self.choices for text in (choice.right, choice.wrong)]
        right, wrong = target_nll(model, pairs).reshape(-1, 2).unbind(1)
        better = (right < wrong).double()
        yield Reading("choice", float(better.mean()), len(better))
        if len(better) > 1:
            found = bootstrap_mean(better.tolist(), self.seed)
            yield Reading("choice_low", found.low, len(better))
            yield Reading("choice_high", found.high, len(better))
        written = sample(model, self.prompts, self.length, top_k=1)
        repeated = [repetition(text) for text in written]
        yield Reading("repetition", sum(repeated) / len(repeated), len(repeated))
        for number, text in enumerate(written):
            yield Reading(TEXT, float(number), 1, text)


def choices_of(cases: Sequence[EvalCase], written: Sequence[EvalCase]) -> tuple[Choice, ...]:
    """Choices from facts that are not written and share no subject with one that is.

    The right object is the true one, the wrong one the counterfactual, which is of the same kind.

    Args:
        cases: facts to choose from; those without a true object are left out.
        written: facts that the run writes.
    """
    touched = {case.request.subject for case in written}
    return tuple(
        Choice(case.request.text, case.target_true, case.request.target)
        for case in cases
        if case.target_true and case.request.subject not in touched
    )


def regime_readings(
    model: EditableModel, editor: WeightEditor, notes: Sequence[Mapping[str, Any]], prepared: Prepared
) -> Iterator[Reading]:
    """The regime of a run so far, and the mean lengths of the latest batch: ‖h₀‖, ‖δ‖ and ‖z‖ of new facts.

    What the editor does not have is left out.
    """
    facts = sum(int(note["facts"]) for note in notes)
    for name, value in regime_of(model, editor, notes, prepared).known().items():
        yield Reading(f"regime_{name}", value, facts)
    for name in ("hidden_norm", "delta_norm", "value_norm"):
        if name in notes[-1]:
            lengths = notes[-1][name]
            yield Reading(f"new_{name}", sum(lengths) / len(lengths), len(lengths))
