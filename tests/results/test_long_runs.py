"""Rows of carried long runs, and where they collapsed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from palimpsest import paths
from palimpsest.errors import DataError
from palimpsest.results.long_runs import ABOUT, collapse_points, long_runs
from palimpsest.results.records import STAGING, Results


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "results_root", lambda: tmp_path)
    return tmp_path


def make(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, ratios: dict[int, float], **used: Any
) -> None:
    folder = root / "arms" / "05_page" / name
    folder.mkdir(parents=True)
    monkeypatch.setenv(STAGING, str(folder))
    told = {"regime": "r", "run": "memit_naive once 2", "changes": [], "order": 0} | used
    results = Results("15_long_run", profile=f"arms.05_page.{name}", parameters=told)
    rows = {"edits": list(ratios), "metric": "ratio", "value": list(ratios.values())}
    results.table("rows", pd.DataFrame(rows))
    results.save()


def test_rows_carry_what_their_run_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, monkeypatch, "a", {0: 1.0, 50: 2.0})
    make(
        root,
        monkeypatch,
        "b",
        {0: 1.0},
        changes=["ridge=2", "values=once"],
        order=1,
        run="latest_full each_step 1",
        data="facts.json",
    )
    found = long_runs("05_page")
    assert tuple(found.columns[: len(ABOUT)]) == ABOUT
    assert len(found) == 3
    assert found.iloc[0][list(ABOUT)].tolist() == ["r", "memit_naive", "once", 2.0, "", "", 0]
    assert found.iloc[2][list(ABOUT)].tolist() == [
        "r",
        "latest_full",
        "each_step",
        1.0,
        "ridge=2, values=once",
        "facts.json",
        1,
    ]


def test_runs_of_another_model_are_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, monkeypatch, "a", {0: 1.0, 50: 2.0}, model="small")
    make(root, monkeypatch, "b", {0: 1.0}, model="large", order=1)
    assert long_runs("05_page", model="small")["order"].tolist() == [0, 0]
    assert long_runs("05_page", model="none").empty
    assert len(long_runs("05_page")) == 3


def test_a_page_without_long_runs_has_no_rows(root: Path) -> None:
    assert long_runs("05_page").empty
    assert list(long_runs("05_page").columns) == list(ABOUT)


def test_a_damaged_record_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, monkeypatch, "a", {0: 1.0})
    (root / "arms" / "05_page" / "a" / "15_long_run.json").write_text("{")
    with pytest.raises(DataError):
        long_runs("05_page")


def test_a_collapse_lies_between_two_measurements(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, monkeypatch, "a", {0: 1.0, 100: 3.0, 200: 40.0, 300: 9.0})
    make(root, monkeypatch, "b", {0: 1.0, 100: 3.0}, order=1)
    make(root, monkeypatch, "c", {0: 10.0, 100: 30.0}, order=2)
    found = collapse_points(long_runs("05_page"), 10).set_index("order")
    assert found.loc[0, ["facts", "before", "written", "last"]].tolist() == [200, 100, 300, 9.0]
    assert np.isnan(found.loc[1, "facts"])
    assert found.loc[1, ["before", "written", "last"]].tolist() == [100, 100, 3.0]
    assert found.loc[2, ["facts", "before"]].tolist() == [0, 0]
