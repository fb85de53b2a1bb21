"""The student of HAST: its loss by hand, and settings."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from core.config import PRESETS
from core.models.full_precision import batch_norm_layers
from core.models.hooks import hooked
from tests.core.quantization.authors.test_base import CONFIG, training


def test_loss_by_hand(small, small_images):
    """20 T^2 KL + 1000 MSE of the attentions of the only block, whose body ends with bn2."""
    one = training(small, small_images, "hast")
    images, labels = one.source.batch(0, one.teacher, one.student)
    outputs, attentions = [], []

    def keep(_name, _inputs, output):
        squares = (output.clone() ** 2).mean(dim=(2, 3))
        attentions.append(squares / squares.norm(dim=1, keepdim=True))

    for network in (one.teacher, one.student):
        with hooked({"bn2": batch_norm_layers(network)["bn2"]}, keep):
            outputs.append(network(images))
    target, scores = outputs
    probabilities = (target / 20).softmax(dim=1)
    kl = (probabilities * (probabilities.log() - (scores / 20).log_softmax(dim=1))).sum(dim=1).mean()
    expected = 20 * 400 * kl + 1000 * ((attentions[0] - attentions[1]) ** 2).mean()
    found = one.source.loss(images, labels, one.teacher, one.student)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found.kd.item() == pytest.approx(400 * kl.item(), rel=5e-3)
    assert found.ce.item() == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)


def test_weights_of_the_loss_are_knobs(small, small_images):
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        one = training(small, small_images, "hast", replace(CONFIG, alpha_attention=weight))
        images, labels = one.source.batch(0, one.teacher, one.student)
        losses[weight] = one.source.loss(images, labels, one.teacher, one.student).total.item()
    assert losses[1.0] > losses[0.0]
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=0.05)
    assert training(small, small_images, "hast", replace(CONFIG, perturbation=0.25)).source.perturbation == 0.25


def test_gradient_of_the_images_goes_through_both_networks(small, small_images):
    one = training(small, small_images, "hast", replace(CONFIG, range="mse"))
    one.student.load_state_dict(one.student.state_dict())
    images, labels = one.source.batch(0, one.teacher, one.student)
    images.requires_grad_(True)
    (both,) = torch.autograd.grad(one.source.loss(images, labels, one.teacher, one.student).total, images)
    with torch.no_grad():
        target = one.teacher(images)
    scores = one.student(images)
    kd = F.kl_div((scores / 20).log_softmax(dim=1), (target / 20).softmax(dim=1), reduction="batchmean")
    (student,) = torch.autograd.grad(20 * 400 * kd, images)
    assert not torch.allclose(both, student, atol=0.1 * student.abs().max().item())


def test_settings_of_the_authors():
    settings = PRESETS["hast"].training
    assert (settings.steps, settings.training_batch_size, settings.training_lr, settings.training_weight_decay) == (29400, 256, 1e-5, 1e-4)
    assert (settings.alpha_attention, settings.perturbation, settings.protocol, settings.range) == (1000.0, 0.01, "authors", "minmax")
    assert (settings.training_optimizer, settings.keep, settings.ema_decay) == ("sgd", "trained", 0.0)
