"""Optimised values against a plain twin: one request, whole unpadded forward passes, a hook that adds δ."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.errors import NonFiniteError, OutOfMemoryError, SiteError
from palimpsest.memory import values as targets_module
from palimpsest.memory.optimisation import FEWEST_POSITIONS, Optimisation, _Chunk, by_work
from palimpsest.memory.readout import divergence
from palimpsest.memory.settings import CappedTargets, TargetSettings
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.model import FAMILIES, EditableModel, Site, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.paths import cache_dir
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, REQUESTS, double, every_family, plain_states, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
SHORT = TargetSettings(steps=8, lr=0.2)


class Twin:
    """The optimisation of one request as a reader would write it, with nothing shared or batched."""

    def __init__(
        self,
        model: EditableModel,
        request: EditRequest,
        layer: int,
        settings: TargetSettings,
        contexts: Sequence[str],
    ) -> None:
        self.model, self.request, self.layer = model, request, layer
        self.settings, self.contexts = settings, contexts
        self.target = encode_target(model.tokenizer, request.target)
        ids, end = self.row(request.prompt, "")
        self.initial = plain_states(model, ids, Site(layer, settings.reference))[end]
        self.delta = torch.zeros_like(self.initial, requires_grad=True)
        self.losses: list[float] = []

    def row(self, prompt: str, context: str) -> tuple[list[int], int]:
        """Ids of a prompt behind a context, and where its subject ends."""
        before, after = prompt.split("{}")
        upto = context + before + self.request.subject
        encoded = encode(self.model.tokenizer, upto + after)
        return encoded, len(encode(self.model.tokenizer, upto)) - 1

    def log_p(self, ids: list[int], end: int) -> Tensor:
        """Log-probabilities (t, vocabulary), δ added at one position of the layer's or the map's output."""
        model, settings = self.model, self.settings
        kept: list[Tensor] = []

        def add(module: Any, inputs: Any, output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            moved = whole.clone()
            place = moved.view(-1, moved.shape[-1])  # OPT's map gives (t, d_v)
            place[end] = place[end] + self.delta
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        def keep(module: Any, inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        hidden = settings.reference == "hidden"
        place = model.layer(self.layer) if hidden else model.projection(self.layer)
        last = settings.loss_layer if settings.loss_layer is not None else model.n_layers - 1
        handles = [place.register_forward_hook(add), model.layer(last).register_forward_hook(keep)]
        logits = model.net(input_ids=torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        if settings.loss_layer is not None:
            norm = model.net.get_submodule(model.family.norm)
            logits = model.net.lm_head(norm(kept[0]))[0]
            cap = getattr(model.net.config, "final_logit_softcapping", None)
            logits = logits if cap is None else cap * (logits / cap).tanh()
        return logits.log_softmax(1)

    def nll(self) -> Tensor:
        """Mean over contexts of the mean over the target's tokens."""
        total = torch.zeros(())
        for context in self.contexts:
            ids, end = self.row(self.request.prompt, context)
            log_p = self.log_p(ids + self.target[:-1], end)
            at = [log_p[len(ids) - 1 + j, token] for j, token in enumerate(self.target)]
            total = total - torch.stack(at).mean()
        return total / len(self.contexts)

    def run(self) -> "Twin":
        """At most ``steps`` losses and one update fewer."""
        settings, adam = self.settings, torch.optim.Adam([self.delta], lr=self.settings.lr)
        upto, end = self.row("{} is a", "")
        upto = upto[: end + 1]
        start = self.log_p(upto, end)[end].detach()
        for step in range(settings.steps):
            log_p = self.log_p(upto, end)[end]
            p, q = (log_p, start) if settings.kl_over == "edited" else (start, log_p)
            kl = (p.exp() * (p - q)).sum()
            decay = self.delta.norm() / self.initial.norm() ** 2
            loss = self.nll() + settings.kl * kl + settings.decay * decay
            self.losses.append(float(loss.detach()))
            if loss < settings.stop_below or step == settings.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            longest = settings.clamp * self.initial.norm()
            with torch.no_grad():
                if self.delta.norm() > longest:
                    self.delta.mul_(longest / self.delta.norm())
        return self


def agree(
    model: EditableModel,
    settings: TargetSettings,
    contexts: Sequence[str] = CONTEXTS,
    requests: Sequence[EditRequest] = REQUESTS,
    layer: int = 1,
    chunk: int = 16,
) -> tuple[Targets, list[Twin]]:
    """Fast path and twins, compared in every number both have."""
    found = optimise_targets(model, requests, layer, settings, contexts, chunk)
    twins = [Twin(model, request, layer, settings, contexts).run() for request in requests]
    for i, twin in enumerate(twins):
        losses = found.losses[i]
        assert torch.isfinite(losses).sum() == len(twin.losses)
        torch.testing.assert_close(losses[: len(twin.losses)], torch.tensor(twin.losses), **CLOSE)
        torch.testing.assert_close(found.deltas[:, i], twin.delta.detach(), **CLOSE)
        torch.testing.assert_close(found.values[:, i], twin.initial + twin.delta.detach(), **CLOSE)
    return found, twins


@every_family
@pytest.mark.parametrize("width", [1, 10_000])
def test_equal_to_the_twin_with_one_row_a_line_and_with_all_in_one(
    kind: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palimpsest.memory.upper_layers.LINE", width)
    monkeypatch.setattr("palimpsest.memory.readout.HEAD_ROWS", width)
    agree(double(kind), TargetSettings(steps=4, lr=0.3))


WAYS = [("hidden", 16), ("value", 3), ("value", 16), ("hidden", 3)]
"""Where values are measured from, and rows of a pass; families beside the first try the first two."""


@pytest.mark.parametrize(
    ("kind", "reference", "chunk"),
    [
        pytest.param(
            kind,
            *way,
            marks=()
            if kind == "llama" and at == 0
            else pytest.mark.slow
            if kind == "llama" or at < 2
            else pytest.mark.nightly,
        )
        for kind in FAMILIES
        for at, way in enumerate(WAYS)
    ],
)
def test_equal_to_the_twin(kind: str, reference: Any, chunk: int) -> None:
    """Subjects at the start, middle and end, targets of several tokens, contexts; one chunk and two."""
    settings = replace(SHORT, reference=reference, clamp=5.0, kl=0.5, decay=3.0)
    found, _ = agree(double(kind, bos=kind == "llama"), settings, chunk=chunk)
    assert (found.deltas.norm(dim=0) > 0.1).all()


@every_family
def test_equal_to_the_twin_in_single_precision(kind: str) -> None:
    agree(tiny_model(kind), replace(SHORT, clamp=5.0), CONTEXTS[:2], REQUESTS[:2])


# With no layer between the edited one and the loss, δ acts only where the subject ends its prompt: elsewhere
# the gradient is zero but for rounding, which Adam would magnify.
AT_THE_END = REQUESTS[2:3]


@every_family
def test_equal_to_the_twin_from_the_first_and_in_the_last_layer(kind: str) -> None:
    model = double(kind)
    agree(model, SHORT, CONTEXTS[:2], REQUESTS[1:3], layer=0)
    agree(model, SHORT, CONTEXTS[:2], AT_THE_END, layer=3)


@every_family
@pytest.mark.parametrize("loss_layer", [1, 2])
def test_loss_read_from_a_lower_layer(kind: str, loss_layer: int) -> None:
    model = double(kind)
    requests = AT_THE_END if loss_layer == 1 else REQUESTS[:2]
    found, _ = agree(model, replace(SHORT, loss_layer=loss_layer), CONTEXTS[:2], requests)
    whole = optimise_targets(model, requests, 1, SHORT, CONTEXTS[:2])
    assert not torch.allclose(found.losses[:, 0], whole.losses[:, 0], rtol=1e-3)


def test_the_divergence_is_that_of_the_released_codes() -> None:
    """They call PyTorch's kl_div with log p₀ as its input and log p as its target."""
    log_p, before = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    released = torch.nn.functional.kl_div(before, log_p, log_target=True, reduction="none").sum(1)
    other = torch.nn.functional.kl_div(log_p, before, log_target=True, reduction="none").sum(1)
    assert TargetSettings().kl_over == "edited"
    torch.testing.assert_close(divergence(log_p, before, "edited"), released)
    torch.testing.assert_close(divergence(log_p, before, "unedited"), other)
    assert not torch.allclose(released, other)


def test_the_other_divergence_by_name() -> None:
    model, settings = double("llama"), replace(SHORT, kl=0.5)
    found, _ = agree(model, replace(settings, kl_over="unedited"), CONTEXTS[:2])
    released, _ = agree(model, settings, CONTEXTS[:2])
    assert not torch.allclose(found.deltas, released.deltas, rtol=1e-3)


def test_a_cap_holds_whatever_the_state() -> None:
    """One bound for states of all lengths; at the bound of a clamp the values are those of the clamp."""
    model = tiny_model("llama")
    capped = CappedTargets(**{**asdict(SHORT), "cap": 0.07})
    found = optimise_targets(model, REQUESTS, 1, capped)
    torch.testing.assert_close(found.deltas.norm(dim=0), torch.full((len(REQUESTS),), 0.07))
    assert found.initial.norm(dim=0).std() > 0
    one, clamp = REQUESTS[:1], 0.05
    length = float(found.initial[:, 0].norm())
    by_clamp = optimise_targets(model, one, 1, replace(SHORT, clamp=clamp))
    by_cap = optimise_targets(model, one, 1, CappedTargets(**{**asdict(SHORT), "cap": clamp * length}))
    torch.testing.assert_close(by_cap.deltas, by_clamp.deltas)


@given(st.floats(1e-3, 10), st.floats(1e-3, 10), st.lists(st.floats(0.1, 100), min_size=1, max_size=5))
def test_a_clamp_grows_with_the_state_and_a_cap_does_not(
    clamp: float, cap: float, lengths: list[float]
) -> None:
    states = torch.tensor(lengths)
    torch.testing.assert_close(TargetSettings(clamp=clamp).longest(2 * states), 2 * clamp * states)
    torch.testing.assert_close(CappedTargets(cap=cap).longest(2 * states), torch.full_like(states, cap))


def test_clamp() -> None:
    """Every update is longer than the clamp allows, so δ ends exactly at the limit."""
    for reference in ("hidden", "value"):
        settings = replace(SHORT, clamp=0.05, reference=reference)
        found, twins = agree(double("llama"), settings, CONTEXTS[:1])
        for i, twin in enumerate(twins):
            assert float(found.deltas[:, i].norm()) == pytest.approx(0.05 * float(twin.initial.norm()))


def test_rows_stop_on_their_own() -> None:
    """Some are done before others; each stops before the step at which it is found done."""
    settings = replace(SHORT, clamp=50.0, steps=12, lr=0.5, stop_below=7.3, decay=0.01, kl=0.0)
    found, twins = agree(double("llama"), settings, CONTEXTS[:2])
    lengths = [len(twin.losses) for twin in twins]
    assert len(set(lengths)) >= 3
    assert max(lengths) == 12
    for row, length in zip(found.losses, lengths, strict=True):
        assert torch.isnan(row[length:]).all()
        assert (row[: length - 1] >= 7.3).all()
        assert (row[length - 1] < 7.3) == (length < 12)


def test_a_request_done_at_the_start_is_not_moved() -> None:
    found, _ = agree(double("gpt2"), replace(SHORT, stop_below=1e9), CONTEXTS[:1])
    assert not found.deltas.any()
    assert torch.isfinite(found.losses).sum(1).tolist() == [1] * len(REQUESTS)


def test_one_step_only_evaluates() -> None:
    found, _ = agree(double("gpt2"), replace(SHORT, steps=1), CONTEXTS[:1])
    assert not found.deltas.any()
    two, _ = agree(double("gpt2"), replace(SHORT, steps=2, clamp=50.0), CONTEXTS[:1])
    # Adam's first update has length lr in every coordinate.
    torch.testing.assert_close(two.deltas.abs(), torch.full_like(two.deltas, SHORT.lr), **CLOSE)


def test_the_number_of_cores_changes_no_bit(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr("palimpsest.memory.optimisation.ACTIVATIONS", 1)  # a chunk of few positions each
    monkeypatch.setattr("palimpsest.memory.optimisation.FEWEST_POSITIONS", 8)
    model, found = tiny_model("llama"), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        monkeypatch.setenv("PALIMPSEST_CACHE", str(own_cache / str(threads)))
        found.append(optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS))
    assert torch.equal(found[0].deltas, found[1].deltas)
    assert torch.equal(found[0].losses, found[1].losses)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(64, 400))
def test_chunks_are_consecutive_of_about_equal_work_and_even_in_number(sizes: list[int], most: int) -> None:
    chunks = by_work(sizes, most)
    assert [i for chunk in chunks for i in chunk] == list(range(len(sizes)))
    share = sum(sizes) / max(-(-sum(sizes) // most), 1)
    for chunk in chunks:
        assert sum(sizes[i] for i in chunk) <= share + 2 * max(sizes)
    if sum(sizes) >= 2 * FEWEST_POSITIONS and max(sizes) < sum(sizes) / 4:
        assert len(chunks) >= 2


def test_chunks_halve_where_memory_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("llama")
    whole = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS[:2])
    run = _Chunk.run

    def short(self: Any) -> Any:
        if len(self.chosen) > 2:
            raise MemoryError
        return run(self)

    monkeypatch.setattr(_Chunk, "run", short)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(cache_dir() / "short"))
    halves = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS[:2])
    torch.testing.assert_close(halves.deltas, whole.deltas)
    monkeypatch.setattr(_Chunk, "run", lambda self: (_ for _ in ()).throw(MemoryError("9 GB")))
    monkeypatch.setenv("PALIMPSEST_CACHE", str(cache_dir() / "none"))
    with pytest.raises(OutOfMemoryError, match="one of the facts alone does not fit into memory: 9 GB"):
        optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS[:2])


def test_requests_do_not_influence_each_other() -> None:
    model = double("llama")
    together = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    turned = optimise_targets(model, REQUESTS[::-1], 1, SHORT, CONTEXTS)
    torch.testing.assert_close(turned.deltas.flip(1), together.deltas)
    alone = optimise_targets(model, REQUESTS[2:3], 1, SHORT, CONTEXTS)
    torch.testing.assert_close(alone.deltas, together.deltas[:, 2:3])


def test_the_value_is_reached_by_the_model_as_it_was() -> None:
    """h₀ is the plain state at the subject's last token of the bare prompt."""
    model = double("gpt2")
    found = optimise_targets(model, REQUESTS, 2, SHORT, CONTEXTS)
    for i, request in enumerate(REQUESTS):
        before = request.prompt.split("{}")[0]
        ids = encode(model.tokenizer, before + request.subject)
        state = plain_states(model, ids, Site(2, "hidden"))[-1]
        torch.testing.assert_close(found.values[:, i] - found.deltas[:, i], state)


def test_the_second_call_is_read_from_disk(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    model = tiny_model("llama")
    first = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)

    def never(*args: Any) -> None:
        raise AssertionError("computed although it is on disk")

    monkeypatch.setattr(targets_module, "Optimisation", never)
    again = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS, chunk=2)
    assert torch.equal(again.values, first.values)
    assert torch.equal(again.deltas, first.deltas)
    assert torch.equal(again.losses, first.losses)
    write = read_weight(model, 3)
    changed: list[tuple[Any, ...]] = [
        (model, REQUESTS[:3], 1, SHORT, CONTEXTS),
        (model, REQUESTS, 2, SHORT, CONTEXTS),
        (model, REQUESTS, 1, replace(SHORT, kl=0.1), CONTEXTS),
        (model, REQUESTS, 1, SHORT, CONTEXTS[:2]),
        (tiny_model("llama", bos=True), REQUESTS, 1, SHORT, CONTEXTS),
    ]
    for arguments in changed:
        with pytest.raises(AssertionError, match="computed although"):
            optimise_targets(*arguments)
    write[0, 0] += 1
    with pytest.raises(AssertionError, match="computed although"):
        optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)


def test_an_interruption_loses_at_most_the_facts_of_one_file(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    model = tiny_model("llama")
    whole = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    shutil.rmtree(own_cache / "targets")
    monkeypatch.setattr(targets_module, "TOGETHER", 2)
    computed: list[int] = []

    class Breaks(Optimisation):
        def run(self, *rest: Any) -> dict[str, Tensor]:
            computed.append(len(self.requests))
            if len(computed) == 2:
                raise KeyboardInterrupt
            return super().run(*rest)

    monkeypatch.setattr(targets_module, "Optimisation", Breaks)
    with pytest.raises(KeyboardInterrupt):
        optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    again = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    assert computed == [2, 2, 2]  # the first two facts once
    torch.testing.assert_close(again.values, whole.values, **CLOSE)
    first = optimise_targets(model, REQUESTS[:2], 1, SHORT, CONTEXTS)
    assert len(computed) == 3  # the same file serves those who ask for the first two alone
    assert torch.equal(first.values, again.values[:, :2])
    assert torch.equal(first.losses, again.losses[:2])


def test_a_diverging_loss_is_refused(own_cache: Path) -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    message = r"the loss of '.*' -> '.*' is nan at step 1; lower the learning rate.*No weight was changed"
    with pytest.raises(NonFiniteError, match=message):
        optimise_targets(model, REQUESTS, 1, replace(SHORT, lr=float("inf")), CONTEXTS)
    assert same_bits(model, before)
    assert not list(own_cache.rglob("*.safetensors"))


def test_a_damaged_model_is_refused() -> None:
    model = tiny_model("gpt2")
    read_weight(model, 2)[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(NonFiniteError, match="is nan at step 0"):
        optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    assert same_bits(model, before)


@pytest.mark.parametrize(
    ("layer", "loss_layer", "message"),
    [
        (2, 1, "loss_layer 1 lies below the edited layer 2; raise it or leave it out"),
        (1, 9, "layer 9 does not exist; tiny-llama-0 has layers 0 to 3"),
        (4, None, "layer 4 does not exist; tiny-llama-0 has layers 0 to 3"),
    ],
)
def test_layers_that_cannot_be(layer: int, loss_layer: int | None, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        optimise_targets(tiny_model("llama"), REQUESTS, layer, replace(SHORT, loss_layer=loss_layer))


@every_family
def test_half_precision_models_are_optimised_in_single_precision(kind: str) -> None:
    model = tiny_model(kind)
    model.net.to(torch.bfloat16)
    found = optimise_targets(model, REQUESTS, 1, replace(SHORT, clamp=5.0), CONTEXTS)
    assert found.deltas.dtype == torch.float32
    assert not torch.equal(found.deltas, found.deltas.bfloat16().float())
    assert (found.losses[:, -1] < found.losses[:, 0]).all()


def test_gradients_stay_with_delta() -> None:
    model = tiny_model("llama")
    optimise_targets(model, REQUESTS[:1], 1, SHORT)
    assert all(p.grad is None and not p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize(
    "changed", [{"lr": 0.4}, {"clamp": 0.5}, {"kl": 0.0}, {"reference": "value"}, {"stop_below": 0.5}]
)
def test_other_settings_are_not_read_from_the_cache(changed: dict[str, object]) -> None:
    model, requests = tiny_model("llama"), REQUESTS[:1]
    for settings in (SHORT, replace(SHORT, **changed)):
        optimise_targets(model, requests, 1, settings)
    assert len(list((cache_dir() / "targets").glob("*.safetensors"))) == 2
