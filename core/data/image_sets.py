"""Sets of synthetic images on disk: a folder with `images.safetensors` and `manifest.json`, written whole or not at all.

`load_image_set` reads these, and whatever else images come in: folders of PNG files and NumPy archives, as `core.export` writes them,
folders of real images, and archives.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2

from core.data.archives import is_archive, unpack_images
from core.data.class_folders import FOLDERS, read_class_folders
from core.data.labelled import class_mapping, open_image_folder
from core.data.numpy_archives import SUFFIX, read_numpy_archive
from core.errors import DataError
from core.files import atomic_write, write_json
from core.layout import IMAGES_FILE, MANIFEST
from core.models.registry import ModelSpec


@dataclass
class ImageSet:
    """Images and labels that a network can be trained on.

    images: uint8 `(N, 3, H, W)` in [0, 255]; labels: int64 `(N,)`; manifest: how they were made, plain values.
    """

    images: Tensor
    labels: Tensor
    manifest: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def save_image_set(image_set: ImageSet, folder: Path) -> None:
    """Writes the two files into `folder`, which must exist; the manifest last, so that its presence says the set is whole."""
    write_image_set(folder, image_set.labels, image_set.images.shape[1:], [image_set.images], image_set.manifest)


def write_image_set(folder: Path, labels: Tensor, shape: Sequence[int], parts: Iterable[Tensor], manifest: Mapping[str, Any]) -> None:
    """`save_image_set` for images that come one part after the other, so that a set may be larger than memory.

    labels: int64 `(N,)`. shape: `(3, H, W)`. parts: uint8 `(n, 3, H, W)`, N images in all, on the CPU. Safetensors has no way to write
    part by part; the file is its format (a length, a JSON header padded to 8 bytes, the tensors end to end) and the same to the byte.
    """
    ends = (8 * len(labels), 8 * len(labels) + len(labels) * math.prod(shape))
    header = json.dumps(
        {
            "labels": {"dtype": "I64", "shape": [len(labels)], "data_offsets": [0, ends[0]]},
            "images": {"dtype": "U8", "shape": [len(labels), *shape], "data_offsets": list(ends)},
        },
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(folder / IMAGES_FILE) as partial, partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(labels.numpy().astype("<i8").tobytes())
        for part in parts:
            file.write(part.contiguous().numpy().tobytes())
    write_json(folder / MANIFEST, manifest)


def load_image_set(path: str | Path, spec: ModelSpec | None = None) -> ImageSet:
    """A set written by `save_image_set` or, in any of its formats, by `export_images`; a folder of real images with one folder a class,
    all of one size; or an archive of the first or the last.

    spec: the network whose classes the labels of real images become; without one they are the number of the folder.
    Raises DataError when it is missing, empty, is none of these, or cannot be read.
    """
    folder = Path(path)
    if folder.suffix.lower() == SUFFIX and os.path.isfile(folder):
        return ImageSet(*read_numpy_archive(folder))
    if is_archive(folder) and os.path.isfile(folder):  # unlike Path's, False for a name that is too long
        with tempfile.TemporaryDirectory() as temporary:
            unpacked = Path(temporary) / folder.name  # the archive's name, for messages
            unpacked.mkdir()
            unpack_images(folder, unpacked)
            image_set = load_image_set(unpacked, spec)
            if image_set.manifest.get("source") == str(unpacked):
                image_set.manifest["source"] = str(folder)
            return image_set
    if not os.path.isdir(folder):
        raise DataError(
            f"folder {str(path)!r} does not exist: allowed is a folder written by `generate` or `export`, one with one folder a class, "
            f"or a {SUFFIX} file written by `export`"
        )
    if not os.path.isfile(folder / MANIFEST):
        return _from_image_folder(folder, spec)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError(f"its {MANIFEST} is no JSON object")
        if FOLDERS in manifest and not os.path.isfile(folder / IMAGES_FILE):
            return ImageSet(*read_class_folders(folder, manifest), manifest)
        tensors = load_file(folder / IMAGES_FILE)
        images, labels = tensors["images"], tensors["labels"]
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} cannot be read as a set of images ({error}): allowed is a folder written by `generate`") from error
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{folder} holds images of shape {tuple(images.shape)}: allowed is uint8 (N, 3, H, W) with N labels")
    if labels.dtype != torch.int64:
        raise DataError(f"{folder} holds labels of {labels.dtype}: allowed is int64")
    if not images.numel():
        raise DataError(f"{folder} holds no images: allowed is at least one, of at least one pixel")
    return ImageSet(images, labels, manifest)


def _from_image_folder(folder: Path, spec: ModelSpec | None) -> ImageSet:
    dataset = open_image_folder(folder)
    mapping = range(len(dataset.classes)) if spec is None else class_mapping(dataset.classes, spec, str(folder))
    to_tensor = v2.PILToTensor()
    images = [to_tensor(image) for image, _ in dataset]
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        raise DataError(f"{folder} has images of {len(sizes)} sizes, such as {sorted(sizes)[:2]}: allowed is one size for all")
    labels = torch.tensor([mapping[label] for label in dataset.targets])
    return ImageSet(torch.stack(images), labels, {"source": str(folder), "images": len(images)})
