"""Grad-CAM against a network whose maps can be computed by hand, and through which values its gradient goes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.errors import ModelError
from core.quantization.class_activation import class_activation, last_activations
from tests.core.quantization.test_attention import hooks


class Pooled(nn.Module):
    """A convolution, the mean over positions, and a linear layer: d score / dA is weight / positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.output = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.output(self.conv(x).mean(dim=(2, 3)))


def test_map_by_hand():
    network, images = Pooled(), torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    with last_activations(network) as found:
        assert hooks(network) == 1
        scores = network(images)
    assert hooks(network) == 0
    maps = class_activation(found[0], scores, (12, 12))
    activations, classes = network.conv(images), scores.argmax(dim=1)
    weights = (network.output.weight[classes] / 36).clamp(min=1e-10)
    for number in range(5):
        expected = (weights[number][:, None, None] * activations[number]).sum(dim=0).relu()
        expected = F.interpolate(expected[None, None], (12, 12), mode="bilinear")[0, 0]
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        assert torch.allclose(maps[number, 0], expected, atol=1e-5)
    assert maps.min() == 0
    assert maps.max() == 1


def test_constant_map_is_zero():
    activations = torch.full((1, 2, 3, 3), -1.0, requires_grad=True)
    assert class_activation(activations, activations.mean(dim=(2, 3)), (3, 3)).tolist() == torch.zeros(1, 1, 3, 3).tolist()


def test_gradient_goes_through_activations_only():
    network, images = Pooled(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with last_activations(network) as found:
        scores = network(images)
    class_activation(found[0], scores, (6, 6)).square().mean().backward()
    assert network.conv.weight.grad.abs().sum() > 0
    assert network.output.weight.grad is None


def test_layer_is_the_last_convolution_before_the_classifier():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 4, 4)
    with last_activations(network) as found:
        network(images)
    assert torch.equal(found[0], network[1](network[0](images)))
    with (
        pytest.raises(ModelError, match="Sequential must have a convolution besides its classifier, got none"),
        last_activations(network[3:]),
    ):
        pass
