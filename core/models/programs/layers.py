"""Layers of a program: modules rebuilt from operations and the tensors that they read."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import quoted
from core.models.programs.archive import ProgramArchive, refuse


@dataclass(frozen=True)
class HeldTensor:
    """A tensor of the module, by name, or its transpose."""

    name: str
    transposed: bool = False


class Layers:
    """Convolutions, linear layers and BatchNorm layers, each under the name that its parameters had in the exported module.

    The methods that build a layer return its name, or None if the operation must stay a function. They raise ModelError for tensors
    that do not fit.
    """

    def __init__(self, archive: ProgramArchive, path: Path) -> None:
        self.archive, self.path = archive, path
        self.modules: dict[str, nn.Module] = {}  # name -> layer, on the meta device
        self.layers_of: dict[str, list[str]] = {}  # name of a tensor -> names of the layers that have it
        self.state: dict[str, Tensor] = {}  # state dict of the translated network
        self._taken = {name.partition(".")[0] for name in archive.tensors}  # names that no other layer may have
        self._names: dict[tuple, str] = {}  # kind, geometry and tensors of a layer -> its name
        self._parameters: dict[str, nn.Parameter] = {}  # by name in the program, so that a shared parameter stays shared

    def convolution(self, a: dict[str, Any], overload: str) -> str | None:
        weight, bias = a["weight"].name, a.get("bias")
        tensor = self.float_tensor(weight)
        if a.get("transposed") or tensor.ndim != 4 or not (bias is None or isinstance(bias, HeldTensor)):
            return None
        padding = a.get("padding", [0, 0])
        groups = a.get("groups", 1)
        geometry = [tuple(_pair(a.get(key, 1))) for key in ("stride", "dilation")]
        padding = padding if overload == "padding" else tuple(_pair(padding))

        def build() -> nn.Module:
            channels = tensor.shape[1] * groups, tensor.shape[0]
            stride, dilation = geometry
            kernel = tuple(tensor.shape[2:])
            return nn.Conv2d(*channels, kernel, stride, padding, dilation, groups, bias is not None, device="meta")  # type: ignore[arg-type]

        names = {"weight": weight, "bias": None if bias is None else bias.name}
        return self._layer(("conv2d", *geometry, padding, groups), names, build)

    def linear(self, weight: str, bias: Any) -> str | None:
        tensor = self.float_tensor(weight)
        if tensor.ndim != 2 or not (bias is None or isinstance(bias, HeldTensor)):
            return None
        names = {"weight": weight, "bias": None if bias is None else bias.name}
        return self._layer(("linear",), names, lambda: nn.Linear(tensor.shape[1], tensor.shape[0], bias is not None, device="meta"))

    def batch_norm(self, a: dict[str, Any], rank: int) -> str | None:
        """rank: number of dimensions of the output."""
        if a.get("running_mean") is None or a.get("running_var") is None:
            return None  # it has no running statistics, so the function is equivalent
        names = {key: None if a.get(key) is None else a[key].name for key in ("weight", "bias", "running_mean", "running_var")}
        if (names["weight"] is None) != (names["bias"] is None) or rank not in (2, 3, 4):
            return None
        kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
        channels = len(self.float_tensor(names["running_mean"] or ""))

        def build() -> nn.Module:
            return kind(channels, a["eps"], a.get("momentum", 0.1), names["weight"] is not None, device="meta")

        return self._layer(("batch_norm", kind, a["eps"]), names, build)

    def _layer(self, kind: tuple, names: Mapping[str, str | None], build: Callable[[], nn.Module]) -> str:
        """Name of the layer with these tensors, built on first use; the same tensors in the same kind of layer are one layer."""
        key = (*kind, *names.values())
        if key not in self._names:
            layer = build()
            self._check_shapes(layer, names)
            first = next(name for name in names.values() if name is not None)
            title = first.rpartition(".")[0]
            if title in self.modules or any(name not in (None, f"{title}.{attribute}") for attribute, name in names.items()) or not title:
                # the exported module had these tensors under other names
                title = next(free for number in itertools.count() if (free := f"layer_{number}") not in self._taken)
            self._names[key] = title
            self._taken.add(title)
            self.modules[title] = layer
            for attribute, name in names.items():
                if name is not None:
                    self.layers_of.setdefault(name, []).append(title)
                    is_parameter = attribute in layer._parameters
                    self.state[f"{title}.{attribute}"] = self.parameter(name) if is_parameter else self.float_tensor(name)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                count = f"{title}.num_batches_tracked"
                self.state[count] = self.archive.tensors.get(count, torch.tensor(0))
        return self._names[key]

    def _check_shapes(self, layer: nn.Module, names: Mapping[str, str | None]) -> None:
        for attribute, name in names.items():
            if name is not None and self.float_tensor(name).shape != getattr(layer, attribute).shape:
                expected, found = tuple(getattr(layer, attribute).shape), tuple(self.float_tensor(name).shape)
                refuse(self.path, f"shape of {name} must be {expected}, got {quoted(found)}")

    def float_tensor(self, name: str) -> Tensor:
        """A tensor of the program. Raises ModelError unless it is float32."""
        tensor = self.archive.tensors[name]
        if tensor.dtype != torch.float32:
            refuse(self.path, f"type of {name} must be float32, got {tensor.dtype}")
        return tensor

    def parameter(self, name: str) -> nn.Parameter:
        if name not in self._parameters:
            self._parameters[name] = nn.Parameter(self.float_tensor(name), requires_grad=False)
        return self._parameters[name]


def _pair(value: Any) -> Sequence[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values
