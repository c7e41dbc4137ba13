"""What keeps a label from being the last word: a run still to come, or data that stand in for the paper's."""

import re

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.results.rules import OWN_DATA, UNTESTED, Judgement

AS_PUBLISHED = "as large as published"
"""What stands for "reproduced" on other data than the paper's, of the whole and of its parts."""


class Awaited(BaseModel):
    """What is still to be run before a claim is tested in the paper's regime."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    page: str = Field(pattern=r"^[0-9]{2}$")
    """Number of the page that will run it."""
    what: str = Field(min_length=5)
    all: bool = False
    """No label is earned before that; by default only "absent here" and "undecided" are not."""


def reserved(
    found: Judgement, awaits: Awaited | None, own_data: str | None, notebook: str | None
) -> Judgement:
    """A judgement under what the claim's row says against it.

    Args:
        found: by the rule.
        awaits: the run that is still to come: a label that was not earned in the paper's regime becomes "not
            tested in the paper's regime".
        own_data: what stands in for the paper's data: a label that was earned on it becomes "own data",
            and nothing is called reproduced.
        notebook: whose values were judged.
    """
    if found.label == "not run":
        return found
    if own_data is not None:
        found = elsewhere(found)
    if awaits is not None and (awaits.all or found.label in ("absent here", "undecided")):
        own = notebook is not None and notebook.startswith(f"{awaits.page}_")
        where = f"in a later run of page {awaits.page}" if own else f"on page {awaits.page}"
        return Judgement(UNTESTED, f"still to come {where}: {awaits.what}; so far: {found.reason}")
    if own_data is not None:
        return Judgement(OWN_DATA, f"{own_data}; there: {found.label}, {found.reason}")
    return found


def elsewhere(found: Judgement) -> Judgement:
    """A judgement, or that of a part, on other data than the paper's, where nothing is called reproduced."""
    return Judgement(*(re.sub(r"\breproduced\b", AS_PUBLISHED, text) for text in found))
