"""GGUF files and PEFT adapters: read or merged where a library is there, else named with what to do."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy
import pytest
import torch

from palimpsest.errors import ModelError
from palimpsest.network import formats
from palimpsest.network.formats import source_of
from palimpsest.network.model import EditableModel, fingerprint, load, read_weight
from palimpsest.network.tokens import encode
from tests.tiny import tiny_model
from tests.workbench.edits import tiny_folder

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(model: EditableModel, path: Path) -> None:
    """A tiny LLaMA as llama.cpp writes it: float32, with the rows of queries and keys in its own order."""
    config, writer = model.net.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(state["vocab"], key=state["vocab"].__getitem__))
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_eos_token_id(model.tokenizer.eos_token_id)
    writer.add_bos_token_id(model.tokenizer.bos_token_id)
    for name, weight in model.net.state_dict().items():
        part, _, _ = name.rpartition(".")
        pieces = part.split(".", 3)
        called = WHOLE.get(part) or f"blk.{pieces[2]}.{PARTS[pieces[3]]}"
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        kind = called.rpartition(".")[2]
        if kind in heads:
            weight = weight.unflatten(0, (heads[kind], 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{called}.weight", numpy.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf"
    write_gguf(tiny_model("llama"), path)
    return path


def test_a_gguf_file_is_loaded_by_its_path_or_its_folder(file: Path) -> None:
    model, expected = load(file), tiny_model("llama")
    assert fingerprint(load(file.parent)) == fingerprint(model)
    for layer in range(4):
        assert torch.equal(read_weight(model, layer), read_weight(expected, layer))
    text = "The mother tongue of Danielle Darrieux is"
    ids = encode(expected.tokenizer, text)
    assert encode(model.tokenizer, text)[-len(ids) :] == ids
    batch = torch.tensor([ids])
    torch.testing.assert_close(model.net(batch).logits, expected.net(batch).logits)


def test_several_gguf_files_are_listed(file: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes()[:64])
    with pytest.raises(ModelError, match=r"holds 2 GGUF files, a\.gguf, b\.gguf; give the path of one of"):
        load(tmp_path)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"a\.gguf is no GGUF file: it begins with b'<htm'; download it"):
        load(tmp_path / "a.gguf")


def test_a_damaged_gguf_is_one_message(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="cannot be used as a causal language model"):
        load(tmp_path / "a.gguf")


def test_without_the_package_a_gguf_names_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"is a GGUF file, which is read by the package gguf.*pip install gguf"
    ):
        load(file)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    base = tiny_folder(tmp_path / "base")
    about = {"base_model_name_or_path": str(base), "peft_type": "LORA", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_an_adapter_is_said_to_be_one(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"is a PEFT adapter \(LORA\) and no model: it holds changes of"
    ) as error:
        load(adapter)
    for part in ("pip install peft", "merge_and_unload()", "save_pretrained('merged')", str(adapter)):
        assert part in str(error.value)


def fake_peft(monkeypatch: pytest.MonkeyPatch, merge: Any) -> None:
    """A module in the place of peft, whose adapters do to a network what ``merge`` does."""
    made: Any = ModuleType("peft")

    class PeftModel:
        def __init__(self, net: Any, folder: str) -> None:
            self.net, self.folder = net, folder

        @classmethod
        def from_pretrained(cls, net: Any, folder: str) -> "PeftModel":
            return cls(net, folder)

        def merge_and_unload(self) -> Any:
            merge(self.net, self.folder)
            return self.net

    made.PeftModel = PeftModel
    monkeypatch.setitem(sys.modules, "peft", made)
    monkeypatch.setattr(formats, "find_spec", lambda name: made)


def test_an_adapter_is_merged_where_peft_is_installed(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(net: Any, folder: str) -> None:
        assert folder == str(adapter)
        with torch.no_grad():
            net.model.layers[1].mlp.down_proj.weight.add_(1)

    fake_peft(monkeypatch, merge)
    model, base = load(adapter), tiny_model("llama")
    torch.testing.assert_close(read_weight(model, 1), read_weight(base, 1) + 1)
    assert torch.equal(read_weight(model, 2), read_weight(base, 2))
    assert model.name == str(adapter)
    assert not any(weight.requires_grad for weight in model.net.parameters())


def test_an_adapter_that_does_not_fit(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(net: Any, folder: str) -> None:
        raise RuntimeError("size mismatch\nmore")

    fake_peft(monkeypatch, merge)
    message = r"cannot be merged into its model \(RuntimeError: size mismatch\); check that adapter_config"
    with pytest.raises(ModelError, match=message):
        load(adapter)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_without_its_model(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(
        ModelError, match="does not name the model it belongs to; write it there as base_model"
    ):
        load(adapter)


def test_a_merged_folder_and_names_are_left_alone(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "merged")
    (folder / "adapter_config.json").write_text("{}")  # left over beside a whole model
    for name in (str(folder), "some/model", str(tmp_path / "nowhere.gguf")):
        assert source_of(name) == formats.Source(name)
    assert fingerprint(load(folder)) == fingerprint(tiny_model("llama"))
