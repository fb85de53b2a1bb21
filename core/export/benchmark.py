"""How fast an exported network is on this machine."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from core.errors import ConfigError, DataError, ModelError, first_line
from core.export.formats import ONNX_FORMATS, PHONE_FORMATS, SUFFIXES, kind_of
from core.export.packed import load_packed
from core.export.targets import TARGETS, Target, find_target, opener, runs_in, target_of
from core.export.verify import Scorer, takes_pixels
from core.files import check_regular
from core.models.full_precision import find_model
from core.models.programs.archive import read_spec
from core.models.registry import ModelSpec
from core.threads import cpu_threads

BATCH = 32  # images of a batch whose throughput is measured
_LEAST = 5  # passes, even if the time is up


def benchmark(file: Path, seconds: float = 5.0, name: str = "") -> dict[str, Any]:
    """Size, latency and throughput of a file written by `export`, with one thread and with all cores.

    seconds: for each of the four measurements. Latency: the median time of a single image in milliseconds; throughput: images per second in
    batches of BATCH. name: of a target in which the file runs; default: that of its format. Raises DataError if there is no such file,
    ModelError if it is not an exported network, ConfigError for a target that does not read it.
    """
    try:
        check_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    kind = kind_of(file, "file")
    target = find_target(name) if name else target_of(kind)
    if target is not None and SUFFIXES[target.format] != SUFFIXES[kind]:
        raise ConfigError(f"{file.name} must end in {SUFFIXES[target.format]} for target {name}")
    runtime = runs_in(target or TARGETS["torch"])
    found: dict[str, Any] = {"file": file.name, "bytes": file.stat().st_size, "runs_in": runtime}
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        with cpu_threads(threads), torch.no_grad():
            score, image = _opened(target, file, threads)
            words = "1_thread" if threads == 1 else f"{threads}_threads"
            one, many = (image.repeat(count, 1, 1, 1).contiguous(memory_format=torch.channels_last) for count in (1, BATCH))
            found[f"latency_ms_{words}"] = round(1000 * _median(score, one, seconds), 3)
            found[f"images_per_second_{words}"] = round(BATCH / _median(score, many, seconds), 1)
    return found


def _opened(target: Target | None, file: Path, threads: int) -> tuple[Scorer, Tensor]:
    """The scorer of a file, and a black image `(1, C, H, W)` for it. Raises ModelError."""
    try:
        if target is None:
            return load_packed(file), torch.zeros(1, *find_model(str(file))[1].shape)
        score = opener(target)(file, threads)
        if target.format in PHONE_FORMATS:
            written = importlib.import_module(target.opener.partition(":")[0])
            return score, _black(written.stored_spec(file), written.takes_pixels(file))
        if target.format not in ONNX_FORMATS:
            return score, _black(ModelSpec(**json.loads(read_spec(file) or "")), takes_pixels(file))
        taken = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_inputs()[0]
        dtype = torch.uint8 if taken.type == "tensor(uint8)" else torch.float32
        return score, torch.zeros(1, *map(int, taken.shape[1:]), dtype=dtype)
    except Exception as error:  # the programs raise many kinds for a file that is none of theirs
        raise ModelError(f"{file} must be a network written by `export`, and cannot be read ({first_line(error)})") from error


def _black(spec: ModelSpec, as_pixels: bool) -> Tensor:
    return torch.zeros(1, *spec.shape, dtype=torch.uint8 if as_pixels else torch.float32)


def _median(score: Scorer, images: Tensor, seconds: float) -> float:
    """Seconds of one pass; the first one, which allocates memory, does not count."""
    score(images)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST or time.perf_counter() < end:
        began = time.perf_counter()
        score(images)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
