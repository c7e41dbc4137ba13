"""Sampled context prefixes, from a tiny model that has learnt the tokenizer's sentences by heart."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch

from palimpsest.errors import ModelError
from palimpsest.memory import contexts
from palimpsest.memory.contexts import check_readable, next_logits, sample_contexts
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode, pad
from tests.tiny import SENTENCES, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


def _loss(model: EditableModel, texts: Sequence[str]) -> torch.Tensor:
    batch = pad(model.tokenizer, [encode(model.tokenizer, text) for text in texts])
    labels = batch.ids.masked_fill(~batch.mask, -100)
    return model.net(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss


@cache
def reader() -> EditableModel:
    """A tiny model trained for a moment until it can say the sentences, also behind a line break."""
    model = tiny_model("llama")
    texts = [lead + text for text in SENTENCES for lead in ("", "\n")]
    model.net.requires_grad_(True)
    adam = torch.optim.Adam(model.net.parameters(), lr=0.01)
    for _ in range(60):
        loss = _loss(model, texts)
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.net.requires_grad_(False)
    assert float(loss.detach()) < 0.5
    return model


def sample(seed: int = 0, top_k: int = 2) -> tuple[str, ...]:
    return sample_contexts(reader(), 4, 8, seed, top_k, starts=("The", "Where", "Anna", "Marie"))


@pytest.mark.slow
def test_the_empty_prefix_is_first_and_the_others_end_in_a_full_stop() -> None:
    found = sample()
    assert found[0] == ""
    assert len(found) == 5
    assert all(text.endswith(". ") and not text.endswith(" . ") for text in found[1:])
    assert sample_contexts(reader(), count=0) == ("",)


def test_each_start_in_turn() -> None:
    found = sample_contexts(reader(), count=3, length=6, top_k=2, starts=("Where", "Marie"))
    assert [text.split()[0] for text in found[1:]] == ["Where", "Marie", "Where"]


def test_length_counts_tokens_with_the_start() -> None:
    tokenizer = reader().tokenizer
    for text in sample_contexts(reader(), count=2, length=6, starts=("Where", "Marie"), top_k=1)[1:]:
        assert len(encode(tokenizer, text.removesuffix(". "))) == 6


def test_seeded() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = sample(seed=1, top_k=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert sample(seed=1, top_k=4) == first
    assert len({sample(seed=seed, top_k=4) for seed in range(1, 5)}) > 1


def test_one_candidate_is_the_greedy_text() -> None:
    """With top_k = 1 the sampler can only say what a plain greedy pass says."""
    model = reader()
    ids = encode(model.tokenizer, "\nMarie")
    lead = len(encode(model.tokenizer, "\n"))
    while len(ids) - lead < 8:
        with torch.no_grad():
            ids.append(int(model.net(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = model.tokenizer.decode(ids[lead:])
    assert sample_contexts(model, 1, 8, top_k=1, starts=("Marie",)) == ("", f"{expected}. ")
    assert expected.startswith("Marie Curie pl")


def test_next_logits_are_those_of_a_plain_pass() -> None:
    model = tiny_model("gpt2")
    ids = encode(model.tokenizer, "The capital of Italy is")
    with torch.no_grad():
        expected = model.net(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(next_logits(model, ids), expected)


def test_braces_and_line_breaks_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix may not hold a slot of its own, and stays on one line."""
    model = reader()
    wanted = iter(encode(model.tokenizer, " is {}{x}\nin  Rome"))

    def scripted(model: EditableModel, ids: Sequence[int]) -> torch.Tensor:
        logits = torch.full((len(model.tokenizer),), -99.0)
        logits[next(wanted, 0)] = 99
        return logits

    length = 1 + len(encode(model.tokenizer, " is {}{x}\nin  Rome"))
    monkeypatch.setattr(contexts, "next_logits", scripted)
    monkeypatch.setattr(contexts, "check_readable", lambda *_: [])
    found = sample_contexts(model, count=1, length=length, starts=("Anna",))
    assert found == ("", "Anna is x in Rome. ")


def test_scores_are_mean_nats_a_token() -> None:
    model = reader()
    (score,) = check_readable(model, SENTENCES[:1])
    with torch.no_grad():
        assert score == pytest.approx(float(_loss(model, SENTENCES[:1])), rel=1e-4)
    assert score < 1


def test_noise_is_refused_and_named() -> None:
    """Random tokens, which is what a sampler with a wrong attention mask writes."""
    model = reader()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, len(model.tokenizer), (10,), generator=generator)
    noise = model.tokenizer.decode(ids)
    with pytest.raises(
        ModelError, match=r"context .* scores .* nats a token, above 2\.9: it is noise"
    ) as error:
        check_readable(model, [SENTENCES[0], noise])
    assert repr(noise) in str(error.value)
    assert len(check_readable(model, [SENTENCES[0], noise], limit=99)) == 2


def test_a_sampler_that_disagrees_with_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the released code on current transformers: wrong logits, and no error before the check."""
    monkeypatch.setattr(contexts, "next_logits", lambda model, ids: next_logits(tiny_model("llama", 9), ids))
    with pytest.raises(ModelError, match="it is noise"):
        sample()


def test_a_text_too_short_to_score_is_refused() -> None:
    assert len(encode(reader().tokenizer, "The")) == 1
    with pytest.raises(ModelError, match="context 'The' scores nan"):
        check_readable(reader(), ["The"])


def test_texts_are_sampled_once_for_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader()
    first = sample_contexts(model, 2, 6, starts=("Where", "Marie"))
    monkeypatch.setattr(contexts, "next_logits", None)  # to sample again would fail
    assert sample_contexts(model, 2, 6, starts=("Where", "Marie")) == first
    for changed in ({"seed": 1}, {"length": 7}, {"count": 1}, {"top_k": 4}, {"opening": ""}):
        with pytest.raises(TypeError):
            sample_contexts(model, **{"count": 2, "length": 6, "starts": ("Where", "Marie"), **changed})
