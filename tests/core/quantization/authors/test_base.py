"""The authors' protocol of methods that move pixels: images, rates, the perturbed copy, interruptions, and what stays the same."""

import itertools
from dataclasses import replace

import pytest
import torch

from core.config import MachineConfig, TrainingConfig
from core.errors import DataError
from core.generation.methods import METHODS
from core.quantization.authors.base import authors_images
from core.quantization.training import QuantizationTraining
from tests.core.quantization.test_attention import hooks

STUDENTS = [name for name, method in METHODS.items() if method.student]
CONFIG = TrainingConfig(
    weight_bits=3, activation_bits=3, steps=4, training_batch_size=16, calibration_images=16, protocol="authors", ema_decay=0.0
)


def training(model, images, method, config=CONFIG) -> QuantizationTraining:
    source = authors_images(method, images, model, config)
    return QuantizationTraining(model, source, source.authors_training(config))


def finished(one: QuantizationTraining) -> QuantizationTraining:
    while not one.finished:
        one.step()
    return one


def parameters(one: QuantizationTraining) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.student.parameters()])


def test_methods_and_protocols(small, small_images):
    assert set(STUDENTS) >= {"intraq", "hast", "plf", "synq"}
    assert all(METHODS[name].kind == "pixels" for name in STUDENTS)
    for method in ("mi-fgsm", "gdfq", "given"):
        assert authors_images(method, small_images, small, CONFIG) is None
    assert authors_images("hast", small_images, small, replace(CONFIG, protocol="shared")) is None
    with pytest.raises(DataError, match="images must be 8 x 8 pixels"):
        authors_images("hast", replace(small_images, images=small_images.images[..., :6]), small, CONFIG)


@pytest.mark.parametrize("method", STUDENTS)
def test_rates_fall_at_the_epochs_of_the_authors(small, small_images, method):
    """Epochs of 200 steps, counted from 4."""
    source = authors_images(method, small_images, small, replace(CONFIG, steps=147 * 200))
    changes = {epoch for epoch in range(5, 151) if source.rate((epoch - 4) * 200) != source.rate((epoch - 4) * 200 - 1)}
    assert changes == {20, 40, 60}
    assert [source.rate((epoch - 4) * 200) for epoch in (4, 20, 40, 60)] == pytest.approx([1.0, 0.1, 0.01, 0.001])
    first = training(small, small_images, method)
    first.step()
    assert first.optimizer.param_groups[0]["lr"] == CONFIG.training_lr  # no warm-up


@pytest.mark.parametrize("range_method", ["minmax", "lsq"])
@pytest.mark.parametrize("method", STUDENTS)
def test_resuming_at_any_step_gives_the_same_bits(small, small_images, tmp_path, method, range_method):
    config = replace(CONFIG, range=range_method)
    expected = parameters(finished(training(small, small_images, method, config)))
    for at in range(CONFIG.steps + 1):
        first = training(small, small_images, method, config)
        for _ in range(at):
            first.step()
        torch.save(first.state(), tmp_path / "state.pt")
        if not first.finished:
            first.step()  # lost in the interruption
        second = training(small, small_images, method, config)
        second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(parameters(finished(second)), expected), at


@pytest.mark.parametrize("method", STUDENTS)
def test_a_step_leaves_nothing_behind(small, small_images, method):
    """No hook stays on either network, and the teacher has neither gradients nor other values."""
    one = training(small, small_images, method)
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    counts = []
    for _ in range(3):
        one.step()
        counts.append((hooks(one.student), hooks(small.network)))
    assert counts == [counts[0]] * 3
    assert hooks(small.network) == 0
    assert all(torch.equal(value, before[name]) for name, value in small.network.state_dict().items())
    assert all(parameter.grad is None for parameter in small.network.parameters())


@pytest.mark.parametrize("method", STUDENTS)
def test_loss_falls(small, small_images, method):
    config = replace(CONFIG, steps=60, training_batch_size=64, training_lr=1e-3)
    one = training(small, small_images, method, config)
    images, labels = one.source.batch(0, one.teacher, one.student)
    first = one.source.loss(images, labels, one.teacher, one.student).total.item()
    finished(one)
    assert one.source.loss(images, labels, one.teacher, one.student).total.item() < 0.98 * first


def test_images_are_cropped_to_half_of_their_area_or_more(small, small_images):
    """Of a ramp from left to right, a crop of at least 1/2 and sides up to 4/3 shows a share of sqrt(3/8) of the width or more."""
    ramp = (torch.arange(8) * 32).to(torch.uint8).expand(64, 3, 8, 8)
    source = authors_images("hast", replace(small_images, images=ramp), small, CONFIG)
    images, _ = source.batch(0, small.network, small.network)
    spans = (images[:, 0].amax(dim=(1, 2)) - images[:, 0].amin(dim=(1, 2))) * 0.25 * 255 / (7 * 32)
    assert images.shape == (16, 3, 8, 8)
    assert 0.5 < spans.min() < 0.9 < spans.max() <= 1
    directions = (images[:, 0, 0, -1] > images[:, 0, 0, 0]).float().mean()
    assert 0.2 < directions < 0.8


@pytest.mark.parametrize("method", [name for name in STUDENTS if name not in ("intraq", "plf")])
def test_step_follows_the_sum_of_both_losses(small, small_images, method):
    """Gradients of a step: those of L(x) + L(x'), with x' = x + eps sign(dL/dx), and L(x') > L(x)."""
    one = training(small, small_images, method, replace(CONFIG, range="mse"))
    images, labels = one.source.batch(0, one.teacher, one.student)
    total, *rest = one._gradients(images, labels)
    own = images.clone().requires_grad_(True)
    first = one.source.loss(own, labels, one.teacher, one.student).total
    (direction,) = torch.autograd.grad(first, own, retain_graph=True)
    copy = images + one.source.perturbation * direction.sign()
    second = one.source.loss(copy, labels, one.teacher, one.student, perturbed=True).total
    raised = one.source.loss(copy, labels, one.teacher, one.student).total
    assert total.item() == pytest.approx((first + second).item(), rel=1e-5)
    assert raised > first
    expected = torch.autograd.grad(first + second, list(one.student.parameters()))
    for found, gradient in itertools.zip_longest(rest[3:], expected):
        assert torch.allclose(found, gradient, atol=1e-5 * gradient.abs().max().item() + 1e-8)


@pytest.mark.parametrize("method", STUDENTS)
def test_protocol_of_a_run_is_in_its_figures(tiny_run, method):
    for protocol in ("authors", "shared"):
        figures = tiny_run(method, protocol)
        assert figures["protocol"] == protocol
        assert figures["steps"] == 2


@pytest.fixture
def tiny_run(small, small_images, tmp_path):
    """A function that quantizes the small network on images of a method, under a protocol."""
    from core.config import RunConfig
    from core.reporting import NoControl, NullReporter
    from core.stages.context import Context
    from core.stages.quantization import QuantizationInput, quantize

    def run(method, protocol):
        settings = replace(CONFIG, steps=2, protocol=protocol)
        config = RunConfig(methods=(method,), training=settings, bits=(4,), machine=MachineConfig(threads=1))
        given = QuantizationInput(small, method, small_images, None, None)
        return quantize(given, config, 4, tmp_path / method / protocol, Context(NullReporter(), NoControl()))

    return run
