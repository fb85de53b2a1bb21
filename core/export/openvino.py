"""Exported ONNX files in OpenVINO. Its package is not one of this program's requirements; only this file imports it."""

from pathlib import Path

import openvino
import torch

from core.export.verify import Scorer


def open_openvino(path: Path, threads: int) -> Scorer:
    """An ONNX file in OpenVINO on the CPU with `threads` threads. What is not quantized is computed in float32.

    By default, OpenVINO computes in bfloat16 on processors that have it, which changes the scores.
    """
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: torch.from_numpy(compiled({0: images.contiguous().numpy()})[0].copy())
