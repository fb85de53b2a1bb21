"""Zip files of images from untrusted sources: checked, and unpacked completely or not at all.

Only images, lists of classes and image sets are unpacked. The limits and checks of zip files, also of the names in them, are in
core.data.zip_files.
"""

import io
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import IO

from safetensors import SafetensorError, safe_open

from core.channels import MODES
from core.data.class_names import MAPPING_FILES
from core.data.label_lists import LABELS, LABELS_BYTES
from core.data.layouts import FOR_TRAINING, open_images
from core.data.manifests import parse_manifest
from core.data.pictures import is_picture_name
from core.data.zip_files import MEGABYTE, UNPACKED_BYTES, Contents, Member, quoted_name, read_member, reason_of, refuse, zip_contents
from core.errors import DataError
from core.files import check_regular, remove
from core.layout import IMAGES_FILE, MANIFEST, plain_rights
from core.untrusted import check_apart

NUMPY_SUFFIX = ".npz"
ARCHIVE_BYTES = 500 * MEGABYTE  # the 50,000 CIFAR-10 training images as PNG have 130 MB; the dashboard holds an upload in memory
IMAGE_BYTES = 64 * MEGABYTE  # of one file: enough for a BMP of PIXELS
PIXELS = 16 * MEGABYTE  # 4096 x 4096, more than any network here accepts
MANIFEST_BYTES = MEGABYTE  # `generate` writes some kilobytes
ALLOWED = "a zip file with one folder of images per class, or with a set written by `generate` or `export`"
_NUMBERED = re.compile("[0-9]{6}")
# files that operating systems add to archives
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


def is_archive(path: Path) -> bool:
    """Whether the name of a file is that of a zip file."""
    return path.name.lower().endswith(".zip")


def is_numpy_archive(path: Path) -> bool:
    """Whether the name of a file is that of a NumPy archive."""
    return path.name.lower().endswith(NUMPY_SUFFIX)


def unpack_apart(file: Path, folder: Path, name: str = "", labels_needed: bool = True) -> None:
    """Unpacks a zip file or a NumPy archive of images into `folder`, which must be empty, in a process of its own (core.untrusted).

    name: used instead of the path in error messages; its ending is that of the file. labels_needed: see `unpack_images`. Raises DataError
    if the file is refused or takes too much memory or time; the folder may then contain a part of it.
    """
    name = name or str(file)
    if is_numpy_archive(Path(name)):
        check_apart("core.data.image_sets:convert_numpy_archive", file, name, folder=str(folder.absolute()))  # it imports torch
    else:
        check_apart(f"{__name__}:unpack_here", file, name, folder=str(folder.absolute()), labels_needed=labels_needed)


def unpack_data_set(file: Path, folder: Path) -> None:
    """Unpacks the images, lists and folders of a zip file into `folder`, which must be empty, under their own names.

    For data of any layout and image size (core.data.layouts); other files are left out. In a process of its own, as `unpack_apart`.
    Raises DataError if the file is refused or takes too much memory or time; the folder may then contain a part of it.
    """
    check_apart(f"{__name__}:unpack_data_set_here", file, str(file), folder=str(folder.absolute()))


def unpack_data_set_here(file: Path, *, name: str, folder: str) -> None:
    """`unpack_data_set` in the process of the file."""
    allowed = "a zip file of a folder of images"
    with file.open("rb") as opened, zip_contents(opened, name, UNPACKED_BYTES, allowed) as contents:
        _unpack_data(contents, Path(folder), name, allowed)


def _unpack_data(contents: Contents, folder: Path, name: str, allowed: str) -> None:
    """Writes images, lists and folders under their own names."""
    above = {parent for member in contents.files for parent in member.path.parents}
    spelled: dict[str, PurePosixPath] = {}
    for path in sorted({*contents.folders, *above}):
        # on some file systems these would be the same folder, and two classes one
        other = spelled.setdefault(unicodedata.normalize("NFKC", str(path)).casefold(), path)
        if other != path:
            found = f"{quoted_name(other)} and {quoted_name(path)}"
            refuse(name, f"names of folders must not differ only in case or in the encoding of accents, got {found}")
    try:
        for path in contents.folders:
            (folder / path).mkdir(parents=True, exist_ok=True)
        for member in contents.files:
            is_list = member.path.name in (LABELS, *MAPPING_FILES)
            if not is_list and not is_picture_name(member.path.name):
                continue
            target = folder / member.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:  # names that differ only in case may be the same file
                for chunk in read_member(member, LABELS_BYTES if is_list else IMAGE_BYTES, name, allowed):
                    copy.write(chunk)
    except (FileExistsError, NotADirectoryError) as error:
        found = quoted_name(Path(error.filename).relative_to(folder))
        raise DataError(
            f"{name!r}: names must be different, also without regard to case, and none both a file and a folder, got {found}"
        ) from error


def unpack_here(file: Path, *, name: str, folder: str, labels_needed: bool) -> None:
    """`unpack_apart` for a zip file, in the process of the file."""
    unpack_images(file, Path(folder), name, labels_needed)


def unpack_images(source: Path | IO[bytes], folder: Path, name: str = "", labels_needed: bool = True) -> int:
    """Unpacks a zip file of images into `folder`; returns the number of images.

    source: a path, or a seekable binary file. folder: must exist and be empty; it is emptied again if the zip file is refused. name: used
    instead of the path in error messages. The zip file contains either a set of images written by `generate` (two files, possibly in one
    folder) or by `export` (a folder per class and the manifest, possibly in one folder), or images of one size in a layout of
    `open_images`, which are unpacked under their own names. labels_needed: see there.
    Raises DataError if the zip file has other contents, exceeds the limits above, or would write outside the folder.
    """
    if isinstance(source, Path):
        try:
            check_regular(source)
            with source.open("rb") as file:
                return unpack_images(file, folder, name or str(source), labels_needed)
        except OSError as error:
            raise DataError(f"{name or str(source)!r} cannot be read ({error.strerror}); it must be {ALLOWED}") from error
    name = name or "the zip file"
    _check_start(source, name)
    try:
        with zip_contents(source, name, UNPACKED_BYTES, ALLOWED) as contents:
            return _unpack(contents, folder, name, labels_needed)
    except BaseException:
        for path in folder.iterdir():
            remove(path)
        raise


def _check_start(file: IO[bytes], name: str) -> None:
    size = file.seek(0, io.SEEK_END)
    if size > ARCHIVE_BYTES:
        refuse(name, f"size must be at most {ARCHIVE_BYTES:,} bytes, got {size:,}")
    file.seek(0)
    start = file.read(8)
    if start[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        refuse(name, f"must be {ALLOWED}, got a file that begins with {start!r}; other archives must be unpacked to a folder first")


def _unpack(contents: Contents, folder: Path, name: str, labels_needed: bool) -> int:
    files = [member for member in contents.files if not _is_litter(member.path)]
    if not files:
        refuse(name, f"must be {ALLOWED}, got no images")
    names = [member.path.name for member in files]
    if MANIFEST in names and IMAGES_FILE not in names and len(files) > 1:
        return _unpack_exported(files, folder, name)
    if MANIFEST in names or IMAGES_FILE in names:
        return _unpack_set(files, folder, name)
    _unpack_data(Contents(files, [path for path in contents.folders if not _is_litter(path)]), folder, name, ALLOWED)
    return _check_images(folder, name, labels_needed)


def _unpack_set(files: list[Member], folder: Path, name: str) -> int:
    tops = {member.path.parent for member in files}
    if sorted(member.path.name for member in files) != sorted((IMAGES_FILE, MANIFEST)) or len(tops) > 1 or len(files[0].path.parts) > 2:
        refuse(
            name,
            f"an image set must be {IMAGES_FILE} and {MANIFEST} and nothing else, possibly in one folder, "
            f"got {quoted_name(files[0].path)} and {len(files) - 1} more files",
        )
    for member in files:
        with (folder / member.path.name).open("wb") as target:
            for chunk in read_member(member, UNPACKED_BYTES if member.path.name == IMAGES_FILE else MANIFEST_BYTES, name, ALLOWED):
                target.write(chunk)
        plain_rights(folder / member.path.name)
    try:
        with safe_open(folder / IMAGES_FILE, framework="np") as file:
            shapes = {key: (file.get_slice(key).get_dtype(), tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
        parse_manifest((folder / MANIFEST).read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{name!r} must be a set written by `generate`, but cannot be read as one ({reason_of(error)})") from error
    kind, shape = shapes.get("images", ("", ()))
    fits = kind == "U8" and len(shape) == 4 and shape[1] in MODES and all(shape) and shapes.get("labels") == ("I64", shape[:1])
    if not fits or len(shapes) != 2:
        found = ", ".join(f"{key[:40]!r} {kind} {shape}" for key, (kind, shape) in sorted(shapes.items())[:3])
        refuse(
            name,
            f"tensors in {IMAGES_FILE} must be images U8 (N, 1 to 4, H, W) and labels I64 (N,), N at least 1, got {found or 'none'}",
        )
    return shape[0]


def _unpack_exported(files: list[Member], folder: Path, name: str) -> int:
    """A set that `export` wrote as PNG files: one folder per class, and beside them the manifest with the number of images."""
    manifests = [member for member in files if member.path.name == MANIFEST]
    images = [member for member in files if member.path.name != MANIFEST]
    top = manifests[0].path.parent
    depth = len(top.parts)
    if len(manifests) > 1 or depth > 1 or any(member.path.parts[:-2] != top.parts or len(member.path.parts) < 2 for member in images):
        refuse(name, f"{quoted_name(manifests[0].path)} must be beside the folders of images of a set written by `export`")
    for member in images:
        if not (_NUMBERED.fullmatch(member.path.stem) and is_picture_name(member.path.name)):
            refuse(name, f"images beside a {MANIFEST} must be numbered as by `export`, got {quoted_name(member.path)}")
    content = b"".join(read_member(manifests[0], MANIFEST_BYTES, name, ALLOWED))
    try:
        parse_manifest(content)
    except ValueError as error:
        raise DataError(f"{name!r} must be a set written by `export`, but cannot be read as one ({reason_of(error)})") from error
    inside = [Member(PurePosixPath(*member.path.parts[depth:]), member.size, member.packed, member.open) for member in images]
    _unpack_data(Contents(inside, []), folder, name, ALLOWED)
    (folder / MANIFEST).write_bytes(content)
    return _check_images(folder, name, labels_needed=True, strict=True)


def _check_images(folder: Path, name: str, labels_needed: bool, strict: bool = False) -> int:
    """The number of images in an unpacked folder, all of which are decoded once."""
    try:
        found = open_images(folder, FOR_TRAINING, labels_needed=labels_needed, strict=strict)
        found.check_pixels(PIXELS, UNPACKED_BYTES)
    except DataError as error:
        # the user knows the name of the file, not where it is unpacked
        raise DataError(f"{name!r}: {str(error).replace(f'{folder}{os.sep}', '').replace(str(folder), name)}") from error
    return len(found)


def _is_litter(path: PurePosixPath) -> bool:
    return path.parts[0] == "__MACOSX" or path.name in _LITTER or path.name.startswith("._")
