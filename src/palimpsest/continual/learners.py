"""How a network is kept from forgetting while it learns the next task: one class for each way.

`Learner` is plain Adam. Its subclasses project the steps of weights, or add a penalty to the loss, and look
at each task once it is learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.spectrum import Cut
from palimpsest.continual.adam import Projection, Scaled, SoftProjector
from palimpsest.continual.features import feature_moments, merged
from palimpsest.continual.network import ConvNet, linear_layers
from palimpsest.continual.tasks import Task
from palimpsest.memory.moments import SecondMoment

BATCH = 32
"""Images in a forward pass that reads features; matters only for batch means."""


class Learner:
    """Plain sequential training; base of the other ways."""

    def projections(self, net: ConvNet) -> Mapping[nn.Parameter, Projection]:
        """Weight -> projection of its steps in the next task."""
        return {}

    def penalty(self, net: ConvNet) -> Tensor:
        """Term that is added to the loss of the next task."""
        return torch.zeros(())

    def finish(self, net: ConvNet, task: Task, number: int) -> None:
        """Look at a task that was just learned, the ``number``-th from 0."""


@dataclass
class FeatureLearner(Learner):
    """Steps that depend on the features of earlier tasks.

    Attributes:
        batch_means: as `feature_moments`.
        moments: of the features of all tasks learned so far, by layer.
    """

    batch_means: bool = field(default=False, kw_only=True)
    moments: dict[str, SecondMoment] = field(default_factory=dict, kw_only=True)

    def projection(self, moment: SecondMoment) -> Projection:
        """Projection of one layer's steps."""
        raise NotImplementedError

    def projections(self, net: ConvNet) -> Mapping[nn.Parameter, Projection]:
        """None before the first task is learned; then one for each linear layer of the body."""
        layers = linear_layers(net.body)
        return {
            layers[name].weight: self.projection(moment)  # type: ignore[misc]
            for name, moment in self.moments.items()
        }

    def finish(self, net: ConvNet, task: Task, number: int) -> None:
        """Add the features of the task to the moments."""
        fresh = feature_moments(net.body, task.images.split(BATCH), self.batch_means)
        self.moments = merged(self.moments, fresh)


@dataclass
class NullSpace(FeatureLearner):
    """Adam-NSCL: steps inside the approximate null space of the features of earlier tasks.

    Attributes:
        rule: which directions of feature space are protected: ``smallest(10)`` as published.
        unit_norm: divide each projector by its Frobenius norm, the root of its rank, as the released code
            does; the more directions are free, the shorter is a step. The paper's Eq. 6 does not.
        batch_means: take batch means for features, as the released code does.
        moments: of the features of all tasks learned so far, by layer.

    Source: Wang et al., CVPR 2021.
    """

    rule: Cut
    unit_norm: bool = False

    def null_spaces(self) -> dict[str, Projector]:
        """Projector of each layer on the directions that are free, of the tasks learned so far."""
        return {name: null_space(moment, self.rule) for name, moment in self.moments.items()}

    def projection(self, moment: SecondMoment) -> Projection:
        """The null-space projector, scaled if that is asked for."""
        found = null_space(moment, self.rule)
        return Scaled(found, max(found.kept, 1) ** -0.5) if self.unit_norm else found


@dataclass
class Soft(FeatureLearner):
    """Steps through a soft projector, the one of orthogonal weight modification (OWM, Zeng et al., 2019).

    OWM updates its projector recursively from batch means and multiplies gradients; here it is that of the
    mean second moment of all features, and multiplies Adam's steps, as in Adam-NSCL.

    Attributes:
        ridge: α, the eigenvalue at which half of a step passes.
        batch_means: take batch means for features.
        moments: of the features of all tasks learned so far, by layer.
    """

    ridge: float

    def projection(self, moment: SecondMoment) -> Projection:
        """The soft projector of the layer's mean second moment."""
        return SoftProjector.of(moment, self.ridge)


@dataclass
class Ewc(Learner):
    """Elastic weight consolidation: a quadratic penalty around the weights after each earlier task.

    Attributes:
        strength: λ in λ/2 Σ F (θ − θ*)², summed over earlier tasks.
        anchors: weights θ* after each task and their Fisher information F, for the shared layers.

    Source: Kirkpatrick et al., PNAS 2017, Eq. 3.
    """

    strength: float
    anchors: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = field(default_factory=list)

    def penalty(self, net: ConvNet) -> Tensor:
        """The penalty at the network's weights."""
        present = dict(net.body.named_parameters())
        terms = [
            (fisher[name] * (present[name] - weight).square()).sum()
            for weights, fisher in self.anchors
            for name, weight in weights.items()
        ]
        return self.strength / 2 * torch.stack(terms).sum() if terms else torch.zeros(())

    def finish(self, net: ConvNet, task: Task, number: int) -> None:
        """Store the weights and their Fisher information on the task."""
        weights = {name: weight.detach().clone() for name, weight in net.body.named_parameters()}
        self.anchors.append((weights, fisher_information(net, task.images, number)))


def fisher_information(net: ConvNet, images: Tensor, number: int) -> dict[str, Tensor]:
    """Diagonal Fisher information of the shared weights: mean squared gradient of log p at predicted labels.

    Args:
        net: the network.
        images: inputs (n, 1, h, w).
        number: of the head.
    """
    weights = {name: weight.detach() for name, weight in net.body.named_parameters()}

    def log_likelihood(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        features = functional_call(net.body, weights, (image[None],))
        scores = functional.log_softmax(net.heads[number](features)[0], 0)
        return scores.max()

    gradients = vmap(grad(log_likelihood), (None, 0), chunk_size=64)(weights, images)
    return {name: each.detach().square().mean(0) for name, each in gradients.items()}
