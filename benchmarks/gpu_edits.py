"""A hundred AlphaEdit edits at LLaMA-3-8B's shapes: ``python -m benchmarks.gpu_edits --device cuda``.

Weights and null spaces are random, so nothing is downloaded; shapes, dtype, layers, steps and the number of
contexts are those of the model and of its settings on file. The goal is that of one H200. What is done once
for a model, the second moment and its null space, is timed apart, for one layer.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from palimpsest.algebra.projector import Projector, projectors
from palimpsest.cache import empty
from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.editors import Prepared, editor_for
from palimpsest.files import as_json, write_atomically
from palimpsest.memory.moments import collect
from palimpsest.network.device import device as usable
from palimpsest.network.model import EditableModel, wrap
from palimpsest.types import EditRequest

MODEL = "llama3-8b"
GOAL_S = 20.0
END = "<|endoftext|>"
SEED = 0


@dataclass(frozen=True)
class Shape:
    """Sizes of a run.

    Attributes:
        config: of the network.
        layers: edited ones.
        steps: of the value optimisation.
        facts: edited in one batch.
        protected: directions of a key that the null space leaves out.
        tokens: of the second moment that is timed.
    """

    config: dict[str, int]
    layers: tuple[int, ...]
    steps: int
    facts: int
    protected: int
    tokens: int


FULL = Shape(
    {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192,
    },
    (4, 5, 6, 7, 8),
    25,
    100,
    2000,
    8192,
)
TINY = Shape(
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 256,
    },
    (1, 2),
    3,
    3,
    8,
    256,
)


def random_model(shape: Shape, requests: list[EditRequest], device: torch.device) -> EditableModel:
    """A network of the shape in bfloat16, with a tokenizer trained on the requests.

    Its prompts are about as long as under the model's own tokenizer.
    """
    bpe = ByteLevelBPETokenizer()
    size = min(20_000, shape.config["vocab_size"])
    bpe.train_from_iterator(
        [request.text for request in requests], size, 2, show_progress=False, special_tokens=[END]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), eos_token=END)
    sizes: dict[str, Any] = {**shape.config, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**sizes)
    torch.manual_seed(SEED)
    with torch.device(device):
        net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return wrap(net, tokenizer, f"random weights of {MODEL}")


def prepared(shape: Shape, requests: list[EditRequest], device: torch.device) -> Prepared:
    """Contexts from the requests and random null spaces; moments are not read where null spaces are given."""
    d_k = shape.config["intermediate_size"]
    generator = torch.Generator(device).manual_seed(SEED)
    spaces = {}
    for layer in shape.layers:
        columns = torch.randn(d_k, shape.protected, generator=generator, device=device, dtype=torch.float64)
        spaces[layer] = Projector(complement=torch.linalg.qr(columns).Q)
    unread = torch.zeros(1, 1, dtype=torch.float64, device=device).expand(d_k, d_k)
    contexts = ("", *(f"{request.text}. " for request in requests[-5:]))
    return Prepared(contexts, dict.fromkeys(shape.layers, unread), spaces)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What a call returns, and its seconds until the device has finished."""
    _wait(device)
    began = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Seconds of the edits and of what is done once, and the peak of the GPU's memory; JSON-able."""
    cases = counterfact_style(load_facts(), shape.facts + 5, SEED)
    requests = [case.request for case in cases]
    model, loading = timed(lambda: random_model(shape, requests, device), device)
    own = prepared(shape, requests, device)
    published: Any = editor_for("alphaedit", MODEL)
    editor = editor_for(
        "alphaedit",
        MODEL,
        layers=shape.layers,
        targets={**vars(published.targets), "steps": shape.steps, "stop_below": 0.0},
    )
    edit: Any = editor.edit
    with empty():
        edit(model, requests[:2], own)  # kernels are chosen and compiled
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        (made, _), seconds = timed(lambda: edit(model, requests[: shape.facts], own), device)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        once = _once(model, shape, device)
    prompts = [len(model.encode(request.text)) for request in requests]
    return {
        "sizes": {**shape.config, "layers": list(shape.layers), "steps": shape.steps, "facts": shape.facts},
        "dtype": "bfloat16",
        "tokens_of_a_prompt": round(sum(prompts) / len(prompts), 1),
        "finite": all(bool(delta.isfinite().all()) for delta in made.deltas.values()),
        "edits_s": round(seconds, 3),
        "making_the_model_s": round(loading, 3),
        **once,
        "peak_gpu_gib": None if peak is None else round(peak, 2),
    }


def _once(model: EditableModel, shape: Shape, device: torch.device) -> dict[str, float]:
    """Seconds of the second moment of one layer, and of its null space."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(1, len(model.tokenizer), (shape.tokens // 64, 64), generator=generator).tolist()
    layer = shape.layers[0]
    moments, moment_s = timed(lambda: collect(model, [layer], ids), device)
    moment = moments[layer].value
    cut = float(moment.diagonal().mean())  # some directions are above the mean, and some below
    _, space_s = timed(lambda: projectors({layer: moment}, "absolute", cut), device)
    return {"moment_of_a_layer_s": round(moment_s, 3), "null_space_of_a_layer_s": round(space_s, 3)}


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu with --rehearse.")] = "cuda",
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Tiny shapes, no goal.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the record.", show_default=False)] = None,
) -> None:
    """Time the edits; exit status 1 if the goal was missed."""
    record = measure(TINY if rehearse else FULL, usable(device))
    goal = {} if rehearse else {"goal_s": GOAL_S, "met": record["edits_s"] <= GOAL_S}
    record = {"rehearsal": rehearse, **goal, **record}
    if out is not None:
        write_atomically(out, as_json(record))
    typer.echo(json.dumps(record))
    raise typer.Exit(0 if record["finite"] and record.get("met", True) else 1)


if __name__ == "__main__":
    typer.run(main)
