"""CIFAR-10 and CIFAR-100, downloaded by torchvision or from a folder in torchvision's layout.

The files are pickles, which can execute code. torchvision first compares all of them with the checksums of the published files, so that
no other file is ever unpickled, even from an untrusted folder.
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
    """`cifar10` or `cifar100` from torchvision, downloaded on first use to TORCH_HOME. Raises DataError if the download fails."""
    root = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser() / "datasets"
    try:
        return CIFAR[name](root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be downloaded to {root} ({first_line(error)}); "
            "offline, use the embedded images or a folder with one folder per class"
        ) from error


def cifar_folders(folder: Path) -> dict[str, Path]:
    """Data sets in a folder: name -> the folder that contains `cifar-10-batches-py` or `cifar-100-python`, as torchvision stores them."""
    here = Path(os.path.abspath(folder))
    found = {}
    for name, kind in CIFAR.items():
        if os.path.isdir(here / kind.base_folder):
            found[name] = here
        elif here.name == kind.base_folder and os.path.isdir(here):
            found[name] = here.parent
    return found


def open_cifar_folder(name: str, root: Path, train: bool) -> CIFAR10:
    """A data set found by `cifar_folders`. Raises DataError unless all of its files are the published ones."""
    kind = CIFAR[name]
    try:
        return kind(root, train=train, download=False)
    except (OSError, RuntimeError) as error:
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        other = next((file for file, checksum in files if not _is_published(root / kind.base_folder / file, checksum)), "files")
        raise DataError(
            f"{root / kind.base_folder} must contain all files of {TITLES[name]} with their published checksums, "
            f"{other} is missing or different"
        ) from error


def _is_published(path: Path, checksum: str) -> bool:
    try:
        return check_integrity(path, checksum)
    except OSError:  # not readable
        return False


def pixels(dataset: CIFAR10) -> Tensor:
    """All images of a data set, uint8 `(N, 3, 32, 32)`."""
    return torch.from_numpy(np.asarray(dataset.data)).permute(0, 3, 1, 2)
