"""Rows of a run at its checkpoints, against a plain loop; what is refused, and how a run ends."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from palimpsest.algebra.postprocess import Prune, largest_singular_value
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.studies import checkpoints as room
from palimpsest.studies.checkpoints import Checkpoints, checkpoints
from palimpsest.studies.instruments import Choice
from tests.editing import same_bits, snapshot
from tests.sequences import TOKENS, VALUES
from tests.studies.test_trajectory import CASES

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
FACTS = CASES[:4]
ASK = Checkpoints(
    batch=2,
    at=(2, 4),
    sample=3,
    choices=(Choice("Anna Berg was born in", "Paris", "Rome"),),
    prompts=("Anna Berg was born in",),
    length=16,
)


def make(**options: Any) -> Sequential:
    common = {"layers": (0, 1), "ridge": 1.0, "statistics_tokens": TOKENS, "targets": VALUES}
    return Sequential(**(common | options))


def test_rows_are_those_of_a_plain_loop(model: EditableModel, text: Reference) -> None:
    before, editor = snapshot(model), make()
    rows = checkpoints(model, editor, FACTS, ASK, text)
    assert same_bits(model, before)
    batches = [[case.request for case in FACTS[i : i + 2]] for i in (0, 2)]
    for step in steps(model, editor, batches):
        edits = 2 * (step.number + 1)
        told = rows[rows["edits"].eq(edits)].set_index(["of", "key", "metric"])["value"]
        asked = FACTS[:2] if edits == 2 else [FACTS[0], FACTS[2], FACTS[3]]
        found = evaluate(model, asked, ["efficacy"])
        assert {r.case: r.value for r in found} == told.xs(("fact", "efficacy"), level=(0, 2)).to_dict()
        windows = drift(model, text).windows
        assert told.xs(("window", "nll"), level=(0, 2)).tolist() == windows["nll"].tolist()
        norm = sum(n**2 for n in step.edit.notes["total_norm"].values()) ** 0.5
        assert told["step", str(step.number + 1), "total_norm"] == pytest.approx(norm)
    assert rows.query("of == 'text'")["edits"].tolist() == [0, 4]
    assert rows.query("of == 'regime' and metric == 'load'")["value"].is_monotonic_increasing


def test_a_second_run_is_read_from_disk(
    model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoints(model, make(), FACTS, ASK, text)
    monkeypatch.setattr(room, "_rows", lambda *_: pytest.fail("computed again"))
    assert checkpoints(model, make(), FACTS, ASK, text).equals(first)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_spectrum_bounds_the_exact_ratio_and_is_exact_above_one(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    before, delta = (torch.randn(6, 9, generator=draw, dtype=torch.float64) for _ in range(2))
    delta = scale * delta
    exact = float(largest_singular_value(delta) / largest_singular_value(before))
    told = room._share(before + delta, delta, room._top(before))
    assert told >= exact - 1e-9
    if told > 1:
        assert told == pytest.approx(exact)


def test_a_run_that_cannot_go_on_ends_with_a_row_that_says_so(
    model: EditableModel, text: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = room._measured

    def breaks(model: EditableModel, written: Any, *rest: Any) -> Any:
        if len(written) > 2:
            raise NonFiniteError("overflow")
        return measured(model, written, *rest)

    monkeypatch.setattr(room, "_measured", breaks)
    before = snapshot(model)
    rows = checkpoints(model, make(), FACTS, ASK, text)
    assert rows.iloc[-1]["metric"] == "stopped"
    assert set(rows.query("of == 'window'")["edits"]) == {2}
    assert same_bits(model, before)


@pytest.mark.parametrize("wrong", [{"at": ()}, {"at": (4, 2)}, {"at": (3,)}, {"batch": 0}, {"sample": 0}])
def test_checkpoints_that_fit_no_batches_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ScoreError):
        replace(ASK, **wrong)


def test_other_facts_and_late_post_processing_are_refused(model: EditableModel, text: Reference) -> None:
    with pytest.raises(ScoreError, match="last checkpoint"):
        checkpoints(model, make(), FACTS[:2], ASK, text)
    late = make(retain="none", post=Prune(kind="prune", of="total", bound="start", when="end"))
    with pytest.raises(ScoreError, match="at the end"):
        checkpoints(model, late, FACTS, ASK, text)


def test_the_top_vector_gives_the_largest_singular_value(model: EditableModel) -> None:
    weight = read_weight(model, 0)
    found = (weight.double() @ room._top(weight)).norm()
    assert float(found) == pytest.approx(float(largest_singular_value(weight.double())))
