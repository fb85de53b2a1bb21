"""Networks of pytorchcv, which stores its weights in ~/.torch/models and lists the image size and data set of each network."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from core.errors import ModelError, UnknownNameError
from core.models.registry import CIFAR10_CLASSES, CIFAR100_CLASSES, ModelSpec
from core.models.zoos.zoo import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    imagenet_classes,
    numbered_classes,
    package_folder,
    remove_unknown_keys,
    shapes_only,
)

if TYPE_CHECKING:
    from torch import nn


# in place of a row of the table, for networks that it does not have
_NO_WEIGHTS: Mapping[str, str] = MappingProxyType({"test_dataset": "in1k", "img_scale": "NA", "img_size": "NA", "checksum": "NA"})
IMAGENET_CLASSES = 1000


class Pytorchcv:
    """Adapter of pytorchcv."""

    # as in the author's training code (imgclsmob), which normalizes CIFAR-100 and SVHN in the same way as CIFAR-10
    cifar_mean, cifar_std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    small = MappingProxyType({"_cifar10": CIFAR10_CLASSES, "_cifar100": CIFAR100_CLASSES, "_svhn": tuple("0123456789")})
    titles = MappingProxyType({"_cifar10": "CIFAR-10", "_cifar100": "CIFAR-100", "_svhn": "SVHN"})

    def folder(self) -> Path:
        return Path("~/.torch/models").expanduser()

    def names(self) -> list[str]:
        from pytorchcv.model_provider import _models

        return sorted(_models)

    def build(self, name: str, classes: int | None, channels: int = 3) -> nn.Module:
        from pytorchcv.model_provider import get_model

        images = {} if channels == 3 else {"in_channels": channels}
        count = {} if classes is None else {"num_classes": classes}
        try:
            return get_model(name, pretrained=False, **images, **count)
        except AssertionError:
            pass  # networks for CIFAR assert that they have its 10 or 100 classes, although nothing else depends on that number
        except (ValueError, TypeError, ImportError) as error:  # not a classifier, or requires another package
            raise self._unknown(name) from error
        network = get_model(name, pretrained=False, **images)
        assert classes is not None
        _replace_output(network, name, classes)
        return network

    def _unknown(self, name: str) -> UnknownNameError:
        return UnknownNameError("architecture", name, ["any classifier of pytorchcv, such as resnet20_cifar10"])

    def rows(self) -> dict[str, dict[str, str]]:
        """Network name -> its row in pytorchcv's table of networks."""
        with (package_folder("pytorchcv") / "models" / "common" / "model_metainfos.csv").open(newline="", encoding="utf-8") as file:
            return {row["model_name"]: row for row in csv.DictReader(file)}

    def spec(self, name: str) -> ModelSpec:
        row = self.rows().get(name, _NO_WEIGHTS)
        data = row["test_dataset"]
        if data not in ("in1k", "cf", "cub"):
            raise self._unknown(name)
        with shapes_only():
            network = self.build(name, None)
        count, size = getattr(network, "num_classes", None), getattr(network, "in_size", (0,))[0]
        # without a row, the number of classes and the name tell whether it is a classifier
        if not isinstance(count, int) or (row is _NO_WEIGHTS and count != IMAGENET_CLASSES and not name.endswith(tuple(self.small))):
            raise self._unknown(name)
        ending = next((ending for ending in self.small if name.endswith(ending)), None)
        if ending is not None:
            return ModelSpec(
                f"pytorchcv:{name}", f"pytorchcv:{name}", self.small[ending], size, self.cifar_mean, self.cifar_std,
                f"{self.titles[ending]}, by pytorchcv",
            )  # fmt: skip
        factor = 0.875 if row["img_scale"] == "NA" else float(row["img_scale"])
        size = size if row["img_size"] == "NA" else int(row["img_size"])
        return ModelSpec(
            f"pytorchcv:{name}", f"pytorchcv:{name}", imagenet_classes(count) if data == "in1k" else numbered_classes(count), size,
            IMAGENET_MEAN, IMAGENET_STD, f"{'ImageNet-1k' if data == 'in1k' else 'CUB-200-2011'}, by pytorchcv",
            resize=math.ceil(size / factor),
        )  # fmt: skip

    def file(self, name: str) -> Path | None:
        row = self.rows().get(name, _NO_WEIGHTS)
        if row["checksum"] == "NA":
            return None
        return self.folder() / f"{name}-{row['error_value']}-{row['checksum'][:8]}.pth"

    def load(self, name: str) -> nn.Module:
        from pytorchcv.models.common.model_store import get_model_file

        from core.models.state_dicts import find_state_dict
        from core.models.weights import read_content

        file = get_model_file(name, str(self.folder()))
        network = self.build(name, None)
        state = find_state_dict(read_content(Path(file)), network.state_dict(), file).weights  # pytorchcv's own loader would unpickle
        remove_unknown_keys(state, network)
        network.load_state_dict(state)
        return network

    def downloaded(self) -> list[str]:
        present = {path.name for path in self.folder().glob("*.pth")}
        if not present:
            return []
        return [name for name in self.rows() if (path := self.file(name)) is not None and path.name in present]


def _replace_output(network: nn.Module, architecture: str, classes: int) -> None:
    """Replaces the last layer by an untrained one with `classes` outputs. Raises ModelError if the last layer is not a classifier."""
    from torch import nn

    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    present = getattr(network, "num_classes", None)
    parent, _, attribute = name.rpartition(".")
    if isinstance(last, nn.Linear) and last.out_features == present:
        output: nn.Module = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    elif isinstance(last, nn.Conv2d) and last.out_channels == present and last.kernel_size == (1, 1) and last.groups == 1:
        output = nn.Conv2d(last.in_channels, classes, 1, bias=last.bias is not None)
    else:
        raise ModelError(f"the number of classes of {architecture!r} must be {present}, got {classes}")
    setattr(network.get_submodule(parent), attribute, output)
