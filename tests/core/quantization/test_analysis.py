"""Analysis against independent computations: grid positions in numpy, and network outputs written out without hooks."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.config import RANGE_METHODS, TrainingConfig
from core.models.full_precision import FullPrecisionModel
from core.quantization.analysis import ANALYZED_IMAGES, analyze, beside_calibrated, sqnr, weight_steps
from core.quantization.training import QuantizationTraining


def trained(model, images, **changes) -> QuantizationTraining:
    config = TrainingConfig(**{"weight_bits": 3, "activation_bits": 4, "steps": 2, "crop_padding": 1, **changes})
    training = QuantizationTraining(model, images, config)
    while not training.finished:
        training.step()
    return training


def seen(training) -> torch.Tensor:
    return training.source.images.images[training.calibrated_on]


def figures(model, training) -> dict:
    found = analyze(model, training.quantized, seen(training))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_sqnr_by_hand():
    # 3^2 + 4^2 = 25 and 0.3^2 + 0.4^2 = 0.25
    assert sqnr(25, 0.25) == pytest.approx(20)
    assert sqnr(1, 1) == 0
    assert sqnr(0, 1) is None
    assert sqnr(1, 0) is None


def decibels(exact: torch.Tensor, quantized: torch.Tensor) -> float:
    exact, quantized = exact.detach().numpy().astype(np.float64), quantized.detach().numpy().astype(np.float64)
    return 10 * math.log10((exact**2).sum() / ((quantized - exact) ** 2).sum())


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_sqnr_against_the_networks_written_out(small, small_images, method):
    training = trained(small, small_images, range=method)
    found = figures(small, training)
    assert found["images"] == 64
    assert [layer["name"] for layer in found["layers"]] == ["conv1", "conv2", "output"]
    x = small.normalize(seen(training))
    teacher, student = small.network, training.student
    quantizers = training.quantized.activations
    # the small network, written out
    hidden = F.relu(teacher.bn1(teacher.conv1(x)))
    exact = [teacher.conv1(x), teacher.conv2(hidden)]
    pooled = F.relu(teacher.bn2(exact[1]) + hidden).mean(dim=(2, 3))
    exact.append(teacher.output(pooled))
    weights = [layer.quantized_weight() for layer in training.quantized.layers]
    first = F.conv2d(x, weights[0], padding=1)
    unrounded = F.relu(student.bn1(first))
    rounded = quantizers[0](unrounded)
    second = F.conv2d(rounded, weights[1], padding=1)
    averages = F.relu(student.bn2(second) + rounded).mean(dim=(2, 3))
    last = F.linear(quantizers[1](averages), weights[2], student.output.bias)
    for layer, y, z in zip(found["layers"], exact, (first, second, last)):
        assert layer["sqnr"] == pytest.approx(decibels(y, z), abs=0.01)
    assert found["layers"][0]["input"] is None
    assert found["layers"][1]["input"]["sqnr"] == pytest.approx(decibels(unrounded, rounded), abs=0.01)
    assert found["layers"][2]["input"]["sqnr"] == pytest.approx(decibels(averages, quantizers[1](averages)), abs=0.01)
    plain = F.conv2d(rounded, student.conv2.weight, padding=1)
    assert found["layers"][1]["weight_sqnr"] == pytest.approx(decibels(plain, second), abs=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_histogram_against_numpy(small, small_images, bits):
    training = trained(small, small_images, weight_bits=bits, steps=1)
    for figure, layer in zip(figures(small, training)["layers"], training.quantized.layers):
        weight = layer.weight.detach().numpy()
        shape = (-1, *[1] * (weight.ndim - 1))
        scale, zero_point = (v.detach().numpy().reshape(shape) for v in (layer.weight_quantizer.scale, layer.weight_quantizer.zero_point))
        positions = weight / scale + zero_point
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        grid = figure["weight"]
        assert (grid["lowest"], grid["highest"], figure["bits"], figure["weights"]) == (lowest, highest, bits, weight.size)
        edges = np.linspace(lowest - 0.5, highest + 0.5, 65)
        counts, _ = np.histogram(positions, edges)
        histogram = grid["histogram"]
        assert (len(histogram["counts"]), sum(histogram["counts"])) == (80, weight.size)
        # a weight on the edge of a bin may be counted on either side
        assert np.abs(np.array(histogram["counts"][8:-8]) - counts).sum() <= 2
        assert histogram["start"] + 8 * histogram["width"] == lowest - 0.5
        assert histogram["width"] * 64 == 2**bits
        outside = (positions < lowest - 0.5) | (positions > highest + 0.5)
        assert grid["clipped"] == pytest.approx(100 * outside.mean(), abs=0.5)
        assert grid["scale"] == pytest.approx([scale.min(), scale.max()], rel=1e-5)
        assert grid["zero_point"] == [int(zero_point.min()), int(zero_point.max())]


def test_histogram_of_an_input_counts_every_value(small, small_images):
    training = trained(small, small_images)
    first, second, last = figures(small, training)["layers"]
    assert sum(second["input"]["histogram"]["counts"]) == 64 * 8 * 8 * 8
    assert sum(last["input"]["histogram"]["counts"]) == 64 * 8
    assert second["input"]["bits"] == 4
    # ReLU outputs are never below zero, which is the lowest level
    zero = second["input"]["zero_point"][0]
    assert zero == second["input"]["lowest"] == -8
    assert sum(second["input"]["histogram"]["counts"][:8]) == 0


def test_more_bits_give_less_error(small, small_images):
    errors = {}
    for bits in (2, 4, 8):
        layers = figures(small, trained(small, small_images, weight_bits=bits, activation_bits=bits, steps=0))["layers"]
        errors[bits] = [layer["sqnr"] for layer in layers]
    for few, more, most in zip(*errors.values()):
        assert few < more < most
    # each additional bit halves the step, which is 6 dB
    assert errors[8][0] - errors[4][0] == pytest.approx(24, abs=5)


def test_steps_of_weights_by_hand(small, small_images):
    """3 bits have the levels -4 to 3."""
    training = trained(small, small_images, steps=0, range="mse")
    layer = training.quantized.layers[0]
    quantizer = layer.weight_quantizer
    with torch.no_grad():
        quantizer.fixed_scale.fill_(0.5)
        quantizer.zero_point.fill_(-1)
        quantizer.fixed_scale[1], quantizer.zero_point[1] = 0.25, 2
        layer.weight.zero_()
        layer.weight[:2, 0, 0] = torch.tensor([[0.7, -0.3, 9.0], [0.7, -0.3, -9.0]])
    steps = weight_steps(training.quantized)[0]
    assert steps.shape == layer.weight.shape
    # 1.4, -0.6, and the highest level, 3 - -1; in the other channel 2.8, beyond the highest level 3 - 2, -1.2, and the lowest, -4 - 2
    assert steps[:2, 0, 0].tolist() == [[1, -1, 4], [1, -1, -6]]
    assert steps[2:].abs().sum() == 0
    assert torch.equal((steps[:1] * 0.5), layer.quantized_weight()[:1])


def test_layers_beside_the_calibrated_ones_by_hand():
    layers = [{"name": "stem", "sqnr": 20.0, "weight": "trained weights", "input": None}, {"name": "b", "weight": "w", "input": "i"}]
    before = [{"name": "stem", "sqnr": 10.0, "weight": "its weights", "input": None}, {"name": "b", "weight": "v", "input": "h"}]
    steps = [torch.tensor([[0, 1], [2, -3]]), torch.tensor([1, 1, 1])]
    found = beside_calibrated(layers, steps, before, [torch.tensor([[0, 1], [2, -2]]), torch.tensor([0, 1, 2])])
    assert found == [
        {**layers[0], "calibrated": {"weight": "its weights", "input": None}, "moved": 25.0},
        {**layers[1], "calibrated": {"weight": "v", "input": "h"}, "moved": 66.667},
    ]


def test_both_networks_are_unchanged(small, small_images):
    training = trained(small, small_images, range="minmax")
    with torch.no_grad():
        training.student(small.normalize(small_images.images))  # only a forward pass updates its weight ranges
    before = copy.deepcopy(training.student.state_dict())
    figures(small, training)
    assert all(torch.equal(value, before[name]) for name, value in training.student.state_dict().items())
    for network in (small.network, training.student):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
        assert not network.training


def test_only_the_first_images_are_used(small, small_images):
    training = trained(small, small_images, steps=0)
    many = torch.cat([seen(training), seen(training).flip(3)])
    assert analyze(small, training.quantized, many) == analyze(small, training.quantized, many[:ANALYZED_IMAGES])


class Twice(nn.Module):
    """One layer that runs twice, in an untraceable network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.shared, self.output = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x if x.mean() < 1e9 else -x)))
        x = self.shared(F.relu(self.shared(x)))
        return self.output(x.mean(dim=(2, 3)))


def test_layer_that_runs_twice_in_an_untraceable_network(small, small_images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = FullPrecisionModel(Twice().eval().requires_grad_(False), small.spec)
    training = trained(model, small_images, steps=0)
    assert not training.quantized.traced
    layers = {layer["name"]: layer for layer in figures(model, training)["layers"]}
    assert list(layers) == ["stem", "shared", "output"]
    shared = []
    for network in (model.network, training.student):
        outputs = []
        handle = network.shared.register_forward_hook(lambda _m, _a, output, outputs=outputs: outputs.append(output.clone()))
        with torch.no_grad():
            network(model.normalize(seen(training)))
        handle.remove()
        shared.append(torch.cat([output.flatten() for output in outputs]))
    assert layers["shared"]["sqnr"] == pytest.approx(decibels(*shared), abs=0.01)
    assert sum(layers["shared"]["input"]["histogram"]["counts"]) == 2 * 64 * 4 * 6 * 6
