"""ExecuTorch files: XNNPACK computes every layer with int8, and the scores are those of the standard network."""

import json
from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("executorch.extension.pybindings.portable_lib")

from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNConv2d, XNNDatatype, XNNDepthwiseConv2d, XNNFullyConnected

from core.export.benchmark import benchmark
from core.export.executorch import lowered, open_executorch, save_executorch, stored_spec
from core.export.network import save_network
from core.export.standard_onnx import standard_network


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that XNNPACK gets, as they come."""
    found = []
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def recorded(graph, *others):
        found.append(graph)
        return serialize(graph, *others)

    monkeypatch.setattr(xnnpack_preprocess, "serialize_xnnpack_binary", recorded)
    return found


@pytest.mark.parametrize("name", ["small", "wide"])
@pytest.mark.parametrize("bits", [3, 8])
def test_every_layer_is_computed_with_int8(name, bits, request, calibrated, images, graphs, tmp_path):
    model = request.getfixturevalue(name)
    quantized, _ = calibrated(model, bits)
    network = standard_network(quantized, images)
    expected = network(images)
    program = lowered(network, model.spec)
    calls = [str(node.target) for node in program.exported_program().graph.nodes if node.op == "call_function"]
    assert sorted(calls) == ["<built-in function getitem>", "executorch_call_delegate"]
    (graph,) = graphs
    tensors = [getattr(value.xvalue_union, "tensor_value", value.xvalue_union) for value in graph.xvalues]
    types = {tensor.id_out: tensor.datatype for tensor in tensors}
    layers = [node.xnode_union for node in graph.xnodes if isinstance(node.xnode_union, (XNNConv2d, XNNDepthwiseConv2d, XNNFullyConnected))]
    assert len(layers) == len(quantized.layers)
    for layer in layers:
        assert types[layer.filter_id] == XNNDatatype.xnn_datatype_qcint8
        assert types[layer.input1_id] in (XNNDatatype.xnn_datatype_qint8, XNNDatatype.xnn_datatype_qdint8)
    path = tmp_path / "network.pte"
    path.write_bytes(program.to_executorch().buffer)
    found = open_executorch(path, 1)(images)
    step = float(quantized.activations[-1].quantizer.scale.detach())
    np.testing.assert_allclose(found, expected, atol=2 * step)
    assert float((found - expected).abs().median()) < 0.2 * step


def test_a_float32_file_has_the_scores_of_the_network(small, images, tmp_path):
    expected = small.network(images)
    path = tmp_path / "network.pte"
    save_executorch(small.network, small.spec, path)
    np.testing.assert_allclose(open_executorch(path, 1)(images), expected, rtol=1e-4, atol=1e-5)
    assert json.dumps(asdict(stored_spec(path))) == json.dumps(asdict(small.spec))


def test_a_file_is_measured(small, calibrated, images, tmp_path):
    quantized, config = calibrated(small, 8)
    path = tmp_path / "network.pte"
    save_network("pte", quantized, small, config, path, images)
    found = benchmark(path, 0.0)
    assert found["runs_in"].startswith("executorch ")
    assert 0 < found["latency_ms_1_thread"] <= 1000 * 32 / found["images_per_second_1_thread"] * 1.5
