"""Bit widths by layer within a size: against trying all of them, and the small network written out with one weight rounded."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.config import TrainingConfig
from core.config.choices import BIT_WIDTHS
from core.errors import CoreError
from core.quantization import allocation
from core.quantization.allocation import Choices, SizeCurve, check_size, chosen_widths, weight_choices
from core.quantization.calibration import calibrate
from core.quantization.integer.weights import packed_bytes
from core.quantization.saved_network import load_quantized, save_quantized
from core.quantization.training import QuantizationTraining

CONFIG = TrainingConfig(
    weight_bits=4, activation_bits=4, range="minmax", steps=2, crop_padding=1, calibration_images=32, correct_statistics=False
)


def choices(weights=(72, 432, 9, 200), seed=0):
    """Errors that fall to about a quarter with each bit, as those of rounding do."""
    generator = np.random.default_rng(seed)
    first = generator.uniform(0.1, 10, (len(weights), 1))
    errors = first * 4.0 ** -np.arange(len(BIT_WIDTHS)) * generator.uniform(0.7, 1.3, (len(weights), len(BIT_WIDTHS)))
    sizes = np.array([[-(-count * bits // 8) for bits in BIT_WIDTHS] for count in weights])
    return Choices(tuple("abcd"[: len(weights)]), errors, sizes, fixed=100)


def best_of_all(given, size):
    """The smallest error of any widths within a size."""
    places = range(len(BIT_WIDTHS))
    rows = range(len(given.names))
    return min(
        sum(given.errors[row, place] for row, place in zip(rows, chosen))
        for chosen in itertools.product(places, repeat=len(rows))
        if given.fixed + sum(given.sizes[row, place] for row, place in zip(rows, chosen)) <= size
    )


@pytest.mark.parametrize("size", [279, 300, 377, 500, 640, 813, 5000])
def test_no_other_widths_of_the_size_have_a_smaller_error(size):
    given = choices()
    found = SizeCurve(given).within(size)
    rows = [given.names.index(name) for name in found.widths]
    places = [BIT_WIDTHS.index(bits) for bits in found.widths.values()]
    assert found.size == given.fixed + given.sizes[rows, places].sum() <= size
    assert found.error == pytest.approx(given.errors[rows, places].sum())
    assert found.error == pytest.approx(best_of_all(given, size))


def test_large_networks_are_compared_in_steps_and_never_exceed_the_size(monkeypatch):
    monkeypatch.setattr(allocation, "_UNITS", 50)
    given = choices(seed=1)
    curve = SizeCurve(given)
    for size in range(curve.smallest, 900, 37):
        found = curve.within(size)
        assert found.size <= size
        # each of the four layers is taken for up to a step of 11 bytes larger than it is
        assert best_of_all(given, size) <= found.error + 1e-12
        assert found.error <= best_of_all(given, max(size - 44, curve.smallest)) + 1e-12


def test_curve_falls_from_the_smallest_network_to_the_largest():
    given = choices()
    points = [(one.size, one.error) for one in SizeCurve(given).points()]
    assert points[0] == (279, pytest.approx(given.errors[:, 0].sum()))
    assert points[-1] == (813, pytest.approx(given.errors[:, -1].sum()))
    errors = [error for _, error in points]
    assert errors == sorted(errors, reverse=True)


def test_error_of_a_layer_is_that_of_its_rounded_weight_alone(small, small_images):
    images = small_images.images[:20]
    found = weight_choices(small, CONFIG, images, "x")
    assert found.names == ("conv1", "conv2", "output")
    network, x = small.network, small.normalize(images)
    weights = {name: network.get_submodule(name).weight for name in found.names}

    def scores(changed):
        own = {**weights, **changed}
        hidden = F.relu(network.bn1(F.conv2d(x, own["conv1"], padding=1)))
        pooled = F.relu(network.bn2(F.conv2d(hidden, own["conv2"], padding=1)) + hidden).mean(dim=(2, 3))
        return F.linear(pooled, own["output"], network.output.bias).double()

    with torch.no_grad():
        for row, name in enumerate(found.names):
            for place, bits in enumerate(BIT_WIDTHS):
                # the ranges of each output channel, from a calibration at this width
                quantized = calibrate(small, replace(CONFIG, weight_bits=bits), images, "x")
                quantizer = quantized.layers[row].weight_quantizer
                rounded = torch.fake_quantize_per_channel_affine(
                    weights[name], quantizer.scale.flatten(), quantizer.zero_point.flatten().int(), 0, quantizer.lowest, quantizer.highest
                )
                change = scores({name: rounded}) - scores({})
                expected = (change - change.mean(dim=1, keepdim=True)).square().sum(dim=1).mean()
                assert found.errors[row, place] == pytest.approx(float(expected), rel=1e-3), (name, bits)
                assert found.sizes[row, place] == -(-weights[name].numel() * bits // 8)


def test_errors_are_those_that_the_correction_leaves(small, small_images):
    """Without what the BatchNorm layer behind a convolution takes back."""
    images = small_images.images[:20]
    plain = weight_choices(small, CONFIG, images, "x")
    left = weight_choices(small, replace(CONFIG, correct_statistics=True), images, "x")
    assert left.errors[2] == pytest.approx(plain.errors[2])  # no BatchNorm layer is behind the output
    assert left.errors[:2].sum() < plain.errors[:2].sum()


def test_network_keeps_to_the_size_and_is_read_back(small, small_images, tmp_path):
    uniform = packed_bytes(calibrate(small, CONFIG, small_images.images, "x"))
    training = QuantizationTraining(small, small_images, replace(CONFIG, size=uniform / 1000))
    assert packed_bytes(training.quantized) == training.allocation["bytes"] <= uniform
    widths = dict(training.config.layer_weight_bits)
    assert set(widths) == {"conv1", "conv2", "output"}
    assert [layer.weight_quantizer.bits for layer in training.quantized.layers] == [widths[name] for name in training.quantized.names]
    assert {quantizer.quantizer.bits for quantizer in training.quantized.activations} == {4}
    assert training.allocation["layers"] == list(widths) == training.quantized.names
    assert training.allocation["bits"] == list(widths.values())
    assert training.allocation["curve"][-1]["bits"] == [8, 8, 8]
    given = weight_choices(small, CONFIG, small.normalize(training.source.calibration_images(32)[0]), "x")
    assert training.allocation["error"] <= given.errors[:, BIT_WIDTHS.index(4)].sum()
    while not training.finished:
        training.step()
    images = small.normalize(small_images.images[:8])
    read = load_quantized(save_quantized(training.quantized, training.config, tmp_path), small)
    with torch.no_grad():
        assert torch.equal(read.network(images), training.quantized.network(images))


def test_widths_that_are_known_are_not_chosen_again(small, small_images):
    known = replace(CONFIG, size=1.0, layer_weight_bits={"conv1": 2})
    training = QuantizationTraining(small, small_images, known)
    assert training.allocation is None
    assert [layer.weight_quantizer.bits for layer in training.quantized.layers] == [2, 4, 4]


def test_layers_with_a_width_of_their_own_keep_it(small, small_images):
    config, _ = chosen_widths(small, replace(CONFIG, size=1000, layer_bits={"conv2": 3}), small_images.images, "x")
    assert dict(config.layer_weight_bits) == {"conv1": 8, "conv2": 3, "output": 8}


def test_size_below_the_smallest_network_is_refused_before_and_with_images(small, small_images):
    smallest = packed_bytes(calibrate(small, replace(CONFIG, weight_bits=2), small_images.images, "x"))
    check_size(small, replace(CONFIG, size=smallest / 1000))
    wanted = replace(CONFIG, size=smallest / 1000 - 0.001)
    said = f"^size must be at least {smallest / 1000:g} kB, that of this network at 2 bits, got {wanted.size:g} kB$"
    for refused in (lambda: check_size(small, wanted), lambda: QuantizationTraining(small, small_images, wanted)):
        with pytest.raises(CoreError, match=said):
            refused()
