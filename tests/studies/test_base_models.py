"""AlphaEdit, MEMIT and RECT in sequence on tiny models of the families of claims A10 and A10b.

A smoke of what page 24 compares under the profiles of these models, which need a GPU.
"""

from pathlib import Path
from typing import Any

import pytest

from palimpsest.book.model_files import file_of
from palimpsest.book.profiles import find_notebook, load_profile, parameters_for
from palimpsest.editors import base
from palimpsest.editors.named_sequences import configuration
from palimpsest.editors.steps import steps
from palimpsest.evaluation.answers import target_nll
from palimpsest.evaluation.drift import reference
from palimpsest.memory.settings import TargetSettings
from palimpsest.results.claims import load_claims
from palimpsest.studies.in_turn import InTurn
from tests.editing import CONTEXTS, REQUESTS, same_bits, snapshot, stub_texts, texts
from tests.studies.test_trajectory import CASES
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PROFILES = {"A10": ("gpu-gemma", "gemma"), "A10b": ("gpu-phi-1.5", "phi")}
"""Claim -> the profile that decides it, and the family of its model."""
MAIN = "alphaedit_aligned"
SMALL: dict[str, Any] = {
    "layers": (1, 2),
    "statistics_tokens": 1500,
    "targets": TargetSettings(steps=8, lr=0.3),
}
"""In place of settings on file: what fits a tiny model."""
HELD = {"memit": {"preserve_weight": 0.01}, "alphaedit": {"ridge": 0.01, "rule": "energy", "threshold": 0.2}}
"""Weights for keys of a tiny model, so that a sequence moves it."""


def compared(claim: str) -> list[str]:
    """Sequences that page 24 runs under the profile of a claim."""
    profile = load_profile(PROFILES[claim][0])
    return list(parameters_for(profile, find_notebook("24_other_editors"))["sequences"])


ARMS = [(claim, name) for claim in PROFILES for name in compared(claim)]


@pytest.fixture
def offline(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No resource is fetched, and a random model need not write its contexts."""
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)


@pytest.mark.parametrize("claim", PROFILES)
def test_the_profile_of_a_claim_runs_what_it_compares_on_the_family_it_is_about(claim: str) -> None:
    row = next(one for one in load_claims().claims if one.id == claim)
    profile, family = PROFILES[claim]
    assert row.rule is not None
    assert (row.profile, row.only_there) == (profile, True)
    known = file_of(load_profile(profile).model)
    assert known is not None
    assert known[1]["architecture"] == family
    others = [name for name in compared(claim) if name != MAIN]
    written = {f"above_{name}_{metric}" for name in others for metric in ("efficacy", "generalisation")}
    written |= {f"above_{name}_specificity" for name in others}
    assert MAIN in compared(claim)
    assert {*row.rule.names()} <= written


@pytest.mark.parametrize(("claim", "name"), ARMS)
@pytest.mark.usefixtures("offline")
def test_a_sequence_moves_the_facts_and_is_taken_back(claim: str, name: str) -> None:
    """Values are optimised on the model itself; after two batches the new objects are likelier on average."""
    profile, family = PROFILES[claim]
    host = "alphaedit" if "alphaedit" in name else "memit"
    editor = configuration(name, load_profile(profile).model, **SMALL, **HELD[host])
    model = tiny_model(family)
    before, pairs = snapshot(model), [(request.text, request.target) for request in REQUESTS]
    start = target_nll(model, pairs).mean()
    found = [target_nll(model, pairs).mean() for _ in steps(model, editor, [REQUESTS[:2], REQUESTS[2:]])]
    assert found[-1] < start
    assert same_bits(model, before)


@pytest.mark.slow
@pytest.mark.parametrize("claim", PROFILES)
@pytest.mark.usefixtures("drawn_values")
def test_page_24_gets_its_rows_of_every_sequence(claim: str) -> None:
    profile, family = PROFILES[claim]
    model = tiny_model(family)
    text = reference(model, tokens=64, window=16, texts=texts())
    run = InTurn(model, CASES[:4], 2, (2, 4), text)
    for name in compared(claim):
        host = "alphaedit" if "alphaedit" in name else "memit"
        rows = run.outcome(configuration(name, load_profile(profile).model, **SMALL, **HELD[host]))
        facts = rows[rows["of"].eq("fact") & rows["edits"].eq(4) & rows["metric"].eq("efficacy")]
        assert set(facts["key"]) == {case.id for case in CASES[:4]}
        assert rows[rows["metric"].eq("same")]["value"].tolist() == [1]
