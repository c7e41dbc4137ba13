"""Factors and largest singular values on disk: the bits of computed ones, and made anew if damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from palimpsest.algebra import kept, postprocess, problem
from palimpsest.algebra.cholesky import Cholesky
from palimpsest.algebra.kept import factor_of, largest_of
from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.postprocess import Prune, largest_singular_value
from palimpsest.algebra.projector import Projector
from palimpsest.errors import SingularProblemError
from tests.problems import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")
D_K, D_V = 48, 12


def moment(seed: int = 0) -> Tensor:
    keys = gaussian(seed, D_K, 2 * D_K)
    return keys @ keys.T


@pytest.fixture
def cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Matrices of D_K columns count as large; the folder of the cache."""
    monkeypatch.setattr(kept, "LARGE", D_K)
    return own_cache


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the matrices that are factorised from now on."""
    sizes: list[int] = []
    real = torch.linalg.cholesky_ex

    def factorised(matrix: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(matrix))
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorised)
    return sizes


def test_a_factor_is_read_and_has_the_bits_and_the_order_in_memory_of_a_fresh_one(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Cholesky.of(moment())
    made = factor_of(moment())
    sizes = counted(monkeypatch)
    again = factor_of(moment())
    assert sizes == []
    for found in (made, again):
        assert torch.equal(found.lower, fresh.lower)
        assert found.lower.stride() == fresh.lower.stride()
        assert found.condition == fresh.condition
    changed = moment()
    changed[3, 4] += 1e-12
    factor_of(changed)
    assert sizes == [D_K]


def written(**options: object) -> list[Tensor]:
    """Weights of ledgers after facts entered and left, in both forms, and after each step."""
    found = []
    for facts in (5, 2 * D_K):
        ledger = EditLedger(gaussian(1, D_V, D_K), moment(), 0.5, **options)  # type: ignore[arg-type]
        ids = [str(i) for i in range(facts)]
        ledger.insert(gaussian(2, D_K, facts), gaussian(3, D_V, facts), ids)
        ledger.forget(ids[1:3])
        found += [ledger.weight, torch.tensor(ledger.condition)]
    return found


@pytest.mark.parametrize("projected", [False, True])
def test_ledgers_have_the_same_bits_with_and_without(
    projected: bool, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = torch.linalg.qr(gaussian(4, D_K, 7))[0]
    options: dict[str, object] = {"projector": Projector(complement=held)} if projected else {}
    plain = written(**options)
    assert not (own_cache / "factors").exists()
    monkeypatch.setattr(kept, "LARGE", D_K)
    for _ in range(2):
        assert all(map(torch.equal, written(**options), plain))
    assert len(list((own_cache / "factors").glob("*.safetensors"))) == 1


def test_a_damaged_factor_is_made_anew(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = Cholesky.of(moment())
    factor_of(moment())
    (path,) = (cached / "factors").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert torch.equal(factor_of(moment()).lower, fresh.lower)
    assert f"{path} is not as it was written" in capsys.readouterr().err
    assert torch.equal(factor_of(moment()).lower, fresh.lower)
    assert capsys.readouterr().err == ""


def test_a_matrix_without_a_factor_leaves_nothing(cached: Path) -> None:
    with pytest.raises(SingularProblemError, match="is not positive definite"):
        factor_of(-moment())
    assert list((cached / "factors").glob("*.safetensors*")) == []
    assert problem.Problem(-moment(), 0.0, Projector.identity(D_K)).factor is None


def test_small_matrices_are_not_kept(own_cache: Path) -> None:
    factor_of(moment())
    largest_of(gaussian(1, D_V, D_K), largest_singular_value)
    assert not own_cache.exists() or list(own_cache.rglob("*.safetensors")) == []


def test_a_largest_singular_value_is_read_and_has_the_bits_of_a_fresh_one(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = gaussian(1, D_V, D_K)
    seen: list[Tensor] = []

    def compute(matrix: Tensor) -> Tensor:
        seen.append(matrix)
        return largest_singular_value(matrix)

    found = [largest_of(matrix, compute) for matrix in (weight, weight.clone(), weight + 1e-12)]
    assert torch.equal(found[0], largest_singular_value(weight))
    assert torch.equal(found[0], found[1])
    assert [len(one) for one in seen] == [D_V, D_V]


@pytest.mark.parametrize(("bound", "entries"), [("start", 1), ("current", 0)])
def test_prune_keeps_the_bound_of_the_unedited_weight_alone(
    bound: str, entries: int, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, delta = gaussian(1, D_V, D_K), 5 * gaussian(2, D_V, D_K)
    post: Callable[[Tensor, Tensor, Tensor], Tensor] = Prune(bound=bound)  # type: ignore[arg-type]
    steps = [post(delta, start + shift * delta, start) for shift in (0.0, 0.1)]
    assert len(list((cached / "singular").glob("*.safetensors"))) == entries
    monkeypatch.setattr(kept, "LARGE", D_K + 1)
    assert all(map(torch.equal, steps, [post(delta, start + s * delta, start) for s in (0.0, 0.1)]))
    assert postprocess.largest_singular_value is largest_singular_value
