"""Reading sites: equal to plain hooks, no further than needed, and nothing left behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from palimpsest.errors import SiteError
from palimpsest.network.activations import capture, run_body, watched
from palimpsest.network.model import EditableModel, Part, Site
from palimpsest.network.tokens import encode, pad
from tests.editing import EXACT, double, plain_states
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["The mother tongue of Anna Berg is", "Rome", "Where does Marie Curie live? She lives in"]
PARTS: tuple[Part, ...] = ("key", "value", "hidden")


def rows(model: EditableModel) -> list[list[int]]:
    return [encode(model.tokenizer, text) for text in TEXTS]


def hooks(model: EditableModel) -> int:
    """How many hooks the network holds."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.net.modules())


def calls(model: EditableModel) -> tuple[list[int], list[Any]]:
    """A list that grows by the index of every layer that runs, and the handles of its hooks."""
    ran: list[int] = []
    handles = [
        model.layer(i).register_forward_pre_hook(lambda module, inputs, i=i: ran.append(i))
        for i in range(model.n_layers)
    ]
    return ran, handles


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("side", ["left", "right"])
def test_capture_equals_plain_hooks(kind: str, side: Any) -> None:
    """Several sites in one padded pass, given out of order, against one unpadded pass for each."""
    model = double(kind, bos=True)
    sites = [Site(2, "hidden"), Site(0), *(Site(3, part) for part in PARTS), Site(1, "value")]
    batch = pad(model.tokenizer, rows(model), side)
    found = capture(model, batch, sites)
    assert set(found) == set(sites)
    for site, states in found.items():
        assert states.shape[:2] == batch.ids.shape
        for i, ids in enumerate(rows(model)):
            expected = plain_states(model, ids, site)
            torch.testing.assert_close(states[i][batch.mask[i]], expected, rtol=EXACT[kind], atol=EXACT[kind])


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("part", PARTS)
def test_the_pass_stops_after_the_last_site(kind: str, part: Any) -> None:
    model = tiny_model(kind)
    ran, _ = calls(model)
    batch = pad(model.tokenizer, rows(model))
    capture(model, batch, [Site(1, part), Site(0)])
    assert ran == [0, 1]
    capture(model, batch, [Site(1, part)], stop=False)
    assert ran == [0, 1, 0, 1, 2, 3]


def test_the_key_stops_before_the_map_runs() -> None:
    model = tiny_model("gpt2")
    ran: list[str] = []
    model.projection(1).register_forward_hook(lambda *_: ran.append("map"))
    batch = pad(model.tokenizer, rows(model))
    capture(model, batch, [Site(1, "key")])
    assert ran == []
    capture(model, batch, [Site(1, "key"), Site(1, "value")])
    assert ran == ["map"]


class _Bypass(nn.Module):
    """An MLP that holds the edited map and never calls it."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.down_proj = mlp.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


def test_a_site_that_never_fires_is_named() -> None:
    model = tiny_model("llama")
    layer: Any = model.layer(2)
    layer.mlp = _Bypass(layer.mlp)
    before = hooks(model)
    message = r"never fired: \[Site\(layer=2, part='key'\)\].*'mlp\.down_proj'.*family row of tiny-llama-0"
    with pytest.raises(SiteError, match=message):
        capture(model, pad(model.tokenizer, rows(model)), [Site(2), Site(3)], stop=False)
    with pytest.raises(SiteError, match=message):
        capture(model, pad(model.tokenizer, rows(model)), [Site(2), Site(3)])
    assert hooks(model) == before


def test_a_layer_that_does_not_exist() -> None:
    model = tiny_model("llama")
    with pytest.raises(SiteError, match="layer 7 does not exist; tiny-llama-0 has layers 0 to 3"):
        capture(model, pad(model.tokenizer, rows(model)), [Site(0), Site(7)])
    assert hooks(model) == 0


def test_hooks_go_also_after_an_error() -> None:
    model = tiny_model("llama")
    batch = pad(model.tokenizer, rows(model))
    before = hooks(model)
    capture(model, batch, [Site(1), Site(2, "hidden")])
    assert hooks(model) == before

    def broken(value: Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watched(model, Site(1, "value"), broken):
        run_body(model, batch)
    assert hooks(model) == before


def test_captured_tensors_carry_no_graph() -> None:
    model = tiny_model("gpt2")
    states = capture(model, pad(model.tokenizer, rows(model)), [Site(1, "hidden")])[Site(1, "hidden")]
    assert not states.requires_grad
    assert torch.is_grad_enabled()
