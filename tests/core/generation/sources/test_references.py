"""References: different images, none of which is optimized, with the statistics of every method."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.config import GenerationConfig, MachineConfig
from core.errors import CoreError, DataError
from core.generation.loop import GenerationLoop, synthesize
from core.reporting import NullReporter

CONFIG = GenerationConfig(images=24, iterations=5, batch_size=4, snapshots=3, burn_in=0.0)  # batches of 4 and 4


@pytest.fixture
def folder(tmp_path):
    """Ten images of the network's size, each of one value of its own; one class in a folder, the others beside it."""
    (tmp_path / "real" / "cat").mkdir(parents=True)
    for number in range(10):
        picture = Image.new("RGB", (8, 8), (20 * number, 10 * number, 5 * number))
        picture.save(tmp_path / "real" / ("cat" if number % 2 else ".") / f"{number}.png")
    return tmp_path / "real"


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


def test_real_images_are_those_of_the_folder_each_once_and_then_again(small, folder):
    images, summary = synthesize(small, replace(CONFIG, real_images=str(folder)), "real")
    assert len(images) == 24
    values = images.images.flatten(2)
    assert torch.equal(values[:, :, :1].expand_as(values), values)  # of one value, as they were
    red = values[:, 0, 0].tolist()
    assert sorted(red[:10]) == sorted(red[10:20]) == [20 * number for number in range(10)]
    assert red[:10] != red[10:20]
    assert torch.equal(values[:, 1, 0] * 2, values[:, 0, 0])
    assert images.manifest["config"]["real_images"] == "real"  # not where it is
    assert summary["bns_loss_last"] > 0
    other, _ = synthesize(small, replace(CONFIG, real_images=str(folder)), "real", machine=MachineConfig(seed=1))
    assert other.images[:, 0, 0, 0].tolist() != red


def test_real_images_of_another_size_are_resized_and_cropped(small, tmp_path):
    wide = Image.new("RGB", (32, 16), (200, 100, 50))
    wide.paste((0, 0, 0), (0, 0, 8, 16))  # cropped away
    wide.save(tmp_path / "wide.png")
    images, _ = synthesize(small, replace(CONFIG, images=2, snapshots=1, real_images=str(tmp_path)), "real")
    assert images.images.shape == (2, 3, 8, 8)
    assert images.images[0, :, 4, 4].tolist() == [200, 100, 50]
    assert int(images.images[0, 0].min()) > 150


def test_one_image_in_a_hundred_may_be_damaged(small, tmp_path):
    for number in range(150):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"no picture")
    config = replace(CONFIG, images=150, snapshots=1, batch_size=150, real_images=str(tmp_path))
    images, _ = synthesize(small, config, "real")
    red = images.images[:, 0, 0, 0].tolist()
    assert sorted(red[:149]) == [number for number in range(150) if number != 7]
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="at most 1 % of the images may be skipped"):
        synthesize(small, config, "real")


def test_network_that_overflows_is_named(small):
    loop = GenerationLoop(small, CONFIG, "noise")
    loop.step()
    loop._last_pass = None
    loop.source.current().fill_(float("inf"))
    with pytest.raises(CoreError, match="^the loss of noise must be finite, .*: small must be able to score these images in float32$"):
        loop.step()


def test_real_images_need_a_folder(small):
    with pytest.raises(DataError, match="^real_images must be a folder of images, got none$"):
        GenerationLoop(small, CONFIG, "real")


@pytest.mark.parametrize("method", ["noise", "real"])
@pytest.mark.parametrize("at", [0, 1, 3, 5, 9, 10])
def test_resuming_gives_the_same_bits(small, folder, tmp_path, at, method):
    config = replace(CONFIG, real_images=str(folder))
    whole = GenerationLoop(small, config, method, folder=tmp_path / "whole")
    while not whole.finished:
        whole.step()
    first = GenerationLoop(small, config, method, folder=tmp_path / "parts")
    for _ in range(at):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    second = GenerationLoop(small, config, method, folder=tmp_path / "parts")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    while not second.finished:
        second.step()
    assert torch.equal(whole.image_set().images, second.image_set().images)
    assert torch.equal(whole.image_set().labels, second.image_set().labels)
    assert whole.summary()["bns_loss_last"] == second.summary()["bns_loss_last"]
