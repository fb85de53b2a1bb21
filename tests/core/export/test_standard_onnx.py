"""Standard ONNX files: onnxruntime fuses every layer into a kernel for integers, and computes what the network of floats computes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.config import BIT_WIDTHS
from core.export.onnx import save_onnx
from core.export.openvino import open_openvino
from core.export.standard_onnx import IntegerFolded, Levels, standard_network
from core.models.full_precision import FullPrecisionModel
from core.quantization.integer.inference import integer_inference_network
from core.quantization.integer.weights import FixedQuantizer
from core.quantization.quantizer import Quantizer


def optimized(path, folder) -> tuple[Counter, onnxruntime.InferenceSession]:
    """The operations of the graph that onnxruntime makes of a file, and the session."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # a warning that the optimized file fits this machine only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node), session


def exported(quantized, config, spec, images, folder, symmetric=False):
    network = standard_network(quantized, images, symmetric)
    with torch.no_grad():
        expected = network(images).numpy()  # before save_onnx modifies it
    path = folder / "network.onnx"
    save_onnx(network, spec, path, config)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    operations, session = optimized(path, folder)
    return operations, session.run(None, {"images": images.contiguous().numpy()})[0], expected, path


class Residual(nn.Module):
    """What standard files must fuse: BatchNorm, ReLU, ReLU6, an addition, a depthwise convolution, pooling, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.third, self.bn3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.fourth, self.output = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.first(x)))
        y = self.bn3(self.third(F.relu6(self.bn2(self.second(x)))))
        x = self.fourth(F.relu(x + y))
        return self.output(F.relu(x).mean((2, 3)))


@pytest.fixture
def residual(small):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Residual()
        for layer in (network.bn1, network.bn2, network.bn3):
            nn.init.normal_(layer.weight)  # also negative
            nn.init.normal_(layer.bias)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return FullPrecisionModel(network.eval(), small.spec)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_every_width_is_fused(residual, calibrated, images, tmp_path, bits):
    quantized, config = calibrated(residual, bits)
    operations, found, expected, path = exported(quantized, config, residual.spec, images, tmp_path)
    assert (operations["QLinearConv"], operations["QLinearAdd"], operations["QGemm"]) == (4, 1, 1)
    assert not {"Conv", "Gemm", "Add", "Relu", "BatchNormalization", "DequantizeLinear"} & set(operations)
    assert operations["QuantizeLinear"] == 1  # of the image
    np.testing.assert_allclose(found, expected, atol=2 * float(quantized.activations[-1].quantizer.scale.detach()))
    assert np.median(np.abs(found - expected)) < 1e-4
    kinds = Counter(tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1)
    assert kinds[onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8] == 5


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_symmetric_files_follow_the_rules_of_tensorrt(residual, calibrated, images, tmp_path, bits):
    """INT8 around zero everywhere, one scale for each activation and one for each channel of a weight, biases of floats, and every
    QuantizeLinear directly before a DequantizeLinear.
    """
    quantized, config = calibrated(residual, bits)
    _, found, expected, path = exported(quantized, config, residual.spec, images, tmp_path, symmetric=True)
    np.testing.assert_allclose(found, expected, atol=2 * float(quantized.activations[-1].quantizer.scale.detach()))
    assert np.median(np.abs(found - expected)) < 1e-4
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: [node.op_type for node in graph.node if name in node.input] for node in graph.node for name in node.output}
    weights = 0
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        if node.op_type == "QuantizeLinear":
            assert readers[node.output[0]] == ["DequantizeLinear"]
        weight = constants.get(node.input[0])
        weights += weight is not None
        assert constants[node.input[1]].shape == (() if weight is None else (len(weight),))
        assert weight is None or weight.dtype == np.int8
    assert weights == 5
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [constants[layer.input[2]].dtype for layer in layers] == [np.float32] * 5


@pytest.mark.parametrize("bits", [4, 8])
def test_every_layer_is_computed_with_integers_in_openvino(residual, calibrated, images, tmp_path, bits):
    import openvino

    quantized, config = calibrated(residual, bits)
    _, _, expected, path = exported(quantized, config, residual.spec, images, tmp_path)
    found = open_openvino(path, 1)(images).numpy()
    np.testing.assert_allclose(found, expected, atol=2 * float(quantized.activations[-1].quantizer.scale.detach()))
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    layers = [fact["runtimePrecision"].value for fact in facts if fact["layerType"].value in ("Convolution", "FullyConnected")]
    assert layers == ["u8"] * 5


def test_scores_are_close_to_those_of_the_network(residual, calibrated, images, tmp_path):
    quantized, config = calibrated(residual, 8)
    *_, found, _, _ = exported(quantized, config, residual.spec, images, tmp_path)
    with torch.no_grad():
        exact = integer_inference_network(quantized, residual.spec)(images).numpy()
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_a_folded_layer_is_the_layer_and_its_batch_norm(residual, calibrated, images):
    """Against float64 arithmetic by hand: rounding the bias is the only difference."""
    quantized, _ = calibrated(residual, 4)
    layer, batch_norm = quantized.network.third, residual.network.bn3
    standard = standard_network(quantized, images)
    folded = [module for module in standard.modules() if isinstance(module, IntegerFolded)][2]
    factor = batch_norm.weight.double() / torch.sqrt(batch_norm.running_var.double() + batch_norm.eps)
    weight = layer.quantized_weight().detach().double() * factor.view(-1, 1, 1, 1)
    bias = (layer.bias.detach().double() - batch_norm.running_mean.double()) * factor + batch_norm.bias.double()
    assert (factor < 0).any()
    torch.testing.assert_close(folded.weight.double() * folded.weight_scale.double().view(-1, 1, 1, 1), weight, atol=1e-6, rtol=1e-6)
    steps = (folded.bias.double() * folded.bias_scale.double() - bias).abs() / folded.bias_scale.double()
    assert float(steps.detach().max()) < 0.51
    assert int(folded.weight.min()) >= -127


def test_eight_bit_weights_around_another_zero_point_are_rounded_to_127_levels(residual, calibrated, images):
    quantized, _ = calibrated(residual, 8)
    standard = standard_network(quantized, images)
    layers = [module for module in standard.modules() if isinstance(module, IntegerFolded)]
    original = [layer.quantized_weight().detach() for layer in quantized.layers]
    last, weight = layers[-1], original[-1]  # without a BatchNorm
    difference = (last.weight.float() * last.weight_scale.view(-1, 1) - weight).abs()
    assert float((difference / last.weight_scale.view(-1, 1)).max()) <= 0.5 + 1e-3
    assert all(int(layer.weight.abs().max()) <= 127 for layer in layers)


def test_symmetric_eight_bit_weights_are_those_of_the_network(residual, calibrated, images):
    quantized, _ = calibrated(residual, 8, symmetric_weights=True)
    last = [module for module in standard_network(quantized, images).modules() if isinstance(module, IntegerFolded)][-1]
    layer = quantized.layers[-1]
    assert not layer.weight_quantizer.zero_point.any()
    integers = (layer.quantized_weight().detach() / layer.weight_quantizer.scale.view(-1, 1)).round()
    assert torch.equal(last.weight.float(), integers)


@pytest.mark.parametrize(("lower", "upper"), [(float("-inf"), float("inf")), (0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_those_of_the_quantizer_after_a_clamp(bits, lower, upper):
    quantizer = Quantizer(bits)
    quantizer.set_range(torch.tensor(-2.0), torch.tensor(9.0))
    fixed = FixedQuantizer(quantizer)
    values = torch.linspace(-20, 20, 2001) + 1e-3  # no value in the middle between two levels
    levels = Levels.like(fixed, lower, upper)
    torch.testing.assert_close(levels(values), fixed(values.clamp(lower, upper)), atol=1e-5, rtol=0)
    assert 0 <= levels.lowest <= levels.highest <= 255


@pytest.mark.parametrize(("lower", "upper"), [(float("-inf"), float("inf")), (0.0, float("inf")), (0.0, 6.0)])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_symmetric_levels_are_those_of_the_quantizer_up_to_7_bits(bits, lower, upper):
    quantizer = Quantizer(bits)
    quantizer.set_range(torch.tensor(-2.0), torch.tensor(9.0))
    fixed = FixedQuantizer(quantizer)
    values = torch.linspace(-20, 20, 2001) + 1e-3
    levels = Levels.like(fixed, lower, upper, symmetric=True)
    assert -128 <= levels.lowest <= levels.highest <= 127
    assert levels.zero_point.dtype == torch.int8
    assert int(levels.zero_point) == 0
    step, highest = float(levels.scale), min(fixed.highest - int(fixed.zero_point), round(upper / float(fixed.scale)) if upper < 9 else 255)
    assert step == pytest.approx(float(fixed.scale) * max(1.0, highest / 127))
    difference = (levels(values) - fixed(values.clamp(lower, upper))).abs().max()
    assert float(difference) < (1e-5 if bits < 8 else step)


def test_a_symmetric_range_is_that_of_the_images():
    levels = Levels(symmetric=True)
    levels(torch.tensor([-5.1, 3.0]))
    levels.set_seen_range()
    assert float(levels.scale) == pytest.approx(5.1 / 127)
    torch.testing.assert_close(levels(torch.tensor([-5.1, 0.0, 9.0])), torch.tensor([-5.1, 0.0, 5.1]))


def test_a_range_is_that_of_the_images_and_contains_zero():
    levels = Levels()
    for values in ([1.0, 3.0], [2.0, 5.1]):
        assert torch.equal(levels(torch.tensor(values)), torch.tensor(values))
    levels.set_seen_range()
    assert float(levels.scale) == pytest.approx(5.1 / 255)
    assert int(levels.zero_point) == 0
    assert float(levels(torch.tensor([7.0]))) == pytest.approx(5.1)


def test_a_channel_of_constant_output_keeps_its_bias(residual, calibrated, images):
    """A weight of the BatchNorm of nearly zero would need a bias beyond int32."""
    with torch.no_grad():
        residual.network.bn3.weight[0], residual.network.bn3.bias[0] = 1e-12, 3.0
    quantized, _ = calibrated(residual, 4)
    folded = [module for module in standard_network(quantized, images).modules() if isinstance(module, IntegerFolded)][2]
    assert float(folded.bias[0] * folded.bias_scale[0]) == pytest.approx(3.0, rel=1e-4)
    assert not folded.weight[0].any()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_embedded_network_loses_nothing(embedded, calibrated, tmp_path, bits):
    from core.data.labeled import embedded_images

    quantized, config = calibrated(embedded, bits)
    pixels, labels = embedded_images()
    images = embedded.normalize(pixels[:500]).contiguous(memory_format=torch.channels_last)
    operations, found, _, _ = exported(quantized, config, embedded.spec, images, tmp_path)
    assert (operations["QLinearConv"], operations["QLinearAdd"], operations["QGemm"], operations["Conv"]) == (21, 9, 1, 0)
    with torch.no_grad():
        exact = integer_inference_network(quantized, embedded.spec)(images).numpy()
    accuracies = [float((scores.argmax(1) == np.array(labels[:500])).mean()) for scores in (found, exact)]
    assert abs(accuracies[0] - accuracies[1]) <= {4: 0.03, 8: 0.005}[bits]
