"""Training cases for editors that are trained, such as MEND and SERAC, apart from every page's facts.

The project's own facts give none: the pages edit the test split, and choose settings and held-out wordings by
the validation split, so that all 2,502 facts are in use. Training cases come from files of the user, as those
of MEND's ZsRE, CounterFact or KnowEdit's training parts, and are divided by a hash of their subjects, so that
no subject is in two parts, in any file and any order. Subjects of the fact set are left out, whatever their
spelling; they may still be objects or neighbours there.

Sources: Mitchell et al. 2022 (MEND; SERAC), who train on a part of the same data set.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from palimpsest.datasets.facts import FactSet
from palimpsest.errors import DataError
from palimpsest.mentions import normal
from palimpsest.types import EvalCase

PARTS = ("training", "validation", "test")

SHARES = (0.8, 0.1, 0.1)
"""Shares of subjects of the three parts."""

_SALT = b"training parts: "


@dataclass(frozen=True)
class TrainingSplit:
    """Cases for an editor that is trained; no subject is in two parts or in the fact set.

    Attributes:
        training: to learn from.
        validation: to stop the training by.
        test: to measure it on data of the same kind.
        left_out: number of cases about subjects of the fact set.
    """

    training: tuple[EvalCase, ...]
    validation: tuple[EvalCase, ...]
    test: tuple[EvalCase, ...]
    left_out: int


def training_part(subject: str, shares: Sequence[float] = SHARES) -> str:
    """The part of a subject, from a hash of its name without case and Unicode form.

    The hash is not that of `palimpsest.datasets.split_of`, so that the two divisions are independent.

    Args:
        subject: its name.
        shares: of training, validation and test; positive, and 1 in all.

    Raises:
        DataError: if the shares are no three positive numbers with the sum 1.
    """
    if len(shares) != len(PARTS) or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise DataError(f"shares {tuple(shares)} must be three positive numbers that make 1, as {SHARES}")
    place = int.from_bytes(sha256(_SALT + _key(subject).encode()).digest()[:8], "big") / 2**64
    first, second, _ = shares
    return PARTS[0] if place < first else PARTS[1] if place < first + second else PARTS[2]


def training_split(
    cases: Iterable[EvalCase], facts: FactSet, shares: Sequence[float] = SHARES
) -> TrainingSplit:
    """Divide cases by their subjects, without those of the fact set.

    Args:
        cases: any, for example from `palimpsest.datasets.load_zsre` with ``target="alt"``.
        facts: the fact set of the pages.
        shares: as `training_part`.

    Raises:
        DataError: if a part is empty, or the shares are not usable.
    """
    own = {_key(fact.subject) for fact in facts.facts}
    parts: dict[str, list[EvalCase]] = {name: [] for name in PARTS}
    left_out = 0
    for case in cases:
        if _key(case.request.subject) in own:
            left_out += 1
        else:
            parts[training_part(case.request.subject, shares)].append(case)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"no case is left for {' and '.join(empty)}: {sum(map(len, parts.values()))} cases are about "
            f"subjects outside of the fact set and {left_out} about those in it; give more cases"
        )
    training, validation, test = (tuple(parts[name]) for name in PARTS)
    return TrainingSplit(training, validation, test, left_out)


def _key(subject: str) -> str:
    return normal(subject).casefold().strip()
