"""Shared by tests of quantized networks: networks that are hard to export, and quick calibration with noise."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import TrainingConfig
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec
from core.quantization.layers import finish_calibration
from core.quantization.placement import QuantizedNetwork, quantize_network


class Mobile(nn.Module):
    """Depthwise convolution, Hardswish, squeeze-and-excitation, residual addition, and pooling of quantized values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, padding_mode="reflect"), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.pool, self.activation = nn.MaxPool2d(2), nn.Hardswish()
        self.output = nn.Linear(8 * 16, 4)

    def forward(self, x):
        x = self.activation(self.bn1(self.stem(x)))
        y = self.activation(self.bn2(self.depthwise(x)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean(dim=(2, 3), keepdim=True)))))
        return self.output(self.pool(y * gate + x).flatten(1))


class Untraceable(Mobile):
    """Mobile with control flow that depends on the image size: torch.export can trace it, torch.fx cannot."""

    def forward(self, x):
        return super().forward(x * 1.5 if x.shape[2] > 4 else x)


class Undecided(Mobile):
    """Mobile with control flow that depends on the pixels."""

    def forward(self, x):
        return super().forward(x * 1.5 if x.mean() > 0 else x)


NETWORKS = {network.__name__: network for network in (Mobile, Untraceable, Undecided)}


@pytest.fixture
def images() -> Tensor:
    """Normalized noise, `(16, 3, 8, 8)`."""
    noise = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    return noise.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def model(small, images):
    """A function that returns the small network for "small", or one of NETWORKS with BatchNorm statistics of noise."""

    def made(name: str = "small") -> FullPrecisionModel:
        if name == "small":
            return small
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = NETWORKS[name]().train()
            for _ in range(10):
                network(images)
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        return FullPrecisionModel(network, ModelSpec(name, name, tuple("abcd"), 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise"))

    return made


@pytest.fixture
def calibrated(images):
    """A function that returns a calibrated quantized network and its config."""

    def made(model: FullPrecisionModel, bits: int, **changes) -> tuple[QuantizedNetwork, TrainingConfig]:
        config = TrainingConfig(**{"weight_bits": bits, "activation_bits": bits, "range": "mse", **changes})
        size = model.spec.image_size
        seen = images if size == 8 else F.interpolate(images, size=size)
        quantized = quantize_network(model.network, config, seen[:1])
        for quantizer in quantized.activations:
            quantizer.observing = True
        with torch.no_grad():
            quantized.network(seen)
        finish_calibration(quantized.network)
        return quantized, config

    return made
