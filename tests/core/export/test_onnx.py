import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import nn

from core.config import BIT_WIDTHS
from core.export.onnx import save_onnx
from core.models.full_precision import FullPrecisionModel
from core.quantization.integer.inference import integer_inference_network
from core.quantization.quantizer import integer_range

ROOT = Path(__file__).parents[3]


def exported(path, quantized, config, spec) -> onnx.ModelProto:
    save_onnx(integer_inference_network(quantized, spec), spec, path, config)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.contiguous().numpy()})


def outputs(network, images) -> np.ndarray:
    with torch.no_grad():
        return network(images).numpy()


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_every_width(small, calibrated, images, tmp_path, bits):
    """Structure, integers and outputs in one test, because an export takes seconds."""
    quantized, config = calibrated(small, bits)
    model = exported(tmp_path / "network.onnx", quantized, config, small.spec)
    expected = outputs(integer_inference_network(quantized, small.spec), images)
    np.testing.assert_allclose(run(model, images)[0], expected, atol=1e-5)
    np.testing.assert_allclose(run(model, images[:1])[0], expected[:1], atol=1e-5)
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"images": images.numpy()})[0], expected, atol=1e-5)

    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count("QuantizeLinear") == len(quantized.activations) == 2
    assert nodes.count("DequantizeLinear") == len(quantized.activations) + len(quantized.layers) == 5
    assert nodes.count("BatchNormalization") == 0  # folded into the rescaling after the convolutions

    initializers = stored(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in initializers]
    for node, layer in zip(weights, quantized.layers):
        assert kinds[node.input[0]] == (onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8)
        integers, one, zero_point = (initializers[name].astype(np.float32) for name in node.input)
        assert (one == 1).all()
        shape = (-1, *[1] * (integers.ndim - 1))
        scale = layer.weight_quantizer.scale.detach().numpy().reshape(shape)
        assert np.array_equal((integers - zero_point.reshape(shape)) * scale, layer.quantized_weight().detach().numpy())

    # the integers between QuantizeLinear and DequantizeLinear, for images far outside the calibrated range
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None) for name in names)
    lowest, highest = integer_range(bits)
    for integers in run(model, images * 20)[1:]:
        assert integers.dtype == np.int8
        assert integers.min() >= lowest
        assert integers.max() == highest


def test_mixed_widths(small, calibrated, images, tmp_path):
    quantized, config = calibrated(small, 5, layer_bits={"conv2": 3, "output": 8})
    model = exported(tmp_path / "network.onnx", quantized, config, small.spec)
    np.testing.assert_allclose(run(model, images)[0], outputs(integer_inference_network(quantized, small.spec), images), atol=1e-5)
    initializers, kinds = stored(model), {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in initializers]
    assert [kinds[name] for name in weights] == [onnx.TensorProto.INT8, onnx.TensorProto.INT4, onnx.TensorProto.INT8]
    for name, bits in zip(weights, (5, 3, 8)):
        lowest, highest = integer_range(bits)
        assert (initializers[name].min(), initializers[name].max()) == (lowest, highest)


@pytest.mark.parametrize(("name", "bits"), [("Mobile", 4), ("Mobile", 8), ("Untraceable", 4)])
def test_networks_that_are_hard_to_export(model, calibrated, images, tmp_path, name, bits):
    made = model(name)
    quantized, config = calibrated(made, bits)
    proto = exported(tmp_path / "network.onnx", quantized, config, made.spec)
    np.testing.assert_allclose(run(proto, images)[0], outputs(integer_inference_network(quantized, made.spec), images), atol=1e-5)


def test_value_preserving_operations_work_on_integers(small, calibrated, images, tmp_path):
    """onnxruntime 1.32 can load none of them after a DequantizeLinear of opset 21."""

    class PassesOn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.shuffle, self.pool, self.output = nn.ChannelShuffle(2), nn.MaxPool2d(2), nn.Linear(64, 4)

        def forward(self, x):
            x = F.relu(self.first(x))
            x = self.second(self.shuffle(x)) + x
            return self.output(self.pool(x).transpose(1, 3).flatten(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = FullPrecisionModel(PassesOn().eval(), small.spec)
    quantized, config = calibrated(made, 4)
    proto = exported(tmp_path / "network.onnx", quantized, config, small.spec)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    pool = next(node for node in proto.graph.node if node.op_type == "MaxPool")
    assert types[pool.output[0]] == onnx.TensorProto.INT8
    np.testing.assert_allclose(run(proto, images)[0], outputs(integer_inference_network(quantized, small.spec), images), atol=1e-5)


def test_metadata(small, calibrated, tmp_path):
    quantized, config = calibrated(small, 3, activation_bits=5, layer_bits={"conv2": 6})
    model = exported(tmp_path / "network.onnx", quantized, config, small.spec)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "b", "c", "d"]
    assert json.loads(metadata["mean"]) == [0.5, 0.5, 0.5]
    assert json.loads(metadata["std"]) == [0.25, 0.25, 0.25]
    assert (metadata["image_size"], metadata["weight_bits"], metadata["activation_bits"]) == ("8", "3", "5")
    assert json.loads(metadata["layer_bits"]) == {"conv2": 6}
    assert "(value in [0, 1] - mean) / std" in metadata["input"]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 8, 8]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", 4]
    content = (tmp_path / "network.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


def test_full_precision(small, images, tmp_path):
    expected = outputs(small.network, images)
    save_onnx(small.network, small.spec, tmp_path / "network.onnx")
    np.testing.assert_allclose(run(onnx.load(tmp_path / "network.onnx"), images)[0], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_embedded_network(embedded, calibrated, tmp_path, bits):
    from core.data.labeled import embedded_images

    quantized, config = calibrated(embedded, bits)
    model = exported(tmp_path / "network.onnx", quantized, config, embedded.spec)
    images = embedded.normalize(embedded_images()[0][:100]).contiguous(memory_format=torch.channels_last)
    expected, found = outputs(integer_inference_network(quantized, embedded.spec), images), run(model, images)[0]
    assert np.array_equal(found, expected)  # bit-identical: no value on another level
