"""One contract for every editor on every family, and each editor against its published formula."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from palimpsest.algebra import smoothing
from palimpsest.algebra.postprocess import Rect
from palimpsest.editors import (
    AlphaEdit,
    AlphaEditPlus,
    Editor,
    FineTune,
    Memit,
    Prepared,
    Rome,
    State,
    alphaedit,
    base,
    edit,
    emmet,
    ft,
    memit,
    rome,
    sequential,
)
from palimpsest.editors.alphaedit import AlphaEditState
from palimpsest.editors.alphaedit_plus import Perturbation, Smoothing
from palimpsest.editors.emmet import Emmet
from palimpsest.editors.lora import Lora
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import (
    ModelError,
    NonFiniteError,
    ProfileError,
    RequestError,
    SiteError,
    UnknownNameError,
)
from palimpsest.evaluation.answers import target_nll
from palimpsest.memory import keys as keys_module
from palimpsest.memory.behind_norms import passed
from palimpsest.memory.keys import subject_hidden, subject_inside, subject_keys
from palimpsest.memory.moments import key_statistics
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.apply import WeightDelta, commit, installed
from palimpsest.network.model import EditableModel, Site, fingerprint, read_weight, write_weight
from palimpsest.network.packed import Packed, pack
from palimpsest.network.tokens import encode, pad
from palimpsest.types import EditRequest
from tests.editing import (
    CONTEXTS,
    REQUESTS,
    begun,
    double,
    every_kind,
    plain_states,
    same_bits,
    sampled,
    snapshot,
    stub_texts,
)
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

LAYERS = (0, 1, 2)
TOKENS = 1500
VALUES = TargetSettings(steps=6, lr=0.3)
PARTS = {"perturbation": Perturbation(limit=4), "smoothing": Smoothing(threshold=0.1)}
START = Prepared(CONTEXTS)
"""Contexts, because a random model cannot write readable ones."""


MAKE: dict[str, Callable[..., Any]] = {
    "memit": lambda **o: Memit(**{"layers": LAYERS, "preserve_weight": 20.0, **_common(), **o}),
    "alphaedit": lambda **o: AlphaEdit(
        **{"layers": LAYERS, "ridge": 1.0, "rule": "energy", "threshold": 0.5, **_common(), **o}
    ),
    "alphaedit_plus": lambda **o: AlphaEditPlus(
        **{"layers": LAYERS, "ridge": 1.0, "rule": "energy", "threshold": 0.5, **_common(), **PARTS, **o}
    ),
    "rome": lambda **o: Rome(
        **{"layers": (1,), **_common(), "targets": replace(VALUES, reference="value"), **o}
    ),
    "naive sequence": lambda **o: _sequence(retain="none", preserve_weight=20.0, **o),
    "aligned sequence": lambda **o: _sequence(ridge=1.0, rule="energy", threshold=0.5, **o),
    "sequence with feedback": lambda **o: _sequence(
        retain="latest", ridge=1.0, preserve_weight=1.0, post=Rect(keep=0.8), feedback=True, **o
    ),
    "ft": lambda **o: FineTune(**{"layers": (1,), "lr": 0.03, "steps": 8, **o}),
    "ft_l": lambda **o: FineTune(**{"layers": LAYERS, "lr": 0.03, "limit": 0.05, "steps": 8, **o}),
    "lora": lambda **o: Lora(**{"layers": LAYERS, "lr": 0.01, "steps": 12, **o}),
    "emmet": lambda **o: Emmet(**{"layers": LAYERS, "preserve_weight": 20.0, **_common(), **o}),
}
WITHOUT_VALUES = ("ft", "ft_l", "lora")
"""Editors that move weights towards a smaller loss and know no value, key or second moment."""


def _common() -> dict[str, Any]:
    return {"statistics_tokens": TOKENS, "targets": VALUES}


def _sequence(**options: Any) -> Sequential:
    return Sequential(**{"layers": LAYERS, **_common(), **options})


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)


every_editor = pytest.mark.parametrize("name", MAKE)


def nothing_to_do(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, settings: TargetSettings, *_: Any
) -> Targets:
    """Values that every subject has already."""
    states = keys_module.states_at_subjects(model, requests, Site(layer, settings.reference))[:, 0].T
    return Targets(states, torch.zeros_like(states), torch.zeros(len(requests), settings.steps))


@sampled(MAKE)
def test_contract(name: str, kind: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor: Editor = MAKE[name]()
    model = tiny_model(kind, bos=kind == "llama")
    before = snapshot(model)

    # The model is left as it was, and the edit is for it, in the layers asked for.
    made, state = edit(editor, model, REQUESTS, begun(editor))
    assert same_bits(model, before)
    assert made.base == fingerprint(model)
    assert tuple(made.deltas) == editor.layers  # type: ignore[attr-defined]
    for layer, delta in made.deltas.items():
        assert delta.shape == read_weight(model, layer).shape
        assert delta.dtype == torch.float64
        assert delta.any()
    assert made.notes["contexts"] == list(CONTEXTS)
    assert made.notes["facts"] == len(made.notes["loss_history"]) == len(REQUESTS)
    json.dumps(made.notes, allow_nan=False)
    for layer, delta in made.deltas.items():
        assert made.notes["step_norm"][layer] == pytest.approx(float(delta.norm()))

    # It does what it is for, and goes out again without a trace.
    assert (missing(name, editor, model, made) < 0.9).all()
    assert same_bits(model, before)

    # The same again, from an empty cache, is the same to the bit; a batch of one works.
    monkeypatch.setenv("PALIMPSEST_CACHE", str(own_cache / "fresh"))
    again, _ = edit(editor, model, REQUESTS, begun(editor))
    assert all(torch.equal(again.deltas[layer], delta) for layer, delta in made.deltas.items())
    one, _ = edit(editor, model, REQUESTS[:1], begun(editor))
    assert one.notes["facts"] == 1
    assert one.norm() > 0

    # The state keeps what belongs to the unedited model.
    assert state.prepared.contexts == CONTEXTS
    assert set(state.prepared.moments) == (set() if name in WITHOUT_VALUES else set(editor.layers))  # type: ignore[attr-defined]


def missing(name: str, editor: Any, model: EditableModel, made: WeightDelta) -> Tensor:
    """Share of what every fact lacks that is still missing with the edit: way to its value, or its loss."""
    if name in WITHOUT_VALUES:
        pairs = [(request.text, request.target) for request in REQUESTS]
        before = target_nll(model, pairs)
        with installed(model, made):
            return target_nll(model, pairs) / before
    wanted = optimise_targets(model, REQUESTS, editor.layers[-1], editor.targets, CONTEXTS)
    step = wanted.deltas
    inside = subject_inside(model, REQUESTS, editor.layers[-1])
    if editor.targets.reference == "value" and inside is not None:
        norm: Any = model.norm_behind(editor.layers[-1])
        step = passed(norm, inside.T, step.T).T
    goal = subject_hidden(model, REQUESTS, editor.layers[-1]) + step
    notes = (made.notes["value_norm"], made.notes["delta_norm"], made.notes["hidden_norm"])
    lengths = [part.norm(dim=0).tolist() for part in (wanted.values, wanted.deltas, wanted.initial)]
    assert [pytest.approx(length, rel=1e-5) for length in lengths] == list(notes)
    with installed(model, made):
        left = goal - subject_hidden(model, REQUESTS, editor.layers[-1])
    return left.norm(dim=0) / step.norm(dim=0)


@every_editor
@every_kind
def test_no_residual_no_edit(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are reached already; for an editor without values, losses that are small enough already."""
    monkeypatch.setattr(base, "optimise_targets", nothing_to_do)
    model = tiny_model(kind)
    before = snapshot(model)
    settled = {"stop_below": 100.0} if name in WITHOUT_VALUES else {}
    editor = MAKE[name](**settled)
    made, _ = edit(editor, model, REQUESTS, begun(editor))
    assert made.norm() < 1e-5
    with installed(model, made):
        torch.testing.assert_close(
            model.net.state_dict()[model.weight_name(1)], before[model.weight_name(1)], rtol=0, atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MAKE if name not in WITHOUT_VALUES])
@every_kind
def test_padding_and_packing_change_no_edit(
    name: str, kind: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics are computed in padded batches, keys in packed lines."""
    model, editor = double(kind), MAKE[name]()
    packed, _ = edit(editor, model, REQUESTS, begun(editor))

    def left_pad(tokenizer: Any, rows: Any) -> Any:
        return pad(tokenizer, rows, "left")

    def narrow(rows: Any) -> Packed:
        return pack(rows, width=1)

    monkeypatch.setattr("palimpsest.memory.moments.pad", left_pad)
    for module in ("keys", "upper_layers"):
        monkeypatch.setattr(f"palimpsest.memory.{module}.pack", narrow)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(own_cache / "left"))
    other, _ = edit(editor, model, REQUESTS, begun(editor))
    for layer, delta in packed.deltas.items():
        torch.testing.assert_close(other.deltas[layer], delta, rtol=1e-4, atol=1e-5)


@every_editor
def test_an_error_on_the_way_leaves_the_model_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer's solve fails after the first was written."""
    model = tiny_model("llama")
    before, solves = snapshot(model), []
    where: dict[str, tuple[Any, str]] = {"rome": (rome, "solve_exact")}
    where |= {"memit": (memit, "solve"), "alphaedit": (alphaedit, "solve"), "emmet": (emmet, "solve")}
    where |= {"alphaedit_plus": (smoothing, "solve"), **dict.fromkeys(WITHOUT_VALUES, (ft, "run_body"))}
    module, function = where.get(name, (sequential.EditLedger, "insert"))
    real = getattr(module, function)

    def failing(*problem: Any, **options: Any) -> Any:
        solves.append(problem)
        if len(solves) == 2:
            raise NonFiniteError("made up")
        return real(*problem, **options)

    monkeypatch.setattr(module, function, failing)
    with pytest.raises(NonFiniteError, match="made up"):
        edit(MAKE[name](), model, REQUESTS, begun(MAKE[name]()))
    assert same_bits(model, before)


@every_editor
def test_a_sequence_keeps_the_unedited_models_contexts_and_moments(name: str) -> None:
    """Also for the subject of the first call, edited again in the second."""
    model, editor = tiny_model("llama"), MAKE[name]()
    first, state = edit(editor, model, REQUESTS[:2], begun(editor))
    commit(model, first)
    again = EditRequest(REQUESTS[0].prompt, REQUESTS[0].subject, "French")
    second, later = edit(editor, model, [again, REQUESTS[2]], state)
    assert second.base == fingerprint(model) != first.base
    assert later.prepared.contexts == state.prepared.contexts
    same_entries(later.prepared.moments, state.prepared.moments)
    same_entries(later.prepared.projectors, state.prepared.projectors)
    if name == "alphaedit":
        assert isinstance(later, AlphaEditState)
        assert {layer: keys.shape[1] for layer, keys in later.past.items()} == dict.fromkeys(LAYERS, 4)
    commit(model, second)
    with pytest.raises(ModelError, match="other weights"):
        commit(model, second)


def same_entries(found: Mapping[int, Any], wanted: Mapping[int, Any]) -> None:
    """The very objects, not equal ones."""
    assert found.keys() == wanted.keys()
    assert all(found[layer] is entry for layer, entry in wanted.items())


@every_editor
def test_what_is_prepared_for_other_layers_is_completed_and_not_replaced(name: str) -> None:
    model = tiny_model("llama")
    _, state = edit(MAKE[name](), model, REQUESTS[:1], begun(MAKE[name]()))
    before = state.prepared
    _, later = edit(MAKE["alphaedit"](layers=(1, 3)), model, REQUESTS[1:2], before)
    assert set(later.prepared.moments) == {*before.moments, 1, 3}
    assert all(later.prepared.moments[layer] is moment for layer, moment in before.moments.items())
    assert {1, 3} <= set(later.prepared.projectors)


@every_editor
def test_contexts_are_sampled_by_the_editors_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def sampled(model: EditableModel, count: int, length: int, seed: int) -> tuple[str, ...]:
        asked.append((count, length, seed))
        return CONTEXTS

    monkeypatch.setattr(base, "sample_contexts", sampled)
    editor, model = MAKE[name](contexts=ContextSettings(count=2, length=7, seed=3)), tiny_model("llama")
    made, state = edit(editor, model, REQUESTS[:1], begun(editor, Prepared()))
    assert asked == [(2, 7, 3)]
    assert state.prepared.contexts == CONTEXTS
    commit(model, made)
    edit(editor, model, REQUESTS[:1], state)
    assert len(asked) == 1


def test_refused_requests_and_names() -> None:
    model = tiny_model("llama")
    with pytest.raises(RequestError, match="no requests were given; pass at least one EditRequest"):
        edit(MAKE["memit"](), model, [])
    twice = [REQUESTS[0], EditRequest(REQUESTS[0].prompt, REQUESTS[0].subject, "French")]
    message = "'The mother tongue of Danielle Darrieux is' occurs twice in one batch; keep one target for it"
    with pytest.raises(RequestError, match=message):
        edit(MAKE["memit"](), model, twice)
    with pytest.raises(UnknownNameError, match="unknown editor 'nothing'"):
        edit("nothing", model, REQUESTS)


@every_editor
def test_layers_that_the_model_lacks(name: str) -> None:
    editor = MAKE[name](layers=(9,))
    with pytest.raises(SiteError, match="layer 9 does not exist; tiny-llama-0 has layers 0 to 3"):
        edit(editor, tiny_model("llama"), REQUESTS, begun(editor))


# The published formulas, dense and without the package's solver.


def spread(
    model: EditableModel, layers: Sequence[int], solve: Callable[[int, Tensor, Tensor], Tensor]
) -> dict[int, Tensor]:
    """Layer by layer: keys now, what is missing at the last layer over the layers left, update, next."""
    values = optimise_targets(model, REQUESTS, layers[-1], VALUES, CONTEXTS).values
    before, deltas = snapshot(model), {}
    for i, layer in enumerate(layers):
        columns, missing = [], []
        for n, request in enumerate(REQUESTS):
            rows = [
                encode(model.tokenizer, context + request.prompt.split("{}")[0] + request.subject)
                for context in CONTEXTS
            ]
            keys = [plain_states(model, ids, Site(layer))[-1] for ids in rows]
            columns.append(0.5 * keys[0] + 0.25 * keys[1] + 0.25 * keys[2])
            missing.append(values[:, n] - plain_states(model, rows[0], Site(layers[-1], "hidden"))[-1])
        share = torch.stack(missing, 1) / (len(layers) - i)
        deltas[layer] = solve(layer, torch.stack(columns, 1), share)
        write_weight(model, layer, read_weight(model, layer) + deltas[layer])
    model.net.load_state_dict(before)
    return deltas


def moments(model: EditableModel) -> dict[int, Tensor]:
    return {layer: m.value for layer, m in key_statistics(model, LAYERS, TOKENS).items()}


@every_kind
def test_memit_is_the_published_recipe(kind: str) -> None:
    """(λC + KKᵀ) X = K, Δ = R Xᵀ, by a general solve in float64."""
    model = double(kind)
    c0 = moments(model)
    made, _ = edit(MAKE["memit"](), model, REQUESTS, START)

    def published(layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        return residual @ torch.linalg.solve(20.0 * c0[layer] + keys @ keys.T, keys).T

    for layer, delta in spread(model, LAYERS, published).items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-6, atol=1e-8)


@every_kind
def test_alphaedit_is_the_published_recipe_with_past_keys(kind: str) -> None:
    """(P(KKᵀ + ΣKpKpᵀ) + L2·I) Δᵀ = P K Rᵀ, in three calls of a sequence."""
    model = double(kind)
    c0 = moments(model)
    past: dict[int, list[Tensor]] = {layer: [] for layer in LAYERS}
    threshold = 1.001 * float(torch.linalg.eigvalsh(c0[1]).median())
    editor = MAKE["alphaedit"](rule="absolute", threshold=threshold)
    projectors = {}
    for layer in LAYERS:
        vectors, spectrum, _ = torch.linalg.svd(c0[layer])
        kept = vectors[:, spectrum < threshold]
        assert 0 < kept.shape[1] < len(kept)
        projectors[layer] = kept @ kept.T

    def published(layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        p = projectors[layer]
        gram = sum((k @ k.T for k in past[layer]), keys @ keys.T)
        past[layer].append(keys)
        system = p @ gram + torch.eye(len(p), dtype=p.dtype)
        return torch.linalg.solve(system, p @ keys @ residual.T).T

    state: State | Prepared = START
    for _ in range(3):
        made, state = edit(editor, model, REQUESTS, state)
        for layer, delta in spread(model, LAYERS, published).items():
            torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-6, atol=1e-8)
            # Rows lie in range(P), so preserved directions do not move.
            torch.testing.assert_close(made.deltas[layer] @ projectors[layer], made.deltas[layer])
        commit(model, made)


def test_alphaedit_with_every_direction_protected() -> None:
    """Otherwise the edit would be zero without a word."""
    message = r"layer 0: rule 'absolute' at 1e-09 protects every direction.*between the eigenvalues of C0"
    with pytest.raises(ProfileError, match=message):
        edit(MAKE["alphaedit"](rule="absolute", threshold=1e-9), tiny_model("llama"), REQUESTS, START)


def test_alphaedit_without_past_keys_forgets_them() -> None:
    model = double("llama")
    _, state = edit(MAKE["alphaedit"](keep_past=False), model, REQUESTS[:2], START)
    assert isinstance(state, AlphaEditState)
    assert state.past == {}
    with_past = edit(MAKE["alphaedit"](), model, REQUESTS[:2], START)[1]
    made = [edit(MAKE["alphaedit"](), model, REQUESTS[1:3], s)[0] for s in (state, with_past)]
    assert not torch.allclose(made[0].deltas[1], made[1].deltas[1])


@pytest.mark.parametrize(("rule", "number"), [("relative", 0.1), ("energy", 0.8)])
def test_alphaedit_with_other_rules(rule: Any, number: float) -> None:
    model = double("llama")
    made, state = edit(MAKE["alphaedit"](rule=rule, threshold=number), model, REQUESTS, START)
    for layer in LAYERS:
        projector = state.prepared.projectors[layer]
        assert projector.rule is not None
        assert (projector.rule.name, projector.rule.parameter) == (rule, number)
        assert 0 < projector.kept < projector.dim
        rows = made.deltas[layer].T
        torch.testing.assert_close(projector.apply(rows), rows)


@every_kind
@pytest.mark.parametrize("second_moment", [True, False])
def test_rome_meets_its_constraint(kind: str, second_moment: bool) -> None:
    """After installing, the edited map takes the last written key to its old output plus δ."""
    model = double(kind)
    editor = MAKE["rome"](second_moment=second_moment)
    for requests in (REQUESTS[:1], REQUESTS):
        made, _ = edit(editor, model, requests, START)
        values = optimise_targets(model, requests, 1, editor.targets, CONTEXTS)
        keys = subject_keys(model, requests, 1, CONTEXTS)
        goal = read_weight(model, 1) @ keys[:, -1] + values.deltas[:, -1]
        with installed(model, made):
            torch.testing.assert_close(read_weight(model, 1) @ keys[:, -1], goal, rtol=1e-8, atol=1e-8)
        assert torch.linalg.matrix_rank(made.deltas[1], rtol=1e-9) == len(requests)


@every_kind
def test_rome_is_the_published_formula(kind: str) -> None:
    """Δ = δ (C⁻¹k)ᵀ / (kᵀ C⁻¹ k), and with the bare prompt's key in the denominator as released."""
    model = double(kind)
    c0 = moments(model)[1]
    delta = optimise_targets(model, REQUESTS[:1], 1, MAKE["rome"]().targets, CONTEXTS).deltas[:, 0]
    bare, mean = (subject_keys(model, REQUESTS[:1], 1, contexts)[:, 0] for contexts in (("",), CONTEXTS))
    direction = torch.linalg.solve(c0, mean)
    for denominator, key in (("same_key", mean), ("bare_prompt", bare)):
        made, _ = edit(MAKE["rome"](denominator=denominator), model, REQUESTS[:1], START)
        expected = torch.outer(delta.double(), direction) / (direction @ key)
        torch.testing.assert_close(made.deltas[1], expected, rtol=1e-6, atol=1e-9)


@every_kind
def test_rome_with_the_bare_key_reaches_the_value_in_the_bare_prompt(kind: str) -> None:
    """What the model computes there is the value the optimisation asked for, bias included."""
    model = double(kind)
    editor = MAKE["rome"](denominator="bare_prompt")
    made, _ = edit(editor, model, REQUESTS, START)
    value = optimise_targets(model, REQUESTS, 1, editor.targets, CONTEXTS).values[:, -1]
    request = REQUESTS[-1]
    ids = encode(model.tokenizer, request.prompt.split("{}")[0] + request.subject)
    with installed(model, made):
        torch.testing.assert_close(
            plain_states(model, ids, Site(1, "value"))[-1], value, rtol=1e-8, atol=1e-8
        )


def test_rome_without_second_moment_reads_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> list[str]:
        raise AssertionError("statistics were collected")

    monkeypatch.setattr("palimpsest.memory.moments.statistics_texts", never)
    _, state = edit(MAKE["rome"](second_moment=False), tiny_model("llama"), REQUESTS[:1], START)
    assert not state.prepared.moments


def test_rome_ridge_is_a_share_of_the_mean_eigenvalue() -> None:
    model = double("llama")
    c0 = moments(model)[1]
    ridged = c0 + 0.5 * c0.diagonal().mean() * torch.eye(len(c0), dtype=c0.dtype)
    key = subject_keys(model, REQUESTS[:1], 1, CONTEXTS)[:, 0]
    made, _ = edit(MAKE["rome"](ridge=0.5), model, REQUESTS[:1], START)
    row, expected = made.deltas[1][0], torch.linalg.solve(ridged, key)
    torch.testing.assert_close(row / row.norm(), expected / expected.norm() * torch.sign(row @ expected))


def test_rome_refuses_a_bare_key_that_it_cannot_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("llama")

    def orthogonal(
        model: EditableModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
    ) -> Tensor:
        keys = torch.zeros(64, len(requests), dtype=torch.float64)
        keys[1 if len(contexts) == 1 else 0] = 1
        return keys

    monkeypatch.setattr(rome, "subject_keys", orthogonal)
    editor = MAKE["rome"](denominator="bare_prompt", second_moment=False)
    with pytest.raises(RequestError, match="orthogonal to its averaged key; use denominator='same_key'"):
        edit(editor, model, REQUESTS[:1], START)


def test_an_edit_says_its_method_as_it_is_printed() -> None:
    model = tiny_model("llama")

    class Another(Memit):
        """A method of a reader, without a name of its own."""

    another = Another(layers=LAYERS, preserve_weight=20.0, **_common())
    made_by = {"MEMIT": MAKE["memit"](), "FT": MAKE["ft"](), "ROME": MAKE["rome"](), "Another": another}
    for printed, editor in made_by.items():
        made, _ = edit(editor, model, REQUESTS[:1], begun(editor))
        assert made.notes["method"] == printed
