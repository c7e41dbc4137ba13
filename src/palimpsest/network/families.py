"""FAMILIES: the architectures that can be edited, one row each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names of the modules that editors need in an architecture.

    Attributes:
        layers: the list of decoder layers.
        value_projection: inside a layer, the linear map whose weight is edited (input: keys).
        norm: the final norm before the head; a model whose layers end with a norm may lack it (OPT-350M).
        head: the output embedding.
        rotary: module that computes rotary position embeddings from positions, or None.
        past: argument by which a layer takes the key/value states of earlier positions.
        norm_after: inside a layer, a norm that the output of the edited map passes on its way to the output
            of the layer, alone (Gemma 2) or with the residual stream (OPT-350M); None if there is none.
        unless: field of the configuration that is true where a model of the family has no ``norm_after``.
        out: a linear map between the final norm and the head, which a model may lack.
        rotary_by_type: whether ``rotary`` also takes the type of a layer, and gives each type its own angles.
        cap: field of the configuration with the bound of the logits, cap·tanh(logits/cap); None if there is
            none.

    Which layers attend to a window only is read from ``sliding_window`` and ``layer_types`` of the
    configuration, which all architectures of transformers name alike.
    """

    layers: str
    value_projection: str
    norm: str
    head: str = "lm_head"
    rotary: str | None = None
    past: str = "past_key_values"
    norm_after: str | None = None
    unless: str | None = None
    out: str | None = None
    rotary_by_type: bool = False
    cap: str | None = None


FAMILIES: dict[str, Family] = {
    "llama": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),
    "gpt2": Family("transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "gptj": Family("transformer.h", "mlp.fc_out", "transformer.ln_f", past="layer_past"),
    "qwen2": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),
    "qwen3": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),
    "mistral": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),
    "phi3": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),
    "phi": Family("model.layers", "mlp.fc2", "model.final_layernorm", rotary="model.rotary_emb"),
    "gemma": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),
    "gemma2": Family(
        "model.layers",
        "mlp.down_proj",
        "model.norm",
        rotary="model.rotary_emb",
        norm_after="post_feedforward_layernorm",
        cap="final_logit_softcapping",
    ),
    "gemma3_text": Family(
        "model.layers",
        "mlp.down_proj",
        "model.norm",
        rotary="model.rotary_emb",
        norm_after="post_feedforward_layernorm",
        rotary_by_type=True,
        cap="final_logit_softcapping",
    ),
    "olmo2": Family(
        "model.layers",
        "mlp.down_proj",
        "model.norm",
        rotary="model.rotary_emb",
        norm_after="post_feedforward_layernorm",
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
        rotary="gpt_neox.rotary_emb",
        past="layer_past",
    ),
    "opt": Family(
        "model.decoder.layers",
        "fc2",
        "model.decoder.final_layer_norm",
        norm_after="final_layer_norm",
        unless="do_layer_norm_before",
        out="model.decoder.project_out",
    ),
}
"""``model_type`` of a configuration of transformers -> names of its modules."""
