"""Facts, editors and an oracle that the tests of sequences share."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palimpsest.editors import base
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.editors.steps import Step, steps
from palimpsest.memory.keys import subject_hidden
from palimpsest.memory.settings import TargetSettings
from palimpsest.memory.values import Targets
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, REQUESTS, stub_texts

LAYERS = (0, 1, 2)
TOKENS = 1500
VALUES = TargetSettings(steps=4, lr=0.3)
PROMPTS = [
    *REQUESTS,
    EditRequest("{} works in the field of", "Marie Curie", "music"),
    EditRequest("The Space Needle is in {}, in the north", "Seattle", "Rome"),
]
FACTS = [replace(request, id=f"fact {i}") for i, request in enumerate(PROMPTS)]
OTHERS = [replace(fact, target=target) for fact, target in zip(FACTS, "ABCDEF", strict=True)]
BATCHES = [FACTS[:2], FACTS[2:3], FACTS[3:]]

ANCHORS: dict[str, dict[str, Any]] = {
    "memit": {"preserve_weight": 20.0},
    "alphaedit": {"ridge": 1.0, "rule": "energy", "threshold": 0.5},
    "both": {"preserve_weight": 20.0, "ridge": 2.0, "rule": "energy", "threshold": 0.5},
    "plain": {"ridge": 1.0},
}

every_anchor = pytest.mark.parametrize("anchor", ANCHORS)


def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all tests of a file, texts without resources, contexts a random model cannot write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(base, "sample_contexts", lambda *_: CONTEXTS)
        stub_texts(patch)
        yield


def drawn(size: float = 1.0) -> Callable[..., Targets]:
    """Values far quicker than optimised ones: the state now plus a random vector of the fact's own."""

    def values(model: EditableModel, requests: Sequence[EditRequest], layer: int, *_: Any) -> Targets:
        hidden = subject_hidden(model, requests, layer)
        columns = []
        for request in requests:
            seed = zlib.crc32(f"{request.text} -> {request.target}".encode())
            columns.append(torch.randn(len(hidden), generator=torch.Generator().manual_seed(seed)))
        deltas = size * torch.stack(columns, 1).to(hidden)
        return Targets(hidden + deltas, deltas, torch.zeros(len(requests), 1))

    return values


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn values in place of optimised ones, for every editor."""
    monkeypatch.setattr(base, "optimise_targets", drawn())


def make(host: str = "memit", /, **options: Any) -> Sequential:
    return Sequential(
        **{"layers": LAYERS, "statistics_tokens": TOKENS, "targets": VALUES, **ANCHORS[host], **options}
    )


def run(
    editor: Any, batches: Sequence[Sequence[EditRequest]], model: EditableModel
) -> tuple[list[Step], list[dict[int, Tensor]]]:
    """All steps of a sequence, and the weights of the model after each."""
    found, weights = [], []
    for step in steps(model, editor, batches):
        found.append(step)
        weights.append({layer: read_weight(model, layer).clone() for layer in editor.layers})
    return found, weights


def state_of(step: Step) -> SequenceState:
    assert isinstance(step.state, SequenceState)
    return step.state


def apart(found: dict[int, Tensor], wanted: dict[int, Tensor], state: SequenceState) -> float:
    """Largest difference over layers, relative to how far the wanted weight is from the unedited one."""
    gaps = [(found[i] - wanted[i]).norm() / (wanted[i] - state.unedited[i]).norm() for i in wanted]
    return float(max(gaps))


def one_time(editor: Sequential, state: SequenceState, layer: int, keys: Tensor, values: Tensor) -> Tensor:
    """W_0 + D by numpy's SVD least squares on one tall system in the coordinates of range(P)."""
    weight, moment = state.unedited[layer].double(), state.prepared.moments[layer]
    basis = torch.eye(len(moment)).double()
    if editor.rule is not None:
        share, vectors = torch.linalg.eigh(state.prepared.projectors[layer].apply(basis))
        basis = vectors[:, share > 0.5]
    spectrum, vectors = torch.linalg.eigh(editor.preserve_weight * moment)
    root = spectrum.clamp(min=0).sqrt()[:, None] * vectors.T
    ridge = editor.ridge**0.5 * torch.eye(basis.shape[1]).double()
    a = torch.cat([keys.T @ basis, root @ basis, ridge])
    b = torch.zeros(len(a), len(weight)).double()
    b[: keys.shape[1]] = (values - weight @ keys).T
    x = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
    return weight + torch.from_numpy(x.T) @ basis.T


def direct(editor: Sequential, state: SequenceState) -> dict[int, Tensor]:
    """The one-time weights over the facts in the ledgers of a state."""
    held = state.ledgers
    return {i: one_time(editor, state, i, held[i].keys, held[i].values) for i in editor.layers}
