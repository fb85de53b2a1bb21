"""Export of image sets: PNG files, safetensors, or a NumPy archive with which other quantizers can be calibrated.

`load_image_set` reads all three, with the same pixels and labels in the same order. The same set always gives the same bytes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import layout
from core.config import IMAGE_FORMATS, RunConfig
from core.data.archives import NUMPY_SUFFIX
from core.data.class_folders import FOLDERS, write_class_folders
from core.data.image_sets import ImageSet, check_images, load_image_set, save_image_set
from core.data.numpy_archives import write_numpy_archive
from core.data.shards import SHARDS
from core.errors import DataError, RunError, UnknownNameError, first_line
from core.files import atomic_folder, atomic_write, check_free, check_parents, named_as, parents_of, write_json
from core.generation.methods import in_order
from core.layout import MANIFEST
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.identity import weights_hash


def export_method(folder: Path, config: RunConfig, format: str, out: Path, method: str = "") -> dict[str, Any]:
    """`export_images` for the images of one method of the run in `folder`. method: empty for the run's first one.

    Raises UnknownNameError for a method that the run does not have, RunError for a run without images, and the errors of `export_images`.
    """
    out = image_target(format, out)
    images = folder / layout.IMAGES
    sets = {name: images / name for name in layout.image_methods(images)}
    if config.images_from:
        sets = layout.user_image_sets(Path(config.images_from), config.methods)
    if not sets:
        raise RunError(f"run must have finished its images, and {folder.name!r} has none yet")
    method = method or in_order(sets)[0]
    if method not in sets:
        raise UnknownNameError("method", method, sets)
    model = load_model(config.model, "cpu")
    result = json.loads((folder / layout.RESULT).read_text(encoding="utf-8")) if (folder / layout.RESULT).is_file() else {}
    diversity = layout.methods_of(result).get(method, {}).get("diversity")
    return {**export_images(load_image_set(sets[method], model.spec), model, format, out, diversity), "method": method}


def export_images(
    image_set: ImageSet, model: FullPrecisionModel, format: str, out: Path, diversity: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes an image set of `model` to `out`, atomically; returns path, format, number of images, bytes and network, as JSON values.

    format: `png` (a folder with one folder of PNG files per class), `safetensors` (a folder as `generate` writes it), or `npz` (a file that
    ends in .npz, see core.data.numpy_archives). out: a new file or folder, or an empty folder. diversity: the encoder's figures in the
    run's result, if there are any. Each format has a manifest (in the archive, an entry of that name): the set's own manifest (its config
    with the seed, and its live changes), and `network`, `normalisation`, `image_size`, `classes`, `diversity`.
    Raises UnknownNameError or ConfigError for an invalid format or name, DataError if `out` exists or cannot be written, or the set does
    not fit the network.
    """
    check_images(model, image_set)
    out = image_target(format, out)
    manifest = _manifest(image_set, model, format, diversity)
    try:
        if format == "npz":
            with parents_of(out), atomic_write(out) as partial:
                write_numpy_archive(partial, image_set.images, image_set.labels, model.spec.classes, manifest, model.normalize)
        else:
            with atomic_folder(out) as folder:
                if format == "png":
                    manifest |= write_class_folders(folder, image_set.images, image_set.labels, model.spec.classes)
                    write_json(folder / MANIFEST, manifest)
                else:
                    save_image_set(replace(image_set, manifest=manifest), folder)
    except OSError as error:
        raise DataError(
            f"out must be writable and have enough space, and {str(out)!r} could not be written ({error.strerror or first_line(error)})"
        ) from error
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {
        "out": str(out),
        "format": format,
        "images": len(image_set),
        "bytes": sum(path.stat().st_size for path in files),
        "network": manifest["network"],
    }


def image_target(format: str, out: Path) -> Path:
    """`out` with the ending of the format, if it has one. Raises UnknownNameError, ConfigError or DataError unless `export_images` can
    write there."""
    if format not in IMAGE_FORMATS:
        raise UnknownNameError("format of images", format, IMAGE_FORMATS)
    if format == "npz":
        out = named_as(out, NUMPY_SUFFIX)
        if os.path.lexists(out):
            raise DataError(f"out must be a new file, and {str(out)!r} exists already")
        check_parents(out)
    else:
        check_free(out)
    return out


def _manifest(image_set: ImageSet, model: FullPrecisionModel, format: str, diversity: Mapping[str, Any] | None) -> dict[str, Any]:
    spec = model.spec
    own = {key: value for key, value in image_set.manifest.items() if key not in (FOLDERS, SHARDS)}  # how the files were arranged
    return own | {
        "format": format,
        "images": len(image_set),
        "network": {
            "name": spec.name,
            "architecture": spec.architecture,
            "trained_on": spec.trained_on,
            "weights_sha256": weights_hash(model.network),
        },
        "normalisation": {"mean": list(spec.mean), "std": list(spec.std)},
        "image_size": spec.image_size,
        "classes": list(spec.classes),
        "diversity": None if diversity is None else dict(diversity),
    }
