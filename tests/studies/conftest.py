"""What the tests of long sequences share: a tiny model, a held-out text, values that are drawn."""

from pathlib import Path

import pytest

from palimpsest.editors import base
from palimpsest.evaluation.drift import Reference, reference
from palimpsest.network.model import EditableModel
from tests.editing import CONTEXTS, stub_texts, texts
from tests.sequences import drawn
from tests.tiny import tiny_model


@pytest.fixture
def drawn_values(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No texts, contexts or values are computed, and the cache is the test's own."""
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
    monkeypatch.setattr(base, "optimise_targets", drawn())


@pytest.fixture
def model() -> EditableModel:
    return tiny_model("llama")


@pytest.fixture
def text(model: EditableModel) -> Reference:
    return reference(model, tokens=64, window=16, texts=texts())
