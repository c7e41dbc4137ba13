"""Families, sites' weights, subject positions, loading and fingerprints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from palimpsest.errors import ModelError, ResourceError, SiteError, UnknownNameError
from palimpsest.memory.behind_norms import passed
from palimpsest.memory.keys import states_at_subjects, subject_hidden, subject_keys
from palimpsest.network import model as model_module
from palimpsest.network.apply import restored
from palimpsest.network.model import (
    FAMILIES,
    Family,
    Site,
    fingerprint,
    generate,
    load,
    read_weight,
    wrap,
    write_weight,
)
from palimpsest.network.tokens import encode, encode_around_subject, pad
from tests.editing import CONTEXTS, EXACT, REQUESTS, double, plain_states
from tests.tiny import BEGIN, NETS, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The mother tongue of Danielle Darrieux is"


def test_every_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(NETS)


@pytest.mark.parametrize("kind", FAMILIES)
def test_orientation(kind: str) -> None:
    """W k + b is the edited map's output at every token, W being (d_v, d_k)."""
    model = double(kind)
    ids = encode(model.tokenizer, PROMPT)
    for layer in range(model.n_layers):
        keys, values = (plain_states(model, ids, Site(layer, part)) for part in ("key", "value"))
        projection: Any = model.projection(layer)
        weight, bias = read_weight(model, layer), projection.bias
        assert weight.shape == (32, NETS[kind][2].get("intermediate_size", 4 * 32))
        expected = weight @ keys.T + (0 if bias is None else bias[:, None])
        torch.testing.assert_close(values.T, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_value_enters_the_layers_output_unchanged(kind: str) -> None:
    """Adding δ to the map's output adds δ to the layer's: a residual of hidden states is one of values.

    Behind a norm it adds what the norm makes of it.
    """
    model = double(kind)
    ids = encode(model.tokenizer, PROMPT)
    before = plain_states(model, ids, Site(1, "hidden"))
    shift = torch.linspace(-1, 1, 32, dtype=torch.float64)
    norm = model.norm_behind(1)
    expected = shift.expand_as(before)
    if norm is not None:
        expected = passed(norm, plain_states(model, ids, Site(1, "before_norm")), expected)
    handle = model.projection(1).register_forward_hook(lambda module, inputs, output: output + shift)
    after = plain_states(model, ids, Site(1, "hidden"))
    handle.remove()
    close = 1e-11 if norm is None else EXACT[kind]
    torch.testing.assert_close(after - before, expected, rtol=close, atol=close)


@pytest.mark.parametrize("kind", FAMILIES)
def test_weights_read_and_written(kind: str) -> None:
    model = tiny_model(kind)
    other = torch.randn(read_weight(model, 2).shape, generator=torch.Generator().manual_seed(1))
    untouched = read_weight(model, 1).clone()
    write_weight(model, 2, other)
    assert torch.equal(read_weight(model, 2), other)
    assert torch.equal(read_weight(model, 1), untouched)
    stored = model.net.state_dict()[model.weight_name(2)]
    assert torch.equal(stored.T if kind == "gpt2" else stored, other)


POSITIONS = [
    ("{} lives in", "Anna Berg", "", "Anna Berg"),
    ("The mother tongue of {} is", "Danielle Darrieux", "", "The mother tongue of Danielle Darrieux"),
    ("It was {}", "Marie Curie", "", "It was Marie Curie"),
    ("It was {}", "Ω", "", "It was Ω"),
    ("The {}'s shore", "Space Needle", "", "The Space Needle"),
    ("{}, in the north", "Rome", "He said {so}. ", "He said {so}. Rome"),
    ("  {}? She lives in", "Anna Berg ", "", "  Anna Berg"),
]


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize(("prompt", "subject", "prefix", "upto"), POSITIONS)
def test_subject_position(bos: bool, prompt: str, subject: str, prefix: str, upto: str) -> None:
    """The index is that of the last token of the text that ends with the subject."""
    tokenizer = tiny_model("llama", bos=bos).tokenizer
    ids, last = encode_around_subject(tokenizer, prompt, subject, prefix)
    assert ids == encode(tokenizer, prefix + prompt.replace("{}", subject))
    assert ids[: last + 1] == encode(tokenizer, upto)
    assert (ids[0] == tokenizer.convert_tokens_to_ids(BEGIN)) == bos


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_states_at_subjects_equal_a_plain_forward(kind: str, bos: bool) -> None:
    """Also though rows are cut after the subject, padded together, and preceded by contexts."""
    model = double(kind, bos=bos)
    for site in (Site(2, "key"), Site(2, "value"), Site(2, "hidden")):
        found = states_at_subjects(model, REQUESTS, site, CONTEXTS)
        for i, request in enumerate(REQUESTS):
            for c, context in enumerate(CONTEXTS):
                ids, last = encode_around_subject(model.tokenizer, request.prompt, request.subject, context)
                expected = plain_states(model, ids, site)[last]
                torch.testing.assert_close(found[i, c], expected, rtol=EXACT[kind], atol=EXACT[kind])


def test_the_bare_prompt_weighs_one_half() -> None:
    model = double("gpt2")
    found = states_at_subjects(model, REQUESTS, Site(1), CONTEXTS)
    expected = 0.5 * found[:, 0] + 0.25 * found[:, 1] + 0.25 * found[:, 2]
    torch.testing.assert_close(subject_keys(model, REQUESTS, 1, CONTEXTS), expected.T)
    torch.testing.assert_close(subject_keys(model, REQUESTS, 1, ("",)), found[:, 0].T)


@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_side_changes_no_state(kind: str) -> None:
    # In float32 the float64 mask of Gemma 2 is infinite, and a place of padding that sees nothing is NaN.
    model = tiny_model(kind) if kind == "gemma2" else double(kind)
    hidden = subject_hidden(model, REQUESTS, 2)
    rows = [encode(model.tokenizer, request.text) for request in REQUESTS]
    sides: dict[str, list[Tensor]] = {}
    for side in ("left", "right"):
        batch = pad(model.tokenizer, rows, side)
        states = model.net(
            batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            output_hidden_states=True,
        ).hidden_states[3]
        sides[side] = [states[i][batch.mask[i]] for i in range(len(rows))]
    for left, right in zip(sides["left"], sides["right"], strict=True):
        torch.testing.assert_close(left, right)
    for i, request in enumerate(REQUESTS):
        last = encode_around_subject(model.tokenizer, request.prompt, request.subject)[1]
        torch.testing.assert_close(sides["left"][i][last], hidden[:, i])


def test_fingerprint_sees_one_bit_and_its_return() -> None:
    for kind in FAMILIES:
        model = tiny_model(kind)
        weight = read_weight(model, 1)
        start, old = fingerprint(model), weight[3, 5].clone()
        assert start == fingerprint(tiny_model(kind))
        weight[3, 5] = torch.nextafter(old, old + 1)
        assert fingerprint(model) != start
        weight[3, 5] = old
        assert fingerprint(model) == start


def test_fingerprint_sees_two_values_change_places() -> None:
    model = tiny_model("llama")
    weight, start = read_weight(model, 1), fingerprint(model)
    for first, second in (((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 0), (1, 1))):
        a, b = weight[first].clone(), weight[second].clone()
        weight[first], weight[second] = b, a
        assert fingerprint(model) != start
        weight[first], weight[second] = a, b
    assert fingerprint(model) == start


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Weights whose bits a fingerprint reads from now on."""
    read: list[Tensor] = []
    plain = model_module._checksum

    def checksum(weight: Tensor) -> list[int]:
        read.append(weight)
        return plain(weight)

    monkeypatch.setattr("palimpsest.network.model._checksum", checksum)
    return read


def test_a_fingerprint_reads_only_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny_model("gpt2"), counted(monkeypatch)
    start = fingerprint(model)
    assert len(read) == len(list(model.net.parameters()))
    read.clear()
    assert fingerprint(model) == start
    assert not read
    with restored(model, [1]):
        write_weight(model, 1, read_weight(model, 1) + 1)  # GPT-2's weight is read through a transposed view
        assert fingerprint(model) != start
        assert [weight.shape for weight in read] == [model.projection(1).weight.shape]
    read.clear()
    assert fingerprint(model) == start
    assert len(read) == 1
    assert fingerprint(model, anew=True) == start
    assert len(read) == 1 + len(list(model.net.parameters()))


def test_writes_that_are_not_counted_are_found_on_request() -> None:
    """Through ``.data`` and NumPy, which share the storage and not the count."""
    model = tiny_model("llama")
    weight = model.projection(1).weight
    start = fingerprint(model)
    weight.data.add_(1)
    moved = fingerprint(model, anew=True)
    weight.detach().numpy()[0] += 1
    assert len({start, moved, fingerprint(model, anew=True)}) == 3


def test_another_tensor_in_the_place_of_a_weight_is_read() -> None:
    model = tiny_model("llama")
    start = fingerprint(model)
    projection = model.projection(1)
    projection.weight = torch.nn.Parameter(projection.weight + 1, requires_grad=False)
    assert fingerprint(model) != start
    kept = fingerprint(model)
    model.net.to(torch.bfloat16)
    assert fingerprint(model) not in (start, kept)
    with torch.inference_mode():
        projection.weight = torch.nn.Parameter(projection.weight + 1, requires_grad=False)
        before = fingerprint(model)
        projection.weight.add_(1)
        assert fingerprint(model) != before


def test_fingerprint_tells_tokenizers_apart() -> None:
    """Equal weights read through another tokenizer have other keys, so no cached result may be shared."""
    assert fingerprint(tiny_model("llama")) != fingerprint(tiny_model("llama", bos=True))
    assert fingerprint(tiny_model("llama", seed=0)) != fingerprint(tiny_model("llama", seed=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fingerprint_of_other_dtypes(dtype: torch.dtype) -> None:
    model = tiny_model("gpt2")
    single = fingerprint(model)
    model.net.to(dtype)
    start = fingerprint(model)
    assert start != single
    read_weight(model, 0)[0, 0] *= 2
    assert fingerprint(model) != start


@pytest.mark.parametrize("kind", FAMILIES)
def test_load_from_a_folder(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    model.net.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.name == str(tmp_path)
    assert loaded.family is FAMILIES[kind]
    assert fingerprint(loaded) == fingerprint(model)
    assert encode(loaded.tokenizer, PROMPT) == encode(model.tokenizer, PROMPT)
    assert not loaded.net.training
    assert not any(p.requires_grad for p in loaded.net.parameters())
    assert load(tmp_path, dtype=torch.bfloat16).net.dtype == torch.bfloat16


def test_generate_returns_the_prompt_first() -> None:
    for kind in FAMILIES:
        model = tiny_model(kind, bos=kind == "llama")
        text = generate(model, PROMPT, max_new_tokens=5)
        assert text.startswith(PROMPT)
        assert len(text) > len(PROMPT)
        assert text == generate(model, PROMPT, max_new_tokens=5)


def test_unknown_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("/no/such/folder", "not a name!", "", "a/b/c"):
        with pytest.raises(UnknownNameError, match=r"unknown model .* choose one of: .*smollm2-135m"):
            load(name)
    with pytest.raises(
        ResourceError, match=r"'no/such-model': no folder .* is switched off \(HF_HUB_OFFLINE"
    ):
        load("no/such-model")


def _t5(folder: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 16,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)


def _strange(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "strange"}')


def _no_tokenizer(folder: Path) -> None:
    tiny_model("llama").net.save_pretrained(folder)


def _truncated(folder: Path) -> None:
    _no_tokenizer(folder)
    tiny_model("llama").tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_t5, "Unrecognized configuration class.*known: llama, gpt2, gptj"),
        (_strange, "it has no weights .*Download the folder again"),
        (_no_tokenizer, "known: llama, gpt2, gptj"),
        (_truncated, "model.safetensors is damaged or cut short .*Download the folder again"),
    ],
)
def test_a_folder_that_is_no_usable_model(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ModelError, match=f"cannot be used as a causal language model.*{reason}"):
        load(tmp_path)


def test_unsupported_architecture() -> None:
    net: Any = tiny_model("llama").net
    net.config.model_type = "strange"
    with pytest.raises(ModelError, match="'strange' is not supported; known: llama, gpt2, gptj, qwen2"):
        wrap(net, None, "strange")


def test_a_family_row_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "llama", Family("model.layers", "mlp.c_proj", "model.norm"))
    with pytest.raises(ModelError, match=r"family row of 'llama' does not fit.*c_proj"):
        tiny_model("llama")


@pytest.mark.parametrize("layer", [-1, 4])
def test_layer_out_of_range(layer: int) -> None:
    model = tiny_model("gpt2")
    for use in (model.projection, model.weight_name, lambda index: read_weight(model, index)):
        with pytest.raises(SiteError, match=rf"layer {layer} does not exist; tiny-gpt2-0 has layers 0 to 3"):
            use(layer)
