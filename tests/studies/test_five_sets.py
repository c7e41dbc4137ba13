"""Five sets from one base: measured as defined, disjoint where asked, written with the same values."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from palimpsest.datasets import load_facts, load_original, to_counterfact, to_zsre
from palimpsest.datasets.original import Original
from palimpsest.datasets.rewordings import origin, rewritten_of
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import DataError
from palimpsest.evaluation.drift import reference
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.memory import known_values
from palimpsest.memory.keys import subject_hidden, subject_keys
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.model import EditableModel
from palimpsest.studies import five_sets
from palimpsest.studies.five_sets import HARD, PLAIN, Base, base_facts, standing, stream_of
from palimpsest.types import EvalCase
from tests.editing import CONTEXTS, double, stub_texts, texts
from tests.sequences import drawn
from tests.studies.test_difficulty import cosines

pytestmark = pytest.mark.usefixtures("one_thread")
EDITOR = Sequential(
    layers=(0, 1, 2, 3),
    ridge=1.0,
    rule="energy",
    threshold=0.5,
    statistics_tokens=1500,
    targets=TargetSettings(steps=4, lr=0.3),
    contexts=ContextSettings(count=2),
)
COUNT, BIG = 40, {"hard": 2, "others": 6, "gap": 3, "seed": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """One base for all tests, with drawn values and no resource."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(five_sets, "sample_contexts", lambda *_: CONTEXTS)
        patch.setattr(known_values, "optimise_targets", drawn())
        stub_texts(patch)
        yield base_facts(
            double("llama"), load_facts(), EDITOR, COUNT, hard=2, split="validation", key_tokens=300
        )


@pytest.fixture(scope="module")
def model(base: Base) -> EditableModel:
    return base.model


@pytest.mark.slow
def test_measures_are_the_definitions(base: Base, model: EditableModel) -> None:
    """Dense cosines with text and known facts; with the own subject only where it is meant to conflict."""
    assert base.layer == 2
    text = torch.cat(base.preserved, 1)
    originals = {case.id: case for case in base.questions}
    assert 0 < len(base.known) < COUNT
    for case in (*base.facts[:6], *base.reworded[:4], *base.rewritten[:4], *base.questions[:3]):
        key = subject_keys(model, [case.request], 2, CONTEXTS).double()
        meant = case.id.endswith("/reworded")
        free = [c for c in base.known if meant or c.request.subject != case.request.subject]
        kept = torch.cat(
            [text.double(), subject_keys(model, [c.request for c in free], 2, CONTEXTS).double()], 1
        )
        found = base.measured([case]).iloc[0]
        assert found["conflict_preserved"] == pytest.approx(float(cosines(key, kept).max()))
        assert found["text"] == pytest.approx(float(cosines(key, text).max()))
        inside = float(base.projector.apply(key).square().sum())
        assert found["left"] == pytest.approx(1 / (1 + inside))
        if case.id.endswith("/rewritten"):
            other = subject_keys(model, [originals[rewritten_of(case.id)].request], 2, CONTEXTS)
            assert base.measures[case.id].conflict_past == pytest.approx(float(cosines(key, other)[0, 0]))


def test_residuals_belong_to_the_last_layer(base: Base, model: EditableModel) -> None:
    cases = [*base.facts, *base.questions]
    given = base.values.of(model, [c.request for c in cases], 3, EDITOR.targets, CONTEXTS).values
    lengths = (given.double() - subject_hidden(model, [c.request for c in cases], 3)).norm(dim=0)
    for case, length in zip(cases, lengths.tolist(), strict=True):
        assert base.measures[case.id].inconsistency == pytest.approx(length)


def test_hard_members_are_the_hardest_and_draws_change_the_others(base: Base) -> None:
    first, second = (base.hard_sets(**(BIG | {"seed": seed})) for seed in (1, 2))
    longer = dict[str, EvalCase]()
    for case in (*base.facts, *base.questions):
        held = longer.get(origin(case.id), case)
        longer[origin(case.id)] = max(held, case, key=lambda c: base.measures[c.id].inconsistency or 0)
    pools = {"AlphaSet1": base.reworded, "AlphaSet2": base.rewritten, "AlphaSet3": longer.values()}
    for title, measure in HARD.items():
        pool = {case.id for case in pools[title]}
        values = {name: getattr(base.measures[name], measure) for name in pool}
        hardest = sorted(pool, key=lambda name: (-values[name], name))[:2]
        for one in (first[title], second[title]):
            assert {m.case.id for m in one.members if m.role == "hard"} == set(hardest)
        assert first[title].cases != second[title].cases
        others = [m.case.id for m in first[title].members if m.role != "hard"]
        assert others
        assert all(name.endswith("/zsre") for name in others)
        subjects = [m.case.request.subject for m in first[title].members if m.role != "superseded"]
        assert len(set(subjects)) == len(subjects)


def test_the_third_set_can_be_longer(base: Base) -> None:
    sets = base.hard_sets(**BIG, third=1.5)
    assert [len(one.cases) for one in sets.values()] == [8, 8, 12]
    assert sum(m.role == "hard" for m in sets["AlphaSet3"].members) == 3


def test_sets_apart_share_no_fact(base: Base) -> None:
    together = base.hard_sets(**BIG)
    ids = [one.base_ids for one in base.hard_sets(**BIG, apart=True).values()]
    assert sum(map(len, ids)) == len(frozenset.union(*ids))
    shared = [one.base_ids for one in together.values()]
    assert sum(map(len, shared)) > len(frozenset.union(*shared))  # they would overlap


def test_plain_sets_hold_the_same_facts_in_the_same_order(base: Base) -> None:
    sets = base.plain_sets(9, 3)
    assert tuple(sets) == PLAIN
    statements, questions = ([origin(case.id) for case in sets[title].cases] for title in PLAIN)
    assert statements == questions
    assert [case.request.text for case in sets[PLAIN[0]].cases] != [
        c.request.text for c in sets[PLAIN[1]].cases
    ]
    assert [origin(case.id) for case in base.plain_sets(9, 4)[PLAIN[0]].cases] != statements
    assert {m.role for one in sets.values() for m in one.members} == {"other"}


def test_every_edit_of_the_sets_has_a_value_and_facts_keep_theirs(
    base: Base, model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_values, "optimise_targets", drawn())
    sets = [*base.hard_sets(**BIG).values(), *base.plain_sets(9, 3).values()]
    values = base.values_for(sets)
    requests = [case.request for one in sets for case in one.cases]
    assert values.of(model, requests, 3, EDITOR.targets, CONTEXTS).values.shape[1] == len(requests)
    asked = [case.request for case in base.facts]
    before, after = (v.of(model, asked, 3, EDITOR.targets, CONTEXTS).values for v in (base.values, values))
    assert torch.equal(before, after)


def test_a_stream_asks_no_wording_that_was_held_out(base: Base, model: EditableModel) -> None:
    sets = list(base.hard_sets(**BIG, apart=True).values())
    text = reference(model, tokens=64, window=16, texts=texts())
    stream = stream_of(base, sets, base.values, text, batch=4, paraphrases=1, neighbours=2)
    assert [c.id for c in stream.cases] == [case.id for one in sets for case in one.cases]
    assert all(len(c.paraphrases) <= 1 and len(c.neighbours) <= 2 for c in stream.cases)
    score_by("validation", stream.cases, stream.validation)  # refuses a leak
    superseded = {m.case.id for one in sets for m in one.members if m.role == "superseded"}
    assert superseded
    assert set(standing(sets)) == {c.id for c in stream.cases} - superseded


def test_too_few_facts_for_a_set(base: Base) -> None:
    with pytest.raises(
        DataError, match=r"a set of 41 was asked for, of 40 base facts; give more or ask for fewer"
    ):
        base.plain_sets(COUNT + 1, 0)
    with pytest.raises(DataError, match=r"hard members were asked for"):
        base.hard_sets(hard=500, others=500, gap=3, seed=0)
    few = replace(base, questions=base.questions[:3])
    with pytest.raises(DataError, match=r"other facts were asked for"):
        few.hard_sets(**BIG)


def test_original_data_take_the_place_of_the_projects_own(
    base: Base, model: EditableModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A released set is written as it is; statements and questions come from the files that hold some."""
    monkeypatch.setattr(five_sets, "sample_contexts", lambda *_: CONTEXTS)
    monkeypatch.setattr(known_values, "optimise_targets", drawn())
    (tmp_path / "KI.json").write_text(json.dumps([to_zsre(case) for case in base.questions[:5]]))
    (tmp_path / "zsre.json").write_text(json.dumps([to_zsre(case) for case in base.questions[5:25]]))
    (tmp_path / "mcf.json").write_text(json.dumps([to_counterfact(case) for case in base.facts[:20]]))
    data = load_original(tmp_path)

    def given(count: int, data: Original) -> Base:
        return base_facts(model, load_facts(), EDITOR, count, hard=1, key_tokens=300, data=data)

    found = given(20, data)
    assert [case.id for case in found.facts] == [f"CounterFact {case.id}" for case in base.facts[:20]]
    assert [case.id for case in found.questions] == [f"ZsRE {case.id}/zsre" for case in base.questions[5:25]]
    sets = found.hard_sets(hard=1, others=4, gap=2, seed=0)
    assert [case.id for case in sets["AlphaSet3"].cases] == [
        f"AlphaSet3 {case.id}" for case in base.questions[:5]
    ]
    assert {case.target_true for case in sets["AlphaSet3"].cases} == {""}
    every = [case for one in sets.values() for case in one.cases]
    assert len(found.measured(every, found.values_for(list(sets.values())))) == len(every)
    with pytest.raises(DataError, match="21 statements were asked for and the data have 20; lower base"):
        given(21, data)
    mixed = given(6, Original(sets=data.sets))
    assert not any(case.id.startswith("CounterFact") for case in mixed.facts)
    assert mixed.hard_sets(hard=1, others=3, gap=2, seed=0)["AlphaSet3"].cases == sets["AlphaSet3"].cases
