"""The built-in tasks of ability: no written subject, one true option, well-formed pairs."""

from collections import Counter
from pathlib import Path

import pytest

from palimpsest.datasets.facts import load_facts, split_of
from palimpsest.datasets.tasks import BUILT_IN, OPTIONS, built_in_tasks, fact_tasks, pair_tasks
from palimpsest.errors import DataError, RequestError, UnknownNameError
from palimpsest.types import Item, Task

FACTS = load_facts()


def test_all_tasks_are_there_in_the_order_asked() -> None:
    assert [task.name for task in built_in_tasks()] == list(BUILT_IN)
    assert [task.name for task in built_in_tasks(names=("words", "cloze"))] == ["words", "cloze"]
    few = built_in_tasks(names=("grammar", "words"), pairs=14)
    assert [len(task.items) for task in few] == [14, 14]
    assert len({item.group for item in few[0].items}) == 7, "every phenomenon is met"
    with pytest.raises(UnknownNameError, match="unknown built-in task 'glue'"):
        built_in_tasks(names=("glue",))


def test_no_item_is_about_a_written_subject_and_all_are_of_the_validation_split() -> None:
    first = fact_tasks(FACTS)
    subjects = {item.id.partition(":")[2] for item in first[1].items}
    assert {split_of(subject) for subject in subjects} == {"validation"}
    written = set(sorted(subjects)[:20])
    for task in fact_tasks(FACTS, written):
        assert not written & {item.id.partition(":")[2] for item in task.items}


def test_nothing_wrong_is_true_and_each_relation_is_asked() -> None:
    choice, cloze = fact_tasks(FACTS, count=90)
    objects = {fact.id: fact.object for fact in FACTS.facts}
    for item in choice.items:
        known = FACTS.known_objects[item.id.partition(":")[2]]
        assert len(item.options) == OPTIONS
        assert item.options[item.right] == objects[item.id]
        assert [option in known for option in item.options].count(True) == 1
        assert {*item.options} <= {*FACTS.objects[item.group]}
    assert {item.group for item in cloze.items} == {*FACTS.relations}
    assert (choice.chance, cloze.chance) == (0.25, 0)
    assert cloze.completes
    assert not choice.completes


def test_the_same_facts_give_the_same_tasks_and_no_place_is_right_most_often() -> None:
    assert fact_tasks(FACTS) == fact_tasks(FACTS)
    places = Counter(item.right for item in fact_tasks(FACTS, count=400)[0].items)
    assert max(places.values()) < 0.35 * places.total()


def test_a_set_without_facts_left_is_refused() -> None:
    everyone = {fact.subject for fact in FACTS.facts}
    with pytest.raises(DataError, match="no fact of the validation split is left"):
        fact_tasks(FACTS, everyone)


def test_every_phenomenon_has_pairs_that_differ_in_one_place() -> None:
    tasks = pair_tasks()
    assert [task.name for task in tasks] == ["grammar", "words"]
    groups = Counter(item.group for task in tasks for item in task.items)
    assert len(groups) >= 8
    assert min(groups.values()) >= 12
    assert 120 <= groups.total() <= 200
    whole = [f"{item.prompt} {item.options[item.right]}" for task in tasks for item in task.items]
    assert len({*whole}) == len(whole)
    for task in tasks:
        assert task.total, "sentences are compared as a whole"
        assert {item.right for item in task.items} == {0, 1}
        for item in task.items:
            right, wrong = (option.split() for option in item.options)
            assert right != wrong
            assert right[-1][-1] in ".?"


def test_no_pair_names_a_subject_of_a_fact() -> None:
    texts = [f"{i.prompt} {' '.join(i.options)}" for task in pair_tasks() for i in task.items]
    names = [fact.subject for fact in FACTS.facts if len(fact.subject) > 4]
    assert [(name, text) for name in names for text in texts if name in text] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("grammar:\n  x:\n    - The cats sleep.", "1 malformed pairs"),
        ("grammar:\n  x:\n    - '{The|A} cats sleep.'", "needs words, a space, and one"),
        ("grammar:\n  x:\n    - The {cats|cats} sleep.", "cannot be the right one"),
        ("- The {cats|cat} sleep.", "not pairs by task and phenomenon"),
        ("grammar: [", "not pairs by task and phenomenon"),
    ],
)
def test_a_malformed_file_of_pairs_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(content)
    with pytest.raises(DataError, match=reason):
        pair_tasks(path)


def test_items_and_tasks_that_cannot_be_asked_are_refused() -> None:
    with pytest.raises(RequestError, match="is empty"):
        Item("a", "The cat", ("", "sits"))
    with pytest.raises(RequestError, match="cannot be the right one"):
        Item("a", "The cat", ("sits", "sits"))
    with pytest.raises(RequestError, match="cannot be the right one"):
        Item("a", "The cat", ("sits",), right=1)
    item = Item("a", "The cat", ("sits", "sit"))
    with pytest.raises(RequestError, match="some under one id"):
        Task("pairs", (item, item), 0.5)
    with pytest.raises(RequestError, match="0 items"):
        Task("pairs", (), 0.5)
    with pytest.raises(RequestError, match="mixes items"):
        Task("pairs", (item, Item("b", "The cat", ("sits",))), 0.5)
    with pytest.raises(RequestError, match="chance 1"):
        Task("pairs", (item,), 1.0)
    assert Task("pairs", (item,), 0.5).labels == ("sits", "sit")
    assert Task("pairs", (item, Item("b", "A dog", ("runs", "run"))), 0.5).labels == ()
