"""Second moments: streaming, padding, special tokens, files and the cache."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from palimpsest import resources
from palimpsest.errors import NonFiniteError, ResourceError, ShapeError
from palimpsest.memory import moments as moments_module
from palimpsest.memory.moments import SecondMoment, collect, key_statistics
from palimpsest.network import activations
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import EditableModel, Site, read_weight
from palimpsest.network.tokens import encode, pad, token_windows
from palimpsest.resources import held_out_texts, statistics_texts
from tests.editing import KINDS, double, plain_states, stub_texts, texts
from tests.problems import gaussian
from tests.tiny import BEGIN, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


@given(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 999))
def test_streamed_is_batch_is_merged(d_k: int, sizes: list[int], seed: int) -> None:
    keys = gaussian(seed, d_k, sum(sizes))
    streamed, merged = SecondMoment.empty(d_k), SecondMoment.empty(d_k)
    for part in keys.split(sizes, 1):
        streamed.add_keys(part)
        merged = merged.merge(SecondMoment.empty(d_k).add_keys(part))
    assert streamed.count == merged.count == keys.shape[1]
    for moment in (streamed, merged):
        torch.testing.assert_close(moment.total, keys @ keys.T, **EXACT)
        if moment.count:
            torch.testing.assert_close(moment.value, keys @ keys.T / keys.shape[1], **EXACT)


def test_by_hand() -> None:
    moment = SecondMoment.empty(2).add_keys(torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
    assert moment.total.tolist() == [[10, 2], [2, 4]]
    assert moment.value.tolist() == [[5, 1], [1, 2]]
    assert moment.total.dtype == torch.float64


def test_half_precision_keys_are_summed_in_float64() -> None:
    """A sum of 4097 ones stops at 2048 in float16; 1e-10 beside 1 is lost in float32."""
    keys = torch.ones(1, 4097, dtype=torch.float16)
    assert SecondMoment.empty(1).add_keys(keys).total.item() == 4097
    total = SecondMoment.empty(1).add_keys(torch.tensor([[1.0, 1e-5]])).total.item()
    assert total - 1 == pytest.approx(1e-10, rel=1e-4)


def test_no_keys_have_no_mean() -> None:
    with pytest.raises(ShapeError, match="second moment of no keys is undefined"):
        _ = SecondMoment.empty(3).value


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_keys_add_nothing(bad: float) -> None:
    moment = SecondMoment.empty(2).add_keys(torch.ones(2, 1))
    with pytest.raises(NonFiniteError, match="nothing was added"):
        moment.add_keys(torch.tensor([[1.0, bad], [0.0, 1.0]]))
    assert moment.count == 1
    assert moment.total.tolist() == [[1, 1], [1, 1]]


def test_merging_other_widths() -> None:
    with pytest.raises(ShapeError, match="widths differ: 2 and 3"):
        SecondMoment.empty(2).merge(SecondMoment.empty(3))


def test_merging_keeps_each_source_once() -> None:
    one, two = SecondMoment.empty(1, "a"), SecondMoment.empty(1, "b")
    assert one.merge(two).source == "a + b"
    assert one.merge(SecondMoment.empty(1, "a")).merge(SecondMoment.empty(1)).source == "a"


def test_save_and_load(tmp_path: Path) -> None:
    moment = SecondMoment.empty(4, "some texts").add_keys(gaussian(1, 4, 9))
    moment.save(tmp_path / "m.safetensors")
    loaded = SecondMoment.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded.total, moment.total)
    assert (loaded.count, loaded.source) == (9, "some texts")


def test_damaged_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ResourceError, match=r"m\.safetensors is damaged .*No such file"):
        SecondMoment.load(path)
    SecondMoment.empty(4).add_keys(gaussian(1, 4, 9)).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ResourceError, match=r"m\.safetensors is damaged .*delete it"):
        SecondMoment.load(path)
    save_file({"other": torch.ones(1)}, path)
    with pytest.raises(ResourceError, match=r"holds no second moment; collect it with key_statistics"):
        SecondMoment.load(path)


def expected_moment(model: EditableModel, windows: list[list[int]], layer: int) -> torch.Tensor:
    """Σ k kᵀ, one window at a time, no padding."""
    keys = torch.cat([plain_states(model, ids, Site(layer)) for ids in windows])
    return keys.T @ keys


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_padding_is_never_counted(kind: str, batch_size: int) -> None:
    model = double(kind)
    windows = [encode(model.tokenizer, text) for text in texts(6)] + [[7]]
    moments = collect(model, [0, 2], windows, batch_size)
    assert set(moments) == {0, 2}
    for layer, moment in moments.items():
        assert moment.count == sum(map(len, windows))
        torch.testing.assert_close(moment.total, expected_moment(model, windows, layer), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_side_gives_the_same_moment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(kind)
    windows = [encode(model.tokenizer, text) for text in texts(6)]
    right = collect(model, [1], windows)[1]
    monkeypatch.setattr(moments_module, "pad", lambda tokenizer, rows: pad(tokenizer, rows, "left"))
    left = collect(model, [1], windows)[1]
    assert left.count == right.count
    torch.testing.assert_close(left.total, right.total, rtol=1e-9, atol=1e-9)


def test_special_tokens_are_those_the_tokenizer_puts_before_a_text() -> None:
    """One begin token a text, in its first window only, counted like every other token."""
    model = double("llama", bos=True)
    some = texts(3)
    begin = model.tokenizer.convert_tokens_to_ids(BEGIN)
    total = sum(len(encode(model.tokenizer, text)) for text in some)
    windows = token_windows(model.tokenizer, some, total, window=8)
    assert list(chain(*windows)) == list(chain(*(encode(model.tokenizer, text) for text in some)))
    assert sum(window.count(begin) for window in windows) == len(some)
    assert all(begin not in window[1:] for window in windows)
    assert max(map(len, windows)) == 8
    moment = collect(model, [1], windows)[1]
    assert moment.count == total
    torch.testing.assert_close(moment.total, expected_moment(model, windows, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("tokens", [1, 8, 9, 50])
def test_exactly_as_many_tokens_as_asked_for(tokens: int) -> None:
    model = tiny_model("llama")
    moment = key_statistics(model, [0], tokens, texts(20), window=8)[0]
    assert moment.count == tokens


@pytest.mark.usefixtures("own_cache")
def test_too_few_tokens() -> None:
    model = tiny_model("llama")
    held = len(encode(model.tokenizer, "Rome is"))
    with pytest.raises(ShapeError, match=rf"the texts hold {held} tokens, 100 were asked for; ask for fewer"):
        key_statistics(model, [0], 100, ["Rome is"])


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every forward pass."""
    passes: list[int] = []
    run = activations.run_body

    def counted(model: EditableModel, *args: object, **kwargs: object) -> object:
        passes.append(1)
        return run(model, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(activations, "run_body", counted)
    return passes


@pytest.mark.usefixtures("own_cache")
def test_a_cached_moment_needs_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = tiny_model("gpt2"), count_passes(monkeypatch)
    first = key_statistics(model, [0, 1], 300, texts())
    made = len(passes)
    assert made > 0
    again = key_statistics(model, [1, 0], 300, texts())
    assert len(passes) == made
    for layer in (0, 1):
        assert torch.equal(again[layer].total, first[layer].total)
        assert (again[layer].count, again[layer].source) == (300, first[layer].source)
    assert list(key_statistics(model, [1, 2], 300, texts())) == [1, 2]
    assert made < len(passes)


@pytest.mark.usefixtures("own_cache")
def test_every_condition_has_its_own_entry(own_cache: Path) -> None:
    model = tiny_model("llama")
    other = tiny_model("llama", seed=1)
    wide = tiny_model("llama")
    wide.net.double()
    for number, make in enumerate(
        [
            lambda: key_statistics(model, [1], 100, texts()),
            lambda: key_statistics(model, [1], 101, texts()),
            lambda: key_statistics(model, [1], 100, texts(seed=1)),
            lambda: key_statistics(model, [1], 100, texts(), window=16),
            lambda: key_statistics(model, [2], 100, texts()),
            lambda: key_statistics(other, [1], 100, texts()),
            lambda: key_statistics(wide, [1], 100, texts()),
        ]
    ):
        make()
        assert len(list(own_cache.rglob("*.safetensors"))) == number + 1


@pytest.mark.usefixtures("own_cache")
def test_an_edited_model_has_its_own_entry() -> None:
    model = tiny_model("llama")
    before = key_statistics(model, [1], 100, texts())[1].total
    delta = torch.full_like(read_weight(model, 0), 0.1, dtype=torch.float64)
    with installed(model, WeightDelta({0: delta})):
        assert not torch.allclose(key_statistics(model, [1], 100, texts())[1].total, before)
    assert torch.equal(key_statistics(model, [1], 100, texts())[1].total, before)


def test_articles_for_statistics_and_held_out_ones_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    articles = [f"article {i}" for i in range(7)]
    monkeypatch.setattr(resources, "wikipedia_articles", lambda: articles)
    assert sorted(statistics_texts() + held_out_texts()) == articles
    assert len(statistics_texts()) - len(held_out_texts()) in (0, 1)


@pytest.mark.usefixtures("own_cache")
def test_the_default_texts_are_those_for_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    model = tiny_model("llama")
    default = key_statistics(model, [1], 200)[1]
    assert torch.equal(default.total, key_statistics(model, [1], 200, texts())[1].total)
    assert default.source.startswith("wikipedia-sample")


def test_the_number_of_cores_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "WINDOWS", 2)
    model = tiny_model("llama")
    windows = [encode(model.tokenizer, text) for text in texts(9)]
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(collect(model, [0, 2], windows, batch_size=4))
    torch.set_num_threads(threads)
    for layer in (0, 2):
        assert torch.equal(found[0][layer].total, found[1][layer].total)


@given(d=st.integers(1, 40), rows=st.integers(1, 40))
def test_half_of_a_moment_is_summed_and_mirrored(d: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "ROWS", rows)
        keys = gaussian(d, d, 7)
        total = SecondMoment.empty(d).add_keys(keys).add_keys(keys).total
    torch.testing.assert_close(total, 2 * keys.double() @ keys.double().T)
