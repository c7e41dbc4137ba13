"""The disk cache: nothing half-written, nothing mixed up, damage named."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from palimpsest.cache import digest, empty, read, tensors
from palimpsest.errors import ResourceError
from tests.test_files import only

pytestmark = pytest.mark.usefixtures("own_cache")


def value() -> dict[str, Tensor]:
    return {"x": torch.arange(6.0).reshape(2, 3).T}


def never() -> dict[str, Tensor]:
    raise AssertionError("computed although it is on disk")


def test_a_value_is_computed_once() -> None:
    first = tensors("kind", {"a": 1, "b": [2, 3]}, value)
    again = tensors("kind", {"b": [2, 3], "a": 1}, never)
    assert torch.equal(first["x"], value()["x"])
    assert torch.equal(again["x"], value()["x"])
    other = tensors("kind", {"a": 1, "b": [3, 2]}, lambda: {"x": torch.ones(1)})
    assert torch.equal(other["x"], torch.ones(1))


def test_an_error_while_computing_stores_nothing(own_cache: Path) -> None:
    with pytest.raises(AssertionError, match="computed although"):
        tensors("kind", {"a": 1}, never)
    assert not own_cache.exists()
    assert torch.equal(tensors("kind", {"a": 1}, value)["x"], value()["x"])


def test_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    different: list[Any] = [
        {"a": 1},
        {"a": 2},
        {"a": "1"},
        {"b": 1},
        {"a": [1]},
        {"a": None},
        {"a": 1, "b": 1},
    ]
    assert len({digest(v) for v in different}) == len(different)
    assert digest(("ä", 1.5)) == digest(["ä", 1.5])


def test_a_damaged_entry_is_named(own_cache: Path) -> None:
    tensors("kind", {"a": 1}, value)
    path = only(own_cache)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ResourceError, match=rf"{path.name} is damaged .*delete it and it will be computed"):
        tensors("kind", {"a": 1}, never)
    path.unlink()
    assert torch.equal(tensors("kind", {"a": 1}, value)["x"], value()["x"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nothing here"):
        read(tmp_path / "nothing here")


FULL: list[tuple[str, Exception]] = [
    ("os.replace", OSError(28, "No space left on device")),
    ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
]


@pytest.mark.parametrize(("function", "error"), FULL, ids=["move", "write"])
def test_a_full_disk(
    function: str, error: Exception, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that writes tensors has an error of its own for a full disk."""
    tensors("kind", {"a": 1}, value)
    before = only(own_cache).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(ResourceError, match=r"could not write .*No space left.*set PALIMPSEST_CACHE"):
            tensors("kind", {"a": 2}, value)
    assert only(own_cache).read_bytes() == before


def test_the_cache_is_empty_for_a_moment(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was set before is set again, after an error too."""
    tensors("kind", {"a": 1}, value)

    def fails() -> None:
        with empty() as other:
            assert other != own_cache
            tensors("kind", {"a": 1}, never)

    with pytest.raises(AssertionError, match="computed although"):
        fails()
    assert torch.equal(tensors("kind", {"a": 1}, never)["x"], value()["x"])
    monkeypatch.delenv("PALIMPSEST_CACHE")
    with empty() as other:
        assert os.environ["PALIMPSEST_CACHE"] == str(other)
    assert "PALIMPSEST_CACHE" not in os.environ
    assert not other.exists()
