"""Packed files: a quantized network in the smallest size, a safetensors file with the weights as streams of n-bit integers.

Each tensor `NAME.integer_weight.integers` is one little-endian stream, uint8: bit b of the i-th integer (in row-major order, as n-bit
two's complement) is bit i n + b of the stream, and bit p of the stream is bit p mod 8 of byte p // 8. For 4 bits this is ONNX's INT4.
A weight is (q - zero point) scale, with `NAME.integer_weight.scale` and `.zero_point` for each output channel; quantizers of activations
have `.scale` and `.zero_point`. All other tensors (biases, BatchNorm) are those of the network's state dict. A loaded network computes
with integers (core/quantization/integer/inference.py).

A network that was a .pt2 program cannot be built by a name: `.program` is that program without its large weights, compressed by zlib.

The header contains the network (`spec`), the config of its quantization (`quantization`), and bits and shape of each stream (`layout`).
"""

import copy
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.config import TrainingConfig, upgrade_training
from core.errors import ModelError, first_line
from core.files import temporary_folder
from core.models.full_precision import build_architecture, find_model
from core.models.programs.export import save_program
from core.models.programs.translation import load_program
from core.models.registry import NETWORK_BYTES, ModelSpec
from core.quantization.integer.inference import to_integer_inference
from core.quantization.integer.weights import integer_network, integer_weights
from core.quantization.placement import quantize_network

_PROGRAM = ".program"  # no module can have this name


def pack(integers: Tensor, bits: int) -> Tensor:
    """Integers of `bits` bits, int8 of any shape -> their stream, uint8 `(ceil(count bits / 8),)`."""
    values = integers.contiguous().view(-1).numpy()
    digits = (values[:, None] >> np.arange(bits, dtype=np.int8)) & 1
    return torch.from_numpy(np.packbits(digits.astype(np.uint8), axis=None, bitorder="little"))


def unpack(stream: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The inverse of `pack`. Raises ValueError for a stream of another type or length."""
    count = shape.numel()
    size = -(-count * bits // 8)
    if stream.dtype != torch.uint8 or stream.shape != (size,):
        raise ValueError(f"{count} integers of {bits} bits must be {size} bytes uint8, got {tuple(stream.shape)} {stream.dtype}")
    digits = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    weights = 1 << np.arange(bits, dtype=np.int16)
    weights[-1] *= -1  # two's complement
    return torch.from_numpy((digits * weights).sum(axis=1).astype(np.int8)).view(shape)


def save_packed(network: nn.Module, spec: ModelSpec, config: TrainingConfig, path: Path, full_precision: nn.Module | None = None) -> None:
    """Writes a network made by `integer_network`. full_precision: the network it came from, if no architecture's name says how to build it.

    Raises ModelError if `full_precision` cannot be exported as a program.
    """
    weights = integer_weights(network)
    layout = {key: {"bits": weight.bits, "shape": list(weight.integers.shape)} for key, weight in weights.items()}
    state = {
        key: pack(value, weights[key].bits) if key in weights else value.contiguous().clone() for key, value in network.state_dict().items()
    }
    if full_precision is not None:
        state[_PROGRAM] = _compressed(full_precision, spec)
    header = {"spec": asdict(spec), "quantization": config.to_dict(), "layout": layout}
    save_file(state, path, metadata={key: json.dumps(value) for key, value in header.items()})


def load_packed(path: Path, network: nn.Module | None = None) -> nn.Module:
    """The network written by `save_packed`, in evaluation mode, computing with integers.

    Normalized images `(N, C, H, W)` -> scores `(N, classes)`. network: a network of the quantized architecture, required if the file has
    no program and the architecture cannot be built by its name; it stays unchanged. Raises ModelError if the file is of another kind or
    does not fit.
    """
    _, spec = find_model(str(path))
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            config = TrainingConfig.from_dict(upgrade_training(json.loads(header["quantization"])))
            state = {key: file.get_tensor(key) for key in list(file.keys())}
        program = state.pop(_PROGRAM, None)
        if network is None and program is not None:
            network = _uncompressed(program)
        elif network is None:
            with torch.random.fork_rng(devices=[]):
                network = build_architecture(spec.architecture, len(spec.classes), spec.channels)
        quantized = quantize_network(network, config, torch.zeros(1, *spec.shape))
        result = integer_network(quantized, needs_ranges=False)
        _load(result.to(memory_format=torch.channels_last), state)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise ModelError(f"{path} must be a packed {spec.name} written by `export`, and cannot be read ({first_line(error)})") from error
    return to_integer_inference(result, quantized.traced, spec)


def _compressed(network: nn.Module, spec: ModelSpec) -> Tensor:
    """The network as a program whose weights of convolutions and linear layers are zeros, uint8: the file has them as integers."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.zero_()
    with temporary_folder() as folder:
        save_program(network, spec, folder / "network.pt2")
        return torch.frombuffer(bytearray(zlib.compress((folder / "network.pt2").read_bytes(), 9)), dtype=torch.uint8)


def _uncompressed(program: Tensor) -> nn.Module:
    """The inverse of `_compressed`. Raises ValueError or zlib.error for anything else."""
    content = zlib.decompressobj().decompress(program.numpy().tobytes(), NETWORK_BYTES + 1)
    if len(content) > NETWORK_BYTES:
        raise ValueError(f"its program has more than {NETWORK_BYTES:,} bytes")
    with temporary_folder() as folder:
        (folder / "network.pt2").write_bytes(content)
        try:
            return load_program(folder / "network.pt2")
        except ModelError as error:
            raise ValueError(str(error).replace(str(folder / "network.pt2"), "its program")) from error


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    weights, expected = integer_weights(network), network.state_dict()
    found: dict[str, Any] = {}
    for key in sorted({*expected, *state}):
        if key not in state or key not in expected:
            raise KeyError(f"{key} is missing or unexpected")
        found[key] = unpack(state[key], weights[key].bits, expected[key].shape) if key in weights else state[key]
        if found[key].shape != expected[key].shape or found[key].dtype != expected[key].dtype:
            raise KeyError(f"{key} has another shape or type")
    network.load_state_dict(found)
