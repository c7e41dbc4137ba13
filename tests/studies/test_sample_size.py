"""What projectors of samples protect, against dense products; changes in percent of a mean."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from palimpsest.algebra.projector import null_space
from palimpsest.algebra.spectrum import rank
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import ScoreError
from palimpsest.memory.moments import key_statistics
from palimpsest.network.model import EditableModel
from palimpsest.studies.sample_size import let_through, protection, relative_change
from tests.editing import texts
from tests.sequences import VALUES

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
EDITOR = Sequential(
    layers=(0, 1), ridge=1.0, rule="energy", threshold=0.9, statistics_tokens=9, targets=VALUES
)


def test_the_energy_let_through_is_that_of_the_keys() -> None:
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(12, 40, generator=draw, dtype=torch.float64)
    projector = null_space(keys @ keys.T / 40, rank(5))
    dense = projector.apply(torch.eye(12).double())
    wanted = (dense @ keys).square().sum() / keys.square().sum()
    assert let_through(projector, keys @ keys.T) == pytest.approx(float(wanted))
    assert let_through(projector, keys @ keys.T) == pytest.approx(projector.leakage(keys))


def test_each_sample_has_the_projector_of_its_editor(model: EditableModel) -> None:
    """Free directions and energies of every layer are those of the moment of so many tokens."""
    unseen = key_statistics(model, (0, 1), 200, texts(seed=1))
    found = protection(model, EDITOR, (10, 40, 400), unseen).set_index(["tokens", "layer"])
    assert list(found.index) == [(n, layer) for n in (10, 40, 400) for layer in (0, 1)]
    for (size, layer), row in found.iterrows():
        made = replace(EDITOR, statistics_tokens=size).prepare(model)
        projector, moment = made.projectors[layer], made.moments[layer]
        assert row["free"] == projector.kept / 64
        assert row["own"] == pytest.approx(let_through(projector, moment), abs=1e-9)
        assert row["unseen"] == pytest.approx(let_through(projector, unseen[layer].value), abs=1e-9)
    assert (found.loc[10, "free"] >= 54 / 64).all()  # ten tokens span at most ten directions
    assert (found["unseen"] >= found["own"] - 1e-9).loc[10].all()  # a sample suits its own text


def test_a_sequence_without_projector_is_refused(model: EditableModel) -> None:
    with pytest.raises(ScoreError, match="has no projector"):
        protection(model, replace(EDITOR, rule=None), (10,), {})


def test_a_change_is_one_of_means_in_percent() -> None:
    whole = pd.Series({"a": 1.0, "b": 0.5, "c": 0.5})
    part = pd.Series({"c": 0.0, "a": 1.0, "b": 0.5})
    found = relative_change(whole, part, 0)
    assert found.mean == pytest.approx(-25)
    assert found.low <= found.mean <= found.high
    assert found.n == 3
    assert relative_change(whole, whole, 0).low == relative_change(whole, whole, 0).high == 0
