"""Lists of the classes of images in one folder: lines "FILE CLASS" of `val.txt`, Caffe's name for that of ImageNet's validation images."""

import re
from collections.abc import Mapping
from pathlib import Path

from core.errors import DataError, quoted
from core.files import read_unicode

LABELS = "val.txt"
LABELS_BYTES = 64 << 20  # a line for each of a million images
_NAME_LENGTH = 1000  # characters of a line in which the end of the file name is looked for
_SEPARATOR = re.compile(r"[\s,;]+")


def read_labels(labels: Path, images: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The class of each image, a name, a number or a WordNet id. images: their names, with any values. folder: theirs, for error messages.

    The file name ends at the last space, comma, semicolon or tab of its line before which an image is named, because file names and
    classes may have spaces too. Lines for missing images are skipped, because a part of a data set may be enough. Names are looked up
    among the images and never used as paths. Raises DataError for an image without a line or with two classes, and for a list that cannot
    be read.
    """
    try:
        lines = read_unicode(labels, LABELS_BYTES).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{labels} must be a text file in UTF-8 with lines 'FILE CLASS', but cannot be read ({reason})") from error
    label_of: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        found = _named_image(line, images)
        if found is None:
            if line and not _SEPARATOR.search(line):
                raise DataError(f"line {number} of {labels} must be a file name, a space, and a class, got {quoted(line)}")
            continue
        name, label = found
        if not label:
            raise DataError(f"line {number} of {labels} must be a file name, a space, and a class, got {quoted(line)}")
        if label_of.setdefault(name, label) != label:
            raise DataError(f"{labels} must have one class per image, got two for {quoted(name)}")
    missing = next((name for name in images if name not in label_of), None)
    if missing is not None:
        raise DataError(f"{labels} must have a class for every image of {folder}, got none for {quoted(missing)}")
    return label_of


def _named_image(line: str, images: Mapping[str, str]) -> tuple[str, str] | None:
    """The image that a line begins with, without its folder, and the rest of the line; None for an image that is missing."""
    for match in [*_SEPARATOR.finditer(line, 0, _NAME_LENGTH), None][::-1]:
        start, rest = (line, "") if match is None else (line[: match.start()], line[match.end() :])
        name = start.strip("\"'").replace("\\", "/").rpartition("/")[2]
        if name in images:
            return name, rest.strip("\"'")
    return None
