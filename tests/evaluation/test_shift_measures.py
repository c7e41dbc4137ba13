"""Measures of a shift against plain loops, their invariances, and their values where little is defined."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.spatial.distance import directed_hausdorff

from palimpsest.errors import NonFiniteError, ShapeError
from palimpsest.evaluation import shift_measures as measures
from palimpsest.evaluation.shift_measures import LEVEL, Plane

Array = np.ndarray[Any, np.dtype[np.float64]]
SEEDS = st.integers(0, 9999)
SCALES = st.sampled_from([1e-3, 1.0, 1e3])


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def turn(seed: int, d: int) -> Array:
    """A random orthogonal matrix."""
    return np.linalg.qr(drawn(seed, d, d))[0]


@st.composite
def two(draw: st.DrawFn, least: int = 3, d: int | None = None) -> tuple[Array, Array]:
    """States (n, d) of the same prompts before and after a shift of any size."""
    n, seed = draw(st.integers(least, 24)), draw(SEEDS)
    width = d or draw(st.integers(2, 7))
    before = drawn(seed, n, width) * np.linspace(2, 1, width)
    return before, before + draw(st.sampled_from([0.0, 0.1, 3.0])) * drawn(seed + 1, n, width)


def cka(before: Array, after: Array) -> float:
    return measures.linear_cka(measures.gram(before), measures.gram(after))


def mmd(before: Array, after: Array, scale: float = 1.5) -> float:
    kernel, n = measures.gaussian_kernel(np.concatenate([before, after]), scale), len(before)
    return measures.mmd(kernel[:n, :n], kernel[n:, n:], kernel[:n, n:])


# Twins ----------------------------------------------------------------------------------------


@given(two())
def test_hausdorff_is_the_printed_formula(states: tuple[Array, Array]) -> None:
    a, b = (one[:, :2] for one in states)
    nearest = [[min(math.dist(x, y) for y in other) for x in one] for one, other in ((a, b), (b, a))]
    found = measures.hausdorff(a, b)
    assert found == pytest.approx(max(map(max, nearest)), rel=1e-12)
    assert found == pytest.approx(max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]), rel=1e-12)


@given(two(5, d=2), st.sampled_from([0.0, 2.0, 40.0]))
def test_overlap_is_the_integral_of_the_smaller_curve(states: tuple[Array, Array], away: float) -> None:
    a, b = states[0][:, 0], states[1][:, 1] + away

    def curve(sample: Array, x: float) -> float:
        h = sample.std(ddof=1) * len(sample) ** -0.2
        return float(np.mean(np.exp(-(((x - sample) / h) ** 2) / 2)) / (h * math.sqrt(2 * math.pi)))

    ends = np.unique(np.concatenate([np.linspace(s.min() - 3, s.max() + 3, 15) for s in (a, b)]))
    parts = [
        quad(lambda x: min(curve(a, x), curve(b, x)), *pair)[0] for pair in itertools.pairwise(ends.tolist())
    ]
    assert measures.overlap(a, b) == pytest.approx(sum(parts), abs=2e-3)


def test_the_overlap_of_two_normal_samples_is_that_of_their_laws() -> None:
    a = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    wanted = 2 * stats.norm.cdf(-1.5 / 2)  # two unit normals 1.5 apart
    assert measures.overlap(a, a + 1.5) == pytest.approx(wanted, abs=0.02)  # curves are a little wider


@given(two())
def test_inside_counts_the_points_within_the_ellipse(states: tuple[Array, Array]) -> None:
    before, after = (one[:, :2] for one in states)
    mean, cov = before.mean(0), np.cov(before.T, bias=True)
    assume(np.linalg.cond(cov) < 1e6)
    squares = [[float((x - mean) @ np.linalg.solve(cov, x - mean)) for x in one] for one in (before, after)]
    limit = sorted(squares[0])[math.ceil(LEVEL * len(before)) - 1]
    wanted = sum(square <= limit * (1 + 1e-9) for square in squares[1]) / len(after)
    assert measures.inside(before, after) == pytest.approx(wanted)


@given(two())
def test_cka_is_the_ratio_of_cross_covariances(states: tuple[Array, Array]) -> None:
    x, y = (one - one.mean(0) for one in states)
    squares = [float(np.square(a.T @ b).sum()) for a, b in ((x, y), (x, x), (y, y))]
    assert cka(*states) == pytest.approx(squares[0] / math.sqrt(squares[1] * squares[2]), rel=1e-9)


@given(two(), st.sampled_from([0.5, 2.0]))
def test_mmd_is_the_sum_over_pairs(states: tuple[Array, Array], scale: float) -> None:
    def mean(one: Array, other: Array) -> float:
        pairs = [math.exp(-(math.dist(x, y) ** 2) / (2 * scale**2)) for x in one for y in other]
        return sum(pairs) / len(pairs)

    square = mean(states[0], states[0]) + mean(states[1], states[1]) - 2 * mean(*states)
    assert mmd(*states, scale) ** 2 == pytest.approx(square, abs=1e-12)


@given(two())
def test_moved_and_turned_are_distance_and_angle(states: tuple[Array, Array]) -> None:
    for x, y, far, angle in zip(*states, measures.moved(*states), measures.turned(*states), strict=True):
        assert far == pytest.approx(math.dist(x, y), rel=1e-12)
        cosine = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
        assert math.cos(math.radians(angle)) == pytest.approx(cosine, abs=1e-12)


@given(two())
def test_spread_and_width_are_sums_over_prompts(states: tuple[Array, Array]) -> None:
    before = states[0]
    mean = sum(before) / len(before)
    wanted = math.sqrt(sum(math.dist(x, mean) ** 2 for x in before) / len(before))
    assert measures.spread(before) == pytest.approx(wanted, rel=1e-12)
    apart = [math.dist(x, y) for x, y in itertools.combinations(before, 2)]
    assert measures.width(before) == pytest.approx(float(np.median(apart)), rel=1e-12)


# Invariances ----------------------------------------------------------------------------------


@given(two(), SEEDS, SCALES, SCALES)
def test_cka_is_blind_to_rotation_scale_and_translation(
    states: tuple[Array, Array], seed: int, one: float, other: float
) -> None:
    before, after = states
    d = before.shape[1]
    changed = other * after @ turn(seed, d) + drawn(seed, d)
    assert cka(one * before, changed) == pytest.approx(cka(before, after), abs=1e-8)
    assert cka(after, before) == pytest.approx(cka(before, after), abs=1e-12)
    assert 0 <= cka(before, after) <= 1


@given(two(), SEEDS)
def test_hausdorff_and_mmd_are_distances_that_an_isometry_keeps(
    states: tuple[Array, Array], seed: int
) -> None:
    before, after = states
    d = before.shape[1]
    third = before + drawn(seed + 1, *before.shape)
    for distance in (measures.hausdorff, mmd):
        moved = [one @ turn(seed, d) + drawn(seed, d) for one in states]
        assert distance(*moved) == pytest.approx(distance(before, after), abs=1e-7)
        assert distance(after, before) == pytest.approx(distance(before, after), abs=1e-12)
        assert distance(before, third) <= distance(before, after) + distance(after, third) + 1e-7
        assert distance(before, before) == 0
    assert measures.hausdorff(3 * before, 3 * after) == pytest.approx(3 * measures.hausdorff(before, after))


@given(two(5), SCALES, st.sampled_from([-2.0, 0.0, 5.0]))
def test_overlap_is_symmetric_and_has_no_unit(states: tuple[Array, Array], scale: float, away: float) -> None:
    a, b = states[0][:, 0], states[1][:, 0]
    found = measures.overlap(a, b)
    assert measures.overlap(b, a) == pytest.approx(found, abs=1e-3)
    assert measures.overlap(scale * (a + away), scale * (b + away)) == pytest.approx(found, abs=1e-6)
    assert 0 <= found <= 1
    assert measures.overlap(a, a) == 1
    assert measures.overlap(a, a[::-1]) == pytest.approx(1, abs=1e-12)


@given(two(4, d=2), SEEDS)
def test_inside_is_kept_by_every_affine_map(states: tuple[Array, Array], seed: int) -> None:
    before, after = states
    assume(np.linalg.cond(np.cov(before.T)) < 1e3)
    turned = turn(seed, 2) * np.array([0.5, 3.0])
    found = measures.inside(before, after)
    assert measures.inside(before @ turned + 7, after @ turned + 7) == pytest.approx(found)
    assert measures.inside(before, before) == math.ceil(LEVEL * len(before)) / len(before)


@given(two(), SCALES)
def test_angles_have_no_unit(states: tuple[Array, Array], scale: float) -> None:
    before, after = states
    np.testing.assert_allclose(
        measures.turned(scale * before, after / scale), measures.turned(before, after), atol=1e-9
    )
    assert (measures.turned(before, scale * before) <= 1e-5).all()


# The plane ------------------------------------------------------------------------------------


@given(two(), st.sampled_from(["before", "both"]))
def test_the_plane_has_the_largest_variances(states: tuple[Array, Array], to: Any) -> None:
    plane = Plane.fit(*states, to)
    fitted = states[0] if to == "before" else np.concatenate(states)
    values, vectors = np.linalg.eigh(np.cov(fitted.T, bias=True))
    assume(values[-1] > 1.01 * values[-2] and (len(values) < 3 or values[-2] > 1.01 * values[-3]))
    for axis, vector in zip(plane.axes.T, vectors.T[::-1], strict=False):
        assert abs(float(axis @ vector)) == pytest.approx(1, abs=1e-8)
        assert axis[np.abs(axis).argmax()] > 0
    points = plane.points(states[0])
    centred = points - points.mean(0)
    assert plane.scale == pytest.approx(math.sqrt(float(np.square(centred).sum()) / len(points)))


@given(two(), SEEDS)
def test_the_plane_does_not_depend_on_the_order_of_prompts(states: tuple[Array, Array], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(states[0]))
    one, other = Plane.fit(*states), Plane.fit(*(part[order] for part in states))
    values = np.linalg.svd(states[0] - states[0].mean(0), compute_uv=False)
    assume(values[0] > 1.01 * values[1] and (len(values) < 3 or values[1] > 1.01 * values[2]))
    np.testing.assert_allclose(one.axes, other.axes, atol=1e-8)


def test_states_that_are_all_alike_are_seen_where_they_went() -> None:
    before = np.tile([3.0, 1.0, 2.0, 0.1], (5, 1))
    after = before + np.array([0, 4, 0, 0])
    plane = Plane.fit(before, after)
    assert (plane.scale, plane.axes[:, 0].tolist()) == (1, [0, 1, 0, 0])
    assert np.abs(plane.points(before)).max() <= 1e-12
    assert plane.points(after).tolist() == pytest.approx(np.tile([4.0, 0.0], (5, 1)))
    still = Plane.fit(before, before)
    assert still.axes.tolist() == [[0, 0]] * 4
    assert still.points(before).tolist() == [[0, 0]] * 5


# Where little is defined ----------------------------------------------------------------------

SAME = {"overlap": 1, "hausdorff": 0, "inside": 1, "cka": 1, "mmd": 0}


def all_of(before: Array, after: Array) -> dict[str, float]:
    plane = Plane.fit(before, after)
    points = plane.points(before), plane.points(after)
    return {
        "overlap": measures.overlap(points[0][:, 0], points[1][:, 0]),
        "hausdorff": measures.hausdorff(*points),
        "inside": measures.inside(*points),
        "cka": cka(before, after),
        "mmd": mmd(before, after, measures.width(before)),
    }


@pytest.mark.parametrize("prompts", [1, 4])
def test_states_that_are_all_alike_have_defined_values(prompts: int) -> None:
    alike = np.tile([0.1, 0.7, -0.3], (prompts, 1))
    assert all_of(alike, alike.copy()) == SAME
    away = all_of(alike, alike + 2)
    assert (away["overlap"], away["inside"]) == (0, 0)
    assert away["cka"] == 1, "CKA is blind to a translation"
    assert away["hausdorff"] == pytest.approx(math.sqrt(12))
    assert 0 < away["mmd"] <= math.sqrt(2)
    assert (measures.width(alike), measures.spread(alike)) == (1, 1)
    if prompts > 1:
        apart = all_of(alike, drawn(0, prompts, 3))
        assert (apart["overlap"], apart["cka"]) == (0, 0)
        assert all(math.isfinite(value) for value in apart.values())


def test_states_of_zero_have_an_angle() -> None:
    before = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    after = np.array([[0.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    assert measures.turned(before, after).tolist() == pytest.approx([0, 90, 180])


def test_points_on_a_line_are_inside_only_on_it() -> None:
    before = np.stack([np.arange(5.0), np.zeros(5)], 1)
    assert measures.inside(before, before) == 1
    assert measures.inside(before, before + np.array([0, 0.5])) == 0
    assert measures.inside(before, before + np.array([1, 0])) == pytest.approx(0.8)


@pytest.mark.usefixtures("unchecked")
def test_states_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"unedited states \(3, 2\) and edited ones \(2, 2\) must be"):
        Plane.fit(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="one or more"):
        Plane.fit(np.zeros((0, 2)), np.zeros((0, 2)))
    bad = np.array([[1.0, 2.0], [np.nan, 0.0], [np.inf, 0.0]])
    with pytest.raises(NonFiniteError, match="edited states of 2 of 3 prompts hold NaN or infinity; undo"):
        Plane.fit(np.zeros((3, 2)), bad)
