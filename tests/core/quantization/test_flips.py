"""Flip control: factors by hand, learned and recomputed ranges, and interrupted trainings."""

import pytest
import torch
from torch import nn

from core.config import RANGE_METHODS, TrainingConfig
from core.quantization.flips import FlipControl, smallest_factor
from core.quantization.layers import from_module
from core.quantization.ranges.base import range_method
from core.quantization.training import QuantizationTraining

OLD = torch.tensor([[0.0, 0.125, 0.25, 13 / 32]])  # the last is 6/64 below where it rounds up


def layer_of(weight, method="lsq", bits=4):
    """A linear layer with codes of size 1, or with the range of its weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    layer = from_module(linear, bits, range_method(TrainingConfig(range=method)))
    layer.finish_calibration()
    if method == "lsq":
        with torch.no_grad():
            layer.weight_quantizer.log_scale.zero_()
            layer.weight_quantizer.zero_point.zero_()
    return layer


def test_factor_by_hand():
    layer = layer_of(OLD)
    # 1, 2 and 4 are too little, 8 is enough, 6 rounds half to even and is too little; then 7, 6.5, 6.25 and 6.125
    assert smallest_factor(layer, OLD, OLD + 1 / 64, 0.25) == 6.125
    # half of the codes: 0.25 must rise by 16/64, and 32 is enough, then 24, 20, 18, 17 and 16.5
    assert smallest_factor(layer, OLD, OLD + 1 / 64, 0.5) == 16.5
    assert smallest_factor(layer, OLD, OLD + 0.2, 0.25) == 1.0  # enough already
    assert smallest_factor(layer, OLD, OLD, 0.25) == 1.0  # no step to enlarge


def test_learned_scale_counts_as_it_is_now():
    layer = layer_of(OLD)
    with torch.no_grad():
        layer.weight_quantizer.log_scale.fill_(torch.tensor(0.5).log())
    # codes of size 0.5: 0.25 is halfway, and any rise flips it
    assert smallest_factor(layer, OLD, OLD + 1 / 64, 0.25) == 1.0


def test_range_of_the_weight_is_found_again_for_each_trial():
    old = torch.tensor([[0.0, 4.4, 15.0]])  # 4-bit codes of size 1
    layer = layer_of(old, "minmax")
    assert smallest_factor(layer, old, old + torch.tensor([[0.0, 0.01, 0.0]]), 1 / 3) == pytest.approx(10, abs=0.5)
    # a largest value that rises by 0.1 makes codes larger by 1/150, so that 4.4 falls, to below 3.5 where they are 4.4 / 3.5
    factor = smallest_factor(layer, old, old + torch.tensor([[0.0, 0.0, 0.1]]), 1 / 3)
    assert 15 * (4.4 / 3.5 - 1) / 0.1 <= factor <= 15 * (4.4 / 3.5 - 1) / 0.1 + 1
    assert torch.equal(layer.weight_quantizer.scale, torch.tensor([1.0]))  # the layer itself is as it was


def test_weight_moves_along_its_step_and_others_are_untouched():
    layer = layer_of(OLD)
    other = layer_of(OLD)
    control = FlipControl([layer, other])
    with control.at_least(0.25), torch.no_grad():
        layer.weight.add_(1 / 64)
        other.weight.add_(0.2)
    assert torch.equal(layer.weight, OLD + 6.125 / 64)
    assert torch.equal(other.weight, OLD + 0.2)
    with control.at_least(0.0), torch.no_grad():
        layer.weight.copy_(OLD + 1 / 64)
    assert torch.equal(layer.weight, OLD + 1 / 64)


def config(method, **changes):
    values = {"range": method, "steps": 4, "training_batch_size": 16, "training_optimizer": "sgd", "training_lr": 1e-5, "ema_decay": 0.0}
    return TrainingConfig(**{**values, **changes})


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_tiny_steps_of_a_training_flip_codes(small, small_images, method):
    """A learning rate of 1e-5 flips few codes; the first of four steps has the whole share."""
    flipped = {}
    for share in (0.0, 0.05):
        training = QuantizationTraining(small, small_images, config(method, flip_share=share))
        layers = training.quantized.layers
        with torch.no_grad():
            before = [layer.quantized_weight().clone() for layer in layers]
            training.step()
            after = [layer.quantized_weight() for layer in layers]
        flipped[share] = [float((old.sub(new).abs() > 1e-4).float().mean()) for old, new in zip(before, after)]
    assert min(flipped[0.0]) < 0.05
    assert min(flipped[0.05]) >= 0.05


def test_interrupted_training_gives_the_same_bits(small, small_images, tmp_path):
    def made():
        return QuantizationTraining(small, small_images, config("lsq", flip_share=0.05))

    whole, begun, resumed = made(), made(), made()
    for _ in range(2):
        begun.step()
    torch.save(begun.state(), tmp_path / "state")
    resumed.load_state(torch.load(tmp_path / "state", weights_only=True))
    for training in (whole, resumed):
        while not training.finished:
            training.step()
    for name, value in resumed.student.state_dict().items():
        assert torch.equal(value, whole.student.state_dict()[name]), name
