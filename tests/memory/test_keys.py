"""Reads of all layers in one pass: equal to one pass a layer, while the caller edits from below."""

from collections.abc import Sequence

import pytest
import torch

from palimpsest.memory import keys as keys_module
from palimpsest.memory.keys import read_ascending, read_unedited, subject_hidden, subject_keys
from palimpsest.network.apply import restored
from palimpsest.network.model import EditableModel, read_weight, write_weight
from tests.editing import CONTEXTS, EXACT, REQUESTS, double, every_family
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def moved(model: EditableModel, layer: int) -> torch.Tensor:
    weight = read_weight(model, layer)
    draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer), dtype=weight.dtype)
    return weight + 0.3 * weight.std() * draw


@every_family
@pytest.mark.parametrize("layers", [(0, 1, 2), (1, 3), (2,)])
@pytest.mark.parametrize("contexts", [CONTEXTS, ("",)])
def test_each_layer_is_read_with_all_below_edited(
    kind: str, layers: tuple[int, ...], contexts: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "ROWS_PER_PASS", 5)  # several groups of requests
    model = double(kind)
    close = {"rtol": EXACT[kind], "atol": EXACT[kind]}
    with restored(model, layers):
        for read in read_ascending(model, REQUESTS, layers, contexts):
            torch.testing.assert_close(
                read.keys, subject_keys(model, REQUESTS, read.layer, contexts), **close
            )
            torch.testing.assert_close(read.hidden, subject_hidden(model, REQUESTS, layers[-1]), **close)
            write_weight(model, read.layer, moved(model, read.layer))
        edited = [subject_keys(model, REQUESTS, layer, contexts) for layer in layers]
    plain = [subject_keys(model, REQUESTS, layer, contexts) for layer in layers]
    torch.testing.assert_close(edited[0], plain[0], **close)
    for after, before in zip(edited[1:], plain[1:], strict=True):
        assert not torch.allclose(after, before, rtol=1e-2)


@every_family
def test_unedited_reads_of_all_layers(kind: str) -> None:
    model, layers = double(kind), (0, 2, 3)
    found = read_unedited(model, REQUESTS, layers, CONTEXTS)
    assert [read.layer for read in found] == list(layers)
    for read in found:
        torch.testing.assert_close(read.keys, subject_keys(model, REQUESTS, read.layer, CONTEXTS))
        torch.testing.assert_close(read.hidden, subject_hidden(model, REQUESTS, 3))


def test_a_pass_of_several_cores_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "ROWS_PER_PASS", 4)
    model = tiny_model("llama")
    one = [read.keys for read in read_ascending(model, REQUESTS, (0, 1), CONTEXTS)]
    torch.set_num_threads(2)
    two = [read.keys for read in read_ascending(model, REQUESTS, (0, 1), CONTEXTS)]
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second)
