"""LiteRT files: every layer but the last is computed with int8, and the scores are those of the standard network."""

import json
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("litert_torch")

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from core.errors import ModelError
from core.export.benchmark import benchmark
from core.export.litert import open_litert, save_litert, stored_spec, takes_pixels
from core.export.network import save_network
from core.export.standard_onnx import standard_network
from core.models.full_precision import FullPrecisionModel

LAYERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


def operations(path) -> list[tuple[str, list[type]]]:
    """The operations of a file as they are written: name, and the types of their inputs."""
    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    return [(one["op_name"], [types[index] for index in one["inputs"] if index in types]) for one in interpreter._get_ops_details()]


@pytest.mark.parametrize("name", ["small", "wide"])
@pytest.mark.parametrize("bits", [3, 8])
def test_every_layer_but_the_last_is_computed_with_int8(name, bits, request, calibrated, images, tmp_path):
    model = request.getfixturevalue(name)
    quantized, _ = calibrated(model, bits)
    network = standard_network(quantized, images)
    expected = network(images)
    path = tmp_path / "network.tflite"
    save_litert(network, model.spec, path)
    layers = [types for name, types in operations(path) if name in LAYERS]
    assert len(layers) == len(quantized.layers)
    assert all(types[:2] == [np.int8, np.int8] for types in layers[:-1])
    assert layers[-1][:2] == [np.float32, np.float32]
    found = open_litert(path, 1)(images)
    step = float(quantized.activations[-1].quantizer.scale.detach())
    np.testing.assert_allclose(found, expected, atol=2 * step)
    assert float((found - expected).abs().median()) < 0.3 * step


def test_the_weights_of_a_large_last_layer_are_int8_in_the_file(small, calibrated, images, tmp_path):
    classes = 2000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 512, 3, stride=2), nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)
        )
    model = FullPrecisionModel(network.eval(), replace(small.spec, classes=tuple(map(str, range(classes)))))
    quantized, config = calibrated(model, 8)
    path = tmp_path / "network.tflite"
    save_network("tflite", quantized, model, config, path, images)
    assert 512 * classes < path.stat().st_size < 1.2 * 512 * classes
    expected = standard_network(quantized, images)(images)
    np.testing.assert_allclose(open_litert(path, 1)(images), expected, atol=0.05 * float(expected.abs().max()))


def test_a_float32_file_has_the_scores_of_the_network(small, images, tmp_path):
    expected = small.network(images)
    path = tmp_path / "network.tflite"
    save_litert(small.network, small.spec, path)
    np.testing.assert_allclose(open_litert(path, 1)(images), expected, rtol=1e-4, atol=1e-5)
    assert json.dumps(asdict(stored_spec(path))) == json.dumps(asdict(small.spec))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(small.spec.classes)
    assert not takes_pixels(path)


def test_a_file_that_takes_pixels_normalizes_them(small, calibrated, images, tmp_path):
    quantized, config = calibrated(small, 8)
    plain, with_pixels = tmp_path / "plain.tflite", tmp_path / "pixels.tflite"
    for path, preprocessing in ((plain, False), (with_pixels, True)):
        save_network("tflite", quantized, small, config, path, images, preprocessing)
    pixels = torch.randint(0, 256, (4, *small.spec.shape), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    step = float(quantized.activations[-1].quantizer.scale.detach())
    np.testing.assert_allclose(open_litert(with_pixels, 1)(pixels), open_litert(plain, 1)(small.normalize(pixels)), atol=2 * step)
    assert takes_pixels(with_pixels)
    assert benchmark(with_pixels, 0.0)["latency_ms_1_thread"] > 0


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"no network")
    with pytest.raises(ModelError, match="must be a network written by `export`"):
        benchmark(path, 0.0)
