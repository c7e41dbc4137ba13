"""Counts against other counts, memory against the tensors held, and times that are read or measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import counts, inputs
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.editors.settings import editor_settings
from palimpsest.errors import DataError, ResourceError
from palimpsest.memory.optimisation import Optimisation
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import EditableModel
from palimpsest.studies import timing
from palimpsest.studies.cost import (
    FLOAT64,
    SHAPES,
    Positions,
    Shape,
    activation_bytes,
    asked,
    behind,
    evaluation_work,
    ledger_bytes,
    memory_plan,
    released_work,
    scored,
    step_work,
    values_work,
)
from palimpsest.studies.timing import COLUMNS, Drawn, facts_in, growth, read_bench, seconds
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Weights of all kinds, as the model cards print them, in 10⁶.
PRINTED = {"smollm2-135m": 134.5, "gpt2-xl": 1558, "gpt-j-6b": 6053, "qwen2.5-7b": 7616, "llama3-8b": 8030}


def shape_of(model: EditableModel) -> Shape:
    """Shape of a tiny Llama model, from its configuration."""
    config = model.net.config
    return Shape(
        name="tiny",
        layers=config.num_hidden_layers,
        d_v=config.hidden_size,
        d_k=config.intermediate_size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        d_head=config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        maps=3,
        tied=False,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_weights_as_its_model(name: str) -> None:
    assert SHAPES[name].weights == pytest.approx(PRINTED[name] * 1e6, rel=1e-3)
    assert max(editor_settings(name, "memit")["layers"]) < SHAPES[name].layers


def test_parts_of_a_shape_are_those_that_a_model_is_counted_with() -> None:
    model = tiny_model("llama")
    shape, cost = shape_of(model), counts.costs(model)
    assert (shape.layer, shape.pair, shape.head) == (cost.layer, cost.pair, cost.head)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 7), (3, 9), (5, 5)])
def test_positions_attend_to_all_before_them(start: int, end: int) -> None:
    assert behind(start, end) == Positions(end - start, sum(range(start + 1, end + 1)))


def test_work_of_values_is_the_benchmarks_but_for_equal_beginnings() -> None:
    """Steps cost the same to the last product; what is done once is counted without sharing, so not less."""
    model, layer = tiny_model("llama"), 1
    requests = [case.request for case in inputs.quick().cases[:3]]
    contexts = ("", "Anna Berg plays the piano. ")
    shape, at = shape_of(model), asked(model, requests, contexts)
    ours = [values_work(shape, at, layer, steps) for steps in (1, 2, 20)]
    theirs = [counts.of_values(model, requests, contexts, layer, steps) for steps in (1, 2, 20)]
    assert ours[1] - ours[0] == theirs[1] - theirs[0]
    assert ours[2] - ours[0] == theirs[2] - theirs[0]
    assert theirs[0] <= ours[0] < 1.5 * theirs[0]


def test_work_of_an_evaluation_is_the_benchmarks_but_for_equal_beginnings() -> None:
    model, case = tiny_model("llama"), inputs.quick().cases[0]
    ours = evaluation_work(shape_of(model), scored(model, [case]))
    theirs = counts.of_evaluation(model, [case])
    assert theirs <= ours < 1.5 * theirs


def test_the_projection_multiplies_the_released_solution_but_not_the_ledgers_step() -> None:
    """With d_k far above the rest, d_k³/3 without and d_k³/3 + d_k³ with a projector."""
    wide = Shape("wide", 1, 1, 30_000, 1, 1, 1, 1, 2, tied=True)
    with_p, without = (released_work(wide, 1, projected=on) for on in (True, False))
    assert with_p / without == pytest.approx(4, rel=1e-3)
    assert step_work(wide, 2000, 1) < without / 1e4
    # More facts than directions: a step does not depend on how many.
    assert step_work(wide, 30_000, 1) == step_work(wide, 10**6, 1) == 3 * 30_000**2 + 2 * 30_000


def storages(held: Any, found: dict[int, int]) -> dict[int, int]:
    """Storages of all tensors that an object reaches -> their bytes."""
    if isinstance(held, Tensor):
        found[held.untyped_storage().data_ptr()] = held.untyped_storage().nbytes()
    elif hasattr(held, "__dict__"):
        for part in vars(held).values():
            storages(part, found)
    return found


@pytest.mark.parametrize("held", [60, 120, 400])
def test_memory_of_a_ledger_is_that_of_its_tensors(held: int) -> None:
    """In both forms, up to few columns of probes; a part left out would be more than that."""
    d_v, d_k = 40, 128
    drawn = Drawn(d_v, d_k, protected=2)
    _, ridge, projector = drawn.terms("alphaedit")
    ledger = EditLedger(drawn.weight.float(), None, ridge, projector)
    ledger.insert(*drawn.facts("alphaedit", 0, held))
    expected = ledger_bytes(Shape("small", 1, d_v, d_k, 1, 1, 1, 1, 2, tied=True), held)
    waiting = 2 * 64 * d_k * FLOAT64 if held > d_k else 0  # none waits after a first insertion
    assert sum(storages(ledger, {}).values()) == pytest.approx(expected - waiting, abs=16 * d_k * FLOAT64)
    ledger.insert(*drawn.facts("alphaedit", held, 1))
    assert sum(storages(ledger, {}).values()) < 1.2 * expected + 16 * d_k * FLOAT64


def test_activations_are_those_by_which_chunks_are_cut() -> None:
    model = tiny_model("llama")
    shape, layer = shape_of(model), 1
    requests = [inputs.quick().cases[0].request]
    run = Optimisation(model, requests, layer, model.n_layers - 1, TargetSettings(), ("",))
    each = (20 * shape.d_v + 6 * shape.d_k) * 4 * (shape.layers - 1 - layer)
    assert activation_bytes(shape, layer) == each * run._most_positions()


def test_a_plan_names_its_parts_and_halves_weights_in_half_precision() -> None:
    shape = SHAPES["llama3-8b"]
    whole, half = (memory_plan(shape, (4, 5), (7,), d) for d in (torch.float32, torch.bfloat16))
    assert list(whole) == ["weights", "moments", "projectors", "ledger 7", "activations"]
    assert whole["weights"] == 2 * half["weights"] == 4 * shape.weights
    assert whole["moments"] == half["moments"] == 2 * 14_336**2 * 8
    assert whole["ledger 7"] - half["ledger 7"] == 2 * 4096 * 14_336 * 2


# The record of the benchmarks

ROW = {"stage": "values", "ratio": 8.1, "share_of_limit": 0.6, "ours_s": 20.0, "twin_s": 162.0}
ROW |= {"peak_mb": 180.0, "sizes": "40 requests, 6 contexts; twin: 4 requests, scaled"}
LARGE = ROW | {"stage": "null_space_large", "ratio": None, "twin_s": None, "sizes": "d_k 14,336"}
BARS = {
    "values": {"ratio": 8, "share_of_limit": 0.55, "peak_mb": None},
    "null_space_large": {"ratio": None, "share_of_limit": None, "peak_mb": None},
}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_record_of_the_benchmarks_is_read_with_its_bars(tmp_path: Path) -> None:
    content = {"about": {"date": "2026-01-01", "bars": BARS}, "rows": [ROW, LARGE]}
    about, rows = read_bench(written(tmp_path / "bench.json", content))
    assert about["date"] == "2026-01-01"
    assert list(rows)[: len(COLUMNS)] == list(COLUMNS)
    first, second = rows.to_dict("records")
    assert (first["bar_ratio"], first["bar_share"], first["facts"]) == (8, 0.55, 40)
    assert all(second[name] != second[name] for name in ("ratio", "twin_s", "bar_ratio", "facts"))  # NaN


def test_a_record_has_the_columns_that_the_benchmarks_write() -> None:
    from benchmarks.contest import Row

    assert tuple(Row("a", None, None, 1.0, None, 1.0, "").rounded()) == COLUMNS


def test_a_missing_record_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"absent\.json is missing.*run `make bench`"):
        read_bench(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ({"rows": []}, "'about' is missing"),
        ({"about": {"bars": BARS}, "rows": [{"stage": "values"}]}, "not a record of the benchmarks"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"{said}.*`make bench`"):
        read_bench(written(tmp_path / "bench.json", content))


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        ("40 requests, 6 contexts; twin: 4 requests, scaled", 40),
        ("4 batches of 10 facts, layers 3 to 5; twin: batches of 2", 40),
        ("100 cases of 13 prompts; twin: 10 cases, scaled", 100),
        ("d_k 1,536, d_v 576, 2,000 facts held, 1 new, float64", 1),
        ("20 facts at batch 1, memit_aligned", 20),
        ("1,200 requests", 1200),
    ],
)
def test_facts_of_a_stage_from_its_words(sizes: str, facts: int) -> None:
    assert facts_in(sizes) == facts


@pytest.mark.parametrize("sizes", ["d_k 4,096, 40 directions protected", "", "5 layers; twin: 8 requests"])
def test_a_stage_without_facts(sizes: str) -> None:
    assert facts_in(sizes) != facts_in(sizes)  # NaN


# Times

SMALL = Drawn(d_v=6, d_k=20, protected=3)


def test_the_first_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 100.0, 101.0, 101.0, 103.0])
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock))
    assert seconds(lambda: None, 2) == [1.0, 2.0]


@pytest.mark.parametrize("form", ["alphaedit", "memit"])
def test_a_table_of_growth_has_each_step_as_often_as_it_was_repeated(form: str) -> None:
    table = growth(SMALL, form, held=(5, 40), new=(1, 4), anew=(40,), repeats=3)
    sizes = table.groupby(["way", "held", "new"]).size().to_dict()
    steps = {("ledger", held, new): 3 for held in (5, 40) for new in (1, 4)}
    assert sizes == steps | {("anew", 40, 1): 1}
    assert (table["seconds"] > 0).all()
    assert (table["form"] == form).all()


@pytest.mark.parametrize("form", ["alphaedit", "memit"])
@pytest.mark.parametrize("held", [5, 40])
def test_the_step_and_the_solution_anew_that_are_timed_have_one_result(form: str, held: int) -> None:
    preserve, ridge, projector = SMALL.terms(form)
    ledger = EditLedger(SMALL.weight, preserve, ridge, projector)
    ledger.insert(*SMALL.facts(form, 0, held))
    ledger.insert(*SMALL.facts(form, held, 1))
    residual = ledger.values - SMALL.weight @ ledger.keys
    found = solve(LeastSquares(ledger.keys, residual, preserve, ridge, projector)).delta
    torch.testing.assert_close(ledger.total, found, rtol=1e-8, atol=1e-10)


def test_facts_are_drawn_anew_from_each_start_and_alike_from_the_same() -> None:
    first, again, other = (SMALL.facts("memit", start, 2) for start in (0, 0, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert (first[2], other[2]) == (["fact 0", "fact 1"], ["fact 2", "fact 3"])


def test_keys_of_memits_form_have_the_second_moment_that_is_preserved() -> None:
    drawn = Drawn(d_v=1, d_k=4, protected=0)
    keys, _, _ = drawn.facts("memit", 0, 200_000)
    torch.testing.assert_close(
        keys.square().mean(1), torch.tensor([1, 1 / 2, 1 / 3, 1 / 4]).double(), rtol=0.02, atol=0
    )
    preserve, ridge, projector = drawn.terms("memit")
    assert (ridge, projector) == (0.0, None)
    torch.testing.assert_close(preserve, timing.PRESERVE_WEIGHT * torch.diag(drawn.spectrum))


def test_another_form_is_refused() -> None:
    with pytest.raises(DataError, match="form is 'rome'; choose alphaedit or memit"):
        SMALL.terms("rome")
