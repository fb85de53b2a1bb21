"""The student of PLF: its loss by hand, and how its threshold falls."""

import math
from dataclasses import replace

import pytest
import torch

from core.config import PRESETS
from core.models.registry import ModelSpec
from core.quantization.authors.plf import PLFStudent, two_label_loss
from tests.core.quantization.authors.test_base import CONFIG, training


def test_two_label_loss_by_hand():
    """The teacher is sure of the first image and undecided between the last two classes of the second."""
    teacher = torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.3, 0.6]]).log()
    student = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]).log()
    entropies = [-sum(p * math.log(p) for p in row) / math.log(3) for row in ((0.9, 0.06, 0.04), (0.1, 0.3, 0.6))]
    assert entropies[0] < 0.4 < entropies[1]
    sure = [math.log(2), -math.log(0.6)]
    two = [-(0.9 * math.log(0.5) + 0.06 * math.log(0.25)) / 0.96, -(0.6 * math.log(0.6) + 0.3 * math.log(0.2)) / 0.9]
    for threshold, expected in ((0.4, sure[0] + 0.3 * two[1]), (1.1, sum(sure)), (0.0, 0.3 * sum(two))):
        assert two_label_loss(student, teacher, threshold, 0.3).item() == pytest.approx(expected / 2, rel=1e-5)


def test_loss_by_hand(small, small_images):
    """alpha_kd L_KD + CE_two + 100 MSE of what enters the classifier."""
    one = training(small, small_images, "plf", replace(CONFIG, alpha_kd=2.0, temperature=3.0))
    images, labels = one.source.batch(0, one.teacher, one.student)
    seen = []
    handles = [
        network.output.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0])) for network in (one.teacher, one.student)
    ]
    target, scores = one.teacher(images), one.student(images)
    for handle in handles:
        handle.remove()
    probabilities = (target / 3).softmax(dim=1)
    kl = (probabilities * (probabilities.log() - (scores / 3).log_softmax(dim=1))).sum(dim=1).mean()
    expected = 2 * 9 * kl + two_label_loss(scores, target, 0.5, 0.3) + 100 * ((seen[0] - seen[1]) ** 2).mean()
    assert one.source.loss(images, labels, one.teacher, one.student).total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_threshold_falls_linearly(small, small_images):
    source = PLFStudent(small_images, small, replace(CONFIG, steps=31), 0)
    assert [source.threshold(step) for step in (0, 10, 30)] == pytest.approx([0.5, 0.4, 0.2])
    source.batch(20, small.network, small.network)
    assert source._threshold.item() == pytest.approx(0.3)
    large = replace(small, spec=ModelSpec("large", "large", tuple("abcd"), 224, (0.5,) * 3, (0.25,) * 3, "noise"))
    source = PLFStudent(small_images, large, replace(CONFIG, steps=31), 0)
    assert [source.threshold(step) for step in (0, 10, 30)] == pytest.approx([0.4, 0.3, 0.1])


def test_settings_of_the_paper():
    settings = PRESETS["plf"].training
    assert (settings.training_lr, settings.training_weight_decay, settings.plf_features, settings.protocol) == (
        1e-3,
        1e-4,
        100.0,
        "authors",
    )
