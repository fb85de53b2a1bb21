"""Real images: the embedded evaluation set, CIFAR-10 and CIFAR-100, or folders of images, with or without labels."""

import json
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from core.channels import height_and_width
from core.data.archives import is_archive, unpack_data_set
from core.data.cifar import TITLES, cifar_folders, open_cifar, open_cifar_folder, pixels
from core.data.class_names import CLASSES, dataset_mapping, evaluation_source
from core.data.evaluation_files import evaluation_targets, open_evaluation_files
from core.data.layouts import FOR_TRAINING, ImageFiles, open_images
from core.errors import DataError
from core.files import temporary_folder
from core.models.registry import ASSETS, ModelSpec

EMBEDDED_SHEET = ASSETS / "evaluation" / "cifar10_test_2000.png"
EMBEDDED_LABELS = ASSETS / "evaluation" / "cifar10_test_2000.json"
EMBEDDED_COLUMNS = 50
UNREADABLE = -1  # label of an image that is skipped


class LabeledImages(Protocol):
    """Items (PIL image, class index), like torchvision's datasets without a transform."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class EvaluationSet(Dataset):
    """Images, resized and cropped for a network.

    Items are (uint8 `(C, H, W)` in [0, 255], class index of the network); of a file that cannot be read, black pixels and UNREADABLE,
    which also becomes its label. labels: None where there are none; then each image is a class of its own. description: of a tensor of
    images, whole; of files, what follows their number.
    image_size, resize, interpolation: as in ModelSpec.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Sequence[int] | None,
        description: str,
        image_size: int | tuple[int, int],
        resize: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.images = images
        self.labeled = labels is not None
        self.labels = torch.arange(len(images)) if labels is None else torch.as_tensor(labels, dtype=torch.long)
        self._description = description
        self.size = height_and_width(image_size)
        short = min(self.size)
        # images that already have the network's size are not enlarged and cropped, unless the spec requires it
        self.keep_size = resize in (None, short)
        if resize is None:
            # ImageNet's protocol for larger networks: short side to 256 / 224 of the image size, then a center crop
            resize = short if short <= 64 else round(short * 256 / 224)
        covered = tuple(round(side * resize / short) for side in self.size)
        self.transform = v2.Compose([Cover(covered, InterpolationMode(interpolation)), v2.CenterCrop(self.size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def description(self) -> str:
        """Names the images in reports of the accuracy; of files, without those that could not be read."""
        if isinstance(self.images, Tensor):
            return self._description
        return f"{len(self.images) - len(self.images.damaged):,} {self._description}"

    @property
    def readable(self) -> Tensor:
        """Whether each image can be read, as far as it was tried: bool `(N,)`."""
        return self.labels != UNREADABLE

    @property
    def notes(self) -> list[str]:
        """Sentences on what was guessed and ignored."""
        return [] if isinstance(self.images, Tensor) else [self.images.named(note) for note in self.images.notes]

    def damage(self) -> list[str]:
        """A sentence on the images that could not be read so far, if there are any."""
        return [] if isinstance(self.images, Tensor) else self.images.damage()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not isinstance(self.images, Tensor):
            picture = self.images.read(index)
            if picture is None:
                self.labels[index] = UNREADABLE
                return torch.zeros(len(self.images.mode), *self.size, dtype=torch.uint8), self.labels[index]
            return self.transform(picture), self.labels[index]
        image = self.images[index]
        fits = self.keep_size and tuple(image.shape[1:]) == self.size
        return image if fits else self.transform(image), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch for torch's DataLoader. Files are decoded in as many threads as torch uses, because Pillow releases the GIL."""
        if isinstance(self.images, Tensor):
            return [self[index] for index in indices]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(self.__getitem__, indices))


class Cover(nn.Module):
    """Resizes an image so that it just covers an area and keeps its proportions; for a square: its short side to the side of the square."""

    def __init__(self, area: Sequence[int], interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
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


def find_evaluation_set(data: str, spec: ModelSpec, *, strict: bool = False) -> EvaluationSet | None:
    """The evaluation images of a run with `evaluation.data`; None if it has none. Raises DataError as `load_evaluation_set`."""
    source = evaluation_source(data, spec)
    return None if source is None else load_evaluation_set(source, spec, strict=strict)


def load_evaluation_set(source: str, spec: ModelSpec, *, strict: bool = False) -> EvaluationSet:
    """The evaluation set `source` for the network `spec`.

    source: `embedded` (2,000 images, only for networks with CIFAR-10's classes), `cifar10`, `cifar100`; a folder in a layout of
    `open_images`, with folders or a list named as `class_mapping` allows, any other folder of images, which then have no labels, or a zip
    file of it; or a folder of CIFAR as stored by torchvision. strict: see `open_images`. Raises DataError if the data is missing, its
    classes are not those of the network, or too many files are not images.
    """
    images: Tensor | ImageFiles
    mapping: list[int] | None
    if source in CLASSES:
        mapping = dataset_mapping(CLASSES[source], spec)
        if mapping is None:
            raise DataError(
                f"data must have the classes of {spec.name}, {source!r} has others; use a folder with one folder per class, or none"
            )
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
        images = _open_files(source, lambda folder: open_evaluation_files(folder, spec, list(CLASSES), strict=strict))
        targets, mapping = images.targets, evaluation_targets(images, spec) if images.classes else None
        # only the headers, because decoding all images would take as long as the evaluation
        images.check_headers()
        description = f"images of {source}"
    labels = None if mapping is None else [mapping[target] for target in targets]
    if isinstance(images, ImageFiles):
        images.mode = spec.mode
    else:
        images = _in_mode(images, spec.mode)
    return EvaluationSet(images, labels, description, spec.image_size, spec.resize, spec.interpolation)


def _in_mode(images: Tensor, mode: str) -> Tensor:
    """RGB images, uint8 `(N, 3, H, W)`, in one of Pillow's modes, as image files would be read."""
    if mode == "RGB":
        return images
    pictures = (functional.to_pil_image(image).convert(mode) for image in images)
    return torch.stack([functional.pil_to_tensor(picture) for picture in pictures])


def _open_files(source: str, opened: Callable[[Path], ImageFiles]) -> ImageFiles:
    """The images of a folder, or of a zip file of one. opened: what finds them in a folder."""
    if not (is_archive(Path(source)) and os.path.isfile(source)):
        return opened(Path(source))
    keep = ExitStack()
    folder = keep.enter_context(temporary_folder()) / Path(source).name  # the name of the archive, for error messages
    try:
        folder.mkdir()
        unpack_data_set(Path(source), folder)
        files = opened(folder)
    except BaseException as error:
        keep.close()
        if isinstance(error, DataError):
            raise DataError(str(error).replace(str(folder), source)) from error
        raise
    files.unpacked = str(folder), source
    weakref.finalize(files, keep.close)
    return files


def embedded_images() -> tuple[Tensor, list[int]]:
    """The embedded evaluation images, uint8 `(2000, 3, 32, 32)` in the order of the CIFAR-10 test set, and their labels."""
    sheet = decode_image(str(EMBEDDED_SHEET), ImageReadMode.RGB)
    labels = json.loads(EMBEDDED_LABELS.read_text(encoding="utf-8"))
    channels, height, width = sheet.shape
    size = width // EMBEDDED_COLUMNS
    tiles = sheet.view(channels, height // size, size, EMBEDDED_COLUMNS, size).permute(1, 3, 0, 2, 4)
    return tiles.reshape(-1, channels, size, size).contiguous(), labels


def open_training_set(source: str, strict: bool = False, mode: str = "RGB") -> tuple[LabeledImages, list[str]]:
    """Labeled training images as (PIL image, class index), and the class names.

    source: `cifar10`, `cifar100`; a folder with one folder per class, in a layout of `open_images`, or a zip file of it; or a folder of
    CIFAR as stored by torchvision. strict: see ImageFiles. mode: Pillow's, of images in files; those of CIFAR are RGB. Raises DataError if
    it is missing, has other contents, or too many files cannot be read: all are, once.
    """
    names = ("cifar10", "cifar100")
    if source in names:
        return open_cifar(source, train=True), list(CLASSES[source])
    found = cifar_folders(Path(source))
    if len(found) > 1:
        raise DataError(f"training data must be one data set, folder {source!r} contains CIFAR-10 and CIFAR-100")
    for name, root in found.items():
        return open_cifar_folder(name, root, train=True), list(CLASSES[name])
    found_files = _open_files(source, lambda folder: open_images(folder, FOR_TRAINING, *names, strict=strict))
    found_files.mode = mode
    files = found_files.readable()
    return files, files.classes
