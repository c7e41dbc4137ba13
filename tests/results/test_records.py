import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from palimpsest.errors import DataError, UnknownNameError
from palimpsest.results import records
from palimpsest.results.intervals import Interval
from palimpsest.results.prose import readable
from palimpsest.results.records import Results, read, side


@pytest.fixture
def results() -> Results:
    return Results("01_one_edit", profile="smoke", parameters={"seed": 1})


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(records.STAGING, str(tmp_path))
    return tmp_path


def test_round_trip(results: Results, staging: Path) -> None:
    results.describe(model={"name": "tiny", "layers": np.int64(2)}, seed=1)
    results.value("efficacy", np.float32(0.5), 0.25, 0.75, unit="ratio", over="cases", n=4)
    results.table("scores", pd.DataFrame({"case": ["a", "b"], "value": [0.0, 1.0]}))
    path = results.save()

    record = records.read(path)
    assert path == staging / "01_one_edit.json"
    assert record["facts"] == {"model": {"name": "tiny", "layers": 2}, "seed": 1}
    assert record["values"]["efficacy"] == {
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "unit": "ratio",
        "over": "cases",
        "n": 4,
    }
    rows = pd.read_parquet(staging / "01_one_edit.scores.parquet")
    assert rows["value"].tolist() == [0.0, 1.0]
    assert sorted(p.name for p in staging.iterdir()) == [
        "01_one_edit.json",
        "01_one_edit.scores.parquet",
    ]


def test_an_interval_is_a_value_with_its_ends(results: Results) -> None:
    found = Interval(mean=2.0, low=1.0, high=4.0, n=7)
    assert results.interval("growth", found, "percent", over="seeds") is found
    wanted = {"value": 2.0, "low": 1.0, "high": 4.0, "unit": "percent", "over": "seeds", "n": 7}
    assert results.values["growth"] == wanted


def test_saving_twice_gives_the_same_bytes(results: Results, staging: Path) -> None:
    results.value("count", 3, unit="count")
    results.table("scores", pd.DataFrame({"case": ["a"], "value": [1.0]}))
    results.save()
    first = {p.name: p.read_bytes() for p in staging.iterdir()}
    results.save()
    assert {p.name: p.read_bytes() for p in staging.iterdir()} == first


def test_without_a_runner_nothing_is_written_into_the_repositorys_results(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no runner vouches for goes into the working folder."""
    repository, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    (repository / "config" / "profiles").mkdir(parents=True)
    (repository / "pyproject.toml").touch()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv(records.STAGING, raising=False)
    monkeypatch.setenv("PALIMPSEST_ROOT", str(repository))
    assert results.save() == elsewhere / "palimpsest-results" / "smoke" / "01_one_edit.json"
    assert not (repository / "results").exists()


def test_a_run_by_hand_leaves_one_with_other_parameters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(records.STAGING, raising=False)

    def saved(seed: int) -> Path:
        run = Results("01_one_edit", profile="smoke", parameters={"seed": seed})
        run.table("scores", pd.DataFrame({"seed": [seed]}))
        return run.save()

    first, second = saved(0), saved(1)
    said = capsys.readouterr().err
    assert f"{first} is of another run; this one is in {second.parent}" in said
    assert second.parent.parent == first.parent.parent
    assert [saved(0), saved(1), saved(2)][:2] == [first, second]  # repeated, each has its place
    for path, seed in ((first, 0), (second, 1)):
        assert read(path)["parameters"] == {"seed": seed}
        assert pd.read_parquet(path.with_name("01_one_edit.scores.parquet"))["seed"].tolist() == [seed]
    first.write_text("{}")  # no record
    assert saved(0).parent not in {first.parent, second.parent}
    assert first.read_text() == "{}"


def test_a_failed_write_leaves_the_earlier_file(
    results: Results, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results.save()
    before = path.read_bytes()
    results.value("late", 1.0)

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        results.save()
    assert path.read_bytes() == before
    assert list(staging.iterdir()) == [path]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": float("nan")}, "gap.value is nan, not a finite number"),
        ({"value": np.float64("inf")}, "gap.value is inf, not a finite number"),
        ({"value": 1.0, "unit": "metres"}, "unknown unit 'metres'; choose percent, ratio"),
        ({"value": 1.0, "low": 0.0}, "needs both low and high"),
        ({"value": 1.0, "low": 0.0, "high": 2.0}, "say what the interval is over: cases or seeds"),
        ({"value": 1.0, "over": "runs"}, "over is 'runs'; choose cases or seeds"),
        (
            {"value": 3.0, "low": 0.0, "high": 2.0, "over": "cases"},
            r"3.0 lies outside its interval \[0.0, 2.0\]",
        ),
        (
            {"value": "high", "low": 0.0, "high": 2.0, "over": "cases"},
            "only a number has an interval",
        ),
        ({"value": {1, 2}}, "gap.value is a set, which a record cannot hold"),
    ],
)
def test_what_a_value_may_not_be(results: Results, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        results.value("gap", **arguments)  # type: ignore[arg-type]
    assert results.values == {}


def test_names_are_checked(results: Results) -> None:
    results.value("gap", 1.0)
    with pytest.raises(DataError, match="'gap' is recorded twice"):
        results.value("gap", 2.0)
    with pytest.raises(DataError, match="'Gap 1': use lower case"):
        results.value("Gap 1", 2.0)
    with pytest.raises(DataError, match="'a b': use lower case"):
        results.table("a b", pd.DataFrame())
    with pytest.raises(DataError, match=r"'\.\./x' names no file"):
        Results("../x", profile="smoke", parameters={})


def test_facts_and_parameters_must_fit_json(results: Results) -> None:
    with pytest.raises(DataError, match=r"facts.model.revision is a object"):
        results.describe(model={"revision": object()})
    with pytest.raises(DataError, match=r"parameters.lr is nan"):
        Results("a", profile="smoke", parameters={"lr": float("nan")})


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (97.84, 93.1, 99.4, "percent", "97.8 [93.1, 99.4]"),
        (2000, None, None, "count", "2,000"),
        (0.25, None, None, "ratio", "0.250"),
        (3.2e-16, None, None, "norm", "3.20e-16"),
        (0.011, 0.00863, 0.014, "norm", "0.011 [0.009, 0.014]"),
        (-2e-4, -3e-4, 1e-5, "nats", "-2.00e-04 [-3.00e-04, 1.00e-05]"),
        (0, None, None, "norm", "0.000"),
        (2431.2, 330.4, 17866.0, "ratio", "2,431 [330, 17,866]"),
        (5.21, 0.9, 1200.0, "ratio", "5.21 [0.9, 1,200]"),
        (3.2e6, None, None, "norm", "3.20e+06"),
        (True, None, None, "score", "yes"),
        ("English", None, None, "score", "English"),
    ],
)
def test_readable(
    value: float | str | bool, low: float | None, high: float | None, unit: str, text: str
) -> None:
    assert readable({"value": value, "low": low, "high": high, "unit": unit}) == text


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"schema": 0})])
def test_reading_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"x\.json: .*run the notebook again"):
        records.read(path)


@pytest.mark.parametrize(
    ("low", "high", "reference", "found"),
    [(1, 2, 0, "more"), (-2, -1, 0, "less"), (-1, 1, 0, "neither"), (0, 1, 0, "neither"), (1, 2, 3, "less")],
)
def test_a_value_lies_on_a_side_of_a_reference(low: float, high: float, reference: float, found: str) -> None:
    assert side({"value": 1, "low": low, "high": high}, "more", "less", "neither", reference) == found


def test_a_value_without_an_interval_lies_on_no_side() -> None:
    with pytest.raises(DataError, match=r"the value 3 has no interval to compare with 0.0; record one"):
        side({"value": 3, "low": None, "high": None}, "more", "less", "neither")


# Cells that show something


def test_tables_and_sentences_come_from_what_is_recorded(results: Results) -> None:
    results.value("gain", 2.5, 1.0, 4.0, unit="percent", over="cases", n=9)
    results.table("rows", pd.DataFrame({"value": [1 / 3]}, index=[7]))
    assert results.frame("rows")["value"].tolist() == [0.333333]
    assert results.frame("rows").index.tolist() == [0]
    assert (
        results.say("It gains {gain} {how}, seed {seed}.", how="more")
        == "It gains 2.5 [1.0, 4.0] more, seed 1."
    )
    with pytest.raises(UnknownNameError, match="unknown table of 01_one_edit 'row'; choose one of: rows"):
        results.frame("row")
    with pytest.raises(UnknownNameError, match="unknown value 'gian'; choose one of: gain, seed"):
        results.say("{gian}")


def test_a_value_wins_over_a_parameter_of_its_name(results: Results) -> None:
    results.value("seed", 3, unit="count")
    assert results.say("{seed}") == "3"


def test_an_earlier_run_is_shown_as_it_was_recorded(
    results: Results, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.describe(seed=1)
    results.value("gain", 1 / 3, unit="ratio")
    results.table("rows", pd.DataFrame({"value": [1 / 3]}))
    results.save()
    monkeypatch.setenv(records.RECORDS, str(staging))
    again = Results("01_one_edit", profile="smoke", parameters={"seed": 5})
    assert again.as_dict() == results.as_dict()
    pd.testing.assert_frame_equal(again.frame("rows"), results.frame("rows"))
    assert again.say("{gain}") == "0.333"
    with pytest.raises(UnknownNameError, match="unknown table of 01_one_edit 'gone'"):
        again.frame("gone")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (lambda r: r.value("more", 1.0), "value 'more'"),
        (lambda r: r.interval("more", Interval(2.0, 1.0, 4.0, 7), "ratio"), "value 'more'"),
        (lambda r: r.table("more", pd.DataFrame()), "table 'more'"),
        (lambda r: r.describe(seed=2), "seed"),
        (lambda r: r.save(), "the record"),
    ],
)
def test_nothing_is_recorded_while_an_earlier_run_is_shown(
    record: Any, what: str, results: Results, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results.save().read_bytes()
    monkeypatch.setenv(records.RECORDS, str(staging))
    again = Results("01_one_edit", profile="smoke", parameters={})
    with pytest.raises(DataError, match=f"{what} is recorded while 01_one_edit is only shown again"):
        record(again)
    assert (staging / "01_one_edit.json").read_bytes() == before
