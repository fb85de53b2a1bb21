"""A range method with its own knob, registered at run time, works from the config to the saved network without other changes."""

from functools import partial

import pytest
import torch

from core.config import RANGE_METHODS, RunConfig, TrainingConfig, choices, knobs
from core.config.knobs import add_knob, knob, remove_knob
from core.errors import ConfigError
from core.export.packed import load_packed, save_packed
from core.quantization.integer.weights import integer_network
from core.quantization.ranges.base import RangeMethod
from core.quantization.saved_network import load_quantized, save_quantized
from core.quantization.training import QuantizationTraining


class Percentile(RangeMethod):
    """The given percentiles of the last batch."""

    def __init__(self, bits, channels, percentile):
        super().__init__(bits, channels)
        self.percentile = percentile

    @classmethod
    def factory(cls, config):
        return partial(cls, percentile=config.percentile)

    def observe(self, values):
        rows = values.detach().flatten(1) if self.channels is not None else values.detach().reshape(1, -1)[:, :4096]
        ends = torch.tensor([1 - self.percentile / 100, self.percentile / 100])
        self.ends = torch.quantile(rows, ends, dim=1)

    def range(self):
        lower, upper = self.ends
        return (lower, upper) if self.channels is not None else (lower[0], upper[0])


@pytest.fixture
def percentile():
    RANGE_METHODS["percentile"] = choices.RangeChoice(Percentile, "percentiles")
    add_knob(TrainingConfig, "percentile", knob(99.0, "Percentile at which values are clipped.", minimum=50.0, maximum=100.0))
    yield
    remove_knob(TrainingConfig, "percentile")
    del RANGE_METHODS["percentile"]


def test_registered_method_has_its_knob(percentile):
    assert "percentile" in knobs(TrainingConfig)
    assert RunConfig().with_knobs({"range": "percentile", "percentile": 90.0}).training.percentile == 90.0
    with pytest.raises(ConfigError, match="percentile"):
        TrainingConfig(range="percentile", percentile=20.0)


def test_removed_method_is_unknown():
    with pytest.raises(ConfigError, match="range must be one of minmax, mse, lsq, got 'percentile'"):
        TrainingConfig(range="percentile")


def test_method_trains_saves_and_exports(percentile, small, small_images, tmp_path):
    scales = {}
    for value in (80.0, 100.0):
        config = TrainingConfig(range="percentile", percentile=value, steps=2, training_batch_size=16, crop_padding=1)
        training = QuantizationTraining(small, small_images, config)
        quantizers = [quantizer.range_method for quantizer in training.quantized.activations]
        quantizers += [layer.weight_range for layer in training.quantized.layers]
        assert {(type(method), method.percentile) for method in quantizers} == {(Percentile, value)}
        scales[value] = [layer.weight_quantizer.scale.detach().mean() for layer in training.quantized.layers]
        while not training.finished:
            training.step()
        again = load_quantized(save_quantized(training.quantized, config, tmp_path), small)
        images = small.normalize(small_images.images)
        save_packed(integer_network(again), small.spec, config, tmp_path / f"{value}.safetensors")
        with torch.no_grad():
            assert torch.equal(again.network(images), training.student(images))
            assert torch.equal(load_packed(tmp_path / f"{value}.safetensors", small.network)(images), training.inference_network()(images))
    assert all(narrow < wide for narrow, wide in zip(scales[80.0], scales[100.0]))
