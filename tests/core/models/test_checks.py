import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from core.errors import ModelError
from core.models.checks import PROBABILITIES, check_network
from core.models.registry import ModelSpec


def refused(network: nn.Module, spec: ModelSpec) -> str:
    with pytest.raises(ModelError) as caught:
        check_network(network, spec)
    assert "must" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def network(small) -> nn.Module:
    return copy.deepcopy(small.network)


def test_trained_networks_pass(embedded, small):
    before = torch.get_rng_state()
    check_network(embedded.network, embedded.spec)
    check_network(small.network, small.spec)
    assert torch.equal(torch.get_rng_state(), before)


def test_network_with_a_single_score_is_refused(small):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 8), nn.Flatten())
    assert "two or more classes" in refused(network.eval(), replace(small.spec, classes=("yes",)))
    # what the message recommends
    score = torch.randn(5, 1)
    two = torch.cat([torch.zeros_like(score), score], dim=1)
    torch.testing.assert_close(two.softmax(dim=1)[:, 1:], score.sigmoid())


def test_probabilities_are_noted(network, small):
    assert check_network(network, small.spec) == ()
    assert check_network(nn.Sequential(network, nn.LogSoftmax(1)).eval(), small.spec) == ()
    assert check_network(nn.Sequential(network, nn.Softmax(1)).eval(), small.spec) == (PROBABILITIES,)


def test_network_without_batch_norm_is_refused(small):
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    assert "must have at least one BatchNorm layer" in refused(network.eval(), small.spec)


def test_initial_statistics_in_every_layer_are_refused(network, small):
    network.bn1.reset_running_stats()
    check_network(network, small.spec)  # one layer may have them, for example if its input always has zero mean
    network.bn2.reset_running_stats()
    assert "mean 0 and variance 1" in refused(network, small.spec)


@pytest.mark.parametrize(("key", "value"), [("running_mean", float("nan")), ("running_var", float("inf")), ("running_var", -0.1)])
def test_impossible_statistics_are_refused(network, small, key, value):
    getattr(network.bn2, key)[3] = value
    assert "bn2" in refused(network, small.spec)


def test_parameters_that_are_not_finite_are_named_whatever_the_scores(network, small):
    network.output.bias.data[1] = float("nan")
    assert refused(network, small.spec) == "parameters and statistics of small must be finite, got infinity or NaN in output.bias"
    network.output.bias.data[1] = 0
    network.output.weight.data[1] = float("-inf")
    network.output = nn.Sequential(network.output, nn.Hardtanh())
    assert network(torch.rand(2, 3, 8, 8)).isfinite().all()
    assert "in output.0.weight" in refused(network, small.spec)


def test_nonfinite_scores_of_finite_parameters_are_refused(network, small):
    network.conv2.weight.data.fill_(3e38)
    message = "scores of small for noise must be finite for every class, got infinity or NaN, first in conv2"
    assert refused(network, small.spec) == message


def test_wrong_number_of_classes_is_refused(network, small):
    message = refused(network, replace(small.spec, classes=("a", "b")))
    assert "(2, 4)" in message
    assert "(2, 2)" in message


def test_image_size_that_does_not_fit_the_last_layer_is_refused(small):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 4)).eval()
    network[1].running_mean += 0.1
    check_network(network, small.spec)
    message = refused(network, replace(small.spec, image_size=9))
    assert "9 x 9 pixels" in message


def test_image_size_that_is_too_small_is_refused(embedded):
    with pytest.raises(ModelError, match="^image size of mine must be .*, 1 x 1 pixels with 2 images fails"):
        check_network(embedded.network, replace(embedded.spec, image_size=1), "mine")


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_without_statistics_among_others_is_refused(network, small, affine):
    network.relu = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8, affine=affine, track_running_stats=False))
    message = refused(network, small.spec)
    assert message.startswith("scores of small for an image must not depend on the other images of its batch, got a difference of ")
    assert message.endswith("% of the largest; BatchNorm layers must have running statistics, missing: relu.1")


def test_other_operations_over_the_batch_are_refused(network, small):
    network.pool = nn.Sequential(network.pool, BatchMean())
    assert "must not depend on the other images of its batch" in refused(network, small.spec)


def test_dropout_that_is_always_active_is_refused(network, small):
    class Active(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x)  # as written by those who forget `training=self.training`

    network.pool = nn.Sequential(network.pool, Active())
    assert "must be the same each time" in refused(network, small.spec)


def test_normalizations_within_an_image_pass(network, small):
    network.relu = nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(8), nn.GroupNorm(2, 8))
    check_network(network, small.spec)
