"""MEND: the update from plain gradients, a network on file, and what is said where there is none."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from palimpsest.cache import SUM
from palimpsest.editors import Prepared, edit, trained_files
from palimpsest.editors.hypernetwork import Hypernetwork, base_of, read, require_shape
from palimpsest.editors.mend import InstructEdit, Mend, MendState, carried_dir, network_file, trained_for
from palimpsest.editors.ultraedit import Running
from palimpsest.errors import ModelError, NonFiniteError, ResourceError
from palimpsest.network.apply import commit
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from tests.disk import flip
from tests.editing import CONTEXTS, REQUESTS, double, every_kind, untrained
from tests.editors.test_ultraedit import LAYERS, plain
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

START = Prepared(contexts=("",))


def some_network(model: EditableModel, seed: int = 0) -> Hypernetwork:
    """With every parameter away from where it begins."""
    network = untrained(model, layers=LAYERS).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in network.named_parameters():
            size = 0.3 if name != "log_rate" else 1.0
            one.add_(size * torch.randn(one.shape, generator=generator, dtype=one.dtype))
        for one in network.buffers():
            one.add_(torch.rand(one.shape, generator=generator, dtype=one.dtype))
    return network


def twin(network: Hypernetwork, layer: int, keys: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """As printed, token by token."""
    at, d_k = network.layers.index(layer), keys.shape[1]
    found = torch.zeros(slopes.shape[1], d_k, dtype=keys.dtype)
    for u, delta in zip(keys, slopes, strict=True):
        if not delta.any():
            continue
        z = (torch.cat([u, delta]) - network.mean) / network.deviation
        inner = network.left[0] @ (network.right[0] @ z) + network.bias[0]
        h = z + torch.relu(network.scale[0, at] * inner + network.shift[0, at])
        inner = network.left[1] @ (network.right[1] @ h) + network.bias[1]
        g = h + network.scale[1, at] * inner + network.shift[1, at]
        found -= network.log_rate[at].exp() * torch.outer(g[d_k:], g[:d_k])
    return found.detach()


@every_kind
@pytest.mark.parametrize("batch", [1, 64])
def test_equal_to_the_printed_update_from_plain_plain(kind: str, batch: int) -> None:
    model = double(kind, bos=kind == "llama")
    network = some_network(model)
    state = MendState(START, network)
    made, after = edit(Mend(LAYERS, batch=batch), model, REQUESTS, state)
    wanted = {layer: torch.zeros_like(delta) for layer, delta in made.deltas.items()}
    for request in REQUESTS:
        for layer, both in plain(model, request).items():
            wanted[layer] += twin(network, layer, *both)
    for layer, delta in wanted.items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-5, atol=1e-9)
    assert after.network is network


def test_an_instruction_stands_before_the_text_whose_gradient_is_taken() -> None:
    model = double("llama")
    network = some_network(model)
    told = InstructEdit(LAYERS, instruction="The city is: ")
    made, _ = edit(told, model, REQUESTS[:1], told.keeps(START, network))
    for layer, both in plain(model, REQUESTS[0], "The city is: ").items():
        wanted = twin(network, layer, *both)
        torch.testing.assert_close(made.deltas[layer], wanted, rtol=1e-5, atol=1e-9)
    bare, _ = edit(Mend(LAYERS), model, REQUESTS[:1], MendState(START, network))
    assert not torch.allclose(bare.deltas[0], made.deltas[0])


def test_as_it_begins_it_is_a_gradient_step_on_normalised_factors() -> None:
    model = double("llama")
    network = untrained(model, layers=LAYERS).double()
    for layer, (keys, slopes) in plain(model, REQUESTS[0]).items():
        found = network.update(layer, keys, slopes).detach()
        torch.testing.assert_close(found, -1e-2 * slopes.T @ keys, rtol=1e-6, atol=1e-15)
    seen = Running().after(torch.cat([keys, slopes], 1))
    network.normalise_by(seen)
    kept = network.update(LAYERS[1], keys, slopes).detach()
    rows = seen.normalised(torch.cat([keys, slopes], 1))[slopes.any(1)]
    torch.testing.assert_close(kept, -1e-2 * rows[:, keys.shape[1] :].T @ rows[:, : keys.shape[1]])


def test_every_parameter_is_trained_from_where_it_begins() -> None:
    """The first layer too, whose slope at 0 must not be 0."""
    model = double("llama")
    network = untrained(model, layers=LAYERS).double()
    keys, slopes = plain(model, REQUESTS[0])[0]
    for _ in range(2):  # U moves first, and V, s and the bias's share once U is not 0
        network.update(0, keys, slopes).square().sum().backward()
        with torch.no_grad():
            network.left -= 0.1 * network.left.grad
    assert all(one.grad is not None and one.grad.any() for one in network.parameters())


def test_a_network_is_read_as_it_was_saved(tmp_path: Path) -> None:
    model = double("llama")
    network = some_network(model).float()
    network.about = {"plan": {"steps": 3}}
    network.save(tmp_path / "a.safetensors", "base")
    again = read(tmp_path / "a.safetensors")
    assert base_of(tmp_path / "a.safetensors") == "base"
    assert (again.layers, again.width, again.rank) == (network.layers, network.width, network.rank)
    assert again.about == network.about
    for name, one in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], one)


def test_a_bit_that_flips_is_seen_and_a_file_without_a_sum_is_read(tmp_path: Path) -> None:
    network, path = some_network(double("llama")).float(), tmp_path / "a.safetensors"
    network.save(path, "base")
    flip(path)
    message = r"no readable hypernetwork \(it was changed since it was written: its SHA-256 differs\); make"
    for act in (read, base_of):
        with pytest.raises(ResourceError, match=message):
            act(path)
    network.save(path, "base")
    with safe_open(path, "pt") as handle:
        about = {name: text for name, text in handle.metadata().items() if name != SUM}
    save_file(load_file(path), path, about | {"base": "other"})
    assert base_of(path) == "other"


def test_the_network_that_is_carried_has_no_sum_and_is_read() -> None:
    path = carried_dir() / "smollm2-135m.mend.safetensors"
    with safe_open(path, "pt") as handle:
        assert SUM not in handle.metadata()
    assert read(path).rank > 0


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not a tensor in it")
    with pytest.raises(
        ResourceError, match=r"no readable hypernetwork .*make it anew with `palimpsest train`"
    ):
        read(path)
    save_file({"left": torch.zeros(2, 3, 1)}, path)
    with pytest.raises(ResourceError, match="holds 'something', not 'palimpsest hypernetwork 1'"):
        base_of(path)
    head = {"format": "palimpsest hypernetwork 1", "base": "b", "layers": "[1]", "width": "[4, 5]"}
    save_file({"left": torch.zeros(2, 3, 1)}, path, head)
    with pytest.raises(ResourceError, match="a damaged hypernetwork"):
        read(path)


def test_a_network_of_other_layers_is_refused() -> None:
    model = tiny_model("llama")
    network = untrained(model, layers=LAYERS)
    message = r"trained for layers \[0, 2\] with weights .* and the editor has layers \[1\]"
    with pytest.raises(ModelError, match=message):
        edit(Mend((1,)), model, REQUESTS, MendState(START, network))
    with pytest.raises(ModelError, match=r"weights \(1, 1\)"):
        require_shape(network, LAYERS, (1, 1))


def test_without_a_network_the_command_that_trains_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(trained_files, "carried_dir", lambda: tmp_path)
    message = f"train one: palimpsest train mend {re.escape(model.name)} --data FILE"
    with pytest.raises(ResourceError, match=message):
        edit(Mend(LAYERS), model, REQUESTS, START)
    own = network_file(fingerprint(model), "mend")
    untrained(model, layers=LAYERS).save(own, "another model's")  # under this one's name: not taken
    with pytest.raises(ResourceError, match="no network of mend was trained for these weights"):
        trained_for(model, "mend")
    untrained(model, layers=LAYERS).save(tmp_path / "x.mend.safetensors", fingerprint(model))
    assert trained_for(model, "mend").layers == LAYERS
    with pytest.raises(ResourceError, match="no network of instruct_edit"):
        trained_for(model, "instruct_edit")
    other = tmp_path / "other.safetensors"
    with pytest.raises(ResourceError, match=rf"looked for {re.escape(str(other))}\)"):
        edit(Mend(LAYERS, network=str(other)), model, REQUESTS, START)
    some_network(model).save(other, fingerprint(model))
    _, after = edit(Mend(LAYERS, network=str(other)), model, REQUESTS, START)
    assert after.network is not None
    assert after.network.left.any()


def test_a_sequence_keeps_the_network_of_the_unedited_model() -> None:
    model = tiny_model("llama")
    untrained(model, layers=LAYERS).save(network_file(fingerprint(model), "mend"), fingerprint(model))
    made, state = edit(Mend(LAYERS), model, REQUESTS[:2], Prepared(CONTEXTS))
    commit(model, made)
    further, _ = edit(Mend(LAYERS), model, REQUESTS[2:], state)
    assert further.base == fingerprint(model)
    with pytest.raises(ResourceError, match="within one sequence only: pass the state of the edit before"):
        edit(Mend(LAYERS), model, REQUESTS[2:], Prepared(CONTEXTS))


def test_an_update_that_is_not_finite_is_refused() -> None:
    model = tiny_model("llama")
    network = untrained(model, layers=LAYERS)
    before = read_weight(model, 0).clone()
    with torch.no_grad():
        network.log_rate.fill_(float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"layer 0: the update is NaN or infinite. No weight was changed"
    ):
        edit(Mend(LAYERS), model, REQUESTS, MendState(START, network))
    assert torch.equal(read_weight(model, 0), before)
