"""What a hard data set consists of: members with their role, measures and the wording set aside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from palimpsest.datasets.rewordings import as_request, origin, seeded
from palimpsest.errors import DataError
from palimpsest.types import EvalCase

Role = Literal["hard", "other", "superseded"]
MEASURES = ("conflict_preserved", "conflict_past", "inconsistency")


@dataclass(frozen=True)
class Measures:
    """How hard one edit is; None where it was not measured.

    Attributes:
        conflict_preserved: s_K0, the largest |cosine| of its key with a preserved key, in [0, 1].
        conflict_past: s_Kp, the largest |cosine| of its key with the key of an earlier edit, in [0, 1].
        inconsistency: ‖r‖ = ‖v − W k‖, length of the change that it asks for.
    """

    conflict_preserved: float | None = None
    conflict_past: float | None = None
    inconsistency: float | None = None


@dataclass(frozen=True)
class Member:
    """One edit of a hard data set.

    Attributes:
        case: the edit and what is asked about it, without the wording set aside.
        role: ``hard``; ``other``; or ``superseded``, an edit whose fact is written anew later in the stream,
            so that at the end its object is rightly gone.
        validation: the wording set aside, subject filled in; empty if the case had none to spare.
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
        recipe: the choices it was made by, JSON-able; ``hardest_by`` names the measure that chose.
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
        """What to ask at the end of the stream: all but the superseded."""
        return [member.case for member in self.members if member.role != "superseded"]

    @cached_property
    def base_ids(self) -> frozenset[str]:
        """Ids of the base facts it was made from; give them as ``exclude`` to make another set disjoint."""
        return frozenset(origin(case.id) for case in self.cases)

    def measured(self, measures: Mapping[str, Measures]) -> "AlphaSet":
        """The same set with measures put in the place of its own where given, by case id."""
        own = tuple(replace(m, measures=measures.get(m.case.id, m.measures)) for m in self.members)
        return replace(self, members=own)

    def values(self, measure: str, role: Role | None = None) -> list[float]:
        """One measure of the members, or of those of one role, where it is known."""
        found = (getattr(m.measures, measure) for m in self.members if role in (None, m.role))
        return [value for value in found if value is not None]

    def rows(self) -> list[dict[str, Any]]:
        """One row per member for a table: position, case, role, supersedes, relation and the measures."""
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
        """Edits to tune on: a share of the members, and all known facts of AlphaSet1, by unscored wordings.

        Each writes and asks its member's fact by the wording that was set aside. It has no paraphrases, which
        would be the test's; its neighbours are the test's.

        Args:
            share: of all members, drawn at random, superseded ones left out; the paper takes 10 %.
            seed: of the draw.

        Raises:
            DataError: if the share is not in (0, 1], or no member has a wording set aside.
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
    """Percentile of the base facts that the mean of the hard members lies above, in [0, 100].

    The share of base values strictly below the mean: 90 or more says that the mean is above nine of ten.

    Raises:
        DataError: if either is empty or holds a value that is not finite.
    """
    for name, numbers in (("hard", hard), ("base", base)):
        if len(numbers) == 0 or not np.isfinite(numbers).all():
            raise DataError(f"{name}: {len(numbers)} values, or some are not finite; give finite ones")
    return 100 * float(np.mean(np.asarray(base) < np.mean(hard)))


def draws(case_id: str, seed: int) -> tuple[float, float, float]:
    """Three numbers in [0, 1) of a case: for its choice, its place in the stream and its validation."""
    choice, place, validation = seeded(case_id, seed).random(3).tolist()
    return choice, place, validation


def _asked_anew(member: Member) -> EvalCase:
    """The member's fact, written and asked by the wording set aside."""
    request = as_request(member.case, member.validation)
    if request is None:
        raise DataError(
            f"case {member.case.id!r}: validation wording {member.validation!r} does not name the subject "
            f"{member.case.request.subject!r} exactly once; build the set again"
        )
    name = member.case.id + "/validation"
    request = replace(request, id=name)
    return replace(member.case, id=name, request=request, paraphrases=(), perturbations={})
