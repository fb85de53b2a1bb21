import math

import pytest
import torch
from torch import nn

from core.data.labeled import EvaluationSet, load_evaluation_set
from core.errors import DataError, RunStopped
from core.evaluation.accuracy import evaluate


class ByRed(nn.Module):
    """Predicts class 1 if the normalized red value of the first pixel is above zero, else class 0."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0], *[torch.full((len(x),), -9.0)] * 2], dim=1)


def eight_images(labels: list[int]) -> EvaluationSet:
    """Red is 0 in the first four images and 255 in the others."""
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    images[4:, 0] = 255
    return EvaluationSet(images, labels, "eight images", 8)


def test_accuracy_by_hand(small):
    result = evaluate(ByRed(), small, eight_images([0, 0, 0, 1, 1, 1, 3, 1]), batch_size=3)
    assert result.top1 == 75.0  # the fourth and the seventh are wrong
    assert result.standard_error == round(100 * math.sqrt(0.75 * 0.25 / 8), 3) == 15.309
    assert (result.images, result.evaluated_on) == (8, "eight images")


@pytest.mark.parametrize(("labels", "top1"), [([0] * 4 + [1] * 4, 100.0), ([1] * 4 + [0] * 4, 0.0)])
def test_all_or_none_correct(small, labels, top1):
    result = evaluate(ByRed(), small, eight_images(labels))
    assert (result.top1, result.standard_error) == (top1, 0.0)


def test_batch_size_does_not_matter(small, small_images):
    images = EvaluationSet(small_images.images, small_images.labels, "noise", 8)
    assert evaluate(small.network, small, images, batch_size=7) == evaluate(small.network, small, images, batch_size=64)


def test_default_batch_size_on_the_cpu(small):
    sizes = []

    class Counts(ByRed):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    images = EvaluationSet(torch.zeros(150, 3, 8, 8, dtype=torch.uint8), [0] * 150, "black", 8)
    assert evaluate(Counts(), small, images).images == 150
    assert sizes == [64, 64, 22]


def test_empty_set_is_refused(small):
    with pytest.raises(DataError, match="nothing must have at least one image"):
        evaluate(ByRed(), small, EvaluationSet(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [], "nothing", 8))


@pytest.mark.parametrize("training", [False, True])
def test_mode_and_statistics_of_the_network_are_unchanged(small, training):
    network = small.network.train(training)
    statistics = network.bn1.running_mean.clone()
    evaluate(network, small, eight_images([0] * 8))
    assert network.training is training
    assert network.bn1.training is training
    assert torch.equal(network.bn1.running_mean, statistics)


def test_frozen_batch_norm_stays_frozen(small):
    network = small.network.train()
    network.bn1.eval()
    evaluate(network, small, eight_images([0] * 8))
    assert network.training
    assert not network.bn1.training


def test_stopping_between_batches(small):
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RunStopped("stopped")

    network = small.network.train()
    with pytest.raises(RunStopped):
        evaluate(network, small, eight_images([0] * 8), batch_size=2, pause_point=stop)
    assert len(calls) == 3
    assert network.training


@pytest.mark.slow
def test_embedded_network_on_embedded_images(embedded):
    result = evaluate(embedded.network, embedded, load_evaluation_set("embedded", embedded.spec))
    assert (result.top1, result.images) == (92.1, 2000)
    assert result.standard_error == pytest.approx(100 * math.sqrt(0.921 * 0.079 / 2000), abs=1e-3)
    assert "2,000" in result.evaluated_on
