"""Sets of synthetic images: a folder with `images.safetensors` and `manifest.json`.

`load_image_set` also reads the other formats of images: shards, folders of PNG files and NumPy archives written by `core.export`, folders
of real images, and zip files.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2

from core.channels import MODES, channels_title
from core.data.archives import NUMPY_SUFFIX, is_archive, is_numpy_archive, unpack_apart
from core.data.class_folders import FOLDERS, read_class_folders
from core.data.class_names import class_mapping
from core.data.layouts import FOR_TRAINING, open_images
from core.data.manifests import check_made_from, parse_manifest
from core.data.numpy_archives import MANIFEST_BYTES, read_numpy_archive
from core.data.sharded_images import AT_ONCE, Images, ShardedImages
from core.data.shards import SHARDS, Shards, every_sample, shard_files
from core.errors import DataError
from core.files import atomic_write, check_regular, read_bounded, temporary_folder, write_json
from core.layout import IMAGES_FILE, MANIFEST
from core.models.full_precision import FullPrecisionModel
from core.models.identity import weights_hash
from core.models.registry import ModelSpec


@dataclass
class ImageSet:
    """Images and labels to train a network on.

    images: uint8 `(N, 1 to 4, H, W)` in [0, 255], in memory or in shards; labels: int64 `(N,)`; manifest: how they were generated, JSON
    values; notes: sentences on what was guessed, ignored or skipped.
    """

    images: Images
    labels: Tensor
    manifest: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self) -> Tensor:
        """All images in memory, uint8 `(N, C, H, W)`."""
        return self.images if isinstance(self.images, Tensor) else self.images[:]


def save_image_set(image_set: ImageSet, folder: Path) -> None:
    """Writes the two files into `folder`, which must exist; the manifest last, so its presence marks the set as complete."""
    write_image_set(folder, image_set.labels, image_set.images.shape[1:], image_set.images.split(AT_ONCE), image_set.manifest)


def write_image_set(folder: Path, labels: Tensor, shape: Sequence[int], parts: Iterable[Tensor], manifest: Mapping[str, Any]) -> None:
    """`save_image_set` for images that arrive in parts, so that a set may be larger than memory.

    labels: int64 `(N,)`. shape: `(C, H, W)`. parts: uint8 `(n, C, H, W)`, N images in total, on the CPU. The safetensors library cannot
    write in parts, so its format is written here, byte for byte: a length, a JSON header padded to 8 bytes, and the tensors end to end.
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


def convert_numpy_archive(file: Path, *, name: str, folder: str) -> None:
    """Writes the images of a NumPy archive into a folder, as `save_image_set`. name: used instead of the path in error messages."""
    try:
        save_image_set(ImageSet(*read_numpy_archive(file)), Path(folder))
    except DataError as error:
        raise DataError(str(error).replace(repr(str(file)), repr(name))) from error


def check_images(model: FullPrecisionModel, images: ImageSet) -> None:
    """Raises DataError unless the images have the network's channels and size, and labels that are indices of its classes."""
    classes = len(model.spec.classes)
    found_channels, *found_size = images.images.shape[1:]
    if tuple(found_size) != model.spec.size:
        wanted, found = (f"{height} x {width}" for height, width in (model.spec.size, found_size))
        raise DataError(f"images must be {wanted} pixels for {model.spec.name}, got {found}")
    if found_channels != model.spec.channels:
        wanted, found = channels_title(model.spec.channels), channels_title(found_channels)
        raise DataError(f"images must be {wanted} for {model.spec.name}, got {found}")
    if not len(images):
        raise DataError("image set must have at least one image, got none")
    wrong = images.labels[(images.labels < 0) | (images.labels >= classes)]
    if len(wrong):
        raise DataError(f"labels must be 0 to {classes - 1}, the classes of {model.spec.name}, got {int(wrong[0])}")


def check_origin(model: FullPrecisionModel, images: ImageSet) -> None:
    """Raises DataError if the manifest of the images names another network than `model`; see `check_made_from`."""
    check_made_from(images.manifest, model.spec.name, lambda: weights_hash(model.network))


def load_image_set(path: str | Path, spec: ModelSpec | None = None, strict: bool = False) -> ImageSet:
    """Reads a set written by `save_image_set` or, in any of its formats, by `export_images`; a folder of real images of one size in a
    layout of `open_images`; or a zip file of any of these.

    spec: the network whose class indices the labels of real images become; without it, labels are the position of the folder, and
    images in a single folder are classes of their own. strict: see ImageFiles.
    Raises DataError if the path is missing, empty, in another format, or cannot be read.
    """
    folder = Path(path)
    is_one_file = is_archive(folder) or is_numpy_archive(folder)
    if is_one_file and os.path.isfile(folder):  # unlike Path.is_file, returns False for names that are too long
        with temporary_folder() as temporary:
            unpacked = temporary / folder.name  # the name of the archive, for error messages
            unpacked.mkdir()
            unpack_apart(folder, unpacked, labels_needed=spec is not None)
            try:
                image_set = load_image_set(unpacked, spec, strict)
            except DataError as error:
                raise DataError(str(error).replace(str(unpacked), str(folder))) from error
            image_set.notes = [note.replace(str(unpacked), str(folder)) for note in image_set.notes]
            if image_set.manifest.get("source") == str(unpacked):
                image_set.manifest["source"] = str(folder)
            return image_set
    if not os.path.isdir(folder):
        found = "another file" if os.path.lexists(folder) else "a path that does not exist"
        raise DataError(
            f"images must be a folder written by `generate` or `export`, a folder with one folder of images per class, a .zip file of "
            f"these, or a {NUMPY_SUFFIX} file written by `export`, got {found}: {str(path)!r}"
        )
    if not os.path.isfile(folder / MANIFEST):
        return _from_shards(folder, shard_files(folder), {}, spec) or _from_image_folder(folder, spec, strict)
    try:
        manifest = parse_manifest(read_bounded(folder / MANIFEST, MANIFEST_BYTES))
        if (sharded := _from_shards(folder, shard_files(folder, manifest), manifest, spec)) is not None:
            return sharded
        if FOLDERS in manifest and not os.path.isfile(folder / IMAGES_FILE):
            return ImageSet(*read_class_folders(folder, manifest), manifest)
        check_regular(folder / IMAGES_FILE)
        tensors = load_file(folder / IMAGES_FILE)
        images, labels = tensors["images"], tensors["labels"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{folder} must be a set of images written by `generate`, but cannot be read as one ({reason})") from error
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in MODES or labels.shape != images.shape[:1]:
        raise DataError(
            f"images of {folder} must be uint8 (N, 1 to 4 channels, H, W) with N labels, got {images.dtype} {tuple(images.shape)} "
            f"with labels {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise DataError(f"labels of {folder} must be int64, got {labels.dtype}")
    if not images.numel():
        raise DataError(f"{folder} must have at least one image of at least one pixel, got none")
    return ImageSet(images, labels, manifest)


def _from_shards(folder: Path, files: Sequence[Path], manifest: dict[str, Any], spec: ModelSpec | None) -> ImageSet | None:
    """The set in these shards; None without any. manifest: empty for shards of other programs."""
    if not files:
        return None
    counts = [one.get("images") for one in manifest[SHARDS]] if manifest else None
    # those of other programs are read as real images are
    shards = Shards(files, every_sample(files, counts), "" if manifest or spec is None else spec.mode)
    manifest = manifest or {"source": str(folder), "images": len(shards)}
    return ImageSet(ShardedImages(shards), torch.from_numpy(shards.labels), manifest)


def _from_image_folder(folder: Path, spec: ModelSpec | None, strict: bool) -> ImageSet:
    files = open_images(folder, FOR_TRAINING, labels_needed=spec is not None, strict=strict)
    if spec is not None:
        files.mode = spec.mode
    mapping = (
        range(len(files)) if spec is None else class_mapping(files.classes, spec, str(files.source), files.kind, files.empty, files.notes)
    )
    files.check_headers()
    to_tensor = v2.PILToTensor()
    pictures = [(to_tensor(picture), target) for index, target in enumerate(files.targets) if (picture := files.read(index)) is not None]
    sizes = {tuple(image.shape[1:]) for image, _ in pictures}
    if len(sizes) > 1:
        raise DataError(f"images of {folder} must have the same size, got {len(sizes)} sizes, such as {sorted(sizes)[:2]}")
    images = torch.stack([image for image, _ in pictures])
    labels = torch.tensor([mapping[target] for _, target in pictures])
    return ImageSet(images, labels, {"source": str(folder), "images": len(images)}, [*files.notes, *files.damage()])
