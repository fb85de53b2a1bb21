"""Images are generated alike for a network that normalizes them itself."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.config import GenerationConfig
from core.evaluation.references import noise_images
from core.generation.loop import GenerationLoop, synthesize
from core.generation.methods import METHODS
from core.generation.scale import MEAN, STD, in_usual_scale
from core.models.full_precision import FullPrecisionModel

CONFIG = GenerationConfig(images=8, batch_size=8, snapshots=1, iterations=6)


class Inside(nn.Module):
    """For pixels from 0 to `largest`."""

    def __init__(self, network: nn.Module, largest: float) -> None:
        super().__init__()
        self.network, self.largest = network, largest

    def forward(self, x):
        return self.network((x / self.largest - MEAN) / STD)


@pytest.fixture
def usual(small) -> FullPrecisionModel:
    return FullPrecisionModel(small.network, replace(small.spec, mean=(MEAN,) * 3, std=(STD,) * 3))


@pytest.mark.parametrize("largest", [1.0, 255.0])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.has_generator and name != "real"])
def test_a_network_that_normalizes_its_images_gets_the_same(usual, method, largest):
    spec = replace(usual.spec, mean=(0.0,) * 3, std=(1 / largest,) * 3)
    inside = FullPrecisionModel(Inside(usual.network, largest).eval(), spec)
    expected, expected_summary = synthesize(usual, CONFIG, method)
    images, summary = synthesize(inside, CONFIG, method)
    assert summary["bns_loss_last"] == pytest.approx(expected_summary["bns_loss_last"], rel=0.02)
    # a sign of a gradient of almost zero may differ
    assert ((images.images.int() - expected.images.int()).abs() <= 1).float().mean() > 0.95
    assert torch.equal(noise_images(inside, CONFIG).images, noise_images(usual, CONFIG).images)
    assert GenerationLoop(inside, CONFIG, method).layer_names == ["network.bn1", "network.bn2"]


def test_usual_normalizations_stay(small, usual, embedded):
    for model in (small, usual, embedded, FullPrecisionModel(small.network, replace(small.spec, std=(0.5,) * 3))):
        assert in_usual_scale(model) is model
