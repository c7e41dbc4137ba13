"""Drift against a plain twin with whole logits, and at the ends of its range."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from palimpsest.errors import ModelError, NonFiniteError, ScoreError, ShapeError
from palimpsest.evaluation import drift as module
from palimpsest.evaluation.drift import Drift, Reference, drift, reference
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import EditableModel, read_weight, write_weight
from palimpsest.network.tokens import encode
from palimpsest.results.intervals import bootstrap_mean
from tests.editing import KINDS, texts
from tests.tiny import END, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "module_cache")

WINDOW, TOKENS = 16, 240  # 15 windows: two batches in the fast path


def noise(model: EditableModel, size: float, layer: int = 1) -> WeightDelta:
    generator = torch.Generator().manual_seed(7)
    shape = read_weight(model, layer).shape
    return WeightDelta({layer: size * torch.randn(shape, generator=generator, dtype=torch.float64)})


def plain_logits(model: EditableModel, found: Reference) -> list[Tensor]:
    """Whole logits (t - 1, vocabulary) of one window at a time, by the network's own forward pass."""
    with torch.no_grad():
        return [model.net(input_ids=ids[None]).logits[0, :-1].double() for ids in found.ids]


def plain(before: list[Tensor], now: list[Tensor], found: Reference) -> dict[str, list[float]]:
    """The twin: means over each window, by the formulas."""
    rows: dict[str, list[float]] = {"nll": [], "nll_before": [], "agreement": [], "kl": []}
    for p, q, ids in zip(before, now, found.ids, strict=True):
        log_p, log_q = p.log_softmax(1), q.log_softmax(1)
        steps = range(len(ids) - 1)
        rows["nll"].append(float(-sum(log_q[j, ids[j + 1]] for j in steps) / len(steps)))
        rows["nll_before"].append(float(-sum(log_p[j, ids[j + 1]] for j in steps) / len(steps)))
        rows["agreement"].append(float((p.argmax(1) == q.argmax(1)).double().mean()))
        rows["kl"].append(float((log_p.exp() * (log_p - log_q)).sum(1).mean()))
    return rows


@pytest.mark.parametrize("at_once", [2**23, 1000], ids=["one piece", "pieces of three"])
@pytest.mark.parametrize("bos", [False, True], ids=["", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_drift_equals_the_plain_twin(
    kind: str, bos: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    model = tiny_model(kind, seed=3, bos=bos)
    found = reference(model, TOKENS, WINDOW, texts())
    before = plain_logits(model, found)
    with installed(model, noise(model, 0.1)):
        expected = plain(before, plain_logits(model, found), found)
        got = drift(model, found)
    for name, values in expected.items():
        np.testing.assert_allclose(got.windows[name], values, atol=1e-5, rtol=0)
    assert got.perplexity == pytest.approx(math.exp(np.mean(expected["nll"])), rel=1e-5)
    assert got.perplexity_before == pytest.approx(math.exp(np.mean(expected["nll_before"])), rel=1e-5)
    assert got.agreement == pytest.approx(np.mean(expected["agreement"]))
    assert got.kl == pytest.approx(np.mean(expected["kl"]), abs=1e-5)
    assert got.tokens == found.tokens == got.windows["tokens"].sum() == 15 * 15
    assert got.windows["window"].tolist() == list(range(15))
    assert 0.05 < got.agreement < 0.95, "the edit should change some predictions and leave others"
    assert got.kl > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_an_unedited_model_has_not_moved_at_all(kind: str) -> None:
    model = tiny_model(kind, seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    same = drift(model, found)
    assert same.agreement == 1
    assert same.kl <= 1e-6
    assert same.perplexity == same.perplexity_before == pytest.approx(float(found.nll.mean().exp()))
    with installed(model, noise(model, 0.3)):
        assert drift(model, found).agreement < 1, "a moved model should be seen"
    again = drift(model, found)
    assert (again.agreement, again.perplexity) == (1, same.perplexity)


def test_perplexity_before_does_not_depend_on_the_edit() -> None:
    model = tiny_model("llama", seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    with installed(model, noise(model, 1.0)):
        edited = drift(model, found)
    assert edited.perplexity_before == drift(model, found).perplexity
    assert edited.perplexity != edited.perplexity_before


@pytest.mark.parametrize("kind", KINDS)
def test_larger_edits_move_a_model_further(kind: str) -> None:
    model = tiny_model(kind, seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    moved: list[Drift] = []
    for size in (0.0, 0.01, 0.1, 1.0):
        with installed(model, noise(model, size)):
            moved.append(drift(model, found))
    assert [one.kl for one in moved] == sorted(one.kl for one in moved)
    assert [one.agreement for one in moved] == sorted((one.agreement for one in moved), reverse=True)


@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, size) for kind in KINDS for size in (1e6, 1e15)), ("llama", 1e36)]
)
def test_a_collapsed_model_is_measured_not_refused(kind: str, size: float) -> None:
    model = tiny_model(kind, seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    with installed(model, noise(model, size, layer=3)):
        got = drift(model, found)
    assert got.perplexity > 50
    assert got.agreement < 0.1
    assert np.isfinite(got.windows[["nll", "kl"]].to_numpy()).all()


def test_activations_beyond_float32_are_named() -> None:
    """GPT-2's LayerNorm subtracts a mean from what has overflown: finite weights, logits not a number."""
    model = tiny_model("gpt2", seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    with (
        installed(model, noise(model, 1e20, layer=3)),
        pytest.raises(NonFiniteError, match=r"gives NaN in 15 of 15 windows .* or its activations overflow"),
    ):
        drift(model, found)


def rescaled(model: EditableModel, factor: float) -> None:
    """Multiply the final norm's gain, and so every logit."""
    model.net.get_submodule(model.family.norm).weight.data.mul_(factor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("factor", "endless"), [(100, False), (1e3, True), (1e25, True), (8e37, True)])
def test_a_perplexity_beyond_float64_is_inf(kind: str, factor: float, endless: bool) -> None:
    """Logits as large as you like, the last ones infinite, give a finite NLL and no exception."""
    model = tiny_model(kind, seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    rescaled(model, factor)
    logits = torch.stack(plain_logits(model, found))
    assert bool(logits.isinf().any()) == (factor == 8e37)
    got = drift(model, found)
    assert got.perplexity > 1e50
    assert math.isinf(got.perplexity) == endless
    assert np.isfinite(got.windows["nll"]).all()
    assert np.isfinite(got.windows["kl"]).all()
    assert got.ratio(0).mean > 1e50


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_named(kind: str) -> None:
    model = tiny_model(kind, seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    write_weight(model, 1, torch.full_like(read_weight(model, 1), float("nan")))
    message = rf"tiny-{kind}-3 gives NaN in 15 of 15 windows of text, first 0: .* undo the last edit"
    with pytest.raises(NonFiniteError, match=message):
        drift(model, found)
    with pytest.raises(NonFiniteError, match=message):
        reference(model, TOKENS, WINDOW, texts())


def test_a_model_with_another_head_is_refused() -> None:
    model = tiny_model("llama", seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    head = model.net.get_submodule(model.family.head)
    head.weight.data[5] += 1.0
    with pytest.raises(
        ModelError, match=r"head of tiny-llama-3 is not the one .* NLL differs by up to .* nats"
    ):
        drift(model, found)
    with pytest.raises(ModelError, match=r"tiny-gpt2-0 is not the one .*reference of tiny-llama-3\); make a"):
        drift(tiny_model("gpt2"), found)


def test_a_model_of_another_width_is_refused() -> None:
    model = tiny_model("llama", seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    narrow = Reference(found.ids, found.hidden[..., :8], found.nll, "narrow")
    with pytest.raises(ModelError, match=r"\(width 32, not 8; reference of narrow\)"):
        drift(model, narrow)


def test_the_ratio_is_paired_over_windows() -> None:
    model = tiny_model("gpt2", seed=3)
    found = reference(model, TOKENS, WINDOW, texts())
    with installed(model, noise(model, 0.3)):
        got = drift(model, found)
    ratio = got.ratio(seed=1)
    assert ratio.mean == pytest.approx(got.perplexity / got.perplexity_before)
    assert ratio.low < ratio.mean < ratio.high
    assert ratio.n == 15
    log = bootstrap_mean(got.windows["nll"] - got.windows["nll_before"], seed=1)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(log.low), math.exp(log.high)))
    with pytest.raises(ScoreError, match="two or more values"):
        drift(model, reference(model, 16, 16, texts())).ratio(0)


def test_windows_are_whole_and_taken_in_turn() -> None:
    model = tiny_model("llama")
    long, short, stub = "Anna Berg " * 60, "The capital of France " * 4, "Rome"
    long_ids, short_ids = (encode(model.tokenizer, text) for text in (long, short))
    assert len(long_ids) > 48
    assert 16 <= len(short_ids) < 48
    found = reference(model, 50, 16, [stub, long, short])
    assert found.ids.tolist() == [
        long_ids[:16],
        short_ids[:16],
        long_ids[16:32],
    ]
    assert found.hidden.shape == (3, 15, 32)
    assert found.nll.shape == (3, 15)


def test_order_of_texts_is_order_of_windows_and_nothing_else() -> None:
    model = tiny_model("llama", seed=3)
    some = [text for text in texts(40) if len(encode(model.tokenizer, text)) >= 16][:9]
    one, other = (reference(model, 9 * 16, 16, order) for order in (some, some[::-1]))
    with installed(model, noise(model, 0.3)):
        forward, backward = drift(model, one), drift(model, other)
    assert forward.perplexity == pytest.approx(backward.perplexity, rel=1e-5)
    assert forward.kl == pytest.approx(backward.kl, abs=1e-6)
    np.testing.assert_allclose(forward.windows["kl"], backward.windows["kl"][::-1], atol=1e-6)


def test_default_texts_are_held_out_and_lists_and_headings_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    prose = "Marie Curie plays the piano and works in the field of physics in the city of Paris. " * 3
    entries = "\n".join(["Rome or Paris may refer to:"] + ["Rome, in Italy"] * 40)
    just, short = "x" * module.LINE, "y" * (module.LINE - 1)
    article = "\n".join(["Life", just, short, prose])
    monkeypatch.setattr(module, "held_out_texts", lambda: [entries, article])
    found = reference(model, 32, 32)
    assert found.ids.tolist() == [encode(model.tokenizer, f"{just}\n{prose}")[:32]]
    chosen = reference(model, 32, 32, [entries])
    assert chosen.ids[0].tolist() == encode(model.tokenizer, entries)[:32], "own texts are taken as they are"


def test_too_little_text_and_numbers_without_sense() -> None:
    model = tiny_model("llama")
    with pytest.raises(
        ShapeError, match="the texts hold 0 whole windows of 16 tokens, 2 were asked for; ask"
    ):
        reference(model, 32, 16, ["Rome"])
    for tokens, window in ((16, 1), (15, 16), (16, 0)):
        with pytest.raises(ShapeError, match=f"{tokens} tokens in windows of {window} hold no prediction; a"):
            reference(model, tokens, window, texts())


@pytest.mark.parametrize("act", [lambda m: reference(m, TOKENS, WINDOW, texts()), None])
def test_the_model_is_left_as_it_was(act: Callable[[EditableModel], object] | None) -> None:
    model = tiny_model("gpt2", seed=3)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = reference(model, TOKENS, WINDOW, texts())
    (act or (lambda m: drift(m, found)))(model)
    assert all(torch.equal(before[name], value) for name, value in model.net.state_dict().items())
    assert not found.hidden.requires_grad
    assert END not in model.tokenizer.decode(found.ids[0])


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_reads_wikipedia() -> None:
    from palimpsest.network.model import load

    model = load("smollm2-135m")
    found = reference(model, 512)
    got = drift(model, found)
    assert (got.agreement, got.kl) == (1, 0)
    assert 10 < got.perplexity < 40  # about 18 here; noise would be tens of thousands
    with installed(model, noise(model, 1e3, layer=10)):
        collapsed = drift(model, found)
    assert collapsed.perplexity > 1e4
    assert collapsed.agreement < 0.05


def test_a_reference_is_made_once_for_the_same_weights_and_windows(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    first = reference(model, TOKENS, WINDOW, texts())
    monkeypatch.setattr(module, "run_body", None)  # to read again would fail
    again = reference(model, TOKENS, WINDOW, texts())
    for name in ("ids", "hidden", "nll"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    for model_, tokens in ((model, TOKENS // 2), (tiny_model("llama", seed=1), TOKENS)):
        with pytest.raises(TypeError):
            reference(model_, tokens, WINDOW, texts())
    (path,) = own_cache.rglob("*.safetensors")
    path.write_bytes(b"")
    with pytest.raises(TypeError):
        reference(model, TOKENS, WINDOW, texts())


def test_the_number_of_cores_changes_no_bit(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 1000)
    model, found = tiny_model("llama"), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        monkeypatch.setenv("PALIMPSEST_CACHE", str(own_cache / str(threads)))
        start = reference(model, TOKENS, WINDOW, texts())
        with installed(model, noise(model, 0.3)):
            found.append((start.nll, drift(model, start).windows["kl"].to_numpy()))
    torch.set_num_threads(1)
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1] == found[1][1]).all()
