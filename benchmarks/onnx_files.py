"""How fast ONNX files are, relative to float32 in the same program: `python benchmarks/onnx_files.py --seconds 60`.

For single images and one thread, at 8 bits of weights and activations: our standard file (`--format onnx`), our exact one
(`--format onnx-exact`) and the file of onnxruntime's own static quantizer (activations uint8, weights int8 for each channel). All run in
turns with float32, so that other load on the machine affects them alike; a ratio is the median over all turns. Networks: the embedded
resnet20_cifar10; EfficientNet-Lite0 at 224 pixels with the ImageNet weights of a package; ResNet-18 at 224 pixels with random weights,
because only its time counts. Afterwards the same in OpenVINO, in turns with float32 there, without the exact file. `float_layers` counts
the convolutions and linear layers that onnxruntime computes with floats in our standard file. Prints one JSON object and writes
benchmarks/results/onnx_files.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.machine import in_turns, write
from benchmarks.networks import EFFICIENTNET, EMBEDDED, efficientnet_lite0
from core.config import TrainingConfig
from core.data.image_sets import ImageSet
from core.export.onnx import save_onnx
from core.export.openvino import open_openvino
from core.export.standard_onnx import standard_network
from core.generation.noise import initial_noise
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.registry import ModelSpec
from core.models.zoos.lookup import build_architecture
from core.quantization.integer.inference import integer_inference_network
from core.quantization.training import QuantizationTraining
from core.threads import cpu_threads

RESNET18 = "resnet18"
NETWORKS = (EMBEDDED, EFFICIENTNET, RESNET18)
IMAGENET_SIZE = 224
IMAGES = 16  # for the ranges of both quantizers
LEAST = 20  # turns
_FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def network(name: str, folder: Path) -> FullPrecisionModel:
    """One of NETWORKS."""
    if name == EMBEDDED:
        return load_model(EMBEDDED, "cpu")
    if name == EFFICIENTNET:
        return load_model(str(efficientnet_lite0(folder, IMAGENET_SIZE)), "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_architecture(f"torchvision:{name}", 1000).eval()
    spec = ModelSpec(name, f"torchvision:{name}", tuple(map(str, range(1000))), IMAGENET_SIZE, (0.5,) * 3, (0.25,) * 3, "nothing")
    return FullPrecisionModel(made, spec)


class Reader(CalibrationDataReader):
    """Images one by one for onnxruntime's quantizer."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image}


def files(model: FullPrecisionModel, folder: Path) -> dict[str, Path]:
    """Writes the network in each way: its name -> the file."""
    noise = initial_noise("pink", IMAGES, model.spec.shape, torch.Generator().manual_seed(0))
    images = model.denormalize(noise)
    config = TrainingConfig(weight_bits=8, activation_bits=8, steps=0, calibration_images=IMAGES)
    quantized = QuantizationTraining(model, ImageSet(images, torch.zeros(IMAGES, dtype=torch.long)), config).quantized
    inputs = model.normalize(images).contiguous(memory_format=torch.channels_last)
    found = {name: folder / f"{name}.onnx" for name in ("float32", "exact", "standard", "onnxruntime")}
    save_onnx(copy.deepcopy(model.network), model.spec, found["float32"])
    save_onnx(integer_inference_network(quantized, model.spec), model.spec, found["exact"], config)
    save_onnx(standard_network(quantized, inputs), model.spec, found["standard"], config)
    prepared = folder / "prepared.onnx"
    quant_pre_process(found["float32"], prepared)
    quantize_static(
        prepared,
        found["onnxruntime"],
        Reader(inputs.contiguous(memory_format=torch.contiguous_format).numpy()),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return found


def float_layers(file: Path, folder: Path) -> int:
    """Layers that onnxruntime computes with floats."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # a warning that the optimized file fits this machine only
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    operations = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return sum(operations[kind] for kind in _FLOAT_LAYERS)


def scorer(file: Path, image: np.ndarray) -> Callable[[], Any]:
    """Computes the scores of one image with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": image})


def times_as_fast(scorers: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """How many times as fast as float32 each is: the median over turns; and the milliseconds of float32."""
    turn = sum(times[0] for times in in_turns(scorers, 1).values())
    taken = in_turns(scorers, max(LEAST, round(seconds / turn)))
    ratios = {
        name: round(statistics.median(own / other for own, other in zip(taken["float32"], times)), 2)
        for name, times in taken.items()
        if name != "float32"
    }
    return {**ratios, "float32_ms": round(1000 * statistics.median(taken["float32"]), 3)}


def measure(name: str, seconds: float) -> dict[str, Any]:
    """The figures of one network."""
    with tempfile.TemporaryDirectory() as temporary, cpu_threads(1):
        folder = Path(temporary)
        model = network(name, folder)
        found = files(model, folder)
        image = np.zeros((1, *model.spec.shape), np.float32)
        times = times_as_fast({kind: scorer(file, image) for kind, file in found.items()}, seconds)
        tensor = torch.from_numpy(image)
        opened = {kind: open_openvino(file, 1) for kind, file in found.items() if kind != "exact"}
        in_openvino = times_as_fast({kind: partial(score, tensor) for kind, score in opened.items()}, seconds)
        kilobytes = {kind: round(file.stat().st_size / 1000, 1) for kind, file in found.items()}
        return {
            "times_as_fast": times,
            "in_openvino": in_openvino,
            "kilobytes": kilobytes,
            "float_layers": float_layers(found["standard"], folder),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for the turns of each network")
    arguments = parser.parse_args()
    result = {
        "onnxruntime": onnxruntime.__version__,
        "openvino": version("openvino"),
        "networks": {name: measure(name, arguments.seconds) for name in arguments.networks},
    }
    write("onnx_files", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
