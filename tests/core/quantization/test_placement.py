import copy

import pytest
import torch
import torch.nn.functional as F
from placed import CONFIG, Undecided, calibrate, images, place, readings
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import nn

from core.config import TrainingConfig
from core.errors import ModelError, UnknownNameError
from core.quantization.layers import QuantizedConv2d, QuantizedLinear
from core.quantization.placement import check_layer_bits, quantize_network


@pytest.fixture(autouse=True)
def seed():
    """The networks below always have the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_float_until_calibrated(small):
    quantized = place(small.network)
    with torch.no_grad():
        torch.testing.assert_close(quantized.network(images()), small.network(images()))


def test_small_network_by_hand(small):
    quantized = place(small.network, TrainingConfig(weight_bits=2, activation_bits=2, range="mse"))
    assert quantized.traced
    assert quantized.note == ""
    assert [type(layer) for layer in quantized.layers] == [QuantizedConv2d, QuantizedConv2d, QuantizedLinear]
    # after the first ReLU, and after the pooling, whose values flatten preserves; not the image, not the sum of the residual block
    assert len(quantized.activations) == 2
    calibrate(quantized, images())
    conv1, conv2, output = (layer.quantized_weight() for layer in quantized.layers)
    net, (first, second) = small.network, quantized.activations
    assert float(first.quantizer.scale) != float(second.quantizer.scale)
    with torch.no_grad():
        x = first(F.relu(net.bn1(F.conv2d(images(), conv1, padding=1))))
        assert len(x.unique()) <= 4
        x = F.relu(net.bn2(F.conv2d(x, conv2, padding=1)) + x)  # both branches read quantized values
        expected = F.linear(second(x.mean(dim=(2, 3))), output, net.output.bias)
        torch.testing.assert_close(quantized.network(images()), expected)


def test_network_is_unchanged(small):
    network = small.network.train()
    before = copy.deepcopy(network.state_dict())
    modules = [(name, id(module)) for name, module in network.named_modules()]
    quantized = place(network.train())
    calibrate(quantized, images())
    quantized.network.train()(images()).sum().backward()
    with torch.no_grad():
        for parameter in quantized.network.parameters():
            parameter.add_(1)
    assert [(name, id(module)) for name, module in network.named_modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in quantized.network.modules())


def test_network_in_training_mode_is_unchanged(small):
    network = small.network.train()
    statistics = network.bn1.running_mean.clone()
    quantized = quantize_network(network, CONFIG, images()[:2])
    assert network.training
    assert torch.equal(network.bn1.running_mean, statistics)
    assert not quantized.network.training


def test_placement_in_the_embedded_network(embedded):
    quantized = quantize_network(embedded.network, CONFIG, torch.zeros(1, 3, 32, 32))
    # 1 stem, 9 units of 2, 2 projections, 1 classifier
    assert len(quantized.layers) == 22
    # the stem output, the middle of 9 units, the end of the first 8, and the pooled end of the ninth; projections share a quantizer
    assert len(quantized.activations) == 19
    assert quantized.traced


@pytest.mark.parametrize(
    "passes_on",
    [
        [nn.MaxPool2d(2)],
        [nn.Dropout(0.5), nn.Identity()],
        [nn.MaxPool2d(3, 2, 1), nn.Dropout2d(0.5)],
        [nn.MaxPool2d(2), nn.Flatten(2), nn.Unflatten(2, (4, 4))],
    ],
)
def test_value_preserving_operations_share_a_quantizer(passes_on):
    class Fork(nn.Module):
        """One convolution reads the ReLU, the other the result of value-preserving operations on it."""

        def __init__(self):
            super().__init__()
            self.first, self.relu, self.passes_on = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Sequential(*passes_on)
            self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.relu(self.first(x))
            return self.left(x).mean(dim=(2, 3)) + self.right(self.passes_on(x)).mean(dim=(2, 3))

    quantized = place(Fork())
    assert len(quantized.activations) == 1
    calibrate(quantized, images())
    assert readings(quantized) == [8]


@pytest.mark.parametrize("between", [[], [nn.AvgPool2d(2)], [nn.ReLU(), nn.AvgPool2d(2)], [nn.ReLU(), nn.MaxPool2d(2)]])
def test_layer_input_is_on_the_grid(between):
    quantized = place(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *between, nn.Conv2d(4, 2, 1)))
    assert len(quantized.activations) == 1
    calibrate(quantized, images())
    read = []
    quantized.layers[1].register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    quantized.network(images())
    assert 2 < len(read[0].unique()) <= 8


def test_tensor_read_by_two_layers_is_quantized_once():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.left(x) + self.right(x)

    quantized = place(Fork())
    assert len(quantized.activations) == 1
    assert len(quantized.layers) == 3
    calibrate(quantized, images())
    assert readings(quantized) == [8]


def test_functional_network():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.conv1(x)), 2)
            x = F.dropout(torch.relu(self.conv2(x)), 0.5, self.training)
            x = x.view(x.size(0), -1)
            return self.fc2(F.relu(self.fc1(x)).flatten(1))

    quantized = place(Functional())
    assert quantized.traced
    assert (len(quantized.layers), len(quantized.activations)) == (4, 3)
    producers = [node.args[0] for node in quantized.network.graph.nodes if str(node.target).startswith("activation_quantizer")]
    assert all("relu" in producer.name for producer in producers)
    calibrate(quantized, images())
    assert all(2 < values <= 8 for values in readings(quantized))


def test_image_is_not_quantized_even_after_pooling():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.left, self.right = nn.MaxPool2d(2), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.left(self.pool(x)) + self.right(x)[:, :, ::2, ::2]

    quantized = place(Pooled())
    assert quantized.activations == []


def test_layer_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.alias = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), None
            self.alias = self.shared

        def forward(self, x):
            return self.alias(F.relu(self.shared(F.relu(self.stem(x)))))

    quantized = place(Twice())
    assert (len(quantized.layers), len(quantized.activations)) == (2, 2)
    calibrate(quantized, images())
    assert all(2 < values <= 8 for values in readings(quantized))
    assert not [type(m) for m in quantized.network.modules() if type(m) is nn.Conv2d]


def test_first_and_last_layer_at_8_bits(small):
    config = TrainingConfig(weight_bits=3, activation_bits=2, first_last_8bit=True)
    quantized = place(small.network, config)
    assert [layer.weight_quantizer.bits for layer in quantized.layers] == [8, 3, 8]
    assert [quantizer.quantizer.bits for quantizer in quantized.activations] == [2, 8]
    plain = place(small.network, TrainingConfig(weight_bits=3, activation_bits=2))
    assert [layer.weight_quantizer.bits for layer in plain.layers] == [3, 3, 3]
    assert [quantizer.quantizer.bits for quantizer in plain.activations] == [2, 2]


def test_layer_bits(small):
    config = TrainingConfig(weight_bits=3, activation_bits=2, first_last_8bit=True, layer_bits={"conv2": 5, "output": 4})
    quantized = place(small.network, config)
    assert quantized.names == ["conv1", "conv2", "output"]
    assert [layer.weight_quantizer.bits for layer in quantized.layers] == [8, 5, 4]
    assert [quantizer.quantizer.bits for quantizer in quantized.activations] == [5, 4]
    assert quantized.inputs == dict(zip(("conv2", "output"), quantized.activations))
    assert quantized.weight_size == 216 * 8 + 576 * 5 + 32 * 4
    calibrate(quantized, images())
    # a channel has 27, 72 and 8 weights
    most = [max(len(channel.unique()) for channel in layer.quantized_weight()) for layer in quantized.layers]
    assert 16 < most[0] <= 27
    assert 16 < most[1] <= 32
    assert 4 < most[2] <= 8


def test_activation_read_by_several_layers_has_their_largest_bit_width():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.left(x) + self.right(x)

    for layer_bits, bits in (({"left": 6}, 6), ({"left": 2}, 4), ({"left": 2, "right": 3}, 3)):
        quantized = place(Fork(), TrainingConfig(layer_bits=layer_bits))
        assert [quantizer.quantizer.bits for quantizer in quantized.activations] == [bits]
        assert quantized.inputs["left"] is quantized.inputs["right"]


def test_unknown_layer_in_layer_bits_is_refused(small):
    with pytest.raises(UnknownNameError, match="unknown layer in layer_bits 'conv9': must be one of conv1, conv2, output"):
        place(small.network, TrainingConfig(layer_bits={"conv9": 4}))
    with pytest.raises(UnknownNameError, match="conv9"):
        check_layer_bits(small.network, TrainingConfig(layer_bits={"conv1": 4, "conv9": 4}), images()[:1])
    check_layer_bits(small.network, TrainingConfig(layer_bits={"conv1": 4}), images()[:1])


def test_subclass_of_a_convolution_is_quantized():
    class Convolution(nn.Conv2d):
        """As libraries define them: only the name differs."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Convolution(3, 4, 3), Convolution(4, 2, 3)

        def forward(self, x):
            return self.second(F.relu(self.first(x)))

    quantized = place(Network())
    ran = []
    for layer in quantized.layers:
        layer.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
    calibrate(quantized, images())
    assert len(quantized.activations) == 1
    assert ran == quantized.layers


def test_subclass_with_its_own_forward_computes_the_same_or_is_refused():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True), self.bias)

    network = Undecided()
    network.middle = Standardised(4, 4, 3)
    try:
        quantized = place(network)
    except ModelError:
        return  # an error is correct as well
    torch.testing.assert_close(quantized.network(images()), network(images()))


class SamePadded(nn.Module):
    """timm's convolutions whose padding depends on the input size: uneven, none, and equal on all sides."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 1), Conv2dSame(4, 2, 3)

    def forward(self, x):
        return self.third(self.second(F.relu(self.first(x))))


@pytest.mark.parametrize("size", [8, 9])
def test_padding_that_depends_on_the_size_is_fixed(size):
    network = SamePadded()
    quantized = quantize_network(network.eval(), CONFIG, images(size)[:1])
    assert quantized.traced
    assert (len(quantized.layers), len(quantized.activations)) == (3, 2)
    with torch.no_grad():
        assert torch.equal(quantized.network(images(size)), network(images(size)))
    assert isinstance(network.first, Conv2dSame)
    calibrate(quantized, images(size))
    read = []
    quantized.layers[2].register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    quantized.network(images(size))
    assert 2 < len(read[0].unique()) <= 8  # the padding is on the grid as well


def test_padding_for_several_sizes_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = Conv2dSame(3, 3, 3, stride=2)

        def forward(self, x):
            return self.shared(self.shared(x))

    with pytest.raises(ModelError, match=r"^input of layer 'shared' must have one size, because .*, got \[\(8, 8\), \(4, 4\)\]$"):
        place(Twice())


def test_timm_layers_that_compute_the_same_are_quantized():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU), nn.Conv2d(4, 4, 1), nn.Flatten(), TimmLinear(144, 2))
    quantized = place(network)
    assert quantized.traced
    assert [type(layer) for layer in quantized.layers] == [QuantizedConv2d, QuantizedConv2d, QuantizedLinear]
    # not split, so that training can compare its output with the teacher's
    assert sum(isinstance(module, BatchNormAct2d) for module in quantized.network.modules()) == 1
    with torch.no_grad():
        assert torch.equal(quantized.network(images()), network(images()))


def test_note_names_weights_in_full_precision():
    class Attention(nn.Module):
        """Attention over channels, as in ECA-Net, with its own parameter."""

        def __init__(self):
            super().__init__()
            self.conv, self.over, self.table = nn.Conv2d(3, 4, 1), nn.Conv1d(1, 1, 3, padding=1), nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x):
            x = self.conv(x)
            return x * self.table * self.over(x.mean(dim=(2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)

    quantized = place(Attention())
    assert quantized.traced
    assert quantized.note == "weights in full precision: Attention (1), Conv1d (1)"


def test_network_without_layers_is_refused():
    with pytest.raises(ModelError, match="^Sequential must have at least one Conv2d or Linear layer, got none$"):
        place(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
