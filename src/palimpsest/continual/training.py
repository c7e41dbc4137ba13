"""Training on a sequence of tasks, or on all of them together, and what is measured on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palimpsest.continual.adam import ProjectedAdam
from palimpsest.continual.learners import Learner
from palimpsest.continual.network import ConvNet
from palimpsest.continual.tasks import Task
from palimpsest.errors import DataError


@dataclass(frozen=True)
class Schedule:
    """Settings of the training, the same for every way to learn.

    The ratios of the rates are those of Adam-NSCL's released scripts, whose network is larger: a head learns
    ten times as fast as the first task's body, and later tasks at half of that body's rate.

    Attributes:
        epochs: passes over the images of a task.
        batch: images in a step.
        lr: Adam's rate of the shared layers in the first task.
        later_lr: the same in later tasks.
        head_lr: rate of the heads.
        weight_decay: of the shared layers, as part of the gradient.
    """

    epochs: int = 20
    batch: int = 32
    lr: float = 1e-3
    later_lr: float = 5e-4
    head_lr: float = 1e-2
    weight_decay: float = 5e-5


@dataclass
class Course:
    """What was measured while tasks were learned one after the other.

    Attributes:
        accuracy: percent of task j's test images right after task i was learned, (T, T); NaN for j > i.
        drift: change of the features of task j's training images from the end of task j to that of task i,
            relative to their norm, (T, T); NaN for j > i.
        losses: training loss (nats) of each task before and after each epoch, (T, epochs + 1).
    """

    accuracy: Float[NDArray[np.float64], "T T"]
    drift: Float[NDArray[np.float64], "T T"]
    losses: list[list[float]] = field(default_factory=list)

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over all tasks at the end, percent."""
        return float(self.accuracy[-1].mean())

    @property
    def backward_transfer(self) -> float:
        """Mean change of the earlier tasks' accuracies since each was learned, points; negative: forgotten.

        Raises:
            DataError: for a single task.
        """
        self._several()
        return float((self.accuracy[-1] - self.accuracy.diagonal())[:-1].mean())

    @property
    def new_task_accuracy(self) -> float:
        """Mean accuracy of each task but the first when it was just learned, percent.

        Raises:
            DataError: for a single task.
        """
        self._several()
        return float(self.accuracy.diagonal()[1:].mean())

    @property
    def loss_left(self) -> float:
        """Mean training loss of each task but the first when it was just learned, nats.

        Raises:
            DataError: for a single task.
        """
        self._several()
        return float(np.mean([task[-1] for task in self.losses[1:]]))

    def _several(self) -> None:
        if len(self.accuracy) < 2:
            raise DataError("a single task is neither forgotten nor learned after another; give two or more")


def learn_in_sequence(
    net: ConvNet, tasks: Sequence[Task], learner: Learner, schedule: Schedule, seed: int
) -> Course:
    """Train a network on tasks one after the other; it is changed in place.

    Every task begins with a fresh optimiser, as in Adam-NSCL. The head of a task is trained with it alone.

    Args:
        net: with one head for each task.
        tasks: in the order of learning.
        learner: how earlier tasks are kept.
        schedule: of the training.
        seed: of the order of images.

    Raises:
        DataError: if the heads are not as many as the tasks.
    """
    _check_heads(net, tasks)
    generator = torch.Generator().manual_seed(seed)
    course = Course(*np.full((2, len(tasks), len(tasks)), np.nan))
    learned: list[Tensor] = []
    for number, task in enumerate(tasks):
        rate = schedule.later_lr if number else schedule.lr
        optimiser = _optimiser(net, learner, schedule, rate)
        course.losses.append([_loss(net, task, number)])
        for _ in range(schedule.epochs):
            for images, labels, heads in _batches([task], [number], schedule.batch, generator):
                _step(net, learner, optimiser, images, labels, heads)
            course.losses[-1].append(_loss(net, task, number))
        learner.finish(net, task, number)
        learned.append(_features(net, task))
        for earlier, before in enumerate(learned):
            course.accuracy[number, earlier] = accuracy(net, tasks[earlier], earlier)
            change = _features(net, tasks[earlier]) - before
            course.drift[number, earlier] = float(change.norm() / before.norm())
    return course


def learn_together(net: ConvNet, tasks: Sequence[Task], schedule: Schedule, seed: int) -> list[float]:
    """Train a network on all tasks at once, in as many steps as a sequence takes; it is changed in place.

    Returns:
        Accuracy of each task at the end, percent.

    Raises:
        DataError: if the heads are not as many as the tasks.
    """
    _check_heads(net, tasks)
    generator = torch.Generator().manual_seed(seed)
    optimiser = _optimiser(net, Learner(), schedule, schedule.lr)
    for _ in range(schedule.epochs):
        for images, labels, heads in _batches(tasks, range(len(tasks)), schedule.batch, generator):
            _step(net, Learner(), optimiser, images, labels, heads)
    return [accuracy(net, task, number) for number, task in enumerate(tasks)]


@torch.no_grad()
def accuracy(net: ConvNet, task: Task, number: int) -> float:
    """Percent of a task's test images that its head, the ``number``-th, gets right."""
    guessed = net(task.test_images)[:, number].argmax(1)
    return 100 * float((guessed == task.test_labels).double().mean())


def _optimiser(net: ConvNet, learner: Learner, schedule: Schedule, rate: float) -> ProjectedAdam:
    shared = {"params": list(net.body.parameters()), "lr": rate, "weight_decay": schedule.weight_decay}
    heads = {"params": list(net.heads.parameters()), "lr": schedule.head_lr}
    return ProjectedAdam([shared, heads], learner.projections(net))


def _step(
    net: ConvNet, learner: Learner, optimiser: ProjectedAdam, images: Tensor, labels: Tensor, heads: Tensor
) -> None:
    logits = net(images)[torch.arange(len(images)), heads]  # (n, tasks, classes) -> (n, classes)
    loss = functional.cross_entropy(logits, labels) + learner.penalty(net)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _batches(
    tasks: Sequence[Task], numbers: Sequence[int], size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and numbers of heads, in a random order, each image once."""
    images = torch.cat([task.images for task in tasks])
    labels = torch.cat([task.labels for task in tasks])
    heads = torch.cat(
        [torch.full((len(task.labels),), number) for task, number in zip(tasks, numbers, strict=True)]
    )
    for some in torch.randperm(len(images), generator=generator).split(size):
        yield images[some], labels[some], heads[some]


@torch.no_grad()
def _loss(net: ConvNet, task: Task, number: int) -> float:
    return float(functional.cross_entropy(net(task.images)[:, number], task.labels))


@torch.no_grad()
def _features(net: ConvNet, task: Task) -> Tensor:
    return net.body(task.images)


def _check_heads(net: ConvNet, tasks: Sequence[Task]) -> None:
    if len(net.heads) != len(tasks):
        raise DataError(f"the network has {len(net.heads)} heads for {len(tasks)} tasks; give one for each")
