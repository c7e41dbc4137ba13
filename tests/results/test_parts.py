"""Statements of several effects: each part alone, the least favourable label, the correction (Holm)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from palimpsest.results.effects import RANK, Effect, Limit, Part, Parts, holm
from palimpsest.results.rules import LABELS
from tests.results.made_up import entry, label

CHANCES = st.lists(st.floats(0, 1), max_size=8)


def test_parts_have_names_of_their_own_and_nothing_to_show():
    part = {"name": "one", "rule": {"kind": "effect", "value": "a", "direction": "positive"}}
    with pytest.raises(ValidationError, match="two parts are called 'one'; give each its own name"):
        Parts(parts=[part, part])
    with pytest.raises(ValidationError, match="values to show belong to the whole rule, not to a part"):
        Parts(parts=[part, {"name": "two", "rule": part["rule"] | {"shows": ["b"]}}])


def parts(*rules):
    return Parts(
        parts=tuple(Part(name=f"part {rule.value}", rule=rule) for rule in rules),
    )


BY_LABEL = {
    "opposite here": entry(-10, -11, -9),
    "absent here": entry(0, -1, 1),
    "undecided": entry(0, -6, 6),
    "direction only": entry(2, 1, 3),
    "reproduced": entry(10, 9, 11),
}


@given(st.lists(st.sampled_from(RANK), min_size=2, max_size=5))
def test_a_statement_is_as_good_as_its_worst_part(labels):
    names = [f"v{place}" for place, _ in enumerate(labels)]
    rule = parts(*(Effect(value=name, direction="positive", published=10) for name in names))
    values = {name: BY_LABEL[wanted] for name, wanted in zip(names, labels, strict=True)}
    assert [found.label for _, found in rule.judged(values)] == labels
    assert rule.judge(values).label == min(labels, key=RANK.index)
    assert rule.names() == tuple(names)
    assert set(RANK) < set(LABELS)


def test_one_bare_opposite_among_many_does_not_decide():
    effects = [Effect(value=name, direction="positive", published=10) for name in "abc"]
    bare, fine = entry(-1, -1.99, -0.01), entry(10, 9, 11)
    alone = parts(effects[0], Limit(value="b", at_least=5))
    assert label(alone, a=bare, b=fine) == "opposite here"  # a limit is no further comparison
    among = parts(*effects).judge({"a": bare, "b": BY_LABEL["undecided"], "c": BY_LABEL["undecided"]})
    assert among.label == "undecided"
    assert "part a: undecided" in among.reason
    assert "but not after Holm's correction" in among.reason
    assert label(parts(*effects), a=entry(-1, -1.4, -0.6), b=fine, c=fine) == "opposite here"
    assert label(parts(effects[0], Limit(value="b", at_most=5)), a=fine, b=fine) == "opposite here"


def test_chance_follows_from_the_width_of_the_interval():
    rule = Effect(value="d", direction="positive", reference=1)
    assert rule.chance({"d": entry(2, 1, 3)}) == pytest.approx(0.05)
    assert rule.chance({"d": entry(1, 0, 2)}) == 1
    assert rule.chance({"d": entry(2)}) == 1  # no interval, no evidence
    exact = Effect(value="d", direction="positive", exact=True)
    assert (exact.chance({"d": entry(0)}), exact.chance({"d": entry(-1)})) == (1, 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]) == []


@given(CHANCES)
def test_holm_raises_chances_and_keeps_their_order(chances):
    adjusted = holm(chances)
    assert all(raw <= now <= 1 for raw, now in zip(chances, adjusted, strict=True))
    order = sorted(range(len(chances)), key=chances.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert not chances or min(adjusted) == pytest.approx(min(1, len(chances) * min(chances)))
