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
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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
_WINDOW = {"sliding_window": 10}
"""Shorter than the tests' texts, so that layers with a window differ from those without."""
_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_NEOX = {name: value for name, value in _GATED.items() if name != "num_key_value_heads"}
_OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32, **_NEOX}
NETS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _GATED),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _PLAIN),
    "gptj": (GPTJConfig, GPTJForCausalLM, _PLAIN | {"rotary_dim": 4}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, _GATED),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, _GATED | {"head_dim": 16}),
    "mistral": (MistralConfig, MistralForCausalLM, _GATED | _WINDOW),
    "phi3": (Phi3Config, Phi3ForCausalLM, _GATED | {"pad_token_id": None}),
    "phi": (PhiConfig, PhiForCausalLM, _GATED),
    "gemma": (GemmaConfig, GemmaForCausalLM, _GATED | {"head_dim": 16}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, _GATED | _WINDOW | _KINDS | {"head_dim": 8}),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM, _GATED | _WINDOW | _KINDS | {"head_dim": 8}),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, _GATED | {"pad_token_id": None}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, _NEOX),
    "opt": (OPTConfig, OPTForCausalLM, _OPT),
}
"""One model for each row of FAMILIES."""
_AFTER = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "opt_after": (OPTConfig, OPTForCausalLM, _OPT | _AFTER),
    "gpt_neox_in_turn": (GPTNeoXConfig, GPTNeoXForCausalLM, _NEOX | {"use_parallel_residual": False}),
    "qwen3_window": (
        Qwen3Config,
        Qwen3ForCausalLM,
        _GATED | _WINDOW | _KINDS | {"use_sliding_window": True, "max_window_layers": 0},
    ),
    "phi_normed": (PhiConfig, PhiForCausalLM, _GATED | {"qk_layernorm": True}),
    "mistral_whole": (MistralConfig, MistralForCausalLM, _GATED | {"sliding_window": None}),
    "gemma3_capped": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        _GATED | _WINDOW | _KINDS | {"final_logit_softcapping": 2.0},
    ),
}
"""Models of the same families with other settings, as published: OPT-350M has its norms after the sums, and
some NeoX read attention before the MLP."""
PLAIN = ("llama", "gpt2", "gptj", "qwen2")
"""Kinds whose norms and biases are left as a new model has them; in the others they are drawn too."""


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


def _wide(config: Any) -> dict[str, float]:
    """Wide initial weights, under the name that a configuration has for them."""
    return {"init_std" if config is OPTConfig else "initializer_range": 0.3}


def tiny_model(kind: str, seed: int = 0, bos: bool = False) -> EditableModel:
    """A random float32 model of 4 layers, d_v = 32, d_k = 128 (gpt2, gptj) or 64 (all others).

    The same kind, seed and bos give the same weights; the global random state is left as it was.
    """
    tokenizer = tiny_tokenizer(bos)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind not in NETS | VARIANTS:
            raise ValueError(f"no tiny model of kind {kind!r}; choose {', '.join(NETS | VARIANTS)}")
        config, net, shape = (NETS | VARIANTS)[kind]
        net = net(config(**shape, **_wide(config), **sizes))
        if kind not in PLAIN:
            with torch.no_grad():
                for weight in net.parameters():
                    weight.add_(0.2 * torch.randn_like(weight) if weight.ndim == 1 else 0)
    return wrap(net.float(), tokenizer, f"tiny-{kind}-{seed}")
