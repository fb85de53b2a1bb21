"""Comparison of an exported file with its network: accuracy of both on real images, difference of their outputs, size and speed.

The file is loaded again as a user would load it: ONNX in onnxruntime or another target, a .pt2 program with torch alone, a packed network
with this package.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from core.data.labeled import EvaluationSet
from core.evaluation.accuracy import evaluate
from core.export.packed import load_packed
from core.export.targets import TARGETS, Target, opener, runs_in, target_of
from core.models.full_precision import FullPrecisionModel
from core.quantization.integer.inference import integer_inference_network
from core.quantization.placement import QuantizedNetwork
from core.threads import cpu_threads

LATENCY_RUNS = 50
WARM_UP_RUNS = 5

Scorer = Callable[[Tensor], Tensor]  # normalized images (N, C, H, W) -> scores (N, classes), both on the CPU


def open_onnx(path: Path, threads: int) -> Scorer:
    """An ONNX file in onnxruntime with `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # on processors with AVX2 but no VNNI, the default kernels for 8-bit integers saturate sums of two products at 16 bits
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])


def takes_pixels(path: Path) -> bool:
    """Whether a .pt2 file takes uint8 images."""
    program = torch.export.load(path)
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    return bool(images.meta["val"].dtype == torch.uint8)


def open_program(path: Path, threads: int = 0) -> Scorer:
    """A .pt2 file with torch alone, which computes with the threads of the process."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


def verify(
    kind: str,
    path: Path,
    float32_path: Path,
    quantized: QuantizedNetwork,
    model: FullPrecisionModel,
    evaluation_set: EvaluationSet,
    pause_point: Callable[[], None] | None = None,
    target: Target | None = None,
    preprocessing: bool = False,
) -> dict[str, Any]:
    """Figures of the quantized network in the file `path`; those that do not apply to the format are None.

    kind: one of NETWORK_FORMATS. float32_path: the full-precision network in the same format (for packed: as safetensors). `quantized` and
    `model` are on the CPU. target: in which the files are opened; default: that of the format. preprocessing: whether they take uint8.

    Accuracies are in percent. max_output_difference is the largest difference of one score, last_scale the scale of the last activation
    quantizer, before the classifier, and within_last_scale the percentage of images whose scores differ by at most that. A standard ONNX
    file has further quantizers and differs by some steps (core/export/standard_onnx.py). In the other formats, layers give the same bits
    (core/quantization/integer/inference.py). If an operation between them, such as a sigmoid, differs in its last bit, a
    value may be rounded to the next level, and the difference may grow in later layers. Latencies are medians of LATENCY_RUNS single
    images with one thread, alternating between the networks.
    pause_point: called between batches; may raise to end early.
    """
    target = target or target_of(kind)

    def opened(file: Path, threads: int) -> Scorer:
        return opener(target)(file, threads) if target is not None else load_packed(file, model.network)

    score = opened(path, torch.get_num_threads())
    of_normalized = (lambda images: score(model.denormalize(images))) if preprocessing else score
    comparison = _Comparison(integer_inference_network(quantized, model.spec), of_normalized)
    accuracy = evaluate(comparison, model, evaluation_set, pause_point=pause_point)
    correct = (torch.cat(comparison.predictions) == evaluation_set.labels)[evaluation_set.readable]
    pixels, _ = evaluation_set[0]
    image = pixels[None] if preprocessing else model.normalize(pixels[None]).contiguous(memory_format=torch.channels_last)
    with cpu_threads(1), torch.no_grad():
        float32 = model.network if target is None else opened(float32_path, 1)
        latency, float32_latency = _latencies((opened(path, 1), float32), image)
    differences = torch.cat(comparison.differences)
    names = {module: name for name, module in quantized.network.named_modules()}
    last = quantized.activations[-1] if quantized.activations else None
    step = None if last is None else float(last.quantizer.scale.detach())
    return {
        "torch_accuracy": round(100 * float(correct.double().mean()), 3),
        "onnxruntime_accuracy": accuracy.top1 if target is not None and target.package == "onnxruntime" else None,
        "file_accuracy": accuracy.top1,
        "standard_error": accuracy.standard_error,
        "evaluated_on": accuracy.evaluated_on,
        "max_output_difference": float(differences.max()),
        "last_scale": step,
        "last_quantizer": None if last is None else names[last],
        "within_last_scale": None if step is None else round(100 * float((differences <= step).double().mean()), 3),
        "bytes": path.stat().st_size,
        "float32_bytes": float32_path.stat().st_size,
        "latency_ms": latency,
        "float32_latency_ms": float32_latency,
        "latency_threads": 1,
        "latency_measured_in": runs_in(target or TARGETS["torch"]),
    }


class _Comparison(nn.Module):
    """Returns the scores of the file, and records how they differ from those of the network."""

    def __init__(self, network: nn.Module, scorer: Scorer) -> None:
        super().__init__()
        self.network = network
        # in a tuple, because torch would register a program as a submodule, and programs do not support eval()
        self._scorer = (scorer,)
        self.differences: list[Tensor] = []
        self.predictions: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        expected, scores = self.network(images), self._scorer[0](images)
        self.differences.append((scores - expected).abs().amax(dim=1))
        self.predictions.append(expected.argmax(dim=1))
        return scores


def _latencies(scorers: tuple[Scorer, ...], image: Tensor) -> list[float]:
    """Median latency of each in milliseconds."""
    seconds: list[list[float]] = [[] for _ in scorers]
    for _ in range(WARM_UP_RUNS + LATENCY_RUNS):
        for scorer, measured in zip(scorers, seconds):
            began = time.perf_counter()
            scorer(image)
            measured.append(time.perf_counter() - began)
    return [round(1000 * median(measured[WARM_UP_RUNS:]), 3) for measured in seconds]
