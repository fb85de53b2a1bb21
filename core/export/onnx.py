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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from torch import Tensor, nn

from core.channels import channels_title
from core.config import TrainingConfig
from core.errors import ModelError, first_line
from core.export.standard_onnx import IntegerFolded, Levels
from core.models.programs.export import trace
from core.models.registry import ModelSpec
from core.models.replacement import replace_kind
from core.quantization.integer.inference import QuantizeActivation
from core.quantization.integer.weights import IntegerWeight

OPSET = 21  # the first version with INT4
INPUT, OUTPUT = "images", "scores"
_BIAS_BITS = 32
_BITS = "bits"  # key in a node's metadata: the bit width of its integers
# Value-preserving operations that onnxruntime itself would move before a DequantizeLinear, incorrectly from opset 21 on (its issue 25526).
_VALUE_PRESERVING = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


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
    program = trace(_Preprocessed(network, spec), spec, torch.uint8) if preprocessing else trace(network, spec)
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
        _use_average_pooling(model.graph)
    if is_symmetric:  # for runtimes that take INT8 only, and every QuantizeLinear directly before its DequantizeLinear
        _quantize_after_value_preserving(model.graph)
    else:
        (_pack_int4 if is_standard else _use_int4)(model.graph)
        _dequantize_after_value_preserving(model.graph)
    _remove_origin(model.graph)
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


class _Preprocessed(nn.Module):
    """A network with the normalization of its images, as `FullPrecisionModel.normalize` computes it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.network((pixels.float() / 255 - self.mean) / self.std)
        return scores


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
        name, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=OPSET, metadata_props={_BITS: str(bits)}
    )


def _use_int4(graph: onnx_ir.Graph) -> None:
    """Stores weights of up to 4 bits and their zero points as INT4, a type that torch does not have."""
    made: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or not weight.is_initializer() or int(node.metadata_props[_BITS]) > 4:
            continue
        for index in (0, 2):
            wide = node.inputs[index]
            assert wide is not None
            if wide not in made:
                made[wide] = _as_int4(wide)
                graph.register_initializer(made[wide])
            node.replace_input_with(index, made[wide])
            if not wide.uses():
                assert wide.name is not None
                graph.initializers.pop(wide.name)


def _as_int4(wide: onnx_ir.Value) -> onnx_ir.Value:
    assert wide.const_value is not None
    return _initializer(f"{wide.name}.int4", wide.const_value.numpy(), onnx_ir.DataType.INT4)


def _initializer(name: str, values: np.ndarray, dtype: onnx_ir.DataType) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(values.astype(dtype.numpy()), dtype=dtype, name=name)
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(values.shape), const_value=tensor)


def _pack_int4(graph: onnx_ir.Graph) -> None:
    """Stores weights of up to 4 bits as INT4, from which the program that reads the file makes INT8 once, when it opens it.

    Kernels for integers need zero points of 0, so that weights of 4 bits around another one have up to 5 bits: they are stored around it.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or not weight.is_initializer() or int(node.metadata_props[_BITS]) > 4:
            continue
        assert weight.const_value is not None
        levels = weight.const_value.numpy().astype(np.int32)
        lowest = levels.reshape(len(levels), -1).min(axis=1).reshape(-1, *[1] * (levels.ndim - 1))
        zero_points = -8 - lowest
        packed = _initializer(f"{weight.name}.int4", levels + zero_points, onnx_ir.DataType.INT4)
        shifts = _initializer(f"{weight.name}.zero_points", zero_points, onnx_ir.DataType.INT32)
        wide = onnx_ir.node("Cast", [packed], {"to": onnx_ir.DataType.INT32})
        around_zero = onnx_ir.node("Sub", [wide.outputs[0], shifts])
        unpacked = onnx_ir.node("Cast", [around_zero.outputs[0]], {"to": onnx_ir.DataType.INT8})
        for value in (packed, shifts):
            graph.register_initializer(value)
        graph.insert_before(node, (wide, around_zero, unpacked))
        for made, dtype in ((wide, onnx_ir.DataType.INT32), (around_zero, onnx_ir.DataType.INT32), (unpacked, onnx_ir.DataType.INT8)):
            made.outputs[0].type, made.outputs[0].shape = onnx_ir.TensorType(dtype), weight.shape
        for number, made in enumerate((wide, around_zero, unpacked)):
            made.outputs[0].name = f"{weight.name}.unpacked_{number}"
        node.replace_input_with(0, unpacked.outputs[0])
        assert weight.name is not None
        if not weight.uses():
            graph.initializers.pop(weight.name)


def _use_average_pooling(graph: onnx_ir.Graph) -> None:
    """Replaces means over height and width by GlobalAveragePool, which has a kernel for integers."""
    for node in list(graph):
        images = node.inputs[0] if node.op_type == "ReduceMean" else None
        axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if images is None or images.shape is None or len(images.shape) != 4 or axes is None:
            continue
        if sorted(int(axis) % 4 for axis in axes.numpy().reshape(-1)) != [2, 3]:
            continue
        pooling = onnx_ir.node("GlobalAveragePool", [images])
        output, result = node.outputs[0], pooling.outputs[0]
        result.name, result.type = f"{output.name}_pooled", output.type
        result.shape = onnx_ir.Shape([*images.shape.dims[:2], 1, 1])
        keeps = node.attributes.get("keepdims")
        if keeps is not None and not keeps.as_int():
            squeezed = onnx_ir.node("Squeeze", [result, node.inputs[1]])
            squeezed.outputs[0].name, squeezed.outputs[0].type, squeezed.outputs[0].shape = f"{output.name}_flat", output.type, output.shape
            graph.insert_before(node, (pooling, squeezed))
            output.replace_all_uses_with(squeezed.outputs[0], replace_graph_outputs=True)
        else:
            graph.insert_before(node, pooling)
            output.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _dequantize_after_value_preserving(graph: onnx_ir.Graph) -> None:
    """Moves the DequantizeLinear of an activation to after the value-preserving operations that read it."""
    for node, before in _value_preserving(graph):
        output, integers = node.outputs[0], before.inputs[0]
        after = onnx_ir.node("DequantizeLinear", [output, *before.inputs[1:]], metadata_props=dict(before.metadata_props))
        _describe(after, f"{output.name}_dequantized", output.type, output.shape)
        _read_instead(graph, output, after.outputs[0], after)
        node.replace_input_with(0, integers)
        assert integers is not None
        output.type = integers.type
        graph.insert_after(node, after)
        if not before.outputs[0].uses():
            graph.remove(before, safe=True)


def _quantize_after_value_preserving(graph: onnx_ir.Graph) -> None:
    """Repeats the QuantizeLinear and DequantizeLinear of an activation after each value-preserving operation, which changes no value."""
    for node, before in _value_preserving(graph):
        output, integers, properties = node.outputs[0], before.inputs[0], dict(before.metadata_props)
        assert integers is not None
        again = onnx_ir.node("QuantizeLinear", [output, *before.inputs[1:]], metadata_props=properties)
        after = onnx_ir.node("DequantizeLinear", [again.outputs[0], *before.inputs[1:]], metadata_props=properties)
        _describe(again, f"{output.name}_again", integers.type, output.shape)
        _describe(after, f"{output.name}_dequantized", output.type, output.shape)
        _read_instead(graph, output, after.outputs[0], again)
        graph.insert_after(node, (again, after))


def _value_preserving(graph: onnx_ir.Graph) -> Iterator[tuple[onnx_ir.Node, onnx_ir.Node]]:
    """Each value-preserving operation that reads a DequantizeLinear, with that one; the graph may be changed meanwhile."""
    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type in _VALUE_PRESERVING and node.inputs[0] is not None else None
        if before is not None and before.op_type == "DequantizeLinear":
            yield node, before


def _describe(node: onnx_ir.Node, name: str, kind: onnx_ir.TypeProtocol | None, shape: onnx_ir.Shape | None) -> None:
    """Name, type and shape of the output of a node."""
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, kind, shape


def _read_instead(graph: onnx_ir.Graph, output: onnx_ir.Value, result: onnx_ir.Value, reader: onnx_ir.Node) -> None:
    """All that reads `output`, except `reader`, reads `result`."""
    for user, index in output.uses():
        if user is not reader:
            user.replace_input_with(index, result)
    for index, graph_output in enumerate(graph.outputs):
        if graph_output is output:
            graph.outputs[index] = result


def _remove_origin(graph: onnx_ir.Graph) -> None:
    """Removes torch's metadata about the source code of each node: it is larger than a small network, and has paths of this machine."""
    results = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values(), *results):
        value.metadata_props.clear()
    for node in graph:
        kept = {key: value for key, value in node.metadata_props.items() if key == _BITS}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
