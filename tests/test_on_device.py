"""What must hold on a GPU as on the CPU: ``pytest tests/test_on_device.py --device cuda``."""

from pathlib import Path

import pytest
import torch

from palimpsest.editors import EDITORS, base, edit, mend
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.sequential import Sequential
from palimpsest.memory.moments import collect, key_statistics
from palimpsest.memory.shard_files import Keys, Shard
from palimpsest.memory.shards import merge_shards, sum_shard
from palimpsest.network.apply import commit, installed
from palimpsest.network.model import FAMILIES, EditableModel, fingerprint
from palimpsest.network.tokens import token_windows
from tests.editing import (
    CONTEXTS,
    REQUESTS,
    begun,
    every_family,
    same_bits,
    small,
    snapshot,
    stub_texts,
    texts,
    untrained,
)
from tests.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache", "one_thread")]

WRITING = [name for name, row in EDITORS.items() if issubclass(row.editor, WeightEditor)]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
    monkeypatch.setattr(mend, "trained_for", untrained)
    monkeypatch.setattr(mend.Mend, "learnt", lambda *_: "untrained")


def on(device: torch.device, kind: str = "llama", dtype: torch.dtype = torch.float32) -> EditableModel:
    model = tiny_model(kind)
    model.net.to(device=device, dtype=dtype)
    return model


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖, on the CPU."""
    return float((one.cpu().double() - other.cpu().double()).norm() / other.cpu().double().norm())


@pytest.mark.parametrize("name", WRITING)
def test_an_edit_is_that_of_the_cpu_and_leaves_the_model_as_it_was(name: str, device: torch.device) -> None:
    model, editor = on(device), small(name)
    before = snapshot(model)
    made, state = edit(editor, model, REQUESTS, begun(editor))
    assert same_bits(model, before)
    expected, _ = edit(editor, tiny_model("llama"), REQUESTS, begun(editor))
    for layer, delta in made.deltas.items():
        assert delta.device.type == device.type
        assert apart(delta, expected.deltas[layer]) < 1e-2  # float32, amplified by the value optimisation
    with installed(model, made):
        assert fingerprint(model) != made.base
    assert same_bits(model, before)
    commit(model, made)
    further, _ = edit(editor, model, REQUESTS[:1], state)
    assert further.base == fingerprint(model)


@every_family
def test_every_family_is_edited_on_the_device(kind: str, device: torch.device) -> None:
    assert kind in FAMILIES
    editor = small("memit")
    made, _ = edit(editor, on(device, kind), REQUESTS[:2], begun(editor))
    assert all(delta.isfinite().all() and delta.any() for delta in made.deltas.values())


def test_a_sequence_in_bfloat16(device: torch.device) -> None:
    model = on(device, dtype=torch.bfloat16)
    editor = Sequential(layers=(1,), ridge=1.0, statistics_tokens=1500)
    state = begun(editor)
    for some in (REQUESTS[:2], REQUESTS[2:]):
        made, state = editor.edit(model, some, state)
        commit(model, made)
    assert all(weight.isfinite().all() for weight in model.net.parameters())


def test_second_moments_are_those_of_the_cpu(device: torch.device) -> None:
    model, plain = on(device), tiny_model("llama")
    windows = token_windows(model.tokenizer, texts(), 400, 16)
    there, here = collect(model, [0, 2], windows), collect(plain, [0, 2], windows)
    for layer, moment in there.items():
        assert moment.total.device.type == device.type
        assert moment.count == here[layer].count
        assert apart(moment.total, here[layer].total) < 1e-5


def test_merged_shards_are_found_on_the_device(device: torch.device, tmp_path: Path) -> None:
    model = on(device)
    keys = Keys.of(model, [1], 400, texts(), window=16, batch_size=4)
    for number in (1, 2):
        sum_shard(model, keys, Shard(number, 2), texts(), tmp_path, save_every=0)
    merge_shards(keys, tmp_path)
    found = key_statistics(model, [1], 400, texts(), window=16, batch_size=4)[1]
    whole = collect(model, [1], token_windows(model.tokenizer, texts(), 400, 16), 4)[1]
    assert found.total.device.type == device.type
    assert apart(found.total, whole.total) < 1e-12
