import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.config import BIT_WIDTHS, RANGE_METHODS, TrainingConfig
from core.errors import ModelError
from core.quantization.integer.weights import FixedQuantizer, IntegerWeight, integer_network
from core.quantization.placement import quantize_network


def outputs(network, images):
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("name", ["small", "Mobile", "Untraceable", "Undecided"])
@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_outputs_are_bit_identical(model, calibrated, images, name, bits):
    quantized, _ = calibrated(model(name), bits)
    assert quantized.traced == (name in ("small", "Mobile"))
    assert torch.equal(outputs(integer_network(quantized), images), outputs(quantized.network, images))


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_every_range_method(model, calibrated, images, method):
    quantized, _ = calibrated(model("Mobile"), 3, range=method)
    network = integer_network(quantized)
    assert torch.equal(outputs(network, images), outputs(quantized.network, images))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_weights_are_integers_within_their_bit_width(small, calibrated, bits):
    quantized, _ = calibrated(small, bits)
    weights = [module for module in integer_network(quantized).modules() if isinstance(module, IntegerWeight)]
    assert len(weights) == len(quantized.layers) == 3
    for weight, layer in zip(weights, quantized.layers):
        assert weight.integers.dtype == weight.zero_point.dtype == torch.int8
        assert int(weight.integers.min()) >= -(2 ** (bits - 1))
        assert int(weight.integers.max()) <= 2 ** (bits - 1) - 1
        assert torch.equal(weight(), layer.quantized_weight())


def test_quantized_network_is_unchanged(small, calibrated):
    quantized, _ = calibrated(small, 4)
    before, kinds = copy.deepcopy(quantized.network.state_dict()), [type(module) for module in quantized.network.modules()]
    network = integer_network(quantized)
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:
            value.zero_()
    assert [type(module) for module in quantized.network.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in quantized.network.state_dict().items())


def test_layer_with_two_names_stays_one_layer(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.other = nn.Sequential(self.shared)

        def forward(self, x):
            return self.other(F.relu(self.shared(F.relu(self.stem(x)))))

    quantized = quantize_network(Twice().eval(), TrainingConfig(range="mse"), images[:1])
    for quantizer in quantized.activations:
        quantizer.observing = True
    outputs(quantized.network, images)
    for module in [*quantized.activations, *quantized.layers]:
        module.finish_calibration()
    network = integer_network(quantized)
    assert torch.equal(outputs(network, images), outputs(quantized.network, images))
    assert sum(isinstance(module, IntegerWeight) for module in network.modules()) == 2
    assert sum(isinstance(module, FixedQuantizer) for module in network.modules()) == 2


def test_uncalibrated_network_is_refused(small, images):
    quantized = quantize_network(small.network, TrainingConfig(), images[:1])
    with pytest.raises(ModelError, match=r"^network must be calibrated, but quantizer \S+ has no range$"):
        integer_network(quantized)
