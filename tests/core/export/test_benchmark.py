"""The command `benchmark` and the example that classifies a picture, on files of every format."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.__main__ import main
from core.errors import ConfigError, DataError, ModelError
from core.export.benchmark import benchmark
from core.export.formats import SUFFIXES
from core.export.network import save_network
from core.export.targets import TARGETS, opener
from core.models.full_precision import save_checkpoint

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("pt2", ".pt2"), ("packed", ".safetensors")])
def test_every_format_is_measured(embedded, calibrated, tmp_path, kind, suffix):
    quantized, config = calibrated(embedded, 8)
    path = tmp_path / f"network{suffix}"
    save_network(kind, quantized, embedded, config, path)
    found = benchmark(path, 0.0)
    assert (found["file"], found["bytes"]) == (path.name, path.stat().st_size)
    assert found["runs_in"].startswith("onnxruntime" if kind == "onnx" else "torch")
    # a batch of 32 takes at least as long as one image
    assert 0 < found["latency_ms_1_thread"] <= 1000 * 32 / found["images_per_second_1_thread"] * 1.5


def test_other_files_are_refused(small, tmp_path, capsys):
    with pytest.raises(DataError, match="cannot be read: it does not exist$"):
        benchmark(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("text", encoding="utf-8")
    save_checkpoint(small.network, small.spec, tmp_path / "network.safetensors")
    (tmp_path / "text.pt2").write_text("text", encoding="utf-8")
    for name in ("text.onnx", "text.pt2", "network.safetensors"):
        with pytest.raises(ModelError, match=f"{name} must be a network written by `export`"):
            benchmark(tmp_path / name)
    (tmp_path / "picture.jpg").write_bytes(b"")
    assert main(["benchmark", str(tmp_path / "picture.jpg")]) == 2
    assert "file must end in .onnx, .safetensors, .pt2, .pte or .tflite" in capsys.readouterr().err


def test_a_file_is_measured_in_another_target_and_with_the_images_it_takes(small, calibrated, tmp_path):
    quantized, config = calibrated(small, 8)
    path = tmp_path / "network.onnx"
    save_network("onnx-exact", quantized, small, config, path, preprocessing=True)
    assert benchmark(path, 0.0, "openvino")["runs_in"].startswith("openvino 20")
    with pytest.raises(ConfigError, match=r"^network.onnx must end in .pt2 for target torch$"):
        benchmark(path, 0.0, "torch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "preprocessing", "target", "flags"),
    [
        ("onnx", False, "onnxruntime", ()),
        ("onnx", True, "onnxruntime", ()),
        ("onnx", True, "openvino", ("--openvino",)),
        ("pt2", False, "torch", ()),
        ("pt2", True, "torch", ()),
        ("pte", False, "executorch", ()),
        ("pte", True, "executorch", ()),
        ("tflite", False, "litert", ()),
        ("tflite", True, "litert", ()),
    ],
)
def test_the_example_prints_the_classes_of_a_picture(embedded, calibrated, tmp_path, kind, preprocessing, target, flags):
    pytest.importorskip(TARGETS[target].package.replace("-", "_"))
    quantized, config = calibrated(embedded, 8)
    path = tmp_path / f"network{SUFFIXES[kind]}"
    ranges = embedded.normalize(torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8))
    save_network(kind, quantized, embedded, config, path, ranges if kind in ("onnx", "pte", "tflite") else None, preprocessing)
    pixels = torch.randint(0, 256, (48, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "picture.png")
    example = [sys.executable, str(ROOT / "examples" / "classify.py"), path.name, "picture.png", "--seconds", "0.1", *flags]
    lines = subprocess.run(example, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True).stdout.splitlines()
    middle = pixels[8:40].permute(2, 0, 1)[None]  # 32 of 48 rows
    scores = opener(TARGETS[target])(path, 1)(middle if preprocessing else embedded.normalize(middle))[0].numpy()
    expected = [embedded.spec.classes[index] for index in np.argsort(-scores, kind="stable")[:5]]
    assert [line.split("%")[1].strip() for line in lines[:5]] == expected
    assert float(lines[0].split("%")[0]) == pytest.approx(100 * float(torch.softmax(torch.tensor(scores), 0).max()), abs=0.006)
    assert lines[5].endswith("ms per image, 1 thread(s)")
    assert benchmark(path, 0.0, target)["latency_ms_1_thread"] > 0
