"""Hard data sets: recipes, wordings set aside, files. What is hard is given as numbers, no model is asked."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from originals import original
from test_layering import behind, package_graph, reached

from palimpsest.datasets import (
    AlphaSet,
    Measures,
    Member,
    alphaset1,
    alphaset2,
    alphaset3,
    counterfact_style,
    hold_out,
    known_reworded,
    load_alphaset,
    load_counterfact,
    load_facts,
    load_released,
    load_zsre,
    percentile_reached,
    reworded,
    rewrites,
    save_alphaset,
    zsre_style,
)
from palimpsest.datasets.rewordings import origin
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase, Probe

HARD, OTHERS, GAP = 20, 80, 10
Recipe = Callable[..., AlphaSet]
NAMES = ("alphaset1", "alphaset2", "alphaset3")
every_set = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def base() -> list[EvalCase]:
    return counterfact_style(load_facts(), 400, seed=1)


def numbers(cases: list[EvalCase], seed: int = 0) -> dict[str, Measures]:
    """Random measures of every case."""
    drawn = np.random.default_rng(seed).random((len(cases), 3)).tolist()
    return {case.id: Measures(*row) for case, row in zip(cases, drawn, strict=True)}


def known(base: list[EvalCase]) -> list[bool]:
    return [i % 3 == 0 for i in range(len(base))]


@cache
def offered(name: str, ids: tuple[str, ...], statements: bool) -> list[EvalCase]:
    """Candidates of the cases of these ids, made once."""
    base = MADE[ids, statements]
    return rewrites(base, 5) if name == "alphaset2" else known_reworded(base, known(base), 1)


MADE: dict[tuple[tuple[str, ...], bool], list[EvalCase]] = {}


def candidates_of(name: str, base: list[EvalCase]) -> list[EvalCase]:
    key = tuple(case.id for case in base), not base[0].request.text.endswith("?")
    MADE[key] = base
    return base if name == "alphaset3" else offered(name, *key)


def build(name: str, base: list[EvalCase], **options: Any) -> AlphaSet:
    """One of the three sets from random measures."""
    sizes = {"hard": HARD, "others": OTHERS, "seed": 5} | options
    if name == "alphaset3":
        return alphaset3(base, numbers(base), **sizes)
    candidates = candidates_of(name, base)
    if name == "alphaset1":
        return alphaset1(base, candidates, numbers([*base, *candidates]), **sizes)
    return alphaset2(base, candidates, numbers([*base, *candidates]), **({"gap": GAP} | sizes))


def prompts(case: EvalCase) -> set[str]:
    """Everything that is ever asked about a case."""
    levels = {text for texts in case.perturbations.values() for text in texts}
    return {case.request.text, *case.paraphrases, *(p.prompt for p in case.neighbours)} | levels


def test_recipes_reach_no_model() -> None:
    graph = package_graph()
    for room in ("alphaset", "alphasetmembers", "rewordings"):
        assert not {"torch", "transformers", "model"} & reached(f"datasets.{room}", graph)
    walls = {
        w
        for wall in ("datasets", "editors", "sequential")
        for w in behind(wall, reached("difficulty", graph))
    }
    assert walls == set()


# --- recipes ------------------------------------------------------------------------------------


@every_set
def test_the_seed_decides(base: list[EvalCase], name: str) -> None:
    first = build(name, base)
    assert build(name, base) == first
    other = build(name, base, seed=6)
    assert other.base_ids != first.base_ids
    assert [case.id for case in other.cases if case.id in first.base_ids] != [
        case.id for case in first.cases if case.id in other.base_ids
    ]


@every_set
def test_sizes_and_roles(base: list[EvalCase], name: str) -> None:
    made = build(name, base, about={"layer": 3})
    roles = [member.role for member in made.members]
    first_edits = OTHERS - HARD if name == "alphaset2" else OTHERS
    assert (roles.count("hard"), roles.count("other")) == (HARD, first_edits)
    assert len({case.id for case in made.cases}) == len(made.cases) == HARD + OTHERS
    assert made.recipe["layer"] == 3
    assert (made.recipe["hard"], made.recipe["others"], made.recipe["seed"]) == (HARD, OTHERS, 5)


@every_set
def test_hard_members_are_exactly_the_extreme_ones(base: list[EvalCase], name: str) -> None:
    made = build(name, base)
    measure = made.recipe["hardest_by"]
    candidates = candidates_of(name, base)
    given = numbers(base if name == "alphaset3" else [*base, *candidates])
    ranked = sorted(candidates, key=lambda case: getattr(given[case.id], measure), reverse=True)
    assert {m.case.id for m in made.members if m.role == "hard"} == {case.id for case in ranked[:HARD]}
    assert min(made.values(measure, "hard")) == getattr(given[ranked[HARD - 1].id], measure)


@every_set
def test_others_share_no_subject_with_hard_ones(base: list[EvalCase], name: str) -> None:
    made = build(name, base)
    subjects = {
        role: {m.case.request.subject for m in made.members if m.role == role} for role in ("hard", "other")
    }
    assert not subjects["hard"] & subjects["other"]


@every_set
def test_fewer_others_are_the_first_of_more(base: list[EvalCase], name: str) -> None:
    few, many = (build(name, base, others=others) for others in (40, 90))
    assert {case.id for case in few.cases} < {case.id for case in many.cases}
    if name != "alphaset2":  # whose order also depends on the gap
        left = [case.id for case in many.cases if case.id in few.base_ids or "/" in case.id]
        assert left == [case.id for case in few.cases]


def test_three_sets_can_be_disjoint(base: list[EvalCase]) -> None:
    sets: list[AlphaSet] = []
    for name in NAMES:
        taken = frozenset[str]().union(*(made.base_ids for made in sets))
        sets.append(build(name, base, hard=10, others=40, exclude=taken))
        assert not sets[-1].base_ids & taken
        assert sets[-1].recipe["excluded"] == len(taken)
    assert len(frozenset().union(*(made.base_ids for made in sets))) == 50 + 40 + 50


def test_alphaset1_writes_known_facts_by_a_rewording(base: list[EvalCase]) -> None:
    made = build("alphaset1", base)
    by_id = {case.id: (case, knows) for case, knows in zip(base, known(base), strict=True)}
    for member in made.members:
        old, knows = by_id[origin(member.case.id)]
        assert member.case.request.target == old.request.target != member.case.target_true == old.target_true
        if member.role == "hard":
            assert knows
            assert member.case.request.text == old.paraphrases[0]
            assert old.request.text in member.case.paraphrases
        else:
            assert member.case.request == old.request


@pytest.mark.parametrize(("hard", "others", "gap"), [(20, 80, 10), (30, 30, 30), (1, 40, 40), (30, 40, 7)])
def test_rewrites_come_after_their_originals_and_never_in_one_batch(
    base: list[EvalCase], hard: int, others: int, gap: int
) -> None:
    for seed in range(5):
        made = build("alphaset2", base, hard=hard, others=others, gap=gap, seed=seed)
        place = {case.id: i for i, case in enumerate(made.cases)}
        member = {m.case.id: m for m in made.members}
        again = [m for m in made.members if m.role == "hard"]
        assert len(again) == hard
        for one in again:
            assert place[one.case.id] - place[one.supersedes] >= gap
            assert place[one.case.id] // gap > place[one.supersedes] // gap
            first = member[one.supersedes]
            assert first.role == "superseded"
            objects = {one.case.request.target, first.case.request.target, one.case.target_true}
            assert len(objects) == 3
            assert one.case.request.text != first.case.request.text
            assert one.validation == first.validation
        superseded = {one.supersedes for one in again}
        assert [case.id for case in made.scored] == [c.id for c in made.cases if c.id not in superseded]


def test_rewrites_are_spread_over_the_stream(base: list[EvalCase]) -> None:
    """Not all originals first and rewrites last: the order is random but for the gap."""
    place = [
        i for i, m in enumerate(build("alphaset2", base, hard=30, others=150).members) if m.role == "hard"
    ]
    assert min(place) < 90 < np.mean(place) < max(place)


def test_third_objects_are_of_the_relation_and_do_not_depend_on_the_other_facts(base: list[EvalCase]) -> None:
    facts = load_facts()
    by_id = {case.id: case for case in base}
    made = rewrites(base, 3, facts.objects)
    for case in made:
        old = by_id[origin(case.id)]
        assert case.request.target in facts.objects[case.relation]
        assert case.request.target not in (old.target_true, old.request.target)
        assert case.request.target.casefold() not in case.request.subject.casefold()
    # Facts of other subjects change nothing, facts of the same subject what is true of it.
    few = [case for case in base if case.request.subject in {c.request.subject for c in base[:50]}]
    assert rewrites(few, 3, facts.objects) == [c for c in made if origin(c.id) in {f.id for f in few}]
    assert rewrites(base, 4, facts.objects) != made


# --- wordings set aside -------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("style", [counterfact_style, zsre_style])
def test_no_validation_wording_is_ever_scored(name: str, style: Callable[..., list[EvalCase]]) -> None:
    made = build(name, style(load_facts(), 400, seed=1))
    aside = {member.validation for member in made.members}
    assert "" not in aside
    assert not aside & {text for case in made.cases for text in prompts(case)}
    assert all(member.case.paraphrases for member in made.members)
    wordings = {case.request.text for case in made.validation(0.3)}
    assert wordings <= aside


def test_leaks_were_there_to_be_closed(base: list[EvalCase]) -> None:
    """Negative control: without care, neighbours ask what was set aside."""
    aside = {hold_out(case)[1] for case in base}
    assert aside & {text for case in base for text in prompts(hold_out(case)[0])}
    assert build("alphaset1", base, others=300).recipe["neighbours_dropped"] > 0


def test_validation_is_a_share_and_the_known_facts(base: list[EvalCase]) -> None:
    first, second, third = (build(name, base) for name in NAMES)
    assert len(third.validation()) == len(second.validation()) == 10
    hard = {m.case.id + "/validation" for m in first.members if m.role == "hard"}
    drawn = {case.id for case in first.validation()}
    assert hard < drawn
    assert len(drawn) <= HARD + 10
    assert first.validation() == first.validation()
    assert first.validation(seed=1) != first.validation()
    everything = {case.id for case in second.validation(1.0)}
    assert everything == {case.id + "/validation" for case in second.scored}
    case = first.validation()[0]
    assert case.paraphrases == ()
    assert case.perturbations == {}
    assert case.request.id == case.id


def of_hand(*paraphrases: str, perturbations: dict[int, tuple[str, ...]] | None = None) -> EvalCase:
    request = EditRequest("{} was born in", "Ada", "Oslo", "a")
    return EvalCase("a", request, "Rome", paraphrases, (), "P19", perturbations or {})


def test_what_is_held_out_by_hand() -> None:
    case = of_hand("The birthplace of Ada is", "Ada comes from", "Ada, yes Ada, is from")
    kept, wording = hold_out(case)
    assert wording == "Ada comes from"
    assert kept.paraphrases == ("The birthplace of Ada is", "Ada, yes Ada, is from")
    levels = {2: ("Ada hails from",), 1: ("Ada, Ada:", "Ada was born at", "Ada's city is")}
    kept, wording = hold_out(of_hand("Ada comes from", perturbations=levels))
    assert wording == "Ada was born at"
    assert kept.paraphrases == ("Ada comes from",)
    assert kept.perturbations == {2: ("Ada hails from",), 1: ("Ada, Ada:", "Ada's city is")}
    assert hold_out(of_hand("Ada comes from")) == (of_hand("Ada comes from"), "")


def test_rewording_by_hand() -> None:
    case = of_hand("Ada, yes Ada, is from", "Now. The birthplace of Ada is", "Ada comes from")
    new = reworded(case)
    assert (new.id, new.request.id) == ("a/reworded", "a/reworded")
    assert new.request.prompt == "Now. The birthplace of {} is"
    assert new.paraphrases == ("Ada, yes Ada, is from", "Ada was born in", "Ada comes from")
    assert hold_out(new)[1] == hold_out(case)[1] == "Ada comes from"
    assert reworded(of_hand("Ada comes from")).paraphrases == ("Ada was born in",)


@pytest.mark.parametrize(
    "paraphrases", [(), ("It is there",), ("She is from", "Ada comes from"), ("Ada, Ada",)]
)
def test_cases_without_a_free_wording_are_refused(paraphrases: tuple[str, ...]) -> None:
    expected = rf"case 'a': none of its {len(paraphrases)} paraphrases names the subject 'Ada' exactly once"
    with pytest.raises(DataError, match=expected):
        reworded(of_hand(*paraphrases))
    assert rewrites([of_hand(*paraphrases)], objects={"P19": ["Bonn"]}) == []


# --- the bar ------------------------------------------------------------------------------------


def test_percentile_by_hand() -> None:
    assert percentile_reached([9.5], list(range(10))) == 100
    assert percentile_reached([4, 6], list(range(10))) == 50
    assert percentile_reached([1.0], [1.0, 1.0]) == 0


@every_set
def test_hard_members_lie_above_the_ninetieth_percentile_and_random_ones_do_not(
    base: list[EvalCase], name: str
) -> None:
    made = build(name, base)
    measure = made.recipe["hardest_by"]
    everyone = [getattr(m, measure) for m in numbers(base).values()]
    hard = made.values(measure, "hard")
    # The share of candidates decides: 20 of 134, about 400 and 400.
    assert percentile_reached(hard, everyone) >= 90
    random = np.random.default_rng(0).choice(everyone, HARD).tolist()
    assert 25 < percentile_reached(random, everyone) < 75


# --- errors of recipes --------------------------------------------------------------------------


def test_recipes_say_what_they_lack(base: list[EvalCase]) -> None:
    with pytest.raises(DataError, match="hard=0: a hard data set needs at least 1 of each kind; raise it"):
        build("alphaset3", base, hard=0)
    with pytest.raises(DataError, match="others=-1: a hard"):
        build("alphaset1", base, others=-1)
    with pytest.raises(DataError, match="500 hard members were asked for, 399 of 400 candidates are left"):
        build("alphaset3", base, hard=500, exclude=[base[0].id])
    with pytest.raises(DataError, match=r"390 other facts were asked for, \d+ of 400 base facts are left"):
        build("alphaset3", base, others=390)
    with pytest.raises(DataError, match="1 ids repeat among base facts and candidates, for example"):
        build("alphaset3", [*base, base[3]])
    for gap, hard, others, least in ((0, 5, 10, 5), (20, 5, 10, 20), (2, 30, 10, 30)):
        expected = f"gap {gap} with {hard} rewrites needs at least {least} first edits .* others is {others};"
        with pytest.raises(DataError, match=expected):
            build("alphaset2", base, gap=gap, hard=hard, others=others)


def test_a_model_that_knows_too_little_is_named(base: list[EvalCase]) -> None:
    expected = "knows 134 of 400 base facts and 134 of them can be reworded, 200 are needed; give more base"
    with pytest.raises(DataError, match=expected):
        known_reworded(base, known(base))
    with pytest.raises(DataError, match="3 answers for 400 base facts; ask knows about the same facts"):
        known_reworded(base, [True] * 3)


def test_missing_measures_and_strange_candidates_are_named(base: list[EvalCase]) -> None:
    given = numbers(base)
    del given[base[0].id]
    given[base[1].id] = Measures(1.0, 1.0)
    given[base[2].id] = Measures(inconsistency=float("nan"))
    expected = f"3 of 400 cases have no finite inconsistency, for example '{base[0].id}'; measure them"
    with pytest.raises(DataError, match=expected):
        alphaset3(base, given, hard=2, others=2)
    for strange in (rewrites(base, 5)[:9], [reworded(case) for case in base[9:]]):
        with pytest.raises(DataError, match="rewrites none of the base facts; make candidates with rewrites"):
            alphaset2(base[9:], strange, numbers([*base, *strange]), gap=2, hard=3, others=5)


def test_values_and_shares_that_make_no_sense_are_refused(base: list[EvalCase]) -> None:
    for hard, everyone, which in (([], [1.0], "hard"), ([1.0], [], "base"), ([float("nan")], [1.0], "hard")):
        with pytest.raises(DataError, match=f"{which}: . values, or some are not finite; give finite ones"):
            percentile_reached(hard, everyone)
    made = build("alphaset3", base)
    for share in (0.0, 1.5):
        with pytest.raises(DataError, match=rf"validation share {share} is not in \(0, 1\]"):
            made.validation(share)
    bare = AlphaSet("bare", (Member(of_hand("Ada comes from"), "hard"),))
    with pytest.raises(DataError, match="bare: no member has a wording set aside; make it from base facts"):
        bare.validation()
    odd = AlphaSet("odd", (Member(of_hand(), "hard", "It is there"),))
    with pytest.raises(DataError, match="case 'a': validation wording 'It is there' does not name the subj"):
        odd.validation()


# --- tables -------------------------------------------------------------------------------------


def test_rows_and_later_measures(base: list[EvalCase]) -> None:
    made = build("alphaset2", base)
    last = made.cases[-1].id
    later = made.measured({last: Measures(conflict_past=0.25)})
    row = later.rows()[-1]
    assert (row["set"], row["position"], row["case"]) == ("AlphaSet2", HARD + OTHERS - 1, last)
    assert (row["conflict_past"], row["conflict_preserved"]) == (0.25, None)
    assert later.rows()[:-1] == made.rows()[:-1]
    assert len(later.values("conflict_preserved")) == HARD + OTHERS - 1


# --- files --------------------------------------------------------------------------------------


@every_set
def test_round_trip(tmp_path: Path, base: list[EvalCase], name: str) -> None:
    made = build(name, base, about={"layers": [1, 2], "model": "tiny\u2028Ω"})
    first = made.members[0]
    texts = replace(first.case, paraphrases=("one\u2028two\nthree",))
    made = replace(made, members=(replace(first, case=texts), *made.members[1:]))
    path = tmp_path / "set.jsonl"
    save_alphaset(made, path)
    assert load_alphaset(path) == made
    save_alphaset(made.measured({made.cases[0].id: Measures(0.1 + 0.2)}), path)
    assert load_alphaset(path).members[0].measures == Measures(0.1 + 0.2)
    assert [p.name for p in tmp_path.iterdir()] == ["set.jsonl"]


def test_what_json_cannot_say_is_not_written(tmp_path: Path, base: list[EvalCase]) -> None:
    made, path = build("alphaset3", base), tmp_path / "set.jsonl"
    save_alphaset(made, path)
    before = path.read_bytes()
    for recipe, expected in (
        ({"layers": (1, 2)}, r"'AlphaSet3': recipe \{'layers': \(1, 2\)\} would change in JSON"),
        ({"what": Path()}, "'AlphaSet3' cannot be written as JSON: Object of type PosixPath"),
    ):
        with pytest.raises(DataError, match=expected):
            save_alphaset(replace(made, recipe=recipe), path)
    odd = made.measured({made.cases[2].id: Measures(float("inf"))})
    with pytest.raises(DataError, match=f"'{made.cases[2].id}' cannot be written as JSON"):
        save_alphaset(odd, path)
    assert path.read_bytes() == before


def test_damaged_files_say_where(tmp_path: Path, base: list[EvalCase]) -> None:
    path = tmp_path / "set.jsonl"
    save_alphaset(build("alphaset3", base), path)
    lines = path.read_text().split("\n")[:-1]
    broken = json.loads(lines[3])
    faults = [
        ([*lines[:2], lines[2][:50], *lines[3:]], "1 malformed record:\n  line 3: Unterminated string"),
        ([*lines[:3], json.dumps(broken | {"role": "easy"})], "line 4: role 'easy' is none of"),
        ([*lines[:3], json.dumps(broken | {"case": {}})], "line 4: field 'case.request' is missing"),
        ([*lines[:3], "3"], "line 4: a member must be a JSON object, not 3"),
        ([*lines[:3], lines[3].replace('"subject"', '"about"')], "argument"),
        (lines[:-1], "99 members where its first line says 100; the file was cut off or joined"),
        (lines[1:], 'the first line is not that of a hard data set of format 1: \'{"case"'),
        (["nothing"], "the first line is not that of a hard data set of format 1: 'nothing'; read sets"),
        ([lines[0].replace('"alphaset": 1', '"alphaset": 2')], "not that of a hard data set of format 1"),
        (["3"], "not that of a hard data set of format 1: '3'"),
    ]
    for content, expected in faults:
        path.write_text("\n".join(content) + "\n")
        with pytest.raises(DataError) as error:
            load_alphaset(path)
        assert expected in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        load_alphaset(tmp_path / "gone")


def released(subject: str, src: str, answer: str, rephrase: str, alt: str) -> dict[str, Any]:
    return {
        "subject": subject,
        "src": src,
        "pred": "x",
        "rephrase": rephrase,
        "alt": alt,
        "answers": [answer, "another"],
        "loc": "nq question: who wrote hamlet",
        "loc_ans": "Shakespeare",
        "cond": "x >> y || z",
    }


NAMED = "Who is the Karlite named after?"
RELEASED = [
    released("Karlite", "What is Karlite named after?", "Franz Karl", NAMED, "Karl-Karl"),
    released("Munich", "Who heads Munich?", "Dieter", "Who was the head of Munich?", "Bruno"),
    released("Munich", "Which country is Munich in?", "Germany", "Where is Munich?", "Spain"),
    released("Karlite", "After whom is Karlite named?", "Karl Ritter", "Karlite is after whom?", "karl-karl"),
    released("Karlite", "Karlite is named how?", "Karl Ritter", NAMED.upper(), ""),
    released("Karlite", "Whose name has Karlite?", "Ada", NAMED, ""),
]


def test_a_released_subset_and_its_rewrites(tmp_path: Path) -> None:
    path = tmp_path / "AlphaSet2.json"
    path.write_text(json.dumps(RELEASED))
    made = load_released(path)
    assert made.name == "AlphaSet2"
    assert [case.id for case in made.cases] == list("012345")
    assert made.cases[0] == EvalCase(
        id="0",
        request=EditRequest("What is {} named after?", "Karlite", "Franz Karl", "0"),
        target_true="",
        paraphrases=(NAMED,),
        neighbours=(Probe("who wrote hamlet?", "Shakespeare"),),
    )
    # 3 by the alternative, 4 and 5 by the rephrased question; the two facts about Munich stay apart.
    assert [m.role for m in made.members] == ["superseded", "other", "other", "hard", "superseded", "hard"]
    assert [m.supersedes for m in made.members] == ["", "", "", "0", "0", "4"]
    assert [case.id for case in made.scored] == ["1", "2", "3", "5"]
    save_alphaset(made, tmp_path / "own.jsonl")
    assert load_alphaset(tmp_path / "own.jsonl") == made
    path.write_text(json.dumps([{**RELEASED[0], "src": "Who?"}]))
    with pytest.raises(DataError, match="line 1: request '0': subject 'Karlite' occurs 0 times"):
        load_released(path)


# --- the original files -------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["counterfact_10k.jsonl", "zsre_mend_700.json"])
def test_sets_from_the_original_files(tmp_path: Path, file: str) -> None:
    path = original(file)
    if file.endswith("jsonl"):
        few = tmp_path / file
        few.write_text("\n".join(path.read_text().split("\n")[:600]))
        base = load_counterfact(few).cases
    else:
        base = load_zsre(path, strict=False).cases
    for name in NAMES:
        made = build(name, base)
        assert len(made.members) == HARD + OTHERS
        assert all(m.case.paraphrases and m.case.neighbours for m in made.members)
        # One paraphrase each: none can be spared.
        assert {m.validation for m in made.members} == {""}
