"""Matching tensors by order: within layers in torch's order, between layers in the file's, and nothing that does not fit wholly."""

import torch
from torch import nn

from core.models.ordering import by_order


def expected_of(network):
    return {key: tuple(value.shape) for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}


NETWORK = nn.Sequential(
    nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 5)
)
with torch.no_grad():
    for tensor in NETWORK.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 1 if tensor.is_floating_point() else tensor)
STATE = NETWORK.state_dict()
EXPECTED = expected_of(NETWORK)


def check(content, free=None):
    found = by_order(content, EXPECTED, free or {})
    assert found is not None
    weights, label = found
    assert all(torch.equal(weights[key], STATE[key]) for key in EXPECTED)
    return label


def test_order_of_the_file_is_taken():
    assert check({f"t{place}": value for place, value in enumerate(STATE.values())}) == ""
    assert check({"net": {f"x.t{place}": value for place, value in enumerate(STATE.values())}}) in ("net", "net.x")


def test_names_of_keras_and_alphabetical_order_within_layers():
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    renamed = {}
    for key, value in STATE.items():
        layer, _, last = key.rpartition(".")
        renamed[f"layer{layer}.{names.get(last, last) if layer in '13' else last}"] = value
    check(dict(sorted(renamed.items())))


def test_numbers_in_names_are_sorted_as_numbers():
    renamed = {f"t.{place + 8}": value for place, value in enumerate(STATE.values())}
    check(dict(sorted(renamed.items())))


def test_averaged_part_is_taken_first():
    other = {f"t{place}": value * 0 for place, value in enumerate(STATE.values())}
    assert check({"model": other, "ema": {f"t{place}": value for place, value in enumerate(STATE.values())}}) == "ema"


def test_free_dimensions_may_differ():
    other = dict(STATE) | {"4.weight": torch.ones(9, 4), "4.bias": torch.ones(9)}
    renamed = {f"t{place}": value for place, value in enumerate(other.values())}
    assert by_order(renamed, EXPECTED, {}) is None
    found = by_order(renamed, EXPECTED, {"4.weight": frozenset({0}), "4.bias": frozenset({0})})
    assert found is not None
    assert found[0]["4.weight"].shape == (9, 4)


def test_last_names_that_contradict_the_order_are_refused():
    """A variance in the place of a mean has the right shape."""
    swapped = {"running_mean": "running_var", "running_var": "running_mean"}
    # as tensors of layers of their own, so that their order is the file's
    renamed = {
        f"l{place}.{swapped.get(key.rpartition('.')[2], key.rpartition('.')[2])}": value for place, (key, value) in enumerate(STATE.items())
    }
    assert by_order(renamed, EXPECTED, {}) is None


def test_missing_further_and_exchanged_tensors_are_refused():
    values = list(STATE.values())
    for other in (values[:-1], [*values, torch.zeros(3)], values[::-1]):
        assert by_order({f"t{place}": value for place, value in enumerate(other)}, EXPECTED, {}) is None
