"""The fact set: every triple, every template, and what the loader refuses."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from palimpsest.datasets import FactSet, load_facts, split_of
from palimpsest.datasets.facts import FACTS_FOLDER, LEVELS, VALIDATION_SHARE
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.types import EditRequest
from tests.datasets.originals import original


@pytest.fixture(scope="module")
def facts() -> FactSet:
    return load_facts()


def mentions(text: str, name: str) -> bool:
    """Whether a text holds a name as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def words(template: str) -> list[str]:
    return re.findall(r"\{\}|\w+", template.lower())


# --- size -------------------------------------------------------------------------------------


def test_there_are_enough_triples_in_enough_relations(facts: FactSet) -> None:
    assert len(facts.facts) >= 1500
    assert len(facts.relations) >= 25


def test_provenance_states_the_counts(facts: FactSet) -> None:
    text = (FACTS_FOLDER / "PROVENANCE.md").read_text()
    assert f"{len(facts.facts):,} triples" in text
    assert f"{len(facts.relations)} relations" in text


def test_every_relation_has_forty_triples_and_four_shared_objects(facts: FactSet) -> None:
    for name in facts.relations:
        objects = Counter(fact.object for fact in facts.facts if fact.relation == name)
        assert objects.total() >= 40, name
        assert sum(count >= 2 for count in objects.values()) >= 4, name


# --- triples ----------------------------------------------------------------------------------


def test_every_object_has_a_second_subject(facts: FactSet) -> None:
    counts = Counter((fact.relation, fact.object) for fact in facts.facts)
    assert [pair for pair, count in counts.items() if count < 2] == []


def test_no_subject_has_two_objects_under_one_relation(facts: FactSet) -> None:
    assert len({(fact.subject, fact.relation) for fact in facts.facts}) == len(facts.facts)


def test_subject_and_object_do_not_contain_one_another(facts: FactSet) -> None:
    leaks = [f for f in facts.facts if mentions(f.subject, f.object) or mentions(f.object, f.subject)]
    assert leaks == []


def test_triples_are_written_in_clean_characters(facts: FactSet) -> None:
    for fact in facts.facts:
        for text in (fact.subject, fact.object):
            assert text == " ".join(text.split()), fact
            assert not set(text) & set('{}"|,;\t'), fact


# --- templates --------------------------------------------------------------------------------


def test_every_filled_template_names_its_subject_once(facts: FactSet) -> None:
    for fact in facts.facts:
        for template in facts.relations[fact.relation].templates:
            EditRequest(template, fact.subject, fact.object)  # refuses two mentions
            assert template.replace("{}", fact.subject).count(fact.subject) == 1


def test_no_template_mentions_an_object_of_its_relation(facts: FactSet) -> None:
    leaks = [
        (name, object_, template)
        for name, relation in facts.relations.items()
        for template in relation.templates
        for object_ in facts.objects[name]
        if mentions(template, object_)
    ]
    assert leaks == []


def test_relations_have_enough_sentences_of_each_kind(facts: FactSet) -> None:
    for relation in facts.relations.values():
        assert len(relation.paraphrases) >= 3
        assert len(relation.questions) >= 2
        for levels in (relation.perturbations, relation.question_perturbations):
            assert tuple(levels) == LEVELS
            assert all(len(texts) >= 1 for texts in levels.values())


def test_no_sentence_occurs_twice_in_the_whole_set(facts: FactSet) -> None:
    templates = [t.lower() for r in facts.relations.values() for t in r.templates]
    assert [t for t, count in Counter(templates).items() if count > 1] == []


def test_statements_stop_before_the_object_and_questions_end_in_a_question_mark(
    facts: FactSet,
) -> None:
    for relation in facts.relations.values():
        open_ended = [*relation.statements, *sum(relation.perturbations.values(), ())]
        asked = [*relation.questions, *sum(relation.question_perturbations.values(), ())]
        assert all(re.search(r"(\w|,|:)$", template) for template in open_ended), relation.id
        assert all(template.endswith("?") for template in asked), relation.id


def shared_words(base: str, other: str) -> float:
    """Jaccard similarity of the word sets of two templates."""
    a, b = set(words(base)), set(words(other))
    return len(a & b) / len(a | b)


def test_levels_one_and_two_stay_close_and_later_levels_do_not(facts: FactSet) -> None:
    for relation in facts.relations.values():
        kinds = (
            (relation.prompt, relation.perturbations),
            (relation.questions[0], relation.question_perturbations),
        )
        for base, levels in kinds:
            near = [shared_words(base, text) for text in levels[1]]
            far = [shared_words(base, text) for level in (3, 4, 5, 6) for text in levels[level]]
            assert min(near) > max(far), (relation.id, base)
            assert all(len(set(words(base)) ^ set(words(t))) <= 4 for t in levels[1]), base


@pytest.mark.parametrize("source", ["counterfact_10k.jsonl", "known_1000.json"])
def test_no_sentence_is_taken_from_the_originals(facts: FactSet, source: str) -> None:
    ours = {t.lower() for r in facts.relations.values() for t in r.templates}
    found = ours & {t.lower() for t in original_templates(original(source))}
    assert found == set()


def original_templates(path: Path) -> set[str]:
    """Templates of known-1000, or of CounterFact with its paraphrases."""
    if path.suffix == ".json":
        return {record["template"] for record in json.loads(path.read_text())}
    found = set()
    for record in map(json.loads, path.read_text().splitlines()):
        rewrite = record["requested_rewrite"]
        paraphrases = [p.replace(rewrite["subject"], "{}") for p in record["paraphrase_prompts"]]
        found |= {rewrite["prompt"], *paraphrases}
    return found


# --- loading ----------------------------------------------------------------------------------


def test_split_is_fixed_by_the_subject_alone(facts: FactSet) -> None:
    # sha256 of these names begins 46dc, 0x46dc / 0x10000 = 0.277 < 0.3, and dd9c, 0.866
    assert split_of("Danielle Darrieux") == "validation"
    assert split_of("Claude Monet") == "test"
    subjects = {fact.subject for fact in facts.facts}
    share = sum(split_of(s) == "validation" for s in subjects) / len(subjects)
    assert share == pytest.approx(VALIDATION_SHARE, abs=0.03)


def test_select_keeps_what_was_asked_for(facts: FactSet) -> None:
    chosen = facts.select("validation", ["P103", "P36"])
    assert {fact.relation for fact in chosen} == {"P103", "P36"}
    assert {split_of(fact.subject) for fact in chosen} == {"validation"}
    with pytest.raises(UnknownNameError, match="unknown split 'train'; choose one of: all, test"):
        facts.select("train")
    with pytest.raises(UnknownNameError, match="unknown relation 'P0'"):
        facts.select("all", ["P0"])


def small_set(folder: Path, triples: str, **changes: object) -> Path:
    """A folder with one relation and the given rows."""
    entry = yaml.safe_load((FACTS_FOLDER / "relations.yaml").read_text())["P103"] | changes
    (folder / "relations.yaml").write_text(yaml.safe_dump({"P103": entry}))
    (folder / "triples.csv").write_text("subject,relation,object\n" + triples)
    return folder


def test_a_small_set_of_ones_own_loads(tmp_path: Path) -> None:
    facts = load_facts(small_set(tmp_path, "Ada,P103,English\nBlaise,P103,French\n"))
    assert [fact.id for fact in facts.facts] == ["P103:Ada", "P103:Blaise"]
    assert facts.objects == {"P103": ("English", "French")}


def test_hash_follows_the_content(tmp_path: Path, facts: FactSet) -> None:
    one = load_facts(small_set(tmp_path, "Ada,P103,English\n")).sha256
    two = load_facts(small_set(tmp_path, "Ada,P103,French\n")).sha256
    assert len({one, two, facts.sha256}) == 3
    assert load_facts().sha256 == facts.sha256


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("Ada,P103,English\nAda,P103,French\n", r"line 3: 'Ada' already has the object 'English'"),
        ("Ada,P9,English\n", r"line 2: relation 'P9' is not in relations\.yaml"),
        ("Ada,P103,\n", r"line 2: three texts without outer spaces are needed"),
        ("Ada,P103\n", r"line 2: three texts without outer spaces are needed"),
        ("Ada ,P103,English\n", r"line 2: three texts .* not \['Ada ', 'P103', 'English'\]"),
        ("Ada,P103,English,x\n", r"line 2: three texts without outer spaces are needed"),
        ("English Jo,P103,English\n", r"line 2: subject 'English Jo' and object 'English' contain"),
        ("first,P103,English\n", r"line 2: subject 'first' occurs twice in 'The first language of"),
    ],
)
def test_bad_rows_are_listed_with_line_and_reason(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_facts(small_set(tmp_path, rows))


def test_long_lists_of_bad_rows_are_cut(tmp_path: Path) -> None:
    rows = "".join(f"S{i},P9,English\n" for i in range(25))
    with pytest.raises(DataError, match=r"25 malformed records(?s:.*)line 21(?s:.*)and 5 more") as e:
        load_facts(small_set(tmp_path, rows))
    assert "line 22" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "The first language is"}, "template 'The first language is' must hold '{}'"),
        ({"paraphrases": ["{} a", "{} b"]}, "P103: paraphrases must be at least 3, not 2"),
        ({"questions": ["Is {}?"]}, "P103: questions must be at least 2, not 1"),
        ({"questions": ["Is {}?", "Is {}?"]}, r"template 'Is {}\?' occurs twice"),
        ({"perturbations": {1: ["{} a"]}}, "perturbations must have the levels 1 to 6 in order"),
        ({"colour": "red"}, "needs the fields name, description, prompt"),
        ({"paraphrases": float("nan")}, r"P103: must hold texts and lists of texts, not 'nan' \(float\)"),
        ({"questions": "Is {}?"}, r"not 'Is {}\?' \(str\)"),
        ({"name": 5}, r"not '5' \(int\)"),
        ({"prompt": None}, r"not 'None' \(NoneType\)"),
        ({"perturbations": dict.fromkeys(LEVELS, 7)}, r"not '7' \(int\)"),
        ({"paraphrases": [["{} a"], "{} b", "{} c"]}, r"not \"\['{} a'\]\" \(list\)"),
    ],
)
def test_bad_relations_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_facts(small_set(tmp_path, "Ada,P103,English\n", **changes))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no triples\.csv there; pass the folder"):
        load_facts(tmp_path)
    folder = small_set(tmp_path, "")
    (folder / "triples.csv").write_text("subject,object\n")
    with pytest.raises(DataError, match="columns must be subject,relation,object, not"):
        load_facts(folder)
    (folder / "relations.yaml").write_text("P1: [")
    with pytest.raises(DataError, match="not valid YAML"):
        load_facts(folder)
    (folder / "relations.yaml").write_text("- P1")
    with pytest.raises(DataError, match="must map property ids to relations"):
        load_facts(folder)
    (folder / "relations.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 text"):
        load_facts(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P1: " + b"[" * 600, "not valid YAML: maximum recursion depth exceeded"),
        (b"P1: 2020-99-99", "not valid YAML: month must be in 1..12"),
        (b"P1: \x00", "not valid YAML: unacceptable character"),
        (b"P1: &a [*a]", "P1: needs the fields name"),
        (b"P1: {3: x, name: y}", r"P1: needs the fields name, .*; found \['3', 'name'\]"),
        (b".nan: {}", "nan: needs the fields name"),
        (b"\xff\x00", "not UTF-8 text"),
        (b"[1, 2]", "must map property ids to relations"),
    ],
)
def test_crafted_relations_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "triples.csv").write_text("subject,relation,object\n")
    (tmp_path / "relations.yaml").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_facts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "subject,relation,object\nAda,P103," + "x" * 200_000,
            r"not valid CSV: field larger.*; correct line 2",
        ),
        ("x" * 200_000, r"not valid CSV: field larger.*; correct line 1"),
        ("", "columns must be subject,relation,object, not None"),
    ],
)
def test_crafted_triples_are_refused(content: str, message: str, tmp_path: Path) -> None:
    shutil.copy(FACTS_FOLDER / "relations.yaml", tmp_path)
    (tmp_path / "triples.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_facts(tmp_path)
