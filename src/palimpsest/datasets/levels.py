"""Distance of each template of a perturbation level from the sentence it rewords, by the paper's criteria.

Levels 1 to 6 of `palimpsest.datasets.facts` follow the published scheme of light to heavy rewording. The
paper bounds a level by edit distance, shared words, and similarity of embeddings. Its questions were written
by a language model whose prompt stated these bounds; ours were not, and are measured here.
Source: Diagnosing Hidden Instabilities in Model Editing via Uncertainty Quantification, D.2.2.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from palimpsest.datasets.facts import LEVELS, FactSet, Relation
from palimpsest.errors import DataError
from palimpsest.types import SLOT, EvalCase


@dataclass(frozen=True)
class Criterion:
    """Bounds of one level; where the paper gives none, the bound is the widest possible.

    Attributes:
        edits: least and largest Levenshtein distance, as a share of the original's number of characters.
        words: least and largest Jaccard similarity of the two sets of words.
        similarity: least cosine of the embeddings.
    """

    edits: tuple[float, float] = (0.0, float("inf"))
    words: tuple[float, float] = (0.0, 1.0)
    similarity: float = -1.0

    def met(self, edits: float, words: float, similarity: float) -> dict[str, bool]:
        """Which of the bounds hold, ends included: ``edits_met``, ``words_met`` and ``similarity_met``."""
        return {
            "edits_met": self.edits[0] <= edits <= self.edits[1],
            "words_met": self.words[0] <= words <= self.words[1],
            "similarity_met": similarity >= self.similarity,
        }


CRITERIA: Mapping[int, Criterion] = {
    1: Criterion(edits=(0.0, 0.10), words=(0.9, 1.0), similarity=0.95),
    2: Criterion(edits=(0.10, 0.25), words=(0.7, 0.9), similarity=0.9),
    3: Criterion(similarity=0.8),
    4: Criterion(similarity=0.7),
    5: Criterion(similarity=0.6),
    6: Criterion(similarity=0.5),
}
"""Level -> published bounds. Levels 3 to 6 bound the similarity only."""

Embed = Callable[[Sequence[str]], Float64[Tensor, "n d"]]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: least number of characters to insert, delete or replace to turn a into b."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def shared_words(a: str, b: str) -> float:
    """Jaccard similarity of the sets of words, in lower case without punctuation; 1 if neither has words."""
    first, second = (set(re.findall(r"\w+", text.lower())) for text in (a, b))
    return len(first & second) / len(first | second) if first | second else 1.0


def level_table(facts: FactSet, embed: Embed, subjects: int = 5) -> pd.DataFrame:
    """Compare every template of every level with the sentence it rewords, one row per template.

    Both are filled with the same subjects of the relation, the first ones of the file; a row is the mean over
    these.

    Args:
        facts: the fact set.
        embed: texts -> embeddings (n, d), for example from `palimpsest.network.embedder.embedder`.
        subjects: number of subjects to fill in.

    Returns:
        Columns relation, form (``statement`` or ``question``), level, template, base; edits (Levenshtein
        distance as a share of the base's number of characters), words (Jaccard) and similarity (cosine); and
        edits_met, words_met, similarity_met and met (all three), by `CRITERIA`.

    Raises:
        DataError: if ``subjects`` is below 1.
    """
    if subjects < 1:
        raise DataError(f"{subjects} subjects were asked for; a template needs at least 1 to be a sentence")
    rows = [row for relation in facts.relations.values() for row in _templates(relation)]
    names: dict[str, list[str]] = {name: [] for name in facts.relations}
    for fact in facts.facts:
        if len(names[fact.relation]) < subjects:
            names[fact.relation].append(fact.subject)
    texts = {
        template.replace(SLOT, name): None
        for row in rows
        for template in (row["template"], row["base"])
        for name in names[row["relation"]]
    }
    vectors = dict(zip(texts, embed(list(texts)), strict=True))
    return pd.DataFrame([row | _measured(row, names[row["relation"]], vectors) for row in rows])


def _templates(relation: Relation) -> list[dict[str, Any]]:
    forms = (
        ("statement", relation.prompt, relation.perturbations),
        ("question", relation.questions[0], relation.question_perturbations),
    )
    return [
        {"relation": relation.id, "form": form, "level": level, "template": template, "base": base}
        for form, base, levels in forms
        for level in LEVELS
        for template in levels[level]
    ]


def _measured(
    row: Mapping[str, Any], names: Sequence[str], vectors: Mapping[str, Tensor]
) -> dict[str, object]:
    found = []
    for name in names:
        text, base = (row[key].replace(SLOT, name) for key in ("template", "base"))
        one, other = vectors[text], vectors[base]
        cosine = float(one @ other / (one.norm() * other.norm()))
        found.append((edit_distance(base, text) / len(base), shared_words(base, text), cosine))
    edits, words, similarity = (sum(column) / len(column) for column in zip(*found, strict=True))
    met = CRITERIA[row["level"]].met(edits, words, similarity)
    return {"edits": edits, "words": words, "similarity": similarity, **met, "met": all(met.values())}


def level_wordings(cases: Sequence[EvalCase]) -> dict[str, tuple[str, ...]]:
    """Case id -> the first wording of each level, 1 to 6, subject filled in: the paper's M = 6 paraphrases.

    Raises:
        DataError: if a case lacks a level.
    """
    for case in cases:
        lacking = [level for level in LEVELS if not case.perturbations.get(level)]
        if lacking:
            raise DataError(
                f"case {case.id!r} has no wording of level {', '.join(map(str, lacking))}; use cases of the "
                "project's own facts, or add a member 'perturbations' to the data file"
            )
    return {case.id: tuple(case.perturbations[level][0] for level in LEVELS) for case in cases}
