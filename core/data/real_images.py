"""The folder of real images for the reference `real`, none of which may be an evaluation image. Imports no torch."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from core.data.layouts import FOR_EVALUATION, FOR_TRAINING, ImageFiles, open_all_images
from core.errors import DataError, quoted


def check_real_images(folder: str, data: str) -> None:
    """Raises DataError for what can be refused without listing the folder. data: `evaluation.data` of the run."""
    if not os.path.isdir(folder):
        raise DataError(f"real_images must be a folder of images, got {quoted(folder) if folder else 'none'}")
    if os.path.isdir(data) and os.path.samefile(folder, data):
        raise DataError(f"real_images must be another folder than that of the evaluation images, got {quoted(folder)} for both")


def open_real_images(folder: str, data: str = "") -> ImageFiles:
    """All images in a folder and below it, of the part to train on if it has parts. data: `evaluation.data` of the run.

    Raises DataError for a folder that is missing, has no images, or has an image that a run is evaluated on, also behind a link.
    """
    check_real_images(folder, data)
    files = open_all_images(Path(folder), FOR_TRAINING)
    if not len(files):
        raise DataError(f"real_images must be a folder with at least one image, got none in {quoted(folder)}")
    if os.path.isdir(data):
        evaluated = _inodes(open_all_images(Path(data), FOR_EVALUATION).paths)
        if common := len(evaluated & _inodes(files.paths)):
            raise DataError(f"real_images must have no evaluation images, got {common:,} of {quoted(data)} in {quoted(folder)}")
    return files


def _inodes(paths: Iterable[str]) -> set[tuple[int, int]]:
    """Device and inode of every file that exists."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):  # a broken link is no evaluation image
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return found
