"""SERAC: what lies in a fact's scope reads it, and everything else is asked as if there were none."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64
from torch import Tensor

from palimpsest.editors import edit, editor_for
from palimpsest.editors import serac as module
from palimpsest.editors.serac import Scope, Serac, SeracState, calibrated_threshold, size
from palimpsest.errors import ModelError, ProfileError, RequestError, ShapeError
from palimpsest.evaluation import harness
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.representation import representations
from palimpsest.evaluation.statements import statements
from palimpsest.network.apply import PromptContext, commit, installed
from palimpsest.network.chosen import ChosenContext, cosines
from palimpsest.network.model import fingerprint, generate
from palimpsest.network.sampling import sample
from palimpsest.studies.scopes import scope_pairs
from palimpsest.types import EditRequest, EvalCase, Probe, unspaced
from tests.editing import REQUESTS, same_bits, snapshot
from tests.embedders import letters
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

FACTS = [
    EditRequest("The capital of {} is", "France", "Rome", id="france"),
    EditRequest("{} lives in", "Anna Berg", "Seattle, in the north", id="berg"),
]
DIRECTIONS = {"France": [1.0, 0.0, 0.0], "Anna Berg": [0.0, 1.0, 0.0], "Italy": [0.8, 0.0, 0.6]}
"""Embedding of a text that names one of these; other texts lie on a third axis."""
INSIDE = [
    ("The capital of France is", "Rome"),
    ("France has the city of", "Paris"),
    ("Where Anna Berg lives is", "Rome"),
]
OUTSIDE = [
    ("The capital of Italy is", "Rome"),
    ("Xu Ω", "Paris, in the north"),
    ("Marie Curie plays the", "piano"),
]
SCOPE = Scope(0.9, 1.0, 4, 4)


def embed(texts: Sequence[str]) -> Float64[Tensor, "n d"]:
    found = [
        next((row for name, row in DIRECTIONS.items() if name in text), [0.0, 0.0, 1.0]) for text in texts
    ]
    return torch.tensor(found, dtype=torch.float64).reshape(len(texts), 3)


def held(model: Any, facts: Sequence[EditRequest] = FACTS, scope: Scope = SCOPE) -> ChosenContext:
    made, _ = edit(Serac(scope=scope), model, facts, SeracState(embed=embed))
    assert isinstance(made, ChosenContext)
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_in_scope_is_asked_behind_its_fact(kind: str) -> None:
    model = tiny_model(kind, bos=kind == "llama")
    model.net.double()
    texts = [f"New fact: {FACTS[i].text} {FACTS[i].target}.\n" for i in (0, 0, 1)]
    before, mark = snapshot(model), fingerprint(model)
    longer = [(text + prompt, target) for text, (prompt, target) in zip(texts, INSIDE, strict=True)]
    written, said = ask(model, longer), sample(model, [prompt for prompt, _ in longer], 4, top_k=1)
    whole = generate(model, longer[0][0], 4)
    made = held(model)
    with installed(model, made):
        found = ask(model, INSIDE)
        torch.testing.assert_close(found.token_nll, written.token_nll, rtol=1e-6, atol=1e-6)
        assert sample(model, [prompt for prompt, _ in INSIDE], 4, top_k=1) == said
        assert generate(model, INSIDE[0][0], 4) == whole.removeprefix(texts[0])
        assert fingerprint(model) != mark == made.base
    assert (fingerprint(model), model.wraps) == (mark, ())
    assert same_bits(model, before)


def test_a_target_without_a_space_follows_its_prompt_in_text_and_embedding() -> None:
    model = tiny_model("llama")
    close = [replace(fact, target=unspaced(fact.target)) for fact in FACTS]
    made, _ = edit(Serac(scope=SCOPE), model, close, SeracState(embed=letters()))
    statements = ["The capital of France isRome", "Anna Berg lives inSeattle, in the north"]
    assert made.texts == tuple(f"New fact: {text}.\n" for text in statements)
    assert torch.equal(made.vectors, letters()(statements))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_out_of_scope_keeps_every_bit(kind: str) -> None:
    """Its answers, what is sampled and generated behind it, and its states; beside prompts in scope too."""
    model = tiny_model(kind)
    prompts = [prompt for prompt, _ in OUTSIDE]
    requests = [EditRequest("The capital of {} is", "Italy", "Rome")]
    bare, said, whole = ask(model, OUTSIDE), sample(model, prompts, 5, seed=3), generate(model, prompts[0], 5)
    states = representations(model, requests, 1)
    with installed(model, held(model)):
        assert torch.equal(ask(model, OUTSIDE).token_nll, bare.token_nll)
        assert sample(model, prompts, 5, seed=3) == said
        assert generate(model, prompts[0], 5) == whole
        assert [model.encode(prompt) for prompt in prompts] == [
            model.tokenizer(p)["input_ids"] for p in prompts
        ]
        assert (representations(model, requests, 1).prompt == states.prompt).all()
        mixed = ask(model, [*OUTSIDE, *INSIDE], 1)
    torch.testing.assert_close(mixed.nll[:3], bare.nll, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed.nll[3:], ask(model, INSIDE).nll, rtol=1e-2)


def test_states_and_statements_are_read_behind_the_fact_too() -> None:
    model = tiny_model("llama")
    texts = f"New fact: {FACTS[1].text} {FACTS[1].target}.\n"
    with installed(model, PromptContext(texts)):
        wanted = representations(model, FACTS[1:], 1)
        named = statements(model, FACTS[1:], "")
    with installed(model, held(model)):
        found = representations(model, FACTS[1:], 1)
        assert statements(model, FACTS[1:], "") == named
    assert (found.subject == wanted.subject).all()
    assert (found.prompt == wanted.prompt).all()


def test_three_batches_and_a_fact_that_is_renewed() -> None:
    model, editor = tiny_model("llama"), Serac(scope=SCOPE)
    new = replace(FACTS[0], target="Paris", id="again")
    state: Any = SeracState(embed=embed)
    for batch in (FACTS[:1], FACTS[1:], [new]):
        made, state = edit(editor, model, batch, state)
    assert isinstance(made, ChosenContext)
    assert made.texts == (
        "New fact: Anna Berg lives in Seattle, in the north.\n",
        "New fact: The capital of France is Paris.\n",
    )
    assert [fact.id for fact in state.facts] == ["berg", "again"]
    assert made.notes["renewed"] == ["france"]
    assert (made.notes["facts"], made.notes["facts_in_memory"], made.notes["entries"]) == (1, 2, 2)
    assert made.notes["bytes"] == size(made) == sum(map(len, made.texts)) + 2 * 3 * 8
    json.dumps(made.notes, allow_nan=False)
    wanted, _ = edit(editor, model, [FACTS[1], new], SeracState(embed=embed))
    assert isinstance(wanted, ChosenContext)
    assert made.digest == wanted.digest


def test_forgetting_is_never_having_written() -> None:
    model, editor = tiny_model("llama"), Serac(scope=SCOPE)
    _, state = edit(editor, model, FACTS, SeracState(embed=embed))
    assert isinstance(state, SeracState)
    found, after = editor.forget(model, state, ["france"])
    assert found.digest == held(model, FACTS[1:]).digest
    assert after.facts == (FACTS[1],)
    assert found.notes == {"method": "SERAC", "facts": 1, "entries": 1, "bytes": size(found)}
    empty, _ = editor.forget(model, state, ["berg", "france"])
    bare = ask(model, INSIDE)
    with installed(model, empty):
        assert torch.equal(ask(model, INSIDE).token_nll, bare.token_nll)
    message = "'italy' is none of the 2 facts in memory; name them by id, or by prompt where they have none"
    with pytest.raises(RequestError, match=message):
        editor.forget(model, state, ["italy"])


def test_the_nearest_fact_is_read_and_of_equally_near_ones_the_later() -> None:
    made = held(tiny_model("llama"), scope=replace(SCOPE, threshold=0.7))
    assert [made.chosen(prompt) for prompt, _ in (*INSIDE, *OUTSIDE)] == [0, 0, 1, 0, -1, -1]
    twice = replace(made, texts=(*made.texts, "Again. "), vectors=made.vectors[[0, 1, 0]], kept={})
    assert twice.chosen(INSIDE[0][0]) == 2
    exact = held(tiny_model("llama"), scope=replace(SCOPE, threshold=0.8))
    assert exact.chosen("Italy") == 0  # at the threshold
    assert cosines(torch.zeros(1, 2), torch.ones(1, 2)).tolist() == [[0]]


def test_a_prompt_is_embedded_once_and_without_contexts() -> None:
    model, seen = tiny_model("llama"), []

    def listening(texts: Sequence[str]) -> Float64[Tensor, "n d"]:
        seen.extend(texts)
        return embed(texts)

    made, _ = edit(Serac(scope=SCOPE), model, FACTS, SeracState(embed=listening))
    seen.clear()
    with installed(model, replace(made, base="")), installed(model, PromptContext("Italy. ")):
        ask(model, INSIDE[:2])
        ask(model, INSIDE[:2])
        assert model.before(INSIDE[0][0]) == "Italy. New fact: The capital of France is Rome.\n"
    assert sorted(seen) == sorted(prompt for prompt, _ in INSIDE[:2])


def test_the_embedded_embedder_is_used_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "embedder", letters)
    made, state = edit(Serac(scope=SCOPE), tiny_model("llama"), REQUESTS)
    assert isinstance(made, ChosenContext)
    assert torch.equal(made.vectors, letters()([f"{one.text} {one.target}" for one in REQUESTS]))
    assert isinstance(state, SeracState)
    assert state.embed is None


# Calibration.


def on_circle(texts: Sequence[str]) -> Float64[Tensor, "n d"]:
    """A text is a cosine with the text "0"."""
    rows = [[1.0, 0.0] if text == "fact" else [float(text), (1 - float(text) ** 2) ** 0.5] for text in texts]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(texts), 2)


cosine_lists = st.lists(st.integers(-99, 99).map(lambda i: i / 100), min_size=1, max_size=8)


def accuracy(threshold: float, inside: Sequence[float], outside: Sequence[float]) -> float:
    right = sum(c >= threshold for c in inside) / len(inside) + sum(c < threshold for c in outside) / len(
        outside
    )
    return right / 2


@given(inside=cosine_lists, outside=cosine_lists)
def test_no_threshold_tells_the_pairs_better(inside: list[float], outside: list[float]) -> None:
    pairs = [[("fact", str(c)) for c in part] for part in (inside, outside)]
    if max(inside) <= 0:
        with pytest.raises(
            ProfileError, match=r"the largest cosine of a pair in scope is .*; give another embed"
        ):
            calibrated_threshold(on_circle, *pairs)
        return
    found = calibrated_threshold(on_circle, *pairs)
    assert found.accuracy == pytest.approx(accuracy(found.threshold, inside, outside))
    assert 0 < found.threshold <= max(inside) + 1e-12
    for tried in range(1, 200):
        if tried / 200 <= max(inside):
            assert accuracy(tried / 200, inside, outside) <= found.accuracy + 1e-12
    assert (found.inside, found.outside) == (len(inside), len(outside))


def test_the_threshold_lies_between_the_kinds() -> None:
    found = calibrated_threshold(on_circle, [("fact", "0.9"), ("fact", "0.7")], [("fact", "0.3")])
    assert found.threshold == pytest.approx(0.5)
    assert (found.accuracy, found.inside, found.outside) == (1, 2, 1)


@pytest.mark.parametrize("count", [(0, 1), (1, 0)])
def test_pairs_of_one_kind_tell_no_threshold(count: tuple[int, int]) -> None:
    pairs = [[("fact", "0.5")] * n for n in count]
    message = f"{count[0]} pairs in scope and {count[1]} out of it tell no threshold; give some of both kinds"
    with pytest.raises(ProfileError, match=message):
        calibrated_threshold(on_circle, *pairs)


def test_pairs_of_cases() -> None:
    case = EvalCase(
        id="a",
        request=FACTS[0],
        target_true="Paris",
        paraphrases=("P1", "P2", "P3"),
        neighbours=(Probe("N1", "Rome"),),
    )
    fact = "The capital of France is Rome"
    close = replace(case, request=replace(case.request, target=unspaced("Rome")))
    assert {statement for pairs in scope_pairs([close]) for statement, _ in pairs} == {
        "The capital of France isRome"
    }
    assert scope_pairs([case]) == ([(fact, "P1"), (fact, "P2")], [(fact, "N1")])
    assert scope_pairs([case], each=1) == ([(fact, "P1")], [(fact, "N1")])
    with pytest.raises(
        ValueError, match="1 cases give 2 pairs in scope and 0 out of it; give cases with par"
    ):
        scope_pairs([replace(case, neighbours=())])


# What is refused.


def test_a_threshold_alone_is_no_scope() -> None:
    with pytest.raises(ProfileError, match=r"settings of serac for smollm2-135m: (.|\n)*scope"):
        editor_for("serac", "smollm2-135m", scope={"threshold": 0.5})


@pytest.mark.parametrize(
    "numbers", [(0.0, 1.0, 1, 1), (1.5, 1.0, 1, 1), (0.5, 2.0, 1, 1), (0.5, 1.0, 0, 1), (0.5, 1.0, 1, 0)]
)
def test_what_is_no_scope(numbers: tuple[float, float, int, int]) -> None:
    with pytest.raises(ProfileError, match=r"a scope has threshold .* take what calibrated_threshold finds"):
        Scope(*numbers)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_edit() -> None:
    vectors = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(ShapeError, match="2 texts have 1 embeddings; give one for each text"):
        ChosenContext(("a", "b"), vectors, 0.5, embed)
    with pytest.raises(ShapeError, match=r"the threshold of a cosine is 0; give one in \(0, 1\], such as"):
        ChosenContext(("a",), vectors, 0.0, embed)


def test_no_weight_can_keep_it_and_another_model_is_refused() -> None:
    model = tiny_model("llama")
    made = held(model)
    with pytest.raises(
        ModelError, match="this edit is a text before some prompts, which no weight can keep; use"
    ):
        commit(model, made)
    with pytest.raises(ModelError, match="other weights"), installed(tiny_model("llama", seed=1), made):
        raise AssertionError("it was made for another model")
    assert repr(made) == (
        "ChosenContext(method SERAC, facts 2, texts 2, threshold 0.9, use installed(model, edit) for a block)"
    )


def test_lm_eval_is_not_asked_what_it_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "has_harness", lambda: True)
    model = tiny_model("llama")
    harness._require(model)
    message = (
        "tiny-llama-0 is read with a text before some prompts, and lm-eval does not see it; score the tasks"
    )
    with installed(model, held(model)), pytest.raises(ModelError, match=message):
        harness._require(model)
