"""What can be counted in long texts of an edited model without a judge: names and repetition.

LEME (Rosati et al. 2024) has people or large models rate texts from 1 to 7 for edit consistency, factual
consistency, internal consistency, cohesion and others. The counts here stand in for two of these and are none
of them: a text that names the new object need not say that the fact holds, and one that does not name it may
say nothing of the fact. Internal consistency, which needs a reader, has no stand-in.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from palimpsest.errors import ScoreError
from palimpsest.evaluation.fluency import fluency, repetition
from palimpsest.evaluation.hops import given
from palimpsest.types import EditRequest, Record

MEASURES = ("names_new", "names_old", "names_facts", "repetition", "entropy")


@runtime_checkable
class Passage(Protocol):
    """A text that is asked for."""

    @property
    def prompt(self) -> str:
        """The instruction."""
        ...


@runtime_checkable
class LongCase(Protocol):
    """An edit with the texts that are to agree with it."""

    @property
    def id(self) -> str:
        """Unique among the cases."""
        ...

    @property
    def request(self) -> EditRequest:
        """The edit."""
        ...

    @property
    def target_true(self) -> str:
        """The object before the edit; empty if unknown."""
        ...

    @property
    def passage(self) -> Passage:
        """About the subject of the edit."""
        ...

    @property
    def still_true(self) -> Sequence[tuple[Passage, str]]:
        """Passages with objects that each should name and that the edit leaves true."""
        ...


def prompts_of(cases: Sequence[LongCase]) -> list[str]:
    """Prompts of all texts that `long_form` looks at, each once."""
    found = [[case.passage.prompt, *(passage.prompt for passage, _ in case.still_true)] for case in cases]
    return list(dict.fromkeys(prompt for of in found for prompt in of))


def long_form(cases: Sequence[LongCase], texts: Mapping[str, str]) -> list[Record]:
    """Counts in the texts of each case.

    Args:
        cases: any number.
        texts: prompt -> text, without the prompt.

    Returns:
        Records with these metrics, values in [0, 1] but for the last:
        ``names_new``, 1 if the text about the subject names the new object, in whole words and whatever the
        case; ``names_old``, 1 if it names the old one; ``names_facts``, the share of the objects that are
        still true that their text names, for cases that have such; ``repetition`` of the subject's text, the
        share of its four-grams that it said before; ``entropy``, its fluency in bits.

    Raises:
        ScoreError: if a text is missing.
    """
    lacking = [prompt for prompt in prompts_of(cases) if prompt not in texts]
    if lacking:
        raise ScoreError(f"{len(lacking)} prompts have no text, first {lacking[0]!r}; give one for each")
    records = []
    for case in cases:
        own = texts[case.passage.prompt]
        kept = [given(texts[passage.prompt], [name]) for passage, name in case.still_true]
        old = [case.target_true] if case.target_true else []
        values = {
            "names_new": float(given(own, [case.request.target])),
            "names_old": float(given(own, old)),
            **({"names_facts": float(np.mean(kept))} if kept else {}),
            "repetition": repetition(own),
            "entropy": fluency(own),
        }
        for metric, value in values.items():
            records.append(
                Record(case.id, metric, value, max(len(kept), 1) if metric == "names_facts" else 1)
            )
    return records
