"""Names of the files and folders of a run, shared by the code that writes them and the code that reads them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# longest path and longest name that file systems accept, in bytes
PATH_BYTES = 4000
NAME_BYTES = 255
IMAGES = "images"  # images/METHOD: one image set each
QUANTIZED = "quantized"  # quantized/METHOD/W4A4: one quantized network each
USER_IMAGES = "given"  # method name of images supplied by the user; stored in runs, so the value must not change
FRAMES = "frames"  # frames/METHOD: the image snapshots that the dashboard displays
RUNNING_STATISTICS = "running_statistics.npz"  # in FRAMES/METHOD
CHECKPOINT = "checkpoint"  # state from which an unfinished run resumes
NETWORK_FILE = "quantized.safetensors"  # in QUANTIZED/METHOD/W4A4
EXPORTS = "exports"  # exported files NAME, each with its figures in NAME.json
FLOAT32 = "float32"  # the full-precision network in the formats of exports, which are compared with it
RESULT = "result.json"
RECOMMENDED = "recommended"  # of a run that `shrink` made: RECOMMENDED/FORMAT is what is exported at its end
UPLOADS = "uploads"  # uploaded networks and images, beside the run folders
SWEEPS = "sweeps"  # sweeps/ID.json, beside the run folders
NETWORKS = "networks"  # uploads/networks/HASH.safetensors, with its display name in HASH.json
IMAGES_FILE = "images.safetensors"
SOURCE_FILE = "source.pt"  # in IMAGES/METHOD, of a joint method: the state of its source
MANIFEST = "manifest.json"  # written last into an image set, so its presence marks the set as complete


def image_methods(folder: Path) -> list[str]:
    """Names of the methods with a complete image set below `folder`, sorted."""
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


def user_image_sets(root: Path, methods: Sequence[str]) -> dict[str, Path]:
    """Method -> folder or file with the images supplied by the user at `root`.

    A single image set has the method USER_IMAGES. A folder of sets, such as the images folder of a run, yields one entry for each of
    `methods` that it contains.
    """
    if os.path.isfile(root / MANIFEST):
        return {USER_IMAGES: root}  # a single set, even if one of its class folders has the name of a method
    return {name: root / name for name in methods if (root / name).is_dir()} or {USER_IMAGES: root}


def methods_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Method -> figures, of a run's result; version 1 called them optimizers."""
    return dict(result.get("methods") or result.get("optimizers") or {})


def plain_rights(path: Path) -> None:
    """Sets the permissions that open() and mkdir() would give, because safetensors and tempfile create private files."""
    umask = os.umask(0)  # the umask can only be read by setting it
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
