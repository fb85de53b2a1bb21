"""GDFQ: its loss, learning rates, images, both protocols, and interruptions."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.generators import EmbeddingGenerator
from core.generation.loop import GenerationLoop, synthesize
from core.generation.method_terms import squared_gaps
from core.generation.sources.gdfq import GDFQ
from core.models.full_precision import FullPrecisionModel
from core.quantization.losses import training_loss
from core.quantization.training import QuantizationTraining
from core.reporting import NoControl, NullReporter

MACHINE = MachineConfig(device="cpu", threads=1)
CONFIG = GenerationConfig(images=32, iterations=6, batch_size=8, snapshots=2, generator_batch_size=8, latent=5)
AUTHORS = TrainingConfig(weight_bits=3, activation_bits=3, steps=4, training_batch_size=8, calibration_images=8, protocol="authors")


class Records(NullReporter):
    def __init__(self):
        self.data, self.frames = [], []

    def record(self, stage, series, step, data):
        self.data.append(data)

    def images(self, method, frame, keep):
        self.frames.append(frame)


def test_loss_by_hand(small):
    """beta CE + alpha_bns BNS of the images of the first iteration, and nothing else."""
    config = replace(CONFIG, alpha_bns=0.3, beta=2.0, alpha_tv=50.0, alpha_l2=50.0)
    records, loop = Records(), GenerationLoop(small, config, "gdfq", MACHINE)
    twin = copy.deepcopy(loop.source)
    loop.reporter = records
    loop.step()
    images = twin.images(0)
    with collect_statistics(small.network) as statistics:
        scores = small.network(images)
    ce, gaps = F.cross_entropy(scores, twin.labels).detach(), squared_gaps(statistics).detach()
    (data,) = records.data
    assert (data["ce"], data["gaps"]) == (pytest.approx(float(ce), rel=1e-4), pytest.approx(float(gaps), rel=1e-4))
    assert data["total"] == pytest.approx(float(2.0 * ce + 0.3 * gaps), rel=1e-4)
    assert data["bns"] == pytest.approx(sum(data["layers"]))
    assert [term["name"] for term in loop.terms()] == ["bns", "ce", "gaps"]


def test_optimizer_and_generator_are_the_published_ones(small):
    source = GDFQ(small, replace(CONFIG, latent=0), MACHINE)
    assert isinstance(source.optimizer, torch.optim.Adam)
    assert source.optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert isinstance(source.generator, EmbeddingGenerator)
    assert source.generator.embedding.weight.shape == (4, 100)
    conditional = GDFQ(small, replace(CONFIG, conditioning="batch-norm"), MACHINE)
    assert [len(norm.scale) for norm in conditional.generator.norms] == [4, 4]
    assert conditional.generator.linear.in_features == 5


def rates(small, config):
    loop, seen = GenerationLoop(small, config, "gdfq", MACHINE), []
    while not loop.finished:
        loop.step()
        seen.append(loop.source.optimizer.param_groups[0]["lr"])
    return seen


def test_learning_rates_of_the_generation(small):
    config = replace(CONFIG, iterations=3, generator_lr=0.01)  # two batches are one training of six iterations
    assert rates(small, replace(config, schedule="constant")) == [0.01] * 6
    assert rates(small, config) == pytest.approx([0.01 * (1 - 0.98 * step / 5) for step in range(6)])


def test_learning_rates_of_the_authors(small):
    """400 epochs of 200 iterations, a tenth at epochs 100, 200 and 300."""
    source = GDFQ(small, CONFIG, MACHINE)
    source.join(replace(AUTHORS, steps=80_000))
    found = [source.rate(epoch * 200 + offset) for epoch in (100, 200, 300) for offset in (-1, 0)]
    assert found == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])
    training = QuantizationTraining(small, source, replace(AUTHORS, steps=80_000))
    training.step_count = 40_000
    training.step()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(AUTHORS.training_lr * 0.01)
    assert source.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.01)
    source.join(replace(AUTHORS, protocol="shared"))
    assert source.rate(3) == 1.0


def test_loss_of_the_authors_student(small, small_images):
    """L_Q = CE + T^2 mean over all elements of KL, T 20."""
    source = GDFQ(small, CONFIG, MACHINE)
    student = copy.deepcopy(small.network)
    with torch.no_grad():
        student.output.weight += 0.3
    images, labels = small.normalize(small_images.images[:8]), small_images.labels[:8]
    found = training_loss(student, small.network, images, labels, source.authors_training(AUTHORS)).total
    scores, target = student(images), small.network(images)
    kl = F.kl_div(F.log_softmax(scores / 20, dim=1), F.softmax(target / 20, dim=1), reduction="none").mean()
    assert float(found) == pytest.approx(float(F.cross_entropy(scores, labels) + 400 * kl), rel=1e-4)


def test_student_trains_on_the_images_of_the_generators_step(small):
    source = GDFQ(small, CONFIG, MACHINE)
    source.join(AUTHORS)
    twin = copy.deepcopy(source)
    before = [parameter.detach().clone() for parameter in source.parameters()]
    images, labels = source.batch(0, small.network, small.network)
    assert torch.equal(images, twin.images(0).detach())
    assert torch.equal(labels, twin.labels)
    assert not any(torch.equal(old, new) for old, new in zip(before, source.parameters()))
    after = [parameter.detach().clone() for parameter in source.parameters()]
    assert source.update(0, small.network, small.network).keys() == {"generator"}
    assert all(torch.equal(old, new) for old, new in zip(after, source.parameters()))


def test_live_knobs_act_and_last_into_the_joint_training(small):
    class Control(NoControl):
        def values(self, method, step):
            return {"generator_lr": 0.5, "alpha_bns": 3.0} if step == 2 else {}

    loop = GenerationLoop(small, replace(CONFIG, schedule="constant"), "gdfq", MACHINE, control=Control())
    for _ in range(3):
        loop.step()
    assert loop.source.optimizer.param_groups[0]["lr"] == 0.5
    joint = GDFQ(small, CONFIG, MACHINE)
    joint.load_state(loop.source.state())
    joint.join(AUTHORS)
    joint.batch(0, small.network, small.network)
    assert joint.optimizer.param_groups[0]["lr"] == 0.5
    assert joint._value("alpha_bns") == 3.0


def test_interrupted_generation_gives_the_same_bits(small, tmp_path):
    expected = GenerationLoop(small, CONFIG, "gdfq", MACHINE)
    while not expected.finished:
        expected.step()
    first = GenerationLoop(small, CONFIG, "gdfq", MACHINE, folder=tmp_path)
    for _ in range(7):
        first.step()
    torch.save(first.state(), tmp_path / "state")
    second = GenerationLoop(small, CONFIG, "gdfq", MACHINE, folder=tmp_path)
    second.load_state(torch.load(tmp_path / "state", weights_only=True))
    while not second.finished:
        second.step()
    assert torch.equal(second.image_set().images, expected.image_set().images)


def test_interrupted_joint_training_gives_the_same_bits(small, tmp_path):
    def made():
        source = GDFQ(small, CONFIG, MACHINE)
        source.join(AUTHORS)
        return QuantizationTraining(small, source, source.authors_training(AUTHORS))

    expected, first, second = made(), made(), made()
    first.step()
    first.step()
    torch.save(first.state(), tmp_path / "state")
    second.load_state(torch.load(tmp_path / "state", weights_only=True))
    for training in (expected, second):
        while not training.finished:
            training.step()
    for ours, theirs in ((second.student, expected.student), (second.source.generator, expected.source.generator)):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_frames_show_the_same_noise_and_classes_in_every_iteration(small):
    class Watched(Records):
        def wants_images(self, method):
            return True

    watched, unwatched = Watched(), GenerationLoop(small, CONFIG, "gdfq", MACHINE)
    loop = GenerationLoop(small, CONFIG, "gdfq", MACHINE, reporter=watched)
    while not loop.finished:
        loop.step()
        unwatched.step()
    assert len(watched.frames) == 12
    assert all(frame.labels.tolist() == [0, 1, 2, 3] * 2 for frame in watched.frames)
    assert all(len(frame.confidence) == 8 == len(frame.images) for frame in watched.frames)
    # who watches does not change the images
    assert torch.equal(loop.image_set().images, unwatched.image_set().images)
    assert loop.image_set().labels.bincount().tolist() == [8] * 4


def test_network_that_normalizes_its_images_itself(small):
    """Reads 0 to 1: images come in that scale, and are the same pixels."""
    usual = FullPrecisionModel(small.network, replace(small.spec, mean=(0.45,) * 3, std=(0.25,) * 3))

    class Inside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small.network

        def forward(self, x):
            return self.network((x - 0.45) / 0.25)

    inside = FullPrecisionModel(Inside().eval(), replace(small.spec, mean=(0.0,) * 3, std=(1.0,) * 3))
    sets = [synthesize(model, replace(CONFIG, iterations=2), "gdfq", MACHINE)[0].images.int() for model in (usual, inside)]
    assert ((sets[0] - sets[1]).abs() <= 1).float().mean() > 0.99


@pytest.mark.slow
def test_images_of_the_embedded_network_lower_the_loss_and_are_recognized(embedded):
    records = Records()
    config = GenerationConfig(images=80, iterations=80, batch_size=80, snapshots=1)
    _, summary = synthesize(embedded, config, "gdfq", MACHINE, records)
    losses = [data["total"] for data in records.data]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert summary["teacher_agreement"] > 20  # of ten classes
