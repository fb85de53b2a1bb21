"""The network as ONNX, with QuantizeLinear and DequantizeLinear exactly where the network has its quantizers.

Weights are stored as integers with one DequantizeLinear for each: INT4 up to 4 bits, INT8 above. Activations pass a QuantizeLinear and a
DequantizeLinear of INT8; below 8 bits a Clip to the ends of the range comes first, so that only the integers of n bits occur. Operations
that only pass values on, such as MaxPool, work on the integers.

A DequantizeLinear has scale 1, and what the whole numbers stand for comes with a Mul and an Add behind each layer, BatchNorm included,
or with a Mul in front of what is no layer: see core.quantization.arithmetic. Floats would be summed in another order by each program
that reads the file, and values between two levels would go to one in one program and to the other in the next.
"""

import json
from pathlib import Path

import onnx_ir
import torch
from torch import Tensor, nn

from core.config import TrainingConfig
from core.errors import ModelError, first_line
from core.models.programs.export import trace
from core.models.registry import ModelSpec
from core.quantization.integer.inference import Levels
from core.quantization.integer.weights import IntegerWeight, exchange

OPSET = 21  # the first with INT4
INPUT, OUTPUT = "images", "scores"
_BITS = "bits"  # of a node's metadata: the bit width of the integers that pass
# what onnxruntime moves in front of a DequantizeLinear by itself, and from opset 21 on does wrongly (its issue 25526)
_PASSES_ON = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def save_onnx(network: nn.Module, spec: ModelSpec, path: Path, config: TrainingConfig | None = None) -> None:
    """Writes a network in evaluation mode: one made by `whole_number_network` with its `config`, or one of full precision without.

    Input: float32 `(N, 3, size, size)`, any N, normalised as the file's metadata says; output `(N, classes)`. `network` is changed.
    Raises ModelError when it cannot be translated.
    """
    exchange(network, IntegerWeight, _DequantizedWeight)
    exchange(network, Levels, _QuantizedActivation)
    program = trace(network, spec)
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
            f"{spec.name} cannot be translated to ONNX ({first_line(error)}): allowed are the operations that torch.onnx knows, "
            "or the format packed or pt2"
        ) from error
    assert translated is not None
    model = translated.model
    _use_int4(model.graph)
    _pass_on_integers(model.graph)
    _forget_origin(model.graph)
    model.metadata_props.update(_metadata(spec, config))
    translated.save(path, external_data=False)


def _metadata(spec: ModelSpec, config: TrainingConfig | None) -> dict[str, str]:
    metadata = {
        "network": spec.name,
        "input": "RGB, (value in [0, 1] - mean) / std for each channel, float32 (N, 3, image_size, image_size)",
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        "image_size": str(spec.image_size),
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
    """An IntegerWeight as ONNX says it."""

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
    """Levels as ONNX says them."""

    scale: Tensor
    one: Tensor
    zero_point: Tensor

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.bits = levels.bits
        self.register_buffer("scale", levels.scale)
        self.register_buffer("one", torch.ones_like(levels.scale))
        self.register_buffer("zero_point", levels.zero_point)
        self.ends = (float(levels.lowest * levels.scale), float(levels.highest * levels.scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.bits < 8:
            x = x.clamp(*self.ends)
        integers = _node("QuantizeLinear", (x, self.scale, self.zero_point), torch.int8, self.bits)
        return _node("DequantizeLinear", (integers, self.one, self.zero_point), torch.float32, self.bits)


def _node(name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, bits: int, attributes: dict | None = None) -> Tensor:
    return torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=OPSET, metadata_props={_BITS: str(bits)}
    )


def _use_int4(graph: onnx_ir.Graph) -> None:
    """Stores weights of up to 4 bits, and their zero points, as INT4: torch has no such type."""
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
    integers = wide.const_value.numpy().astype(onnx_ir.DataType.INT4.numpy())
    tensor = onnx_ir.tensor(integers, dtype=onnx_ir.DataType.INT4, name=f"{wide.name}.int4")
    return onnx_ir.Value(name=tensor.name, type=onnx_ir.TensorType(tensor.dtype), shape=wide.shape, const_value=tensor)


def _pass_on_integers(graph: onnx_ir.Graph) -> None:
    """Moves the DequantizeLinear of an activation behind the operations that only pass its values on."""
    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type in _PASSES_ON and node.inputs[0] is not None else None
        if before is None or before.op_type != "DequantizeLinear":
            continue
        passed = node.outputs[0]
        behind = onnx_ir.node("DequantizeLinear", [passed, *before.inputs[1:]], metadata_props=dict(before.metadata_props))
        result = behind.outputs[0]
        result.name, result.type, result.shape = f"{passed.name}_dequantized", passed.type, passed.shape
        for user, index in passed.uses():
            if user is not behind:
                user.replace_input_with(index, result)
        for index, output in enumerate(graph.outputs):
            if output is passed:
                graph.outputs[index] = result
        integers = before.inputs[0]
        assert integers is not None
        node.replace_input_with(0, integers)
        passed.type = integers.type
        graph.insert_after(node, behind)
        if not before.outputs[0].uses():
            graph.remove(before, safe=True)


def _forget_origin(graph: onnx_ir.Graph) -> None:
    """Removes what torch writes of where a node comes from: more than a small network, and with the paths of this machine."""
    results = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values(), *results):
        value.metadata_props.clear()
    for node in graph:
        kept = {key: value for key, value in node.metadata_props.items() if key == _BITS}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
