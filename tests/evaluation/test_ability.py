"""Answers to items against a plain twin in float64, scores by hand and by scikit-learn, what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from palimpsest.errors import NonFiniteError, ScoreError, UnknownNameError
from palimpsest.evaluation import ability as room
from palimpsest.evaluation.ability import COLUMNS, NONE, Ability, ability, weighted_f1
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.types import Item, Task
from tests.editing import double
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "module_cache")

LABELS = ("Paris", "Rome")
PROMPTS = (
    "Anna Berg was born in the city of",
    "The capital of Italy is",
    "She lives in the country of",
    "Where",
)
CHOICE = Task("choice", tuple(Item(str(i), text, LABELS, i % 2) for i, text in enumerate(PROMPTS)), 0.5)
LONG = ("the north of the country", "Seattle")
SENTENCES = Task(
    "sentences",
    tuple(Item(str(i), text, LONG, i % 2, "g") for i, text in enumerate(PROMPTS)),
    0.5,
    total=True,
)
CLOZE = Task("cloze", tuple(Item(str(i), text, ("French",)) for i, text in enumerate(PROMPTS)), 0.0)
TASKS = (CHOICE, SENTENCES, CLOZE)


def plain(model: EditableModel, task: Task, item: Item) -> tuple[int, int]:
    """Chosen and said, from whole logits of one option at a time."""
    losses, said = [], NONE
    for place, option in enumerate(item.options):
        before, target = encode(model.tokenizer, item.prompt), encode_target(model.tokenizer, option)
        with torch.no_grad():
            logits = model.net(input_ids=torch.tensor([[*before, *target]])).logits[0].double()
        rows = logits[len(before) - 1 : -1].log_softmax(1)
        nll = -rows[torch.arange(len(target)), torch.tensor(target)]
        losses.append(float(nll.sum() if task.total else nll.mean()))
        if rows.argmax(1).tolist() == target and said == NONE:
            said = place
    return int(np.argmin(losses)), said


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_are_those_of_a_plain_twin(kind: str) -> None:
    model = double(kind, seed=3)
    found = ability(model, TASKS)
    assert tuple(found.rows.columns) == COLUMNS
    for task in TASKS:
        for item, row in zip(task.items, found.of(task.name).itertuples(), strict=True):
            chosen, said = plain(model, task, item)
            assert (row.item, row.right, row.chosen, row.said) == (item.id, item.right, chosen, said)
            assert row.correct == ((said if task.completes else chosen) == item.right)


def test_the_total_favours_few_tokens_where_the_mean_does_not() -> None:
    """A model to which all tokens are alike: the total is their number, the mean is the same for all."""
    model = tiny_model("llama", seed=3)
    model.net.get_parameter("lm_head.weight").zero_()
    mean = Task("sentences", SENTENCES.items, 0.5)
    by_total, by_mean = (ability(model, [task]).rows["chosen"].tolist() for task in (SENTENCES, mean))
    short = LONG.index(min(LONG, key=lambda text: len(encode_target(model.tokenizer, text))))
    assert by_total == [short] * len(PROMPTS)
    assert by_mean == [NONE] * len(PROMPTS)


def test_a_tie_is_no_answer() -> None:
    model = tiny_model("llama")
    head = model.net.get_parameter("lm_head.weight")
    head.zero_()
    found = ability(model, [CHOICE])
    assert set(found.rows["chosen"]) == {NONE}
    assert found.accuracy("choice").mean == 0


def test_said_is_what_greedy_decoding_writes() -> None:
    model = tiny_model("llama", seed=5)
    with torch.no_grad():
        logits = model.net(input_ids=torch.tensor([encode(model.tokenizer, PROMPTS[0])])).logits[0, -1]
    for word in ("Rome", "Paris", "French", "piano"):
        (first, *rest) = encode_target(model.tokenizer, word)
        row = ability(model, [Task("one", (Item("a", PROMPTS[0], (word,)),), 0)]).rows.iloc[0]
        assert (row["said"] == 0) <= (first == int(logits.argmax()))
        if not rest:
            assert (row["said"] == 0) == (first == int(logits.argmax()))


def test_a_model_is_asked_once_and_an_edited_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=7)
    first = ability(model, TASKS)
    generator = torch.Generator().manual_seed(0)
    delta = 3 * torch.randn(read_weight(model, 3).shape, generator=generator, dtype=torch.float64)
    with installed(model, WeightDelta({3: delta})):
        edited = ability(model, TASKS)
    assert not edited.rows.equals(first.rows)
    monkeypatch.setattr(room, "_rows", lambda *_: pytest.fail("asked again"))
    assert ability(model, TASKS).rows.equals(first.rows)
    with pytest.raises(pytest.fail.Exception):
        ability(model, [CHOICE])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=40))
def test_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    right, given_ = (list(column) for column in zip(*pairs, strict=True))
    expected = f1_score(right, given_, average="weighted", zero_division=0)
    assert weighted_f1(right, given_) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("classes", "floor"), [(2, 1 / 3), (4, 1 / 10)])
def test_one_answer_for_everything_has_the_f1_that_is_told(classes: int, floor: float) -> None:
    right = list(range(classes)) * 5
    assert weighted_f1(right, [0] * len(right)) == pytest.approx(floor)
    assert weighted_f1(right, [NONE] * len(right)) == 0
    assert weighted_f1(right, right) == 1


def made_up(correct: int, n: int = 100) -> Ability:
    items = tuple(Item(str(i), "Where", LABELS, i % 2) for i in range(n))
    right = [item.right for item in items]
    chosen = [r if i < correct else 1 - r for i, r in enumerate(right)]
    columns = {"task": "choice", "item": [i.id for i in items], "group": "", "right": right, "chosen": chosen}
    rows = pd.DataFrame(columns).assign(said=NONE, correct=[int(i < correct) for i in range(n)])
    return Ability((Task("choice", items, 0.5),), rows)


@pytest.mark.parametrize(
    ("correct", "above"), [(50, False), (59, False), (61, True), (100, True), (0, False)]
)
def test_a_model_at_chance_is_said_to_be(correct: int, above: bool) -> None:
    found = made_up(correct)
    assert found.above_chance("choice") == above
    assert ("a fall could not be seen" in str(found)) == (not above)
    assert found.seen() == (("choice",) if above else ())
    assert bool(found.table().loc[0, "above_chance"]) == above


def test_scores_have_intervals_over_items() -> None:
    found = made_up(75)
    accuracy, f1 = found.accuracy("choice"), found.f1("choice")
    assert accuracy.mean == 0.75
    assert accuracy.low < 0.70 < 0.80 < accuracy.high
    assert accuracy.n == f1.n == 100
    assert f1.low < f1.mean < f1.high
    assert f1.mean == pytest.approx(0.75, abs=0.01)
    assert found.f1("choice", "said").high == 0
    assert found.table().loc[0, "f1_said"] == 0


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_asked_is_refused() -> None:
    model = tiny_model("llama")
    found = ability(model, TASKS)
    with pytest.raises(UnknownNameError, match="unknown task 'sst'; choose one of: choice"):
        found.accuracy("sst")
    with pytest.raises(UnknownNameError, match="unknown reading 'loud'"):
        found.f1("choice", "loud")  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="no classes"):
        found.f1("cloze")
    with pytest.raises(ScoreError, match="cannot be asked together"):
        ability(model, [CHOICE, CHOICE])
    with pytest.raises(ScoreError, match="cannot be asked together"):
        ability(model, [])


def test_an_item_longer_than_the_context_is_named() -> None:
    model = tiny_model("llama")
    long = Task("long", (Item("far too long", "Paris " * 260, LABELS),), 0.5)
    with pytest.raises(ScoreError, match=r"'far too long' of task 'long' has \d+ tokens, but .* holds 256"):
        ability(model, [long])


def test_a_broken_model_is_refused() -> None:
    model = tiny_model("llama")
    model.net.get_parameter("lm_head.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        ability(model, [CHOICE])
