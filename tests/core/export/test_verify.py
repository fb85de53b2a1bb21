import pytest
import torch

from core.data.labeled import EvaluationSet
from core.errors import RunStopped
from core.evaluation.accuracy import evaluate
from core.export.network import save_network
from core.export.verify import verify
from core.models.full_precision import save_checkpoint

KEYS = (
    "torch_accuracy onnxruntime_accuracy file_accuracy standard_error evaluated_on max_output_difference last_scale last_quantizer "
    "within_last_scale bytes float32_bytes latency_ms float32_latency_ms latency_threads latency_measured_in"
)


@pytest.fixture
def evaluation_set(small_images):
    return EvaluationSet(small_images.images, small_images.labels, "64 random images", 8)


@pytest.fixture
def float32(small, tmp_path):
    path = tmp_path / "float32.safetensors"
    save_checkpoint(small.network, small.spec, path)
    return path


def test_verify_packed(small, calibrated, evaluation_set, float32, tmp_path):
    quantized, config = calibrated(small, 4)
    path = tmp_path / "packed.safetensors"
    save_network("packed", quantized, small, config, path)
    threads = torch.get_num_threads()
    figures = verify("packed", path, float32, quantized, small, evaluation_set)
    assert torch.get_num_threads() == threads
    assert list(figures) == KEYS.split()
    accuracy = evaluate(quantized.network, small, evaluation_set)
    assert figures["torch_accuracy"] == figures["file_accuracy"] == accuracy.top1
    assert figures["onnxruntime_accuracy"] is None
    assert figures["max_output_difference"] == 0
    assert figures["within_last_scale"] == 100
    assert figures["last_quantizer"] == "activation_quantizer_1"
    assert figures["last_scale"] == float(quantized.activations[1].quantizer.scale)
    assert figures["bytes"] == path.stat().st_size
    assert figures["float32_bytes"] == float32.stat().st_size
    assert figures["latency_ms"] > 0
    assert figures["float32_latency_ms"] > 0
    assert figures["evaluated_on"] == "64 random images"


def test_another_network_in_the_file_is_detected(small, calibrated, evaluation_set, float32, tmp_path):
    quantized, config = calibrated(small, 4)
    path = tmp_path / "packed.safetensors"
    with torch.no_grad():
        wrong, _ = calibrated(small, 4)
        wrong.network.output.bias += torch.tensor([100.0, 0, 0, 0])
    save_network("packed", wrong, small, config, path)
    figures = verify("packed", path, float32, quantized, small, evaluation_set)
    assert figures["max_output_difference"] == pytest.approx(100, rel=1e-4)
    assert figures["within_last_scale"] == 0
    assert figures["file_accuracy"] == 25  # it always predicts the first of four classes
    assert figures["torch_accuracy"] == evaluate(quantized.network, small, evaluation_set).top1


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_verify_programs(small, calibrated, evaluation_set, tmp_path, kind):
    quantized, config = calibrated(small, 8)
    path = tmp_path / "network"
    save_network(kind, quantized, small, config, path)
    # any file can stand for the float32 one, whose size and speed do not matter here
    figures = verify(kind, path, path, quantized, small, evaluation_set)
    assert abs(figures["torch_accuracy"] - figures["file_accuracy"]) <= 100 / 64
    assert figures["onnxruntime_accuracy"] == (figures["file_accuracy"] if kind == "onnx" else None)
    assert figures["latency_measured_in"].startswith("onnxruntime" if kind == "onnx" else "torch")
    if kind == "pt2":
        assert figures["max_output_difference"] == 0


def test_can_be_stopped(small, calibrated, evaluation_set, float32, tmp_path):
    quantized, config = calibrated(small, 4)
    save_network("packed", quantized, small, config, tmp_path / "packed.safetensors")

    def stop():
        raise RunStopped("stopped")

    with pytest.raises(RunStopped):
        verify("packed", tmp_path / "packed.safetensors", float32, quantized, small, evaluation_set, stop)
