"""r-ROME, ROME with one key in both places, and what of it is a name only."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from palimpsest.editors import Prepared, Rome, edit, editor_for
from palimpsest.editors.settings import editor_settings
from palimpsest.memory.keys import subject_keys
from palimpsest.network.model import read_weight
from tests.editing import CONTEXTS, REQUESTS, double, every_kind, small, stub_texts

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)


def pair() -> tuple[Any, Any]:
    """The row, and ROME as released with the row's other settings."""
    row: Any = small("r_rome")
    return row, replace(row, denominator="bare_prompt")


@every_kind
def test_with_one_key_there_is_one_rome(kind: str) -> None:
    """Without sampled contexts the averaged key is the bare prompt's; with them they differ."""
    model, (row, released) = double(kind), pair()
    for contexts, same in ((("",), True), (CONTEXTS, False)):
        one, _ = edit(row, model, REQUESTS, Prepared(contexts))
        other, _ = edit(released, model, REQUESTS, Prepared(contexts))
        assert torch.allclose(one.deltas[1], other.deltas[1], rtol=1e-9, atol=1e-12) == same


@every_kind
def test_the_target_is_the_output_at_the_averaged_key_and_what_was_optimised(kind: str) -> None:
    """W k + δ at the last fact's averaged key k, which no later fact moves."""
    model, (row, _) = double(kind), pair()
    made, _ = edit(row, model, REQUESTS, Prepared(CONTEXTS))
    key = subject_keys(model, REQUESTS, 1, CONTEXTS)[:, -1]
    written = (made.deltas[1] @ key).norm()
    assert float(written) == pytest.approx(made.notes["delta_norm"][-1])
    assert not torch.equal(read_weight(model, 1) @ key, (read_weight(model, 1) + made.deltas[1]) @ key)


@pytest.mark.parametrize("model", ["smollm2-135m", "gpt2-xl", "gpt-j-6b", "qwen2.5-7b"])
def test_rome_on_file_has_the_fix_too(model: str) -> None:
    """So that the row is a name for the same settings; as released needs ``denominator=bare_prompt``."""
    asked = editor_settings(model, "r_rome")
    assert asked.pop("denominator") == "same_key"
    assert asked == editor_settings(model, "rome")
    assert editor_for("r_rome", model) == editor_for("rome", model) == Rome(**asked)
