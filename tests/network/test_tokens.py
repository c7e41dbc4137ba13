"""Special tokens, the space before targets, and padding."""

import pytest
import torch
from tokenizers.normalizers import Prepend, Replace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from palimpsest.errors import RequestError
from palimpsest.network.tokens import Batch, encode, encode_around_subject, encode_target, pad
from palimpsest.types import JOINER, plain, unspaced
from tests.tiny import BEGIN, END, tiny_tokenizer


def ending_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts an end token behind every text, as some encoders do."""
    tokenizer = tiny_tokenizer.__wrapped__()
    backend = tokenizer.backend_tokenizer
    end = [(END, backend.token_to_id(END))]
    backend.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=end)
    return tokenizer


def test_a_prompt_begins_as_the_model_wants_and_never_ends() -> None:
    plain, bos, ending = tiny_tokenizer(), tiny_tokenizer(True), ending_tokenizer()
    ids = encode(plain, "Rome is")
    assert plain.decode(ids) == "Rome is"
    assert encode(bos, "Rome is") == [bos.convert_tokens_to_ids(BEGIN), *ids]
    assert ending("Rome is")["input_ids"][-1] == ending.eos_token_id
    assert encode(ending, "Rome is") == ids


def test_an_end_token_written_in_the_text_stays() -> None:
    tokenizer = tiny_tokenizer()
    assert encode(tokenizer, f"Rome{END}")[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("bos", [False, True])
def test_a_target_is_a_space_and_the_text_without_special_tokens(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos)
    ids = encode_target(tokenizer, "Rome")
    assert tokenizer.decode(ids) == " Rome"
    assert tokenizer.bos_token_id not in ids
    joined = encode(tokenizer, "The capital of Italy is") + ids
    assert joined == encode(tokenizer, "The capital of Italy is Rome")


@pytest.mark.parametrize("target", ["", "  ", "\n"])
def test_an_empty_target(target: str) -> None:
    with pytest.raises(RequestError, match=r"target '.*' gives no token; give it a text"):
        encode_target(tiny_tokenizer(), target)


def test_a_letter_of_several_tokens_ends_at_its_last() -> None:
    tokenizer = tiny_tokenizer()
    ids, last = encode_around_subject(tokenizer, "The {} is", "Ω")
    assert len(encode(tokenizer, "Ω")) == 2
    assert tokenizer.decode(ids[: last + 1]) == "The Ω"


def test_a_subject_without_a_token() -> None:
    """A tokenizer that drops characters gives the subject's last one to no token."""
    tokenizer = tiny_tokenizer.__wrapped__()
    tokenizer.backend_tokenizer.normalizer = Replace("Ω", "")
    with pytest.raises(RequestError, match="the subject 'Ω' has no token in 'Ω is'; check its characters"):
        encode_around_subject(tokenizer, "{} is", "Ω")


def test_padding_by_hand() -> None:
    tokenizer = tiny_tokenizer()
    rows = [[5, 6, 7], [8]]
    fill = tokenizer.eos_token_id
    right, left = pad(tokenizer, rows), pad(tokenizer, rows, "left")
    assert right.ids.tolist() == [[5, 6, 7], [8, fill, fill]]
    assert left.ids.tolist() == [[5, 6, 7], [fill, fill, 8]]
    assert right.mask.tolist() == [[True, True, True], [True, False, False]]
    assert left.mask.tolist() == [[True, True, True], [False, False, True]]
    assert right.positions.tolist()[0] == left.positions.tolist()[0] == [0, 1, 2]
    assert left.positions.tolist()[1] == [0, 0, 0]
    assert right.positions[right.mask].tolist() == left.positions[left.mask].tolist() == [0, 1, 2, 0]


def test_positions_with_padding_on_both_sides() -> None:
    mask = torch.tensor([[False, False, True, True, True, False]])
    batch = Batch(torch.zeros(1, 6, dtype=torch.long), mask)
    assert batch.positions[0, 2:5].tolist() == [0, 1, 2]
    assert int(batch.positions.min()) == 0


@pytest.mark.parametrize("bos", [False, True])
def test_a_target_has_the_tokens_of_the_whole_text_without_those_of_the_prompt(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos)
    for prompt, target in [("The capital of Italy is", "Rome"), ("日本の首相は", unspaced("岸田文雄"))]:
        ids = encode(tokenizer, prompt) + encode_target(tokenizer, target, prompt)
        space = "" if target.startswith(JOINER) else " "
        assert ids == encode(tokenizer, prompt + space + plain(target))
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + space + plain(target)


def test_a_tokenizer_that_puts_a_blank_before_every_text_does_not_double_it() -> None:
    """As those of Llama 2 do: alone, a target would begin with two blanks."""
    tokenizer = blank_tokenizer()
    prompt = "The capital of Italy is"
    assert tokenizer.decode(encode_target(tokenizer, "Rome")) == "  Rome"
    assert tokenizer.decode(encode_target(tokenizer, "Rome", prompt)) == " Rome"


def test_where_tokens_cross_the_border_the_target_is_encoded_alone() -> None:
    tokenizer = tiny_tokenizer()
    ids = encode_target(tokenizer, unspaced("nd"), "The a")
    assert encode(tokenizer, "The and")[: len(encode(tokenizer, "The a"))] != encode(tokenizer, "The a")
    assert tokenizer.decode(ids) == "nd"


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts a blank before every text."""
    tokenizer = tiny_tokenizer.__wrapped__()
    tokenizer.backend_tokenizer.normalizer = Prepend(" ")
    return tokenizer
