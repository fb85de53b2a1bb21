"""Genie's images: its loss and rates by hand, the generator, and what the teacher makes of the images."""

from dataclasses import replace

import pytest
import torch

from core.config import PRESETS, GenerationConfig
from core.generation.bn_statistics import BatchStatistics
from core.generation.generators import SmallGenerator
from core.generation.loop import GenerationLoop, synthesize
from core.generation.losses import ForwardOutputs
from core.generation.sources.genie import deviation_gaps, input_gaps
from core.reporting import NoControl, NullReporter

CONFIG = GenerationConfig(images=16, iterations=8, batch_size=8, snapshots=2)


def outputs(images, statistics=None):
    return ForwardOutputs(images, torch.zeros(len(images)), torch.zeros(len(images), 2), torch.zeros(1), statistics=statistics)


def test_deviation_gaps_by_hand():
    running = [(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])), (torch.tensor([0.0]), torch.tensor([1.0]))]
    statistics = BatchStatistics(["a", "b"], running)
    statistics.clear()
    statistics.add(0, torch.tensor([2.0, 4.0]), torch.tensor([9.0, 1.0]))
    statistics.add(1, torch.tensor([3.0]), torch.tensor([16.0]))
    # means: (1 + 4) / 2; deviations 3 and 1 for 2 and 3: (1 + 4) / 2; second layer 9 + 9: over channels a mean, over layers a sum
    assert float(deviation_gaps(outputs(torch.zeros(2, 3, 4, 4), statistics))) == pytest.approx(2.5 + 2.5 + 9 + 9, rel=1e-5)


def test_input_gaps_by_hand():
    images = torch.zeros(2, 2, 2, 2)
    images[0, 0] = torch.tensor([[1.0, 3.0], [1.0, 3.0]])  # mean 2, unbiased variance 4/3
    images[1, 1] = 5.0  # mean 5, variance 0; the two other channels have mean 0, variance 0
    expected = (4 + ((4 / 3) ** 0.5 - 1) ** 2 + 1 + 1 + 25 + 1) / 2
    assert float(input_gaps(outputs(images))) == pytest.approx(expected, abs=0.005)  # a millionth is added to variances


def test_gradient_of_the_loss_is_numeric():
    running = [(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))]

    def loss(images):
        statistics = BatchStatistics(["a"], running)
        statistics.clear()
        variance, mean = torch.var_mean(images, dim=(0, 2, 3))
        statistics.add(0, mean, variance)
        return deviation_gaps(outputs(images, statistics)) + input_gaps(outputs(images))

    images = torch.rand(2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    assert torch.autograd.gradcheck(loss, images)


def test_generator_has_the_published_shape():
    generator = SmallGenerator(256, (3, 32, 32))
    linear = 256 * 128 * 8 * 8 + 128 * 8 * 8
    convolutions = 128 * 64 * 9 + 64 + 64 * 3 * 9 + 3
    norms = 2 * 128 + 2 * 64
    assert sum(parameter.numel() for parameter in generator.parameters()) == linear + convolutions + norms
    images = generator(torch.randn(5, 256))
    assert images.shape == (5, 3, 32, 32)
    assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 3, abs=1e-4)
    assert images.var(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-3)
    assert SmallGenerator(8, (1, 30, 21))(torch.randn(2, 8)).shape == (2, 1, 30, 21)


def test_rates_are_the_authors(small):
    generation = PRESETS["genie"].generation
    assert (generation.images, generation.batch_size, generation.iterations) == (1024, 128, 4000)
    assert (generation.schedule, generation.patience) == ("plateau", 100)
    source = GenerationLoop(small, replace(generation, images=4, batch_size=4), "genie").source
    values = {"genie_latent_lr": 0.1, "genie_generator_lr": 0.01}
    assert [source.rate(values, at) for at in (0, 99, 100, 1000, 3999)] == pytest.approx([0.01 * 0.95**n for n in (0, 0, 1, 10, 39)])
    assert [source.latent_rate(values, factor) for factor in (1.0, 0.1, 1e-9)] == pytest.approx([0.1, 0.01, 1e-4])
    fewer = GenerationLoop(small, replace(CONFIG, iterations=50), "genie").source
    assert fewer.rate(values, 49) == pytest.approx(0.01 * 0.95**39)


def test_rates_are_live_and_every_batch_starts_afresh(small):
    class Still(NoControl):
        def values(self, method, step):
            return {"genie_latent_lr": 0.0, "genie_generator_lr": 0.0 if step < 2 else 0.01}

    loop = GenerationLoop(small, CONFIG, "genie", control=Still())
    first, z = loop.source.current(), loop.source.z.clone()
    loop.step()
    loop.step()
    assert torch.equal(loop.source.current(), first)
    loop.step()
    assert not torch.equal(loop.source.current(), first)
    assert torch.equal(loop.source.z, z)
    generator = loop.source.generator
    two = GenerationLoop(small, replace(CONFIG, images=32), "genie")  # of two batches
    while two.step_count < 8:
        two.step()
    assert two.source.generator is not generator
    assert not two.source.optimizer.state
    assert not torch.equal(two.source.z, z)


def test_labels_are_the_teachers_classes(small):
    images, summary = synthesize(small, CONFIG, "genie")
    classes = small.network(small.normalize(images.images)).argmax(dim=1)
    assert float((classes == images.labels).float().mean()) > 0.8  # pixels were rounded, and limited to black and white
    assert summary["images"] == 16


def test_images_lower_their_loss_and_the_teacher_recognizes_them(embedded):
    class Recorder(NullReporter):
        totals, bns = [], []

        def record(self, stage, method, step, values):
            self.totals.append(values["total"])
            self.bns.append(values["bns"])

    config = replace(PRESETS["quick"].generation, images=32, batch_size=32, snapshots=1, iterations=30)
    images, summary = synthesize(embedded, config, "genie", reporter=Recorder())
    assert sum(Recorder.totals[-5:]) < 0.3 * sum(Recorder.totals[:5])
    assert summary["bns_loss_last"] < 0.7 * summary["bns_loss_first"]
    with torch.no_grad():
        scores = embedded.network(embedded.normalize(images.images)).softmax(dim=1).max(dim=1).values
    assert float(scores.mean()) > 0.5
