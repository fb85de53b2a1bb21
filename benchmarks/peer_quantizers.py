"""Other quantizers with synthetic and with real images, next to ours: `python benchmarks/peer_quantizers.py`.

The embedded resnet20_cifar10 at 8 bits, calibrated with 300 images: synthetic ones by MI-FGSM as in the preset `quick`, or real ones.
Real images are the first 300 of the embedded evaluation images, or training images with --real (cifar10, or a folder with one folder of
each class). Accuracy is that on the other embedded images, for both. Quantizers: onnxruntime's static one; NNCF, in OpenVINO; torchao's
PT2E for x86; ours, calibrated with the same images and not trained, as `--format onnx` in onnxruntime. Seconds are those of the processor,
from the network in memory to the file, with one thread; the images are not in them. Prints one JSON object and writes
benchmarks/results/peer_quantizers.json. NNCF is not among the project's requirements.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.machine import write
from core.config import MachineConfig, TrainingConfig, preset
from core.data.image_sets import ImageSet
from core.data.labeled import embedded_images, open_training_set
from core.evaluation.diversity import evenly_spaced
from core.export.onnx import save_onnx
from core.export.openvino import open_openvino
from core.export.standard_onnx import standard_network
from core.export.verify import Scorer, open_onnx
from core.generation.loop import synthesize
from core.models.full_precision import FullPrecisionModel, load_model
from core.quantization.training import QuantizationTraining
from core.threads import cpu_threads

IMAGES = 300
BITS = 8
BATCH = 100
PACKAGES = ("onnxruntime", "nncf", "openvino", "torchao")
Quantizer = Callable[[FullPrecisionModel, Tensor, Path], tuple[Path, Scorer]]  # network, uint8 images, folder -> file, and its scores


def by_onnxruntime(model: FullPrecisionModel, images: Tensor, folder: Path) -> tuple[Path, Scorer]:
    """Activations uint8, weights int8 for each channel."""
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from benchmarks.onnx_files import Reader

    float32, prepared, path = (folder / f"{name}.onnx" for name in ("float32", "prepared", "onnxruntime"))
    save_onnx(copy.deepcopy(model.network), model.spec, float32)
    quant_pre_process(float32, prepared)
    reader = Reader(model.normalize(images).contiguous().numpy())
    quantize_static(prepared, path, reader, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)
    return path, open_onnx(path, 1)


def by_nncf(model: FullPrecisionModel, images: Tensor, folder: Path) -> tuple[Path, Scorer]:
    """NNCF's post-training quantization, with its defaults, of the network in OpenVINO; the size is that of its weights."""
    import nncf
    import openvino

    float32 = folder / "float32.onnx"
    save_onnx(copy.deepcopy(model.network), model.spec, float32)
    inputs = [image.numpy() for image in model.normalize(images).contiguous().split(1)]
    quantized = nncf.quantize(openvino.Core().read_model(float32), nncf.Dataset(inputs), subset_size=len(inputs))
    path = folder / "nncf.xml"
    openvino.save_model(quantized, path)
    return path.with_suffix(".bin"), open_openvino(path, 1)


def by_torchao(model: FullPrecisionModel, images: Tensor, folder: Path) -> tuple[Path, Scorer]:
    """torchao's PT2E quantization for x86, in torch."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    inputs, shapes = model.normalize(images), ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model.network, (inputs[:2],), dynamic_shapes=shapes)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    for batch in inputs.split(BATCH):
        prepared(batch)
    quantized = convert_pt2e(prepared)
    path = folder / "torchao.pt2"
    torch.export.save(torch.export.export(quantized, (inputs[:2],), dynamic_shapes=shapes), path)
    return path, quantized


def by_us(model: FullPrecisionModel, images: Tensor, folder: Path) -> tuple[Path, Scorer]:
    """Calibrated, not trained; the standard ONNX file."""
    config = TrainingConfig(weight_bits=BITS, steps=0, calibration_images=len(images))
    training = QuantizationTraining(model, ImageSet(images, torch.zeros(len(images), dtype=torch.long)), config)
    path = folder / "ours.onnx"
    save_onnx(standard_network(training.quantized, model.normalize(images)), model.spec, path, config)
    return path, open_onnx(path, 1)


QUANTIZERS: Mapping[str, Quantizer] = {"onnxruntime": by_onnxruntime, "NNCF": by_nncf, "torchao": by_torchao, "ours": by_us}


def synthetic_images(model: FullPrecisionModel) -> Tensor:
    """IMAGES images by MI-FGSM as in the preset `quick`, uint8."""
    config = replace(preset("quick").generation, images=IMAGES)
    images, _ = synthesize(model, config, "mi-fgsm", MachineConfig(seed=0))
    return images.images


def training_images(source: str) -> Tensor:
    """IMAGES training images, evenly spaced in the set, uint8."""
    images, _ = open_training_set(source)
    return torch.stack([pil_to_tensor(images[number][0]) for number in evenly_spaced(len(images), IMAGES).tolist()])


def top1(scorer: Scorer, images: Tensor, labels: Tensor) -> float:
    """In percent. images: normalized."""
    scores = torch.cat([scorer(batch) for batch in images.split(BATCH)])
    return 100 * float((scores.argmax(dim=1) == labels).double().mean())


def measure(real: str) -> dict[str, Any]:
    """The figures of all quantizers with both sets."""
    model = load_model("resnet20_cifar10", "cpu")
    pixels, known = embedded_images()
    sets = {"synthetic": synthetic_images(model), "real": training_images(real) if real else pixels[:IMAGES]}
    images, labels = model.normalize(pixels[IMAGES:]), torch.tensor(known[IMAGES:])
    with torch.no_grad():
        full = top1(model.network, images, labels)
    found: dict[str, Any] = {"images": IMAGES, "evaluated_on": len(labels), "real": real or "embedded", "float32": round(full, 2)}
    for name, quantizer in QUANTIZERS.items():
        for kind, chosen in sets.items():
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                began = time.process_time()
                path, scorer = quantizer(model, chosen, Path(folder))
                seconds = time.process_time() - began
                drop = full - top1(scorer, images, labels)
                found.setdefault(name, {})[kind] = {"drop": round(drop, 2), "seconds": round(seconds, 1), "bytes": path.stat().st_size}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", default="", metavar="DATA", help="training images: cifar10, or a folder with one folder of each class")
    arguments = parser.parse_args()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        parser.exit(1, f"peer_quantizers.py needs packages that are not installed: python -m pip install {' '.join(missing)}\n")
    with cpu_threads(1):
        result = {"versions": {name: version(name) for name in PACKAGES}, **measure(arguments.real)}
    write("peer_quantizers", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
