"""Tasks, training in sequence, and what each way of learning does to earlier tasks."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from palimpsest.algebra.spectrum import rank, smallest
from palimpsest.continual.learners import BATCH, Ewc, Learner, NullSpace, Soft, fisher_information
from palimpsest.continual.network import ConvNet
from palimpsest.continual.tasks import BRIGHTEST, split_digits
from palimpsest.continual.training import Course, Schedule, accuracy, learn_in_sequence, learn_together
from palimpsest.errors import DataError
from tests.problems import error

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = Schedule(epochs=2, batch=64)


@pytest.fixture(scope="module")
def tasks():
    return split_digits(1)


def learned(learner, tasks, schedule=SHORT, seed=1):
    net = ConvNet(len(tasks), 2, (3, 4), 6, seed)
    return net, learn_in_sequence(net, tasks, learner, schedule, seed)


# Tasks ----------------------------------------------------------------------------------------


def test_every_digit_is_in_one_task_and_every_image_on_one_side(tasks):
    assert sorted(digit for task in tasks for digit in task.classes) == list(range(10))
    assert sum(len(task.images) + len(task.test_images) for task in tasks) == 1797
    for task in tasks:
        assert set(task.labels.tolist()) == set(task.test_labels.tolist()) == {0, 1}
        assert len(task.test_images) == pytest.approx(0.3 * 1797 / 5, rel=0.05)


def test_a_seed_names_the_split_and_the_unit_is_what_was_asked_for(tasks):
    again, other, raw = split_digits(1), split_digits(2), split_digits(1, brightest=BRIGHTEST)
    assert all(torch.equal(a.images, b.images) for a, b in zip(tasks, again, strict=True))
    assert [task.classes for task in tasks] != [task.classes for task in other]
    assert float(max(task.images.max() for task in tasks)) == 1
    assert all(torch.equal(16 * a.images, b.images) for a, b in zip(tasks, raw, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": 3}, r"3 tasks do not divide the 10 digits; choose 1, 2, 5 or 10"),
        ({"test_share": 1.0}, r"the test share must lie between 0 and 1 .* got 1.0 and 1.0"),
        ({"brightest": 0.0}, r"the brightest pixel be positive, got 0.3 and 0.0"),
    ],
)
def test_a_split_that_there_is_not(given, message):
    with pytest.raises(DataError, match=message):
        split_digits(1, **given)


# What is measured ------------------------------------------------------------------------------


def test_scores_of_a_course_by_hand():
    rows = np.array([[90, np.nan, np.nan], [80, 70, np.nan], [60, 75, 100.0]])
    course = Course(rows, np.zeros((3, 3)), [[1, 0.1], [1, 0.2], [1, 0.4]])
    assert course.average_accuracy == pytest.approx((60 + 75 + 100) / 3)
    assert course.backward_transfer == pytest.approx((60 - 90 + 75 - 70) / 2)
    assert course.new_task_accuracy == pytest.approx(85)
    assert course.loss_left == pytest.approx(0.3)
    alone = Course(rows[:1, :1], rows[:1, :1], [[1.0]])
    for score in ("backward_transfer", "new_task_accuracy", "loss_left"):
        with pytest.raises(DataError, match="a single task is neither forgotten nor learned after another"):
            getattr(alone, score)


def test_a_course_holds_what_the_network_does(tasks):
    net, course = learned(Learner(), tasks)
    last = [accuracy(net, task, number) for number, task in enumerate(tasks)]
    assert course.accuracy[-1].tolist() == last
    assert np.isnan(course.accuracy[np.triu_indices(5, 1)]).all()
    assert [len(losses) for losses in course.losses] == [3] * 5
    with torch.no_grad():
        found = functional.cross_entropy(net(tasks[-1].images)[:, -1], tasks[-1].labels)
    assert course.losses[-1][-1] == pytest.approx(float(found))
    assert course.losses[-1][-1] < course.losses[-1][0]
    assert np.allclose(course.drift.diagonal(), 0)
    _, again = learned(Learner(), tasks)
    assert np.array_equal(again.accuracy, course.accuracy, equal_nan=True)


def test_heads_and_tasks_must_be_as_many(tasks):
    net = ConvNet(2, 2, (3, 4), 6)
    for train in (
        lambda: learn_in_sequence(net, tasks, Learner(), SHORT, 1),
        lambda: learn_together(net, tasks, SHORT, 1),
    ):
        with pytest.raises(DataError, match="the network has 2 heads for 5 tasks; give one for each"):
            train()


def test_all_tasks_together_are_learned(tasks):
    scores = learn_together(ConvNet(5, 2, (6, 8), 12, 1), tasks, Schedule(epochs=6), 1)
    assert len(scores) == 5
    assert np.mean(scores) > 90


# Ways to learn --------------------------------------------------------------------------------


def test_a_frozen_body_forgets_nothing_and_plain_adam_does(tasks):
    _, frozen = learned(NullSpace(rank(0)), tasks)
    assert frozen.backward_transfer == 0
    assert np.nanmax(frozen.drift) == 0
    _, plain = learned(Learner(), tasks)
    assert np.nanmax(plain.drift) > 0.05
    # The first task is learned alike; only then is there something to keep.
    assert frozen.losses[0] == plain.losses[0]


def test_the_null_space_lies_between_frozen_and_plain(tasks):
    drifts = [np.nanmax(learned(NullSpace(smallest(a)), tasks)[1].drift) for a in (1, 100, 1e12)]
    assert 0 < drifts[0] < drifts[1] < drifts[2]


def test_null_spaces_are_those_of_all_tasks_so_far(tasks):
    learner = NullSpace(smallest(10))
    net, _ = learned(learner, tasks)
    images = torch.cat([task.images for task in tasks])
    assert learner.moments["0"].count == 64 * len(images)
    projections = learner.projections(net)
    assert [weight is net.body[place].weight for weight, place in zip(projections, (0, 3, 7), strict=True)]
    kept = [space.kept for space in learner.null_spaces().values()]
    assert kept == [projection.kept for projection in projections.values()]
    scaled = NullSpace(smallest(10), unit_norm=True, moments=learner.moments).projections(net)
    for plain, unit in zip(projections.values(), scaled.values(), strict=True):
        eye = torch.eye(plain.dim).double()
        assert error(unit.apply(eye), plain.apply(eye) / plain.apply(eye).norm()) < 1e-12


def test_batch_means_see_one_input_a_batch(tasks):
    learner = NullSpace(smallest(10), batch_means=True)
    learned(learner, tasks[:1])
    assert learner.moments["7"].count == -(-len(tasks[0].images) // BATCH)


def test_a_soft_projector_with_a_large_ridge_is_plain_adam(tasks):
    _, plain = learned(Learner(), tasks[:2])
    _, soft = learned(Soft(1e12), tasks[:2])
    assert np.allclose(soft.accuracy, plain.accuracy, equal_nan=True)
    _, hard = learned(Soft(1e-9), tasks[:2])
    assert np.nanmax(hard.drift) < 0.1 * np.nanmax(plain.drift)


def test_fisher_information_is_the_mean_squared_gradient_of_each_image(tasks):
    net, images = ConvNet(2, 2, (3, 4), 6, 1), tasks[0].images[:5]
    found = fisher_information(net, images, 1)
    total = {name: torch.zeros_like(weight) for name, weight in net.body.named_parameters()}
    for image in images:
        net.zero_grad()
        functional.log_softmax(net(image[None])[0, 1], 0).max().backward()
        for name, weight in net.body.named_parameters():
            total[name] += weight.grad.square() / len(images)
    assert all(error(found[name], total[name], 1e-12) < 1e-10 for name in total)


def test_the_penalty_of_ewc_is_zero_where_it_is_anchored_and_quadratic_around(tasks):
    net, learner = ConvNet(2, 2, (3, 4), 6, 1), Ewc(3.0)
    assert float(learner.penalty(net)) == 0
    learner.finish(net, tasks[0], 0)
    learner.finish(net, tasks[1], 1)
    assert float(learner.penalty(net)) == 0
    with torch.no_grad():
        net.body[0].weight += 0.5
    fisher = sum(float(anchor[1]["0.weight"].sum()) for anchor in learner.anchors)
    assert float(learner.penalty(net)) == pytest.approx(3 / 2 * fisher * 0.25)
