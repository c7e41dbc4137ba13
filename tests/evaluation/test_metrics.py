"""Every formula against numbers worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palimpsest.errors import ScoreError
from palimpsest.evaluation.metrics import (
    COUNTERFACT_METRICS,
    METRICS,
    ZSRE_METRICS,
    accuracy,
    arithmetic_mean_score,
    harmonic_mean_score,
    mean_nll,
    probability_difference,
    success,
    token_accuracy,
)


def logs(*probabilities: float) -> Tensor:
    return -torch.log(torch.tensor(probabilities, dtype=torch.float64))


MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])


def test_mean_nll_is_per_token_and_ignores_what_the_mask_hides() -> None:
    # rows: 1/2, 1/4, 1/8 -> (1 + 2 + 3)/3 ln 2; 1/2, 1/8 -> 2 ln 2; 1/16 -> 4 ln 2
    nan = float("nan")
    token_nll = torch.stack([logs(1 / 2, 1 / 4, 1 / 8), logs(1 / 2, 1 / 8, nan), logs(1 / 16, nan, nan)])
    assert (mean_nll(token_nll, MASK) / math.log(2)).tolist() == pytest.approx([2.0, 2.0, 4.0])


def test_a_long_target_is_not_at_a_disadvantage() -> None:
    # three tokens of 1/2 are together less probable (1/8) than one of 1/4, yet each is more probable
    long, short = logs(1 / 2, 1 / 2, 1 / 2)[None], logs(1 / 4, 1, 1)[None]
    nll_long, nll_short = mean_nll(long, MASK[:1]), mean_nll(short, MASK[2:])
    assert success(nll_long, nll_short).tolist() == [1.0]
    assert success(nll_short, nll_long).tolist() == [0.0]


def test_success_prefers_the_lower_nll_and_counts_ties_as_failures() -> None:
    preferred = torch.tensor([1.0, 1.5, 1.0, 0.0])
    other = torch.tensor([1.5, 1.0, 1.0, math.inf])
    assert success(preferred, other).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_probability_difference() -> None:
    # 1/2 - 1/4; 1/4 - 1/2; of two tokens 1/2 and 1/8 the geometric mean is 1/4, against 1/10
    two_tokens = mean_nll(logs(1 / 2, 1 / 8)[None], MASK[1:2, :2])
    preferred = torch.cat([logs(1 / 2, 1 / 4), two_tokens])
    other = logs(1 / 4, 1 / 2, 1 / 10)
    assert probability_difference(preferred, other).tolist() == pytest.approx([0.25, -0.25, 0.15])


def test_accuracy_needs_every_token_and_token_accuracy_counts_them() -> None:
    hits = torch.tensor([[True, True, False], [True, True, False], [False, True, True]])
    assert accuracy(hits, MASK).tolist() == [0.0, 1.0, 0.0]
    assert token_accuracy(hits, MASK).tolist() == pytest.approx([2 / 3, 1.0, 0.0])


def test_harmonic_and_arithmetic_score_are_two_numbers() -> None:
    assert harmonic_mean_score([100, 100, 25]) == pytest.approx(50.0)
    assert arithmetic_mean_score([100, 100, 25]) == pytest.approx(75.0)
    # 3 * 99 * 93.1 * 68.5 = 1894072.95 over 93.1 * 68.5 + 99 * 68.5 + 99 * 93.1 = 22375.75; and 260.6 / 3
    assert harmonic_mean_score([99.0, 93.1, 68.5]) == pytest.approx(1894072.95 / 22375.75)
    assert arithmetic_mean_score([99.0, 93.1, 68.5]) == pytest.approx(260.6 / 3)


def test_scores_agree_only_when_all_are_equal_and_scale_with_the_unit() -> None:
    assert harmonic_mean_score([0.7, 0.7]) == pytest.approx(arithmetic_mean_score([0.7, 0.7]))
    assert harmonic_mean_score([0.9, 0.5]) < arithmetic_mean_score([0.9, 0.5])
    assert harmonic_mean_score([90, 50]) == pytest.approx(100 * harmonic_mean_score([0.9, 0.5]))


def test_one_zero_takes_the_harmonic_score_to_zero_but_not_the_arithmetic_one() -> None:
    assert harmonic_mean_score([1.0, 1.0, 0.0]) == 0.0
    assert arithmetic_mean_score([1.0, 1.0, 0.0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("mean", [harmonic_mean_score, arithmetic_mean_score])
@pytest.mark.parametrize("scores", [[], [0.5, -0.1], [0.5, math.nan], [math.inf]])
def test_scores_that_mean_nothing_are_refused(
    mean: Callable[[list[float]], float], scores: list[float]
) -> None:
    with pytest.raises(ScoreError, match=r"needs one or more finite scores of 0 or more, got \["):
        mean(scores)


def test_the_table_of_metrics() -> None:
    assert set(COUNTERFACT_METRICS) | set(ZSRE_METRICS) == set(METRICS)
    assert not set(COUNTERFACT_METRICS) & set(ZSRE_METRICS)
    assert all(metric.higher_is_better for metric in METRICS.values())
    prompts = {"efficacy": "request", "generalisation": "paraphrases", "specificity": "neighbours"}
    forms = {"": "success", "accuracy": "accuracy", "tokens": "token_accuracy"}
    for name, metric in METRICS.items():
        what, _, form = name.partition("_")
        assert (metric.prompts, metric.form) == (prompts[what], forms[form])
