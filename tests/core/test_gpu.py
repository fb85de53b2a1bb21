"""CUDA graphs: the logic around them with simulated graphs, and real graphs if there is a GPU."""

import copy
import gc
import inspect
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from core import gpu
from core.config import RANGE_METHODS, GenerationConfig, TrainingConfig
from core.generation import forward_pass
from core.generation.loop import GenerationLoop
from core.gpu import CudaGraph
from core.models.full_precision import FullPrecisionModel, resolve_device
from core.quantization.training import QuantizationTraining

GENERATION = GenerationConfig(images=40, iterations=8, batch_size=12, snapshots=2, burn_in=0.5, max_shift=1)
TRAINING = TrainingConfig(weight_bits=4, activation_bits=4, steps=14, training_batch_size=24, training_lr=0.001)


@pytest.fixture
def stand_in(monkeypatch):
    """Simulates CUDA graphs: a replay calls the function again with its buffers and copies the results into the captured outputs."""
    made = []

    def captured(work, places):
        outputs = work(*places)
        again = weakref.WeakMethod(work) if inspect.ismethod(work) else lambda: work  # a CUDA graph does not keep it alive either

        def replay():
            with torch.no_grad():
                for place, new in zip(outputs, again()(*places)):
                    if place is not None:
                        place.copy_(new)

        made.append(tuple(places[0].shape))
        return replay, outputs

    monkeypatch.setattr(gpu, "_call_on_side_stream", lambda work, inputs: work(*inputs))
    monkeypatch.setattr(gpu, "_captured", captured)
    monkeypatch.setattr(gpu, "_can_capture", lambda device: True)
    return made


@pytest.fixture
def on_gpu(small):
    """The small network on a GPU with deterministic algorithms."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    before = torch.are_deterministic_algorithms_enabled()
    device = resolve_device("cuda")
    yield FullPrecisionModel(small.network.to(device).to(memory_format=torch.channels_last), small.spec)
    torch.use_deterministic_algorithms(before)


def generated(model, method="mi-fgsm", **changes):
    synthesis = GenerationLoop(model, replace(GENERATION, **changes), method)
    records = []
    synthesis.reporter = type("Notes", (type(synthesis.reporter),), {"record": lambda self, *values: records.append(values)})()
    while not synthesis.finished:
        synthesis.step()
    return synthesis.image_set().images, records, synthesis


def trained(model, images, **changes):
    training = QuantizationTraining(model, images, replace(TRAINING, **changes))
    while not training.finished:
        training.step()
    return {name: value.cpu() for name, value in training.student.state_dict().items()}


def without_seconds(records):
    return [(*rest, {name: value for name, value in values.items() if name != "seconds"}) for *rest, values in records]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def plain(monkeypatch):
    monkeypatch.setattr(gpu, "_can_capture", lambda device: False)


def test_each_shape_is_captured_after_a_few_calls(stand_in):
    calls = []

    def work(x, y):
        calls.append(x.shape)
        return [x + y, None]

    recording = CudaGraph(torch.device("cpu"))
    for count in (2, 2, 3, 2, 2, 2, 3):
        x = torch.randn(count)
        total, nothing = recording(work, x, torch.ones(count))
        assert torch.equal(total, x + 1)
        assert nothing is None
    assert stand_in == [(2,)]  # the other shape has fewer calls than the warm-up
    assert recording.failure == ""


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nmore"), "operation not permitted when stream is capturing"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory for a CUDA graph"),
    ],
)
def test_function_that_cannot_be_captured_is_called(stand_in, monkeypatch, error, failure):
    def captured(work, places):
        raise error

    monkeypatch.setattr(gpu, "_captured", captured)
    recording = CudaGraph(torch.device("cpu"))
    for number in range(6):
        assert recording(lambda x: [2 * x], torch.tensor([number]))[0].item() == 2 * number
    assert recording.failure == failure


@pytest.mark.parametrize(
    "changes", [{}, {"method": "adam"}, {"half_resolution_fraction": 0.5, "max_shift": 0}, {"alpha_tv": 0.0, "beta": 0.0}]
)
def test_captured_generation_is_the_same(small, stand_in, monkeypatch, changes):
    images, records, synthesis = generated(small, **changes)
    assert len(stand_in) >= 1
    assert synthesis.summary()["kernels"] == "torch, recorded as a CUDA graph"
    plain(monkeypatch)
    expected, others, synthesis = generated(small, **changes)
    assert synthesis.summary()["kernels"] != "torch, recorded as a CUDA graph"
    assert torch.equal(images, expected)
    for (*where, values), (*there, others_values) in zip(without_seconds(records), without_seconds(others), strict=True):
        assert where == there
        assert values.pop("layers") == pytest.approx(others_values.pop("layers"), rel=1e-5)
        assert values == pytest.approx(others_values, rel=1e-5)


def test_untraceable_network_is_not_captured(stand_in):
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 1e9 else x + 0)

    own = forward_pass.ForwardPass(Untraceable(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval())
    images = torch.randn(2, 3, 8, 8).requires_grad_(True)
    for _ in range(6):
        own(images, torch.tensor([0, 1]), {"alpha_tv": 0.1, "alpha_l2": 0.1, "beta": 1.0})[0].backward()
    assert stand_in == []
    assert own.kernels == "torch: the network cannot be traced"


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("changes", [{}, {"training_optimizer": "sgd", "alpha_feature": 0.0, "alpha_ce": 1.0, "ema_decay": 0.0}])
def test_captured_training_is_the_same(small, small_images, stand_in, monkeypatch, method, changes):
    state = trained(copy.deepcopy(small), small_images, range=method, **changes)
    assert stand_in == [(24, 3, 8, 8), (16, 3, 8, 8)]  # the last batch of an epoch is smaller
    plain(monkeypatch)
    expected = trained(copy.deepcopy(small), small_images, range=method, **changes)
    if method == "minmax":  # the simulated capture also computes, which updates the running average of the range once more
        assert state.keys() == expected.keys()
    else:
        assert same(state, expected)


def test_ranges_are_updated_in_place(small, small_images):
    training = QuantizationTraining(small, small_images, replace(TRAINING, range="minmax"))
    places = [end.data_ptr() for own in training.quantized.activations for end in own.range_method.state()]
    before = [end.clone() for own in training.quantized.activations for end in own.range_method.state()]
    training.step()
    after = [end for own in training.quantized.activations for end in own.range_method.state()]
    assert [end.data_ptr() for end in after] == places
    assert not all(torch.equal(one, other) for one, other in zip(before, after))


@pytest.mark.parametrize(
    "make", [lambda model, images: GenerationLoop(model, GENERATION), lambda *both: QuantizationTraining(*both, TRAINING)]
)
@pytest.mark.parametrize("records", [True, False])
def test_memory_is_freed_without_the_garbage_collector(small, small_images, request, make, records):
    """The garbage collector counts objects, not megabytes: it would free networks and mapped image files too late."""
    if records:
        request.getfixturevalue("stand_in")
    own = make(small, small_images)
    for _ in range(6):
        own.step()
    dropped = weakref.ref(own if isinstance(own, QuantizationTraining) else own._forward)
    gc.disable()
    try:
        del own
        assert dropped() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("changes", [{}, {"method": "adam"}, {"half_resolution_fraction": 0.5, "max_shift": 0}])
def test_generation_on_a_gpu_is_captured_and_repeatable(on_gpu, monkeypatch, changes):
    first, _, synthesis = generated(on_gpu, **changes)
    assert synthesis.summary()["kernels"] == "torch, recorded as a CUDA graph"
    second, _, _ = generated(on_gpu, **changes)
    assert torch.equal(first, second)
    plain(monkeypatch)
    third, _, _ = generated(on_gpu, **changes)
    assert torch.equal(first, third)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_training_on_a_gpu_is_captured_and_repeatable(on_gpu, small_images, monkeypatch, method):
    first, second = (trained(copy.deepcopy(on_gpu), small_images, range=method) for _ in range(2))
    assert same(first, second)
    plain(monkeypatch)
    assert same(first, trained(copy.deepcopy(on_gpu), small_images, range=method))


def test_gpu_continues_after_a_failed_capture(on_gpu):
    x = torch.ones(3, device="cuda")
    recording = CudaGraph(x.device)
    for _ in range(6):
        assert recording(lambda x: [x * float(x.sum())], x)[0].tolist() == [3.0, 3.0, 3.0]  # reads a value on the CPU
    assert recording.failure
