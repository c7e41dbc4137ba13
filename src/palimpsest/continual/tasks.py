"""A sequence of image tasks: scikit-learn's digits, split by class."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from palimpsest.errors import DataError

BRIGHTEST = 16.0
"""Largest pixel of the digits as they are stored."""

CLASSES = 10


@dataclass(frozen=True)
class Task:
    """One task of a sequence: images of some classes, to be told apart.

    Attributes:
        classes: digits of this task; label i stands for the i-th of them.
        images: training images (n, 1, 8, 8).
        labels: their labels (n,), from 0.
        test_images: held-out images (m, 1, 8, 8).
        test_labels: their labels (m,).
    """

    classes: tuple[int, ...]
    images: Float[Tensor, "n 1 h w"]
    labels: Int[Tensor, " n"]
    test_images: Float[Tensor, "m 1 h w"]
    test_labels: Int[Tensor, " m"]


def split_digits(
    seed: int,
    tasks: int = 5,
    test_share: float = 0.3,
    brightest: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> list[Task]:
    """The 1,797 digits of scikit-learn as a sequence of tasks with the same number of classes each.

    Args:
        seed: of the order of classes and of the split into training and test images.
        tasks: number of tasks; it must divide ten.
        test_share: share of the images of each class that is held out.
        brightest: value of the brightest pixel, 16 in the data set; the unit of the images.
        dtype: of the images.

    Raises:
        DataError: if the tasks do not divide the classes, or a share or unit is out of range.
    """
    if tasks < 1 or CLASSES % tasks:
        raise DataError(f"{tasks} tasks do not divide the {CLASSES} digits; choose 1, 2, 5 or 10")
    if not 0 < test_share < 1 or not brightest > 0:
        raise DataError(
            f"the test share must lie between 0 and 1 and the brightest pixel be positive, got {test_share} "
            f"and {brightest}"
        )
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(CLASSES).reshape(tasks, -1)
    images = torch.from_numpy(digits.images).to(dtype)[:, None] * (brightest / BRIGHTEST)  # (1797, 1, 8, 8)
    found = []
    for classes in order.tolist():
        places = np.flatnonzero(np.isin(digits.target, classes))
        labels = np.array([classes.index(label) for label in digits.target[places]])
        train, test = train_test_split(
            np.arange(len(places)), test_size=test_share, random_state=seed, stratify=labels
        )
        parts = [(images[places[some]], torch.from_numpy(labels[some])) for some in (train, test)]
        found.append(Task(tuple(classes), *parts[0], *parts[1]))
    return found
