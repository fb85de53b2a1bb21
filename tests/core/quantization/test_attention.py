"""Channel attention: where blocks end, by hand, and that hooks do not stay."""

import operator

import pytest
import torch
import torchvision
from torch import fx, nn

from core.config import TrainingConfig
from core.quantization.attention import attention_loss, body_layers, channel_attention, channel_attentions
from core.quantization.placement import quantize_network


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_attention_by_hand():
    """Mean squares 1 and 4 in the first image, 0 and 2 in the second."""
    features = torch.zeros(2, 2, 1, 2)
    features[0, 0] = torch.tensor([1.0, -1.0])
    features[0, 1] = torch.tensor([2.0, 2.0])
    features[1, 1] = torch.tensor([0.0, 2.0])
    attention = channel_attention(features)
    assert torch.allclose(attention, torch.tensor([[1 / 17**0.5, 4 / 17**0.5], [0.0, 1.0]]))
    other = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    expected = ((1 / 17**0.5) ** 2 + (4 / 17**0.5 - 1) ** 2) / 4
    loss = attention_loss({"a": attention, "b": attention}, {"a": other, "b": other})
    assert loss.item() == pytest.approx(2 * expected)


def test_bodies_of_the_embedded_network(embedded):
    student = quantize_network(embedded.network, TrainingConfig(), torch.zeros(1, 3, 32, 32)).network
    assert body_layers(student) == [f"features.stage{stage}.unit{unit}.body.conv2.bn" for stage in (1, 2, 3) for unit in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "last", "count"),
    [("resnet18", ["layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn2"], 8), ("mobilenet_v2", ["features.3.conv.3", "features.5.conv.3"], 10)],
)
def test_bodies_of_other_networks(name, last, count):
    """ResNet-18 adds in place, its shortcuts have a BatchNorm layer, too; 10 blocks of MobileNetV2 have an addition."""
    network = fx.symbolic_trace(getattr(torchvision.models, name)().eval())
    found = body_layers(network)
    assert (found[: len(last)], len(found)) == (last, count)


def test_without_blocks_all_layers_count():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    assert body_layers(network) == body_layers(fx.symbolic_trace(network)) == ["1", "3"]


class Block(nn.Module):
    """Adds in place to the output of its BatchNorm layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return operator.iadd(self.bn(self.conv(x)), x)


def test_attention_is_that_before_an_addition_in_place_and_hooks_are_removed():
    network, images = Block().eval(), torch.randn(2, 3, 4, 4)
    layers = body_layers(fx.symbolic_trace(network))
    with channel_attentions(network, layers) as found:
        assert hooks(network) == 1
        network(images)
    assert hooks(network) == 0
    assert torch.allclose(found["bn"], channel_attention(network.bn(network.conv(images))))
    attention_loss(found, {"bn": torch.zeros(2, 3)}).backward()
    assert network.conv.weight.grad.abs().sum() > 0
