"""The five sets of AlphaEdit+'s Table 1 for a model, from one list of base facts: three hard, two plain.

Everything is measured on the unedited model, at the third edited layer of the editor whose settings are
given, with the prefixes over which that editor averages keys:

    s_K0    the largest |cosine| with a key of the text behind the statistics or of a known fact's own prompt.
            A known fact about the edit's own subject counts only for the rewordings that AlphaSet1 chooses
            from, which are made to conflict with it; for all others it would be their own key
    s_Kp    of a rewrite, the |cosine| with the key of the edit that it rewrites
    ‖r‖     of a value that was optimised at the last edited layer

Values are computed once, on the unedited model, and every run is handed the same columns.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.conflict import conflict
from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.spectrum import RULES
from palimpsest.datasets import counterfact_style, zsre_style
from palimpsest.datasets.alphaset import alphaset1, alphaset2, alphaset3, plain
from palimpsest.datasets.alphaset_members import AlphaSet, Measures
from palimpsest.datasets.facts import FactSet
from palimpsest.datasets.rewordings import QUESTION, REWORDED, known_reworded, origin, rewrites
from palimpsest.editors import AlphaEditPlus, State
from palimpsest.editors.sequential import Sequential
from palimpsest.evaluation.drift import Reference
from palimpsest.evaluation.evaluate import knows
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.keys import subject_keys
from palimpsest.memory.known_values import KnownValues, known_values
from palimpsest.memory.moments import key_statistics, text_keys
from palimpsest.network.model import EditableModel
from palimpsest.studies.difficulty import measure, pair_conflict
from palimpsest.studies.stream import SCORES, Stream
from palimpsest.types import EvalCase

HARD = {"AlphaSet1": "conflict_preserved", "AlphaSet2": "conflict_past", "AlphaSet3": "inconsistency"}
"""The hard sets and what each is extreme in."""

PLAIN = ("CounterFact-style", "ZsRE-style")
"""Draws of base facts, as statements and as questions."""


@dataclass(frozen=True)
class Base:
    """Base facts of a model, ways to write them again, and how hard each edit is.

    Attributes:
        model: the unedited model.
        editor: whose layers, prefixes and settings of values everything is measured with.
        facts: the base, as statements.
        questions: the same facts asked as ZsRE does; their ids end in ``/zsre``.
        known: the facts whose true object the model prefers.
        reworded: of those, the ones that AlphaSet1 chooses from.
        rewritten: second edits, that AlphaSet2 chooses from.
        layer: third edited layer.
        contexts: prefixes, the empty one first.
        projector: null-space projector of the layer's second moment, by the editor's rule.
        keys: case id -> key (d_k,) at the layer, float64.
        preserved: keys of text at the layer, in blocks (d_k, b).
        values: of all facts.
        measures: case id -> what the recipes choose by.
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

    def stacked(self, cases: Sequence[EvalCase]) -> Float64[Tensor, "d_k n"]:
        """Keys of some cases as columns."""
        return torch.stack([self.keys[case.id] for case in cases], dim=1)

    def measured(self, cases: Sequence[EvalCase], values: KnownValues | None = None) -> pd.DataFrame:
        """How hard some edits are, by the id of the case.

        Args:
            cases: of this base.
            values: that have a column for each; without them nothing is said of residuals.

        Returns:
            ``conflict_preserved`` (s_K0), ``text`` (the same without the known facts), ``conflict_projected``
            (1 − ‖Pk‖²/‖k‖²), ``inconsistency`` (‖r‖ or NaN) and ``left``, the share of its residual that an
            edit by itself leaves, λ/(λ + ‖Pk‖²).
        """
        requests, last = [case.request for case in cases], self.editor.layers[-1]
        given = None
        if values is not None:
            given = values.of(self.model, requests, last, self.editor.targets, self.contexts).values
        found = measure(
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
        self, hard: int, others: int, gap: int, seed: int, apart: bool = False
    ) -> dict[str, AlphaSet]:
        """The three hard sets of one draw, by title.

        Args:
            hard: hard members of each.
            others: its other members.
            gap: places between an edit and its rewrite in AlphaSet2.
            seed: of the draw.
            apart: let no base fact be in two of them, so that they can be written one after the other.

        Raises:
            DataError: if there are too few facts.
        """
        about = {"model": self.model.name, "layer": self.layer, "values": "once"}
        about["preserved_keys"] = "text, and known facts at their own prompts"
        sizes: dict[str, Any] = {"hard": hard, "others": others, "seed": seed, "about": about}
        used: Collection[str] = ()
        first = alphaset1(self.facts, self.reworded, self.measures, **sizes)
        used = first.base_ids if apart else ()
        second = alphaset2(self.facts, self.rewritten, self.measures, gap=gap, exclude=used, **sizes)
        used = first.base_ids | second.base_ids if apart else ()
        third = alphaset3(self.facts, self.measures, exclude=used, **sizes)
        return dict(zip(HARD, (first, second, third), strict=True))

    def plain_sets(self, size: int, seed: int) -> dict[str, AlphaSet]:
        """The two plain sets of one draw, by title: the same facts as statements and as questions."""
        pools = zip(PLAIN, (self.facts, self.questions), strict=True)
        return {title: plain(title, cases, size, seed) for title, cases in pools}

    def values_for(self, sets: Sequence[AlphaSet]) -> KnownValues:
        """Values of everything that some sets write, beside those of all base facts."""
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
) -> Base:
    """Measure base facts on a model. Computes the values of all of them: the longest part.

    Args:
        model: the unedited model.
        own: the project's facts.
        editor: a sequence or AlphaEdit+; its rule makes the projector.
        count: base facts, the first of the draw.
        hard: how many the model has to know and has to have reworded, at least.
        seed: of the draw of facts, of true and new objects, and of the third objects.
        split: of the fact set.
        key_tokens: tokens of text whose keys count as preserved.

    Raises:
        DataError: if the model knows too few of the facts.
    """
    facts = counterfact_style(own, seed=seed, split=split)[:count]
    asked = {case.id: _question(case) for case in zsre_style(own, seed=seed, split=split)}
    questions = [asked[case.id] for case in facts if case.id in asked]
    held = knows(model, facts)
    known = [case for case, preferred in zip(facts, held, strict=True) if preferred]
    again, second = known_reworded(facts, held, hard), rewrites(facts, seed=seed)
    layer = editor.layers[min(2, len(editor.layers) - 1)]
    contexts = sample_contexts(model, editor.contexts.count, editor.contexts.length, editor.contexts.seed)
    rule, cut = editor.rule or "absolute", editor.threshold
    moment = key_statistics(model, [layer], editor.statistics_tokens)[layer]
    base = Base(
        model,
        editor,
        facts,
        questions,
        known,
        again,
        second,
        layer,
        contexts,
        null_space(moment, RULES[rule](cut)),
        _keys(model, (facts, again, second, questions), layer, contexts),
        list(text_keys(model, layer, key_tokens)),
        known_values(model, [case.request for case in facts], editor.layers[-1], editor.targets, contexts),
        {},
    )
    return replace(base, measures=_measures(base))


def _measures(base: Base) -> dict[str, Measures]:
    near = base.measured(base.reworded)["conflict_preserved"]
    originals = torch.stack([base.keys[origin(case.id)] for case in base.rewritten], dim=1)
    pairs = pair_conflict(base.stacked(base.rewritten), originals).tolist()
    length = base.measured(base.facts, base.values)["inconsistency"]
    found = {str(name): Measures(conflict_preserved=value) for name, value in near.items()}
    found |= {
        case.id: Measures(conflict_past=value) for case, value in zip(base.rewritten, pairs, strict=True)
    }
    return found | {str(name): Measures(inconsistency=value) for name, value in length.items()}


def _question(case: EvalCase) -> EvalCase:
    """A ZsRE-style case under an id of its own."""
    name = case.id + QUESTION
    return replace(case, id=name, request=replace(case.request, id=name))


def _keys(
    model: EditableModel, groups: Sequence[Sequence[EvalCase]], layer: int, contexts: Sequence[str]
) -> dict[str, Tensor]:
    keys: dict[str, Tensor] = {}
    for group in groups:
        columns = subject_keys(model, [case.request for case in group], layer, contexts).double()
        keys |= {case.id: column for case, column in zip(group, columns.T, strict=True)}
    return keys


def stream_of(
    base: Base,
    sets: Sequence[AlphaSet],
    values: KnownValues,
    text: Reference,
    batch: int,
    paraphrases: int,
    neighbours: int,
    metrics: tuple[str, ...] = SCORES,
    shared: dict[str, State] | None = None,
) -> Stream:
    """The edits of one or more sets, one set after the other, as a stream to write by any method.

    Every edit is asked at the end, by so many of its paraphrases and neighbours; rows of superseded ones are
    there too (`standing` names the others). AlphaEdit+ chooses by the wordings that the sets hold out.
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
    """Ids of the edits that stand at the end of the stream, in the order of writing."""
    return [case.id for one in sets for case in one.scored]
