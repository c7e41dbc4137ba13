"""The five data sets of AlphaEdit+'s Table 1 for a model, from one list of base facts: three hard, two plain.

As in the paper the other members of the hard sets are questions (ZsRE-style). The hard members of AlphaSet1
are rewordings of statements that the model knows, those of AlphaSet2 reword questions, and those of AlphaSet3
are statements or questions, whichever form of a fact asks for the larger change.

Everything is measured on the unedited model, at the third edited layer of a given editor, with the prefixes
over which that editor averages keys:

    s_K0    the largest |cosine| with a key of the text behind C₀ or of a known fact at its own prompt. A
            known fact about the edit's own subject counts only for the rewordings from which AlphaSet1 is
            selected, which are made to conflict with it; for all other edits it would be their own key
    s_Kp    of a rewrite, the |cosine| with the key of the edit that it rewrites
    ‖r‖     residual norm of a value optimised at the last edited layer of the unedited model
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.conflict import conflict
from palimpsest.algebra.projector import Projector, projectors
from palimpsest.datasets import counterfact_style, zsre_style
from palimpsest.datasets.alphaset import alphaset1, alphaset2, alphaset3, plain
from palimpsest.datasets.alphaset_members import AlphaSet, Measures
from palimpsest.datasets.facts import FactSet
from palimpsest.datasets.original import Original
from palimpsest.datasets.rewordings import QUESTION, REWORDED, known_reworded, origin, rewrites, rewritten_of
from palimpsest.editors import AlphaEditPlus
from palimpsest.editors.base import Prepared
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import DataError
from palimpsest.evaluation.drift import Reference
from palimpsest.evaluation.evaluate import knows
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.keys import subject_keys
from palimpsest.memory.known_values import KnownValues, known_values
from palimpsest.memory.moments import key_statistics, text_keys
from palimpsest.network.model import EditableModel
from palimpsest.studies.difficulty import difficulty_of, pair_conflict
from palimpsest.studies.stream import SCORES, Stream
from palimpsest.types import EvalCase

HARD = {"AlphaSet1": "conflict_preserved", "AlphaSet2": "conflict_past", "AlphaSet3": "inconsistency"}
"""Hard set -> measure by which its hard members are selected."""

PLAIN = ("CounterFact-style", "ZsRE-style")
"""Plain sets: random base facts, as statements and as questions."""


@dataclass(frozen=True)
class Base:
    """Base facts of a model, their rewordings and rewrites, and the difficulty of each edit.

    Attributes:
        model: the unedited model.
        editor: its layers, prefixes and value settings are used for all measures.
        facts: the base facts, as statements.
        questions: the same facts as ZsRE questions, with ids that end in ``/zsre``; of original data others.
        known: the facts whose true object the model prefers.
        reworded: rewordings of known facts, from which AlphaSet1 is selected.
        rewritten: second edits of questions, from which AlphaSet2 is selected.
        layer: third edited layer.
        contexts: prefixes, the empty one first.
        projector: null-space projector of the layer's second moment, by the editor's rule.
        keys: case id -> key (d_k,) at the layer, float64.
        preserved: keys of text at the layer, in blocks (d_k, b).
        values: optimised values of all facts and questions.
        measures: case id -> measures by which the hard sets are selected.
        released: hard sets that are given instead of built: title -> set.
    """

    model: EditableModel
    editor: Sequential | AlphaEditPlus
    facts: list[EvalCase]
    questions: list[EvalCase]
    known: list[EvalCase]
    reworded: list[EvalCase]
    rewritten: list[EvalCase]
    layer: int
    contexts: tuple[str, ...]
    projector: Projector = field(repr=False)
    keys: dict[str, Float64[Tensor, " d_k"]] = field(repr=False)
    preserved: list[Tensor] = field(repr=False)
    values: KnownValues = field(repr=False)
    measures: dict[str, Measures] = field(repr=False)
    released: Mapping[str, AlphaSet] = field(default_factory=dict, repr=False)

    def stacked(self, cases: Sequence[EvalCase]) -> Float64[Tensor, "d_k n"]:
        """Keys of some cases as columns (d_k, n), float64."""
        return torch.stack([self.keys[case.id] for case in cases], dim=1)

    def measured(self, cases: Sequence[EvalCase], values: KnownValues | None = None) -> pd.DataFrame:
        """Difficulty of some edits, one row per case.

        Args:
            cases: of this base.
            values: with a column for each case; without them ``inconsistency`` is NaN.

        Returns:
            Index ``case`` (id); columns ``conflict_preserved`` (s_K0), ``text`` (s_K0 without the known
            facts), ``conflict_projected`` (1 − ‖Pk‖²/‖k‖²), ``inconsistency`` (‖r‖) and ``left``, the share
            of the residual that remains after this edit alone, λ/(λ + ‖Pk‖²).
        """
        requests, last = [case.request for case in cases], self.editor.layers[-1]
        given = None
        if values is not None:
            given = values.of(self.model, requests, last, self.editor.targets, self.contexts).values
        found = difficulty_of(
            self.model,
            requests,
            sorted({self.layer, last}),
            given,
            self.contexts,
            {self.layer: self.preserved},
            {self.layer: self.projector},
        )
        found = found[found["layer"] == self.layer].assign(case=[case.id for case in cases]).set_index("case")
        nearest = np.maximum(found["conflict_preserved"], [self._against_known(case) for case in cases])
        inside = (1 - found["conflict_projected"]) * self.stacked(cases).square().sum(0).cpu().numpy()
        left = self.editor.ridge / (self.editor.ridge + inside)
        return found.assign(text=found["conflict_preserved"], conflict_preserved=nearest, left=left)

    def _against_known(self, case: EvalCase) -> float:
        meant = case.id.endswith(REWORDED)
        free = [other for other in self.known if meant or other.request.subject != case.request.subject]
        return float(conflict(self.stacked([case]), self.stacked(free))[0]) if free else 0.0

    def hard_sets(
        self,
        hard: int,
        others: int,
        gap: int,
        seed: int,
        apart: bool = False,
        third: float = 1.0,
        titles: Sequence[str] = tuple(HARD),
    ) -> dict[str, AlphaSet]:
        """The three hard sets of one draw: title -> set; one that was released is the same in every draw.

        Args:
            hard: number of hard members of each.
            others: number of other members of each.
            gap: least number of positions between an edit and its rewrite in AlphaSet2.
            seed: of the draw.
            apart: make the sets disjoint in base facts, so that they can be written one after the other.
            third: size of AlphaSet3 in sizes of the other two, 1.5 in the paper.
            titles: which of them.

        Raises:
            DataError: if there are too few facts.
        """
        about = {"model": self.model.name, "layer": self.layer, "values": "once"}
        about["preserved_keys"] = "text, and known facts at their own prompts"
        sizes: dict[str, Any] = {"hard": hard, "others": others, "seed": seed, "about": about}
        found, used = dict[str, AlphaSet](), frozenset[str]()
        for title in filter(titles.__contains__, HARD):
            if title == "AlphaSet3":
                sizes |= {"hard": round(third * hard), "others": round(third * others)}
            found[title] = self.released.get(title) or self._built(title, gap, {**sizes, "exclude": used})
            used |= found[title].base_ids if apart else frozenset()
        return found

    def _built(self, title: str, gap: int, sizes: dict[str, Any]) -> AlphaSet:
        """One hard set from the base facts."""
        if title == "AlphaSet1":
            return alphaset1(self.questions, self.reworded, self.measures, **sizes)
        if title == "AlphaSet2":
            return alphaset2(self.questions, self.rewritten, self.measures, gap=gap, **sizes)
        return alphaset3(self.questions, self.measures, candidates=self._longer(), **sizes)

    def _longer(self) -> list[EvalCase]:
        """Each fact in the form that asks for the larger change, as a statement or as a question."""
        ordered = sorted((*self.facts, *self.questions), key=lambda c: self.measures[c.id].inconsistency or 0)
        return list({origin(case.id): case for case in ordered}.values())

    def plain_sets(self, size: int, seed: int) -> dict[str, AlphaSet]:
        """The two plain sets of one draw, the same facts as statements and as questions: title -> set."""
        pools = zip(PLAIN, (self.facts, self.questions), strict=True)
        return {title: plain(title, cases, size, seed) for title, cases in pools}

    def values_for(self, sets: Sequence[AlphaSet]) -> KnownValues:
        """Values of all edits of some sets, in addition to those of all base facts."""
        requests = [case.request for one in sets for case in one.cases]
        return known_values(
            self.model,
            requests,
            self.editor.layers[-1],
            self.editor.targets,
            self.contexts,
            beside=self.values,
        )


def base_facts(
    model: EditableModel,
    own: FactSet,
    editor: Sequential | AlphaEditPlus,
    count: int,
    hard: int,
    seed: int = 0,
    split: str = "test",
    key_tokens: int = 20_000,
    data: Original | None = None,
) -> Base:
    """Measure base facts on a model. Optimising the values of all of them takes most of the time.

    Args:
        model: the unedited model.
        own: the project's fact set.
        editor: a sequence or AlphaEdit+; the projector is made by its rule.
        count: number of base facts, the first of the draw.
        hard: least number of base facts that the model must know and that can be reworded.
        seed: of the draw of facts, of true and new objects, and of the third objects.
        split: of the fact set.
        key_tokens: number of tokens of text whose keys count as preserved.
        data: original data that replace the project's own: its statements and questions, each where it has
            some, in file order, and its hard sets, as they were released.

    Raises:
        DataError: if the model knows too few of the facts, or the original data are fewer than ``count``.
    """
    data = data or Original()
    facts, questions = _drawn(own, data, count, seed, split)
    held = knows(model, facts)
    known = [case for case, preferred in zip(facts, held, strict=True) if preferred]
    again = [] if "AlphaSet1" in data.sets else known_reworded(facts, held, hard)
    second = [] if "AlphaSet2" in data.sets else rewrites(questions, seed=seed)
    given = [case for one in data.sets.values() for case in one.cases]
    layer = editor.layers[min(2, len(editor.layers) - 1)]
    contexts = sample_contexts(model, editor.contexts.count, editor.contexts.length, editor.contexts.seed)
    rule, cut = editor.rule or "absolute", editor.threshold
    moment = key_statistics(model, [layer], editor.statistics_tokens)[layer]
    requests = [case.request for case in (*facts, *questions)]
    values = known_values(model, requests, editor.layers[-1], editor.targets, contexts)
    projector = projectors({layer: moment}, rule, cut)[layer]
    keys = _keys(model, (facts, again, second, questions, given), layer, contexts)
    preserved = list(text_keys(model, layer, key_tokens))
    measured: tuple[Any, ...] = projector, keys, preserved, values, {}, data.sets
    base = Base(model, editor, facts, questions, known, again, second, layer, contexts, *measured)
    return replace(base, measures=_measures(base))


def _drawn(
    own: FactSet, data: Original, count: int, seed: int, split: str
) -> tuple[list[EvalCase], list[EvalCase]]:
    """Base facts as statements and as questions."""
    facts = (data.statements or counterfact_style(own, seed=seed, split=split))[:count]
    asked = {case.id: case for case in zsre_style(own, seed=seed, split=split)}
    questions = data.questions[:count] or [asked[case.id] for case in facts if case.id in asked]
    questions = [_question(case) for case in questions or list(asked.values())[:count]]
    for kind, cases in (("statements", facts), ("questions", questions)):
        if len(cases) < count and (data.statements or data.questions):
            raise DataError(f"{count} {kind} were asked for and the data have {len(cases)}; lower base")
    return facts, questions


def _measures(base: Base) -> dict[str, Measures]:
    found = dict[str, Measures]()
    if base.reworded:
        near = base.measured(base.reworded)["conflict_preserved"]
        found |= {str(name): Measures(conflict_preserved=value) for name, value in near.items()}
    if base.rewritten:
        originals = torch.stack([base.keys[rewritten_of(case.id)] for case in base.rewritten], dim=1)
        pairs = pair_conflict(base.stacked(base.rewritten), originals).tolist()
        found |= {c.id: Measures(conflict_past=value) for c, value in zip(base.rewritten, pairs, strict=True)}
    length = base.measured([*base.facts, *base.questions], base.values)["inconsistency"]
    return found | {str(name): Measures(inconsistency=value) for name, value in length.items()}


def _question(case: EvalCase) -> EvalCase:
    """A ZsRE-style case with the ending ``/zsre`` added to its id."""
    name = case.id + QUESTION
    return replace(case, id=name, request=replace(case.request, id=name))


def _keys(
    model: EditableModel, groups: Sequence[Sequence[EvalCase]], layer: int, contexts: Sequence[str]
) -> dict[str, Tensor]:
    keys: dict[str, Tensor] = {}
    for group in filter(None, groups):
        columns = subject_keys(model, [case.request for case in group], layer, contexts).double()
        keys |= {case.id: column for case, column in zip(group, columns.T, strict=True)}
    return keys


def stream_of(
    base: Base,
    sets: Sequence[AlphaSet],
    values: KnownValues | None,
    text: Reference,
    batch: int,
    paraphrases: int,
    neighbours: int,
    metrics: tuple[str, ...] = SCORES,
    shared: dict[str, Prepared] | None = None,
) -> Stream:
    """The edits of one or more sets, one set after the other, as a `Stream` for any method.

    Every edit is scored at the end, superseded ones included (`standing` names the others). AlphaEdit+ scores
    its smoothing candidates on the wordings that the sets hold out.

    Args:
        base: with the model.
        sets: in the order of writing.
        values: of all edits of the sets, from `Base.values_for`, for methods that compute them once.
        text: held-out text with the unedited model's predictions.
        batch: facts per step.
        paraphrases: number of paraphrases to score per edit.
        neighbours: number of neighbours to score per edit.
        metrics: scored at the end, see `palimpsest.evaluation.metrics`.
        shared: as `Stream`; a dictionary shared by several streams.

    Raises:
        ScoreError: if the edits do not fill whole batches.
    """
    members = [member for one in sets for member in one.members]
    held = {m.case.request.id: (m.validation,) for m in members if m.validation}
    cases = [member.case.limited(paraphrases, neighbours) for member in members]
    return Stream(
        base.model,
        cases,
        batch,
        text,
        sample=len(cases),
        metrics=metrics,
        validation=held,
        known=values,
        shared={} if shared is None else shared,
    )


def standing(sets: Sequence[AlphaSet]) -> list[str]:
    """Ids of the edits that are not superseded at the end of the stream, in the order of writing."""
    return [case.id for one in sets for case in one.scored]
