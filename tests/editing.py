"""Requests, contexts, texts and a statistics stub that the tests of editing share."""

import random
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytest
import torch

from palimpsest.editors import EDITORS, Editor, Prepared, State, editor_for
from palimpsest.editors.hypernetwork import Hypernetwork
from palimpsest.editors.reader import Reader, Scope
from palimpsest.editors.settings import editor_settings
from palimpsest.network.adapter import Adapter
from palimpsest.network.model import FAMILIES, EditableModel, Site, read_weight
from palimpsest.network.read_context import ScopeHead
from palimpsest.types import EditRequest
from tests.tiny import SENTENCES, VARIANTS, tiny_model

KINDS = ("llama", "gpt2")
"""One family for each way in which a weight is stored: enough where only weights matter."""

# For tests that take a second or more on each family: `make test` runs all, `make check` one.
every_kind = pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
LIKE_LLAMA = ("qwen3", "mistral", "phi3", "gemma")
"""Families whose every code path is LLaMA's or, for windows, Gemma 2's; in full under ``-m nightly``."""
_OTHERS = [
    pytest.param(kind, marks=pytest.mark.nightly if kind in LIKE_LLAMA else pytest.mark.slow)
    for kind in FAMILIES
    if kind != "llama"
]
every_family = pytest.mark.parametrize("kind", ["llama", *_OTHERS])


def sampled(methods: Iterable[str]) -> pytest.MarkDecorator:
    """Every method on the first family in `make check`, on one or two others in `make test`, on all under
    ``-m nightly``.

    The others change from one method to the next, so that each is met by some method.
    """
    methods = list(methods)
    first, *others = FAMILIES
    pairs = []
    for at, name in enumerate(methods):
        pairs.append(pytest.param(name, first))
        for turn, kind in enumerate(others):
            met = turn == at % len(others) or at == turn % len(methods)
            mark = pytest.mark.slow if met else pytest.mark.nightly
            pairs.append(pytest.param(name, kind, marks=mark))
    return pytest.mark.parametrize(("name", "kind"), pairs)


EXACT = dict.fromkeys([*FAMILIES, *VARIANTS], 1e-7) | {"gptj": 1e-4, "gemma2": 1e-4}
"""Kind -> tolerance of two float64 passes: attention of GPT-J and Gemma 2 is computed in float32."""

# Subjects at the start, in the middle and at the end; one to many tokens; targets of one and more tokens.
REQUESTS = [
    EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
    EditRequest("{} lives in", "Anna Berg", "Seattle, in the north"),
    EditRequest("Where was the writer of the field guide to Rome born? It was {}", "Xu Ω", "Rome"),
    EditRequest("The capital of {}, in the north, is the city of", "France", "Paris"),
]
CONTEXTS = ("", "Anna Berg plays the piano. ", "The city is {old}. ")


EMBEDDED = "smollm2-135m"
SMALL: dict[str, Any] = {
    "layers": (1,),
    "statistics_tokens": 1500,
    "rule": "energy",
    "threshold": 0.5,
    "steps": 4,
    "lr": 0.03,
    "count": 0,
}
"""In place of settings on file, where a method has them: what fits a tiny model and takes no time."""


def small(name: str, **overrides: Any) -> Editor:
    """A row of EDITORS with its settings on file for the embedded model, cut down to a tiny one."""
    settings = {key: value for key, value in SMALL.items() if key in _fields(EDITORS[name].editor)}
    if "targets" in (on_file := editor_settings(EMBEDDED, name)):
        settings["targets"] = on_file["targets"] | {"steps": 4, "lr": 0.3}
    return editor_for(name, EMBEDDED, **{**settings, **overrides})


def _fields(settings: Any) -> set[str]:
    return {field.name for field in fields(settings)}


def begun(editor: Editor, prepared: Prepared | None = None) -> State:
    """The state before the first edit, with a score for an editor that asks for one.

    With contexts where none are given, because a random model cannot write readable ones.
    """
    return editor.begin(
        prepared or Prepared(CONTEXTS), lambda model, requests: -float(read_weight(model, 1).norm())
    )


def texts(count: int = 300, seed: int = 0) -> list[str]:
    """Random sentences of known words and random bytes, varied enough for keys of full rank."""
    chooser = random.Random(seed)
    words = " ".join(SENTENCES).split()
    letters = [chr(code) for code in range(33, 127)]
    return [
        " ".join(chooser.choice(words) + chooser.choice(letters) for _ in range(chooser.randint(4, 9)))
        for _ in range(count)
    ]


def stub_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics come from `texts`, so that no resource is fetched."""
    monkeypatch.setattr("palimpsest.memory.moments.statistics_texts", texts)


def untrained(model: EditableModel, *_: object, layers: tuple[int, ...] = (1,)) -> Hypernetwork:
    """A hypernetwork as it begins, in place of one on file; its steps are long enough for half precision."""
    width = read_weight(model, layers[0]).shape
    return Hypernetwork(layers, (width[0], width[1]), rank=4, rate=1e-2).to(model.device)


def some_reader(model: EditableModel, *_: object, dimensions: int = 32) -> Reader:
    """A classifier by the cosine alone and random matrices, in place of what SERAC has on file."""
    width, generator = read_weight(model, 1).shape, torch.Generator().manual_seed(0)
    adapter = Adapter((1, 2), (width[0], width[1]), rank=2, seed=1)
    with torch.no_grad():
        adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator))
    weights = torch.zeros(1 + 2 * dimensions, dtype=torch.float64)
    weights[0] = 20
    head, scope = ScopeHead(weights, bias=-16.0), Scope(0.5, 1.0, 1, 1)  # in scope from a cosine of 0.8 on
    return Reader(head, scope, adapter.to(model.device).requires_grad_(False), {"plan": {"steps": 3}})


def double(kind: str, **options: Any) -> EditableModel:
    """A tiny model in float64, for statements up to rounding."""
    model = tiny_model(kind, **options)
    model.net.double()
    return model


def plain_states(model: EditableModel, ids: list[int], site: Site) -> torch.Tensor:
    """What passes a site in one whole, unpadded forward pass (t, d), by hooks of PyTorch alone."""
    row: dict[str, torch.Tensor] = {}
    layer = model.net.get_submodule(model.family.layers)[site.layer]
    projection = layer.get_submodule(model.family.value_projection)

    def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        # (t, d) of one row, also where a layer flattens its batch
        row["key"], row["value"] = inputs[0].flatten(0, -2), output.flatten(0, -2)

    def whole(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        row["hidden"] = (output[0] if isinstance(output, tuple) else output)[0]

    def inside(module: torch.nn.Module, inputs: Any) -> None:
        row["before_norm"] = inputs[0][0]

    handles = [projection.register_forward_hook(after), layer.register_forward_hook(whole)]
    norm = model.norm_behind(site.layer)
    handles += [] if norm is None else [norm.register_forward_pre_hook(inside)]
    with torch.no_grad():
        model.net(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return row[site.part]


def snapshot(model: EditableModel) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the network."""
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def same_bits(model: EditableModel, before: dict[str, torch.Tensor]) -> bool:
    """Whether every tensor of the network is as it was, bit by bit (also NaN and signed zeros)."""
    now = model.net.state_dict()
    return now.keys() == before.keys() and all(
        torch.equal(now[name].view(torch.uint8), old.view(torch.uint8)) for name, old in before.items()
    )
