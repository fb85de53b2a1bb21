from dataclasses import replace

import pytest
import torch
from torch import nn

from core.config import PRESETS
from core.memory import available_bytes
from core.models.full_precision import FullPrecisionModel
from core.reporting import NullReporter
from core.stages import batches
from core.stages.batches import fitting, output_bytes
from tests.core.recorded_runs import Recorder

CONFIG = PRESETS["quick"]


def test_outputs_by_hand(small):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).eval()
    model = FullPrecisionModel(network, replace(small.spec, image_size=8))
    assert output_bytes(model) == 4 * (4 * 64 + 4 * 64 + 4 + 4 + 4)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("images", "generation", "training"),
    [(1e6, 128, 64), (100, 16, 8), (70, 8, 4), (0.5, 2, 2)],  # for so many images times the outputs of their layers, there is memory
)
def test_batches_fit(small, monkeypatch, images, generation, training):
    monkeypatch.setattr(batches, "available_bytes", lambda device: int(images * output_bytes(small)))
    reporter = Recorder()
    fitted = fitting(small, CONFIG, reporter)
    assert (fitted.generation.batch_size, fitted.training.training_batch_size) == (generation, training)
    assert (fitted == CONFIG) == (not reporter.results)
    if generation < 128:
        assert reporter.results["warning/memory/generation"].startswith(f"Batches of the generation have {generation} images, because ")


def test_unknown_memory_changes_nothing(small, monkeypatch):
    monkeypatch.setattr(batches, "available_bytes", lambda device: None)
    assert fitting(small, CONFIG, NullReporter()) is CONFIG


def test_memory_of_this_machine():
    free = available_bytes(torch.device("cpu"))
    assert free is None or 10e6 < free < 100e12
