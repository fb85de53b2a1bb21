"""How fast an exported network is on this machine."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from core.errors import DataError, ModelError, first_line
from core.export.formats import kind_of
from core.export.packed import load_packed
from core.export.verify import open_onnx, open_program
from core.files import check_regular
from core.models.full_precision import find_model
from core.models.programs.archive import read_spec
from core.models.registry import ModelSpec
from core.threads import cpu_threads

BATCH = 32  # images of a batch whose throughput is measured
_LEAST = 5  # passes, even if the time is up


def benchmark(file: Path, seconds: float = 5.0) -> dict[str, Any]:
    """Size, latency and throughput of a file written by `export`, with one thread and with all cores.

    seconds: for each of the four measurements. Latency: the median time of a single image in milliseconds; throughput: images per second in
    batches of BATCH. Raises DataError if there is no such file, ModelError if it is not an exported network.
    """
    try:
        check_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    kind = kind_of(file, "file")
    found: dict[str, Any] = {"file": file.name, "bytes": file.stat().st_size, "runs_in": _runtime(kind)}
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        with cpu_threads(threads), torch.no_grad():
            score, shape = _opened(kind, file, threads)
            words = "1_thread" if threads == 1 else f"{threads}_threads"
            one, many = (torch.zeros(count, *shape).contiguous(memory_format=torch.channels_last) for count in (1, BATCH))
            found[f"latency_ms_{words}"] = round(1000 * _median(score, one, seconds), 3)
            found[f"images_per_second_{words}"] = round(BATCH / _median(score, many, seconds), 1)
    return found


def _runtime(kind: str) -> str:
    return f"onnxruntime {onnxruntime.__version__}" if kind == "onnx" else f"torch {torch.__version__}"


def _opened(kind: str, file: Path, threads: int) -> tuple[Callable[[Tensor], Any], tuple[int, ...]]:
    """The scorer of a file, and the shape `(C, H, W)` of its images. Raises ModelError."""
    try:
        if kind == "onnx":
            shape = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_inputs()[0].shape
            return open_onnx(file, threads), tuple(map(int, shape[1:]))
        if kind == "pt2":
            return open_program(file), ModelSpec(**json.loads(read_spec(file) or "")).shape
        return load_packed(file), find_model(str(file))[1].shape
    except Exception as error:  # onnxruntime and torch raise many kinds for a file that is none of theirs
        raise ModelError(f"{file} must be a network written by `export`, and cannot be read ({first_line(error)})") from error


def _median(score: Callable[[Tensor], Any], images: Tensor, seconds: float) -> float:
    """Seconds of one pass; the first one, which allocates memory, does not count."""
    score(images)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST or time.perf_counter() < end:
        began = time.perf_counter()
        score(images)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
