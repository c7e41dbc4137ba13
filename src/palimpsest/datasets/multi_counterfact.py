"""MultiCounterFact (Meng et al. 2023, MEMIT): CounterFact without facts that contradict each other.

Read is ``multi_counterfact.json``, which ``dsets/counterfact.py`` of kmeng01/memit fetches; the schema is
that of CounterFact, as that file reads it at commit 80426fd9316cf9a50c5ba15e0912f2c2c5bfe84b. Released are
20,877 records, in which no statement about a subject has two new objects: so they can be written together.
"""

from dataclasses import replace
from pathlib import Path

from palimpsest.datasets.counterfact import load_counterfact
from palimpsest.datasets.files import Loaded, Rejected, refusal
from palimpsest.errors import DataError
from palimpsest.files import special


def load_multi_counterfact(path: str | Path, strict: bool = True) -> Loaded:
    """Read a MultiCounterFact file, one JSON list or JSON lines.

    Args:
        path: the file.
        strict: raise an error for malformed records, and for statements that are edited to two objects;
            otherwise they are listed in ``Loaded.rejected``, a contradiction at its second record.

    Raises:
        DataError: if the file is no regular file or cannot be read, or (strict) as said; the message lists
            the records. The place of a contradiction counts usable records, from 1.
    """
    if kind := special(path):
        raise DataError(f"{path}: is {kind} and no file; write what it gives to a file, and read that")
    loaded = load_counterfact(path, strict)
    first: dict[str, int] = {}
    clashes: list[Rejected] = []
    kept = []
    for place, case in enumerate(loaded.cases, start=1):
        other = first.setdefault(case.request.text, place)
        earlier = loaded.cases[other - 1].request
        if other != place and earlier.target != case.request.target:
            clashes.append(
                Rejected(
                    place,
                    f"fields 'requested_rewrite.prompt' and 'requested_rewrite.subject' make "
                    f"{case.request.text!r}, edited to {case.request.target!r}, but to {earlier.target!r} in "
                    f"record {other} (case_id {earlier.id!r})",
                )
            )
        else:
            kept.append(case)
    if clashes and strict:
        raise refusal(
            path, clashes, "MultiCounterFact has no such pairs; keep one, or read it as CounterFact"
        )
    return replace(loaded, cases=kept, rejected=[*loaded.rejected, *clashes])
