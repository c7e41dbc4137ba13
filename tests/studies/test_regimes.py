"""The regime of a run against the numbers it is made of, for editors of every kind."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from palimpsest.editors import FineTune, Memit, Rome
from palimpsest.editors.steps import steps
from palimpsest.errors import ScoreError
from palimpsest.memory.values import optimise_targets
from palimpsest.network.model import read_weight
from palimpsest.studies.regimes import planned_regime, regime_of
from tests.sequences import BATCHES, FACTS, LAYERS, VALUES, make, offline
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "_offline")


@pytest.fixture(scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from offline(tmp_path_factory)


def regime_after(editor: Any) -> tuple[Any, list[Any], Any]:
    """The regime of a run over all batches, its steps, and the model."""
    model = tiny_model("llama")
    made = list(steps(model, editor, BATCHES))
    return regime_of(model, editor, [step.edit.notes for step in made], made[-1].state.prepared), made, model


def test_a_sequence_with_a_projector_knows_every_number() -> None:
    editor = make("both")
    found, made, model = regime_after(editor)
    d_v, d_k = read_weight(model, LAYERS[-1]).shape
    states = torch.tensor([x for step in made for x in step.edit.notes["hidden_norm"]])
    assert found.step == pytest.approx(VALUES.lr * d_v**0.5 / float(states.mean()))
    assert found.load == len(FACTS) / d_k
    assert (found.clamp, found.anchor) == (VALUES.clamp, editor.preserve_weight)
    prepared = made[-1].state.prepared
    energies = [float(torch.trace(prepared.moments[layer])) for layer in LAYERS]
    assert found.ridge == pytest.approx(editor.ridge * len(energies) / sum(energies))
    # The rule protects at least half of the key energy, in few directions.
    assert found.free_energy is not None
    assert found.free_directions is not None
    assert 0 < found.free_energy <= 0.5 < found.free_directions < 1
    assert found.loss is not None
    assert found.loss > 0
    assert set(found.known()) == set(type(found).__dataclass_fields__)


def test_a_planned_run_has_the_regime_of_its_first_step() -> None:
    model, editor = tiny_model("llama"), make("both")
    contexts = editor.prepare(model).contexts
    values = optimise_targets(model, BATCHES[0], LAYERS[-1], VALUES, contexts)
    planned = planned_regime(model, editor, values, len(BATCHES[0]))
    (step,) = steps(model, editor, BATCHES[:1])
    assert planned == regime_of(model, editor, [step.edit.notes], step.state.prepared)


@pytest.mark.parametrize(("clamp", "share"), [(1e-4, 1.0), (1e6, 0.0)])
def test_the_share_at_the_clamp_is_all_for_a_tight_one_and_none_for_a_wide_one(
    clamp: float, share: float
) -> None:
    found, _, _ = regime_after(replace(make("memit"), targets=replace(VALUES, clamp=clamp)))
    assert found.clamped == share


def test_without_a_projector_every_direction_is_free() -> None:
    found, _, _ = regime_after(make("memit"))
    assert (found.free_directions, found.free_energy) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("editor", "unknown"),
    [
        (Memit(layers=LAYERS, preserve_weight=20.0, statistics_tokens=1500, targets=VALUES), {"ridge"}),
        (Rome(layers=(1,), second_moment=False, targets=VALUES), {"anchor", "ridge"}),
        (FineTune(layers=(1,), steps=2, lr=0.01), {"step", "clamp", "clamped", "loss", "anchor", "ridge"}),
    ],
    ids=["memit", "rome", "ft"],
)
def test_numbers_that_a_method_does_not_have_are_unknown(editor: Any, unknown: set[str]) -> None:
    found, _, _ = regime_after(editor)
    assert set(type(found).__dataclass_fields__) - set(found.known()) == unknown


def test_a_regime_needs_an_edit() -> None:
    with pytest.raises(ScoreError, match="give the notes of at least one"):
        regime_of(tiny_model("llama"), make("memit"), [])
