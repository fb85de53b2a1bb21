"""Weights that are computed from tensors of the program become weights of layers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from core.config import TrainingConfig
from core.models.programs.folding import Folding
from core.models.programs.translation import load_program
from core.quantization.layers import QuantizedLayer
from core.quantization.placement import quantize_network


class Absolute(nn.Module):
    def forward(self, weight):
        return weight.abs()


def absolute(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Absolute())
    parametrize.register_parametrization(layer, "bias", Absolute())
    return layer


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias, padding=self.padding)


KINDS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm by hooks": weight_norm,
    "weight norm of all": lambda layer: weight_norm(layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hooks": spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "orthogonal by reflections": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    "of one's own": absolute,
}


class Network(nn.Module):
    """One of its layers is called twice."""

    def __init__(self, changed, convolution=nn.Conv2d) -> None:
        super().__init__()
        self.stem, self.twice = changed(convolution(3, 4, 3, padding=1)), changed(convolution(4, 4, 3, padding=1))
        self.norm, self.output = nn.BatchNorm2d(4), changed(nn.Linear(4, 4))

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.output(self.twice(F.relu(self.twice(F.relu(x)))).mean(dim=(2, 3)))


def exported(network: nn.Module, path: Path, decompositions) -> nn.Module:
    images = torch.randn(8, 3, 8, 8)
    for _ in range(3):
        network.train()(images)
    program = torch.export.export(network.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program if decompositions is None else program.run_decompositions(decompositions), path)
    loaded = load_program(path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network(images))
    return loaded


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("decompositions", [None, {}], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("kind", KINDS)
def test_computed_weights_become_those_of_layers(kind, decompositions, tmp_path):
    loaded = exported(Network(KINDS[kind]), tmp_path / "network.pt2", decompositions)
    layers = {name: type(module) for name, module in loaded.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert layers == {"stem": nn.Conv2d, "twice": nn.Conv2d, "output": nn.Linear}
    assert set(loaded.state_dict()) == set(Network(lambda layer: layer).state_dict())
    quantized = quantize_network(loaded, TrainingConfig(), torch.zeros(1, 3, 8, 8))
    assert all(isinstance(quantized.network.get_submodule(name), QuantizedLayer) for name in layers)
    assert quantized.note == ""


def test_core_aten(tmp_path):
    """A linear layer is a product with a transposed weight there."""
    loaded = exported(Network(parametrizations.spectral_norm), tmp_path / "network.pt2", torch.export.default_decompositions())
    assert isinstance(loaded.output, nn.Linear)


def test_standardized_convolutions_become_layers(tmp_path):
    """Their original weight has the name that the layer would have."""
    loaded = exported(Network(lambda layer: layer, Standardized), tmp_path / "network.pt2", None)
    assert sum(isinstance(module, nn.Conv2d) for module in loaded.modules()) == 2


def node_of(build) -> fx.Node:
    graph = fx.Graph()
    return build(graph, graph.get_attr("table"))


def test_a_large_result_is_refused_before_it_is_computed():
    node = node_of(lambda graph, table: graph.call_method("expand", (graph.call_function(torch.relu, (table,)), 1 << 40, 2)))
    with pytest.raises(ValueError, match="must be at most 1,000"):
        Folding({"table": torch.ones(2)}, 1000).held(node, "weight")


def test_each_node_is_computed_once():
    """Without that, 200 sums of the two before would take longer than the universe exists."""

    def fibonacci(graph, table):
        one = other = table
        for _ in range(200):
            one, other = other, graph.call_function(torch.sub, (one, other))
        return other

    tensors = {"table": torch.ones(2)}
    held = Folding(tensors, 1000).held(node_of(fibonacci), "weight")
    assert held.name == "weight"
    assert tensors["weight"].shape == (2,)


def test_what_depends_on_the_images_is_not_computed():
    graph = fx.Graph()
    node = graph.call_function(torch.mul, (graph.placeholder("images"), graph.get_attr("table")))
    assert Folding({"table": torch.ones(2)}, 1000).held(node, "weight") is node
