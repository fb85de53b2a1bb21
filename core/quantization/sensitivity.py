"""How much the quantization of one layer alone changes the scores of a network."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from core.models.full_precision import FullPrecisionModel
from core.quantization.analysis import sqnr
from core.quantization.calibration import few_inputs
from core.quantization.placement import QuantizedNetwork

IMAGES = 16  # at most; a forward pass for each layer
_LEAST = 4
_PIXELS = IMAGES * 32 * 32  # of all images together


@torch.no_grad()
def sensitivities(model: FullPrecisionModel, quantized: QuantizedNetwork, images: Tensor) -> dict[str, float | None]:
    """Layer -> signal-to-quantization-noise ratio in dB of the scores, when only its weights and its input are quantized.

    The signal are the scores of the same network without any rounding, minus their mean over the classes of an image, which the softmax
    ignores. images: uint8 `(N, C, H, W)`, of which few are used, evenly spaced: IMAGES small ones, fewer large ones. None where a layer
    changes nothing. The network stays unchanged.
    """
    inputs = few_inputs(model, images, _LEAST, _PIXELS)
    layers: dict[str, Any] = dict(zip(quantized.names, quantized.layers))
    quantizers: list[Any] = [*quantized.activations]
    found = {}
    with unrounded(list(layers.values()), quantizers):
        exact = centered_scores(quantized.network(inputs))
    for name, layer in layers.items():
        others = [other for other in quantizers if other is not quantized.inputs.get(name)]
        with unrounded([other for other in layers.values() if other is not layer], others):
            error = centered_scores(quantized.network(inputs)) - exact
        found[name] = sqnr(float(exact.square().sum()), float(error.square().sum()))
    return found


def centered_scores(scores: Tensor) -> Tensor:
    """Scores `(N, classes)` minus their mean over the classes, which the softmax ignores, in float64."""
    return scores.double() - scores.double().mean(dim=1, keepdim=True)


@contextmanager
def unrounded(layers: Sequence[Any], quantizers: Sequence[Any]) -> Iterator[None]:
    """Within the block, these layers use their float weights and these quantizers return their input."""
    with ExitStack() as restored:
        for layer in layers:
            layer.quantized_weight = lambda weight=layer.weight: weight
            restored.callback(delattr, layer, "quantized_weight")
        for quantizer in quantizers:
            quantizer.forward = lambda x: x  # type: ignore[method-assign]
            restored.callback(delattr, quantizer, "forward")
        yield
