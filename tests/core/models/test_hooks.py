import pytest
import torch
from torch import nn

from core.models.hooks import hooked
from core.models.replacement import replace_kind, replace_modules


def network() -> nn.Sequential:
    shared = nn.Linear(2, 2)
    return nn.Sequential(shared, nn.ReLU(), shared)


def has_hooks(module: nn.Module) -> bool:
    return any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_hooks_are_called_in_order_and_removed():
    calls, made = [], network()
    modules = {"first": made[0], "relu": made[1]}
    with hooked(modules, lambda key, inputs, output: calls.append((key, "after")), lambda key, inputs: calls.append((key, "before"))):
        made(torch.ones(1, 2))
    expected = [(key, when) for key in ("first", "relu", "first") for when in ("before", "after")]  # the shared layer runs twice
    assert calls == expected
    made(torch.ones(1, 2))
    assert calls == expected
    assert not has_hooks(made)


def test_hooks_see_input_and_output_and_change_neither():
    made, x = network(), torch.tensor([[1.0, -2.0]])
    expected, seen = made(x), {}
    with hooked({7: made[1]}, lambda key, inputs, output: seen.setdefault(key, (*inputs, output)), lambda key, inputs: torch.zeros(1)):
        assert torch.equal(made(x), expected)
    assert torch.equal(seen[7][0], made[0](x))
    assert torch.equal(seen[7][1], made[0](x).relu())


def test_hooks_are_removed_after_an_error():
    made = network()

    def fail(key, inputs, output):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), hooked(dict(made.named_modules()), fail):
        made(torch.ones(1, 2))
    assert not has_hooks(made)


def test_modules_are_replaced_under_every_name():
    made, new = network(), nn.Identity()
    outer = nn.ModuleDict({"a": made, "b": made[0]})
    replace_modules(outer, {made[0]: new})
    assert made[0] is made[2] is outer["b"] is new
    assert isinstance(made[1], nn.ReLU)


def test_kind_is_replaced_once_per_module():
    made, calls = network(), []
    first = made[0]

    def new(module):
        calls.append(module)
        return nn.Identity()

    replace_kind(made, (nn.Linear, nn.Sequential), new)  # the network itself is not replaced
    assert calls == [first]
    assert made[0] is made[2]
    assert isinstance(made[0], nn.Identity)
