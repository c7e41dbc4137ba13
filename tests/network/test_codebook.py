"""The codebook: who belongs to an entry, and how radii grow and are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.errors import NonFiniteError, ShapeError
from palimpsest.network.codebook import MARGIN, Codebook

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(*entries: tuple[float, float, str]) -> Codebook:
    """Entries on a line: (key, radius, label)."""
    keys, radii, labels = zip(*entries, strict=True)
    return Codebook(torch.tensor(keys).double()[:, None], torch.tensor(radii, dtype=torch.float64), labels)


def on_line(*facts: tuple[float, str], initial: float = 1.0) -> tuple[Codebook, list[str]]:
    """Keys on a line, written one after the other, and the rules that applied."""
    book, rules = Codebook(), []
    for key, label in facts:
        book, _, rule = book.with_key(torch.tensor([key]).double(), label, initial)
        rules.append(rule)
    return book, rules


def brute_force(book: Codebook, query: np.ndarray) -> int:
    """Twin of a look-up: one distance after the other."""
    best, least = -1, np.inf
    for i, key in enumerate(book.keys.double().numpy()):
        far = float(np.sqrt(((query - key) ** 2).sum()))
        if far < least:
            best, least = i, far
    return best if best >= 0 and least <= float(book.radii[best]) else -1


@given(seed=st.integers(0, 10**6), m=st.integers(1, 12), d=st.integers(1, 6), spread=st.floats(0.1, 3))
def test_a_look_up_is_the_brute_force_one(seed: int, m: int, d: int, spread: float) -> None:
    keys = numbers(m, d, seed=seed)
    radii = numbers(m, seed=seed + 1).abs() + 1e-3
    book = Codebook(keys, radii, tuple(map(str, range(m))))
    queries = torch.cat([spread * numbers(20, d, seed=seed + 2), keys])
    wanted = [brute_force(book, query.numpy()) for query in queries]
    assert book.nearest(queries).tolist() == wanted
    assert wanted[20:] == list(range(m))


@given(
    seed=st.integers(0, 10**6),
    labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=15),
    d=st.integers(1, 4),
    initial=st.floats(0.05, 4),
)
def test_what_holds_after_every_key(seed: int, labels: list[str], d: int, initial: float) -> None:
    """Entries of different labels never overlap, and the last key is answered by its own label."""
    book = Codebook()
    for key, label in zip(numbers(len(labels), d, seed=seed), labels, strict=True):
        before = len(book)
        book, entry, rule = book.with_key(key, label, initial)
        assert (len(book) == before) == (rule == "expanded")
        assert book.labels[entry] == label
        assert int(book.nearest(key[None])[0]) == entry
        far = torch.cdist(book.keys, book.keys)
        for i, one in enumerate(book.labels):
            for j, other in enumerate(book.labels):
                if one != other:
                    assert book.radii[i] + book.radii[j] <= far[i, j] * (1 + 1e-12)
                    assert int(book.nearest(book.keys[j : j + 1])[0]) in (j, *same(book, j))


def same(book: Codebook, entry: int) -> list[int]:
    return [i for i, label in enumerate(book.labels) if label == book.labels[entry]]


def test_the_rules_by_hand() -> None:
    book, rules = on_line((0, "a"), (4.5, "a"), (1.8, "a"), (2.7, "b"))
    # 1.8 lies within 1 + 1 of 0: that entry grows. 2.7 lies within 1 + 1.8018 of it and within 1 + 1 of 4.5.
    assert rules == ["new", "new", "expanded", "split"]
    assert book.labels == ("a", "a", "b")
    assert book.radii.tolist() == pytest.approx([1.35, 0.9, 0.9])
    assert book.nearest(torch.tensor([[1.8]]).double()).tolist() == [-1]  # it is nearest to 2.7
    alone, rules = on_line((0, "a"), (2.1, "b"), (0.4, "a"))
    assert rules == ["new", "new", "expanded"]
    assert alone.radii.tolist() == [1, 1]  # 0.4 lay within already


def test_an_entry_does_not_grow_into_another_label() -> None:
    """The key gets an entry of its own, as wide as there is room; the released rule would overlap."""
    book, rules = on_line((0, "a"), (1.9, "b"), (-0.5, "b"))
    assert rules == ["new", "split", "split"]
    assert book.radii.tolist() == pytest.approx([0.25, 0.95, 0.25])
    book, rules = on_line((0, "a"), (2.6, "b"), (1.7, "a"))
    assert rules == ["new", "new", "split"]  # nearest is b, at 0.9
    assert book.radii.tolist() == pytest.approx([1, 0.45, 0.45])
    book, entry, rule = of((0, 1, "a"), (-1.5, 0.4, "b")).with_key(torch.tensor([1.3]).double(), "a", 1.0)
    assert (entry, rule) == (2, "new")  # growing to 1.3 would leave −1.5 only 0.2
    assert book.radii.tolist() == [1, 0.4, 1]


def test_a_grown_radius_has_a_margin_for_rounding() -> None:
    book, _ = on_line((0, "a"), (1.5, "a"))
    assert float(book.radii[0]) == pytest.approx(1.5 * (1 + MARGIN))
    narrow, entry, _ = Codebook(torch.zeros(1, 2), torch.ones(1), ("a",)).with_key(
        torch.tensor([1.2, 0.9]), "a", 1.0
    )
    assert narrow.radii.dtype == torch.float32
    assert narrow.nearest(torch.tensor([[1.2, 0.9]]) * (1 + 1e-5)).tolist() == [entry] == [0]


def test_an_empty_codebook_answers_nothing_and_nan_belongs_to_none() -> None:
    assert Codebook().nearest(numbers(3, 7)).tolist() == [-1, -1, -1]
    assert len(Codebook()) == 0
    queries = torch.tensor([[float("nan")], [float("inf")], [0.5]]).double()
    assert of((0, 1, "a")).nearest(queries).tolist() == [-1, -1, 0]


def test_queries_in_half_precision_are_compared_in_float32() -> None:
    book = Codebook(torch.tensor([[256.0], [257.0]]), torch.tensor([0.25, 0.25]), ("a", "b"))
    assert book.nearest(torch.tensor([[256.0], [258.0]]).bfloat16()).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("keys", "radii", "labels", "error", "message"),
    [
        (2, [1.0], ("a", "b"), ShapeError, "2 keys, 1 radii and 2 labels; give one of each for an entry"),
        (1, [0.0], ("a",), ShapeError, "a radius of a codebook is 0, so that its key answers nothing; give"),
        (1, [-0.5], ("a",), ShapeError, "a radius of a codebook is -0.5"),
        (
            1,
            [float("inf")],
            ("a",),
            NonFiniteError,
            "NaN or infinite: the model's states overflow; load it in",
        ),
        (1, [float("nan")], ("a",), NonFiniteError, "NaN or infinite"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_codebook(
    keys: int, radii: list[float], labels: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Codebook(torch.zeros(keys, 3), torch.tensor(radii), labels)


def test_a_query_of_another_width_and_a_key_that_has_another_label() -> None:
    with pytest.raises(ShapeError, match="a query of width 2 was asked of keys of width 1; use the layer"):
        of((0, 1, "a")).nearest(torch.zeros(3, 2).double())
    with pytest.raises(ShapeError, match="a radius of a codebook is 0"):
        of((0, 1, "a")).with_key(torch.zeros(1).double(), "b", 1.0)
