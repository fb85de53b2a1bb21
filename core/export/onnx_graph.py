"""Changes to the graph of an ONNX file that torch.onnx has translated, so that runtimes recognize its integers."""

from collections.abc import Iterator

import numpy as np
import onnx_ir

BITS = "bits"  # key in a node's metadata: the bit width of its integers
# Value-preserving operations that onnxruntime itself would move before a DequantizeLinear, incorrectly from opset 21 on (its issue 25526).
_VALUE_PRESERVING = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def use_int4(graph: onnx_ir.Graph) -> None:
    """Stores weights of up to 4 bits and their zero points as INT4, a type that torch does not have."""
    made: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or not weight.is_initializer() or int(node.metadata_props[BITS]) > 4:
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


def pack_int4(graph: onnx_ir.Graph) -> None:
    """Stores weights of up to 4 bits as INT4, from which the program that reads the file makes INT8 once, when it opens it.

    Kernels for integers need zero points of 0, so that weights of 4 bits around another one have up to 5 bits: they are stored around it.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or not weight.is_initializer() or int(node.metadata_props[BITS]) > 4:
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


def use_average_pooling(graph: onnx_ir.Graph) -> None:
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


def dequantize_after_value_preserving(graph: onnx_ir.Graph) -> None:
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


def quantize_after_value_preserving(graph: onnx_ir.Graph) -> None:
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


def separate_zero_points(graph: onnx_ir.Graph) -> None:
    """Gives each weight zero points of its own, which torch.onnx shares among layers with the same ones.

    With session.x64quantprecision, onnxruntime converts weights beyond 64 to another type, and fails at zero points that it has converted.
    """
    for node in list(graph):
        weight, *_, zero_points = node.inputs if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 else (None, None)
        if weight is None or zero_points is None or zero_points.const_value is None or len(zero_points.uses()) < 2:
            continue
        if zero_points.const_value.shape.rank():  # those of activations are single numbers
            own = _initializer(f"{weight.name}.zero_point", zero_points.const_value.numpy(), zero_points.const_value.dtype)
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def remove_origin(graph: onnx_ir.Graph) -> None:
    """Removes torch's metadata about the source code of each node: it is larger than a small network, and has paths of this machine."""
    results = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values(), *results):
        value.metadata_props.clear()
    for node in graph:
        kept = {key: value for key, value in node.metadata_props.items() if key == BITS}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
