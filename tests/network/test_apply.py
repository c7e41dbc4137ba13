"""Edits put in and taken out: every bit comes back, and a refused edit changes none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palimpsest.errors import ModelError, NonFiniteError, ShapeError, SiteError
from palimpsest.network import apply
from palimpsest.network.apply import PromptContext, WeightDelta, commit, installed
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from tests.editing import KINDS, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def delta(model: EditableModel, layer: int, seed: int = 0, size: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(read_weight(model, layer).shape, dtype=torch.float64, generator=generator)


def an_edit(model: EditableModel, layers: tuple[int, ...] = (1, 2), seed: int = 0) -> WeightDelta:
    return WeightDelta({layer: delta(model, layer, seed + layer) for layer in layers}, fingerprint(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_installed_adds_and_restores_every_bit(kind: str, dtype: torch.dtype) -> None:
    """Also where W + Δ − Δ would not be W again: tiny weights beside a large update, and a negative zero."""
    model = tiny_model(kind)
    model.net.to(dtype)
    read_weight(model, 1)[0, 0], read_weight(model, 1)[0, 1] = -0.0, 1e-30
    before, edit = snapshot(model), an_edit(model)
    with installed(model, edit) as inside:
        assert inside is model
        for layer, change in edit.deltas.items():
            old = before[model.weight_name(layer)]
            old = old.T if kind == "gpt2" else old
            assert torch.equal(read_weight(model, layer), (old.double() + change).to(dtype))
        unedited = model.weight_name(0)
        assert torch.equal(model.net.state_dict()[unedited], before[unedited])
        assert not same_bits(model, before)
    assert same_bits(model, before)


def test_restored_after_an_error_inside() -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), installed(model, an_edit(model)):
        raise ZeroDivisionError
    assert same_bits(model, before)


def test_restored_after_an_error_while_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer is written, the second fails."""
    model, write, calls = tiny_model("llama"), apply.write_weight, []
    before, edit = snapshot(model), an_edit(model)

    def failing(model: EditableModel, layer: int, weight: Tensor) -> None:
        calls.append(layer)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        write(model, layer, weight)

    monkeypatch.setattr(apply, "write_weight", failing)
    with pytest.raises(RuntimeError, match="out of memory"), installed(model, edit):
        pass
    assert calls[:2] == [1, 2]
    assert same_bits(model, before)


def test_commit_adds_for_good() -> None:
    for kind in KINDS:
        model = tiny_model(kind)
        old, edit = read_weight(model, 2).clone(), an_edit(model)
        start = fingerprint(model)
        commit(model, edit)
        assert torch.equal(read_weight(model, 2), (old.double() + edit.deltas[2]).float())
        assert fingerprint(model) != start


def test_an_empty_edit_changes_nothing() -> None:
    model = tiny_model("gpt2")
    before = snapshot(model)
    commit(model, WeightDelta({}))
    assert same_bits(model, before)


def with_value(value: float) -> Callable[[EditableModel], WeightDelta]:
    def make(model: EditableModel) -> WeightDelta:
        deltas = {1: delta(model, 1), 2: delta(model, 2)}
        deltas[2][3, 4] = value
        return WeightDelta(deltas)

    return make


def of_shape(rows: int, columns: int) -> Callable[[EditableModel], WeightDelta]:
    def make(model: EditableModel) -> WeightDelta:
        return WeightDelta({1: delta(model, 1), 2: torch.zeros(rows, columns, dtype=torch.float64)})

    return make


def of_another_model(model: EditableModel) -> WeightDelta:
    return an_edit(tiny_model("llama", seed=1))


def of_a_missing_layer(model: EditableModel) -> WeightDelta:
    return WeightDelta({1: delta(model, 1), 9: delta(model, 1)})


REFUSED = [
    (with_value(float("nan")), NonFiniteError, "layer 2: the update holds NaN or infinity; it was refused"),
    (with_value(float("inf")), NonFiniteError, "layer 2: the update holds NaN or infinity; it was refused"),
    (with_value(1e300), NonFiniteError, "no weight was changed"),  # finite, but not in float32
    (of_shape(64, 32), ShapeError, r"layer 2: the edit is \(64, 32\), the weight \(32, 64\)"),
    (of_shape(1, 64), ShapeError, r"layer 2: the edit is \(1, 64\)"),  # would broadcast
    (of_another_model, ModelError, r"made for a model with other weights than tiny-llama-0 has now \(fing"),
    (of_a_missing_layer, SiteError, "layer 9 does not exist"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused_before_any_weight_is_written(
    make: Callable[[EditableModel], WeightDelta], error: type[Exception], message: str
) -> None:
    model = tiny_model("llama")
    before, edit = snapshot(model), make(model)
    with pytest.raises(error, match=message):
        commit(model, edit)
    with pytest.raises(error, match=message), installed(model, edit):
        raise AssertionError("the block of a refused edit ran")
    assert same_bits(model, before)


def test_an_edit_is_refused_once_the_model_has_changed() -> None:
    model = tiny_model("gpt2")
    edit = an_edit(model)
    commit(model, edit)
    with pytest.raises(ModelError, match="make the edit again on this model, or apply edits in the order"):
        commit(model, edit)


def test_an_edit_made_here_is_committed_without_asking_which_model_it_was_made_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fingerprint, a pass over all weights, is not taken; the weights are the same as with it."""
    model, twin = tiny_model("llama"), tiny_model("llama")
    edit = an_edit(model)
    commit(twin, edit)
    monkeypatch.setattr(apply, "fingerprint", None)
    commit(model, edit, made_here=True)
    assert same_bits(model, snapshot(twin))
    with pytest.raises(TypeError):
        commit(model, edit)


@pytest.mark.parametrize(
    ("make", "error", "message"), [case for case in REFUSED if case[0] is not of_another_model]
)
def test_an_edit_made_here_is_otherwise_checked(
    make: Callable[[EditableModel], WeightDelta], error: type[Exception], message: str
) -> None:
    model = tiny_model("llama")
    before, edit = snapshot(model), make(model)
    with pytest.raises(error, match=message):
        commit(model, edit, made_here=True)
    assert same_bits(model, before)


def test_a_context_made_here_is_no_weight_either() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="a text before the prompts, which no weight can keep"):
        commit(model, PromptContext("Rome. ", fingerprint(model)), made_here=True)


def test_nested() -> None:
    """Edits made one upon the other go in and out in order; one for the model below is refused."""
    model = tiny_model("llama")
    before, first = snapshot(model), an_edit(model, (1,))
    with installed(model, first):
        middle = snapshot(model)
        second = an_edit(model, (1, 2), seed=7)
        with installed(model, second):
            weight = read_weight(model, 1)
            expected = middle[model.weight_name(1)].double() + second.deltas[1]
            assert torch.equal(weight, expected.float())
        assert same_bits(model, middle)
        with pytest.raises(ModelError, match="other weights"):
            commit(model, first)
        assert same_bits(model, middle)
    assert same_bits(model, before)


def test_norm_over_layers() -> None:
    edit = WeightDelta({0: torch.tensor([[3.0, 0.0]]), 4: torch.tensor([[0.0], [4.0]])})
    assert edit.norm() == 5
    assert WeightDelta({}).norm() == 0
