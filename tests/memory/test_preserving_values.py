"""Values optimised beside protected activations, the step at which they converge, and keys that must stay."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from palimpsest import cache
from palimpsest.editors import Memit
from palimpsest.errors import RequestError, ScoreError, UnknownNameError
from palimpsest.memory.keys import last_states, subject_keys
from palimpsest.memory.known_values import known_values
from palimpsest.memory.settings import PreservingTargets, TargetSettings
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.model import EditableModel, Site, fingerprint
from palimpsest.network.tokens import encode
from palimpsest.paths import cache_dir
from tests.editing import CONTEXTS, REQUESTS, double, every_kind, plain_states
from tests.memory.test_values import Twin
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

SHORT = TargetSettings(steps=6, lr=0.2, clamp=5.0, stop_below=0.0)
PROTECTED = ("Marie Curie", "The Space Needle is in the north")


def preserving(**options: Any) -> PreservingTargets:
    plain = {"steps": 6, "lr": 0.2, "clamp": 5.0, "stop_below": 0.0}
    return PreservingTargets(**{"protected": PROTECTED, **plain, **options})


def states(model: EditableModel, site: Site) -> Tensor:
    """Activations at the last token of the protected texts, one whole forward pass each."""
    return torch.stack([plain_states(model, encode(model.tokenizer, text), site)[-1] for text in PROTECTED])


def projected(vector: Tensor, protected: Tensor) -> Tensor:
    """Σ‖Px‖² with P written out as a matrix."""
    projector = torch.outer(vector, vector) / (vector @ vector)
    return (protected @ projector).square().sum()


# Without protection nothing is other than it was.


def test_the_cached_file_has_the_key_and_the_tensors_that_it_had() -> None:
    model = tiny_model("llama")
    optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    key = {
        "revision": 2,
        "model": fingerprint(model),
        "requests": [(r.prompt, r.subject, r.target) for r in REQUESTS],
        "layer": 1,
        "contexts": list(CONTEXTS),
        "settings": {
            "steps": 6,
            "lr": 0.2,
            "clamp": 5.0,
            "decay": 0.5,
            "kl": 0.0625,
            "kl_over": "edited",
            "stop_below": 0.0,
            "reference": "hidden",
            "loss_layer": None,
        },
    }
    path = cache_dir() / "targets" / f"{cache.digest(key)[:32]}.safetensors"
    assert set(cache.read(path)) == {"initial", "delta", "losses"}


@every_kind
def test_protection_of_weight_zero_changes_no_bit(kind: str) -> None:
    """But is another entry of the cache, and is measured."""
    model = tiny_model(kind)
    plain = optimise_targets(model, REQUESTS, 1, SHORT, CONTEXTS)
    watched = optimise_targets(model, REQUESTS, 1, preserving(beta=0.0), CONTEXTS)
    assert torch.equal(watched.deltas, plain.deltas)
    assert torch.equal(watched.values, plain.values)
    assert torch.equal(watched.losses, plain.losses)
    assert not plain.terms
    assert (watched.terms["preservation"][:, 1:] > 0).all()


# With it.


@every_kind
@pytest.mark.parametrize("reference", ["hidden", "value"])
@pytest.mark.parametrize("direction", ["delta", "value", "key"])
def test_the_terms_are_those_of_the_published_loss(kind: str, reference: Any, direction: Any) -> None:
    """L_kp at the values found, by a projector written out; and the terms add up to the total."""
    model = double(kind)
    settings = preserving(beta=0.01, direction=direction, reference=reference)
    found = optimise_targets(model, REQUESTS, 1, settings, CONTEXTS)
    site = Site(1, "key" if direction == "key" else reference)
    protected = states(model, site)
    vectors = {
        "delta": found.deltas,
        "value": found.values,
        "key": subject_keys(model, REQUESTS, 1, CONTEXTS),
    }
    for i in range(len(REQUESTS)):
        expected = float(projected(vectors[direction][:, i], protected))
        assert float(found.terms["preservation"][i, -1]) == pytest.approx(expected, rel=1e-4)
    total = (
        found.terms["nll"]
        + settings.kl * found.terms["kl"]
        + settings.decay * found.terms["decay"]
        + settings.beta * found.terms["preservation"]
    )
    torch.testing.assert_close(total, found.losses, rtol=1e-5, atol=1e-5)


class ProtectedTwin(Twin):
    """The plain optimisation of one request, its loss with L_kp by a projector written out."""

    def nll(self) -> Tensor:
        assert isinstance(self.settings, PreservingTargets)
        vector = {"delta": self.delta, "value": self.initial + self.delta}[self.settings.direction]
        if not vector.any():
            return super().nll()
        protected = states(self.model, Site(self.layer, self.settings.reference))
        return super().nll() + self.settings.beta * projected(vector, protected)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("direction", ["delta", "value"])
def test_equal_to_the_twin(kind: str, direction: Any) -> None:
    """Every loss and every value of the fast path, where L_kp pulls at what is optimised."""
    model, settings = double(kind), preserving(beta=0.02, direction=direction)
    found = optimise_targets(model, REQUESTS, 1, settings, CONTEXTS[:2])
    free = optimise_targets(model, REQUESTS, 1, replace(settings, beta=0.0), CONTEXTS[:2])
    for i, request in enumerate(REQUESTS[:3]):
        twin = ProtectedTwin(model, request, 1, settings, CONTEXTS[:2]).run()
        torch.testing.assert_close(found.losses[i], torch.tensor(twin.losses), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.deltas[:, i], twin.delta.detach(), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found.deltas[:, i], free.deltas[:, i], rtol=0.05)


def test_with_weight_less_of_the_protected_lies_along_the_value() -> None:
    model = double("llama")
    kept = [
        optimise_targets(model, REQUESTS, 1, preserving(beta=beta, direction="value"), CONTEXTS[:1])
        for beta in (0.0, 0.1)
    ]
    free, held = (found.terms["preservation"][:, -1] for found in kept)
    assert (held < free).all()


def test_along_the_key_it_cannot_pull_and_only_raises_the_loss() -> None:
    """Eq. 1 with the input side of the map: the same values to the bit, and no convergence at a threshold."""
    model = double("llama")
    free = optimise_targets(model, REQUESTS, 1, preserving(direction="key"), CONTEXTS)
    held = optimise_targets(model, REQUESTS, 1, preserving(direction="key", beta=100.0), CONTEXTS)
    torch.testing.assert_close(held.deltas, free.deltas, rtol=1e-12, atol=0)
    constant = free.terms["preservation"]
    assert torch.equal(constant, constant[:, :1].expand_as(constant))
    torch.testing.assert_close(held.losses - free.losses, 100 * constant, rtol=1e-4, atol=1e-3)
    threshold = float(free.losses.max()) + 1
    assert torch.equal(free.converged(threshold), torch.zeros(len(REQUESTS)).double())
    assert held.converged(threshold).isnan().all()
    assert torch.equal(
        held.converged(float(free.terms["nll"].max()) + 1, of="nll"), free.converged(threshold)
    )


def test_chunks_and_order_do_not_matter() -> None:
    model, settings = double("llama"), preserving(beta=0.1)
    together = optimise_targets(model, REQUESTS, 1, settings, CONTEXTS)
    turned = optimise_targets(model, REQUESTS[::-1], 1, settings, CONTEXTS, chunk=3)
    torch.testing.assert_close(turned.deltas.flip(1), together.deltas)
    for name, trace in together.terms.items():
        torch.testing.assert_close(turned.terms[name].flip(0), trace)
    known = known_values(model, REQUESTS, 1, settings, CONTEXTS)
    found = known.of(model, REQUESTS[2:0:-1], 1, settings, CONTEXTS)
    torch.testing.assert_close(found.terms["nll"], together.terms["nll"][[2, 1]])
    with pytest.raises(RequestError, match="other the settings of values"):
        known.of(model, REQUESTS, 1, replace(settings, beta=0.2), CONTEXTS)


def test_an_editor_takes_them() -> None:
    """As settings of values like any other, held by the editor as they are."""
    settings = preserving(beta=0.1)
    assert Memit(layers=(1,), targets=settings).targets is settings


def test_a_protected_text_without_a_token() -> None:
    model = tiny_model("llama")
    with pytest.raises(RequestError, match="text '' gives no token, so there is no state to read; give it"):
        last_states(model, ["Marie Curie", ""], Site(1))


@pytest.mark.parametrize(
    "wrong", [{"protected": ()}, {"protected": ("",)}, {"beta": -1}, {"direction": "left"}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        preserving(**wrong)


# Convergence.


def trace(*rows: list[float]) -> Targets:
    nothing = torch.zeros(2, len(rows))
    return Targets(nothing, nothing, torch.tensor(rows), {"nll": torch.tensor(rows) - 1})


def test_the_step_of_convergence() -> None:
    """Updates made before the loss was first below; a later rise does not count, equality is not below."""
    found = trace([3, 2, 0.5, 4], [0.1, 2, 2, 2], [3, 2, 2, 0.6], [1, 1, 1, 1])
    assert found.converged(1.0)[:3].tolist() == [2, 0, 3]
    assert math.isnan(found.converged(1.0)[3])
    assert found.converged(1.0).dtype == torch.float64
    assert found.converged(1.5, of="nll").tolist() == [1, 0, 1, 0]


def test_a_request_that_was_stopped_before_it_could_converge() -> None:
    """A stopped one that was below before is known; one that was never below is not, and is no 'never'."""
    nan = float("nan")
    assert trace([3, 0.04, nan], [3, 2, 1]).converged(0.05).tolist()[0] == 1
    message = (
        r"fact 1 was done after 2 steps with its total loss at 0\.4, above 0\.05; optimise with stop_below"
    )
    with pytest.raises(ScoreError, match=message):
        trace([3, 0.04, nan], [3, 0.4, nan]).converged(0.05)


def test_a_loss_that_was_not_kept() -> None:
    with pytest.raises(UnknownNameError, match="unknown loss 'kl'; choose one of: nll, total"):
        trace([1.0]).converged(of="kl")


def test_convergence_of_real_values_is_read_off_their_losses() -> None:
    model = double("llama")
    found = optimise_targets(model, REQUESTS, 1, replace(SHORT, steps=12, lr=0.5), CONTEXTS[:1])
    below = float(found.losses[:, 5].median())
    for row, step in zip(found.losses.tolist(), found.converged(below).tolist(), strict=True):
        first = next((i for i, loss in enumerate(row) if loss < below), math.nan)
        assert step == first or (math.isnan(step) and math.isnan(first))
