"""The student of SynQ: the terms of its loss by hand, its filter, and what it adds to the loss of the perturbed copy."""

from dataclasses import replace

import pytest
import torch

from core.models.registry import ModelSpec
from core.quantization.authors.hast import HASTStudent
from core.quantization.authors.synq import SynQStudent, easy_cross_entropy
from core.quantization.class_activation import class_activation, last_activations
from tests.core.quantization.authors.test_base import CONFIG, training


def test_easy_cross_entropy_by_hand():
    """Difficulties 0.4, 0.9 and 0.2; divided by all three images, with no constant for those left out."""
    teacher = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]).log()
    student = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]).log().requires_grad_(True)
    labels = torch.tensor([0, 1, 1])
    losses = -torch.tensor([0.5, 0.5, 0.25]).log()
    for hardest, chosen in ((0.5, [0, 2]), (0.3, [2]), (1.0, [0, 1, 2]), (0.0, [])):
        assert easy_cross_entropy(student, teacher, labels, hardest).item() == pytest.approx(losses[chosen].sum().item() / 3, abs=1e-6)
    easy_cross_entropy(student, teacher, labels, 0.5).backward()
    assert student.grad[1].abs().sum() == 0
    assert student.grad[0].abs().sum() > 0


def test_loss_is_that_of_hast_and_two_terms(small, small_images):
    one = training(small, small_images, "synq")
    images, labels = one.source.batch(0, one.teacher, one.student)
    images.requires_grad_(True)
    theirs = HASTStudent(small_images, small, one.source.config, 0).loss(images, labels, one.teacher, one.student)
    with last_activations(one.teacher) as first, last_activations(one.student) as second:
        target, scores = one.teacher(images), one.student(images)
    maps = class_activation(first[0], target, (8, 8)), class_activation(second[0], scores, (8, 8))
    cam = ((maps[0] - maps[1]) ** 2).mean()
    easy = easy_cross_entropy(scores, target, labels, 0.5)
    assert cam > 0
    for copy in (images, images.detach()):  # without a gradient of the images, too
        found = one.source.loss(copy, labels, one.teacher, one.student)
        assert found.total.item() == pytest.approx((theirs.total + 50 * cam + 0.5 * easy).item(), rel=1e-4)
    perturbed = one.source.loss(images, labels, one.teacher, one.student, perturbed=True)
    assert perturbed.total.item() == pytest.approx(theirs.total.item(), rel=1e-6)


def test_images_are_filtered_with_the_cutoff_of_their_size(small, small_images):
    def source(pixels: int, cutoff: float = 0.0) -> SynQStudent:
        spec = ModelSpec("x", "x", tuple("abcd"), pixels, (0.5,) * 3, (0.25,) * 3, "noise")
        return SynQStudent(small_images, replace(small, spec=spec), replace(CONFIG, low_pass=cutoff), 0)

    assert source(224).cutoff == 80
    assert source(32).cutoff == pytest.approx(80 / 7)
    assert source(32, 8.0).cutoff == 8.0
    plain = HASTStudent(small_images, small, CONFIG, 0).batch(0, small.network, small.network)[0]
    filtered = source(8, 1.0).batch(0, small.network, small.network)[0]
    assert torch.allclose(plain.mean(dim=(2, 3)), filtered.mean(dim=(2, 3)), atol=1e-5)
    assert filtered.var(dim=(2, 3)).mean() < 0.5 * plain.var(dim=(2, 3)).mean()
