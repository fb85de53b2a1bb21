"""DSG's generator: the terms of its loss together, and interruptions."""

from dataclasses import replace

import pytest
import torch

from core.config import GenerationConfig, MachineConfig
from core.generation.bn_statistics import collect_statistics
from core.generation.loop import GenerationLoop, synthesize
from core.generation.sources.dsg_generator import DSGGenerator
from core.reporting import NullReporter

MACHINE = MachineConfig(device="cpu", threads=1)
CONFIG = GenerationConfig(images=32, iterations=6, batch_size=16, snapshots=2, generator_batch_size=8, latent=5)


class Records(NullReporter):
    def __init__(self):
        self.data = []

    def record(self, stage, series, step, data):
        self.data.append(data)


def test_loss_is_the_sum_of_its_terms(small):
    records = Records()
    loop = GenerationLoop(small, CONFIG, "dsg-g", MACHINE, records)
    assert [term["name"] for term in loop.terms()] == ["bns", "ce", "slack", "sci"]
    for _ in range(3):
        loop.step()
    for data in records.data:
        assert data["total"] == pytest.approx(data["ce"] + 0.1 * data["slack"] + data["sci"], rel=1e-4)


@pytest.mark.slow
def test_images_of_the_embedded_network_lower_the_loss(embedded):
    records = Records()
    config = replace(CONFIG, iterations=20, generator_batch_size=16)
    synthesize(embedded, config, "dsg-g", MACHINE, records)
    losses = [data["total"] for data in records.data]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_slack_is_what_gaussian_images_have(small):
    noise = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with collect_statistics(small.network) as statistics:
        small.network(noise)
    found = DSGGenerator(small, CONFIG, MACHINE)._measured_slack()
    for (mean, variance), own, running in zip(found, statistics.batch, statistics.running):
        gaps = [(batch - kept).abs() for batch, kept in zip(own[0], running)]
        # of other noise
        assert (mean, variance) == (
            pytest.approx(float(gaps[0].quantile(0.9)), abs=0.05),
            pytest.approx(float(gaps[1].quantile(0.9)), rel=0.2),
        )


def test_interrupted_generation_gives_the_same_bits(small, tmp_path):
    expected = GenerationLoop(small, CONFIG, "dsg-g", MACHINE)
    first, second = (GenerationLoop(small, CONFIG, "dsg-g", MACHINE, folder=tmp_path) for _ in range(2))
    first.step()
    torch.save(first.state(), tmp_path / "state")
    second.load_state(torch.load(tmp_path / "state", weights_only=True))
    for loop in (expected, second):
        while not loop.finished:
            loop.step()
    assert torch.equal(second.image_set().images, expected.image_set().images)
