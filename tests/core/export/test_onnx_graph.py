"""Changes to translated graphs; those that make onnxruntime fuse layers are tested in test_standard_onnx.py and test_onnx.py."""

from collections import Counter

import onnx
import pytest
import torch

from core.export.network import save_network
from core.export.verify import open_onnx


@pytest.mark.parametrize("kind", ["onnx", "onnx-symmetric", "onnx-exact"])
def test_no_weights_share_zero_points_which_onnxruntime_would_convert_twice(kind, embedded, calibrated, tmp_path):
    quantized, config = calibrated(embedded, 8)
    path = tmp_path / "network.onnx"
    images = embedded.normalize(
        torch.randint(0, 256, (4, *embedded.spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    save_network(kind, quantized, embedded, config, path, images)
    graph = onnx.load(path).graph
    constants = {constant.name for constant in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    of_weights = [node.input[2] for node in weights if len(node.input) == 3]
    assert len(of_weights) == 22
    assert set(Counter(of_weights).values()) == {1}
    # opens it with session.x64quantprecision, which failed on shared ones
    assert open_onnx(path, 1)(images).shape == (4, 10)
