"""The benchmarks at their tiny size: rows, twins that are believed, and errors."""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import inputs
from benchmarks.contest import Contest, DisagreementError, Row, decide, relative
from benchmarks.machine import peak_memory, product_rate
from benchmarks.reference import keys as plain_keys
from benchmarks.reference import values as plain_values
from benchmarks.reference.solve import released
from benchmarks.stages import STAGES, Stage
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.errors import UnknownNameError
from palimpsest.paths import cache_dir
from tests.problems import gaussian

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

COLUMNS = ("stage", "ratio", "share_of_limit", "ours_s", "twin_s", "peak_mb", "sizes")
REFERENCE = Path(command.__file__).parent / "reference"
# The command line stage starts a process that loads everything anew.
every_stage = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "edit" else name for name in STAGES]
)


@every_stage
def test_every_stage_gives_a_row_of_equal_results(name: str) -> None:
    row = decide(name, STAGES[name].contest(inputs.quick())).rounded()
    assert tuple(row) == COLUMNS
    assert row["stage"] == name
    assert row["ours_s"] > 0
    assert row["peak_mb"] >= 0
    assert row["sizes"]
    assert (row["share_of_limit"] is None) == (STAGES[name].share is None)
    if row["share_of_limit"] is not None:
        assert 0 < row["share_of_limit"] < 1
    assert (row["ratio"] is None) == (row["twin_s"] is None) == (STAGES[name].ratio is None)
    if row["ratio"] is not None:
        assert row["ratio"] == pytest.approx(row["twin_s"] / row["ours_s"], rel=0.02)


def spoiled(result: Any) -> Any:
    """A result of a twin with every tensor another."""
    if isinstance(result, torch.Tensor):
        return result.roll(1, 0) * 1.05
    if isinstance(result, Mapping):
        return {name: spoiled(value) for name, value in result.items()}
    if is_dataclass(result) and not isinstance(result, type):
        changed = {field.name: spoiled(getattr(result, field.name)) for field in fields(result)}
        return replace(result, **changed)
    return type(result)(map(spoiled, result)) if isinstance(result, list | tuple) else result


@every_stage
def test_a_wrong_twin_is_an_error_that_names_the_stage(name: str) -> None:
    contest = STAGES[name].contest(inputs.quick())
    wrong = replace(contest, twin=lambda: spoiled(contest.twin()))
    with pytest.raises(DisagreementError, match=rf"stage '{name}'.*differ by.*No time is given"):
        decide(name, wrong)


@pytest.mark.parametrize(
    "changed",
    [{"kl": 0.0}, {"kl_over": "unedited"}, {"decay": 0.0}, {"clamp": 9.0}, {"steps": 3}, {"lr": 0.21}],
)
def test_a_twin_of_values_with_another_loss_is_told_apart(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plain_values.optimise

    def other(model: Any, request: Any, layer: int, settings: Any, contexts: Any) -> Any:
        return plain(model, request, layer, replace(settings, **changed), contexts)

    monkeypatch.setattr(plain_values, "optimise", other)
    with pytest.raises(DisagreementError, match=r"stage 'values': the deltas"):
        decide("values", STAGES["values"].contest(inputs.quick()))


def contest_of(difference: float, **changes: Any) -> Contest:
    return Contest(
        ours=lambda: 1,
        twin=lambda: 2,
        differences=lambda ours, twin: {"result": difference},
        tolerances={"result": 0.1},
        sizes="one number",
        **changes,
    )


@pytest.mark.parametrize("bad", [0.11, float("nan"), float("inf")])
def test_no_time_for_different_results(bad: float) -> None:
    with pytest.raises(DisagreementError, match=r"'some': the result .* 1e-01 is allowed \(one number\)"):
        decide("some", contest_of(bad))


def test_the_twin_is_scaled_and_a_known_answer_has_no_time() -> None:
    row = decide("some", contest_of(0.1, scaled=lambda took: 7.0, work=1.0, peak=lambda: 5.0))
    assert (row.twin_s, row.peak_mb) == (7.0, 5.0)
    assert row.ratio == 7.0 / row.ours_s
    row = decide("some", contest_of(0.0, timed_twin=False))
    assert (row.twin_s, row.ratio, row.share_of_limit) == (None, None, None)


def test_no_time_for_a_path_that_is_faster_than_its_work() -> None:
    with pytest.raises(DisagreementError, match=r"stage 'a': .* it reads a stored result, or .* too many"):
        decide("a", contest_of(0.0, work=1e15))


def test_long_paths_run_once_and_short_ones_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    decide("some", replace(contest_of(0.0), ours=lambda: ran.append(1)))
    assert len(ran) == 4
    decide("some", replace(contest_of(0.0, repeats=False), ours=lambda: ran.append(1)))
    assert len(ran) == 5
    monkeypatch.setattr("benchmarks.contest.SHORT", 0.0)
    decide("some", replace(contest_of(0.0), ours=lambda: ran.append(1)))
    assert len(ran) == 6


def test_relative_differences() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert relative({"a": other}, {"a": one})["a"] == pytest.approx(0.1)
    assert relative({"a": one}, {"a": torch.ones(3)})["a"] == float("inf")
    assert relative({"a": torch.zeros(2)}, {"a": torch.zeros(2)})["a"] == 0
    with pytest.raises(KeyError):
        relative({"a": one}, {})


def test_peak_memory_counts_what_the_block_adds_and_gave_back() -> None:
    with peak_memory() as found:
        float(torch.ones(32_000_000).sum())  # 128 MB
    assert 120 < found.megabytes < 300
    with peak_memory() as found:
        pass
    assert found.megabytes < 60


def test_the_product_rate_is_that_of_a_product() -> None:
    assert 1e7 < product_rate(torch.float32, size=64, repeats=2) < 1e13


# Twins and inputs


def test_the_twins_use_no_fast_path_of_the_library() -> None:
    allowed = {"network.model", "network.tokens", "memory.settings", "types"}
    for path in sorted(REFERENCE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("palimpsest"):
                assert node.module.removeprefix("palimpsest.") in allowed, f"{path.name}: {node.module}"


def test_every_file_and_function_is_short() -> None:
    for path in sorted(REFERENCE.parent.rglob("*.py")):
        source = path.read_text()
        assert len(source.splitlines()) <= 350, path.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("over", ["edited", "unedited"])
def test_the_twin_of_values_lowers_its_loss_in_both_directions_of_the_divergence(over: Any) -> None:
    """Far from p₀ both divergences pull, so that a heavy weight leaves a shorter δ than none."""
    given_ = inputs.quick()
    request = given_.cases[0].request
    lengths = []
    for weight in (0.0, 50.0):
        settings = replace(given_.targets, kl=weight, kl_over=over, decay=0.0)
        _, delta = plain_values.optimise(given_.model, request, 1, settings, given_.contexts)
        lengths.append(float(delta.norm()))
    assert 0 < lengths[1] < lengths[0]


def test_the_twin_of_keys_weighs_the_bare_prompt_by_half() -> None:
    given_ = inputs.quick()
    requests, contexts = [given_.cases[0].request], ("", "One. ", "Two. ")
    bare, both, one, two = (
        plain_keys.keys(given_.model, requests, 1, some)
        for some in (("",), contexts, (contexts[1],), (contexts[2],))
    )
    torch.testing.assert_close(both, bare / 2 + (one + two) / 4)


@given(st.integers(1, 9), st.integers(0, 99))
def test_the_released_solve_has_the_minimiser_of_the_least_squares_problem(n: int, seed: int) -> None:
    keys, residual, spread = gaussian(seed, 8, n), gaussian(seed + 1, 5, n), gaussian(seed + 2, 8, 20)
    moment = spread @ spread.T
    problem = LeastSquares(keys, residual, moment, ridge=0.5)
    found = released(None, moment + keys @ keys.T, 0.5, keys, residual)
    torch.testing.assert_close(found, solve(problem).delta, rtol=1e-8, atol=1e-10)


def test_the_power_law_has_its_spectrum_and_its_leading_directions() -> None:
    law = inputs.power_law(30, 6)
    values, vectors = torch.linalg.eigh(law.moment)
    values, leading = values.flip(0), vectors.flip(1)[:, :6]
    assert int((values >= law.threshold).sum()) == 6
    torch.testing.assert_close(values / values[0], torch.arange(1, 31).double() ** -1.5)
    assert torch.linalg.matrix_norm(leading - law.leading @ (law.leading.T @ leading), 2) < 1e-10
    assert (law.moment - torch.diag(law.moment.diagonal())).abs().max() > 1e-3 * values[0]


def test_a_cache_without_results_keeps_the_rest() -> None:
    for part in ("targets", "answers", "statistics"):
        (cache_dir() / part).mkdir(parents=True)
        (cache_dir() / part / "x").write_text("x")
    before = cache_dir()
    with inputs.without_results() as folder:
        assert cache_dir() == folder != before
        assert (folder / "statistics" / "x").read_text() == "x"
        assert not (folder / "targets").exists()
        assert not (folder / "answers").exists()
    assert cache_dir() == before
    assert (before / "statistics" / "x").exists()
    assert (before / "targets" / "x").exists()


# The command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One stage that is met and one that is not, tiny inputs at full size too, and another results file."""
    rows: dict[str, Callable[[Any], Contest]] = {
        "good": lambda _: contest_of(0.0, scaled=lambda took: 1e9),
        "poor": lambda _: contest_of(0.0, scaled=lambda took: 0.0, work=1.0),
    }
    stages = {name: Stage(make, ratio=2.0, share=0.5, peak_mb=1e9) for name, make in rows.items()}
    monkeypatch.setattr(command, "STAGES", stages)
    monkeypatch.setattr(inputs, "full", inputs.quick)
    monkeypatch.setattr(command, "results_file", lambda: tmp_path / "bench.json")
    return tmp_path / "bench.json"


def called(*arguments: str) -> Any:
    return CliRunner().invoke(command.app, [*arguments, "--threads", "1"])


def test_all_stages_write_the_results(few: Path) -> None:
    done = called()
    assert done.exit_code == 0
    assert "ratio 0 (bar 2, MISSED)" in done.output
    assert ", met)" in done.output
    written = json.loads(few.read_text())
    assert list(written) == ["about", "rows"]
    assert [row["stage"] for row in written["rows"]] == ["good", "poor"]
    assert all(tuple(row) == COLUMNS for row in written["rows"])
    assert {"date", "threads", "product_rate", "versions", "bars"} <= set(written["about"])
    assert written["about"]["bars"]["good"] == {"ratio": 2.0, "share_of_limit": 0.5, "peak_mb": 1e9}


@pytest.mark.parametrize("arguments", [["good"], ["--quick"], ["good", "poor"]])
def test_some_stages_or_tiny_ones_write_nothing(few: Path, arguments: list[str]) -> None:
    assert called(*arguments).exit_code == 0
    assert not few.exists()


def test_a_disagreement_is_one_message_and_leaves_the_results(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few.write_text("earlier")
    for name in ("poor", "other"):
        monkeypatch.setitem(command.STAGES, name, Stage(lambda _: contest_of(1.0)))
    done = called("poor", "good", "other")
    assert done.exit_code == 1
    assert "benchmarks: stage 'poor': the result of the library" in done.output
    assert "stage 'other': the result of the library" in done.output
    assert "good ...\n  result differ by 0.0e+00" in done.output
    assert called().exit_code == 1
    assert few.read_text() == "earlier"


def test_an_unknown_stage_runs_none() -> None:
    with pytest.raises(UnknownNameError, match="unknown stage 'speed'; choose one of: admission"):
        command.run(["speed"], quick=True)
    done = called("speed")
    assert done.exit_code == 1
    assert "unknown stage 'speed'" in done.output


def test_rows_are_rounded_to_three_digits() -> None:
    row = Row("a", 12.3456, None, 0.00123456, 1.0, 987654.0, "some")
    assert row.rounded() == {
        "stage": "a",
        "ratio": 12.3,
        "share_of_limit": None,
        "ours_s": 0.00123,
        "twin_s": 1.0,
        "peak_mb": 988000.0,
        "sizes": "some",
    }
