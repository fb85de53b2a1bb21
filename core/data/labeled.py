"""Real, labeled images: the embedded evaluation set, CIFAR-10 and CIFAR-100, or folders of images."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from core.data.cifar import TITLES, cifar_folders, open_cifar, open_cifar_folder, pixels
from core.data.class_names import class_mapping, dataset_mapping
from core.data.layouts import ImageFiles, list_of, open_image_folder, open_image_list, part_of
from core.errors import DataError
from core.models.registry import ASSETS, CIFAR10_CLASSES, CIFAR100_CLASSES, ModelSpec

EMBEDDED_SHEET = ASSETS / "evaluation" / "cifar10_test_2000.png"
EMBEDDED_LABELS = ASSETS / "evaluation" / "cifar10_test_2000.json"
EMBEDDED_COLUMNS = 50
# class names of the data sets with a name
CLASSES = {"embedded": CIFAR10_CLASSES, "cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}


class LabeledImages(Protocol):
    """Items (PIL image, class index), like torchvision's datasets without a transform."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class EvaluationSet(Dataset):
    """Labeled images, resized and cropped for a network.

    Items are (uint8 `(C, H, W)` in [0, 255], class index of the network). `description` names the images in reports of the accuracy.
    image_size, resize, interpolation: as in ModelSpec.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Sequence[int],
        description: str,
        image_size: int | tuple[int, int],
        resize: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.images = images
        self.labels = torch.as_tensor(labels, dtype=torch.long)
        self.description = description
        self.size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        short = min(self.size)
        # images that already have the network's size are not enlarged and cropped, unless the spec requires it
        self.keep_size = resize in (None, short)
        if resize is None:
            # ImageNet's protocol for larger networks: short side to 256 / 224 of the image size, then a center crop
            resize = short if short <= 64 else round(short * 256 / 224)
        covered = tuple(round(side * resize / short) for side in self.size)
        self.transform = v2.Compose([_Cover(covered, InterpolationMode(interpolation)), v2.CenterCrop(self.size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not isinstance(self.images, Tensor):
            return self.transform(self.images[index][0]), self.labels[index]
        image = self.images[index]
        fits = self.keep_size and tuple(image.shape[1:]) == self.size
        return image if fits else self.transform(image), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch for torch's DataLoader. Files are decoded in as many threads as torch uses, because Pillow releases the GIL."""
        if isinstance(self.images, Tensor):
            return [self[index] for index in indices]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(self.__getitem__, indices))


class _Cover(nn.Module):
    """Resizes an image so that it just covers an area and keeps its proportions; for a square: its short side to the side of the square."""

    def __init__(self, area: Sequence[int], interpolation: InterpolationMode) -> None:
        super().__init__()
        self.area, self.interpolation = area, interpolation

    def forward(self, image: Any) -> Any:
        height, width = functional.get_size(image)
        rows, columns = self.area
        # rows of the image for all columns, and columns for all rows: one of the two covers the area
        size = [rows, rows * width // height] if rows * width >= columns * height else [columns * height // width, columns]
        if not isinstance(image, Image.Image) or image.mode not in ("LA", "RGBA"):
            return functional.resize(image, size, self.interpolation, antialias=True)
        # Pillow would weight the other channels with the last one, which means transparency to it
        bands = [functional.resize(band, size, self.interpolation, antialias=True) for band in image.split()]
        return Image.merge(image.mode, bands)


def load_evaluation_set(source: str, spec: ModelSpec) -> EvaluationSet:
    """The evaluation set `source` for the network `spec`.

    source: `embedded` (2,000 images, only for networks with CIFAR-10's classes), `cifar10`, `cifar100`, or a folder: one folder per class
    (see `class_mapping`), possibly in a folder `val` beside `train`; images and a list `val.txt`; or CIFAR as stored by torchvision.
    Raises DataError if the data is missing, its classes are not those of the network, or a file is not an image.
    """
    images: Tensor | ImageFiles
    if source in CLASSES:
        mapping = dataset_mapping(CLASSES[source], spec)
        if mapping is None:
            raise DataError(f"data must have the classes of {spec.name}, {source!r} has others; use a folder with one folder per class")
        if source == "embedded":
            images, targets = embedded_images()
            description = f"the first {len(targets):,} CIFAR-10 test images (embedded)"
        else:
            dataset = open_cifar(source, train=False)
            images, targets = pixels(dataset), dataset.targets
            description = f"all {len(targets):,} {TITLES[source]} test images"
    elif found := cifar_folders(Path(source)):
        fitting = [(name, mapping) for name in found if (mapping := dataset_mapping(CLASSES[name], spec)) is not None]
        if not fitting:
            names = " and ".join(TITLES[name] for name in found)
            raise DataError(f"data must have the classes of {spec.name}, folder {source!r} is {names}")
        name, mapping = fitting[0]
        dataset = open_cifar_folder(name, found[name], train=False)
        images, targets = pixels(dataset), dataset.targets
        description = f"all {len(targets):,} {TITLES[name]} test images of {source}"
    else:
        images, mapping = _open_files(Path(source), spec)
        targets = images.targets
        description = f"{len(targets):,} images of {source}"
    labels = [mapping[target] for target in targets]
    images = replace(images, mode=spec.mode) if isinstance(images, ImageFiles) else _in_mode(images, spec.mode)
    return EvaluationSet(images, labels, description, spec.image_size, spec.resize, spec.interpolation)


def _in_mode(images: Tensor, mode: str) -> Tensor:
    """RGB images, uint8 `(N, 3, H, W)`, in one of Pillow's modes, as image files would be read."""
    if mode == "RGB":
        return images
    pictures = (functional.to_pil_image(image).convert(mode) for image in images)
    return torch.stack([functional.pil_to_tensor(picture) for picture in pictures])


def _open_files(folder: Path, spec: ModelSpec) -> tuple[ImageFiles, list[int]]:
    """The images of a folder in any layout, and the mapping of their classes to class indices of the network."""
    part = part_of(folder, "val")
    labels = list_of(part, *CLASSES)
    if labels is None:
        files = open_image_folder(part, *CLASSES)
        mapping = class_mapping(files.classes, spec, str(part))
    else:
        files = open_image_list(part, labels)
        mapping = class_mapping(files.classes, spec, str(labels), "classes")
    # only the headers, because decoding all images would take as long as the evaluation
    files.check_headers()
    return files, mapping


def embedded_images() -> tuple[Tensor, list[int]]:
    """The embedded evaluation images, uint8 `(2000, 3, 32, 32)` in the order of the CIFAR-10 test set, and their labels."""
    sheet = decode_image(str(EMBEDDED_SHEET), ImageReadMode.RGB)
    labels = json.loads(EMBEDDED_LABELS.read_text(encoding="utf-8"))
    channels, height, width = sheet.shape
    size = width // EMBEDDED_COLUMNS
    tiles = sheet.view(channels, height // size, size, EMBEDDED_COLUMNS, size).permute(1, 3, 0, 2, 4)
    return tiles.reshape(-1, channels, size, size).contiguous(), labels


def open_training_set(source: str) -> tuple[LabeledImages, list[str]]:
    """Labeled training images as (PIL image, class index), and the class names.

    source: `cifar10`, `cifar100`, or a folder: one folder per class, possibly in a folder `train` beside `val`, or CIFAR as stored by
    torchvision. Raises DataError if it is missing or has other contents.
    """
    names = ("cifar10", "cifar100")
    if source in names:
        return open_cifar(source, train=True), list(CLASSES[source])
    found = cifar_folders(Path(source))
    if len(found) > 1:
        raise DataError(f"training data must be one data set, folder {source!r} contains CIFAR-10 and CIFAR-100")
    for name, root in found.items():
        return open_cifar_folder(name, root, train=True), list(CLASSES[name])
    files = open_image_folder(part_of(Path(source), "train"), *names)
    return files, files.classes
