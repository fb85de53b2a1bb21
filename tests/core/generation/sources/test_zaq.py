"""ZAQ: its losses, its steps against the student, and interruptions."""

import copy
from dataclasses import replace

import pytest
import torch
from resumed_training import check_resumed

from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.generation.feature_relations import feature_relations
from core.generation.loop import GenerationLoop
from core.generation.sources.zaq import ZAQ
from core.quantization.training import QuantizationTraining
from core.reporting import NullReporter

MACHINE = MachineConfig(device="cpu", threads=1)
CONFIG = GenerationConfig(images=16, iterations=4, batch_size=8, snapshots=2, generator_batch_size=8, student_steps=2, latent=6)
AUTHORS = TrainingConfig(weight_bits=3, activation_bits=3, steps=6, training_batch_size=8, calibration_images=8, protocol="authors")


@pytest.fixture
def student(small):
    changed = copy.deepcopy(small.network)
    with torch.no_grad():
        changed.output.weight.add_(0.2)
    return changed


def test_published_generator(small):
    source = ZAQ(small, replace(CONFIG, latent=0), MACHINE)
    assert source.generator.linear.in_features == 256
    assert [norm.eps for norm in source.generator.norms] == [1e-5, 1e-5]
    source.join(replace(AUTHORS, steps=90_000))
    assert [source.rate(step) for step in (29_999, 30_000, 59_999, 60_000)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_loss_of_the_generation_by_hand(small):
    seen = []

    class Records(NullReporter):
        def record(self, stage, series, step, data):
            seen.append(data["total"])

    loop = GenerationLoop(small, CONFIG, "zaq", MACHINE, Records())
    images = copy.deepcopy(loop.source).images(0)
    network, entered = small.network, []
    with torch.no_grad():
        network.output.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
        network(images)
    loop.step()
    assert seen == [pytest.approx(-0.1 * float(entered[0].abs().mean()), rel=1e-4)]
    while not loop.finished:
        loop.step()
    assert seen[-1] < seen[0]


def test_losses_of_both_networks_by_hand(small, student):
    source = ZAQ(small, replace(CONFIG, alpha_relations=2.0), MACHINE)
    images = source.images(0).detach()
    distance, relations = feature_relations(images, small.network, student)
    expected = float(distance + 2.0 * relations)
    assert float(source.authors_loss(images, small.network, student)) == pytest.approx(expected, rel=1e-5)
    assert float(source.student_loss(images, source.labels, small.network, student)) == pytest.approx(-expected, rel=1e-5)


def test_generator_moves_after_every_second_step_of_the_student(small, student):
    source, moved = ZAQ(small, CONFIG, MACHINE), []
    source.join(AUTHORS)
    for step in range(4):
        before = [parameter.detach().clone() for parameter in source.parameters()]
        source.batch(step, small.network, student)
        source.update(step, small.network, student)
        moved.append(not all(torch.equal(old, new) for old, new in zip(before, source.parameters())))
    assert moved == [False, True, False, True]


def test_student_follows_the_authors_loss_or_that_of_all_methods(small):
    for protocol, own in (("authors", True), ("shared", False)):
        config = replace(AUTHORS, protocol=protocol)
        source = ZAQ(small, CONFIG, MACHINE)
        source.join(config)
        training = QuantizationTraining(small, source, config)
        images = source.images(0).detach()
        loss = training._loss(images, source.labels).total.detach()
        expected = source.authors_loss(images, small.network, training.student).detach()
        assert (float(loss) == pytest.approx(float(expected))) is own


def test_labels_are_the_teachers(small):
    loop = GenerationLoop(small, CONFIG, "zaq", MACHINE)
    while not loop.finished:
        loop.step()
    assert loop.summary()["teacher_agreement"] > 90  # rounded to pixels, a few may change


def test_interrupted_joint_training_gives_the_same_bits(small, tmp_path):
    def made():
        source = ZAQ(small, CONFIG, MACHINE)
        source.join(AUTHORS)
        return QuantizationTraining(small, source, AUTHORS)

    check_resumed(made, 3, tmp_path / "state")
