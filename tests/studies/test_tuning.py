"""Settings that a search tries: as many for every editor, and their score."""

import json

import pandas as pd
import pytest

from palimpsest.editors import EDITORS, editor_for
from palimpsest.studies.tuning import CANDIDATES, Trial, candidates, following, windows, worst_margin
from tests.editors.test_search import ADAPTED

UNSEARCHED = ("ike", *ADAPTED)
"""Nothing to search, or published settings adapted to a model."""


@pytest.mark.parametrize("layers", [4, 6, 12, 24, 28, 30, 32, 48])
def test_every_editor_has_as_many_candidates_within_the_model(layers: int) -> None:
    for name, tried in candidates(layers).items():
        assert len(tried) == CANDIDATES
        assert len({json.dumps(one) for one in tried}) == CANDIDATES, name
        for one in tried:
            assert set(one["layers"]) <= set(range(layers))
            assert editor_for(name, "smollm2-135m", **one).layers == tuple(one["layers"])


def test_the_windows_of_published_depths_are_the_published_layers() -> None:
    assert windows(32)[0] == [4, 5, 6, 7, 8]  # LLaMA-3-8B
    assert windows(48)[1] == [13, 14, 15, 16, 17]  # GPT2-XL


def test_all_editors_are_searched_or_follow() -> None:
    found = following({name: {"lr": 0.1} for name in candidates(30)})
    assert found == {"ft_l": {"lr": 0.1, "limit": 0.1}}
    assert {*candidates(30), *found, *UNSEARCHED} == {*EDITORS}
    assert following({"memit": {}}) == {}


def test_the_score_is_the_worst_margin_with_an_interval_over_cases() -> None:
    assert worst_margin(96, 90, 2) == 1
    assert worst_margin(100, 80, 2) == -5
    assert worst_margin(100, 90, 7) == -2
    rows = {
        "efficacy": [100.0, 100, 0, 100],
        "generalisation": [100.0] * 4,
        "specificity": [80.0, 90, 90, 100],
    }
    cases = pd.DataFrame(rows | {"before": [90.0] * 4}, index=list("abcd"))
    trial = Trial(cases, 2.0, 1.0)
    row = trial.row()
    assert (row["efficacy"], row["specificity_lost"], row["score"]) == (75, 0, -20)
    ends = trial.score()
    assert (ends.mean, ends.n) == (-20, 4)
    assert ends.low < -20 < ends.high == pytest.approx(5)
