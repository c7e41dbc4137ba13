"""Features of linear layers as columns, their moments, and what an update in their null space changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from palimpsest.algebra.projector import null_space
from palimpsest.algebra.spectrum import relative
from palimpsest.continual.features import feature_columns, feature_moments, merged
from palimpsest.continual.network import ConvNet, linear_layers
from palimpsest.errors import ModelError
from tests.continual.nets import deep, few_images
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = st.integers(0, 2**20)


@given(
    seed=SEEDS,
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_a_convolution_is_its_weight_times_its_patches(seed, kernel, stride, padding, dilation):
    layer = nn.Conv2d(3, 5, kernel, stride, padding, dilation, bias=False, dtype=torch.float64)
    layer.weight.data = gaussian(seed, *layer.weight.shape)
    images = gaussian(seed + 1, 2, 3, 6, 6)
    columns = feature_columns(layer, images)
    outputs = layer(images)  # (n, out, h, w)
    assert columns.shape == (3 * kernel**2, 2 * outputs[0, 0].numel())
    assert error(layer.weight.flatten(1) @ columns, outputs.transpose(0, 1).flatten(1)) < 1e-12


def test_features_of_a_linear_map_are_its_inputs():
    layer, inputs = nn.Linear(3, 2, bias=False, dtype=torch.float64), gaussian(1, 7, 3)
    assert torch.equal(feature_columns(layer, inputs), inputs.T)


def test_moments_are_the_uncentred_covariance_of_each_layer():
    body, images = deep(), few_images(1, 5)
    moments = feature_moments(body, images.split(2))
    hidden = body[:5](images)
    assert list(moments) == list(linear_layers(body)) == ["0", "2", "5", "7"]
    assert error(moments["5"].value, hidden.T @ hidden / 5) < 1e-12
    assert moments["0"].count == 5 * 16
    patches = feature_columns(body[0], images)
    assert error(moments["0"].total, patches @ patches.T) < 1e-12
    assert not body[0]._forward_pre_hooks


def test_moments_of_tasks_add_up():
    body, first, second = deep(), few_images(1, 3), few_images(2, 4)
    of_each = [feature_moments(body, [images]) for images in (first, second)]
    both = merged(merged({}, of_each[0]), of_each[1])
    together = feature_moments(body, [torch.cat([first, second])])
    for name, moment in together.items():
        assert error(both[name].value, moment.value) < 1e-12


def test_batch_means_protect_the_means_alone():
    body, images = deep(), few_images(1, 6)
    means = feature_moments(body, images.split(2), batch_means=True)
    hidden = body[:5](images).reshape(3, 2, -1).mean(1)
    assert error(means["5"].value, hidden.T @ hidden / 3) < 1e-12
    assert int(torch.linalg.matrix_rank(means["5"].value)) == 3
    free = null_space(means["5"], relative(1e-10))
    assert free.leakage(hidden.T) < 1e-20
    assert free.leakage(body[:5](images).T) > 1e-3


@given(seed=SEEDS)
def test_an_update_in_every_layer_s_null_space_keeps_the_whole_network_s_outputs(seed):
    body, images = deep(seed), few_images(seed)
    before, other = body(images), few_images(seed + 1)
    elsewhere = body(other)
    for name, moment in feature_moments(body, [images]).items():
        weight, free = linear_layers(body)[name].weight, null_space(moment, relative(1e-10))
        assert 0 < free.kept < free.dim
        change = gaussian(seed + len(weight), *weight.flatten(1).shape)
        weight.data = weight + free.apply(change.T).T.reshape(weight.shape)
    assert error(body(images), before) < 1e-10
    assert error(body(other), elsewhere) > 1e-2  # control: other images notice


@given(seed=SEEDS)
def test_the_centred_covariance_does_not_protect_the_mean(seed):
    layer, inputs = nn.Linear(9, 4, bias=False, dtype=torch.float64), gaussian(seed, 5, 9) + 2
    centred = inputs - inputs.mean(0)
    change = gaussian(seed + 1, 4, 9)
    leak = {}
    for name, columns in (("uncentred", inputs.T), ("centred", centred.T)):
        free = null_space(columns @ columns.T, relative(1e-10))
        leak[name] = error(layer(inputs) + (free.apply(change.T).T @ inputs.T).T, layer(inputs))
    assert leak["uncentred"] < 1e-12
    assert leak["centred"] > 1e-2


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(3, 2), r"layer '0' has a bias, which its features do not cover; build it without"),
        (nn.Conv2d(2, 2, 1, groups=2, bias=False), r"layer '0' has 2 groups and padding 'zeros'"),
        (nn.Conv2d(2, 2, 3, padding="same", bias=False), r"padding 'same', and .* with a width in numbers"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False), r"padding 'circular'"),
        (nn.ReLU(), r"the network has no linear or convolutional layer to project"),
    ],
)
def test_a_layer_that_its_features_do_not_cover_is_refused(layer, message):
    with pytest.raises(ModelError, match=message):
        linear_layers(nn.Sequential(layer))


def test_the_network_is_made_of_its_seed():
    one, same, other = (ConvNet(3, 2, (2, 3), 5, seed) for seed in (1, 1, 2))
    images = gaussian(1, 4, 1, 8, 8)
    assert one(images).shape == (4, 3, 2)
    assert torch.equal(one(images), same(images))
    assert not torch.equal(one(images), other(images))
    assert [layer.weight.flatten(1).shape[1] for layer in linear_layers(one.body).values()] == [9, 18, 12]
