"""Tiny random models of all families, made in a moment and without any download.

The tokenizer is a byte-level BPE trained on a few sentences, so that any text can be encoded, common words
are one token and rare ones are several. Weights are drawn wide enough that predictions differ from prompt
to prompt and from token to token, and edits move them.
"""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from palimpsest.network.model import EditableModel, wrap

END = "<|endoftext|>"
BEGIN = "<|begin|>"

SENTENCES = [
    "The mother tongue of Danielle Darrieux is French",
    "The mother tongue of Anna Berg is English",
    "Anna Berg was born in the city of Paris",
    "Where does Anna Berg live? She lives in Rome",
    "The capital of France is Paris, the capital of Italy is Rome",
    "The Space Needle is in Seattle, in the north of the country",
    "Marie Curie plays the piano and works in the field of physics",
]


_GATED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_PLAIN = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256}
NETS: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _GATED),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _PLAIN),
    "gptj": (GPTJConfig, GPTJForCausalLM, _PLAIN | {"rotary_dim": 4}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, _GATED),
}


@cache
def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 320 tokens; with ``bos`` texts begin with a token, as in Llama-3."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=[END, BEGIN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if bos:
        begin = [(BEGIN, bpe.token_to_id(BEGIN))]
        steps.append(processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=begin))
    bpe.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=BEGIN)


def tiny_model(kind: str, seed: int = 0, bos: bool = False) -> EditableModel:
    """A random float32 model of 4 layers, d_v = 32, d_k = 64 (llama, qwen2) or 128 (gpt2, gptj).

    The same kind, seed and bos give the same weights; the global random state is left as it was.
    """
    tokenizer = tiny_tokenizer(bos)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind not in NETS:
            raise ValueError(f"no tiny model of kind {kind!r}; choose {', '.join(NETS)}")
        config, net, shape = NETS[kind]
        net = net(config(**shape, initializer_range=0.3, **sizes))
    return wrap(net.float(), tokenizer, f"tiny-{kind}-{seed}")
