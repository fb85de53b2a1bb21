"""Swing convolution: the phase of a strided convolution by hand, and copies that compute with it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.generation.fused.network import FusedNetwork, HookedNetwork
from core.generation.swing import Swing, SwingingNetwork


class Strided(nn.Module):
    """A plain convolution, and two strided ones, of which one runs on two paths."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(4, 4, 1, stride=2, bias=False)
        self.output = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.output((self.down_norm(self.down(x)) + self.shortcut(x)).mean(dim=(2, 3)))


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Strided().eval().requires_grad_(False)


@pytest.mark.parametrize("offset", [(0, 0), (0, 2), (2, 1), (1, 1)])
def test_crop_of_the_reflected_input(offset):
    x = torch.arange(24.0).view(1, 1, 4, 6)
    padded = np.pad(x[0, 0].numpy(), 1, mode="reflect")
    swing = Swing()
    swing.offset = offset
    row, column = offset
    assert np.array_equal(swing(x)[0, 0].numpy(), padded[row : row + 4, column : column + 6])
    # a stride of 2 without padding reads every other pixel: which ones depends on the offset
    picked = F.conv2d(swing(x), torch.ones(1, 1, 1, 1), stride=2)[0, 0]
    assert np.array_equal(picked.numpy(), padded[row : row + 4 : 2, column : column + 6 : 2])


def test_a_single_row_stays():
    swing = Swing()
    swing.offset = (0, 2)
    x = torch.rand(2, 3, 1, 5)
    assert torch.equal(swing(x), x)


@pytest.mark.parametrize("form", [FusedNetwork, HookedNetwork])
def test_network_is_that_with_shifted_inputs_of_strided_convolutions(network, form):
    swinging = SwingingNetwork(network)
    computed = form(swinging.network)
    images, random = torch.rand(3, 3, 8, 8), torch.Generator().manual_seed(1)
    plain = network(images)
    assert torch.allclose(computed(images)[0], plain, atol=1e-5)
    seen = set()
    for _ in range(6):
        swinging.draw(random)
        offsets = [swing.offset for swing in swinging._swings]
        assert len(offsets) == 2
        seen |= set(offsets)
        x = F.relu(network.norm(network.first(images)))
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        parts = [padded[:, :, row : row + 8, column : column + 8] for row, column in offsets]
        x = network.down_norm(network.down(parts[0])) + network.shortcut(parts[1])
        assert torch.allclose(computed(images)[0], network.output(x.mean(dim=(2, 3))), atol=1e-5)
    assert len(seen) > 4
    assert torch.equal(network(images), plain)  # the original has no swings


def test_parameters_are_not_copied(network):
    swinging = SwingingNetwork(network).network
    theirs = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in swinging.parameters()} == theirs
