"""Tensors that are not finite are found by name. The first module that computes one: see tests/core/quantization/test_divergence.py."""

import math

import pytest
import torch

from core.errors import ModelError
from core.models.divergence import check_tensors, tensor_not_finite
from core.models.full_precision import load_model, save_checkpoint
from core.models.registry import MODELS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["conv2.weight", "bn1.bias", "bn2.running_mean", "bn1.running_var"])
def test_first_tensor_is_named(small, name, value):
    assert tensor_not_finite(small.network) == ""
    small.network.state_dict()[name].view(-1)[-1] = value
    assert tensor_not_finite(small.network) == name


def test_infinity_in_a_buffer_may_be_a_mask(small):
    small.network.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    check_tensors(small.network, "small")
    small.network.mask[0] = math.nan
    with pytest.raises(ModelError, match="^parameters and statistics of small must be finite, got infinity or NaN in mask$"):
        check_tensors(small.network, "small")


def test_file_with_an_infinite_weight_is_refused_when_it_is_loaded(tmp_path, embedded):
    """Its scores may be finite, and nothing checks them before a run."""
    network = load_model("resnet20_cifar10", "cpu").network
    network.output.weight[0, 0] = math.inf
    save_checkpoint(network, MODELS["resnet20_cifar10"][1], tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"a.safetensors' must be finite, got infinity or NaN in output.weight$"):
        load_model(str(tmp_path / "a.safetensors"), "cpu")
