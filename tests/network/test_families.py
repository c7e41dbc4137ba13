"""What single families need: windows, norms behind the edited map, capped logits, other settings."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from palimpsest.editors import Memit, Prepared, Rome
from palimpsest.errors import SiteError
from palimpsest.evaluation.answers import target_nll
from palimpsest.memory.behind_norms import asked_of_map
from palimpsest.memory.keys import subject_hidden, subject_inside
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.activations import run_layers
from palimpsest.network.apply import installed
from palimpsest.network.head import final_states, logits_of
from palimpsest.network.layer_types import mask_of_padded, windowed
from palimpsest.network.model import FAMILIES, EditableModel, Site, generate
from palimpsest.network.packed import pack
from palimpsest.network.tokens import encode
from tests.editing import EXACT, REQUESTS, double, plain_states, same_bits, snapshot
from tests.memory import test_values as values
from tests.network import test_model as contract
from tests.network import test_packed as packing
from tests.tiny import NETS, VARIANTS, tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

BEHIND_NORMS = ("gemma2", "gemma3_text", "olmo2", "opt_after")
NEW = ("qwen3", "mistral", "phi3", "phi", "gemma", *BEHIND_NORMS, "gpt_neox", "opt")
TEXT = "The mother tongue of Danielle Darrieux is French, in the north of the country"


@pytest.mark.parametrize("kind", VARIANTS)
def test_other_settings_of_a_family_keep_the_contract(kind: str) -> None:
    contract.test_the_value_enters_the_layers_output_unchanged(kind)
    contract.test_states_at_subjects_equal_a_plain_forward(kind, bos=False)
    packing.test_rows_behind_a_prefix_that_is_read_once(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("reference", ["hidden", "value"])
def test_values_of_other_settings_of_a_family_equal_the_twin(kind: str, reference: Any) -> None:
    settings = TargetSettings(steps=4, lr=0.2, clamp=5.0, reference=reference)
    values.agree(double(kind), settings, requests=REQUESTS[1:3])


@pytest.mark.parametrize("kind", NETS | VARIANTS)
def test_layers_norm_and_head_in_turn_give_the_networks_logits(kind: str) -> None:
    """From the first layer's input on: masks, rotary embeddings, final norm, map before the head, and cap."""
    model = double(kind)
    packed = pack([encode(model.tokenizer, TEXT)])
    start = _input(model, packed.ids)
    hidden = run_layers(model, range(model.n_layers), start, packed.positions, packed.attention(start.dtype))
    expected = model.net(input_ids=packed.ids).logits
    found = logits_of(model, final_states(model, hidden))
    torch.testing.assert_close(found, expected, rtol=EXACT[kind], atol=EXACT[kind])


def _input(model: EditableModel, ids: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = model.layer(0).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    model.net(input_ids=ids)
    handle.remove()
    return kept[0]


def test_the_window_of_the_tests_is_short_enough_to_matter() -> None:
    narrow, whole = double("mistral"), double("mistral_whole")
    whole.net.load_state_dict(narrow.net.state_dict())
    ids = encode(narrow.tokenizer, TEXT)
    a, b = (plain_states(model, ids, Site(1, "hidden")) for model in (narrow, whole))
    torch.testing.assert_close(a[:10], b[:10])
    assert not torch.allclose(a[10:], b[10:], rtol=1e-2)


def test_a_window_counts_the_tokens_of_a_row_and_not_columns() -> None:
    mask = pack([[1, 2, 3, 4], [1, 2, 7, 8, 9]]).attention(torch.float32)
    seen = windowed(mask, 2)[0, 0] == 0
    assert seen.sum(1).tolist() == [1, 2, 2, 2, 2, 2, 2]
    assert seen[4].nonzero()[:, 0].tolist() == [1, 4]  # 7 sees 2, which lies three columns before it
    assert windowed(mask, None) is mask
    padded = torch.tensor([[True, True, False, False, True]])
    assert mask_of_padded(double("llama"), padded, 1).tolist() == [[1, 1, 0, 0, 1]]
    narrow: Any = double("mistral")
    narrow.net.config.sliding_window = 2
    assert (mask_of_padded(narrow, padded, 1)[0, 0, 0] == 0).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("kind", BEHIND_NORMS)
def test_the_map_is_asked_for_what_the_norm_lets_through(kind: str) -> None:
    """A change that some output of the map makes is made exactly; of any other the nearest is."""
    model = double(kind)
    norm: Any = model.norm_behind(1)
    inside = subject_inside(model, REQUESTS, 1)
    assert inside is not None
    other = torch.randn(inside.shape, generator=torch.Generator().manual_seed(3), dtype=inside.dtype)
    change = (norm(other.T) - norm(inside.T)).T
    step = asked_of_map(model, 1, inside, change)
    torch.testing.assert_close(norm((inside + step).T), norm(other.T), rtol=1e-3, atol=1e-3)
    assert not asked_of_map(model, 1, inside, torch.zeros_like(inside)).norm() > 1e-2 * inside.norm()

    far = 3 * change
    near = inside + asked_of_map(model, 1, inside, far)
    goal = norm(inside.T) + far.T
    gap = (goal - norm(near.T)).norm(dim=1)
    draws = torch.randn(60, *inside.shape, generator=torch.Generator().manual_seed(0), dtype=inside.dtype)
    for size in (0.03, 0.3, 3):
        others = norm((near + size * draws).transpose(1, 2))  # (60, n, d_v)
        assert ((goal - others).norm(dim=2) >= gap * (1 - 1e-4)).all()


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_without_a_norm_the_map_is_asked_for_the_change_itself(kind: str) -> None:
    model = tiny_model(kind)
    change = torch.ones(32, len(REQUESTS))
    assert subject_inside(model, REQUESTS, 1) is None
    assert asked_of_map(model, 1, None, change) is change
    with pytest.raises(SiteError, match=f"in tiny-{kind}-0 no norm follows .*read the part 'value'"):
        contract.states_at_subjects(model, REQUESTS, Site(1, "before_norm"))


@pytest.mark.parametrize("kind", NEW)
def test_an_edit_makes_the_model_say_the_target_and_goes_out_bit_by_bit(kind: str) -> None:
    """With the value measured at the map's output, and the subject at the end, where nothing dilutes it."""
    model = tiny_model(kind, bos=kind in ("gemma2", "mistral"))
    request, rate = REQUESTS[2], 1.0
    norm: Any = model.norm_behind(3)
    if kind in BEHIND_NORMS[:3]:
        with torch.no_grad():  # a new norm's output is short beside a random residual stream
            norm.weight.add_(20)
        inside = subject_inside(model, [request], 3)
        assert inside is not None
        rate = 0.03 * float(inside.norm())  # behind a norm a step counts by its share of the map's output
    before = snapshot(model)
    targets = TargetSettings(steps=40, lr=rate, clamp=50, decay=0, kl=0, reference="value")
    editor = Rome(layers=(3,), second_moment=False, targets=targets)
    made, _ = editor.edit(model, [request], Prepared(("",)))
    assert same_bits(model, before)
    with installed(model, made):
        said = generate(model, request.text, 1).removeprefix(request.text)
    assert said.strip() == request.target
    assert same_bits(model, before)


@pytest.mark.parametrize("kind", BEHIND_NORMS)
@pytest.mark.parametrize("reference", ["hidden", "value"])
def test_values_at_the_layers_output_are_approached_through_the_norm(kind: str, reference: Any) -> None:
    model = tiny_model(kind)
    if reference == "value":
        editor: Any = Rome(layers=(1,), second_moment=False, targets=TargetSettings(steps=8, lr=0.3))
    else:
        editor = Memit(layers=(0, 1, 2), targets=TargetSettings(steps=8, lr=0.3), preserve_weight=0.01)
    moments = {layer: torch.eye(64, dtype=torch.float64) for layer in (0, 1, 2)}
    pairs = [(request.text, request.target) for request in REQUESTS]
    start, hidden = target_nll(model, pairs), subject_hidden(model, REQUESTS, editor.layers[-1])
    made, _ = editor.edit(model, REQUESTS, Prepared(("",), moments))
    with installed(model, made):
        assert (subject_hidden(model, REQUESTS, editor.layers[-1]) - hidden).norm() > 0
        assert target_nll(model, pairs).mean() < start.mean()


def test_every_norm_that_a_row_names_is_there() -> None:
    for kind, family in FAMILIES.items():
        norm = tiny_model(kind).norm_behind(0)
        assert isinstance(norm, nn.Module) == (family.norm_after is not None and family.unless is None)
