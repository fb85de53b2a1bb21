"""CIFAR-10 and CIFAR-100, downloaded by torchvision or in a folder as torchvision keeps them.

The files are pickles, and unpickling runs whatever a file says. torchvision compares all of them with the checksums of the published
files first, so that nothing else is unpickled, wherever the folder comes from.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from core.errors import DataError, first_line

CIFAR: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def open_cifar(name: str, train: bool) -> CIFAR10:
    """`cifar10` or `cifar100` by torchvision, downloaded on first use below TORCH_HOME. Raises DataError where there is no network."""
    root = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser() / "datasets"
    try:
        return CIFAR[name](root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be downloaded to {root} ({first_line(error)}): "
            "what works without a network is embedded, or a folder with one folder a class"
        ) from error


def cifar_folders(folder: Path) -> dict[str, Path]:
    """The sets that a folder holds as torchvision keeps them: name -> the folder above `cifar-10-batches-py` or `cifar-100-python`."""
    here = Path(os.path.abspath(folder))
    found = {}
    for name, kind in CIFAR.items():
        if os.path.isdir(here / kind.base_folder):
            found[name] = here
        elif here.name == kind.base_folder and os.path.isdir(here):
            found[name] = here.parent
    return found


def open_cifar_folder(name: str, root: Path, train: bool) -> CIFAR10:
    """What `cifar_folders` found. Raises DataError unless all of its files are those that were published."""
    kind = CIFAR[name]
    try:
        return kind(root, train=train, download=False)
    except (OSError, RuntimeError) as error:
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        other = next((file for file, checksum in files if not _is_published(root / kind.base_folder / file, checksum)), "files")
        raise DataError(
            f"{root / kind.base_folder} has {other} missing or not as published, and is not read: "
            f"allowed are all files of {TITLES[name]} with the checksums that torchvision knows"
        ) from error


def _is_published(path: Path, checksum: str) -> bool:
    try:
        return check_integrity(path, checksum)
    except OSError:  # it may not be read
        return False


def pixels(dataset: CIFAR10) -> Tensor:
    """All images of an opened set, uint8 `(N, 3, 32, 32)`."""
    return torch.from_numpy(np.asarray(dataset.data)).permute(0, 3, 1, 2)
