"""Infinity and NaN in training and calibration: the error names the layer and the step."""

from contextlib import suppress

import pytest
import torch

from core.config import RANGE_METHODS, TrainingConfig
from core.errors import CoreError, ModelError
from core.models.divergence import first_not_finite
from core.quantization.training import QuantizationTraining


def config(**changes) -> TrainingConfig:
    values = {"steps": 4, "training_batch_size": 16, "crop_padding": 1, "training_lr": 1e-3, "alpha_ce": 1.0}
    return TrainingConfig(**{**values, "alpha_feature": 0.0, "ema_decay": 0.0, **changes})


def test_nan_loss_is_refused_before_the_weights_change(small, small_images):
    training = QuantizationTraining(small, small_images, config())
    weight = training.student.conv1.weight.detach().clone()
    with torch.no_grad():
        training.student.output.bias.fill_(float("nan"))
    with pytest.raises(CoreError, match="^training loss must be finite, got nan at step 1 of W4A4, first in output; try"):
        training.step()
    assert torch.equal(training.student.conv1.weight.detach(), weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_diverged_weights_raise_only_core_errors(small, small_images, method, value):
    training = QuantizationTraining(small, small_images, config(range=method))
    with torch.no_grad():
        training.student.conv2.weight[0] = value
    # a fixed range may clip them and let the step succeed; if it fails, it must raise our own error
    with suppress(CoreError):
        training.step()


def test_first_nonfinite_module(small, small_images):
    images = small.normalize(small_images.images[:4])
    assert first_not_finite(small.network, images) == ""
    small.network.bn2.weight.data[0] = float("inf")
    assert first_not_finite(small.network, images) == "bn2"
    small.network.conv1.weight.data[0] = float("nan")
    assert first_not_finite(small.network, images) == "conv1"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.network.modules())


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_error_names_layer_and_step(small, small_images, method):
    """Even if a range is not finite before the loss is computed, or a fixed range clips the values and the loss stays finite."""
    training = QuantizationTraining(small, small_images, config(range=method), series="adam W4A4")
    training.step()
    with torch.no_grad():
        # a fixed range clips even infinite values
        training.student.bn1.bias[0] = float("inf" if method == "mse" else "nan")
    where = r"^parameters must be finite, got infinity or NaN in bn1.bias after step 2 of adam W4A4; try a smaller training_lr$"
    if method != "mse":
        where = r" must be finite, got .* at step 2 of adam W4A4, first in bn1; try a smaller training_lr$"
    with pytest.raises(CoreError, match=where):
        training.step()


def test_error_names_the_layer_of_a_nonfinite_weight_range(small, small_images):
    training = QuantizationTraining(small, small_images, config(range="minmax"), series="adam W4A4")
    with torch.no_grad():
        training.student.conv2.weight[0] = float("nan")
    with pytest.raises(CoreError, match="^quantization ranges must be finite, got .* at step 1 of adam W4A4, first in conv2; try"):
        training.step()


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_error_in_the_calibration_names_the_layer(small, small_images, method):
    small.network.conv1.weight.data[0] = 3e38
    with pytest.raises(CoreError, match="^quantization ranges must be finite, got .* in the calibration of adam W4A4, first in conv1$"):
        QuantizationTraining(small, small_images, config(range=method), series="adam W4A4")


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_network_that_is_not_finite_is_refused_by_the_name_of_its_tensor(small, small_images, method):
    """An infinite weight may even have finite ranges."""
    small.network.bn1.running_mean[0] = float("nan")
    with pytest.raises(ModelError, match="^parameters and statistics of small must be finite, got infinity or NaN in bn1.running_mean$"):
        QuantizationTraining(small, small_images, config(range=method), series="adam W4A4")


def test_divergence_in_the_last_step_is_reported(small, small_images):
    """A finite loss does not guarantee finite parameters after the step."""
    training = QuantizationTraining(small, small_images, config(steps=1), series="adam W4A4")
    step = training.optimizer.step

    def too_far():
        step()
        with torch.no_grad():
            training.student.conv2.weight[0] = float("inf")

    training.optimizer.step = too_far
    with pytest.raises(
        CoreError,
        match=r"^parameters must be finite, got .* in conv2.weight after step 1 of adam W4A4; try",
    ):
        training.step()
