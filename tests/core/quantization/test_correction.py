"""Corrected BatchNorm statistics, against moments by NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from core.config import TrainingConfig
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec
from core.quantization import correction
from core.quantization.calibration import calibrate
from core.quantization.correction import correct_statistics, corrected, moments_of
from core.quantization.sensitivity import unrounded
from core.quantization.training import QuantizationTraining

CONFIG = TrainingConfig(weight_bits=3, activation_bits=3, range="minmax", steps=2, crop_padding=1, calibration_images=32)


def outputs(network, images):
    """Layer -> its output for these images, float64, in evaluation mode."""
    found = {}

    def keep(name):
        def hook(_module, _inputs, output):
            found[name] = output.double().numpy()

        return hook

    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


def moments(values):
    return np.stack([values.mean(axis=(0, 2, 3)), values.std(axis=(0, 2, 3))])


def test_outputs_have_the_mean_and_deviation_of_full_precision(small, small_images):
    quantized = calibrate(small, CONFIG, small_images.images, "x")
    images = small.normalize(small_images.images)
    exact = outputs(small.network, images)
    before = outputs(quantized.network, images)
    correct_statistics(small, quantized, small_images.images)
    after = outputs(quantized.network, images)
    assert set(after) == {"bn1", "bn2"}
    for name, values in after.items():
        assert moments(values) == pytest.approx(moments(exact[name]), rel=1e-3, abs=1e-4)
        assert moments(before[name]) != pytest.approx(moments(exact[name]), rel=1e-2, abs=1e-3)


def test_correction_for_one_pass_gives_the_scores_of_corrected_statistics(small, small_images):
    quantized = calibrate(small, CONFIG, small_images.images, "x")
    images = small.normalize(small_images.images)
    before = {name: value.clone() for name, value in quantized.network.state_dict().items()}
    with torch.no_grad(), corrected(quantized.network, moments_of(small.network, images)):
        scores = quantized.network(images)
    assert all(torch.equal(value, before[name]) for name, value in quantized.network.state_dict().items())
    correct_statistics(small, quantized, small_images.images)
    with torch.no_grad():
        assert not torch.equal(quantized.network.get_submodule("bn1").running_mean, before["bn1.running_mean"])
        torch.testing.assert_close(scores, quantized.network(images), rtol=1e-3, atol=1e-3)


def test_network_without_rounding_errors_stays_as_it_is(small, small_images):
    quantized = calibrate(small, CONFIG, small_images.images, "x")
    with unrounded(quantized.layers, quantized.activations):
        correct_statistics(small, quantized, small_images.images)
    for name, layer in small.network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            own = quantized.network.get_submodule(name)
            torch.testing.assert_close(own.running_mean, layer.running_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(own.running_var, layer.running_var, rtol=1e-5, atol=1e-6)


def test_channel_that_is_constant_stays_finite(small, small_images):
    with torch.no_grad():
        small.network.conv1.weight[0] = 0
    quantized = calibrate(small, CONFIG, small_images.images, "x")
    correct_statistics(small, quantized, small_images.images)
    for name in ("bn1", "bn2"):
        layer = quantized.network.get_submodule(name)
        assert bool(torch.isfinite(layer.running_mean).all())
        assert bool((layer.running_var >= 0).all())
    assert float(quantized.network.get_submodule("bn1").running_mean[0]) == pytest.approx(
        float(small.network.bn1.running_mean[0]), abs=1e-5
    )


def test_layer_that_is_called_twice_keeps_its_statistics(small_images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3, bias=False)
            self.once, self.twice = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
            self.output = nn.Linear(6, 4)

        def forward(self, x):
            x = torch.relu(self.twice(self.conv(torch.relu(self.once(self.stem(x))))))
            return self.output(self.twice(x).mean(dim=(2, 3)))

    spec = ModelSpec("twice", "twice", tuple("abcd"), 8, (0.5,) * 3, (0.25,) * 3, "noise")
    model = FullPrecisionModel(Twice().eval().requires_grad_(False), spec)
    quantized = calibrate(model, CONFIG, small_images.images, "x")
    correct_statistics(model, quantized, small_images.images)
    assert torch.equal(quantized.network.get_submodule("twice").running_mean, torch.zeros(6))
    assert not torch.equal(quantized.network.get_submodule("once").running_mean, torch.zeros(6))


def test_few_large_images_pass_at_once(small, small_images, monkeypatch):
    monkeypatch.setattr(correction, "_PIXELS", 0)
    sizes = []
    small.network.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    quantized = calibrate(small, CONFIG, small_images.images, "x")
    sizes.clear()
    correct_statistics(small, quantized, small_images.images)
    assert sizes == [16]


@pytest.mark.parametrize("corrected", [True, False])
def test_training_starts_from_it(small, small_images, corrected):
    training = QuantizationTraining(small, small_images, replace(CONFIG, correct_statistics=corrected))
    same = torch.equal(training.student.get_submodule("bn1").running_mean, small.network.bn1.running_mean)
    assert same is not corrected
