"""Mixed precision: the bit width of each layer's weights, chosen so that the network keeps to a size and its scores change least.

The error of a layer at a width is what quantizing its weights alone does to the scores. Rounding errors of different layers are almost
independent, so the errors of all layers add up, and the best widths of every size are found exactly by dynamic programming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import TrainingConfig
from core.config.choices import BIT_WIDTHS
from core.errors import CoreError
from core.models.full_precision import FullPrecisionModel
from core.quantization.calibration import calibrate, few_inputs
from core.quantization.correction import corrected, moments_of
from core.quantization.integer.weights import packed_bytes
from core.quantization.layers import from_module
from core.quantization.placement import QuantizedNetwork, quantize_network
from core.quantization.ranges.base import range_method
from core.quantization.sensitivity import centered_scores, unrounded

IMAGES = 64  # at most; a forward pass for each layer and width
_LEAST = 4
_PIXELS = IMAGES * 32 * 32  # of all images together
_UNITS = 20_000  # steps of the size, at most, in which widths are compared
_POINTS = 60  # of the curve, at most


@dataclass(frozen=True)
class Choices:
    """What there is to choose from. errors: for each layer, that at each of BIT_WIDTHS; sizes: likewise, in bytes. fixed: bytes of all
    other tensors.
    """

    names: tuple[str, ...]
    errors: np.ndarray  # float64 (layers, widths)
    sizes: np.ndarray  # int64 (layers, widths)
    fixed: int


@dataclass(frozen=True)
class Allocation:
    """Bit widths by layer, the size of the network in bytes, and the sum of the errors of its layers."""

    widths: Mapping[str, int]
    size: int
    error: float


class SizeCurve:
    """The smallest error within each size: a multiple-choice knapsack.

    With more than _UNITS bytes between the smallest and the largest network, sizes are rounded up to multiples of a unit, so that a
    network is never larger than asked.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        least = choices.sizes.min(axis=1)
        extra = choices.sizes - least[:, None]
        most = int(extra.max(axis=1).sum())
        self._unit = max(1, -(-most // _UNITS))
        steps = -(-extra // self._unit)
        self.smallest = choices.fixed + int(least.sum())
        length = int(steps.max(axis=1).sum()) + 1
        best, self._chosen = np.zeros(length), []
        for errors, own in zip(choices.errors, steps):
            candidates = np.full((len(own), length), math.inf)
            for row, error, step in zip(candidates, errors, own):
                if step < length:
                    row[step:] = best[: length - step] + error
            self._chosen.append(candidates.argmin(axis=0))
            best = candidates.min(axis=0)
        self._steps, self._best = steps, best

    def within(self, size: float) -> Allocation:
        """The best widths of a network of at most `size` bytes. Raises CoreError if 2 bits for every layer are more than that."""
        _require(size, self.smallest)
        return self._at(min(int(size - self.smallest) // self._unit, len(self._best) - 1))

    def points(self) -> list[Allocation]:
        """The best widths of sizes from the smallest network to the largest."""
        places = np.unique(np.linspace(0, len(self._best) - 1, _POINTS).round().astype(int))
        found = {one.size: one for one in map(self._at, places.tolist())}
        return [found[size] for size in sorted(found)]

    def _at(self, place: int) -> Allocation:
        widths, size, error = {}, self.choices.fixed, 0.0
        for number in reversed(range(len(self.choices.names))):
            chosen = int(self._chosen[number][place])
            place -= int(self._steps[number, chosen])
            widths[self.choices.names[number]] = BIT_WIDTHS[chosen]
            size += int(self.choices.sizes[number, chosen])
            error += float(self.choices.errors[number, chosen])
        return Allocation(dict(reversed(widths.items())), size, error)


def check_size(model: FullPrecisionModel, config: TrainingConfig) -> None:
    """Raises CoreError if no widths keep to `config.size`, as `chosen_widths` does."""
    if config.size:
        quantized = quantize_network(model.network, config, torch.zeros(1, *model.spec.shape, device=model.device))
        own, layers = dict(config.layer_bits), dict(zip(quantized.names, quantized.layers))
        now = sum(_bytes(quantized, layer, layer.weight_quantizer.bits) for layer in layers.values())
        least = sum(_bytes(quantized, layer, own.get(name, BIT_WIDTHS[0])) for name, layer in layers.items())
        _require(1000 * config.size, packed_bytes(quantized, needs_ranges=False) - now + least)


def _require(size: float, smallest: int) -> None:
    if size < smallest:
        raise CoreError(f"size must be at least {smallest / 1000:g} kB, that of this network at 2 bits, got {size / 1000:g} kB")


def chosen_widths(model: FullPrecisionModel, config: TrainingConfig, images: Tensor, series: str) -> tuple[TrainingConfig, dict[str, Any]]:
    """`config` with the bit widths of the weights by layer that keep to `config.size`, and what they were chosen from, as JSON values.

    Layers that `config.layer_bits` names keep their widths. images: those of the calibration. Raises CoreError if the size cannot be kept.
    """
    choices = weight_choices(model, config, images, series)
    curve = SizeCurve(choices)
    found = curve.within(1000 * config.size)
    figures = {
        "layers": list(choices.names),
        "bits": list(found.widths.values()),
        "bytes": found.size,
        "error": found.error,
        "curve": [{"bytes": one.size, "error": one.error, "bits": list(one.widths.values())} for one in curve.points()],
    }
    return replace(config, layer_weight_bits=tuple(found.widths.items())), figures


@torch.no_grad()
def weight_choices(model: FullPrecisionModel, config: TrainingConfig, images: Tensor, series: str) -> Choices:
    """The error and the size of every layer at every width. images: uint8 `(N, C, H, W)` or normalized, of which few are used, evenly
    spaced: IMAGES small ones, fewer large ones.

    Error: the mean over images of the squared change of the scores, minus their mean over the classes, when the weights of this layer alone
    are quantized and nothing else is; with corrected BatchNorm statistics if those of the network will be.
    """
    inputs = few_inputs(model, images, _LEAST, _PIXELS)
    quantized = calibrate(model, config, inputs, series)
    own = dict(config.layer_bits)
    new_range = range_method(config)
    layers: dict[str, Any] = dict(zip(quantized.names, quantized.layers))
    errors = np.zeros((len(layers), len(BIT_WIDTHS)))
    sizes = np.zeros((len(layers), len(BIT_WIDTHS)), np.int64)
    moments = moments_of(model.network, inputs) if config.corrects_statistics else {}
    with unrounded([*layers.values()], [*quantized.activations]), corrected(quantized.network, moments):
        exact = centered_scores(quantized.network(inputs))
        for number, (name, layer) in enumerate(layers.items()):
            exactly = layer.quantized_weight
            for place, bits in enumerate(BIT_WIDTHS):
                sizes[number, place] = _bytes(quantized, layer, own.get(name, bits))
                if bits != own.get(name, bits):
                    errors[number, place] = math.inf
                    continue
                rounded = _rounded_weight(layer, bits, new_range)
                layer.quantized_weight = lambda rounded=rounded: rounded
                change = centered_scores(quantized.network(inputs)) - exact
                errors[number, place] = float(change.square().sum(dim=1).mean())
            layer.quantized_weight = exactly
    now = sum(_bytes(quantized, layer, layer.weight_quantizer.bits) for layer in quantized.layers)
    return Choices(tuple(layers), errors, sizes, packed_bytes(quantized) - now)


def _rounded_weight(layer: Any, bits: int, new_range: Any) -> Tensor:
    """The layer's weight as it is after a calibration at this width."""
    other = from_module(layer, bits, new_range).to(layer.weight.device)
    other.finish_calibration()
    return other.quantized_weight().detach()


def _bytes(quantized: QuantizedNetwork, layer: Any, bits: int) -> int:
    """Of the integers of a layer, once for each name that it has."""
    names = sum(module is layer for _, module in quantized.network.named_modules(remove_duplicate=False))
    return names * -(-layer.weight.numel() * bits // 8)
