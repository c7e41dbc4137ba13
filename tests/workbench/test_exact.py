"""Sequences with which an edited model can be made, and those with which it cannot."""

from dataclasses import replace
from typing import Any

import pytest

from palimpsest.errors import SequenceError, UnknownNameError
from palimpsest.workbench.exact import sequence
from tests.workbench.edits import EDITOR


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("memit_naive", {}, "memit_naive: with retain='none' the weights are not those of a ledger"),
        ("latest_memit", {}, "latest_memit: with retain='latest'"),
        ("rect_aligned", {}, "rect_aligned: with post=Rect"),
        (None, {"reads": "edited"}, "these settings: with reads='edited' .* such as memit_aligned"),
    ],
)
def test_sequences_that_cannot_forget(name: str | None, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SequenceError, match=message):
        sequence(name or replace(EDITOR, **change), "smollm2-135m")


def test_sequences_by_name() -> None:
    for name in ("memit_aligned", "alphaedit_aligned", "plain_aligned"):
        chosen = sequence(name, "smollm2-135m")
        assert (chosen.reads, chosen.values, chosen.retain) == ("unedited", "once", "all")
    with pytest.raises(UnknownNameError, match="unknown sequence 'memit_alligned'; choose one of: "):
        sequence("memit_alligned", "smollm2-135m")
