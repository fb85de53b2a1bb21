"""Where a network has its first infinity or NaN: in its values, or in what it computes."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import CoreError, ModelError
from core.models.hooks import hooked


@torch.no_grad()
def first_not_finite(network: nn.Module, images: Tensor) -> str:
    """Name of the first module, in the order of execution, whose output for `images` `(N, C, H, W)` contains an infinity or NaN.

    Empty if there is none. Of a module and its submodule it is the submodule, which ends first. If a quantizer raises CoreError for a
    range that is not finite, it is the module that contains the quantizer.
    """
    found: list[str] = []
    running: list[str] = []

    def check(name: str, _inputs: Any, output: Any) -> None:
        running.pop()
        if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            found.append(name)

    modules = {name: module for name, module in network.named_modules() if name}
    with hooked(modules, check, before_forward=lambda name, _inputs: running.append(name)):
        try:
            network(images)
        except CoreError:
            found += running[-1:]
    return found[0] if found else ""


def parameter_not_finite(network: nn.Module) -> str:
    """Name of the first parameter that contains an infinity or NaN; empty if there is none. Cheap if all are finite."""
    if are_finite(network.parameters()):
        return ""
    return next((name for name, parameter in network.named_parameters() if not bool(torch.isfinite(parameter).all())), "")


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is an infinity or NaN: one reduction over all of them, because this runs in every step."""
    return bool(torch.isfinite(nn.utils.get_total_norm(tensors, norm_type=math.inf)))


def tensor_not_finite(network: nn.Module) -> str:
    """Name of the first parameter or running statistic that contains an infinity or NaN, or other buffer that contains a NaN.

    Empty if there is none. An infinity in a buffer may be a mask.
    """
    if name := parameter_not_finite(network):
        return name
    for name, buffer in network.named_buffers():
        if bool(buffer.isnan().any()) or (name.endswith(("running_mean", "running_var")) and not bool(buffer.isfinite().all())):
            return name
    return ""


def check_tensors(network: nn.Module, called: str) -> None:
    """Raises ModelError, naming the tensor, for a network that has values which are not finite: its scores may be finite all the same."""
    if name := tensor_not_finite(network):
        raise ModelError(f"parameters and statistics of {called} must be finite, got infinity or NaN in {name}")


def first_not_finite_of(network: nn.Module, batches: Iterable[Tensor]) -> str:
    """`first_not_finite` for the first batch that has such a module."""
    return next(filter(None, (first_not_finite(network, batch) for batch in batches)), "")
