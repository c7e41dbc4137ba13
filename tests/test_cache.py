"""The disk cache: nothing half-written, nothing mixed up, damage named."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from palimpsest.cache import digest, empty, read, table, tensors, texts
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


# Tables.

COLUMNS = ("step", "name", "value")
ROWS: list[tuple[int, str, float]] = [(1, "größer", 0.5), (2, "nothing", float("nan")), (3, "tiny", 5e-324)]


def never_rows() -> Iterator[tuple[int, str, float]]:
    """As a run that stops on the way: its first rows are not kept."""
    yield ROWS[0]
    raise AssertionError("computed although it is on disk")


def test_a_table_is_computed_once_and_read_again(own_cache: Path) -> None:
    """With the columns in their order, as it was given, under a file of its kind."""
    first = table("runs", {"a": 1, "b": [2, 3]}, COLUMNS, lambda: iter(ROWS))
    again = table("runs", {"b": [2, 3], "a": 1}, COLUMNS, never_rows)
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, pd.DataFrame(ROWS, columns=list(COLUMNS)), check_exact=True)
    assert only(own_cache).parent == own_cache / "runs"
    assert only(own_cache).suffix == ".parquet"


def test_tables_of_other_keys_and_kinds_are_other_tables(own_cache: Path) -> None:
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)
    for kind, key in (("runs", {"a": 2}), ("others", {"a": 1})):
        assert len(table(kind, key, COLUMNS, lambda: ROWS[:1])) == 1
    assert len(table("runs", {"a": 1}, COLUMNS, never_rows)) == 3


def test_a_table_without_rows_keeps_its_columns() -> None:
    for rows in (list, never_rows):
        found = table("runs", {"a": 1}, COLUMNS, rows)
        assert (list(found), len(found)) == (list(COLUMNS), 0)


def test_rows_that_do_not_fit_their_columns_are_not_kept(own_cache: Path) -> None:
    with pytest.raises(ValueError, match="2 columns passed, passed data had 3 columns"):
        table("runs", {"a": 1}, COLUMNS[:2], lambda: ROWS)
    assert not own_cache.exists()


def test_an_error_while_rows_are_computed_stores_no_table(own_cache: Path) -> None:
    with pytest.raises(AssertionError, match="computed although"):
        table("runs", {"a": 1}, COLUMNS, never_rows)
    assert not own_cache.exists()
    assert len(table("runs", {"a": 1}, COLUMNS, lambda: ROWS)) == 3


@pytest.mark.parametrize("left", [0, 40])
def test_a_damaged_table_is_named(left: int, own_cache: Path) -> None:
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)
    path = only(own_cache)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ResourceError, match=rf"{path.name} is damaged .*delete it and it will be computed"):
        table("runs", {"a": 1}, COLUMNS, never_rows)
    path.unlink()
    assert len(table("runs", {"a": 1}, COLUMNS, lambda: ROWS)) == 3


@pytest.mark.parametrize("function", ["os.replace", "pandas.DataFrame.to_parquet"], ids=["move", "write"])
def test_a_table_on_a_full_disk(function: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of an hour are lost, and the message says how not to lose them again."""
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)
    before = only(own_cache).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(ResourceError, match=r"could not write .*No space left.*set PALIMPSEST_CACHE"):
            table("runs", {"a": 2}, COLUMNS, lambda: ROWS)
    assert only(own_cache).read_bytes() == before


def test_a_table_that_cannot_be_read_is_named(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)

    def unreadable(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(ResourceError, match=r"\.parquet is damaged .*Permission denied.*delete it"):
        table("runs", {"a": 1}, COLUMNS, never_rows)


def test_texts_are_computed_once_and_read_again(own_cache: Path) -> None:
    first = texts("contexts", {"a": 1}, lambda: ["Ω and\nmore", ""])
    assert texts("contexts", {"a": 1}, never_rows) == first == ("Ω and\nmore", "")
    (path,) = own_cache.rglob("*.json")
    path.write_text('["cut')
    with pytest.raises(ResourceError, match=r"cache file .*\.json is damaged .*delete it"):
        texts("contexts", {"a": 1}, never_rows)
    path.unlink()
    path.mkdir()
    with pytest.raises(ResourceError, match=r"cache file .* is damaged"):
        texts("contexts", {"a": 1}, never_rows)
