"""Networks from model libraries, named "ZOO:NAME", such as torchvision:resnet18: architectures, specs, and weights.

Weights are downloaded on first use. Each zoo's own loader locates and fetches the file; it is then read without unpickling
(core.models.weights), which the loaders of pytorchcv and torchvision would do. Imports no torch at module level.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from core.errors import CoreError, ModelError
from core.models.registry import MODELS, ModelSpec
from core.models.zoos.pytorchcv import Pytorchcv
from core.models.zoos.timm import Timm
from core.models.zoos.torchvision import Torchvision
from core.models.zoos.zoo import Zoo

if TYPE_CHECKING:
    from torch import nn

ZOOS: Mapping[str, Zoo] = MappingProxyType({"pytorchcv": Pytorchcv(), "torchvision": Torchvision(), "timm": Timm()})
_LISTED = 10  # names in a message


def is_zoo_name(name: str) -> bool:
    """Whether `name` is "ZOO:NAME", and not an embedded network or a path."""
    zoo, colon, _ = name.partition(":")
    return bool(colon) and zoo in ZOOS


def _parsed(architecture: str) -> tuple[str, str]:
    """Zoo and name of "ZOO:NAME"; checkpoint headers may have a name without a zoo, which is pytorchcv's."""
    if not is_zoo_name(architecture):
        return "pytorchcv", architecture
    zoo, _, name = architecture.partition(":")
    return zoo, name


def build_architecture(architecture: str, classes: int | None, channels: int = 3) -> nn.Module:
    """An untrained network, initialized from torch's global random number generator.

    architecture: "ZOO:NAME"; a name without a zoo is pytorchcv's. classes: None for the number of classes of the zoo's own weights.
    channels: of the images. Raises UnknownNameError for a name that the zoo does not have, ModelError if it cannot be built for that many
    classes or channels.
    """
    zoo, name = _parsed(architecture)
    return ZOOS[zoo].build(name, classes, channels)


def known_spec(architecture: str) -> ModelSpec:
    """Normalization, image size, class names and resizing of the zoo's own weights for an architecture.

    Raises UnknownNameError for a name that the zoo does not have, ModelError if it is not a classifier of images.
    """
    zoo, name = _parsed(architecture)
    return ZOOS[zoo].spec(name)


def find_pretrained(name: str) -> tuple[Path, ModelSpec]:
    """Path of the weights of "ZOO:NAME", whether or not they have been downloaded, and the spec.

    Raises ModelError if there are no weights, UnknownNameError or ModelError as `known_spec` does.
    """
    spec = known_spec(name)
    zoo, inner = _parsed(name)
    path = ZOOS[zoo].file(inner)
    if path is None:
        raise ModelError(f"{zoo} has no trained weights for {name}; use a network with weights, or a checkpoint of this architecture")
    return path, spec


def load_pretrained(name: str) -> tuple[nn.Module, ModelSpec]:
    """The network "ZOO:NAME" with the zoo's weights, downloaded on first use with progress on stderr.

    Raises ModelError if the weights cannot be downloaded or read; it names the expected file and the networks available offline.
    """
    import torch

    path, spec = find_pretrained(name)
    zoo, inner = _parsed(name)
    with _loader_errors(name, path), redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
        return ZOOS[zoo].load(inner), spec


@contextmanager
def _loader_errors(name: str, path: Path) -> Iterator[None]:
    """Turns every error of a zoo's loader into a ModelError."""
    try:
        yield
    except CoreError:
        raise
    except Exception as error:  # each loader raises the exceptions of its own HTTP client and file reader
        from core.models.weights import reason_of

        names = [other for other in offline_names() if other != name]
        listed = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
        raise ModelError(
            f"{name} could not be loaded ({reason_of(error)}); provide its file at {path}, or use a network available offline ({listed})"
        ) from error


def offline_names() -> list[str]:
    """Networks available without a network connection: the embedded ones and those whose weights have been downloaded."""
    return [*MODELS, *(f"{zoo}:{name}" for zoo, adapter in ZOOS.items() for name in adapter.downloaded())]
