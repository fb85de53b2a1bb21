"""ONNX files of two kinds: standard ones, whose layers runtimes compute with kernels for integers, of a network that
core/export/standard_onnx.py describes, and exact ones, with QuantizeLinear and DequantizeLinear where the network has quantizers.

In exact files, each weight is stored as integers with a DequantizeLinear: INT4 up to 4 bits, INT8 above. An activation passes a
QuantizeLinear and a DequantizeLinear of INT8; below 8 bits a Clip to the range comes first, so that only integers of n bits occur.
Value-preserving operations, such as MaxPool, work on the integers.

Each DequantizeLinear has scale 1. The scales are in a Mul and an Add after each layer, BatchNorm included, or in a Mul before an operation
that is not a layer: see core/quantization/integer/inference.py. With float sums, whose result depends on the order of the additions,
programs that read the file would round values between two levels differently.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from core.channels import channels_title
from core.config import TrainingConfig
from core.errors import ModelError, first_line
from core.export import onnx_graph
from core.export.standard_onnx import IntegerFolded, Levels
from core.models.programs.export import trace
from core.models.registry import ModelSpec
from core.models.replacement import replace_kind
from core.quantization.integer.inference import QuantizeActivation
from core.quantization.integer.weights import IntegerWeight

OPSET = 21  # the first version with INT4
INPUT, OUTPUT = "images", "scores"
_BIAS_BITS = 32


def save_onnx(network: nn.Module, spec: ModelSpec, path: Path, config: TrainingConfig | None = None, preprocessing: bool = False) -> None:
    """Writes a network in evaluation mode: one made by `standard_network` or `integer_inference_network` with its `config`, or a
    full-precision one without.

    Input: float32 `(N, C, H, W)`, any N, normalized as the file's metadata describes, or with preprocessing, uint8 that the file
    normalizes; output `(N, classes)`. `network` is modified.
    Raises ModelError if it cannot be translated.
    """
    is_standard = any(isinstance(module, IntegerFolded) for module in network.modules())
    is_symmetric = any(isinstance(module, Levels) and module.symmetric for module in network.modules())
    replace_kind(network, IntegerWeight, _DequantizedWeight)
    replace_kind(network, QuantizeActivation, _QuantizedActivation)
    replace_kind(network, IntegerFolded, _SymmetricFoldedNodes if is_symmetric else _FoldedNodes)
    replace_kind(network, Levels, _SymmetricLevelsNodes if is_symmetric else _LevelsNodes)
    program = trace(network, spec, preprocessing=preprocessing)
    try:
        translated = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"{spec.name} must have only operations that torch.onnx can translate ({first_line(error)}); try the format packed or pt2"
        ) from error
    assert translated is not None
    model = translated.model
    if is_standard:
        onnx_graph.use_average_pooling(model.graph)
    if is_symmetric:  # for runtimes that take INT8 only, and every QuantizeLinear directly before its DequantizeLinear
        onnx_graph.quantize_after_value_preserving(model.graph)
    else:
        (onnx_graph.pack_int4 if is_standard else onnx_graph.use_int4)(model.graph)
        onnx_graph.dequantize_after_value_preserving(model.graph)
    onnx_graph.separate_zero_points(model.graph)
    onnx_graph.remove_origin(model.graph)
    model.metadata_props.update(_metadata(spec, config, preprocessing))
    translated.save(path, external_data=False)


def _metadata(spec: ModelSpec, config: TrainingConfig | None, preprocessing: bool) -> dict[str, str]:
    shape = ", ".join(map(str, spec.shape))
    values = "0 to 255, uint8" if preprocessing else "(value in [0, 1] - mean) / std for each channel, float32"
    metadata = {
        "network": spec.name,
        "input": f"{channels_title(spec.channels)}, {values} (N, {shape})",
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        "image_size": json.dumps(spec.image_size),
        "classes": json.dumps(spec.classes),
        "trained_on": spec.trained_on,
    }
    if config is not None:
        metadata |= {
            "weight_bits": str(config.weight_bits),
            "activation_bits": str(config.input_bits),
            "layer_bits": json.dumps(dict(config.layer_bits)),
        }
    return metadata


class _DequantizedWeight(nn.Module):
    """An IntegerWeight as an ONNX node."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: IntegerWeight) -> None:
        super().__init__()
        self.bits = weight.bits
        self.register_buffer("integers", weight.integers.contiguous())
        self.register_buffer("scale", torch.ones_like(weight.scale))
        self.register_buffer("zero_point", weight.zero_point)

    def levels(self) -> Tensor:
        return _node("DequantizeLinear", (self.integers, self.scale, self.zero_point), torch.float32, self.bits, {"axis": 0})


class _QuantizedActivation(nn.Module):
    """A QuantizeActivation as ONNX nodes."""

    scale: Tensor
    one: Tensor
    zero_point: Tensor

    def __init__(self, source: QuantizeActivation) -> None:
        super().__init__()
        self.bits = source.bits
        self.register_buffer("scale", source.scale)
        self.register_buffer("one", torch.ones_like(source.scale))
        self.register_buffer("zero_point", source.zero_point)
        self.ends = (float(source.lowest * source.scale), float(source.highest * source.scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.bits < 8:
            x = x.clamp(*self.ends)
        integers = _node("QuantizeLinear", (x, self.scale, self.zero_point), torch.int8, self.bits)
        return _node("DequantizeLinear", (integers, self.one, self.zero_point), torch.float32, self.bits)


class _FoldedNodes(nn.Module):
    """An IntegerFolded as ONNX nodes: DequantizeLinear of its weight and bias, and the layer."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    bias_scale: Tensor
    zeros: Tensor

    def __init__(self, source: IntegerFolded) -> None:
        super().__init__()
        self.bits, self.applied = source.bits, source.applied
        for name in ("weight", "weight_scale", "bias", "bias_scale"):
            self.register_buffer(name, getattr(source, name))
        self.register_buffer("zeros", torch.zeros_like(source.weight_scale, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        weight = _node("DequantizeLinear", (self.weight, self.weight_scale, self.zeros), torch.float32, self.bits, {"axis": 0})
        return self.applied(x, weight, self.float_bias())

    def float_bias(self) -> Tensor:
        return _node("DequantizeLinear", (self.bias, self.bias_scale), torch.float32, _BIAS_BITS, {"axis": 0})


class _LevelsNodes(nn.Module):
    """A Levels as ONNX nodes: QuantizeLinear, a Clip of the integers unless all of uint8 are levels, DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, source: Levels) -> None:
        super().__init__()
        self.bits, self.is_clipped = source.bits, (source.lowest, source.highest) != (0, 255)
        self.register_buffer("scale", source.scale)
        self.register_buffer("zero_point", source.zero_point)
        for name in ("lowest", "highest"):
            self.register_buffer(name, torch.tensor(getattr(source, name), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        integers = _node("QuantizeLinear", (x, self.scale, self.zero_point), torch.uint8, self.bits)
        if self.is_clipped:
            integers = _node("Clip", (integers, self.lowest, self.highest), torch.uint8, self.bits)
        return _node("DequantizeLinear", (integers, self.scale, self.zero_point), torch.float32, self.bits)


class _SymmetricFoldedNodes(_FoldedNodes):
    """An IntegerFolded of a symmetric network: its bias is of floats, because TensorRT has no integers of 32 bits for it."""

    def __init__(self, source: IntegerFolded) -> None:
        super().__init__(source)
        self.bias = source.bias.float() * source.bias_scale

    def float_bias(self) -> Tensor:
        return self.bias


class _SymmetricLevelsNodes(nn.Module):
    """Symmetric Levels as ONNX nodes: a Relu or Clip of the floats where INT8 has more levels, QuantizeLinear, DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: Levels) -> None:
        super().__init__()
        self.bits = source.bits
        self.register_buffer("scale", source.scale)
        self.register_buffer("zero_point", source.zero_point)
        self.is_relu = (source.lowest, source.highest) == (0, 127)
        self.is_clipped = not self.is_relu and (source.lowest, source.highest) != (-128, 127)
        self.ends = (float(source.lowest * source.scale), float(source.highest * source.scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_clipped:
            x = x.clamp(*self.ends)
        elif self.is_relu:
            x = torch.relu(x)
        integers = _node("QuantizeLinear", (x, self.scale, self.zero_point), torch.int8, self.bits)
        return _node("DequantizeLinear", (integers, self.scale, self.zero_point), torch.float32, self.bits)


def _node(name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, bits: int, attributes: dict | None = None) -> Tensor:
    return torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=OPSET, metadata_props={onnx_graph.BITS: str(bits)}
    )
