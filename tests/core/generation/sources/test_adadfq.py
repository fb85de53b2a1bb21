"""AdaDFQ and AdaSG: their losses, their steps against the student, learning rates, images, and interruptions."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from resumed_training import check_resumed

from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.disagreement import balance_loss
from core.generation.generators import EmbeddingGenerator
from core.generation.loop import GenerationLoop, synthesize
from core.generation.method_terms import squared_gaps
from core.generation.sources.adadfq import AdaDFQ, AdaSG
from core.models.full_precision import FullPrecisionModel
from core.quantization.training import QuantizationTraining
from core.reporting import NullReporter

MACHINE = MachineConfig(device="cpu", threads=1)
CONFIG = GenerationConfig(images=32, iterations=6, batch_size=8, snapshots=2, generator_batch_size=8, latent=5)
AUTHORS = TrainingConfig(weight_bits=3, activation_bits=3, steps=4, training_batch_size=8, calibration_images=8, protocol="authors")
# weights of CE(P - Q, y) and CE(P + Q, y), bounds of the entropy
PUBLISHED = {AdaDFQ: (0.2, 0.1, 0.1, 0.8), AdaSG: (0.1, 0.1, 0.3, 0.8)}


class Records(NullReporter):
    def __init__(self):
        self.data = []

    def record(self, stage, series, step, data):
        self.data.append(data)


@pytest.fixture
def student(small):
    changed = copy.deepcopy(small.network)
    with torch.no_grad():
        changed.output.weight.add_(torch.randn(changed.output.weight.shape, generator=torch.Generator().manual_seed(0)))
    return changed


@pytest.mark.parametrize("method", ["adadfq", "adasg"])
def test_loss_without_a_student_by_hand(small, method):
    """That of a student with the teacher's scores: alpha_as CE(2 P, y) + gamma BNS."""
    config = replace(CONFIG, adaptive_bns=0.3, adaptive_agreement=2.0, beta=50.0, alpha_bns=50.0)
    loop = GenerationLoop(small, config, method, MACHINE, records := Records())
    twin = copy.deepcopy(loop.source)
    loop.step()
    images = twin.images(0)
    with collect_statistics(small.network) as statistics:
        scores = small.network(images)
    ce, gaps = (float(one.detach()) for one in (F.cross_entropy(2 * scores, twin.labels), squared_gaps(statistics)))
    assert records.data[0]["total"] == pytest.approx(2.0 * ce + 0.3 * gaps, rel=1e-4)
    assert [term["name"] for term in loop.terms()] == ["bns", "ce", "gaps"]


@pytest.mark.parametrize("method", PUBLISHED)
def test_loss_against_a_student_by_hand(small, student, method):
    """Each term of L_G with the published weights, and nothing else."""
    disagreement, agreement, low, high = PUBLISHED[method]
    source = method(small, CONFIG, MACHINE)
    source.join(AUTHORS)
    images = copy.deepcopy(source).images(0).detach()
    with collect_statistics(small.network) as statistics:
        teacher = small.network(images)
    own = student(images)
    _, loss = source._joint_step(0, small.network, student)
    labels = source.labels
    expected = balance_loss(teacher - own, low, high) + squared_gaps(statistics)
    expected += disagreement * -(teacher - own).log_softmax(dim=1)[torch.arange(8), labels].mean()
    expected += agreement * -(teacher + own).log_softmax(dim=1)[torch.arange(8), labels].mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("size", "temperature"), [(8, 20.0), (65, 5.0)])
def test_loss_of_the_authors_student_by_hand(small, student, size, temperature):
    """L_Q = -T^2 mean entropy(softmax((P - Q) / T)), without labels, and least for equal networks."""
    source = AdaDFQ(FullPrecisionModel(small.network, replace(small.spec, image_size=size)), CONFIG, MACHINE)
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    shares = ((small.network(images) - student(images)) / temperature).softmax(dim=1)
    found = source.authors_loss(images, small.network, student)
    assert float(found) == pytest.approx(float((shares * shares.log()).sum(dim=1).mean()) * temperature**2, rel=1e-5)
    assert float(source.authors_loss(images, small.network, small.network)) < float(found)
    assert source.authors_training(AUTHORS) == AUTHORS


def test_published_generator_and_learning_rates(small):
    """400 epochs of 200 iterations, a tenth at epochs 100, 200 and 300."""
    source = AdaDFQ(small, replace(CONFIG, latent=0), MACHINE)
    assert isinstance(source.generator, EmbeddingGenerator)
    assert (source.generator.embedding.weight.shape, source.optimizer.defaults["betas"]) == ((4, 100), (0.5, 0.999))
    source.join(replace(AUTHORS, steps=80_000))
    found = [source.rate(epoch * 200 + offset) for epoch in (100, 200, 300) for offset in (-1, 0)]
    assert found == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_student_follows_the_authors_loss_or_that_of_all_methods(small):
    for protocol, own in (("authors", True), ("shared", False)):
        config = replace(AUTHORS, protocol=protocol)
        source = AdaDFQ(small, CONFIG, MACHINE)
        source.join(config)
        training = QuantizationTraining(small, source, config)
        images = source.images(0).detach()
        loss = float(training._loss(images, source.labels).total.detach())
        assert (loss == pytest.approx(float(source.authors_loss(images, small.network, training.student).detach()))) is own


def test_student_and_generator_lower_their_losses(small):
    source = AdaDFQ(small, replace(CONFIG, generator_lr=0.01), MACHINE)
    config = replace(AUTHORS, steps=40, training_lr=1e-3, training_batch_size=32)
    source.join(config)
    training = QuantizationTraining(small, source, config, reporter=(records := Records()))
    while not training.finished:
        training.step()
    for name in ("total", "generator"):
        values = [data[name] for data in records.data]
        assert sum(values[-10:]) < sum(values[:10]), name


@pytest.mark.slow
def test_images_of_the_embedded_network_lower_the_loss_and_are_recognized(embedded):
    config = replace(CONFIG, images=80, batch_size=80, iterations=40, snapshots=1, generator_batch_size=32, generator_lr=3e-3, latent=0)
    synthesize(embedded, config, "adadfq", MACHINE, records := Records())
    assert records.data[-1]["total"] < 0.5 * records.data[0]["total"]
    seen = [data["agreement"] for data in records.data[10:]]
    assert sum(seen) / len(seen) > 13  # of 960 images; 10 by chance, with a standard error of 1


def test_interrupted_generation_gives_the_same_bits(small, tmp_path):
    expected, first, second = (GenerationLoop(small, CONFIG, "adasg", MACHINE, folder=folder) for folder in (None, tmp_path, tmp_path))
    for _ in range(7):
        first.step()
    torch.save(first.state(), tmp_path / "state")
    second.load_state(torch.load(tmp_path / "state", weights_only=True))
    for loop in (expected, second):
        while not loop.finished:
            loop.step()
    assert torch.equal(second.image_set().images, expected.image_set().images)


@pytest.mark.parametrize("protocol", ["shared", "authors"])
def test_interrupted_joint_training_gives_the_same_bits(small, protocol, tmp_path):
    config = replace(AUTHORS, protocol=protocol)

    def made():
        source = AdaDFQ(small, CONFIG, MACHINE)
        source.join(config)
        return QuantizationTraining(small, source, config)

    check_resumed(made, 2, tmp_path / "state")
