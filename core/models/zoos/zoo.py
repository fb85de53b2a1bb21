"""The interface of a zoo (a library of network architectures with downloadable weights), and helpers shared by its adapters.

Imports no torch at module level, so that the networks available offline can be listed quickly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from core.models.registry import INTERPOLATIONS, ModelSpec

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Zoo(Protocol):
    """Adapter of one library. `name` is the library's own name of an architecture, without a zoo prefix.

    Every method that takes a name raises UnknownNameError if the library does not have it.
    """

    def names(self) -> list[str]:
        """Names of all architectures, without tags; some may be no classifiers, which `spec` refuses."""

    def build(self, name: str, classes: int | None, channels: int = 3) -> nn.Module:
        """An untrained network. classes: None for the number of classes of its weights. channels: of the images.

        Raises ModelError if the architecture cannot be built for that many classes or channels.
        """

    def spec(self, name: str) -> ModelSpec:
        """Normalization, image size and class names of the trained network, according to the library."""

    def file(self, name: str) -> Path | None:
        """Path of the weights, whether or not they have been downloaded; None if no weights exist."""

    def load(self, name: str) -> nn.Module:
        """The trained network. Downloads missing weights, and raises whatever the library's loader raises if that fails."""

    def downloaded(self) -> list[str]:
        """Names whose weights are on this machine. Imports torch only if a downloaded file may belong to the library."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside the block, networks are built without allocating memory: their tensors have shapes but no values.

    The meta device alone is not enough, because some architectures (RegNet, networks with stochastic depth) compute their widths with
    tensors.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    factories = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
    # initial values, whose computation on the meta device takes most of the time
    of_values = {getattr(torch.Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "clamp_", "erfinv_")}

    class OnMeta(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in of_values and args[0].is_meta:
                return args[0]
            return function(*args, **{**(kwargs or {}), **({"device": "meta"} if function in factories else {})})

    with torch.random.fork_rng(devices=[]), OnMeta():
        yield


def numbered_classes(count: int) -> tuple[str, ...]:
    """Placeholder names for unnamed classes: "class 0", "class 1" and so on."""
    return tuple(f"class {index}" for index in range(count))


def imagenet_classes(count: int) -> tuple[str, ...]:
    """The class names of ImageNet-1k in the usual order (that of its folders); numbered names if `count` is not 1,000."""
    from torchvision.models import ResNet18_Weights

    names = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return names if len(names) == count else numbered_classes(count)


def known_interpolation(name: str) -> str:
    """The interpolation `name` if the evaluation supports it, otherwise bicubic, the closest to lanczos and to random choices."""
    return name if name in INTERPOLATIONS else "bicubic"


def checkpoints_folder() -> Path:
    """The folder to which torch.hub downloads weights."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def remove_unknown_keys(state: dict[str, Any], network: nn.Module) -> None:
    """Removes entries that the network does not have, such as heads used only in training.

    Works in place, because a state dict carries version numbers that a copy would lose.
    """
    expected = network.state_dict().keys()
    for key in [key for key in state if key not in expected]:
        del state[key]
