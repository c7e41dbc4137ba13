"""Everything that takes a model runs on another device, with the numbers of the CPU but for rounding.

The device is a double (`tests.device_double`): no tensor is left on the wrong side. How a GPU rounds is not
shown.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.editors import EDITORS, base, mend
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.remembered import RememberingEditor
from palimpsest.editors.steps import steps
from palimpsest.evaluation.ability import ability
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.drift import drift, reference
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.metrics import SCORES
from palimpsest.evaluation.representation import representations
from palimpsest.memory.keys import subject_hidden
from palimpsest.memory.known_values import known_values
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import EditableModel, generate, read_weight
from palimpsest.studies.stream import Stream
from palimpsest.workbench.edited_model import EditedModel
from tests.device_double import DEVICE, MixedDevicesError, double
from tests.editing import CONTEXTS, begun, every_kind, sampled, small, stub_texts, texts, untrained
from tests.evaluation.test_ability import CHOICE, CLOZE
from tests.sequences import FACTS, make
from tests.studies.test_trajectory import CASES
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, facts

pytestmark = pytest.mark.usefixtures("one_thread")
WRITING = [name for name, row in EDITORS.items() if issubclass(row.editor, WeightEditor)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    stub_texts(monkeypatch)
    monkeypatch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
    monkeypatch.setattr(mend, "trained_for", untrained)
    monkeypatch.setattr(mend.Mend, "learnt", lambda *_: "untrained")
    with double() as made:
        yield made


def alike(one: Any, other: Any) -> bool:
    """Whether nested lists hold the same texts and, but for rounding, the same numbers."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return bool(one == pytest.approx(other, rel=2e-3, abs=2e-4, nan_ok=True))
    return bool(one == other)


def on_both(
    kind: str, work: Callable[[EditableModel], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any]:
    """A result on the CPU and on the device, each with a cache of its own."""
    found = []
    for place in ("cpu", DEVICE):
        monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / f"cache of {place}".replace(":", " ")))
        model = tiny_model(kind)
        model.net.to(place)
        assert model.device.type == torch.device(place).type
        found.append(work(model))
    return found[0], found[1]


def test_the_double_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    made = torch.ones(3, device=device)
    assert (made + 1).tolist() == [2, 2, 2]
    with pytest.raises(MixedDevicesError, match=r"\[\(3,\)\] on the device, \[\(3,\)\] on the CPU"):
        made + torch.ones(3)
    with pytest.raises(MixedDevicesError, match="data on the CPU"):
        torch.ones(3)[torch.tensor([0], device=device)]
    with pytest.raises(RuntimeError, match="a generator of the device is needed"):
        torch.randn(3, device=device, generator=torch.Generator())
    with pytest.raises(TypeError, match="no view for NumPy"):
        made.numpy()
    assert made.cpu().numpy().tolist() == [1, 1, 1]


@sampled(WRITING)
def test_every_editor(
    name: str, kind: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(model: EditableModel) -> list[list[float]]:
        editor = small(name)
        edit, _ = editor.edit(model, FACTS[:3], begun(editor))
        assert isinstance(edit, WeightDelta)
        with installed(model, edit):
            return [read_weight(model, layer).cpu().flatten().tolist() for layer in editor.layers]

    plain, there = on_both(kind, work, tmp_path, monkeypatch)
    assert alike(there, plain)


@pytest.mark.parametrize("name", ["grace", "melo"])
def test_memories(name: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches, the second of which splits entries of the first, and one fact forgotten again."""

    def work(model: EditableModel) -> list[Any]:
        editor, state = small(name, radius=100.0), None
        assert isinstance(editor, RememberingEditor)
        for batch in (FACTS[:2], FACTS[2:4]):
            edit, state = editor.edit(model, batch, state)
        left, _ = editor.forget(model, state, [FACTS[1].id or FACTS[1].text])
        found: list[Any] = []
        for held in (edit, left):
            with installed(model, held):
                found.append(ask(model, [(fact.text, fact.target) for fact in FACTS[:4]]).nll.tolist())
            found.append(held.book.radii.tolist())
        return found

    plain, there = on_both("llama", work, tmp_path, monkeypatch)
    assert alike(there, plain)


@pytest.mark.parametrize("host", ["memit", "alphaedit"])
@every_kind
def test_sequences(
    kind: str, host: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(model: EditableModel) -> list[float]:
        editor = make(host)
        batches = [FACTS[:2], FACTS[2:4]]
        return [
            float(norm)
            for step in steps(model, editor, batches)
            for norm in step.edit.notes["total_norm"].values()
        ]

    plain, there = on_both(kind, work, tmp_path, monkeypatch)
    assert alike(there, plain)


MEASURED: dict[str, Callable[[EditableModel], Any]] = {
    "scores": lambda model: [record.value for record in evaluate(model, CASES[:3], SCORES)],
    "drift": lambda model: drift(
        model, reference(model, tokens=64, window=16, texts=texts())
    ).windows.values.tolist(),
    "ability": lambda model: ability(model, [CHOICE, CLOZE]).rows.values.tolist(),
    "states": lambda model: representations(model, FACTS[:3], 1).prompt.tolist(),
    "texts": lambda model: generate(model, "Anna Berg was born in", 8),
    "hidden": lambda model: subject_hidden(model, FACTS[:3], 1).cpu().tolist(),
    "values": lambda model: (
        known_values(model, FACTS[:3], 1, make("memit").targets, CONTEXTS).targets.values.cpu().tolist()
    ),
    "stream": lambda model: (
        Stream(model, CASES[:2], 1, reference(model, tokens=64, window=16, texts=texts()))
        .outcome(make("memit"))["value"]
        .tolist()
    ),
}


@pytest.mark.parametrize("what", MEASURED)
@every_kind
def test_every_measurement(
    kind: str, what: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, there = on_both(kind, MEASURED[what], tmp_path, monkeypatch)
    assert alike(there, plain)


def test_an_edited_model(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, a fact forgotten, its ledgers saved; they lie where the weights do."""

    def work(model: EditableModel) -> list[list[float]]:
        edited = EditedModel(model, EDITOR)
        edited.edit(facts(4), 2)
        edited.forget(["1"])
        for layer, ledger in edited.ledgers.items():
            ledger.save(tmp_path / f"{layer}.safetensors")
        assert {ledger.weight.device.type for ledger in edited.ledgers.values()} == {model.device.type}
        return [read_weight(model, layer).cpu().flatten().tolist() for layer in EDITOR.layers]

    plain, there = on_both("llama", work, tmp_path, monkeypatch)
    assert alike(there, plain)
