"""Hard data sets: what is refused, tables, files and the original data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets import (
    AlphaSet,
    Measures,
    Member,
    alphaset2,
    alphaset3,
    counterfact_style,
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
)
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase, Probe
from tests.datasets.alphasets import HARD, NAMES, OTHERS, build, every_set, known, numbers, of_hand
from tests.datasets.originals import original


@pytest.fixture(scope="module")
def base() -> list[EvalCase]:
    return counterfact_style(load_facts(), 400, seed=1)


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
        (["[" * 100_000], "not that of a hard data set of format 1: '[[["),
        (["9" * 5000], "not that of a hard data set of format 1: '999"),
        ([*lines[:3], "[" * 100_000], "line 4: its brackets are nested too deeply"),
        ([*lines[:3], "9" * 5000], "line 4: Exceeds the limit"),
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
