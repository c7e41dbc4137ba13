"""Models that cannot be loaded: why, by file, in seconds; and the row that an architecture would need."""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from palimpsest.errors import ModelError, ResourceError, UnknownNameError
from palimpsest.network import sources
from palimpsest.network.model import FAMILIES, Family, generate, load
from palimpsest.network.proposal import modules_of, row, without_data
from palimpsest.network.sources import check_source
from tests.tiny import tiny_model
from tests.workbench.edits import tiny_folder

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

POINTER = b"version https://git-lfs\noid sha256:00\nsize 269060552\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "base")


def config(change: dict[str, Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def tokens(count: int, **options: Any) -> Callable[[Path], None]:
    """Add so many tokens to the tokenizer."""

    def damage(folder: Path) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<new-{number}>" for number in range(count)], **options)
        tokenizer.save_pretrained(folder)

    return damage


def padded(folder: Path) -> None:
    """Add the token that fills short rows, as scripts do that forget to enlarge the embeddings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)


NORM = "model.norm.weight"
STRAY = "model.layers.1.mlp.stray.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
DAMAGED = [
    (lambda folder: (folder / "config.json").unlink(), "it has no config.json but generation_config.json"),
    (put("config.json", b""), "config.json is no JSON"),
    (put("config.json", b"[1]"), "config.json holds no JSON object"),
    (put("config.json", b"\xff\xfe"), "config.json is no JSON"),
    (put("config.json", b"[" * 100_000), "config.json is no JSON"),
    (put("config.json", b"{}"), "known: llama, gpt2, gptj, qwen2, qwen3"),
    (config({"model_type": "strange"}), "known: llama, gpt2, gptj, qwen2, qwen3"),
    (config({"model_type": 3}), "known: llama, gpt2, gptj, qwen2, qwen3"),
    (config({"hidden_size": "wide"}), "cannot be used"),
    (config({"hidden_size": 48}), "weights have another shape than config.json says"),
    (config({"num_hidden_layers": 6}), "weights are missing, first model.layers.4."),
    (
        config({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        "(bitsandbytes)",
    ),
    (lambda folder: (folder / "model.safetensors").unlink(), "it has no weights (no *.safetensors)"),
    (put("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer and not the file itself"),
    (put("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    (put("model.safetensors", b""), "model.safetensors is damaged or cut short"),
    (put("model.safetensors", b"junk" * 100), "model.safetensors is damaged or cut short"),
    (cut("model.safetensors", 500), "model.safetensors is damaged or cut short"),
    (cut("model.safetensors", 20_000), "model.safetensors is damaged or cut short"),
    (weights(lambda t: t.pop(NORM)), f"1 weights are missing, first {NORM}"),
    (weights(lambda t: t.update({DOWN: t[DOWN].T.contiguous()})), f"1 weights have another shape .*{DOWN}"),
    (weights(lambda t: t.update({DOWN: t[DOWN][None]})), DOWN),
    (
        weights(lambda t: t.update({STRAY: t[NORM].clone()})),
        f"1 tensors are no part of the network .*: {STRAY}",
    ),
    (
        config({"num_hidden_layers": 2}),
        "18 tensors are no part .*model.layers.2.input_layernorm.* and 15 more",
    ),
    (tokens(40), "40 tokens without a row of the embeddings, the last '<new-39>' with id .*have 320 rows"),
    (padded, "1 tokens without a row of the embeddings, the last '<pad>' with id 320"),
    (config({"max_position_embeddings": 0}), "config.json says max_position_embeddings 0, and a context of"),
    (config({"max_position_embeddings": -8}), "max_position_embeddings -8, and a context of fewer than 16"),
    (config({"max_position_embeddings": 15}), "max_position_embeddings 15, and a context of fewer than 16"),
    (config({"max_position_embeddings": None}), "max_position_embeddings"),
    (put("tokenizer.json", b"{}"), "cannot be used"),
    (put("tokenizer.json", b"{"), "tokenizer.json is no JSON"),
    (put("tokenizer_config.json", b"3"), "tokenizer_config.json holds no JSON object"),
    (put("generation_config.json", b"{"), "generation_config.json is no JSON"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_folder_names_the_file(
    base: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    damage(folder)
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(ModelError, match=pattern) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_an_intact_folder_is_loaded(base: Path) -> None:
    check_source(str(base))
    assert load(base).n_layers == 4


ODD = [
    (
        tokens(2, special_tokens=True),
        "its special tokens <new-0>, <new-1> have no row of the embeddings; a text that spells one out",
    ),
    (
        lambda folder: without(folder, "max_position_embeddings"),
        "config.json does not say the length of the context (max_position_embeddings); 2048 tokens are taken",
    ),
    (
        lambda folder: put_in_tokenizer(folder, {"model_max_length": 128}),
        "config.json says max_position_embeddings 256, and the tokenizer model_max_length 128; texts of",
    ),
]


def without(folder: Path, field: str) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))


def put_in_tokenizer(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(("damage", "line"), ODD, ids=range(len(ODD)))
def test_what_is_odd_and_does_no_harm_is_said(
    base: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    load(folder)
    assert "palimpsest:" not in capsys.readouterr().err
    damage(folder)
    assert generate(load(folder), "The capital of France is", 2)
    assert f"palimpsest: {folder}: {line}" in capsys.readouterr().err


OLD = {
    "gpt2": ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"),
    "gptj": ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"),
    "gpt_neox": ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
    "llama": ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.position_ids"),
}
"""Tensors of published checkpoints that older versions of transformers wrote."""


@pytest.mark.parametrize("kind", OLD)
def test_what_old_checkpoints_hold_beside_weights_is_left_out(kind: str, tmp_path: Path) -> None:
    made = tiny_model(kind)
    made.net.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    weights(lambda t: t.update({name: torch.ones(3) for name in OLD[kind]}))(tmp_path)
    assert load(tmp_path).n_layers == 4
    weights(lambda t: t.update({f"{OLD[kind][0]}.more": torch.ones(3), "stray": torch.ones(3)}))(tmp_path)
    with pytest.raises(ModelError, match=r"no part of the network that config.json describes: .*stray"):
        load(tmp_path)


def test_the_context_has_the_name_that_its_family_gives_it(tmp_path: Path) -> None:
    made = tiny_model("gptj")
    made.net.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    config({"n_positions": 12})(tmp_path)
    with pytest.raises(ModelError, match=r"config.json says n_positions 12, and a context of fewer than 16"):
        load(tmp_path)


def test_more_rows_than_tokens_are_usual(base: Path, tmp_path: Path) -> None:
    """Published embeddings are often rounded up to a multiple of 64."""
    net = transformers.AutoModelForCausalLM.from_pretrained(base)
    net.resize_token_embeddings(384)
    shutil.copytree(base, tmp_path / "model")
    net.save_pretrained(tmp_path / "model")
    assert generate(load(tmp_path / "model"), "The capital of France is", 2)


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99", "cpu:x", ""])
def test_no_such_device(base: Path, device: str) -> None:
    with pytest.raises(ModelError, match=rf"device '{device}' .*Choose one of: cpu"):
        load(base, device=device)


def answer(error: Exception | None, wait: float = 0) -> Callable[[str], None]:
    def probe(name: str) -> None:
        time.sleep(wait)
        if error is not None:
            raise error

    return probe


def of_hub(kind: type[Exception]) -> Exception:
    return kind("no", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("probe", "error", "message"),
    [
        (answer(of_hub(GatedRepoError)), ModelError, "is gated: accept its conditions .*hf auth login"),
        (
            answer(of_hub(RepositoryNotFoundError)),
            UnknownNameError,
            "the hub has none of that id, or only for",
        ),
        (answer(HTTPError("down")), ResourceError, r"the hub cannot be reached \(HTTPError\)"),
        (answer(OSError("no route")), ResourceError, r"cannot be reached \(OSError\)"),
        (answer(None, wait=60), ResourceError, r"cannot be reached \(TimeoutError\)"),
    ],
)
def test_ids_of_the_hub_are_told_apart(
    probe: sources.Probe, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds: an answer that does not come is waited for no longer than PATIENCE."""
    assert sources.PATIENCE < 5
    monkeypatch.setattr(sources, "PATIENCE", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(error, match=message):
        check_source("some/model", probe)


def test_a_model_that_the_hub_has_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    check_source("some/model", answer(None))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"vocab_size": 40, "num_key_value_heads": 2, "head_dim": 8}
OTHERS = {
    "StableLmConfig": ("model.layers", "mlp.down_proj", "model.norm"),
    "CohereConfig": ("model.layers", "mlp.down_proj", "model.norm"),
    "Glm4Config": ("model.layers", "mlp.down_proj", "model.norm"),
    "PersimmonConfig": ("model.layers", "mlp.dense_4h_to_h", "model.final_layernorm"),
    "FalconConfig": ("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "GPTNeoConfig": ("transformer.h", "mlp.c_proj", "transformer.ln_f"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_unknown_architecture_gets_its_row(name: str, tmp_path: Path) -> None:
    """The proposed row is one that works: the edited map leads from the wide state of the MLP back."""
    layers, projection, norm = OTHERS[name]
    options: dict[str, Any] = {**SMALL, "pad_token_id": 0}
    if name == "FalconConfig":
        del options["head_dim"]
        options |= {"ffn_hidden_size": 64}
    if name == "GPTNeoConfig":
        options |= {"attention_types": [[["global"], 2]], "num_layers": 2, "num_heads": 4}
        del options["num_hidden_layers"], options["num_attention_heads"]
    made = getattr(transformers, name)(**options)
    net = without_data(made)
    found = modules_of(net)
    assert (found["layers"], found["value_projection"], found["norm"]) == (layers, projection, norm)
    text = row(made.model_type, found)
    family = eval(text.partition(": ")[2].rstrip(","), {"Family": Family})
    weight = net.get_submodule(f"{family.layers}.0.{family.value_projection}").weight
    assert weight.shape == (32, 64 if "intermediate_size" in made.to_dict() else 128)
    assert net.get_submodule(family.head) is net.get_output_embeddings()
    made.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    message = (
        rf"architecture '{made.model_type}' is not supported; known: .*Add a row to FAMILIES in src/palim"
    )
    with pytest.raises(ModelError, match=message) as error:
        load(tmp_path)
    assert text in str(error.value)


def test_an_architecture_with_a_text_model_inside_gets_its_row(tmp_path: Path) -> None:
    """Gemma 3 from 4B up: the sizes are those of the part that reads text."""
    text = SMALL | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    images = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = transformers.Gemma3Config(
        text_config=text, vision_config=images | {"model_type": "siglip_vision_model", "image_size": 28}
    )
    made.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    inside = "model.language_model"
    expected = replace(
        FAMILIES["gemma3_text"],
        layers=f"{inside}.layers",
        norm=f"{inside}.norm",
        rotary=f"{inside}.rotary_emb",
    )
    with pytest.raises(ModelError, match="architecture 'gemma3' is not supported; known: ") as error:
        load(tmp_path)
    line = next(line for line in str(error.value).splitlines() if line.strip().startswith('"gemma3"'))
    assert eval(line.partition(": ")[2].rstrip(","), {"Family": Family}) == expected


def test_a_mixture_of_experts_is_said_to_have_no_single_map() -> None:
    made = transformers.MixtralConfig(**SMALL, num_local_experts=2)
    assert modules_of(without_data(made))["value_projection"] == ""


SWITCHED = {"opt": {"norm_after": None, "unless": None, "out": None}}
"""Fields that no single model shows: OPT-350M alone has its norms after the sums and narrower embeddings."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_without_its_row_would_get_it_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(kind).net.save_pretrained(tmp_path)
    expected = replace(FAMILIES[kind], **SWITCHED.get(kind, {}))
    monkeypatch.delitem(FAMILIES, kind)
    with pytest.raises(ModelError, match=f"architecture '{kind}' is not supported") as error:
        load(tmp_path)
    line = next(line for line in str(error.value).splitlines() if line.strip().startswith(f'"{kind}"'))
    assert eval(line.partition(": ")[2].rstrip(","), {"Family": Family}) == expected
    assert "Fields for what a configuration switches on and off" in str(error.value)


def test_a_prompt_without_a_token_or_without_room_is_not_continued() -> None:
    from palimpsest.errors import ScoreError

    model = tiny_model("gpt2")
    with pytest.raises(ScoreError, match="prompt '' gives no token, so nothing can be continued"):
        generate(model, "")
    with pytest.raises(
        ScoreError, match=r"needs .* tokens, and the context of tiny-gpt2-0 holds 256; shorten it"
    ):
        generate(model, "word " * 300)
