"""What lies where in a run's folder, for those who write it and those who read it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# no file system takes longer paths and names
PATH_BYTES = 4000
NAME_BYTES = 255
IMAGES = "images"  # images/LANE: a set of images each
QUANTIZED = "quantized"  # quantized/LANE/W4A4: a quantized network each
GIVEN = "given"  # the method of images that were not generated in this run
FRAMES = "frames"  # frames/LANE: what was on the screen
RUNNING_STATISTICS = "running_statistics.npz"  # in it
CHECKPOINT = "checkpoint"  # what an unfinished run needs to go on
NETWORK_FILE = "quantized.safetensors"  # in it
EXPORTS = "exports"  # files that were made of the run to take along, NAME, and NAME.json: the figures of each
RESULT = "result.json"
UPLOADS = "uploads"  # beside the folders of the runs: what somebody brought
NETWORKS = "networks"  # uploads/networks/HASH.safetensors, and HASH.json: what it is called on the pages
IMAGES_FILE = "images.safetensors"
SOURCE_FILE = "source.pt"  # beside the images of a joint method: the state of its source
MANIFEST = "manifest.json"  # written last into a set of images: where it is, the set is whole


def image_methods(folder: Path) -> list[str]:
    """Lanes below a folder of image sets, only those that are whole."""
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


def given_sets(root: Path, methods: Sequence[str]) -> dict[str, Path]:
    """MethodImages -> folder or file of the images that a run was given.

    One set is one method; a folder that holds sets, as a run leaves them, is one method for each of `methods` that it has.
    """
    if os.path.isfile(root / MANIFEST):
        return {GIVEN: root}  # one set, even where a folder in it, which is one of a class, has an optimizer's name
    return {name: root / name for name in methods if (root / name).is_dir()} or {GIVEN: root}


def methods_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Method -> figures, of a run's result; version 1 called them optimizers."""
    return dict(result.get("methods") or result.get("optimizers") or {})


def plain_rights(path: Path) -> None:
    """Gives a file or folder the rights that a plain open or mkdir would have: safetensors and tempfile make theirs private."""
    umask = os.umask(0)  # the only way to read it is to set it
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
