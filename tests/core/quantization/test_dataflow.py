"""What a network does with the image before its first layers does not make the image an activation."""

import pytest
import torch
import torch.nn.functional as F
from placed import place
from torch import nn

from core.quantization.layers import ActivationQuantizer


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Normalized(nn.Module):
    """(x - mean) / std, as a program does it with its own tensors."""

    def __init__(self, kind) -> None:
        super().__init__()
        mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
        if kind == "parameters":
            self.mean, self.std = nn.Parameter(mean), nn.Parameter(std)
        else:
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)

    def forward(self, x):
        return (x - self.mean) / self.std


class WrittenInPlace(nn.Module):
    def forward(self, x):
        x = x.clone()
        x[:, 0].sub_(0.5).div_(0.25)
        return x.clamp_(-2, 2)


class Frequencies(nn.Module):
    """A fixed filter, such as a blur or a change of color space."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.randn(3, 3, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.filter)


class DepthwiseFunction(nn.Module):
    """A depthwise convolution whose weight is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight * 2, groups=3)


def focus(x):
    """The first operation of YOLO networks."""
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)


# what stands before the first layer, and the channels that it reads
BEFORE = {
    "nothing": (nn.Identity(), 3),
    "buffers": (Normalized("buffers"), 3),
    "parameters": (Normalized("parameters"), 3),
    "numbers": (Function(lambda x: x * 255 - 127.5), 3),
    "batch norm": (nn.BatchNorm2d(3), 3),
    "depthwise convolution": (nn.Conv2d(3, 3, 1, groups=3), 3),
    "two depthwise convolutions": (nn.Sequential(nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Conv2d(3, 3, 1, groups=3)), 3),
    "depthwise function": (DepthwiseFunction(), 3),
    "instance norm": (nn.InstanceNorm2d(3, affine=True), 3),
    "layer norm": (nn.LayerNorm([3, 8, 8]), 3),
    "max pooling": (nn.MaxPool2d(2), 3),
    "average pooling": (nn.AvgPool2d(2), 3),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 12),
    "focus": (Function(focus), 12),
    "interpolation": (Function(lambda x: F.interpolate(x, size=12, mode="bilinear")), 3),
    "clamping": (Function(lambda x: x.clamp(-1, 1)), 3),
    "in place": (WrittenInPlace(), 3),
    "dtype": (Function(lambda x: (x.double() / 3).float()), 3),
    "layout": (Function(lambda x: x.to(memory_format=torch.channels_last).contiguous()), 3),
    "permutation": (Function(lambda x: x.permute(0, 2, 3, 1).flip(3).permute(0, 3, 1, 2)), 3),
    "padding": (Function(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), 3),
    "gray": (Function(lambda x: x.mean(dim=1, keepdim=True)), 1),
    "nonlinearity": (nn.PReLU(3), 3),
    "fixed filter": (Frequencies(), 3),
    "two": (nn.Sequential(Normalized("buffers"), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.PixelUnshuffle(2)), 12),
}


class Behind(nn.Module):
    """Two layers that read the image behind `before`, and one behind them."""

    def __init__(self, before: nn.Module, channels: int, traceable: bool) -> None:
        super().__init__()
        self.before, self.traceable = before, traceable
        self.left, self.right, self.last = nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        if not self.traceable and x.mean() > 1e9:
            return x
        x = self.before(x)
        return self.last(F.relu(self.left(x)) + self.right(x))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("name", BEFORE)
def test_first_layers_read_the_image(name, traceable):
    quantized = place(Behind(*BEFORE[name], traceable))
    assert quantized.traced == traceable
    assert list(quantized.inputs) == ["last"]
    assert len(quantized.activations) == 1
    kinds = [type(layer.input_quantizer) for layer in quantized.layers]
    assert kinds == [nn.Identity, nn.Identity, nn.Identity if traceable else ActivationQuantizer]


class Stem(nn.Module):
    """A trained first layer that is no Conv2d or Linear module."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight, self.table = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(3, 8, 8))
        self.transposed, self.rows = nn.ConvTranspose2d(3, 4, 1), nn.Conv1d(3, 4, 1)

    def forward(self, x):
        if self.kind == "function":
            return F.conv2d(x, self.weight - self.weight.mean())
        if self.kind == "transposed":
            return self.transposed(x)
        if self.kind == "matrix":
            return torch.einsum("nchw,dc->ndhw", x, self.weight[:, :, 0, 0])
        return self.rows(x.flatten(2)).unflatten(2, (8, 8))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("kind", ["function", "transposed", "matrix", "rows"])
def test_behind_another_trained_layer_is_an_activation(kind, traceable):
    quantized = place(Behind(Stem(kind), 4, traceable))
    assert list(quantized.inputs) == ["left", "right", "last"]
    assert len(quantized.activations) == (2 if traceable else 3)  # in a graph, two layers share that of the tensor they read


@pytest.mark.parametrize("traceable", [True, False])
def test_a_layer_that_also_reads_another_layer_reads_an_activation(traceable):
    class Skip(nn.Module):
        """The image is concatenated to what the first layer computed, as in a U-Net."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 2, 1)

        def forward(self, x):
            if not traceable and x.mean() > 1e9:
                return x
            x = x / 2
            return self.second(torch.cat([x, F.relu(self.first(x))], dim=1))

    quantized = place(Skip())
    assert quantized.traced == traceable
    assert list(quantized.inputs) == ["second"]


def test_a_layer_that_reads_the_image_first_and_an_activation_later():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.shared(F.relu(self.shared(x / 2)))

    quantized = place(Twice())
    assert len(quantized.activations) == 1
    (name,) = (str(node.args[0]) for node in quantized.network.graph.nodes if str(node.target).startswith("activation_quantizer"))
    assert name == "relu"


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1, groups=4)]
)
def test_depthwise_convolutions_behind_a_layer_are_layers(convolution):
    quantized = place(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), convolution, nn.ReLU(), nn.Conv2d(convolution.out_channels, 2, 1)))
    assert len(quantized.layers) == 3
    assert len(quantized.activations) == 2


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 1, 2, groups=3)]
)
def test_other_first_convolutions_are_layers(convolution):
    quantized = place(nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(convolution.out_channels, 2, 1)))
    assert len(quantized.layers) == 2
    assert len(quantized.activations) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_a_normalization_written_as_a_convolution_computes_the_same(bias):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3, bias=bias), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(place(network).network(images), network(images))


def test_affine_operations_between_layers_do_not_hide_an_activation():
    quantized = place(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)))
    assert list(quantized.inputs) == ["3"]
