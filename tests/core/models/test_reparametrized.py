"""Weights of weight norm and spectral norm are computed as torch computes them."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from core.models.reparametrized import with_computed_weights
from core.models.state_dicts import find_state_dict

KINDS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm by hooks": weight_norm,
    "weight norm of all": lambda layer: weight_norm(layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hooks": spectral_norm,
}


def network(change) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in (0, 3):
            change(network[index])
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(torch.randn(2, 3, 3, 3))  # spectral norm by hooks computes its weight here
    return network.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", KINDS)
def test_computed_weights_are_those_of_torch(kind, prefix):
    changed = network(KINDS[kind])
    expected = {f"{index}.weight": changed[index].weight.detach() for index in (0, 3)}
    saved = {prefix + key: value for key, value in changed.state_dict().items()}
    names = list(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).state_dict())
    found = find_state_dict({"state_dict": saved}, dict.fromkeys(names), "a.pth")
    assert sorted(found.weights) == sorted(names)
    for name, weight in expected.items():
        torch.testing.assert_close(found.weights[name], weight)


@pytest.mark.parametrize(
    "values",
    [
        {"a.weight_v": torch.ones(2, 3)},
        {"a.weight_v": torch.ones(2, 3), "a.weight_g": torch.ones(3, 1)},
        {"a.weight_v": torch.ones(2, 3), "a.weight_g": 3},
        {"a.weight_v": torch.ones(1).expand(10**6, 10**6), "a.weight_g": torch.ones(())},
        {"a.weight_orig": torch.ones(2, 3), "a.weight_u": torch.ones(3), "a.weight_v": torch.ones(2)},
        {"a.weight_orig": torch.ones(()), "a.weight_u": torch.ones(()), "a.weight_v": torch.ones(())},
        {"a.weight_g": torch.ones(2), "a.weight_v": torch.ones(2, dtype=torch.long)},
    ],
)
def test_what_does_not_fit_stays_as_it_is(values):
    before = copy.copy(values)
    assert with_computed_weights(values) == before
