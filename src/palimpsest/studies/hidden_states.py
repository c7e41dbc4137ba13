"""Hidden states along a sequence of edits, beside those of random updates of the same norm.

One run writes batch after batch and reads the states of fixed prompts when so many facts are written. Its
control is the unedited model with a random update that has the singular values of W - W_0 in every layer, and
so its norm (`palimpsest.studies.null_edits.random_direction`): where it shifts states as far as the edits do,
their size alone is enough for the shift. States are cached on disk under the hash of all they depend on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.editors.base import Score, WeightEditor
from palimpsest.editors.steps import run_key, steps
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.representation import PLACES, Representations, representations
from palimpsest.evaluation.shift import Shift, over_prompts
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.results.few_values import student_mean
from palimpsest.results.intervals import Interval
from palimpsest.studies.null_edits import random_direction
from palimpsest.types import EditRequest

REVISION = 1
"""Part of the cache key; increase it when the code gives other states for the same run."""


class ModelState(NamedTuple):
    """A model whose states were read.

    Attributes:
        edits: facts written.
        update: ``edited``, or the ``random`` update of the same singular values.
    """

    edits: int
    update: Literal["edited", "random"]


@dataclass(frozen=True)
class StatesAsked:
    """When a run is read, and what.

    Attributes:
        batch: facts per step.
        at: numbers of facts, multiples of the batch, ascending; the last one is their total.
        requests: prompts that are read; take facts that the run does not write.
        controls: numbers of facts, among ``at``, at which the control is read too.
        seed: of the random updates.

    Raises:
        ScoreError: if batch is below 1, ``at`` is empty, not ascending, or holds a number that fills no whole
            batches, or a control is at none of them.
    """

    batch: int
    at: tuple[int, ...]
    requests: tuple[EditRequest, ...]
    controls: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        ascending = list(self.at) == sorted({*self.at})
        if self.batch < 1 or not self.at or not ascending or any(n % self.batch or n < 1 for n in self.at):
            raise ScoreError(
                f"states are read after {list(self.at)} facts, which must be ascending multiples of the "
                f"batch of {self.batch}"
            )
        if not {*self.controls} <= {*self.at}:
            raise ScoreError(
                f"controls after {list(self.controls)} facts need a reading there, and there is one after "
                f"{list(self.at)} only"
            )


def states_along(
    model: EditableModel,
    editor: WeightEditor,
    facts: Sequence[EditRequest],
    asked: StatesAsked,
    validation: Mapping[str, Sequence[str]] | None = None,
) -> dict[ModelState, Representations]:
    """States of fixed prompts in the models of a run, read from disk if the same run was made before.

    Args:
        model: the unedited model; restored at the end.
        editor: any weight editor.
        facts: in the order in which they are written.
        asked: what is read, and when.
        validation: id of a fact -> further wordings of it, for editors that score by them.

    Returns:
        Model -> states. A run that cannot go on, because a value, an update or a state is not finite or a
        problem is singular, has no later models.

    Raises:
        ScoreError: if the last reading is not at the number of facts, there is no prompt, or the editor
            scores by validation wordings and there are none.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    if asked.at[-1] != len(facts):
        raise ScoreError(f"the last reading is after {asked.at[-1]} facts, but {len(facts)} are written")
    key = run_key(model, editor, facts) | {
        "revision": REVISION,
        "asked": cache.digest(asdict(asked)),
        "validation": {name: list(texts) for name, texts in (validation or {}).items()},
    }
    score = score_by(editor.score_rule, (), validation) if editor.score_rule else None
    found = cache.tensors("states", key, lambda: _along(model, editor, facts, asked, score))
    states = {}
    for told in {name.rpartition(" ")[0] for name in found}:
        edits, update = told.split()
        at = {place: found[f"{told} {place}"].numpy() for place in PLACES}
        about = {"layer": editor.layers[-1], "requests": asked.requests, "model": model.name}
        states[ModelState(int(edits), update)] = Representations(**at, **about)  # type: ignore[arg-type]
    return dict(sorted(states.items()))


def _along(
    model: EditableModel,
    editor: WeightEditor,
    facts: Sequence[EditRequest],
    asked: StatesAsked,
    score: Score | None,
) -> dict[str, Tensor]:
    """States by name of model and place, (n, d_v) each."""
    size, last = asked.batch, editor.layers[-1]
    batches = [facts[start : start + size] for start in range(0, len(facts), size)]
    unedited = {layer: read_weight(model, layer).clone() for layer in editor.layers}
    found: dict[str, Tensor] = {}
    updates: dict[int, WeightDelta] = {}

    def read(edits: int, update: str) -> None:
        states = representations(model, asked.requests, last)
        found.update({f"{edits} {update} {place}": torch.from_numpy(states.at(place)) for place in PLACES})

    try:
        run = steps(model, editor, batches, score)
        for step in tqdm(run, total=len(batches), desc="writing facts", unit="step", leave=False):
            edits = min(size * (step.number + 1), len(facts))
            if edits in asked.at:
                updates[edits] = WeightDelta(_moved(model, unedited))
                read(edits, "edited")
    except (NonFiniteError, SingularProblemError):
        pass
    for edits in sorted({*updates} & {*asked.controls}):
        with installed(model, random_direction(updates[edits], asked.seed)):
            read(edits, "random")
    return found


def _moved(model: EditableModel, unedited: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """W - W_0 of each layer (d_v, d_k), float64."""
    return {layer: read_weight(model, layer).double() - start.double() for layer, start in unedited.items()}


def mean_measure(
    names: Sequence[str],
    shifts: Sequence[Shift],
    minus: Sequence[Shift] = (),
    seed: int = 0,
    resamples: int = 200,
) -> tuple[Interval, str]:
    """Mean of some measures of a method, or its difference from another method on the same prompts.

    Args:
        names: measures, whose mean is taken: ``("d1", "d2")`` for the overlap of both components.
        shifts: one for each order of the facts.
        minus: those of another method in the same orders, whose mean is subtracted.
        seed: of the bootstrap.
        resamples: of the prompts.

    Returns:
        The interval and what it is over: ``seeds``, Student's over the orders, where there are several;
        ``cases``, a bootstrap over prompts, where there is one.

    Raises:
        ScoreError: if the orders or prompts of both methods differ in number, or there is nothing to average.
        UnknownNameError: if there is no such measure.
    """
    others: Sequence[Shift | None] = minus or [None] * len(shifts)
    prompts = {shift.prompts for shift in (*shifts, *minus)}
    if not names or len(shifts) != len(others) or len(prompts) != 1:
        raise ScoreError(
            f"{len(names)} measures of {len(shifts)} runs and {len(others)} others with {sorted(prompts)} "
            "prompts cannot be averaged; give both methods in the same orders, with the same prompts"
        )

    def value(one: Shift, other: Shift | None, of: Any = None) -> float:
        less = sum(other.measure(name, of) for name in names) if other is not None else 0.0
        return float(sum(one.measure(name, of) for name in names) - less) / len(names)

    pairs = list(zip(shifts, others, strict=True))
    if len(pairs) > 1:
        return student_mean([value(*pair) for pair in pairs]), "seeds"
    return over_prompts(lambda of: value(*pairs[0], of), prompts.pop(), seed, resamples), "cases"
