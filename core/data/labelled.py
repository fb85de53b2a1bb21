"""Real, labelled images: the embedded evaluation set, torchvision's CIFAR-10, or any folder with one folder a class."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from core.errors import DataError
from core.models.registry import ASSETS, CIFAR10_CLASSES, ModelSpec

EMBEDDED_SHEET = ASSETS / "evaluation" / "cifar10_test_2000.png"
EMBEDDED_LABELS = ASSETS / "evaluation" / "cifar10_test_2000.json"
EMBEDDED_COLUMNS = 50


class LabelledImages(Protocol):
    """What torchvision's datasets are without a transform: (PIL image, class index) by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class EvaluationSet(Dataset):
    """Labelled images as the network wants them.

    Items are (uint8 `(3, H, W)`, class index of the network). `description` says what the figures were measured on.
    """

    def __init__(self, images: Tensor | ImageFolder, labels: Sequence[int], description: str, image_size: int) -> None:
        self.images = images
        self.labels = torch.as_tensor(labels, dtype=torch.long)
        self.description = description
        self.image_size = image_size
        # ImageNet's protocol for larger networks: short side to 256 / 224 of the input, then the centre
        resize = image_size if image_size <= 64 else round(image_size * 256 / 224)
        self.transform = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(image_size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not isinstance(self.images, Tensor):
            return self.transform(self.images[index][0]), self.labels[index]
        image = self.images[index]
        fits = tuple(image.shape[1:]) == (self.image_size, self.image_size)
        return image if fits else self.transform(image), self.labels[index]


def load_evaluation_set(source: str, spec: ModelSpec) -> EvaluationSet:
    """The evaluation set `source` for the network `spec`.

    source: `embedded` (2,000 images, only for networks with CIFAR-10's classes), `cifar10`, or a folder with one folder a class.
    Raises DataError when it is missing or its classes are not those of the network.
    """
    if source in ("embedded", "cifar10") and spec.classes != CIFAR10_CLASSES:
        raise DataError(f"data is {source!r}, whose classes are not those of {spec.name}: allowed is a folder with one folder a class")
    if source == "embedded":
        images, labels = embedded_images()
        return EvaluationSet(images, labels, f"the first {len(labels):,} CIFAR-10 test images (embedded)", spec.image_size)
    if source == "cifar10":
        dataset = open_cifar10(train=False)
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
        return EvaluationSet(images, dataset.targets, f"all {len(dataset):,} CIFAR-10 test images", spec.image_size)
    folder = open_image_folder(Path(source), "embedded", "cifar10")
    mapping = class_mapping(folder.classes, spec, source)
    labels = [mapping[label] for label in folder.targets]
    return EvaluationSet(folder, labels, f"{len(labels):,} images of {source}", spec.image_size)


def class_mapping(folders: Sequence[str], spec: ModelSpec, source: str) -> list[int]:
    """Folder index -> class index of the network: by name where every folder is a class; in order where none is and the number fits.

    Raises DataError for anything between: a guess would measure or train on wrong labels.
    """
    unknown = [name for name in folders if name not in spec.classes]
    if not unknown:
        return [spec.classes.index(name) for name in folders]
    if len(unknown) == len(folders) == len(spec.classes):
        return list(range(len(folders)))
    raise DataError(
        f"{source} has {len(folders)} folders, among them {unknown[0]!r}: allowed are folders named as the classes of {spec.name} "
        f"({', '.join(spec.classes[:10])}), or exactly {len(spec.classes)} with other names, in order"
    )


def embedded_images() -> tuple[Tensor, list[int]]:
    """The embedded evaluation images, uint8 `(2000, 3, 32, 32)` in the order of CIFAR-10's test set, and their labels."""
    sheet = decode_image(str(EMBEDDED_SHEET), ImageReadMode.RGB)
    labels = json.loads(EMBEDDED_LABELS.read_text())
    channels, height, width = sheet.shape
    size = width // EMBEDDED_COLUMNS
    tiles = sheet.view(channels, height // size, size, EMBEDDED_COLUMNS, size).permute(1, 3, 0, 2, 4)
    return tiles.reshape(-1, channels, size, size).contiguous(), labels


def open_cifar10(train: bool) -> CIFAR10:
    """CIFAR-10 by torchvision, downloaded on first use below TORCH_HOME. Raises DataError where there is no network."""
    root = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser() / "datasets"
    try:
        return CIFAR10(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cifar10 could not be downloaded to {root} ({error}): "
            "what works without a network is embedded, or a folder with one folder a class"
        ) from error


def open_image_folder(path: Path, *names: str) -> ImageFolder:
    """A folder with one folder of images a class. Raises DataError when it is missing, or one of its folders holds no image.

    names: what the caller takes in place of a folder, for the message. Reading an image that is none raises DataError.
    """
    if not os.path.isdir(path):  # unlike Path's, False for a name that is too long
        others = "".join(f"{name}, " for name in names) + ("or " if names else "")
        raise DataError(f"folder {str(path)!r} does not exist: allowed is {others}a folder with one folder of images a class")
    if path.resolve().parent == path.resolve():
        # searching it would take hours, as it goes through every link of the system
        raise DataError(
            f"folder {str(path)!r} is the whole file system: allowed is {' or '.join([*names, 'a folder with one folder a class'])}"
        )
    try:
        dataset = ImageFolder(str(path), loader=_load_rgb, allow_empty=True)
    except FileNotFoundError as error:
        raise DataError(f"folder {str(path)!r} has no folders with images in it: allowed is one folder a class") from error
    except OSError as error:
        raise DataError(f"folder {str(path)!r} cannot be read ({error.strerror}): allowed is one that may be looked into") from error
    filled = set(dataset.targets)
    empty = [name for label, name in enumerate(dataset.classes) if label not in filled]
    if empty:
        raise DataError(f"folder {str(path)!r} has no images in {', '.join(empty[:3])}: allowed is one folder a class with images in each")
    return dataset


def open_training_set(source: str) -> tuple[LabelledImages, list[str]]:
    """Labelled training images as (PIL image, class index), and the class names. `cifar10`, or a folder with one folder a class."""
    if source == "cifar10":
        dataset = open_cifar10(train=True)
        return dataset, list(CIFAR10_CLASSES)
    folder = open_image_folder(Path(source), "cifar10")
    return folder, folder.classes


def _load_rgb(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises whatever its decoders hit on: OSError, SyntaxError, struct.error and more
        raise DataError(f"{path} cannot be read as an image: allowed are the formats Pillow knows") from error
