import pytest
import torch
from torch import Tensor, nn

from core.config import RANGE_METHODS, TrainingConfig
from core.errors import UnknownNameError
from core.quantization.layers import from_module
from core.quantization.quantizer import affine_parameters
from core.quantization.ranges.base import RangeMethod, range_method
from core.quantization.ranges.minmax import MinMax
from core.quantization.ranges.mse import LeastSquares


def made(name: str, channels: int | None = None) -> RangeMethod:
    return range_method(TrainingConfig(range=name))(4, channels)


def squared_error(values: Tensor, lower: float, upper: float, bits: int) -> float:
    """Sum of squared errors of torch's own fake quantization over [lower, upper], independent of core."""
    lower, upper = min(float(lower), 0.0), max(float(upper), 0.0)
    scale = (upper - lower) / (2**bits - 1)
    zero_point = round(-lower / scale) - 2 ** (bits - 1)
    restored = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return float((restored - values).double().square().sum())


def brute_force(values: Tensor, bits: int, steps: int = 40) -> float:
    """Smallest error over a grid of lower and upper ends, each from its extreme to zero."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    pairs = [(low * i / steps, high * j / steps) for i in range(1, steps + 1) for j in range(1, steps + 1)]
    return min(squared_error(values, *pair, bits) for pair in pairs)


def noise(seed: int, count: int = 1500) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(seed: int = 0, count: int = 1500) -> Tensor:
    """Student's t with three degrees of freedom."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) / (torch.randn(3, count, generator=generator).square().mean(dim=0)).sqrt()


DISTRIBUTIONS = {
    "normal": noise(1),
    "after relu": noise(2).relu(),
    "shifted": noise(3) + 1.5,
    "heavy tails": heavy_tailed(4),
    "one long side": torch.cat([-noise(5).abs(), noise(6, 150).abs() * 8]),
    "one outlier": torch.cat([noise(7), torch.tensor([60.0])]),
}


def test_minmax_averages_over_batches():
    method = MinMax(4, None)
    for low, high in ((-1.0, 3.0), (0.0, 5.0), (-2.0, 1.0)):
        method.observe(torch.tensor([[low, 0.5], [high, 0.2]]))
    # -1 -> 0.9 * -1 + 0.1 * 0 = -0.9 -> 0.9 * -0.9 + 0.1 * -2 = -1.01;  3 -> 3.2 -> 2.98
    torch.testing.assert_close(torch.stack(method.range()), torch.tensor([-1.01, 2.98]))


def test_minmax_of_a_weight_is_the_last_observation():
    method = MinMax(4, 2)
    method.observe(torch.tensor([[-9.0, 9.0], [5.0, 6.0]]).view(2, 2, 1, 1))
    method.observe(torch.tensor([[-1.0, 2.0], [3.0, -4.0]]).view(2, 2, 1, 1))
    lower, upper = method.range()
    assert lower.tolist() == [-1, -4]
    assert upper.tolist() == [2, 3]


def test_minmax_keeps_no_reference_to_observed_values():
    method, values = MinMax(4, 1), torch.tensor([[-1.0, 2.0]])
    method.observe(values)
    values.mul_(10)
    assert [float(end) for end in method.range()] == [-1, 2]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_least_squares_against_brute_force(name, bits):
    values = DISTRIBUTIONS[name]
    method = LeastSquares(bits, None)
    method.observe(values)
    assert squared_error(values, *method.range(), bits) <= 1.05 * brute_force(values, bits)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_least_squares_beats_minmax_on_heavy_tails(bits):
    values = heavy_tailed()
    least, minmax = LeastSquares(bits, None), MinMax(bits, None)
    for method in (least, minmax):
        method.observe(values)
    assert squared_error(values, *least.range(), bits) < 0.7 * squared_error(values, *minmax.range(), bits)


def test_least_squares_range_is_within_the_values():
    values = heavy_tailed(9)
    method = LeastSquares(4, None)
    method.observe(values)
    lower, upper = method.range()
    assert float(values.min()) <= float(lower) < 0 < float(upper) <= float(values.max())


def test_least_squares_treats_channels_separately():
    weight = torch.stack([noise(1, 36), noise(2, 36).relu(), heavy_tailed(3, 36), 1e-3 * noise(4, 36)]).view(4, 4, 3, 3)
    together = LeastSquares(3, 4)
    together.observe(weight)
    lower, upper = together.range()
    assert lower.shape == upper.shape == (4,)
    for channel in range(4):
        alone = LeastSquares(3, None)
        alone.observe(weight[channel])
        torch.testing.assert_close((lower[channel], upper[channel]), alone.range())


def test_least_squares_uses_all_batches():
    first, second = noise(1), 5 * noise(2)
    batches, whole = LeastSquares(4, None), LeastSquares(4, None)
    batches.observe(first)
    batches.observe(second)
    whole.observe(torch.cat([first, second]))
    torch.testing.assert_close(batches.range(), whole.range())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sample_of_a_large_activation_is_representative(layout):
    # (N, C, H, W) with more values than are sampled; one channel of sixteen and one row determine most of the range
    values = torch.randn(8, 16, 32, 32, generator=torch.Generator().manual_seed(0)).relu()
    values[:, 5] *= 4
    values[:, :, 17] *= 2
    method = LeastSquares(4, None)
    method.observe(values.contiguous(memory_format=layout))
    assert squared_error(values, *method.range(), 4) <= 1.05 * brute_force(values, 4, steps=12)


@pytest.mark.parametrize("name", RANGE_METHODS)
def test_all_zeros(name):
    method = made(name)
    method.observe(torch.zeros(10))
    assert [float(end) for end in method.range()] == [0, 0]


def test_flags_of_the_range_methods():
    flags = {name: (made(name).updates_in_training, made(name).learned) for name in RANGE_METHODS}
    assert flags == {"minmax": (True, False), "mse": (False, False), "lsq": (False, True)}


def test_unknown_name(monkeypatch):
    """The config was built while the method was still registered."""
    config = TrainingConfig(range="lsq")
    monkeypatch.delitem(RANGE_METHODS, "lsq")  # the last one, so that restoring it keeps the order
    with pytest.raises(UnknownNameError, match="^unknown range method 'lsq': must be one of minmax, mse$"):
        range_method(config)


def test_resumed_running_average_has_the_same_bits():
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(4, 5, generator=generator) for _ in range(4)]
    whole, first, second = (made("minmax") for _ in range(3))
    for batch in batches:
        whole.observe(batch)
    for batch in batches[:2]:
        first.observe(batch)
    second.observe(batches[3])  # its own calibration, which the state replaces
    second.load_state(first.state())
    for batch in batches[2:]:
        second.observe(batch)
    assert all(torch.equal(one, other) for one, other in zip(whole.range(), second.range()))


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_state_before_the_first_observation_is_empty(method):
    one, other = made(method), made(method)
    assert one.state() == []
    other.observe(torch.tensor([-1.0, 2.0]))
    other.load_state(one.state())
    assert torch.isfinite(torch.stack(other.range())).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_minmax_of_an_activation_in_any_memory_format(layout):
    values = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    for seen in (values, values[:, 1:], values[..., ::2]):
        method = MinMax(4, None)
        method.observe(seen)
        assert [float(end) for end in method.range()] == [float(seen.min()), float(seen.max())]


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_symmetric_weights_have_a_zero_point_of_zero(method, bits):
    factory = range_method(TrainingConfig(range=method, symmetric_weights=True))
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(2)) + torch.linspace(-1, 1, 6)[:, None]
    weight[0] = 0
    of_weight, of_activation = factory(bits, 6), factory(bits, None)
    of_weight.observe(weight)
    of_activation.observe(weight)
    lower, upper = of_weight.allowed_range()
    _, offset = affine_parameters(lower, upper, bits)
    assert torch.equal(-offset, torch.zeros(6))  # the zero point
    usual = range_method(TrainingConfig(range=method))(bits, None)
    usual.observe(weight)
    assert torch.equal(torch.stack(of_activation.allowed_range()), torch.stack(usual.range()))
    layer = nn.Linear(40, 6, bias=False)
    layer.weight.data = weight
    layer = from_module(layer, bits, factory)
    layer.finish_calibration()
    integers = (layer.quantized_weight() / layer.weight_quantizer.scale.view(-1, 1)).round()
    assert integers.min() >= max(-(2 ** (bits - 1)), -127)
    assert integers.max() <= 2 ** (bits - 1) - 1


def test_symmetric_range_by_hand():
    method = range_method(TrainingConfig(range="minmax", symmetric_weights=True))(3, 3)
    method.observe(torch.tensor([[-1.0, 3.0], [-4.0, 1.0], [-1.0, -0.5]]))
    lower, upper = method.allowed_range()  # -4 to 3 steps of 1, 1, and 1/4
    assert lower.tolist() == [-4.0, -4.0, -1.0]
    assert upper.tolist() == [3.0, 3.0, 0.75]


def test_symmetric_search_is_among_symmetric_ranges():
    """No symmetric range of a fine grid has a smaller error by more than the coarser grid of the search explains."""
    weight = torch.randn(1, 500, generator=torch.Generator().manual_seed(4)) ** 3

    def error(step: float) -> float:
        return float((torch.clamp(torch.round(weight / step), -4, 3) * step - weight).square().sum())

    method = range_method(TrainingConfig(range="mse", symmetric_weights=True))(3, 1)
    method.observe(weight)
    _, upper = method.allowed_range()
    steps = torch.linspace(0.01, 1, 2000) * float(weight.abs().max()) / 3
    assert error(float(upper) / 3) < 1.02 * min(error(float(step)) for step in steps)
