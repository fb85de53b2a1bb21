"""A translated program computes the same as the exported network and has the same layers."""

import copy
import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from core.config import TrainingConfig
from core.errors import ModelError
from core.generation.fused.network import FusedConvolution, FusedNetwork, with_statistics
from core.models.full_precision import batch_norm_layers, batch_norm_names_of, find_model, load_model
from core.models.programs.export import save_program
from core.models.programs.translation import load_program, read_program
from core.models.registry import ModelSpec
from core.quantization.placement import quantize_network

ANY_NUMBER = ({0: torch.export.Dim.DYNAMIC},)
SPEC = ModelSpec("mine", "program", ("a", "b", "c", "d"), 8, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "noise")


class DenseNetwork(nn.Module):
    """BatchNorm before convolution, concatenations that several layers read, and pooling without Flatten at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True), nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False))
            for i in range(3)
        )
        self.last = nn.BatchNorm2d(20, affine=False)
        self.output = nn.Linear(20, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.output(F.relu(self.last(x), inplace=True).mean((2, 3)))


def with_noise(network: nn.Module) -> nn.Module:
    """The network with BatchNorm layers as if trained."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "resnet20_cifar10":
            return copy.deepcopy(load_model(name, "cpu").network)
        if name == "efficientnet_lite0":
            return with_noise(timm.create_model(name, num_classes=10))
        if name == "dense":
            return with_noise(DenseNetwork())
        return with_noise(torchvision.models.get_model(name, weights=None, num_classes=10))


def exported(network: nn.Module, path: Path, size: int = 8, dynamic=ANY_NUMBER, decomposed: bool = False) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (torch.zeros(2, 3, size, size),), dynamic_shapes=dynamic)
    program = program.run_decompositions() if decomposed else program
    torch.export.save(program, path)
    return program


@pytest.fixture
def program(small, tmp_path) -> Path:
    path = tmp_path / "small.pt2"
    exported(small.network, path)
    return path


@pytest.mark.parametrize(
    ("name", "decomposed"),
    [
        ("resnet20_cifar10", False),
        ("resnet20_cifar10", True),
        ("dense", False),
        ("dense", True),
        pytest.param("mobilenet_v3_small", True, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", False, marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x0_5", True, marks=pytest.mark.slow),
    ],
)
def test_translation_equals_the_exported_network(tmp_path, name, decomposed):
    network = built(name)
    size = 32 if name in ("resnet20_cifar10", "dense") else 64
    program = exported(network, tmp_path / "a.pt2", size, decomposed=decomposed)
    back = load_program(tmp_path / "a.pt2")
    generator = torch.Generator().manual_seed(2)
    for count in (1, 5):
        images = torch.randn(count, 3, size, size, generator=generator)
        expected = program.module()(images)
        torch.testing.assert_close(back(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert list(batch_norm_layers(back)) == list(batch_norm_layers(network))
    assert set(back.state_dict()) == set(network.state_dict())
    layers = [{n: type(m) for n, m in one.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))} for one in (network, back)]
    assert layers[0].keys() == layers[1].keys()
    ours, eager = (quantize_network(one, TrainingConfig(), images[:1]) for one in (back, network))
    assert ours.traced
    assert eager.traced
    assert (len(ours.activations), len(ours.layers)) == (len(eager.activations), len(eager.layers))
    fused = with_statistics(back)
    assert isinstance(fused, FusedNetwork)
    torch.testing.assert_close(fused(images)[0], expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)
    if name != "efficientnet_lite0":  # timm's BatchNorm layers contain their activation, which fusion finds only in the program

        def activations(one: FusedNetwork) -> list:
            return [m.geometry.activation for m in one.module.modules() if isinstance(m, FusedConvolution)]

        assert activations(fused) == activations(with_statistics(network))


def test_translation_can_be_moved_copied_and_trained(tmp_path):
    given = with_noise(DenseNetwork())
    exported(given, tmp_path / "a.pt2")
    network = copy.deepcopy(load_program(tmp_path / "a.pt2")).to(memory_format=torch.channels_last)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), given(images))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = network.last.running_mean.clone()
    network.train().requires_grad_(True)
    network(images).sum().backward()
    assert not torch.equal(network.last.running_mean, before)
    assert network.stem.weight.grad is not None
    assert network.to("meta")(images.to("meta")).shape == (3, 10)


def test_loading_does_not_change_the_global_random_state(program):
    before = torch.get_rng_state()
    load_program(program)
    assert torch.equal(torch.get_rng_state(), before)


def test_layer_used_twice_and_tensors_outside_layers(tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn = nn.BatchNorm2d(3)
            self.kernel = nn.Parameter(torch.randn(4, 3, 1, 1))
            self.scale = nn.Parameter(torch.rand(1, 3, 1, 1))
            self.register_buffer("shift", torch.rand(3, 1, 1))

        def forward(self, x):
            x = self.bn(self.conv(self.conv(x))) * self.scale + self.shift
            return F.conv2d(x, self.kernel).flatten(2).amax(2)

    network = with_noise(Shared())
    exported(network, tmp_path / "a.pt2")
    back = load_program(tmp_path / "a.pt2")
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(back(images), network(images))
    assert sum(isinstance(module, nn.Conv2d) for module in back.modules()) == 2
    assert {"conv.weight", "bn.running_var", "scale", "shift"} <= set(back.state_dict())


class Coordinates(nn.Module):
    """Concatenates the coordinates of the pixels to the images, as CoordConv does, and uses other tensors made of numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.output = nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        count, _, height, width = x.shape
        rows = (torch.arange(0, 2 * height, 2) / height).view(1, 1, -1, 1).expand(count, 1, height, width)
        columns = (torch.arange(width) / width).expand(count, 1, height, width)
        x = F.relu(self.norm(self.stem(torch.cat([x, rows, columns], dim=1)))).mean(dim=(2, 3))
        x = torch.cat([x, torch.zeros(count, 2), torch.full((count, 1), 0.5)], dim=1)[:, :8]
        return self.output(x * torch.linspace(0, 1, 8) + torch.ones(8))


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("sizes", [ANY_NUMBER, (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)])
def test_tensors_made_of_numbers(tmp_path, sizes, decomposed):
    network = with_noise(Coordinates())
    exported(network, tmp_path / "a.pt2", dynamic=sizes, decomposed=decomposed)
    back = load_program(tmp_path / "a.pt2")
    images = torch.randn(5, 3, 8, 8 if sizes is ANY_NUMBER else 11)
    torch.testing.assert_close(back(images), network(images))
    quantized = quantize_network(back, TrainingConfig(), images[:1])
    assert quantized.traced
    assert len(quantized.activations) == 1
    fused = with_statistics(back)
    torch.testing.assert_close(fused(images)[0], network(images))
    on_meta = copy.deepcopy(back).to("meta")  # another device
    assert on_meta(images.to("meta")).device.type == "meta"


class Indexed(nn.Module):
    """Takes the logarithm of the images in blue, green, red, the order of networks from Caffe, and picks channels of a layer by a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.output = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(torch.log1p(x[:, [2, 1, 0]].square()))))
        return self.output(x.mean(dim=(2, 3))[:, [0, 2, 4, 7]])


@pytest.mark.parametrize("decomposed", [False, True])
def test_channels_picked_by_a_list(tmp_path, decomposed):
    network = with_noise(Indexed())
    exported(network, tmp_path / "a.pt2", decomposed=decomposed)
    back = load_program(tmp_path / "a.pt2")
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(back(images), network(images))
    quantized = quantize_network(back, TrainingConfig(), images[:1])
    assert quantized.traced
    assert list(quantized.inputs) == ["output"]  # the image is none


def test_image_size(program, small, tmp_path):
    assert read_program(program).image_size == (8, 8)
    sides = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    exported(small.network, tmp_path / "any.pt2", dynamic=sides)
    any_size = read_program(tmp_path / "any.pt2")
    assert any_size.image_size == (None, None)
    images = torch.randn(1, 3, 20, 12)
    torch.testing.assert_close(any_size.network(images), small.network(images))


def test_path_of_a_saved_program_is_a_model_name(small, tmp_path):
    path = tmp_path / "mine.pt2"
    save_program(small.network, SPEC, path)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.pt2"]
    assert find_model(str(path)) == (path, SPEC)
    model = load_model(str(path), "cpu")
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model.network(images), small.network(images))
    assert batch_norm_names_of(str(path)) == ["bn1", "bn2"]
    # torch's own reader loads it as well, and it contains no path of this machine
    torch.testing.assert_close(torch.export.load(path).module()(images), small.network(images))
    assert os.path.dirname(__file__).encode() not in path.read_bytes()


def test_program_without_a_spec_is_refused(program):
    with pytest.raises(ModelError, match="must contain its classes, image size"):
        find_model(str(program))
