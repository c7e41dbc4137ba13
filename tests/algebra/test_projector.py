"""Null-space projectors: what every rule keeps, what leaks, and what rescaling does to each rule."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.projector import Projector, null_space, projectors
from palimpsest.algebra.spectrum import (
    CUTS,
    PUBLISHED_THRESHOLD,
    absolute,
    eigendirections,
    energy,
    energy_along,
    rank,
    relative,
    smallest,
)
from palimpsest.errors import NonFiniteError, ProfileError, ShapeError, UnknownNameError
from tests.problems import cases, error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread", "module_cache")


@st.composite
def moments(draw: st.DrawFn, deficient: bool = True) -> Tensor:
    """Mean second moments of every rank, with spectra from flat to steep, at three scales."""
    d_k, decay = draw(st.integers(1, 14)), draw(st.floats(0, 3))
    zeros = draw(st.integers(0, d_k - 1)) if deficient else 0
    scale = 10.0 ** draw(st.integers(-3, 3))
    frame = torch.linalg.qr(gaussian(draw(st.integers(0, 2**20)), d_k, d_k)).Q
    spectrum = scale * torch.arange(1, d_k + 1, dtype=torch.float64) ** -decay
    spectrum[d_k - zeros :] = 0
    return (frame * spectrum) @ frame.T


RULES = {
    "absolute": st.floats(1e-6, 10).map(absolute),
    "relative": st.floats(1e-9, 1).map(relative),
    "energy": st.floats(0, 1).map(energy),
    "rank": st.just(rank(1)),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))


def matrix(projector: Projector) -> Tensor:
    return projector.apply(torch.eye(projector.dim, dtype=torch.float64))


@every_rule
@given(data=st.data(), moment=moments())
def test_projector_is_symmetric_idempotent_and_of_the_rank_it_says(rule, data, moment):
    projector = null_space(moment, data.draw(rule))
    p = matrix(projector)
    assert error(p @ p, p) < 1e-12
    assert error(p.T, p) < 1e-12
    assert float(p.trace()) == pytest.approx(projector.kept)
    assert error(p @ moment, moment @ p, float(moment.norm())) < 1e-12  # built from its eigenvectors


@every_rule
@given(data=st.data(), moment=moments())
def test_kept_and_protected_add_up_and_the_smaller_is_held(rule, data, moment):
    chosen = data.draw(rule)
    projector = null_space(moment, chosen)
    protected = chosen.protected(projector.spectrum)
    assert projector.kept + protected == projector.dim == len(moment)
    held = projector.basis if projector.basis is not None else projector.complement
    assert held.shape[1] == min(projector.kept, protected)
    assert projector.spectrum.tolist() == sorted(projector.spectrum.tolist(), reverse=True)
    assert projector.rule is chosen
    assert 0 <= projector.protected_energy <= 1 + 1e-12


@given(case=cases(), columns=st.integers(1, 6))
def test_basis_and_complement_give_the_same_answers(case, columns):
    one, other = case.projector, case.co_projector
    x = gaussian(columns, one.dim, columns)
    assert one.kept == other.kept
    assert error(one.apply(x), other.apply(x)) < 1e-12
    assert one.leakage(x) == pytest.approx(other.leakage(x), abs=1e-12)
    a = x @ x.T
    for projector in (one, other):
        there = projector.restrict(a) @ projector.coordinates(x)
        assert error(projector.embed(there), one.apply(a @ one.apply(x))) < 1e-12


@given(case=cases(), size=st.floats(-3, 3))
def test_padding_leaves_range_and_condition_alone(case, size):
    sample = gaussian(3, len(case.keys), 30)
    a = 10**size * sample @ sample.T
    one, other = case.projector, case.co_projector
    padded = other.pad(other.restrict(a))
    x = gaussian(4, len(case.keys), 2)
    assert error(other.apply(padded @ other.apply(x)), one.apply(a @ one.apply(x))) < 1e-11
    wanted = float(torch.linalg.cond(one.restrict(a)))
    assert float(torch.linalg.cond(padded)) == pytest.approx(wanted, rel=1e-6)


@given(case=cases(min_kept=2))
def test_leakage_of_preserved_keys_is_nothing_and_of_free_keys_everything(case):
    for projector in (case.projector, case.co_projector):
        assert 0 <= projector.leakage(gaussian(0, projector.dim, 3)) <= 1 + 1e-12
        assert projector.leakage(case.basis) == pytest.approx(1)
        if case.preserved.shape[0] and case.preserved.any():
            assert projector.leakage(case.preserved) < 1e-20


@given(moment=moments(), low=st.floats(-6, 1), high=st.floats(-6, 1))
def test_protected_energy_and_kept_fall_and_rise_with_the_cut(moment, low, high):
    low, high = sorted((10**low, 10**high))
    strict, loose = null_space(moment, absolute(low)), null_space(moment, absolute(high))
    assert strict.kept <= loose.kept
    assert strict.protected_energy >= loose.protected_energy - 1e-12


@given(moment=moments(), share=st.floats(0, 1))
def test_energy_rule_protects_the_fewest_directions_that_suffice(moment, share):
    projector = null_space(moment, energy(share))
    assert projector.protected_energy >= share - 1e-9
    protected = projector.dim - projector.kept
    if protected:
        fewer = projector.spectrum[: protected - 1].sum() / projector.spectrum.sum()
        assert fewer < share


@given(moment=moments(), data=st.data())
def test_rank_rule_keeps_exactly_what_it_says(moment, data):
    wanted = data.draw(st.integers(0, len(moment)))
    projector = null_space(moment, rank(wanted))
    assert projector.kept == wanted
    # They are the directions of least key energy.
    least = projector.spectrum[len(moment) - wanted :].sum()
    assert float((matrix(projector) * moment).sum()) == pytest.approx(float(least), abs=1e-9)


@every_rule
@given(data=st.data(), moment=moments(), columns=st.integers(1, 20))
def test_energy_along_kept_directions_is_what_the_projector_lets_through(rule, data, moment, columns):
    chosen, keys = data.draw(rule), gaussian(columns, len(moment), columns)
    spectrum, directions = eigendirections(moment)
    along = energy_along(directions, keys @ keys.T / columns)
    assert float(along.sum()) == pytest.approx(float(keys.square().sum() / columns))
    kept = along[chosen.protected(spectrum) :].sum() / along.sum()
    assert float(kept) == pytest.approx(null_space(moment, chosen).leakage(keys), abs=1e-9)


@given(moment=moments())
def test_eigendirections_carry_their_own_energy_largest_first(moment):
    spectrum, directions = eigendirections(moment)
    assert error(energy_along(directions, moment), spectrum, float(spectrum[0])) < 1e-12
    assert error(directions * spectrum @ directions.T, moment) < 1e-12


# Activations scaled by c scale the second moment by c².


@pytest.mark.parametrize("rule", [relative(0.01), energy(0.9), rank(5)], ids=lambda r: r.name)
@given(moment=moments(deficient=False).filter(lambda m: len(m) >= 5), factor=st.integers(-10, 10))
def test_relative_energy_and_rank_rules_do_not_see_the_scale(rule, moment, factor):
    scaled = null_space(2.0 ** (2 * factor) * moment, rule)
    assert scaled.kept == null_space(moment, rule).kept
    assert error(matrix(scaled), matrix(null_space(moment, rule))) < 1e-6


def test_absolute_rule_sees_the_scale():
    # Activations ten times as large: the published threshold protects two directions more.
    moment = torch.diag(torch.tensor([1.0, 0.1, 0.01, 0.001, 0.0001]))
    assert null_space(moment).kept == 3
    assert null_space(100 * moment).kept == 1
    assert null_space(100 * moment, relative(0.02)).kept == null_space(moment, relative(0.02)).kept


def test_rules_by_hand():
    # Total energy 10: shares 0.6, 0.3, 0.1, 0.
    moment = torch.diag(torch.tensor([3.0, 0.0, 6.0, 1.0]))
    kept = {
        absolute(1.0): 1,  # at or above the threshold is protected
        absolute(1.01): 2,
        relative(0.5): 2,
        relative(0.51): 3,
        energy(0.6): 3,
        energy(0.61): 2,
        energy(0.0): 4,
        energy(1.0): 1,
        rank(3): 3,
        rank(0): 0,
    }
    found = {rule: null_space(moment, rule).kept for rule in kept}
    assert found == kept
    assert null_space(moment, rank(3)).protected_energy == pytest.approx(0.6)
    assert null_space(moment, rank(3)).spectrum.tolist() == [6, 3, 1, 0]


def test_default_is_the_published_rule():
    projector = null_space(torch.eye(3))
    assert (projector.rule.name, projector.rule.parameter) == ("absolute", PUBLISHED_THRESHOLD)


def test_an_object_with_a_value_is_taken():
    moment = torch.diag(torch.tensor([1.0, 0.0]))
    assert null_space(SimpleNamespace(value=moment)).kept == 1


def test_identity_protects_nothing():
    projector = Projector.identity(3)
    x = gaussian(0, 3, 2)
    assert projector.kept == projector.dim == 3
    assert torch.equal(projector.apply(x), x)
    assert projector.leakage(x) == 1


BAD_PARAMETERS = {
    "absolute threshold must be 0 or more, got -1": lambda: absolute(-1.0),
    r"relative threshold must lie in \[0, 1\], got 1.5": lambda: relative(1.5),
    r"energy share must lie in \[0, 1\], got 95": lambda: energy(95.0),
    r"energy share must lie in \[0, 1\], got nan": lambda: energy(float("nan")),
    "rank must be 0 or more, got -2": lambda: rank(-2),
    "rank 5 is more than the 3 directions": lambda: null_space(torch.eye(3), rank(5)),
    r"must be square \(d_k, d_k\), got \(3, 2\)": lambda: null_space(torch.ones(3, 2)),
    r"must be square \(d_k, d_k\), got \(3,\)": lambda: null_space(torch.ones(3)),
    "all zero; collect it from at least one": lambda: null_space(torch.zeros(3, 3)),
    "must be symmetric; relative asymmetry 1.0e": lambda: null_space(torch.ones(3, 3).triu()),
    "negative eigenvalue -1.0e": lambda: null_space(torch.diag(torch.tensor([2.0, -1.0]))),
    "exactly one of basis and complement": lambda: Projector(),
    "has no spectrum; build it with null_space": lambda: Projector.identity(2).protected_energy,
    "keys have width 3, the projector 2": lambda: Projector.identity(2).leakage(torch.ones(3, 1)),
    "all zero is undefined": lambda: Projector.identity(2).leakage(torch.zeros(2, 1)),
}


@pytest.mark.parametrize(("message", "call"), BAD_PARAMETERS.items(), ids=list(BAD_PARAMETERS))
def test_wrong_input_is_named(message, call):
    with pytest.raises(ShapeError, match=message):
        call()


def test_non_finite_moment_is_refused():
    with pytest.raises(NonFiniteError, match="NaN or infinity; collect it again"):
        null_space(torch.full((2, 2), float("nan")))


@given(pair=st.tuples(moments(), moments()), cut=st.floats(1e-3, 0.9))
def test_projectors_of_layers_are_those_of_each_alone(pair, cut):
    for name, rule in CUTS.items():
        wanted = {3: null_space(pair[0], rule(cut)), 7: null_space(pair[1], rule(cut))}
        if min(projector.kept for projector in wanted.values()) == 0:
            continue
        found = projectors({3: pair[0], 7: pair[1]}, name, cut)
        assert list(found) == [3, 7]
        for layer, projector in wanted.items():
            assert torch.equal(matrix(found[layer]), matrix(projector))
            assert (found[layer].rule.name, found[layer].rule.parameter) == (name, cut)


@pytest.mark.parametrize(("rule", "threshold"), [("absolute", 1e-9), ("relative", 1e-9), ("energy", 1.0)])
def test_a_layer_without_a_direction_left_is_named(rule, threshold):
    """Also where other layers have some: an edit there would be zero without a word."""
    free, full = torch.diag(torch.tensor([2.0, 0.0]).double()), torch.eye(2, dtype=torch.float64)
    assert projectors({4: free}, rule, threshold)[4].kept == 1
    message = (
        f"layer 5: rule {rule!r} at {threshold} protects every direction, so no fact could be written; "
        "choose a threshold between the eigenvalues of C0"
    )
    with pytest.raises(ProfileError, match=message):
        projectors({4: free, 5: full}, rule, threshold)


def test_a_moment_is_decomposed_once_for_each_rule(own_cache, monkeypatch):
    """By its bits, wherever it comes from; another dtype or number of threads is another entry."""
    moment, made = torch.diag(torch.tensor([2.0, 1.0, 0.5]).double()), []

    def counted(matrix, rule):
        made.append(rule)
        return null_space(matrix, rule)

    monkeypatch.setattr("palimpsest.algebra.projector.null_space", counted)
    first = projectors({3: moment}, "relative", 0.3)[3]
    again = projectors({5: moment.clone()}, "relative", 0.3)[5]
    assert len(made) == 1
    assert torch.equal(matrix(first), matrix(again))
    assert torch.equal(first.spectrum, again.spectrum)
    assert (first.basis is None, first.complement is None) == (again.basis is None, again.complement is None)
    for other, threshold in ((moment, 0.6), (2 * moment, 0.3), (moment.float(), 0.3)):
        projectors({3: other}, "relative", threshold)
    assert len(made) == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    projectors({3: moment}, "relative", 0.3)
    assert len(made) == 5
    for path in own_cache.rglob("*.safetensors"):
        path.write_bytes(b"")
    projectors({3: moment}, "relative", 0.3)
    assert len(made) == 6


def test_projectors_of_no_layer_are_none():
    assert projectors({}, "absolute", 1.0) == {}


@pytest.mark.usefixtures("unchecked")
def test_projectors_refuse_what_one_refuses():
    with pytest.raises(ShapeError):
        projectors({0: torch.zeros(2, 3, dtype=torch.float64)}, "absolute", 1.0)
    with pytest.raises(NonFiniteError):
        projectors({0: torch.full((2, 2), float("nan"), dtype=torch.float64)}, "absolute", 1.0)


def test_an_unknown_rule_is_named_with_those_there_are() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown rule of the projector 'cut'; choose one of: absolute"
    ):
        projectors({0: torch.eye(3)}, "cut", 0.1)


@given(moment=moments(deficient=False), multiple=st.floats(1, 1e4), scale=st.floats(1e-6, 1e6))
def test_a_multiple_of_the_smallest_eigenvalue_has_no_scale(moment, multiple, scale):
    spectrum, _ = eigendirections(moment)
    protected = smallest(multiple).protected(spectrum)
    assert protected == int((spectrum > multiple * spectrum[-1]).sum())
    assert smallest(multiple).protected(2.0**20 * spectrum) == protected
    assert smallest(1.0).protected(spectrum) < len(spectrum)


def test_dead_directions_make_rounding_the_smallest_eigenvalue():
    spectrum = torch.tensor([4.0, 1.0, 1e-17, 0.0], dtype=torch.float64)
    for multiple in (1, 10, 1e8):
        assert smallest(multiple).protected(spectrum) == 2
    with pytest.raises(
        ShapeError, match=r"the multiple of the smallest eigenvalue must be 1 or more, got 0.5"
    ):
        smallest(0.5)
