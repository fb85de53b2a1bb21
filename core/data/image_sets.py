"""Sets of synthetic images on disk: a folder with `images.safetensors` and `manifest.json`, written whole or not at all.

`load_image_set` reads these, and whatever else images come in: folders of PNG files and NumPy archives, as `core.export` writes them,
folders of real images, and archives.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2

from core.config import NAME_BYTES, PATH_BYTES
from core.data.archives import is_archive, unpack_images
from core.data.class_folders import FOLDERS, read_class_folders
from core.data.labelled import class_mapping, open_image_folder
from core.data.numpy_archives import SUFFIX, read_numpy_archive
from core.errors import DataError, shown
from core.files import sync_tree, whole, write_json
from core.layout import IMAGES_FILE, MANIFEST, plain_rights
from core.models.registry import ModelSpec

OUT_BYTES = 200  # until it is whole, what is written has a longer name


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
    with whole(folder / IMAGES_FILE) as partial, partial.open("wb") as file:
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


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and disappears when it does not.

    Raises DataError when `out` exists and is not an empty folder: nothing that is there is overwritten.
    """
    check_free(out)
    out = Path(os.path.realpath(out))
    with parents_of(out):
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield temporary
            plain_rights(temporary)
            sync_tree(temporary)
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def parents_of(out: Path) -> Iterator[None]:
    """Makes the folders above `out` for the block; those that were missing are removed again when it does not end well."""
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            # someone else may have put something there
            with suppress(OSError):
                parent.rmdir()
        raise


def check_free(out: Path) -> None:
    """Raises DataError unless `out` is a new name that can be made, or an empty folder other than the current one."""
    # the functions of os.path, unlike those of Path, take what cannot be looked at for what is not there
    if os.path.lexists(out) and not _is_empty_folder(out):
        raise DataError(f"{str(out)!r} exists already: allowed is a new or an empty folder")
    if os.path.realpath(out) == os.path.realpath("."):
        raise DataError(f"{str(out)!r} is the current folder: allowed is a new folder, or another empty one")
    check_parents(out)


def _is_empty_folder(path: Path) -> bool:
    try:
        return not any(path.iterdir())
    except OSError:  # no folder, or none that may be looked into
        return False


def check_parents(out: Path) -> None:
    """Raises DataError unless `out` lies, however deep, in a folder that can be written to."""
    path = out.absolute()
    if len(os.fsencode(path.name)) > OUT_BYTES or any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise DataError(
            f"{shown(str(out))} is too long: allowed is a name of at most {OUT_BYTES} bytes, in folders of at most {NAME_BYTES}"
        )
    if len(os.fsencode(path)) > PATH_BYTES:
        raise DataError(f"{shown(str(out))} is too long: allowed is a path of at most {PATH_BYTES:,} bytes")
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"{str(out)!r} cannot be made in {str(parent)!r}: allowed is a name in a folder that can be written to")
