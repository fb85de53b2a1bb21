"""Agreement, its standard error and the KL divergence, against values computed by hand."""

import math

import pytest
import torch
from torch import nn

from core.evaluation.agreement import agreement
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec


class Scores(nn.Module):
    """Two scores of an image: its first pixel's first channel, scaled, and zero."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, images):
        value = self.scale * images[:, 0, 0, 0]
        return torch.stack([value, torch.zeros_like(value)], dim=1)


@pytest.fixture
def model():
    spec = ModelSpec("scores", "none", ("a", "b"), 1, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "nothing")
    return FullPrecisionModel(Scores(1.0).eval(), spec)


def images(count):
    """Images whose first channel takes the values 0 to 255."""
    return torch.arange(count).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, -1, -1).contiguous()


def test_a_network_agrees_with_itself(model):
    figures = agreement(model.network, model, images(100))
    assert (figures.agreement, figures.standard_error, figures.kl, figures.images) == (100.0, 0.0, 0.0, 100)


def test_figures_by_hand(model):
    """The other network has the opposite scores: never the same class, and KL(p || 1 - p) = (2p - 1) log(p / (1 - p)) for each image."""
    count = 130  # more than two batches
    figures = agreement(Scores(-1.0).eval(), model, images(count))
    logits = [index / 255 - 0.5 for index in range(count)]  # log(p / (1 - p))
    expected = sum((2 / (1 + math.exp(-logit)) - 1) * logit for logit in logits) / count
    assert (figures.agreement, figures.images) == (0.0, count)
    assert figures.kl == pytest.approx(expected, abs=1e-6)


class TwoScores(nn.Module):
    """The same two scores for every image."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, images):
        return self.scores.expand(len(images), 2)


@pytest.mark.parametrize(
    ("full_precision", "quantized", "expected"),
    [
        ((1.0, -1.0), (0.9, -0.9), 20.0),  # 10 log10((1 + 1) / (0.01 + 0.01))
        ((6.0, 4.0), (2.8, 1.2), 10 * math.log10(2 / 0.08)),  # minus their means: (1, -1) and (0.8, -0.8)
        ((1.0, -1.0), (8.0, 6.0), None),  # the same but for a constant, which the softmax ignores
        ((1.0, 1.0), (2.0, 1.0), None),  # no signal
        ((1.0, -1.0), (math.inf, -1.0), None),
    ],
)
def test_signal_to_noise_ratio_of_the_scores_by_hand(model, full_precision, quantized, expected):
    exact = FullPrecisionModel(TwoScores(*full_precision), model.spec)
    found = agreement(TwoScores(*quantized), exact, images(70))
    assert found.score_sqnr == (None if expected is None else pytest.approx(expected, abs=1e-3))


def test_networks_without_a_signal_to_noise_ratio_compare(model):
    exact = FullPrecisionModel(TwoScores(1.0, -1.0), model.spec)
    same, close, broken = (agreement(TwoScores(*scores), exact, images(70)) for scores in ((8.0, 6.0), (0.9, -0.9), (math.inf, -1.0)))
    assert same.decibels > close.decibels > broken.decibels
    assert close.decibels == close.score_sqnr


def test_standard_error(model):
    class Half(Scores):
        def forward(self, images):
            return super().forward(images) * torch.where(torch.arange(len(images)) % 2 == 0, 1.0, -1.0)[:, None]

    figures = agreement(Half(1.0).eval(), model, images(40))
    assert figures.agreement == 50.0
    assert figures.standard_error == pytest.approx(100 * math.sqrt(0.25 / 40), abs=1e-3)
