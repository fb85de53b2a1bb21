import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from pytorchcv.model_provider import get_model
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small

from core.errors import ModelError
from core.generation.fused import kernels
from core.generation.fused.network import FusedConvolution, FusedNetwork, HookedNetwork, with_statistics
from core.models.full_precision import batch_norm_layers


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(network, size=8, seed=0):
    """The network in double precision, with affine parameters and running statistics other than the defaults."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval().requires_grad_(False)
    for layer in batch_norm_layers(network).values():
        layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
        layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
        if layer.affine:
            layer.weight.copy_(torch.randn(layer.num_features, generator=generator).clamp(min=0.2))
            layer.bias.copy_(torch.randn(layer.num_features, generator=generator))
    return network


class Block(nn.Module):
    """conv, BatchNorm, `behind`; twice, the second time with an addition before `behind`."""

    def __init__(self, behind=F.relu, groups=1, bias=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(6)
        self.behind = behind
        self.output = nn.Linear(6, 4)

    def forward(self, x):
        x = self.behind(self.bn1(self.conv1(x)))
        x = self.behind(self.bn2(self.conv2(x)) + x)
        return self.output(x.mean(dim=(2, 3)))


class Projected(Block):
    """Both inputs of the addition are BatchNorm layers after strided convolutions."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, stride=2)
        self.side, self.bn3 = nn.Conv2d(6, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.output(F.relu(self.bn2(self.conv2(x)) + self.bn3(self.side(x))).mean(dim=(2, 3)))


class BatchNormFirst(Block):
    """BatchNorm layers of the image, of a sum, and, without affine parameters, of an output with another consumer."""

    def __init__(self):
        super().__init__()
        self.bn0, self.bn1 = nn.BatchNorm2d(3), nn.BatchNorm2d(6, affine=False)

    def forward(self, x):
        first = self.conv1(self.bn0(x))
        second = self.conv2(F.relu(self.bn1(first))) + first
        return self.output(F.relu(self.bn2(second)).mean(dim=(2, 3)))


class Shared(Block):
    """One BatchNorm layer in two places."""

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        return self.output(self.bn1(self.conv2(x)).mean(dim=(2, 3)))


class ActivationInside(Block):
    """timm's BatchNorm layers with a built-in activation."""

    def __init__(self, act_layer, inplace=True, apply_act=True):
        super().__init__()
        self.bn1, self.bn2 = (BatchNormAct2d(6, act_layer=act_layer, inplace=inplace, apply_act=apply_act) for _ in range(2))

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        return self.output((self.bn2(self.conv2(x)) + x).mean(dim=(2, 3)))


class Doubling(nn.BatchNorm2d):
    """A BatchNorm layer with its own forward."""

    def forward(self, x):
        return 2 * super().forward(x)


class OwnForward(Block):
    def __init__(self):
        super().__init__()
        self.bn1 = Doubling(6)


class SameSize(Block):
    """timm's convolution, whose padding depends on the input size."""

    def __init__(self):
        super().__init__()
        self.conv1 = Conv2dSame(3, 6, 3, stride=2)


class UsedOften(Block):
    """The output of a fused convolution has three consumers."""

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x)) + 2 * x + F.silu(x)
        return self.output(x.mean(dim=(2, 3)))


class Untraceable(Block):
    def forward(self, x):
        return super().forward(x if x.sum() > 1e9 else x + 0)


NETWORKS = {
    "relu": lambda: Block(),
    "relu module in place": lambda: Block(nn.ReLU(inplace=True)),
    "relu6 and groups": lambda: Block(nn.ReLU6(), groups=3, bias=True),
    "no activation": lambda: Block(nn.Identity()),
    "hardswish": lambda: Block(nn.Hardswish()),
    "hardswish in place": lambda: Block(nn.Hardswish(inplace=True)),
    "silu in place, by function": lambda: Block(partial(F.silu, inplace=True)),
    "method in place": lambda: Block(lambda x: x.sigmoid_()),
    "product in place": lambda: Block(lambda x: x.mul_(0.5).add_(1.0)),
    "dropout before the activation": lambda: Block(nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.ReLU(inplace=True))),
    "activation inside": lambda: ActivationInside(nn.ReLU),
    "other activation inside": lambda: ActivationInside(nn.SiLU, inplace=False),
    "place for an activation inside": lambda: ActivationInside(nn.ReLU, apply_act=False),
    "forward of its own": OwnForward,
    "padding from the size": SameSize,
    "used often": UsedOften,
    "projected": Projected,
    "batch norm first": BatchNormFirst,
    "shared": Shared,
}


def loss_and_gradient(function, images):
    images = images.clone().requires_grad_(True)
    logits, statistics = function(images)
    layers = statistics.layer_losses()
    (
        F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]) + layers @ torch.arange(1.0, len(layers) + 1).to(layers)
    ).backward()
    return logits, layers, images.grad


@pytest.mark.parametrize("chunk", [64, kernels.CHUNK])
@pytest.mark.parametrize("name", NETWORKS)
def test_fused_equals_the_network_with_hooks(name, chunk, monkeypatch):
    """In double precision, so that any difference beyond rounding shows; in one chunk and in many."""
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    torch.manual_seed(0)
    network = settled(NETWORKS[name]())
    images = noise(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    expected = loss_and_gradient(HookedNetwork(network), images)
    for value, wanted in zip(loss_and_gradient(FusedNetwork(network), images), expected):
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_in_single_precision(name):
    """As in a generation: with the C kernels, if there is a compiler."""
    torch.manual_seed(0)
    network = settled(NETWORKS[name]())
    images = noise(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    expected = loss_and_gradient(HookedNetwork(network), images)
    for value, wanted in zip(loss_and_gradient(FusedNetwork(network.float()), images.float()), expected):
        assert torch.allclose(value.double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize(
    "build",
    [
        *(partial(get_model, f"{name}_cifar10") for name in ("resnet20", "preresnet20", "sepreresnet20", "densenet40_k12_bc")),
        partial(mobilenet_v2, num_classes=10, width_mult=0.25),
        partial(mobilenet_v3_small, num_classes=10),
        *(partial(timm.create_model, name, num_classes=10) for name in ("regnetx_002", "repvgg_a0", "ghostnet_050", "mixnet_s")),
        partial(timm.create_model, "tf_mobilenetv3_small_100", num_classes=10),
    ],
    ids=lambda build: str((build.args or (build.func.__name__,))[0]),
)
def test_fused_equals_the_network_with_hooks_for_real_architectures(build):
    torch.manual_seed(0)
    network = settled(build())
    with torch.no_grad():  # with the statistics of one pass, because activations would otherwise grow from layer to layer
        for layer in batch_norm_layers(network.train()).values():
            layer.momentum = 1.0
        network(noise(8, 3, 32, 32, seed=1))
    network.eval()
    images = noise(4, 3, 32, 32)
    fused = with_statistics(network)
    assert isinstance(fused, FusedNetwork)
    for value, wanted in zip(loss_and_gradient(fused, images), loss_and_gradient(HookedNetwork(network), images)):
        assert torch.allclose(value, wanted, rtol=1e-6, atol=1e-8)


def test_float32_differs_by_rounding_only(embedded):
    images = noise(16, 3, 32, 32).float()
    expected = loss_and_gradient(HookedNetwork(copy.deepcopy(embedded.network).double()), images.double())
    for form in (FusedNetwork, HookedNetwork):
        logits, layers, gradient = loss_and_gradient(form(embedded.network), images)
        assert torch.allclose(logits.double(), expected[0], rtol=1e-3, atol=1e-3)
        assert torch.allclose(layers.double(), expected[1], rtol=1e-4)
        assert (gradient.double() - expected[2]).norm() < 1e-3 * expected[2].norm()


def test_same_bits_every_time(embedded):
    images = noise(8, 3, 32, 32).float()
    first, second = (loss_and_gradient(FusedNetwork(embedded.network), images) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_every_convolution_of_the_embedded_network_is_fused(embedded):
    module = FusedNetwork(embedded.network).module
    assert sum(isinstance(part, FusedConvolution) for part in module.modules()) == 21
    assert not any(isinstance(part, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)) for part in module.modules())


def test_built_in_activation_is_fused_and_the_network_is_unchanged():
    network = settled(ActivationInside(nn.ReLU))
    before = [name for name, _ in network.named_modules()]
    module = FusedNetwork(network).module
    fused = [part for part in module.modules() if isinstance(part, FusedConvolution)]
    assert [part.geometry.activation for part in fused] == [(0.0, float("inf"))] * 2
    assert [name for name, _ in network.named_modules()] == before


def test_layer_with_a_channel_scaled_to_zero_is_not_fused():
    network = settled(Block())
    network.bn1.weight[2] = 0.0
    fused = FusedNetwork(network)
    assert sum(isinstance(part, FusedConvolution) for part in fused.module.modules()) == 1
    images = noise(6, 3, 8, 8)
    for value, wanted in zip(loss_and_gradient(fused, images), loss_and_gradient(HookedNetwork(network), images)):
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-10)


def test_untraceable_network_uses_hooks():
    network = settled(Untraceable())
    images = noise(6, 3, 8, 8)
    form = with_statistics(network)
    assert isinstance(form, HookedNetwork)
    plain = settled(Block())
    network.load_state_dict(plain.state_dict())
    expected = loss_and_gradient(FusedNetwork(plain), images)
    for value, wanted in zip(loss_and_gradient(form, images), expected):
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-10)


def test_original_network_is_unchanged(embedded):
    before = {name: value.clone() for name, value in embedded.network.state_dict().items()}
    loss_and_gradient(FusedNetwork(embedded.network), noise(4, 3, 32, 32).float())
    assert all(torch.equal(value, before[name]) for name, value in embedded.network.state_dict().items())
    assert isinstance(embedded.network.features.init_block.bn, nn.BatchNorm2d)


def test_cached_results_do_not_reach_the_network():
    """LeViT's attention caches its table of biases in this way."""

    class Remembering(Block):
        def __init__(self):
            super().__init__()
            self.table, self.cache = nn.Parameter(torch.ones(6)), {}

        def forward(self, x):
            if "doubled" not in self.cache:
                self.cache["doubled"] = self.table * 2
            return super().forward(x) + self.cache["doubled"].sum()

    network = settled(Remembering())
    fused = with_statistics(network)
    assert isinstance(fused, FusedNetwork)
    assert network.cache == {}
    images = noise(2, 3, 8, 8)
    assert torch.allclose(fused(images)[0], network(images))


def test_backward_runs_only_once():
    fused = FusedNetwork(settled(Block()))
    logits, statistics = fused(noise(2, 3, 8, 8).requires_grad_(True))
    loss = statistics.layer_losses().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_network_without_batch_norm_is_refused():
    with pytest.raises(ModelError, match="must have a BatchNorm layer"):
        with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
