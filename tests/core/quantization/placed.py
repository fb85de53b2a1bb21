"""Helpers for the placement tests."""

import torch
import torch.nn.functional as F
from torch import nn

from core.config import TrainingConfig
from core.quantization.layers import finish_calibration
from core.quantization.placement import QuantizedNetwork, quantize_network

CONFIG = TrainingConfig(weight_bits=4, activation_bits=3, range="mse")


def images(size: int = 8, count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def place(network: nn.Module, config: TrainingConfig = CONFIG) -> QuantizedNetwork:
    return quantize_network(network.eval(), config, images()[:1])


def calibrate(quantized: QuantizedNetwork, calibration: torch.Tensor) -> None:
    for quantizer in quantized.activations:
        quantizer.observing = True
    with torch.no_grad():
        quantized.network(calibration)
    finish_calibration(quantized.network)


def readings(quantized: QuantizedNetwork) -> list[int]:
    """Number of distinct output values of each activation quantizer in one pass."""
    seen = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output.unique()))) for module in quantized.activations
    ]
    with torch.no_grad():
        quantized.network(images())
    for handle in handles:
        handle.remove()
    return seen


class Undecided(nn.Module):
    """A network whose control flow depends on tensor values, which a graph cannot represent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.middle, self.output = nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        y = F.relu(self.stem(x) + self.side(x))
        y = self.middle(y) if y.mean() > -1 else y
        return self.output(y.mean(dim=(2, 3)))
