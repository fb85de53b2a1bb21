import copy

import pytest
import torch
from torch import nn

from core.config import RANGE_METHODS, TrainingConfig
from core.quantization.layers import ActivationQuantizer, QuantizedConv2d, QuantizedLinear, finish_calibration, from_module
from core.quantization.ranges.base import RangeFactory, range_method

IMAGES = (2, 4, 9, 11)
SOURCES = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "no bias": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(4, 6, (3, 2), dilation=2, padding=(2, 1)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False),
    "same padding": lambda: nn.Conv2d(4, 6, 5, padding="same"),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"),
    "linear": lambda: nn.Linear(11, 6),
    "linear without bias": lambda: nn.Linear(11, 6, bias=False),
}


@pytest.fixture(autouse=True)
def seed():
    """The layers below always have the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=SOURCES)
def source(request) -> nn.Module:
    return SOURCES[request.param]()


def factory(method: str) -> RangeFactory:
    return range_method(TrainingConfig(range=method))


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_equals_the_float_layer_before_calibration(source, method):
    layer = from_module(source, 2, factory(method))
    assert isinstance(layer, QuantizedLinear if isinstance(source, nn.Linear) else QuantizedConv2d)
    assert layer.weight is source.weight
    assert layer.bias is source.bias
    assert torch.equal(layer(images()), source(images()))


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_close_to_the_float_layer_at_8_bits(source, method):
    layer = from_module(source, 8, factory(method))
    finish_calibration(layer)
    expected, got = source(images()).detach(), layer(images()).detach()
    assert not torch.equal(got, expected)
    assert float((got - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_gradients_are_close_to_the_float_layer_at_8_bits(source, method):
    layer = from_module(copy.deepcopy(source), 8, factory(method))
    finish_calibration(layer)
    upstream = torch.randn(source(images()).shape, generator=torch.Generator().manual_seed(2))
    inputs = []
    for module in (source, layer):
        x = images().requires_grad_()
        (module(x) * upstream).sum().backward()
        inputs.append(x.grad)
    pairs = [inputs, (source.weight.grad, layer.weight.grad)]
    if source.bias is not None:
        pairs.append((source.bias.grad, layer.bias.grad))
    for expected, got in pairs:
        cosine = torch.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
        assert float(cosine) > 0.99
        assert 0.98 < float(got.norm() / expected.norm()) < 1.02


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("bits", [2, 3])
def test_each_channel_has_at_most_2_to_the_bits_values(bits, method):
    source = nn.Conv2d(16, 4, 3)
    with torch.no_grad():
        source.weight[2] *= 50
    layer = from_module(source, bits, factory(method))
    finish_calibration(layer)
    weight = layer.quantized_weight().detach()
    assert all(1 < len(channel.unique()) <= 2**bits for channel in weight)
    assert float((weight - source.weight.detach()).norm()) < float(source.weight.detach().norm())


def test_minmax_range_follows_the_weight():
    layer = from_module(nn.Linear(8, 2, bias=False), 3, factory("minmax"))
    finish_calibration(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-4, 3, 8).repeat(2, 1))  # 8 levels in steps of 1
    torch.testing.assert_close(layer.quantized_weight().detach(), layer.weight.detach())


def test_mse_range_is_fixed_when_the_weight_changes():
    layer = from_module(nn.Linear(8, 2), 3, factory("mse"))
    finish_calibration(layer)
    end = layer.quantized_weight().detach().abs().max()
    with torch.no_grad():
        layer.weight.mul_(100)
    assert float(layer.quantized_weight().detach().abs().max()) <= float(end) * 2


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_activation_quantizer_phases(method):
    quantizer = ActivationQuantizer(2, factory(method)).eval()
    x = torch.linspace(-1, 2, 301)
    assert torch.equal(quantizer(x), x)
    quantizer.observing = True
    assert torch.equal(quantizer(x), x)
    quantizer.finish_calibration()
    y = quantizer(x).detach()
    assert len(y.unique()) == 4
    assert float((y - x).abs().mean()) < 0.5
    scale = float(quantizer.quantizer.scale.detach())
    quantizer(10 * x)
    assert float(quantizer.quantizer.scale.detach()) == scale


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_uncalibrated_activation_passes_through_in_training(method):
    x = torch.linspace(-1, 2, 301)
    assert torch.equal(ActivationQuantizer(2, factory(method)).train()(x), x)


def test_minmax_activation_observes_in_training_only():
    quantizer = ActivationQuantizer(2, factory("minmax"))
    quantizer.observing = True
    quantizer(torch.tensor([0.0, 3.0]))
    quantizer.finish_calibration()
    quantizer.train()(torch.tensor([0.0, 13.0]))  # 0.9 * 3 + 0.1 * 13 = 4 over three steps
    torch.testing.assert_close(quantizer.quantizer.scale, torch.tensor(4 / 3))
    quantizer.eval()(torch.tensor([0.0, 99.0]))
    torch.testing.assert_close(quantizer.quantizer.scale, torch.tensor(4 / 3))


def test_gradients_of_a_strided_pointwise_layer_with_few_channels():
    """Compared with double precision, where torch does not use oneDNN, whose gradient is wrong and may crash the process."""
    source = nn.Conv2d(4, 8, 1, stride=2, bias=False)
    inputs = torch.randn(32, 4, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)
    expected = copy.deepcopy(source).double()
    expected(inputs.double()).square().sum().backward()
    layer = from_module(source, 8, factory("minmax"))
    output = layer(inputs)
    output.square().sum().backward()
    torch.testing.assert_close(output.double(), expected(inputs.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), expected.weight.grad, rtol=1e-4, atol=1e-3)
