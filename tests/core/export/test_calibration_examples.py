"""The examples: other quantizers calibrate with an exported archive as it is and lose little accuracy."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.config import GenerationConfig
from core.export.image_sets import export_images
from core.generation.loop import synthesize

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def archive(tmp_path_factory, embedded) -> Path:
    """128 images from few iterations."""
    config = GenerationConfig(images=128, iterations=20, snapshots=4)
    out = tmp_path_factory.mktemp("sets") / "set.npz"
    export_images(synthesize(embedded, config)[0], embedded, "npz", out)
    return out


def accuracies(example: str, archive: Path) -> tuple[float, float]:
    """Top-1 in percent, as printed by the example: float and 8 bits."""
    command = [sys.executable, "-m", f"examples.{example}", str(archive)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=900, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"top-1: float (\d+\.\d\d), 8 bits (\d+\.\d\d)", done.stdout.splitlines()[-1])
    assert found, done.stdout
    return float(found[1]), float(found[2])


@pytest.mark.slow
@pytest.mark.parametrize("example", ["calibrate_onnxruntime", "calibrate_torchao"])
def test_other_quantizers_calibrate_with_the_archive(archive, example):
    full, quantized = accuracies(example, archive)
    assert full == 92.10
    assert quantized > full - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("example", ["calibrate_onnxruntime", "calibrate_torchao"])
def test_calibration_depends_on_the_images(tmp_path, example):
    """Uniformly gray images give wrong ranges, and the accuracy drops."""
    np.savez(tmp_path / "grey.npz", images=np.zeros((4, 3, 32, 32), dtype=np.float32))
    full, quantized = accuracies(example, tmp_path / "grey.npz")
    assert full == 92.10
    assert quantized < full - 10
