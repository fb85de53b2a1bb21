"""Exported networks in LiteRT (TensorFlow Lite), which computes quantized layers with int8 on phones, boards, and x86 processors.

Its converter recognizes quantize and dequantize operations around a layer, see `core.export.decomposed`, and makes an int8 layer of it.

The packages are not among this program's requirements; only this file imports them.
"""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # on stdout, where results are

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig
from torch import Tensor, nn

from core.errors import ModelError, first_line
from core.export.decomposed import HIGHEST, INTEGERS, Folded, decompose
from core.export.standard_onnx import IntegerFolded
from core.export.verify import Scorer
from core.files import atomic_write
from core.models.programs.export import trace
from core.models.registry import ModelSpec
from core.quantization.integer.weights import by_channel

_SPEC, _LABELS = "spec.json", "labels.txt"  # in the zip archive at the end of a file, where LiteRT's own tools look for labels


def save_litert(network: nn.Module, spec: ModelSpec, path: Path, preprocessing: bool = False) -> None:
    """Writes a network in evaluation mode for single images: one made by `standard_network`, or a full-precision one.

    Input: int8 `(1, C, H, W)`, the normalized image with the scale and the zero point of the input, or float32 of a full-precision network;
    with preprocessing, uint8 that the file normalizes. Output: float32 `(1, classes)`. At its end the file has the classes and the spec,
    `labels.txt` and `spec.json` in a zip archive. `network` is modified. Raises ModelError if it cannot be translated.
    """
    decompose(network, _Folded, _FoldedAtEnd)
    program = trace(network.to(memory_format=torch.contiguous_format), spec, any_batch=False, preprocessing=preprocessing)
    images = torch.zeros(1, *spec.shape, dtype=torch.uint8 if preprocessing else torch.float32)
    # which quantizer it is does not matter: the quantize operations are there already, and are to be made part of the layers
    static = QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)))
    try:
        converted = litert_torch.convert(program.module(), (images,), quant_config=static)
        with atomic_write(path) as partial:
            converted.export(str(partial))
            with zipfile.ZipFile(partial, "a") as archive:
                archive.writestr(zipfile.ZipInfo(_SPEC), json.dumps(asdict(spec)))
                archive.writestr(zipfile.ZipInfo(_LABELS), "\n".join(spec.classes))
    except OSError:
        raise
    except Exception as error:  # the converter raises many kinds
        raise ModelError(f"{spec.name} must have only operations that LiteRT can translate ({first_line(error)})") from error


def open_litert(path: Path, threads: int) -> Scorer:
    """A .tflite file in LiteRT, which computes one image at a time; the images are float32, or uint8 if the file normalizes them."""
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    quantized = _quantizer(taken)

    def score(image: Tensor) -> Tensor:
        interpreter.set_tensor(taken["index"], quantized(image.contiguous().numpy()))
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(given["index"]).copy())

    return lambda images: torch.cat([score(image) for image in images.split(1)])


def _quantizer(taken: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the input of a file of a normalized image."""
    if taken["dtype"] != np.int8:
        return lambda values: values
    scale, zero_point = taken["quantization"]
    return lambda values: np.clip(np.round(values / scale) + zero_point, -128, 127).astype(np.int8)


def stored_spec(path: Path) -> ModelSpec:
    """The description of the network in a file of `save_litert`."""
    with zipfile.ZipFile(path) as archive:
        return ModelSpec(**json.loads(archive.read(_SPEC)))


def takes_pixels(path: Path) -> bool:
    """Whether a file of `save_litert` takes uint8 images."""
    (taken,) = Interpreter(str(path)).get_input_details()
    return bool(taken["dtype"] == np.uint8)


class _Folded(Folded):
    """The weights as floats that are quantized, as the converter expects them."""

    def __init__(self, source: IntegerFolded) -> None:
        super().__init__(source)
        self.weight = self.weight.float() * by_channel(self.weight_scale, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        levels = (self.weight_scale, self.zeros, 0, -HIGHEST, HIGHEST, torch.int8)
        weight = INTEGERS.dequantize_per_channel.default(INTEGERS.quantize_per_channel.default(self.weight, *levels), *levels)
        return self.applied(x, weight, self.bias)


class _FoldedAtEnd(Folded):
    """A layer whose output is the scores. LiteRT has no int8 layer with an output of floats, so it is computed with floats, of weights that
    are int8 in the file."""

    def forward(self, x: Tensor) -> Tensor:
        sums = self.applied(x, self.weight.float(), torch.zeros_like(self.bias))
        shape = (-1,) + (1,) * (sums.dim() - 2)
        return sums * self.weight_scale.view(shape) + self.bias.view(shape)
