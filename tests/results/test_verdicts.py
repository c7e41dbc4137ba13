"""Verdicts on claims: from recorded values, from too few of them, and outside the paper's regime."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.book.profiles import known_profiles
from palimpsest.errors import DataError
from palimpsest.results.claims import (
    PUBLISHED,
    Claim,
    Verdict,
    headline,
    judged,
    load_claims,
    profiles_with_results,
    verdict,
)
from palimpsest.results.effects import Count, Effect, Limit, Part, Parts
from palimpsest.results.reservations import AS_PUBLISHED
from palimpsest.results.rules import LABELS, OWN_DATA, UNTESTED, Identity
from tests.results.made_up import LEMMAS, entry, record


def claim(name):
    return next(item for item in load_claims().claims if item.id == name)


# What the carried file is expected to say once the values are there ---------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P01", "verified numerically"),
        ("P01b", "wrong as printed"),
        ("P02", "wrong as printed"),
        ("P03", "verified numerically"),
        ("P03b", "wrong as printed"),
        ("P04", "verified numerically"),
        ("P05", "verified numerically"),
        ("P06", "wrong as printed"),
        ("P07", "wrong as printed"),
    ],
)
def test_the_lemmas_verdicts_follow_their_values(name, expected):
    values = {key: entry(value) for key, value in LEMMAS.items()}
    found = verdict(claim(name), {"03_alphaedit_plus_lemmas": values}, "laptop")
    assert (found.label, found.profile) == (expected, "laptop")
    assert set(found.values) >= set(claim(name).rule.names())


def test_the_score_is_wrong_as_printed_by_the_tables_alone():
    found = verdict(claim("P16"), {}, "laptop")
    assert (found.label, found.profile) == ("wrong as printed", PUBLISHED)


def test_a_single_batch_does_not_settle_a_claim_about_sequences():
    values = {"alphaedit_minus_memit_efficacy": entry(1.0, -1.0, 3.0), "efficacy_rome": entry(50.0)}
    found = verdict(claim("A04"), {"14_comparison": values}, "laptop")
    assert found.label == "not run"
    assert "06_alignment" in found.reason


# Missing and malformed values ------------------------------------------------------------------

SMALL = Claim(
    id="P01",
    paper="alphaedit_plus",
    place="Lemma 1",
    kind="N",
    statement="A statement that is long enough.",
    notebook="03_x",
    rule=Effect(value="d", direction="positive", published=10),
    paper_ran="GPT-J, 2,000 edits",
)


def test_a_missing_value_is_named_with_its_file():
    found = verdict(SMALL, {"03_x": {"other": entry(1)}}, "long")
    assert found.label == "not run"
    assert found.reason == "value d missing in results/long/03_x.json"


def test_a_missing_record_is_named():
    assert verdict(SMALL, {}, "gpu-gpt2-xl").reason == "there is no results/gpu-gpt2-xl/03_x.json"


def test_an_estimate_without_an_interval_is_no_effect():
    found = verdict(SMALL, {"03_x": {"d": entry(3.0)}}, "laptop")
    assert found.label == "undecided"
    assert "recorded without an interval" in found.reason


def test_half_an_interval_is_none():
    found = verdict(SMALL, {"03_x": {"d": entry(3.0, low=1.0)}}, "laptop")
    assert found.label == "not run"
    assert "value d has no interval; record it with low and high" in found.reason


@pytest.mark.parametrize("value", ["high", True, None, float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_an_error(value):
    for rule in (Identity(values=("d",)), SMALL.rule, Limit(value="d", at_most=1)):
        bad = SMALL.model_copy(update={"rule": rule})
        with pytest.raises(DataError, match=r"claim P01, results/laptop/03_x.json: value d is .* finite num"):
            verdict(bad, {"03_x": {"d": entry(value)}}, "laptop")


def test_a_count_without_its_cases_is_an_error_that_names_the_claim():
    bad = SMALL.model_copy(update={"rule": Count(value="d", at_least=95)})
    with pytest.raises(DataError, match=r"claim P01, results/laptop/03_x.json: value d has no n; record"):
        verdict(bad, {"03_x": {"d": entry(100.0)}}, "laptop")


def test_a_verdict_holds_what_was_found_of_each_part():
    effects = [Part(name=f"part {name}", rule=Effect(value=name, direction="positive")) for name in "ab"]
    several = SMALL.model_copy(update={"rule": Parts(parts=tuple(effects))})
    values = {"a": entry(2, 1, 3), "b": entry(0, -1, 1)}
    found = verdict(several, {"03_x": values}, "laptop")
    assert [(name, part.label) for name, part in found.parts] == [
        ("part a", "direction only"),
        ("part b", "undecided"),
    ]
    assert (found.label, list(found.values)) == ("undecided", ["a", "b"])
    assert verdict(several, {"03_x": {"a": values["a"]}}, "laptop").parts == ()
    assert verdict(SMALL, {"03_x": {"d": values["a"]}}, "laptop").parts == ()


# The paper's regime ---------------------------------------------------------------------------

BY_LABEL = {
    "reproduced": entry(10, 9, 11),
    "direction only": entry(2, 1, 3),
    "opposite here": entry(-10, -11, -9),
    "absent here": entry(0, -1, 1),
    "undecided": entry(0, -6, 6),
}
EARLY = {"page": "16", "what": "more edits"}


def awaiting(**awaits):
    return Claim(**SMALL.model_dump(exclude={"awaits"}), awaits=EARLY | awaits)


@pytest.mark.parametrize("wanted", BY_LABEL)
def test_what_was_not_seen_before_the_papers_regime_is_not_tested(wanted):
    values = {"03_x": {"d": BY_LABEL[wanted]}}
    plain = verdict(SMALL, values, "laptop")
    assert plain.label == wanted
    some, every = (verdict(awaiting(all=flag), values, "laptop") for flag in (False, True))
    assert some.label == (UNTESTED if wanted in ("absent here", "undecided") else wanted)
    assert every.label == UNTESTED
    assert every.reason == f"still to come on page 16: more edits; so far: {plain.reason}"
    assert every.values == plain.values


@pytest.mark.parametrize("wanted", BY_LABEL)
def test_a_label_that_was_earned_on_data_of_our_own_is_no_label_of_the_papers(wanted):
    values = {"03_x": {"d": BY_LABEL[wanted]}}
    own = SMALL.model_copy(update={"own_data": "facts of this project"})
    plain, found = verdict(SMALL, values, "laptop"), verdict(own, values, "laptop")
    assert found.label == OWN_DATA
    there = f"{wanted}, {plain.reason}".replace("reproduced", AS_PUBLISHED)
    assert found.reason == f"facts of this project; there: {there}"
    assert "reproduced" not in found.reason
    assert verdict(own, {}, "laptop").label == "not run"
    both = awaiting(all=True).model_copy(update={"own_data": "facts of this project"})
    assert verdict(both, values, "laptop").label == UNTESTED


def test_no_part_of_a_statement_is_called_reproduced_on_data_of_our_own():
    """As little as the whole: pages count the labels of the parts."""
    claim = next(one for one in load_claims().claims if one.id == "A09")
    names = [part.rule.value for part in claim.rule.parts]
    sizes = [part.rule.published for part in claim.rule.parts]
    values = {name: entry(size, 0.99 * size, 1.01 * size) for name, size in zip(names, sizes, strict=True)}
    values |= {name: entry(1) for name in claim.rule.shows}
    found = verdict(claim, {claim.notebook: values}, "laptop")
    assert [part.label for _, part in found.parts] == [AS_PUBLISHED] * len(names)
    plain = verdict(claim.model_copy(update={"own_data": None}), {claim.notebook: values}, "laptop")
    assert [part.label for _, part in plain.parts] == ["reproduced"] * len(names)


@pytest.mark.parametrize("everything", [True, False])
def test_what_was_not_run_stays_not_run(everything):
    waiting = awaiting(all=everything)
    for results in ({}, {"03_x": {"other": entry(1)}}, {"03_x": {"d": entry(3, low=1)}}):
        assert verdict(waiting, results, "laptop").label == "not run"


def test_a_claim_about_one_profiles_model_is_tested_by_no_other_profile():
    own = SMALL.model_copy(update={"profile": "gpu-gemma", "only_there": True})
    values = {"03_x": {"d": entry(3.0, 2.0, 4.0)}}
    assert verdict(own, values, "gpu-gemma") == verdict(SMALL, values, "gpu-gemma")
    elsewhere = verdict(own, values, "laptop")
    assert (elsewhere.label, elsewhere.values) == ("not run", {})
    assert elsewhere.reason == "needs the model of the profile gpu-gemma, and this profile runs another"
    assert headline(own, [elsewhere, verdict(own, values, "gpu-gemma")]).profile == "gpu-gemma"


def test_a_claim_that_nothing_here_tests_says_why():
    found = verdict(claim("P13b"), {"13_alphaedit_plus_parts": {"p13_best_count": entry(1)}}, "laptop")
    assert (found.label, found.reason) == (UNTESTED, claim("P13b").untested)
    assert list(found.values) == ["p13_best_count"]


# One verdict for a claim ----------------------------------------------------------------------

LABELS_OF_RUNS = st.lists(st.sampled_from(list(LABELS)), min_size=3, max_size=3)
PROFILES = ("laptop", "long", "gpu-gpt2-xl")


@given(LABELS_OF_RUNS, st.sampled_from([None, *PROFILES, "absent"]))
def test_the_deciding_profile_stands_for_a_claim_else_the_first_that_ran(labels, deciding):
    found = [Verdict("P01", name, at, "why") for name, at in zip(labels, PROFILES, strict=True)]
    chosen = headline(SMALL.model_copy(update={"profile": deciding}), found)
    ran = {item.profile: item for item in found if item.label != "not run"}
    if deciding in ran:
        assert chosen == ran[deciding]
    else:
        assert chosen == next(iter(ran.values()), found[0])


def test_the_deciding_profiles_of_the_file_exist():
    assert {item.profile for item in load_claims().claims} - {None} <= set(known_profiles())


def test_profiles_come_in_reading_order(tmp_path):
    assert profiles_with_results(tmp_path) == ["laptop"]
    record(tmp_path, "smoke", "03_x", {})
    assert profiles_with_results(tmp_path) == ["smoke"]
    for name in ("gpu-gpt2-xl", "long", "laptop"):
        record(tmp_path, name, "03_x", {})
    assert profiles_with_results(tmp_path) == ["laptop", "long", "gpu-gpt2-xl"]


def test_every_claim_is_judged_once_for_each_profile(tmp_path):
    broken = LEMMAS | {"p03_signed_error": 0.1}
    record(tmp_path, "laptop", "03_alphaedit_plus_lemmas", LEMMAS)
    record(tmp_path, "long", "03_alphaedit_plus_lemmas", broken)
    claims = load_claims()
    found = judged(claims, tmp_path)
    assert list(found) == [item.id for item in claims.claims]
    assert [(item.profile, item.label) for item in found["P03"]] == [
        ("laptop", "verified numerically"),
        ("long", "wrong as printed"),
    ]
