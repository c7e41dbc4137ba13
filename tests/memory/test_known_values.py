"""Values computed together, handed out in any grouping."""

from dataclasses import replace

import pytest
import torch

from palimpsest.editors import AlphaEditPlus, Prepared, Rome, edit
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import RequestError
from palimpsest.memory.known_values import known_values
from palimpsest.memory.settings import TargetSettings
from palimpsest.memory.values import optimise_targets
from palimpsest.network.apply import commit
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, REQUESTS, double, stub_texts
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
VALUES = TargetSettings(steps=4, lr=0.3)
LAYERS = (0, 1)


@pytest.fixture(autouse=True)
def _texts(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)


def test_columns_come_in_the_order_they_are_asked_for() -> None:
    model = double("llama")
    known = known_values(model, [*REQUESTS, REQUESTS[0]], 1, VALUES, CONTEXTS)
    assert known.targets.values.shape[1] == len(REQUESTS)
    chosen = [REQUESTS[2], REQUESTS[0]]
    found = known.of(model, chosen, 1, VALUES, CONTEXTS)
    alone = optimise_targets(model, chosen, 1, VALUES, CONTEXTS)
    torch.testing.assert_close(found.values, alone.values)
    torch.testing.assert_close(found.deltas, alone.deltas)
    torch.testing.assert_close(found.losses, alone.losses, equal_nan=True)


@pytest.mark.parametrize("method", ["sequence", "alphaedit_plus"])
def test_a_method_that_computes_values_once_takes_them(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In later steps too, where the model is edited; without them the same edit comes out."""
    common = {"layers": LAYERS, "ridge": 1.0, "statistics_tokens": 600, "targets": VALUES}
    plain = {"rule": "energy", "threshold": 0.5, "smoothing": None, "optimised": "once"}
    editor = Sequential(**common) if method == "sequence" else AlphaEditPlus(**common, **plain)
    known = known_values(double("llama"), REQUESTS, 1, VALUES, CONTEXTS)
    ends = []
    for given in (None, known):
        if given is not None:
            monkeypatch.setattr("palimpsest.editors.base.optimise_targets", None)
        model, state = double("llama"), Prepared(contexts=CONTEXTS, known=given)
        for batch in (REQUESTS[:2], REQUESTS[2:]):
            made, state = edit(editor, model, batch, state)
            commit(model, made)
        ends.append(made.deltas)
    for layer in LAYERS:
        torch.testing.assert_close(ends[0][layer], ends[1][layer])


def test_rome_takes_known_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its one layer, of the model as it is; without them the same edit comes out."""
    rome = Rome(layers=(1,), statistics_tokens=600, ridge=0.1, targets=replace(VALUES, reference="value"))
    known = known_values(double("llama"), REQUESTS, 1, rome.targets, CONTEXTS)
    made, _ = edit(rome, double("llama"), REQUESTS, Prepared(contexts=CONTEXTS))
    monkeypatch.setattr("palimpsest.editors.base.optimise_targets", None)
    again, _ = edit(rome, double("llama"), REQUESTS, Prepared(contexts=CONTEXTS, known=known))
    torch.testing.assert_close(again.deltas[1], made.deltas[1])
    assert made.deltas[1].norm() > 0


def test_values_of_something_else_are_refused() -> None:
    model = tiny_model("llama")
    known = known_values(model, REQUESTS[:2], 1, VALUES, CONTEXTS)
    with pytest.raises(RequestError, match=r"other the layer, the contexts; compute them anew for these"):
        known.of(model, REQUESTS[:1], 2, VALUES, ("",))
    with pytest.raises(RequestError, match=r"other the settings of values"):
        known.of(model, REQUESTS[:1], 1, replace(VALUES, lr=0.1), CONTEXTS)
    with pytest.raises(RequestError, match=r"other the model's weights"):
        known.of(tiny_model("llama", seed=1), REQUESTS[:1], 1, VALUES, CONTEXTS)
    stranger = EditRequest(REQUESTS[0].prompt, REQUESTS[0].subject, "French")
    with pytest.raises(RequestError, match=r"1 of 2 facts have no known value, for example .*Darrieux"):
        known.of(model, [REQUESTS[0], stranger], 1, VALUES, CONTEXTS)


def test_what_is_there_is_kept_and_only_the_rest_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("llama")
    first = known_values(model, REQUESTS[:2], 1, VALUES, CONTEXTS)
    rest = optimise_targets(model, REQUESTS[2:], 1, VALUES, CONTEXTS)
    both = known_values(model, [*REQUESTS[1:], REQUESTS[3]], 1, VALUES, CONTEXTS, beside=first)
    found = both.of(model, REQUESTS, 1, VALUES, CONTEXTS)
    assert torch.equal(found.values, torch.cat([first.targets.values, rest.values], 1))
    assert torch.equal(found.deltas, torch.cat([first.targets.deltas, rest.deltas], 1))
    assert len(found.losses) == len(REQUESTS)
    monkeypatch.setattr("palimpsest.memory.known_values.optimise_targets", None)
    assert known_values(model, REQUESTS[:1], 1, VALUES, CONTEXTS, beside=both) is both
    with pytest.raises(RequestError, match="known values belong to other the layer"):
        known_values(model, REQUESTS, 0, VALUES, CONTEXTS, beside=both)
