"""Qimera: superposed classes, their targets and labels."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.generation.loop import GenerationLoop, synthesize
from core.generation.sources.qimera import Qimera, SuperposingGenerator
from core.quantization.training import QuantizationTraining
from core.reporting import NullReporter

MACHINE = MachineConfig(device="cpu", threads=1)
CONFIG = GenerationConfig(images=16, iterations=4, batch_size=8, snapshots=2, generator_batch_size=8, superposed_classes=3)
AUTHORS = TrainingConfig(weight_bits=3, activation_bits=3, steps=4, training_batch_size=8, calibration_images=8, protocol="authors")


def test_vectors_by_hand():
    torch.manual_seed(0)
    generator, noise = SuperposingGenerator(5, (3, 8, 8), 4), torch.randn(6, 2, 5)
    labels, shares = torch.randint(4, (6, 2)), torch.rand(6, 2)
    embedded = generator.embedding.weight[labels] + noise
    expected = 0.0
    for place in range(2):
        own = embedded[:, place]
        expected = expected + shares[:, place, None] * (own - own.mean()) / (own.var(unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(generator.vectors(noise, labels, shares), expected, atol=1e-5)
    # an image of one class is standardized by itself
    single = generator.vectors(noise[:, :1], labels[:, :1], torch.ones(6, 1))
    assert torch.allclose(single, F.layer_norm(embedded[:, 0], (5,)), atol=1e-5)


def test_latent_is_as_long_as_the_classifiers_input(small):
    assert Qimera(small, CONFIG, MACHINE).generator.embedding.weight.shape == (4, 8)
    assert Qimera(small, replace(CONFIG, latent=5), MACHINE).generator.embedding.weight.shape == (4, 5)


@pytest.mark.parametrize(("share", "places"), [(0.0, {1}), (1.0, {1, 2, 3})])
def test_targets_are_the_shares_of_the_classes(small, share, places):
    source = Qimera(small, replace(CONFIG, superposed_share=share), MACHINE)
    source.images(0)
    targets = source.targets()
    assert torch.allclose(targets.sum(dim=1), torch.ones(8))
    found = set((targets > 0).sum(dim=1).tolist())
    assert found <= places
    assert max(found) == max(places)
    assert torch.equal(source.labels, targets.argmax(dim=1))


def test_share_of_the_batches(small):
    source = Qimera(small, replace(CONFIG, superposed_share=0.4, latent=1), MACHINE)
    mixed = 0
    for _ in range(200):
        with torch.no_grad():
            source.images(0)
        mixed += int((source.targets() < 1).all(dim=1).any())
    assert 55 <= mixed <= 105  # 80, with a standard deviation of 7


def test_interrupted_generation_and_training_give_the_same_bits(small, tmp_path):
    def finished(stepped):
        while not stepped.finished:
            stepped.step()
        return stepped

    expected = finished(GenerationLoop(small, CONFIG, "qimera", MACHINE))
    first, second = (GenerationLoop(small, CONFIG, "qimera", MACHINE, folder=tmp_path) for _ in range(2))
    first.step()
    torch.save(first.state(), tmp_path / "state")
    second.load_state(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(finished(second).image_set().images, expected.image_set().images)

    def training():
        source = Qimera(small, CONFIG, MACHINE)
        source.join(AUTHORS)
        return QuantizationTraining(small, source, source.authors_training(AUTHORS))

    whole, begun, resumed = training(), training(), training()
    begun.step()
    torch.save(begun.state(), tmp_path / "state")
    resumed.load_state(torch.load(tmp_path / "state", weights_only=True))
    for ours, theirs in zip(finished(resumed).student.parameters(), finished(whole).student.parameters()):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_images_of_the_embedded_network_lower_the_loss_and_are_recognized(embedded):
    losses = []

    class Records(NullReporter):
        def record(self, stage, series, step, data):
            losses.append(data["total"])

    config = GenerationConfig(images=80, iterations=80, batch_size=80, snapshots=1, superposed_share=0.2)
    _, summary = synthesize(embedded, config, "qimera", MACHINE, Records())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert summary["teacher_agreement"] > 20  # of ten classes
