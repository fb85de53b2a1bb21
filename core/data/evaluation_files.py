"""Image files to evaluate on: with the classes of the network, or without labels. Imports no torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from core.data.class_names import are_classes, class_mapping
from core.data.layouts import FOR_EVALUATION, ImageFiles, open_all_images, open_images
from core.errors import DataError, quoted
from core.models.registry import ModelSpec


def open_evaluation_files(folder: Path, spec: ModelSpec, names: Sequence[str], *, strict: bool = False) -> ImageFiles:
    """The images of a folder, with its `classes` as far as they are meant as those of the network (see `are_classes`).

    Otherwise, and for a single folder of images without a list, all images in it and below it, with a note that they have no labels.
    names, strict, errors: see `open_images`.
    """
    files = open_images(folder, FOR_EVALUATION, *names, labels_needed=False, strict=strict)
    if files.classes and are_classes(files.classes, spec, str(files.source), files.kind, files.empty):
        return files
    files = open_all_images(folder, FOR_EVALUATION, *names, strict=strict)
    name = quoted(os.path.basename(os.path.abspath(folder)))
    files.notes.append(f"{name} has no folder for each class of {spec.name}: measured without labels.")
    return files


def evaluation_targets(files: ImageFiles, spec: ModelSpec) -> list[int]:
    """Index of the folder -> class index of the network, as `class_mapping`, whose errors it raises."""
    try:
        return class_mapping(files.classes, spec, str(files.source), files.kind, files.empty, files.notes)
    except DataError as error:
        instead = "; images in a single folder are measured without labels" if files.kind == "folders" else ""
        raise DataError(files.named(f"{error}{instead}")) from error
