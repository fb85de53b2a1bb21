"""TexQ: the losses of its centers, generator, and student, its two phases, and interruptions."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from resumed_training import check_resumed

from core.config import GenerationConfig, MachineConfig, TrainingConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.loop import GenerationLoop, synthesize
from core.generation.method_terms import layered_gaps, squared_gaps
from core.generation.sources.texq import TexQ
from core.quantization.losses import training_loss
from core.quantization.training import QuantizationTraining
from core.reporting import NullReporter

MACHINE = MachineConfig(device="cpu", threads=1)
# two batches of five iterations; the first four iterations are for the centers
CONFIG = GenerationConfig(images=32, iterations=5, batch_size=8, snapshots=2, generator_batch_size=8, latent=5, texq_share=0.4)
AUTHORS = TrainingConfig(weight_bits=3, activation_bits=3, steps=4, training_batch_size=8, calibration_images=8, protocol="authors")


class Records(NullReporter):
    def __init__(self):
        self.data, self.frames = [], []

    def record(self, stage, series, step, data):
        self.data.append(data)

    def images(self, method, frame, keep):
        self.frames.append(frame)

    def wants_images(self, method):
        return True


def finished(loop):
    while not loop.finished:
        loop.step()
    return loop


def class_images(source):
    """A list that gets the images of the classes when their centers are taken."""
    seen, taken = [], source._features

    def features():
        seen.append(source._images.clone())
        return taken()

    source._features = features
    return seen


def features_of(network, images):
    """What enters the classifier of the small network."""
    found = []
    handle = network.output.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].detach()))
    with torch.no_grad():
        network(images)
    handle.remove()
    return found[0]


def test_loss_of_the_centers_by_hand(small):
    records = Records()
    loop = GenerationLoop(small, CONFIG, "texq", MACHINE, records)
    images, generator = loop.source._images.clone(), copy.deepcopy(loop.source.generator.state_dict())
    with collect_statistics(small.network) as statistics, torch.no_grad():
        scores = small.network(images)
    seen = class_images(loop.source)
    for _ in range(4):
        loop.step()
    first = records.data[0]
    assert first["total"] == pytest.approx(float(5 * F.cross_entropy(scores, torch.arange(4)) + layered_gaps(statistics)), rel=1e-4)
    assert (first["ce"], first["gaps"], first["guidance"]) == (0, 0, 0)
    assert records.data[3]["total"] < first["total"]
    # pixels whose gradient keeps its sign move by Adam's step size each time, which is constant
    assert float((seen[0] - images).abs().max()) == pytest.approx(4 * 0.05, rel=0.02)
    assert records.frames[0].labels.tolist() == [0, 1, 2, 3]
    assert torch.allclose(loop.source._centers, features_of(small.network, seen[0]), atol=1e-5)
    for name, value in loop.source.generator.state_dict().items():
        assert torch.equal(value, generator[name]), name


def test_loss_of_the_generator_by_hand(small):
    """beta CE + alpha_bns BNS + guidance (max(near - d, 0) + max(d - far, 0)), with d from the center of the class."""
    config = replace(CONFIG, beta=2.0, alpha_bns=0.3, texq_guidance=0.7, texq_near=0.05, texq_far=0.1, texq_noise=0.0)
    records = Records()
    loop = GenerationLoop(small, config, "texq", MACHINE, records)
    for _ in range(4):
        loop.step()
    images = (twin := copy.deepcopy(loop.source)).images(4).detach()
    loop.step()
    with collect_statistics(small.network) as statistics, torch.no_grad():
        scores = small.network(images)
    features, centers = features_of(small.network, images), twin._centers[twin.labels]
    cosine = (features * centers).sum(dim=1) / (features.norm(dim=1) * centers.norm(dim=1))
    guidance = float(sum(max(0.05 - float(1 - one), 0) + max(float(1 - one) - 0.1, 0) for one in cosine) / 8)
    data = records.data[4]
    assert guidance > 0
    assert data["guidance"] == pytest.approx(guidance, rel=1e-4)
    expected = 2.0 * F.cross_entropy(scores, twin.labels) + 0.3 * squared_gaps(statistics) + 0.7 * guidance
    assert data["total"] == pytest.approx(float(expected), rel=1e-4)
    assert data["center"] == 0


def test_noise_of_the_centers(small):
    source = TexQ(small, replace(CONFIG, texq_noise=0.5), MACHINE)
    source._centers = torch.zeros(4, 2000)
    source.images(4)
    first = source._noisy
    source.images(4)
    assert float(first.std()) == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(first, source._noisy)


def test_many_classes_are_made_in_groups(small):
    loop = GenerationLoop(small, replace(CONFIG, generator_batch_size=2), "texq", MACHINE)
    start, groups, seen = loop.source._images.clone(), [], class_images(loop.source)
    for _ in range(4):
        loop.step()
        groups.append(loop.source.labels.tolist())
    assert groups == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert not any(torch.equal(own, old) for own, old in zip(seen[0], start))
    assert loop.source._centers.shape == (4, 8)


def test_without_centers_it_is_gdfq(small):
    ours, theirs = (finished(GenerationLoop(small, replace(CONFIG, texq_share=0.0), name, MACHINE)) for name in ("texq", "gdfq"))
    assert ours.source._centers is None
    # TexQ has drawn its centers before, so that its noise is another
    assert ours.summary()["bns_loss_last"] == pytest.approx(theirs.summary()["bns_loss_last"], rel=0.5)


def test_student_learns_from_mixtures(small):
    source = TexQ(small, CONFIG, MACHINE)
    source.join(AUTHORS)
    twin = copy.deepcopy(source)
    images, _ = source.batch(0, small.network, small.network)
    plain = twin.images(0).detach()
    share = float(torch.rand((), generator=twin._random))
    others = torch.randperm(8, generator=twin._random)
    assert 0 < share < 1
    assert torch.allclose(images, share * plain + (1 - share) * plain[others])
    student = copy.deepcopy(small.network)
    with torch.no_grad():
        student.output.weight += torch.randn(student.output.weight.shape, generator=torch.Generator().manual_seed(0))
    found = training_loss(student, small.network, images, source.labels, source.authors_training(AUTHORS)).total
    theirs, own = (network(images) / 20 for network in (small.network, student))
    kl = (theirs.softmax(dim=1) * (theirs.log_softmax(dim=1) - own.log_softmax(dim=1))).mean()
    assert float(found) == pytest.approx(400 * float(kl), rel=1e-3)


@pytest.mark.slow
def test_centers_and_images_of_the_embedded_network_are_recognized(embedded):
    config = replace(CONFIG, images=80, batch_size=80, iterations=80, snapshots=1, generator_batch_size=32, latent=0, texq_share=0.5)
    config = replace(config, schedule="constant", generator_lr=3e-3)
    synthesize(embedded, config, "texq", MACHINE, records := Records())
    totals, agreement = ([data[name] for data in records.data] for name in ("total", "agreement"))
    assert agreement[39] >= 90  # of ten classes
    assert totals[39] < 0.5 * totals[0]
    assert sum(totals[-5:]) < 0.7 * sum(totals[40:45])
    assert sum(agreement[-20:]) / 20 > 13  # of 640 images; 10 by chance, with a standard error of 1.2


@pytest.mark.parametrize("at", [2, 4, 7])
def test_interrupted_generation_gives_the_same_bits(small, tmp_path, at):
    """Between two groups of centers, before the generator's first step, and later."""
    config = replace(CONFIG, generator_batch_size=2)
    expected, first, second = (GenerationLoop(small, config, "texq", MACHINE, folder=folder) for folder in (None, tmp_path, tmp_path))
    for _ in range(at):
        first.step()
    torch.save(first.state(), tmp_path / "state")
    second.load_state(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(finished(second).image_set().images, finished(expected).image_set().images)
    assert torch.equal(second.source._centers, expected.source._centers)


def test_interrupted_joint_training_gives_the_same_bits(small, tmp_path):
    state = finished(GenerationLoop(small, CONFIG, "texq", MACHINE)).source.state()

    def made():
        source = TexQ(small, CONFIG, MACHINE)
        source.load_state(copy.deepcopy(state))  # an optimizer changes the tensors that it has loaded
        source.join(AUTHORS)
        return QuantizationTraining(small, source, source.authors_training(AUTHORS))

    check_resumed(made, 2, tmp_path / "state")
