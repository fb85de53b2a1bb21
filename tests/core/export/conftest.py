"""A network for the exports to runtimes that fuse layers."""

import pytest
import torch
from torch import nn

from core.models.full_precision import FullPrecisionModel


@pytest.fixture
def wide(small):
    """A network with what runtimes fuse: a depthwise convolution, ReLU6, an addition, a mean, a linear layer."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
            self.bn, self.relu, self.relu6, self.output = nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU6(), nn.Linear(8, 4)

        def forward(self, x):
            x = self.relu(self.first(x))
            x = x + self.third(self.relu6(self.bn(self.second(x))))
            return self.output(x.mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FullPrecisionModel(Wide().eval(), small.spec)
