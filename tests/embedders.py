"""An embedder made of arithmetic, and a tiny random one that sentence-transformers loads from a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from palimpsest.network.embedder import Embedder


class Letters:
    """Stands in for a SentenceTransformer: how often each of 32 classes of letters occurs, in float32."""

    max_seq_length = 1000

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.asked: list[list[str]] = []

    def __repr__(self) -> str:
        return "Letters"

    def tokenizer(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def get_embedding_dimension(self) -> int:
        return 32

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"scale": torch.tensor(self.scale)}

    def encode(self, texts: Sequence[str], **options: Any) -> torch.Tensor:
        self.asked.append(list(texts))
        rows = torch.zeros(len(texts), 32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text:
                row[ord(letter) % 32] += self.scale
        return rows


def letters(scale: float = 1.0) -> Embedder:
    """An embedder that needs no network."""
    return Embedder("letters", Letters(scale))


def tiny_embedder_folder(folder: Path) -> Path:
    """A random BERT of two layers with mean pooling, written as sentence-transformers writes it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    bare = folder.with_name(f"{folder.name}-bare")
    bare.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "rome", "paris", "is", *"abcdefghij"]
    (bare / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(bare)
    BertTokenizerFast(str(bare / "vocab.txt")).save_pretrained(bare)
    net = Transformer(str(bare), max_seq_length=32)
    pooling = Pooling(net.get_embedding_dimension())
    SentenceTransformer(modules=[net, pooling], device="cpu").save(str(folder))
    return folder
