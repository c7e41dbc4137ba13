"""Parts of sentences that pages make from their numbers; each reads well for none, one, some and all."""

from collections.abc import Mapping

from scipy import stats

from palimpsest.errors import DataError
from palimpsest.results.prose import Entry, listed
from palimpsest.results.records import side


def graded(value: float, limits: Mapping[float, str], above: str) -> str:
    """What is said of a value by the range in which it lies: at most the first limit, the second, and so on.

    Args:
        value: the value.
        limits: limit -> what is said of a value that is not above it, from the smallest limit up.
        above: what is said of a value above all limits.
    """
    return next((words for limit, words in limits.items() if value <= limit), above)


def share(number: int, total: int, one: str, many: str = "") -> str:
    """How many of some things, as the subject of a verb: ``none of 3 runs``, ``2 of 3 runs``, ``all 3 runs``.

    Args:
        number: how many of them.
        total: how many there are.
        one: what they are, in the singular.
        many: in the plural, if it is not the singular with an s.
    """
    if total == 1:
        return f"the only {one}" if number else f"no {one}"
    things = f"{total:,} {many or one + 's'}"
    if number == total:
        return f"all {things}"
    return f"{number:,} of {things}" if number else f"none of {things}"


def by_chance(found: int, compared: int, level: float = 0.95) -> str:
    """What chance alone would give where comparisons look different if their intervals exclude zero.

    Args:
        found: how many look different.
        compared: how many there are.
        level: nominal coverage of the intervals.
    """
    miss = 1 - level
    often = float(stats.binom.sf(found - 1, compared, miss))
    things = f"{compared:,} comparisons" if compared != 1 else "1 comparison"
    told = (
        f"With {100 * level:.0f} % intervals {miss * compared:.2g} of {things} would be expected to look "
        "different if nothing differed"
    )
    if not found:
        return f"{told}; here none does."
    if compared == 1:
        return f"{told}; it would {_in_cases(often)}."
    some = f"{found:,} or more" if found < compared else f"all {found:,}"
    return f"{told}; {some} would {_in_cases(often)} if they were independent."


def _in_cases(probability: float) -> str:
    if probability < 0.001:
        return "in less than 1 of 1,000 cases"
    if probability < 0.01:
        return f"in {1000 * probability:.0f} of 1,000 cases"
    return f"in {100 * probability:.0f} of 100 cases"


def sided(entries: Mapping[str, Entry], more: str, less: str, neither: str, reference: float = 0.0) -> str:
    """Things grouped by the side of a reference on which their intervals lie, as clauses of one sentence.

    ``sided(..., more="it falls without {names}", ...)`` reads "it falls without a and b; it rises without c";
    a group without a member is left out.

    Args:
        entries: name of each thing -> its value in a record, with an interval.
        more: clause, with ``{names}`` in it, about those whose interval lies above the reference.
        less: about those whose interval lies below.
        neither: about those whose interval contains the reference.
        reference: in the values' unit.

    Raises:
        DataError: if there is nothing to group, or a value has no interval.
    """
    if not entries:
        raise DataError("nothing to group by side; give at least one value")
    groups: dict[str, list[str]] = {more: [], less: [], neither: []}
    for name, entry in entries.items():
        groups[side(entry, more, less, neither, reference)].append(name)
    clauses = [clause.replace("{names}", listed(names)) for clause, names in groups.items() if names]
    return "; ".join(clauses)
