"""Embedders: one text, one vector to the last bit; a hash of what decides it; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.errors import ModelError, NonFiniteError, ScoreError, UnknownNameError
from palimpsest.network.embedder import Embedder, embedder
from tests.embedders import Letters, letters, tiny_embedder_folder
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_equal_texts_are_embedded_once_and_keep_their_places() -> None:
    embed = letters()
    found = embed(["rome", "", "paris", "rome", ""])
    assert found.shape == (5, embed.dimensions)
    assert found.dtype == torch.float64
    assert embed.net.asked == [["rome", "", "paris"]]
    assert torch.equal(found[0], found[3])
    assert torch.equal(found[1], found[4])
    assert torch.equal(found[[0, 1, 2]], letters()(["rome", "", "paris"]))
    assert letters()([]).shape == (0, 32)


def test_the_digest_is_that_of_what_decides_an_embedding() -> None:
    assert letters().digest == letters().digest != letters(2.0).digest
    assert Embedder("other name", Letters()).digest == letters().digest
    shorter, renamed = Letters(), Letters()
    shorter.max_seq_length = 5
    renamed.__class__ = type("Words", (Letters,), {"__repr__": lambda self: "Words"})
    split = Letters()
    split.tokenizer = lambda text: {"input_ids": [0]}  # type: ignore[method-assign, assignment]
    digests = {Embedder("letters", net).digest for net in (Letters(), shorter, renamed, split)}
    assert len(digests) == 4


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_embedded() -> None:
    with pytest.raises(ScoreError, match="letters embeds texts, not 3; give a list of texts"):
        letters()(["rome", 3])  # type: ignore[list-item]
    with pytest.raises(NonFiniteError, match="letters gives NaN or infinity; its weights are damaged"):
        letters(float("nan"))(["rome"])
    with pytest.raises(ModelError, match="batch_size of embedder minilm is 0; it must be 1 or more"):
        embedder(batch_size=0)


# Through sentence-transformers, whose import alone takes seconds


@pytest.mark.slow
def test_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    embed = embedder(tiny_embedder_folder(tmp_path / "tiny"))
    texts = ["the a", "Rome is the paris", "", "b"]
    found = embed(texts)
    assert (found.shape, embed.name) == ((4, 16), str(tmp_path / "tiny"))
    for text, row in zip(texts, found, strict=True):
        assert torch.allclose(embed([text])[0], row, atol=1e-6)
        assert torch.allclose(mean_pooled(embed.net, text), row, atol=1e-6)
    assert embedder(tmp_path / "tiny", batch_size=1).digest == embed.digest
    with torch.no_grad():
        next(iter(embed.net.parameters()))[0, 0] += 1
    changed = Embedder(embed.name, embed.net)
    assert changed.digest != embed.digest


def mean_pooled(net: Any, text: str) -> torch.Tensor:
    """The twin: transformers alone, one text, a mean over its tokens."""
    ids = torch.tensor([net.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return net[0].auto_model(input_ids=ids).last_hidden_state[0].mean(0).double()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm-l12", "nobody/at-home", "nowhere/at/all"])
def test_an_embedder_that_is_not_there(name: str, tmp_path: Path) -> None:
    message = (
        rf"unknown embedder '{name}'; choose one of: a folder in sentence-transformers format, "
        "a hub id in the local hub cache, minilm"
    )
    with pytest.raises(UnknownNameError, match=message):
        embedder(name)


@pytest.mark.slow
def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("no list")
    with pytest.raises(ModelError, match=r"cannot be used as a sentence embedder: .*; give another"):
        embedder(tmp_path)
    model = tiny_model("llama")
    model.net.save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match="half cannot be used as a sentence embedder: "):
        embedder(tmp_path / "half")


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_one_knows_what_is_alike() -> None:
    embed = embedder()
    assert embed.dimensions == 384
    near, base, far, empty = embed(["A cat lies there.", "There lies a cat.", "Rates of interest rose.", ""])
    assert float(base @ near) > 0.9 > 0.3 > float(base @ far)
    assert torch.allclose(torch.stack([near, base, far, empty]).norm(dim=1), torch.ones(4).double())
