"""Uncertainty against a plain twin, its symmetries, closed forms, and an unbiased drift (property 23)."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.errors import NonFiniteError, ScoreError, ShapeError
from palimpsest.evaluation.uncertainty import (
    Decomposition,
    by_wording,
    compare,
    decompose,
    growth,
    shift_squared,
    without_drift,
)
from tests.problems import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = st.tuples(st.integers(2, 7), st.integers(2, 6), st.integers(1, 9))
SEEDS = st.integers(0, 9999)


@st.composite
def embedded(draw: st.DrawFn) -> Tensor:
    """Embeddings (M, K, d) of any scale, with wordings apart by any multiple of the scatter."""
    m, k, d = draw(SIZES)
    seed = draw(SEEDS)
    apart = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0]))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    return scale * (gaussian(seed, m, k, d) + apart * gaussian(seed + 1, m, 1, d))


def twin(h: Tensor) -> Decomposition:
    """The formulas as C.1 and the definition of the drift print them, sum by sum."""
    m, k, _ = h.shape
    mean = [sum(h[j, i] for i in range(k)) / k for j in range(m)]
    aleatoric = sum(float((h[j, i] - mean[j]).norm()) for j in range(m) for i in range(k)) / (m * k)
    pairs = list(itertools.combinations(range(m), 2))
    epistemic = 2 / (m * (m - 1)) * sum(float((mean[j] - mean[o]).norm()) for j, o in pairs)
    s = [sum(float((h[j, i] - mean[j]).square().sum()) for i in range(k)) / (k - 1) for j in range(m)]
    drift = [float((mean[j] - mean[o]).square().sum()) - (s[j] + s[o]) / k for j, o in pairs]
    return Decomposition(aleatoric, epistemic, (aleatoric + epistemic) / 2, sum(drift) / len(drift))


def same(found: Decomposition, wanted: Decomposition, scale: float, tolerance: float = 1e-9) -> None:
    """Equal up to rounding; ``scale`` is the size of the embeddings, which rounding goes by."""
    for name in ("aleatoric", "epistemic", "total"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=tolerance * scale), name
    assert found.drift_squared == pytest.approx(wanted.drift_squared, abs=tolerance * scale**2)


def size(h: Tensor) -> float:
    return float(h.abs().max())


@given(embedded())
def test_decompose_equals_the_plain_twin(h: Tensor) -> None:
    same(decompose(h), twin(h), size(h), 1e-12)


@given(embedded())
def test_the_parts_of_the_wordings_are_theirs_and_average_to_the_whole(h: Tensor) -> None:
    m, k, _ = h.shape
    parts, scale = by_wording(h), size(h)
    means = {name: sum(getattr(part, name) for part in parts) / m for name in vars(parts[0])}
    same(Decomposition(**means), decompose(h), scale)
    for j in range(m):
        pairs = [twin(h[[j, other]]) for other in range(m) if other != j]
        alone = sum(float((h[j, i] - h[j].mean(0)).norm()) for i in range(k)) / k
        assert parts[j].aleatoric == pytest.approx(alone, abs=1e-12 * scale)
        for name, power in (("epistemic", 1), ("drift_squared", 2)):
            wanted = sum(getattr(pair, name) for pair in pairs) / (m - 1)
            assert getattr(parts[j], name) == pytest.approx(wanted, abs=1e-11 * scale**power)


def test_blocks_of_rows_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    h = gaussian(0, 11, 3, 4)
    whole = decompose(h)
    monkeypatch.setattr("palimpsest.evaluation.uncertainty._ROWS_AT_ONCE", 4)
    same(decompose(h), whole, 1.0, 1e-14)


@given(embedded(), SEEDS)
def test_rotation_translation_and_order_do_not_matter(h: Tensor, seed: int) -> None:
    m, k, d = h.shape
    before, scale = decompose(h), size(h)
    rotation = torch.linalg.qr(gaussian(seed, d, d)).Q
    same(decompose(h @ rotation), before, scale)
    same(decompose(h + 100 * scale * gaussian(seed, d)), before, 100 * scale)
    generator = torch.Generator().manual_seed(seed)
    same(decompose(h[torch.randperm(m, generator=generator)]), before, scale)
    shuffled = torch.stack([rows[torch.randperm(k, generator=generator)] for rows in h])
    same(decompose(shuffled), before, scale)


@given(embedded(), st.sampled_from([-2.0, 0.25, 3.0, 1e4]))
def test_distances_scale_with_the_embeddings_and_the_drift_with_their_square(
    h: Tensor, factor: float
) -> None:
    one, other = decompose(h), decompose(factor * h)
    by = abs(factor)
    scaled = Decomposition(by * one.aleatoric, by * one.epistemic, by * one.total, by**2 * one.drift_squared)
    same(other, scaled, by * size(h))


@given(embedded(), st.integers(1, 9))
def test_more_dimensions_without_content_change_nothing(h: Tensor, more: int) -> None:
    padded = torch.cat([h, torch.zeros(*h.shape[:2], more, dtype=h.dtype)], 2)
    same(decompose(padded), decompose(h), size(h))


# By hand


def test_by_hand() -> None:
    # means (0, 0), (3, 4) and (0, 0); samples at distance 1, 2 and 0 of them
    h = torch.tensor([[[1.0, 0], [-1, 0]], [[3, 6], [3, 2]], [[0, 0], [0, 0]]])
    found = decompose(h)
    assert found.aleatoric == pytest.approx((1 + 2 + 0) / 3)
    assert found.epistemic == pytest.approx((5 + 0 + 5) / 3)
    assert found.total == pytest.approx((1 + 10 / 3) / 2)
    # s² = 2, 8 and 0 with K = 2: pairs 25 - 5, 0 - 1 and 25 - 4
    assert found.drift_squared == pytest.approx((20 - 1 + 21) / 3)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 5), SEEDS)
def test_identical_answers_have_no_uncertainty_to_the_last_bit(m: int, k: int, d: int, seed: int) -> None:
    point = gaussian(seed, d) / 3
    assert decompose(point.expand(m, k, d)) == Decomposition(0.0, 0.0, 0.0, 0.0)
    per_wording = gaussian(seed, m, 1, d) / 3
    found = decompose(per_wording.expand(m, k, d))
    assert found.aleatoric == 0
    assert found.drift_squared == pytest.approx(twin(per_wording.expand(m, k, d)).drift_squared, rel=1e-9)


# What is estimated


def means_of(m: int, k: int, d: int, sigma: float, drift: Tensor, draws: int = 400) -> Tensor:
    """Mean and standard error of each part over draws around the given means (M, d): (2, 4)."""
    rows = []
    for seed in range(draws):
        found = decompose(drift[:, None] + sigma * gaussian(1000 * k + seed, m, k, d))
        rows.append([found.aleatoric, found.epistemic, found.total, found.drift_squared])
    table = torch.tensor(rows, dtype=torch.float64)
    return torch.stack([table.mean(0), table.std(0) / draws**0.5])


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8, 20])
def test_without_drift_the_parts_are_their_closed_forms_and_the_drift_is_centred_on_0(k: int) -> None:
    m, d, sigma = 6, 64, 1.3
    mean, error = means_of(m, k, d, sigma, torch.zeros(m, d, dtype=torch.float64))
    wanted = without_drift(sigma, d, k)
    assert float(mean[0]) == pytest.approx(wanted.aleatoric, rel=0.005)
    assert float(mean[1]) == pytest.approx(wanted.epistemic, rel=0.005)
    assert float(mean[1] / mean[0]) == pytest.approx(math.sqrt(2 / (k - 1)), rel=0.01)
    assert abs(float(mean[3])) < 4 * float(error[3])
    inflation = 2 * sigma**2 * d / k  # what the squared distance of the means would say instead
    assert 4 * float(error[3]) < 0.05 * inflation, "the test could not tell the two apart"


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8, 20])
def test_the_unbiased_drift_is_within_2_percent_of_the_truth(k: int) -> None:
    m, d, sigma = 6, 64, 0.6
    centres = gaussian(7, m, d) * 0.5
    truth = float(torch.pdist(centres).square().mean())
    mean, _ = means_of(m, k, d, sigma, centres)
    assert float(mean[3]) == pytest.approx(truth, rel=0.02)
    apart = torch.pdist(centres)
    inflated = (apart.square() + 2 * sigma**2 * d / k).sqrt()  # what C.1 gives in many dimensions
    excess = float((inflated - apart).mean())
    assert float(mean[1]) - float(apart.mean()) == pytest.approx(excess, rel=0.05)


def test_the_bias_at_five_samples_is_that_of_the_paper() -> None:
    expected = without_drift(1.0, 384, 5)
    assert expected.epistemic / expected.aleatoric == pytest.approx(0.7071, abs=1e-4)
    assert without_drift(1.0, 64, 5).aleatoric == pytest.approx(7.13, abs=0.005)
    assert without_drift(1.0, 64, 5).epistemic == pytest.approx(5.04, abs=0.005)
    assert without_drift(2.0, 1, 2).epistemic == pytest.approx(2 * math.sqrt(2 / math.pi))
    assert math.isfinite(without_drift(1.0, 100_000, 2).total)


def test_a_wider_scatter_alone_raises_both_parts_alike() -> None:
    narrow, wide = without_drift(1.0, 64, 5), without_drift(1.3, 64, 5)
    change = compare(narrow, wide)
    assert change.delta_aleatoric == pytest.approx(0.3)
    assert change.delta_epistemic == pytest.approx(0.3)
    assert change.delta_drift_squared == 0


# Before and after


@given(embedded(), embedded())
def test_changes_are_relative_growths_and_a_difference(first: Tensor, second: Tensor) -> None:
    before, after = decompose(first), decompose(second)
    change = compare(before, after)
    assert change.delta_total == pytest.approx((after.total - before.total) / before.total, abs=1e-9)
    assert change.delta_drift_squared == after.drift_squared - before.drift_squared
    assert vars(compare(before, before)) == dict.fromkeys(vars(change), 0)


def test_growth_is_never_nan() -> None:
    assert growth(0.0, 0.0) == 0
    assert growth(0.0, 0.5) == math.inf
    assert growth(0.5, 0.0) == -1
    assert growth(0.4, 0.6) == pytest.approx(0.5)
    for before, after in [(-0.1, 1.0), (1.0, math.nan), (math.inf, 1.0)]:
        with pytest.raises(ScoreError, match=r"0 or more and finite, got .*take the difference"):
            growth(before, after)


@given(SIZES, SEEDS)
def test_the_shift_of_a_pure_translation_is_its_length(sizes: tuple[int, int, int], seed: int) -> None:
    h, step = gaussian(seed, *sizes), gaussian(seed + 1, sizes[2])
    wanted = float(step.square().sum())
    assert shift_squared(h, h + step) == pytest.approx((wanted, wanted), abs=1e-9)
    assert shift_squared(h, h) == (0, 0)


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_the_shift_is_unbiased_however_the_samples_of_a_pair_depend(shared: float) -> None:
    m, k, d, draws = 4, 3, 16, 600
    step = 0.4 * gaussian(3, m, 1, d)
    found = []
    for seed in range(draws):
        common, own = gaussian(seed, m, k, d), gaussian(seed + draws, m, k, d)
        found.append(shift_squared(common, step + shared * common + (1 - shared) * own))
    biased, unbiased = torch.tensor(found, dtype=torch.float64).unbind(1)
    truth = float(step.square().sum(2).mean())
    assert abs(float(unbiased.mean()) - truth) <= 4 * float(unbiased.std()) / draws**0.5 + 1e-9
    variance = 2 * (1 - shared) ** 2 * d / k
    assert float(biased.mean()) == pytest.approx(truth + variance, rel=0.02)


# Large and wrong input


@pytest.mark.slow
def test_many_samples_need_no_table_of_all_pairs() -> None:
    h = gaussian(0, 40, 4000, 64)  # 80 MB; all pairs of samples would be 200 GB
    assert decompose(h).aleatoric == pytest.approx(without_drift(1.0, 64, 4000).aleatoric, rel=0.001)
    assert decompose(gaussian(1, 3000, 2, 8)).epistemic > 0


def test_float32_is_computed_in_float64() -> None:
    h = gaussian(0, 3, 4, 5)
    same(decompose(h.float()), decompose(h.float().double()), 1.0, 0.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(1, 5, 4), (6, 1, 4), (6, 5, 0), (6, 5), (0, 0, 4), (2, 2, 2, 2)])
def test_too_few_wordings_or_samples(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"must be \(M, K, d\) with 2 or more wordings .* so ask for more"):
        decompose(torch.zeros(shape))
    with pytest.raises(ShapeError, match="embeddings before must be"):
        shift_squared(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    h = gaussian(0, 2, 3, 4)
    h[1, 1, 1] = value
    with pytest.raises(NonFiniteError, match="embeddings: 1 of 24 values are NaN or infinite; look at the"):
        decompose(h)
    with pytest.raises(NonFiniteError, match="embeddings after: 1 of 24 values"):
        shift_squared(torch.zeros_like(h), h)


@pytest.mark.usefixtures("unchecked")
def test_before_and_after_must_match() -> None:
    with pytest.raises(ShapeError, match=r"before are \(2, 3, 4\), those after \(2, 2, 4\); ask both models"):
        shift_squared(gaussian(0, 2, 3, 4), gaussian(0, 2, 2, 4))


@pytest.mark.parametrize("numbers", [(0.0, 4, 5), (1.0, 0, 5), (1.0, 4, 1), (math.inf, 4, 5)])
def test_a_closed_form_of_nothing(numbers: tuple[float, int, int]) -> None:
    with pytest.raises(ScoreError, match="spread must be above 0, dimensions 1 or more and samples 2 or"):
        without_drift(*numbers)
