"""References: different images, none of which is optimized, with the statistics of every method."""

import pytest
import torch
import torch.nn.functional as F

from core.config import GenerationConfig
from core.generation.loop import GenerationLoop, synthesize
from core.reporting import NullReporter

CONFIG = GenerationConfig(images=24, iterations=5, batch_size=4, snapshots=3, burn_in=0.0)  # batches of 4 and 4


class Recorder(NullReporter):
    def __init__(self):
        self.values = []

    def record(self, stage, method, step, values):
        self.values.append(values)


def l_bns(model, images):
    """Sum over layers of the norms of both gaps, with torch's own variance."""
    x, total = images, 0.0
    network = model.network
    first = network.conv1(x)
    second = network.conv2(F.relu(network.bn1(first)))
    for inputs, layer in ((first, network.bn1), (second, network.bn2)):
        variance, mean = torch.var_mean(inputs, dim=(0, 2, 3))
        total += float((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
    return total


def test_noise_is_gaussian_and_every_image_is_another(small):
    images, summary = synthesize(small, CONFIG, "noise")
    assert images.images.shape == (24, 3, 8, 8)
    assert len(images.images.flatten(1).unique(dim=0)) == 24
    # of a mean color of 0.5 and a deviation of 0.25: 127.5 and 63.75, where about 4.6 % of the pixels are black or white
    clamped = (127.5 + 63.75 * torch.randn(100_000, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    assert float(images.images.float().mean()) == pytest.approx(float(clamped.mean()), abs=3)
    assert float(images.images.float().std()) == pytest.approx(float(clamped.std()), abs=3)
    assert (summary["images"], summary["image_iterations"]) == (24, 0)


def test_labels_are_the_teachers_classes(small):
    images, _ = synthesize(small, CONFIG, "noise")
    assert torch.equal(small.network(small.normalize(images.images)).argmax(dim=1), images.labels)


def test_l_bns_is_recorded_and_lowered_by_nothing(small):
    recorder = Recorder()
    loop = GenerationLoop(small, CONFIG, "noise", reporter=recorder)
    seen = []
    while not loop.finished:
        seen.append(l_bns(small, loop.source.current()))
        loop.step()
    assert [values["bns"] for values in recorder.values] == pytest.approx(seen, rel=1e-4)
    assert [values["total"] for values in recorder.values] == [values["bns"] for values in recorder.values]
    # new images after each of three snapshots in a batch: after iterations 2, 4 and 5
    changed = [number for number in range(1, 10) if seen[number] != seen[number - 1]]
    assert changed == [2, 4, 5, 7, 9]
    assert [term["name"] for term in loop.terms()] == ["bns"]


def test_images_that_stay_are_scored_once(small):
    loop = GenerationLoop(small, CONFIG, "noise")
    calls, score = [], loop._forward

    def counting(*arguments):
        calls.append(1)
        return score(*arguments)

    loop._forward = counting
    while not loop.finished:
        loop.step()
    assert len(calls) == 6  # 24 images in draws of 4, not 10 iterations


@pytest.mark.parametrize("at", [0, 1, 3, 5, 9, 10])
def test_resuming_gives_the_same_bits(small, tmp_path, at):
    whole = GenerationLoop(small, CONFIG, "noise", folder=tmp_path / "whole")
    while not whole.finished:
        whole.step()
    first = GenerationLoop(small, CONFIG, "noise", folder=tmp_path / "parts")
    for _ in range(at):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    second = GenerationLoop(small, CONFIG, "noise", folder=tmp_path / "parts")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    while not second.finished:
        second.step()
    assert torch.equal(whole.image_set().images, second.image_set().images)
    assert torch.equal(whole.image_set().labels, second.image_set().labels)
    assert whole.summary()["bns_loss_last"] == second.summary()["bns_loss_last"]
