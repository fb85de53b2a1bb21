"""Sensitivity of layers, against the small network written out with one layer quantized."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.config import RANGE_METHODS, TrainingConfig
from core.quantization.sensitivity import sensitivities
from core.quantization.training import QuantizationTraining


def written_out(training, x, quantized):
    """Scores with the layer of this index quantized, None for none."""
    student, layers, quantizers = training.student, training.quantized.layers, training.quantized.activations
    weights = [layer.quantized_weight() if index == quantized else layer.weight for index, layer in enumerate(layers)]
    hidden = F.relu(student.bn1(F.conv2d(x, weights[0], padding=1)))
    hidden = quantizers[0](hidden) if quantized == 1 else hidden
    pooled = F.relu(student.bn2(F.conv2d(hidden, weights[1], padding=1)) + hidden).mean(dim=(2, 3))
    pooled = quantizers[1](pooled) if quantized == 2 else pooled
    scores = F.linear(pooled, weights[2], student.output.bias).detach().numpy().astype(np.float64)
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_one_layer_at_a_time(small, small_images, method):
    training = QuantizationTraining(small, small_images, TrainingConfig(weight_bits=3, steps=2, crop_padding=1, range=method))
    while not training.finished:
        training.step()
    images = small_images.images[:20]
    with torch.no_grad():
        x = small.normalize(images)
        before = training.quantized.network(x)
        found = sensitivities(small, training.quantized, images)
        assert torch.equal(training.quantized.network(x), before)
        exact = written_out(training, x, None)
        for index, name in enumerate(("conv1", "conv2", "output")):
            error = written_out(training, x, index) - exact
            expected = 10 * math.log10((exact**2).sum() / (error**2).sum())
            assert found[name] == pytest.approx(expected, abs=0.01)
