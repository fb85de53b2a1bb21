"""HAST: its loss by hand, its crops, its settings, and that the network recognizes its images."""

import math

import pytest
import torch

from core.config import PRESETS, GenerationConfig, MachineConfig
from core.generation.loop import GenerationLoop, synthesize
from core.generation.sources.hast import HASTImages, focal_cross_entropy
from core.reporting import NullReporter

CONFIG = GenerationConfig(images=8, iterations=40, batch_size=8, snapshots=1)


class Totals(NullReporter):
    def __init__(self):
        self.values = []

    def record(self, stage, method, step, values):
        self.values.append(values["total"])


def test_focal_cross_entropy_by_hand():
    """Probabilities of the labels: 1/2 and 1/5."""
    logits = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    labels = torch.tensor([0, 1])
    for gamma in (0.0, 0.5, 2.0):
        expected = (0.5**gamma * math.log(2) + 0.8**gamma * math.log(5)) / 2
        assert focal_cross_entropy(logits, labels, gamma).item() == pytest.approx(expected)


def test_gradient_of_the_focal_cross_entropy():
    """Through both factors; and finite where an image is recognized without doubt."""
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: focal_cross_entropy(x, torch.tensor([0, 1, 3]), 0.5), logits)
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal_cross_entropy(certain, torch.tensor([0]), 0.5).backward()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("crop", [0.0, 0.5, 1.0])
def test_crops_come_in_their_share_of_the_iterations(small, crop):
    source = HASTImages(small, GenerationConfig(images=4, batch_size=4, snapshots=1, hard_crop=crop), MachineConfig())
    cropped = sum(not torch.equal(source.images(iteration), source.current()) for iteration in range(40))
    assert {0.0: cropped == 0, 0.5: 10 < cropped < 30, 1.0: cropped == 40}[crop]


def test_step_size_falls_to_no_less_than_a_ten_thousandth(small):
    loop = GenerationLoop(small, GenerationConfig(images=4, batch_size=4, snapshots=1, schedule="plateau", hast_lr=0.5), "hast")
    for factor, expected in ((1.0, 0.5), (0.01, 0.005), (1e-5, 1e-4)):
        loop._plateau.factor = factor
        loop.step()
        assert loop.source.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_settings_of_the_authors():
    generation = PRESETS["hast"].generation
    assert (generation.images, generation.batch_size, generation.iterations, generation.noise) == (5120, 256, 1000, "white")
    assert (generation.hast_lr, generation.schedule, generation.patience) == (0.5, "plateau", 50)
    assert (generation.hast_beta, generation.hast_gamma, generation.hard_crop) == (10.0, 2.0, 0.0)


def test_network_recognizes_the_images(embedded):
    totals = Totals()
    images, summary = synthesize(embedded, CONFIG, "hast", reporter=totals)
    assert summary["teacher_agreement"] >= 50
    assert totals.values[-1] < 0.2 * totals.values[0]
