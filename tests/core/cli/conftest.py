"""The runs folder of the tests, and their images, networks and preset."""

from dataclasses import replace

import pytest
import torch
from command_line import TINY, call
from PIL import Image
from safetensors.torch import load_file

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labeled import embedded_images
from core.models.full_precision import build_architecture, save_checkpoint
from core.models.registry import CIFAR10_CLASSES, MODELS
from core.runs.store import RUNS_VARIABLE


@pytest.fixture(autouse=True)
def runs(tmp_path_factory, monkeypatch):
    """The runs folder, outside the folder of the test."""
    folder = tmp_path_factory.mktemp("store") / "runs"
    monkeypatch.setenv(RUNS_VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with two images per CIFAR-10 class."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / name).mkdir()
        for index in [i for i, other in enumerate(labels) if other == label][:2]:
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "set"
    assert call("generate", *TINY, "--out", folder, "--runs", folder.parent / "runs") == 0
    return folder


@pytest.fixture(scope="session")
def without_batch_norm(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "plain.safetensors"
    spec = replace(MODELS["resnet20_cifar10"][1], name="plain", architecture="squeezenet_v1_0")
    save_checkpoint(build_architecture("squeezenet_v1_0", 10), spec, path)
    return path


@pytest.fixture
def tiny_preset(monkeypatch, pictures):
    generation = GenerationConfig(images=8, iterations=3, snapshots=2, batch_size=4)
    training = TrainingConfig(range="minmax", steps=1, training_batch_size=4, calibration_images=8)
    machine, evaluation = MachineConfig(device="cpu", threads=1), EvaluationConfig(data=str(pictures))
    config = RunConfig(machine=machine, generation=generation, training=training, evaluation=evaluation, bits=(3, 4))
    monkeypatch.setattr("core.config.presets.PRESETS", {"quick": config})


@pytest.fixture(scope="session")
def of_others(tmp_path_factory):
    """The weights of the embedded network as another program saves them."""
    path = tmp_path_factory.mktemp("others") / "best.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in load_file(MODELS["resnet20_cifar10"][0]).items()}}, path)
    return path
