"""The steps of a sequence: what each holds, what is in force between them and after, what is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from palimpsest.editors import base, sequential
from palimpsest.editors.sequential import preserved_keys
from palimpsest.editors.steps import steps
from palimpsest.errors import (
    LedgerError,
    NonFiniteError,
    ProfileError,
    RequestError,
    SequenceError,
    SingularProblemError,
)
from palimpsest.memory.values import Targets
from palimpsest.network.apply import commit, installed
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight
from tests.editing import CONTEXTS, double, every_kind, same_bits, snapshot
from tests.sequences import (
    BATCHES,
    FACTS,
    LAYERS,
    OTHERS,
    apart,
    drawn,
    make,
    offline,
    quicken,
    run,
    state_of,
)
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from offline(tmp_path_factory)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


# Facts that change, values, precision, notes.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "named"), [("llama", True), ("gpt2", False)])
def test_a_fact_written_again_is_held_once_with_its_new_target(kind: str, named: bool) -> None:
    """By its id, or by its text where it has none; then the old target leaves no trace."""
    model = double(kind)
    facts = FACTS if named else [replace(fact, id="") for fact in FACTS]
    again = replace(facts[0], target="French")
    for retain in ("all", "none"):
        editor = make(retain=retain, reads="unedited")
        found, weights = run(editor, [facts[:2], [facts[2], again]], model)
        _, once = run(editor, [[facts[1], facts[2], again]], model)
        assert (apart(weights[-1], once[-1], state_of(found[-1])) < 1e-9) == (retain == "all")
        held = [fact.id or fact.text for fact in ([facts[1]] if retain == "all" else []) + [facts[2], again]]
        assert all(list(ledger.ids) == held for ledger in state_of(found[-1]).ledgers.values())


@pytest.mark.parametrize("values", ["once", "each_step"])
def test_whose_values_are_optimised(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the unedited model once, or of the model as it is at each step."""
    asked, model = list[str](), double("llama")
    unedited = fingerprint(model)

    def spy(model: EditableModel, *rest: Any) -> Targets:
        asked.append(fingerprint(model))
        return drawn()(model, *rest)

    monkeypatch.setattr(base, "optimise_targets", spy)
    bases = [step.edit.base for step in steps(model, make(values=values), BATCHES)]
    assert bases[0] == unedited
    assert len(set(bases)) == 3
    assert asked == (bases if values == "each_step" else [unedited] * 3)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_to_the_models_precision_does_not_add_up(dtype: torch.dtype) -> None:
    """The state carries float64 weights, of which the model's are the nearest, after every step."""
    model = tiny_model("llama")
    model.net.to(dtype)
    for step in steps(model, make(), [[fact] for fact in FACTS]):
        for layer in LAYERS:
            held = state_of(step).weights[layer]
            assert held.dtype == torch.float64
            assert torch.equal(read_weight(model, layer), held.to(dtype))
            torch.testing.assert_close(held, state_of(step).ledgers[layer].weight, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("quick")
def test_notes_of_a_step() -> None:
    model = double("llama")
    found, weights = run(make(), BATCHES, model)
    state = state_of(found[-1])
    before = dict(state.unedited)
    for step, now in zip(found, weights, strict=True):
        notes = json.loads(json.dumps(step.edit.notes, allow_nan=False))
        n = len(step.requests)
        assert notes["facts"] == n
        assert notes["contexts"] == list(CONTEXTS)
        values = drawn()(model, step.requests, 2)
        assert notes["delta_norm"] == pytest.approx(values.deltas.norm(dim=0).tolist())
        assert notes["value_norm"] == pytest.approx(values.values.norm(dim=0).tolist())
        assert len(notes["loss_history"]) == n
        for i in LAYERS:
            assert notes["condition"][str(i)] == state_of(step).ledgers[i].condition
            assert notes["step_norm"][str(i)] == pytest.approx(float((now[i] - before[i]).norm()))
            assert notes["total_norm"][str(i)] == pytest.approx(float((now[i] - state.unedited[i]).norm()))
        before = now
    assert [state_of(step).steps for step in found] == [1, 2, 3]


def test_preserved_keys_are_columns_of_the_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    columns, names = preserved_keys(thin @ thin.T)
    assert columns.shape == (7, len(names))
    assert 4 <= len(names) < 7  # rounding may leave a direction of energy 1e-16
    assert len({*names}) == len(names)
    torch.testing.assert_close(columns @ columns.T, thin @ thin.T)


# Steps: what is in force between them, and what is left behind.


@pytest.mark.usefixtures("quick")
@every_kind
def test_steps_are_the_calls_of_the_editor_in_order(kind: str) -> None:
    model, twin, editor = double(kind), double(kind), make()
    before, state = snapshot(model), None
    for number, step in enumerate(steps(model, editor, BATCHES)):
        assert (step.number, step.requests) == (number, tuple(BATCHES[number]))
        made, state = editor.edit(twin, BATCHES[number], state)
        with installed(twin, made):
            assert same_bits(model, snapshot(twin))
        commit(twin, made)
        assert made.deltas.keys() == step.edit.deltas.keys()
        assert all(torch.equal(step.edit.deltas[i], delta) for i, delta in made.deltas.items())
    assert same_bits(model, before)


@pytest.mark.usefixtures("quick")
def test_leaving_early_puts_every_weight_back() -> None:
    model = tiny_model("gpt2")
    before = snapshot(model)
    for step in (running := steps(model, make(), BATCHES)):
        if step.number == 1:
            assert not same_bits(model, before)
            break
    running.close()
    assert same_bits(model, before)


@pytest.mark.parametrize("retain", ["none", "latest", "all"])
def test_a_batch_that_fails_puts_every_weight_back(retain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second layer of the third batch, after the first layer was written."""
    model, calls = tiny_model("llama"), list[int]()
    monkeypatch.setattr(base, "optimise_targets", drawn())
    real = sequential.EditLedger.insert

    def failing(self: Any, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise NonFiniteError("made up")
        return real(self, *args, **options)

    monkeypatch.setattr(sequential.EditLedger, "insert", failing)
    before, seen = snapshot(model), list[int]()
    with pytest.raises(NonFiniteError, match="made up"):
        seen += [step.number for step in steps(model, make(retain=retain), BATCHES)]
    assert seen == []  # the list was not built
    assert len(calls) == 8
    assert same_bits(model, before)


@pytest.mark.usefixtures("quick")
def test_a_failed_step_can_be_made_again() -> None:
    """Neither the model nor the state that was passed in is changed by a call, failed or not."""
    model, editor = double("llama"), make()
    first, state = editor.edit(model, BATCHES[0])
    commit(model, first)
    held = {i: (ledger.ids, ledger.weight) for i, ledger in state.ledgers.items()}
    before = snapshot(model)
    with pytest.raises(LedgerError, match="fact 2"):
        editor.edit(model, [FACTS[2], FACTS[2]], state)
    made, _ = editor.edit(model, BATCHES[1], state)
    again, _ = editor.edit(model, BATCHES[1], state)
    assert same_bits(model, before)
    assert all(torch.equal(made.deltas[i], again.deltas[i]) for i in LAYERS)
    for layer, (ids, weight) in held.items():
        assert state.ledgers[layer].ids == ids
        assert torch.equal(state.ledgers[layer].weight, weight)


# Bad input.


@pytest.mark.usefixtures("quick")
@every_kind
def test_a_state_of_other_weights_is_refused(kind: str) -> None:
    model, editor = double(kind), make()
    made, state = editor.edit(model, BATCHES[0])
    before = snapshot(model)
    message = (
        r"layer 0: the model's weight differs from the one this sequence left by a share of \d\.\de-\d\d; "
        "commit each edit before the next one, or start again without a state"
    )
    with pytest.raises(SequenceError, match=message):  # the edit was not committed
        editor.edit(model, BATCHES[1], state)
    assert same_bits(model, before)
    commit(model, made)
    _, later = editor.edit(model, BATCHES[1], state)
    assert later.steps == 2
    write_weight(model, 1, read_weight(model, 1) * float("nan"))
    with pytest.raises(SequenceError, match=r"layer 1: .* share of nan"):
        editor.edit(model, BATCHES[1], state)


@pytest.mark.usefixtures("quick")
def test_a_weight_written_between_two_steps_is_noticed() -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    running = steps(model, make(), BATCHES)
    next(running)
    write_weight(model, 2, read_weight(model, 2) * 1.0001)
    with pytest.raises(SequenceError, match=r"layer 2: .* share of 1\.0e-04"):
        next(running)
    assert same_bits(model, before)


@pytest.mark.usefixtures("quick")
def test_a_state_of_other_layers_is_refused() -> None:
    model = tiny_model("llama")
    made, state = make().edit(model, BATCHES[0])
    commit(model, made)
    message = r"the state is of a sequence in layers \[0, 1, 2\], this one edits \[1, 3\]; .*without a state"
    with pytest.raises(SequenceError, match=message):
        make(layers=(1, 3)).edit(model, BATCHES[1], state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"feedback": True, "retain": "none"},
            "feedback needs a problem that goes on; set retain to 'all' or 'latest'",
        ),
        ({"reads": "unedited", "values": "each_step"}, "do not fit reads='unedited'; set values='once'"),
        ({"anchor": "start", "retain": "all"}, "anchor='start' needs retain='none' and a preserve_weight"),
        (
            {"anchor": "start", "retain": "none", "preserve_weight": 0},
            "anchor='start' needs retain='none' and a preserve_weight above 0",
        ),
        ({"post": {"kind": "rekt"}}, "post\n.*'rect', 'prune'"),
        ({"post": {"kind": "rect", "keep": 0}}, r"post\.rect\.keep\n.*greater than 0"),
        ({"retain": "some"}, "retain\n.*'none', 'latest' or 'all'"),
        ({"layers": (2, 1)}, "ascending"),
        ({"ridge": -1}, "ridge\n.*greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_or_are_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**options)


@pytest.mark.usefixtures("quick")
@every_kind
@pytest.mark.parametrize("retain", ["none", "latest", "all"])
def test_without_ridge_and_anchor_there_is_no_unique_solution(kind: str, retain: Any) -> None:
    model = tiny_model(kind)
    before = snapshot(model)
    with pytest.raises(SingularProblemError, match="Raise ridge above 0, give preserve"):
        list(steps(model, make("plain", ridge=0, retain=retain), BATCHES))
    assert same_bits(model, before)


def test_every_direction_protected() -> None:
    """Otherwise every edit would be zero without a word."""
    message = r"layer 0: rule 'absolute' at 1e-09 protects every direction.*between the eigenvalues of C0"
    with pytest.raises(ProfileError, match=message):
        make("alphaedit", rule="absolute", threshold=1e-9).edit(tiny_model("llama"), FACTS[:1])


def test_batches_are_checked_like_single_edits() -> None:
    model = tiny_model("llama")
    with pytest.raises(RequestError, match="no requests were given"):
        list(steps(model, make(), [[]]))
    with pytest.raises(RequestError, match="occurs twice in one batch"):
        list(steps(model, make(), [[FACTS[0], OTHERS[0]]]))
