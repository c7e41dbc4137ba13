"""GRACE and MELO: facts are learnt, stay in later batches, are forgotten exactly, and leave all else
alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from palimpsest.editors import EDITORS, edit, editor_for
from palimpsest.editors.grace import Grace, GraceState
from palimpsest.editors.melo import Melo, MeloState
from palimpsest.editors.remembered import Remembered, RememberedState, RememberingEditor, _uncovered, written
from palimpsest.errors import NonFiniteError, ProfileError, RequestError, SequenceError, SiteError
from palimpsest.evaluation.answers import ask
from palimpsest.network.apply import PromptContext, WeightDelta, installed
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.network.wraps import AddedBlocks, LayerWrap, Replaced
from palimpsest.types import EditRequest
from tests.editing import REQUESTS, double, every_family, same_bits, snapshot
from tests.tiny import tiny_model
from tests.wraps import PLACES, plain_nll

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

FACTS = [
    replace(request, target=target)
    for request, target in zip(REQUESTS, ("Paris", "the", "Rome", "Anna"), strict=True)
]
"""With targets of one token: a random model cannot be taught a chain of them at one place."""
GRACE = {"layers": (1,), "radius": 0.05, "steps": 60, "lr": 1.0, "stop_below": 0.5}
MELO = {"layers": (1,), "radius": 0.05, "steps": 60, "lr": 0.1, "stop_below": 0.5}
METHODS: dict[str, tuple[type[RememberingEditor], dict[str, Any]]] = {
    "grace": (Grace, GRACE),
    "melo": (Melo, MELO),
}
every_method = pytest.mark.parametrize("name", METHODS)
ELSEWHERE = [("The capital of Italy is", "Rome"), ("Xu Ω", "Paris"), ("Marie Curie plays the", "piano")]


def made(name: str, **overrides: Any) -> RememberingEditor:
    method, settings = METHODS[name]
    return method(**{**settings, **overrides})


def pairs(requests: Sequence[EditRequest]) -> list[tuple[str, str]]:
    return [(request.text, request.target) for request in requests]


def in_turn(
    editor: RememberingEditor, model: EditableModel, batches: Sequence[Sequence[EditRequest]]
) -> tuple[LayerWrap, RememberedState]:
    """The last edit and state of a sequence on the unedited model."""
    state: Any = None
    for batch in batches:
        found, state = edit(editor, model, batch, state)
    assert isinstance(found, LayerWrap)
    return found, state


def said(model: EditableModel, made: LayerWrap, requests: Sequence[EditRequest]) -> list[bool]:
    """Which facts are answered, every token of the target."""
    with installed(model, made):
        answers = ask(model, pairs(requests))
    return (answers.hits | ~answers.mask).all(1).tolist()


def same_memory(one: LayerWrap, other: LayerWrap) -> bool:
    """Bit by bit."""
    found, wanted = one.tensors(), other.tensors()
    same = all(torch.equal(found[name], wanted[name]) for name in wanted)
    return same and found.keys() == wanted.keys() and one.book.labels == other.book.labels


@every_family
@every_method
@pytest.mark.parametrize("at", PLACES)
def test_facts_are_learnt_and_other_prompts_keep_their_answers(kind: str, name: str, at: str) -> None:
    model = tiny_model(kind, bos=kind == "llama")
    before, bare = snapshot(model), ask(model, ELSEWHERE)
    editor = made(name, at=at, steps=240)
    found, state = edit(editor, model, FACTS)
    assert isinstance(found, LayerWrap)
    first, last = ([losses[i] for losses in found.notes["loss_history"]] for i in (0, -1))
    if at == "map" and model.norm_behind(1) is not None:
        # The norm behind the map takes the length of what it gives: there the whole layer is the place.
        assert all(end < start for start, end in zip(first, last, strict=True))
    else:
        assert said(model, found, FACTS) == [True] * 4
        assert max(last) < 0.5 < min(first)
    with installed(model, found):
        assert torch.equal(ask(model, ELSEWHERE).token_nll, bare.token_nll)
        answers = ask(model, pairs(FACTS))
    assert answers.nll.tolist() == pytest.approx(last, rel=1e-3, abs=1e-4)
    assert same_bits(model, before)
    assert type(state) is editor.keeps


@every_method
def test_earlier_batches_are_answered_after_three(name: str) -> None:
    """And the memory grows by what is written; the last edit alone holds everything."""
    model, editor, sizes = tiny_model("llama"), made(name), []
    state: Any = None
    for at, batch in enumerate((FACTS[:1], FACTS[1:3], FACTS[3:])):
        found, state = edit(editor, model, batch, state)
        assert isinstance(found, LayerWrap)
        known = FACTS[: (1, 3, 4)[at]]
        assert said(model, found, known) == [True] * len(known)
        sizes.append(found.notes["bytes"])
        assert found.notes["entries"] == found.notes["facts_in_memory"] == len(known)
        assert found.notes["facts"] == len(batch)
    per_entry = 4 * (64 + 1) + {"grace": 4 * 32, "melo": 4 * 2 * (32 + 64)}[name]
    assert sizes == [per_entry, 3 * per_entry, 4 * per_entry]
    assert found.bytes == sizes[-1]


@every_method
def test_what_an_entry_learns_does_not_depend_on_the_others(name: str) -> None:
    """One batch, batches of one, and small passes: the same up to rounding, also where some are learnt
    early."""
    model = double("llama")
    whole, _ = in_turn(made(name), model, [FACTS])
    alone, _ = in_turn(made(name), model, [[request] for request in FACTS])
    small, _ = in_turn(made(name, batch=1), model, [FACTS])
    lengths = [len(losses) for losses in whole.notes["loss_history"]]
    assert len({*lengths}) > 1
    for other in (alone, small):
        for key, part in whole.tensors().items():
            torch.testing.assert_close(other.tensors()[key], part, rtol=1e-4, atol=1e-5)


def twin_of_grace(
    model: EditableModel, editor: Grace, request: EditRequest, start: Tensor
) -> tuple[Tensor, list[float]]:
    """The value of one fact, by Adam written out, and its losses; the layer's output is replaced by a plain "
    "hook."""
    ids = encode(model.tokenizer, request.text)
    target = encode_target(model.tokenizer, request.target, request.text)
    value, m, v, losses = start.clone().requires_grad_(), 0.0, 0.0, []
    module: Any = model.net.get_submodule(model.family.layers)[editor.layers[0]]
    module = module.get_submodule(model.family.value_projection)

    def put(_: Any, __: Any, output: Tensor) -> Tensor:
        rows = list(output[0])
        rows[len(ids) - 1] = value
        return torch.stack(rows)[None]

    for step in range(1, editor.steps + 2):
        handle = module.register_forward_hook(put)
        logits = model.net(input_ids=torch.tensor([ids + target[:-1]]), use_cache=False).logits[
            0, len(ids) - 1 :
        ]
        handle.remove()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
        losses.append(float(loss.detach()))
        if step > editor.steps or losses[-1] < editor.stop_below:
            break
        (g,) = torch.autograd.grad(loss, value)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        with torch.no_grad():
            value -= editor.lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return value.detach(), losses


@pytest.mark.parametrize("begin_at", ["random", "output"])
def test_a_value_is_that_of_adam_written_out(begin_at: str) -> None:
    model = double("llama")
    editor = Grace(**{**GRACE, "steps": 12, "stop_below": 0.0}, begin_at=begin_at)
    found, _ = edit(editor, model, REQUESTS[1:2])
    assert isinstance(found, LayerWrap)
    untrained, _ = edit(replace(editor, lr=1e-30), model, REQUESTS[1:2])  # type: ignore[type-var]
    start = untrained.act.values[0]  # type: ignore[union-attr]
    if begin_at == "output":
        torch.testing.assert_close(
            plain_nll(model, [untrained], pairs(REQUESTS[1:2])),
            ask(model, pairs(REQUESTS[1:2])).nll,
            rtol=1e-6,
            atol=0,
        )
    else:
        assert 0 <= float(start.min()) < 0.2 < 0.8 < float(start.max()) < 1
    value, losses = twin_of_grace(model, editor, REQUESTS[1], start)
    assert isinstance(found.act, Replaced)
    torch.testing.assert_close(found.act.values[0], value, rtol=1e-5, atol=1e-6)
    assert found.notes["loss_history"][0] == pytest.approx(losses, rel=1e-5)


def test_a_block_begins_as_nothing_and_is_of_its_rank() -> None:
    model = double("gpt2")
    untrained, _ = edit(Melo(**{**MELO, "lr": 1e-30, "rank": 3}), model, FACTS)
    assert isinstance(untrained, LayerWrap)
    assert isinstance(untrained.act, AddedBlocks)
    assert untrained.act.down.shape == (4, 3, 128)
    assert untrained.act.up.shape == (4, 32, 3)
    assert 0.5 * 128**-0.5 < float(untrained.act.down.abs().max()) <= 128**-0.5
    with installed(model, untrained):
        torch.testing.assert_close(ask(model, pairs(FACTS)).nll, plain_nll(model, [], pairs(FACTS)))


# Several facts in one entry, splits, conflicts, forgetting.


def fact(key: float, target: str, name: str = "") -> Remembered:
    request = EditRequest("{} lives in", f"Person {key}", target, id=name)
    return Remembered(request, torch.tensor([key, 0.0]).double(), (torch.tensor([key]),))


def test_a_codebook_is_made_of_facts_in_their_order() -> None:
    facts = [fact(0, "Rome"), fact(0.5, "Rome"), fact(1.5, "Paris"), fact(9, "Rome")]
    found = written(facts, 1.0)
    assert found.rule == ["new", "expanded", "split", "new"]
    assert found.entry == [0, 0, 1, 2]
    assert found.book.labels == ("Rome", "Paris", "Rome")
    assert found.book.radii.tolist() == [0.75, 0.75, 1]
    assert _uncovered(facts, found.book) == []
    cut = [fact(0, "Rome"), fact(1.4, "Rome", id_ := "cut off"), fact(2, "Paris")]
    assert _uncovered(cut, written(cut, 1.0).book) == [id_]
    assert _uncovered([], written([], 1.0).book) == []


@every_method
def test_facts_with_one_target_share_an_entry_and_are_all_learnt(name: str) -> None:
    """In one batch and in two: the entry is trained on all of its facts again."""
    model = tiny_model("llama")
    alike = [replace(FACTS[0], target="Rome"), FACTS[2]]
    for batches in ([alike], [alike[:1], alike[1:]]):
        found, state = in_turn(made(name, radius=1e3), model, batches)
        assert len(found.book) == 1
        assert found.notes["entries"] == 1
        assert said(model, found, alike) == [True, True]
        assert state.facts[0].contents is state.facts[1].contents
    assert found.notes["rules"] == {"new": 0, "expanded": 1, "split": 0}


@every_method
def test_forgetting_is_never_having_written(name: str) -> None:
    """Bit by bit, also radii that the forgotten fact had cut in half."""
    model, editor = tiny_model("llama"), made(name, radius=30.0)
    for gone in range(4):
        whole, state = in_turn(editor, model, [[request] for request in FACTS])
        left = [request for i, request in enumerate(FACTS) if i != gone]
        wanted, other = in_turn(editor, model, [[request] for request in left])
        found, after = editor.forget(model, state, [FACTS[gone].text])
        assert len(whole.book) == 4
        assert same_memory(found, wanted)
        assert not torch.equal(whole.book.radii[:3], wanted.book.radii)
        assert found.base == wanted.base == fingerprint(model)
        assert [fact.request for fact in after.facts] == [fact.request for fact in other.facts] == left
        assert said(model, found, left) == [True] * 3
        assert found.notes == {
            "method": editor.printed,
            "facts": 3,
            "entries": 3,
            "bytes": found.bytes,
            "uncovered": [],
        }
    assert type(state) is editor.keeps


@every_method
def test_forgetting_everything_leaves_the_model_as_it_was(name: str) -> None:
    model, editor = tiny_model("llama"), made(name)
    _, state = in_turn(editor, model, [FACTS])
    found, after = editor.forget(model, state, [request.text for request in FACTS])
    assert (len(found.book), after.facts) == (0, ())
    bare = ask(model, pairs(FACTS))
    with installed(model, found):
        assert torch.equal(ask(model, pairs(FACTS)).token_nll, bare.token_nll)
    again, _ = edit(editor, model, FACTS, after)
    assert isinstance(again, LayerWrap)
    assert said(model, again, FACTS) == [True] * 4


@every_method
@pytest.mark.parametrize("batches", [[[0], [1], [2], [3]], [[0, 1], [2, 3]]])
def test_a_fact_that_shared_its_entry_is_forgotten_exactly(name: str, batches: list[list[int]]) -> None:
    """Bit by bit: the facts that are left are taught anew, in the edits in which they were written."""
    model, editor = tiny_model("llama"), made(name, radius=1e3)
    alike = [replace(fact, target="Rome", id=f"{number}") for number, fact in enumerate(FACTS)]
    shared, state = in_turn(editor, model, [[alike[i] for i in own] for own in batches])
    assert len(shared.book) == 1
    for gone in range(4):
        found, after = editor.forget(model, state, [str(gone)])
        rest = [[alike[i] for i in own if i != gone] for own in batches]
        wanted, other = in_turn(editor, model, [own for own in rest if own])
        assert same_memory(found, wanted)
        assert [fact.name for fact in after.facts] == [fact.name for fact in other.facts]
        assert all(
            torch.equal(*pair)
            for ours, theirs in zip(after.facts, other.facts, strict=True)
            for pair in zip(ours.contents, theirs.contents, strict=True)
        )
        assert not any(
            torch.equal(part, shared.act.tensors()[key]) for key, part in found.act.tensors().items()
        )


@every_method
def test_facts_that_share_an_entry_only_without_another_are_taught_anew(name: str) -> None:
    """The one between them has another target, so that it had kept them apart."""
    model = tiny_model("llama")
    keys = [fact.key for fact in made(name)._read(model, FACTS)]
    order = sorted(range(3), key=lambda i: float((keys[i] - keys[3]).norm()))
    near, far = FACTS[order[0]], FACTS[order[1]]
    apart = float((keys[order[0]] - keys[order[1]]).norm())
    editor = made(name, radius=1.01 * apart)
    facts = [replace(near, target="Rome", id="near"), FACTS[3], replace(far, target="Rome", id="far")]
    whole, state = in_turn(editor, model, [[one] for one in facts])
    found, _ = editor.forget(model, state, [FACTS[3].text])
    wanted, _ = in_turn(editor, model, [facts[:1], facts[2:]])
    assert (len(whole.book), len(wanted.book)) == (3, 1)
    assert same_memory(found, wanted)


def test_another_model_forgets_nothing() -> None:
    editor = made("grace")
    _, state = in_turn(editor, tiny_model("llama"), [FACTS[:2]])
    other = tiny_model("llama")
    other.net.lm_head.weight.data[0, 0] += 1
    with pytest.raises(SequenceError, match="the 2 facts in memory were read on"):
        editor.forget(other, state, [FACTS[0].text])


@every_method
def test_of_two_facts_in_conflict_the_newest_counts_or_the_second_is_refused(name: str) -> None:
    model, new = tiny_model("llama"), replace(FACTS[1], target="Rome", id="new")
    editor = made(name)
    found, state = in_turn(editor, model, [FACTS[:1], FACTS[1:2], [new]])
    assert said(model, found, [FACTS[0], new]) == [True, True]
    assert found.notes["renewed"] == [FACTS[1].text]
    assert found.book.labels == (FACTS[0].target, "Rome")
    assert [fact.name for fact in state.facts] == [FACTS[0].text, "new"]
    alone, _ = in_turn(editor, model, [FACTS[:1], [new]])
    assert same_memory(found, alone)
    strict = made(name, conflicts="refuse")
    _, state = in_turn(strict, model, [FACTS[:2]])
    message = (
        r"'new' asks for 'Rome', and the same key has 'the' in memory \('Anna Berg lives in'\); "
        r'forget that fact first, or set conflicts="newest"'
    )
    with pytest.raises(RequestError, match=message):
        edit(strict, model, [new], state)
    again, _ = edit(strict, model, FACTS[1:2], state)  # the same target is no conflict
    assert again.notes["renewed"] == [FACTS[1].text]
    assert again.notes["entries"] == 2


@every_method
def test_different_targets_near_each_other_are_told_apart(name: str) -> None:
    """With a radius beyond all distances every entry is split, and every fact is answered."""
    model = tiny_model("llama")
    found, _ = in_turn(made(name, radius=1e3), model, [FACTS])
    assert found.notes["rules"] == {"new": 1, "expanded": 0, "split": 3}
    assert said(model, found, FACTS) == [True] * 4
    assert found.notes["uncovered"] == []


# Models, contexts and what is refused.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_method
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Contents are trained in float32 and used in the model's dtype."""
    model = tiny_model("llama")
    model.net.to(dtype)
    found, state = in_turn(made(name, radius=1.0), model, [FACTS[:2], FACTS[2:]])
    assert {part.dtype for part in found.tensors().values()} == {torch.float32}
    assert said(model, found, FACTS) == [True] * 4
    again, _ = edit(made(name, radius=1.0), model, FACTS[:1], state)
    assert again.notes["facts_in_memory"] == 4  # the same key, read in another batch, is known


@every_method
def test_in_a_context_and_on_edited_weights(name: str) -> None:
    model = tiny_model("llama")
    step = 0.01 * torch.ones(read_weight(model, 2).shape, dtype=torch.float64)
    with installed(model, WeightDelta({2: step})), installed(model, PromptContext("Anna Berg plays. ")):
        found, _ = in_turn(made(name), model, [FACTS])
        assert said(model, found, FACTS) == [True] * 4
    with installed(model, replace(found, base="")):
        answers = ask(model, pairs(FACTS))
    assert not (answers.hits | ~answers.mask).all(1).any()  # other keys: the prompts had a text before them


@every_method
def test_a_sequence_goes_on_without_its_edit_in_force(name: str) -> None:
    model, editor = tiny_model("llama"), made(name)
    found, state = in_turn(editor, model, [FACTS[:2]])
    mark = fingerprint(model)[:12]
    message = (
        f"the 2 facts in memory were read on tiny-llama-0 with fingerprint {mark}, and it has [0-9a-f]{{12}} "
        "now; go on with those weights and without the earlier edit installed, which the next one holds too, "
        "or begin"
    )
    with installed(model, found), pytest.raises(SequenceError, match=message):
        edit(editor, model, FACTS[2:], state)
    with pytest.raises(SequenceError, match="or begin a new sequence"):
        edit(editor, tiny_model("llama", seed=1), FACTS[2:], state)


@every_method
def test_what_is_refused(name: str) -> None:
    model = tiny_model("llama")
    for radius in (0, -1.0, float("inf")):
        with pytest.raises(ProfileError, match=rf"settings of {name} for smollm2-135m: (.|\n)*radius"):
            editor_for(name, "smollm2-135m", radius=radius)
    with pytest.raises(ProfileError, match="conflicts"):
        editor_for(name, "smollm2-135m", conflicts="oldest")
    with pytest.raises(SiteError, match="layer 9 does not exist"):
        edit(made(name, layers=(9,)), model, FACTS)
    damaged = tiny_model("llama")
    damaged.net.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"the loss of 'The mother .* is nan at step 0; lower the learning"
    ):
        edit(made(name), damaged, FACTS)
    editor = made(name)
    _, state = in_turn(editor, model, [FACTS[:2]])
    message = "'nobody' is none of the 2 facts in memory; name them by id, or by prompt where they have none"
    with pytest.raises(RequestError, match=message):
        editor.forget(model, state, [FACTS[0].text, "nobody"])


def test_the_base_does_not_say_what_it_keeps() -> None:
    base, none = RememberingEditor(layers=(1,)), torch.zeros(1)
    with pytest.raises(NotImplementedError, match="RememberingEditor does not say what an entry holds"):
        base.initial(none, none, torch.Generator())
    with pytest.raises(NotImplementedError, match="RememberingEditor does not say what its contents do"):
        base.act(())


def test_states_and_notes() -> None:
    assert (Grace.keeps, Melo.keeps) == (GraceState, MeloState)
    found, state = in_turn(made("grace"), tiny_model("llama"), [FACTS])
    json.dumps(found.notes, allow_nan=False)
    assert repr(state).startswith("GraceState(facts 4, ")
    assert repr(found) == (
        "LayerWrap(method GRACE, facts 4, layer 1, entries 4, bytes 1552, use installed(model, edit) for a "
        "block)"
    )


def test_settings_on_file() -> None:
    grace, melo = (editor_for(name, "gpt2-xl") for name in ("grace", "melo"))
    assert isinstance(grace, Grace)
    assert isinstance(melo, Melo)
    assert (grace.layers, grace.radius, grace.steps, grace.lr, grace.stop_below) == (
        (35,),
        1.0,
        200,
        1.0,
        0.0,
    )
    assert (melo.layers, melo.radius, melo.steps, melo.lr, melo.rank) == ((36,), 0.5, 50, 0.001, 2)
    assert EDITORS["grace"].style.name == "GRACE"
