"""Networks that torch.fx cannot trace: the input of each layer is quantized."""

import pytest
import torch
import torch.nn.functional as F
from placed import Undecided, calibrate, images, place, readings
from torch import nn

from core.config import TrainingConfig
from core.quantization.layers import ActivationQuantizer


@pytest.fixture(autouse=True)
def seed():
    """The networks below always have the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_layer_bits_in_an_untraceable_network():
    quantized = place(Undecided(), TrainingConfig(layer_bits={"middle": 7, "stem": 2}))
    assert [layer.weight_quantizer.bits for layer in quantized.layers] == [2, 4, 7, 4]
    assert {name: quantizer.quantizer.bits for name, quantizer in quantized.inputs.items()} == {"middle": 7, "output": 4}


def test_results_cached_during_a_failed_trace_are_discarded():
    class Remembering(Undecided):
        def __init__(self):
            super().__init__()
            self.table, self.cache = nn.Parameter(torch.ones(2)), []

        def forward(self, x):
            if not self.cache:
                self.cache.append(self.table * 2)
            return super().forward(x) + self.cache[0]

    network = Remembering()
    quantized = place(network)
    assert not quantized.traced
    torch.testing.assert_close(quantized.network(images()), network(images()))


@pytest.mark.parametrize("first_last", [False, True])
def test_untraceable_network_is_quantized_at_layer_inputs(first_last):
    network = Undecided()
    config = TrainingConfig(weight_bits=4, activation_bits=3, range="mse", first_last_8bit=first_last)
    before = network(images())
    quantized = place(network, config)
    assert not quantized.traced
    assert "cannot be traced" in quantized.note
    assert "each layer's input" in quantized.note
    assert "\n" not in quantized.note
    kinds = [type(layer.input_quantizer) for layer in quantized.layers]
    assert kinds == [nn.Identity, nn.Identity, ActivationQuantizer, ActivationQuantizer]  # stem and side read the image
    assert len(quantized.activations) == 2
    assert [quantizer.quantizer.bits for quantizer in quantized.activations] == ([3, 8] if first_last else [3, 3])
    torch.testing.assert_close(quantized.network(images()), before)
    calibrate(quantized, images())
    middle, output = readings(quantized)
    assert 2 < middle <= 8
    assert 2 < output <= (256 if first_last else 8)
    assert not torch.equal(quantized.network(images()), before)
    assert torch.equal(network(images()), before)


def test_untraceable_network_that_flattens_the_image():
    class Perceptron(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(192, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = self.first(x.flatten(1))
            return self.second(x if x.mean() > 0 else -x)

    quantized = place(Perceptron())
    assert not quantized.traced
    # as in a graph, where flatten is value-preserving: the image itself is not quantized
    assert [type(layer.input_quantizer) for layer in quantized.layers] == [nn.Identity, ActivationQuantizer]


def test_layer_with_two_names_in_an_untraceable_network():
    """The second name also refers to the quantized layer."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.alias = self.shared

        def forward(self, x):
            x = F.relu(self.stem(x if x.mean() < 1e9 else -x))
            return self.alias(F.relu(self.shared(x)))

    quantized = place(Twice())
    assert not quantized.traced
    assert quantized.network.alias is quantized.network.shared is quantized.layers[1]
    calibrate(quantized, images())
    assert len(readings(quantized)) == 2  # both uses of the layer quantize their input
