"""Classes of hard data sets: members with role, measures and held-out wording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from palimpsest.datasets.cases import seeded
from palimpsest.datasets.rewordings import as_request, origin
from palimpsest.errors import DataError
from palimpsest.types import EvalCase

Role = Literal["hard", "other", "superseded"]
MEASURES = ("conflict_preserved", "conflict_past", "inconsistency")


@dataclass(frozen=True)
class Measures:
    """Measures of the difficulty of one edit; None if not measured.

    Attributes:
        conflict_preserved: s_K0, the largest |cosine| of its key with a preserved key, in [0, 1].
        conflict_past: s_Kp, the largest |cosine| of its key with the key of an earlier edit, in [0, 1].
        inconsistency: ‖r‖ = ‖v − W k‖, norm of the required change.
    """

    conflict_preserved: float | None = None
    conflict_past: float | None = None
    inconsistency: float | None = None


@dataclass(frozen=True)
class Member:
    """One edit of a hard data set.

    Attributes:
        case: the edit and its evaluation prompts, without the held-out wording.
        role: ``hard``; ``other``; or ``superseded``, an edit whose fact a later edit rewrites, so that its
            object should be gone at the end.
        validation: the held-out wording, subject filled in; empty if the case had none to spare.
        measures: as given to the recipe.
        supersedes: id of the earlier edit that this one rewrites, or empty.
    """

    case: EvalCase
    role: Role
    validation: str = ""
    measures: Measures = Measures()
    supersedes: str = ""


@dataclass(frozen=True)
class AlphaSet:
    """A hard data set.

    Attributes:
        name: for example ``AlphaSet1``.
        members: in the order of writing.
        recipe: settings with which the set was made, as JSON values; ``hardest_by`` names the measure by
            which hard members were selected.
    """

    name: str
    members: tuple[Member, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def cases(self) -> list[EvalCase]:
        """All edits, in the order of writing."""
        return [member.case for member in self.members]

    @cached_property
    def scored(self) -> list[EvalCase]:
        """Cases to score at the end of the stream: all but the superseded ones."""
        return [member.case for member in self.members if member.role != "superseded"]

    @cached_property
    def base_ids(self) -> frozenset[str]:
        """Ids of the base facts of the set; pass them as ``exclude`` to make another set disjoint."""
        return frozenset(origin(case.id) for case in self.cases)

    def in_batches(self, batch: int) -> "AlphaSet":
        """The set without its last members if these do not fill a batch.

        Raises:
            DataError: if the set is smaller than one batch.
        """
        members = self.members[: len(self.members) // batch * batch]
        if not members:
            raise DataError(
                f"{self.name}: {len(self.members)} members do not fill a batch of {batch}; lower batch"
            )
        left = {m.supersedes for m in members} - {""}
        own = tuple(
            replace(m, role="other") if m.role == "superseded" and m.case.id not in left else m
            for m in members
        )
        return replace(self, members=own)

    def measured(self, measures: Mapping[str, Measures]) -> "AlphaSet":
        """The set with its measures replaced by those given, by case id; others are kept."""
        own = tuple(replace(m, measures=measures.get(m.case.id, m.measures)) for m in self.members)
        return replace(self, members=own)

    def values(self, measure: str, role: Role | None = None) -> list[float]:
        """Known values of one measure, of all members or of those with one role."""
        found = (getattr(m.measures, measure) for m in self.members if role in (None, m.role))
        return [value for value in found if value is not None]

    def rows(self) -> list[dict[str, Any]]:
        """One row per member: set, position, case, role, supersedes, relation and the measures."""
        return [
            {
                "set": self.name,
                "position": position,
                "case": member.case.id,
                "role": member.role,
                "supersedes": member.supersedes,
                "relation": member.case.relation,
                **{name: getattr(member.measures, name) for name in MEASURES},
            }
            for position, member in enumerate(self.members)
        ]

    def validation(self, share: float = 0.1, seed: int = 0) -> list[EvalCase]:
        """Edits for tuning, with held-out wordings: a share of the members, and all hard ones of AlphaSet1.

        Each case writes and scores its member's fact with the held-out wording. It has no paraphrases,
        because these belong to the test; its neighbours are those of the test.

        Args:
            share: share of all members, drawn at random without superseded ones; the paper takes 10 %.
            seed: of the draw.

        Raises:
            DataError: if the share is not in (0, 1], or no member has a held-out wording.
        """
        if not 0 < share <= 1:
            raise DataError(f"validation share {share} is not in (0, 1]; the paper takes 0.1")
        able = [m for m in self.members if m.validation and m.role != "superseded"]
        if not able:
            raise DataError(
                f"{self.name}: no member has a wording set aside; make it from base facts with two "
                "paraphrases or with perturbations"
            )
        order = sorted(able, key=lambda m: (draws(m.case.id, seed)[2], m.case.id))
        drawn = {m.case.id for m in order[: max(1, round(share * len(self.members)))]}
        known = self.recipe.get("hardest_by") == "conflict_preserved"
        return [_asked_anew(m) for m in able if m.case.id in drawn or (known and m.role == "hard")]


def percentile_reached(hard: Sequence[float], base: Sequence[float]) -> float:
    """Percentile of the mean of the hard members among the base values, in [0, 100].

    The percentage of base values strictly below the mean: at 90 or more the mean exceeds nine of ten.

    Raises:
        DataError: if either is empty or holds a value that is not finite.
    """
    for name, numbers in (("hard", hard), ("base", base)):
        if len(numbers) == 0 or not np.isfinite(numbers).all():
            raise DataError(f"{name}: {len(numbers)} values, or some are not finite; give finite ones")
    return 100 * float(np.mean(np.asarray(base) < np.mean(hard)))


def draws(case_id: str, seed: int) -> tuple[float, float, float]:
    """Three random numbers in [0, 1) of a case: for its selection, its position and its validation."""
    choice, place, validation = seeded(case_id, seed).random(3).tolist()
    return choice, place, validation


def _asked_anew(member: Member) -> EvalCase:
    """The member's fact as a case whose prompt is the held-out wording."""
    request = as_request(member.case, member.validation)
    if request is None:
        raise DataError(
            f"case {member.case.id!r}: validation wording {member.validation!r} does not name the subject "
            f"{member.case.request.subject!r} exactly once; build the set again"
        )
    name = member.case.id + "/validation"
    request = replace(request, id=name)
    return replace(member.case, id=name, request=request, paraphrases=(), perturbations={})
