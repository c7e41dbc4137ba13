"""Edits of the embedded model, from values to scores, with nothing but the model and the text from disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from palimpsest.cache import digest
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors import State, edit, editor_for
from palimpsest.evaluation.evaluate import evaluate, knows
from palimpsest.memory.contexts import check_readable
from palimpsest.network.apply import installed
from palimpsest.network.model import EditableModel, generate, load
from palimpsest.resources import DUMP_FILE, _plain, _wikitext, fetch, held_out_texts, statistics_texts
from palimpsest.types import EvalCase
from tests.editing import same_bits, snapshot

pytestmark = [pytest.mark.model, pytest.mark.slow]

FACTS = 10
TEXT = "af094aad9bea33041c4b496fb9895494aa602fb0e15dc80c87c2b2ae1ebf9b09"
"""Hash of all cleaned articles, as they were when the first records were made."""
TOKENS = 10_000  # of text behind the second moment: fewer than a laptop run reads, for time


@dataclass
class Room:
    """The model, facts it knows, and the state of a sequence, shared by the tests of this file."""

    model: EditableModel
    cases: Sequence[EvalCase]
    weights: dict[str, torch.Tensor]
    state: State | None = None


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Model and text come from the cache, everything computed goes into a folder of this run."""
    model, texts = load("smollm2-135m"), statistics_texts()
    cases = counterfact_style(load_facts(), 60)
    known = [case for case, known in zip(cases, knows(model, cases), strict=True) if known][:FACTS]
    assert len(known) == FACTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("palimpsest.memory.moments.statistics_texts", lambda: texts)
        yield Room(model, known, snapshot(model))


def efficacy(room: Room) -> float:
    records = evaluate(room.model, room.cases, ["efficacy"])
    return sum(record.value for record in records) / len(records)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_facts_are_written_and_taken_out_again(name: str, room: Room) -> None:
    editor = editor_for(name, "smollm2-135m", statistics_tokens=TOKENS)
    assert efficacy(room) == 0  # it knows the facts, so it prefers none of the new objects
    begun = room.state and room.state.prepared
    made, room.state = edit(editor, room.model, [case.request for case in room.cases], begun)
    assert same_bits(room.model, room.weights)
    with installed(room.model, made):
        assert efficacy(room) >= 0.9
    assert same_bits(room.model, room.weights)
    assert efficacy(room) == 0


def test_contexts_are_readable(room: Room) -> None:
    """Sampled by the first edit of this file, or now; scored by a plain pass."""
    editor = editor_for("memit", "smollm2-135m", statistics_tokens=TOKENS)
    if room.state is None:
        _, room.state = edit(editor, room.model, [room.cases[0].request])
    texts = [text.strip() for text in room.state.prepared.contexts[1:]]
    assert len(check_readable(room.model, texts)) == editor.contexts.count  # type: ignore[attr-defined]


def test_generation_continues_the_prompt(room: Room) -> None:
    prompt = "The capital of France is"
    assert generate(room.model, prompt, 5).startswith(f"{prompt} Paris")


def test_the_text_is_that_of_the_first_records() -> None:
    """Cleaned anew, though it is in the cache."""
    dump = fetch("wikipedia-sample") / DUMP_FILE
    found = [_plain(text) for text in _wikitext(dump)]
    assert digest([text for text in found if len(text) > 500]) == TEXT
    assert digest(statistics_texts() + held_out_texts()) == digest(found_in_turn(found))


def found_in_turn(texts: Sequence[str]) -> list[str]:
    """Every second long text, then the others."""
    long = [text for text in texts if len(text) > 500]
    return long[::2] + long[1::2]
