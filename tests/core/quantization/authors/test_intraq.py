"""The student of IntraQ: its loss by hand, and settings."""

import pytest

from core.config import PRESETS
from tests.core.quantization.authors.test_base import training


def test_loss_by_hand(small, small_images):
    one = training(small, small_images, "intraq")
    images, labels = one.source.batch(0, one.teacher, one.student)
    target, scores = one.teacher(images), one.student(images)
    probabilities = (target / 20).softmax(dim=1)
    kl = (probabilities * (probabilities.log() - (scores / 20).log_softmax(dim=1))).sum(dim=1).mean()
    ce = -scores.softmax(dim=1)[range(len(labels)), labels].log().mean()
    assert one.source.loss(images, labels, one.teacher, one.student).total.item() == pytest.approx((ce + 20 * 400 * kl).item(), rel=1e-3)
    assert one.source.perturbation == 0


def test_settings_of_the_authors():
    settings = PRESETS["intraq"].training
    assert (settings.steps, settings.training_batch_size, settings.training_lr, settings.training_weight_decay) == (29400, 256, 1e-4, 1e-4)
    assert settings.protocol == "authors"
