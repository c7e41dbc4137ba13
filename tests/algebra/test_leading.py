"""Leading eigenpairs against a whole decomposition: the same space where they are given, else none."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra import leading as module
from palimpsest.algebra.leading import ANGLE, Leading, leading_directions
from palimpsest.algebra.projector import null_space
from palimpsest.algebra.spectrum import Cut, absolute, eigendirections, energy, rank, relative
from palimpsest.errors import ShapeError

pytestmark = pytest.mark.usefixtures("one_thread", "narrow")
WIDTH = 160


@pytest.fixture(scope="module")
def narrow() -> object:
    """Blocks of a few columns, so that small matrices are large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 4)
        patch.setattr(module, "BUFFER", 3)
        yield


def moment(spectrum: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix with this spectrum, and its eigenvectors."""
    drawn = torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(seed)).double()
    frame = torch.linalg.qr(drawn).Q
    return (frame * spectrum) @ frame.T, frame


def power(exponent: float) -> Tensor:
    return torch.arange(1, WIDTH + 1).double() ** -exponent


def sine(found: Leading, frame: Tensor) -> float:
    """Sine of the largest angle between the space found and that of the first eigenvectors."""
    true = frame[:, : found.vectors.shape[1]]
    return float(torch.linalg.matrix_norm(found.vectors - true @ (true.T @ found.vectors), 2))


@given(exponent=st.floats(0.6, 3.0), count=st.integers(1, 12), seed=st.integers(0, 5))
def test_the_protected_space_is_that_of_a_whole_decomposition(exponent: float, count: int, seed: int) -> None:
    spectrum = power(exponent)
    matrix, frame = moment(spectrum, seed)
    rule = absolute(float((spectrum[count - 1] * spectrum[count]) ** 0.5))
    found = leading_directions(matrix, rule)
    assume(found is not None)  # hypothesis fails where nearly all are given up
    assert found is not None
    assert found.vectors.shape == (WIDTH, count)
    torch.testing.assert_close(found.values, spectrum[:count], rtol=1e-9, atol=1e-12)
    assert sine(found, frame) <= found.angle + 1e-12
    assert found.angle <= ANGLE
    gram = found.vectors.T @ found.vectors
    torch.testing.assert_close(gram, torch.eye(count).double(), rtol=0, atol=1e-12)
    assert found.least >= float(spectrum[-1]) - 1e-12


RULES = [absolute(0.02), relative(0.02), energy(0.8), rank(WIDTH - 9)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_protects_as_many_as_on_the_whole_spectrum(rule: Cut) -> None:
    """Also where the first block is too narrow for it."""
    matrix, frame = moment(power(1.5))
    found = leading_directions(matrix, rule)
    assert found is not None
    spectrum, _ = eigendirections(matrix)
    assert len(found.values) == rule.protected(spectrum) > 4
    assert sine(found, frame) <= found.angle + 1e-12


def test_nothing_protected_is_an_empty_space() -> None:
    found = leading_directions(moment(power(1.5))[0], absolute(5.0))
    assert found is not None
    assert found.vectors.shape == (WIDTH, 0)


def test_without_a_gap_at_the_cut_nothing_is_vouched_for() -> None:
    spectrum = power(1.5)
    spectrum[5] = spectrum[4] * (1 - 1e-14)
    assert leading_directions(moment(spectrum)[0], absolute(float(spectrum[4]))) is None


def test_a_flat_spectrum_and_a_rule_that_protects_much_are_for_a_whole_decomposition() -> None:
    assert leading_directions(moment(torch.ones(WIDTH).double())[0], absolute(0.5)) is None
    assert leading_directions(moment(power(1.5))[0], rank(WIDTH // 2)) is None
    assert leading_directions(moment(power(1.5)[:20])[0], rank(19)) is None


def test_a_negative_eigenvalue_is_named() -> None:
    spectrum = power(1.5)
    spectrum[-1] = -0.5
    with pytest.raises(ShapeError, match=r"has the negative eigenvalue -5\.0e-01"):
        leading_directions(moment(spectrum)[0], absolute(0.1))


@given(exponent=st.floats(1.0, 3.0), count=st.integers(1, 9))
def test_a_large_moment_has_the_projector_of_a_whole_decomposition(exponent: float, count: int) -> None:
    """With its rule, its energy, and the eigenvalues of the protected directions."""
    spectrum = power(exponent)
    matrix, _ = moment(spectrum)
    rule = absolute(float((spectrum[count - 1] * spectrum[count]) ** 0.5))
    whole = null_space(matrix, rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.algebra.projector.LARGE", WIDTH)
        part = null_space(matrix, rule)
    eye = torch.eye(WIDTH).double()
    torch.testing.assert_close(part.apply(eye), whole.apply(eye), rtol=0, atol=1e-7)
    assert part.kept == whole.kept == WIDTH - count
    assert part.protected_energy == pytest.approx(whole.protected_energy, rel=1e-9)
    assert part.rule is rule
    assert len(part.spectrum) == count
    torch.testing.assert_close(part.spectrum, whole.spectrum[:count])


def test_where_it_cannot_be_vouched_for_a_large_moment_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.algebra.projector.LARGE", WIDTH)
    assert len(null_space(torch.eye(WIDTH).double(), absolute(0.5)).spectrum) == WIDTH


def test_the_same_matrix_gives_the_same_bits() -> None:
    matrix, _ = moment(power(1.5))
    first, again = (leading_directions(matrix, absolute(0.02)) for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first.vectors, again.vectors)
