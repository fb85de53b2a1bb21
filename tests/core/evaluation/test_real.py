"""Networks on real images, with and without labels, against figures by hand."""

import pytest
import torch
from torch import nn

from core.data.labeled import UNREADABLE, EvaluationSet
from core.evaluation import real
from core.evaluation.agreement import agreement
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec

COUNT = 150  # three batches


class FirstPixel(nn.Module):
    """Scores of three classes, from the first pixel of an image."""

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, images):
        value = images[:, 0, 0, 0]
        return torch.stack([value, -value, self.shift.expand_as(value)], dim=1)


@pytest.fixture
def model():
    spec = ModelSpec("scores", "none", ("a", "b", "c"), 1, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "nothing")
    return FullPrecisionModel(FirstPixel(0.1).eval(), spec)


def images():
    return torch.arange(COUNT).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, -1, -1).contiguous()


def evaluation_set(labels):
    return EvaluationSet(images(), labels, "images", 1)


def test_figures_with_labels_are_accuracy_and_agreement(model):
    labels = [index % 3 for index in range(COUNT)]
    accuracy, scores = real.measure_full_precision(model, evaluation_set(labels))
    # b below 0.4, c up to 0.6 and a from there, of (index / 255)
    expected = [1 if index / 255 - 0.5 < -0.1 else 2 if index / 255 - 0.5 < 0.1 else 0 for index in range(COUNT)]
    assert accuracy.top1 == pytest.approx(100 * sum(map(int.__eq__, expected, labels)) / COUNT, abs=1e-3)
    network = FirstPixel(0.3).eval()
    measured = real.measure(network, model, evaluation_set(labels), scores)
    assert measured.agreement == agreement(network, model, images())
    assert measured.accuracy.images == len(measured.hits) == COUNT
    assert measured.hits.sum() == pytest.approx(measured.accuracy.top1 * COUNT / 100, abs=1e-2)


def test_without_labels_there_is_the_same_agreement_and_no_accuracy(model):
    accuracy, scores = real.measure_full_precision(model, evaluation_set(None))
    assert accuracy is None
    measured = real.measure(FirstPixel(0.3).eval(), model, evaluation_set(None), scores)
    assert measured.accuracy is None
    assert measured.agreement == agreement(FirstPixel(0.3).eval(), model, images())


def test_images_that_cannot_be_read_are_left_out(model):
    labels = [0] * COUNT
    _, scores = real.measure_full_precision(model, evaluation_set(labels))
    labels[70] = labels[71] = UNREADABLE
    measured = real.measure(FirstPixel(0.3).eval(), model, evaluation_set(labels), scores)
    read = [index for index in range(COUNT) if index not in (70, 71)]
    assert measured.agreement.images == measured.accuracy.images == COUNT - 2
    assert measured.agreement.agreement == agreement(FirstPixel(0.3).eval(), model, images()[read]).agreement


def test_only_as_many_scores_are_kept_as_fit(model, monkeypatch):
    monkeypatch.setattr(real, "MOST_SCORES", 3 * 10)
    _, scores = real.measure_full_precision(model, evaluation_set(None))
    assert scores.scores.shape == (10, 3)
    assert (int(scores.indices[0]), int(scores.indices[-1])) == (0, COUNT - 1)
    measured = real.measure(FirstPixel(0.3).eval(), model, evaluation_set(None), scores)
    assert measured.agreement == agreement(FirstPixel(0.3).eval(), model, images()[scores.indices])
    assert len(measured.hits) == COUNT


def test_saved_scores_are_those_of_the_same_number_of_images(model, tmp_path):
    file = tmp_path / "scores.safetensors"
    assert real.RealScores.load(file, model, evaluation_set(None)) is None
    _, scores = real.measure_full_precision(model, evaluation_set(None))
    scores.save(file)
    found = real.RealScores.load(file, model, evaluation_set(None))
    assert torch.equal(found.scores, scores.scores)
    fewer = EvaluationSet(images()[:-1], None, "images", 1)
    assert real.RealScores.load(file, model, fewer) is None
