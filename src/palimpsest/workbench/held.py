"""Facts that an edited model holds: which of them a command means, and whether new ones fit beside them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from palimpsest.algebra.ledger_facts import unique
from palimpsest.errors import LedgerError, RequestError
from palimpsest.types import EditRequest

NEAR = 3
"""Ids that an error names because they are like an unknown one, at most."""


def check_held(facts: Collection[str], names: Sequence[str], state: str) -> None:
    """Check that ids are those of facts.

    Args:
        facts: ids that are held.
        names: ids that were asked for.
        state: what was not done, for the message.

    Raises:
        LedgerError: if an id is unknown; the message names those that are like it.
    """
    unknown = [name for name in names if name not in facts]
    if not unknown:
        return
    near = list(dict.fromkeys(hit for name in unknown for hit in _near(name, facts)))[:NEAR]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise LedgerError(
        f"no fact {', '.join(map(repr, unknown))} among the {len(facts)} that are held; {state}.{hint} The "
        "ids are the keys of EditedModel.facts, and stand in palimpsest.json"
    )


def _near(name: str, facts: Collection[str]) -> list[str]:
    """Ids that differ from a name by letters here and there, or by upper and lower case."""
    plain = {held.casefold(): held for held in facts}
    return [plain[found] for found in get_close_matches(name.casefold(), plain, NEAR, 0.7)]


def check_new(facts: Mapping[str, EditRequest], requests: Sequence[EditRequest]) -> None:
    """Check that facts can be written beside those that are held.

    Args:
        facts: id -> fact that is held.
        requests: new facts, each with an id.

    Raises:
        LedgerError: if an id occurs twice or is held.
        RequestError: if a filled prompt occurs twice or is asked by a fact that is held.
    """
    held = [name for name in unique([request.id for request in requests]) if name in facts]
    if held:
        raise LedgerError(f"fact {held[0]!r} is held already; forget it first, or give another id")
    asked = {fact.text: name for name, fact in facts.items()}
    for request in requests:
        if asked.setdefault(request.text, request.id) != request.id:
            raise RequestError(
                f"facts {asked[request.text]!r} and {request.id!r} both ask {request.text!r}; keep one "
                "of them, or forget the one that is held"
            )


def renewed(old: EditRequest, new: str | EditRequest) -> EditRequest:
    """A fact with a new object, or another request, under the id of the old one.

    Raises:
        RequestError: if the object cannot be that of a request, or ``new`` is neither text nor request.
    """
    if isinstance(new, EditRequest):
        return replace(new, id=old.id)
    return replace(old, target=new)
