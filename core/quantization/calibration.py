"""Calibration: quantizers are placed in a network, and every range is set from some images."""

import torch
from torch import Tensor

from core.config import TrainingConfig
from core.errors import CoreError
from core.models.divergence import check_tensors, first_not_finite_of
from core.models.full_precision import FullPrecisionModel, scores_of
from core.quantization.layers import finish_calibration
from core.quantization.placement import QuantizedNetwork, quantize_network

IMAGES_AT_ONCE = 128


def calibrate(model: FullPrecisionModel, config: TrainingConfig, images: Tensor, series: str) -> QuantizedNetwork:
    """A quantized copy of the network: quantizers observe one forward pass of the float network, then every range is set.

    images: uint8 pixels or normalized float `(N, C, H, W)`. series: for error messages, such as "mi-fgsm W4A4".
    Raises ModelError if the network has values that are not finite, cannot be quantized or outputs anything but one tensor of scores;
    CoreError if a range is not finite.
    """
    check_tensors(model.network, model.spec.name)
    batches = [model.normalize(part) if images.dtype == torch.uint8 else part.detach() for part in images.split(IMAGES_AT_ONCE)]
    scores_of(model.network(batches[0][:1]), 1)
    quantized = quantize_network(model.network, config, batches[0][:1])
    quantized.network.to(model.device).to(memory_format=torch.channels_last)
    for quantizer in quantized.activations:
        quantizer.observing = True
    with torch.no_grad():
        for batch in batches:
            quantized.network(batch.contiguous(memory_format=torch.channels_last))
    try:
        finish_calibration(quantized.network)
    except CoreError as error:
        where = first_not_finite_of(model.network, batches) or "the weights"
        raise CoreError(
            f"quantization ranges must be finite, got infinity or NaN in the calibration of {series}, first in {where}"
        ) from error
    return quantized


def few_inputs(model: FullPrecisionModel, images: Tensor, least: int, pixels: int) -> Tensor:
    """The images, normalized; evenly spaced ones, at least `least`, where all together have more than `pixels` pixels.

    images: uint8 or normalized `(N, C, H, W)`.
    """
    count = min(len(images), max(least, pixels // (images.shape[2] * images.shape[3])))
    few = images[torch.linspace(0, len(images) - 1, count).round().long()]
    return (model.normalize(few) if few.dtype == torch.uint8 else few.detach()).contiguous(memory_format=torch.channels_last)
