"""The lengths that a table of a sequence holds are those of the sequence, for editors of every kind."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch

from palimpsest.algebra.postprocess import Prune
from palimpsest.editors import FineTune, Memit, Rome, base
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.paths import cache_dir
from palimpsest.studies import norms
from palimpsest.studies.norms import norm_trace, noted_norms
from tests.editing import same_bits, snapshot
from tests.sequences import BATCHES, FACTS, LAYERS, VALUES, make, offline, quicken
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "_offline")


@pytest.fixture(scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from offline(tmp_path_factory)


EDITORS: dict[str, Any] = {
    "sequence": make("memit"),
    "memit": Memit(layers=LAYERS, preserve_weight=20.0, statistics_tokens=1500, targets=VALUES),
    "rome": Rome(layers=(1,), second_moment=False, targets=VALUES),
    "ft": FineTune(layers=(1,), steps=2, lr=0.01),
}


@pytest.fixture(autouse=True)
def _values(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    quicken(monkeypatch)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", EDITORS)
def test_the_table_is_what_happened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of weights against the weights themselves, of values against the values that were made."""
    model, editor = tiny_model("llama"), EDITORS[name]
    before, made = snapshot(model), []
    real = base.optimise_targets

    def kept(*arguments: Any) -> Any:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(base, "optimise_targets", kept)
    table = norm_trace(model, editor, BATCHES)
    assert same_bits(model, before)
    rows = table.set_index(["step", "norm", "of"])["value"]
    values, count = list(made), 0
    for number, step in enumerate(steps(model, editor, BATCHES), 1):
        count += len(step.requests)
        assert set(table.loc[table["step"] == number, "edits"]) == {count}
        for layer in editor.layers:
            moved = read_weight(model, layer) - weight_of(before, model, layer)
            assert rows[number, "total_norm", str(layer)] == pytest.approx(float(moved.norm()), rel=1e-4)
            expected = float(step.edit.deltas[layer].norm())
            assert rows[number, "step_norm", str(layer)] == pytest.approx(expected, rel=1e-6)
        for i, fact in enumerate(step.requests if values else ()):
            found = values[number - 1]
            parts = {"hidden": found.initial, "delta": found.deltas, "value": found.values}
            for part, columns in parts.items():
                assert rows[number, f"{part}_norm", fact.id] == pytest.approx(float(columns[:, i].norm()))
    assert bool(values) == (name != "ft")
    assert ("value_norm" in set(table["norm"])) == bool(values)


def weight_of(before: dict[str, torch.Tensor], model: EditableModel, layer: int) -> torch.Tensor:
    return before[model.weight_name(layer)]


def test_the_second_time_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By editor, settings, facts and weights; nothing else is run."""
    first = norm_trace(tiny_model("llama"), EDITORS["ft"], BATCHES)

    def never(*_: Any) -> None:
        raise AssertionError("run although it is on disk")

    monkeypatch.setattr(norms, "steps", never)
    pd.testing.assert_frame_equal(norm_trace(tiny_model("llama"), EDITORS["ft"], BATCHES), first)
    others: list[tuple[Any, ...]] = [
        (tiny_model("llama", seed=1), EDITORS["ft"], BATCHES),
        (tiny_model("llama"), FineTune(layers=(1,), steps=3, lr=0.01), BATCHES),
        (tiny_model("llama"), EDITORS["ft"], BATCHES[:2]),
        (tiny_model("llama"), EDITORS["ft"], [FACTS]),
    ]
    for arguments in others:
        with pytest.raises(AssertionError, match="run although"):
            norm_trace(*arguments)
    assert len(list((cache_dir() / "norms").iterdir())) == 1


def test_a_sequence_that_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model("llama"), []
    before, real = snapshot(model), FineTune._train

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise NonFiniteError("made up")
        return real(*arguments)

    monkeypatch.setattr(FineTune, "_train", failing)
    table = norm_trace(model, EDITORS["ft"], BATCHES)
    assert table.iloc[-1].tolist() == [2, len(BATCHES[0]), "stopped", "model", 1.0]
    assert set(table["step"]) == {1, 2}
    assert same_bits(model, before)


def test_a_step_of_processing_alone_has_no_facts() -> None:
    sequence = make("memit", post=Prune(of="total", when="end"))
    last = list(steps(tiny_model("llama"), sequence, BATCHES))[-1]
    assert {name for name, _, _ in noted_norms(last)} == {"step_norm", "total_norm"}
