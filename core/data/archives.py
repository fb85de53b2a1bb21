"""Archives of images from outside: checked from the first byte on, unpacked whole or not at all.

An archive is a zip or tar file that somebody else packed. Its names never become paths as they are: files are numbered, and of the
folders only the names of the classes are kept, after a check. What it says of itself (sizes, counts) is checked before anything is
written, and what comes out of it is counted again, as both can lie.
"""

import errno
import gzip
import io
import json
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn, cast

from PIL import Image
from safetensors import SafetensorError, safe_open

from core.errors import DataError
from core.files import remove
from core.layout import IMAGES_FILE, MANIFEST, plain_rights

MEGABYTE = 1 << 20
ARCHIVE_BYTES = 500 * MEGABYTE  # the 50,000 training images of CIFAR-10 as PNG are 130 MB; the dashboard holds an upload in memory
UNPACKED_BYTES = 2048 * MEGABYTE  # of all files, and of all pixels: a set is held in memory whole when it is used
MEMBERS = 60_000  # CIFAR-10 and its folders; a zip of more needs another format (zip64)
RATIO = 200  # images hardly shrink further: black ones in a plain format reach 150, a bomb 1,000
SMALL_BYTES = 64 * 1024  # below it no ratio matters
IMAGE_BYTES = 64 * MEGABYTE  # of one file: a BMP of PIXELS fits
PIXELS = 16 * MEGABYTE  # 4096 x 4096, more than any network here takes
MANIFEST_BYTES = MEGABYTE  # written by `generate` it has some kilobytes
NAME_LENGTH = 200  # characters of a file or folder; a file system takes 255 bytes
PATH_LENGTH = 1000
INDEX_BYTES = 12 * MEGABYTE  # of a zip's directory, or of one header of a tar: read at once, so bounded; 200 for each of MEMBERS
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
ALLOWED = "a zip, tar or tar.gz file with one folder of images a class, or with a set written by `generate` or `export`"
_CHUNK = MEGABYTE
_NUMBERED = re.compile("[0-9]{6}")
# what systems put into every archive without being asked
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Member:
    """A file of an archive. packed: bytes in the archive, None where a tar does not say."""

    path: PurePosixPath
    size: int
    packed: int | None
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Contents:
    files: list[Member]
    folders: list[PurePosixPath]


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is an archive that `unpack_images` may take."""
    return path.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def unpack_images(source: Path | IO[bytes], folder: Path, name: str = "") -> int:
    """Unpacks an archive of images into `folder`; returns how many images there are, or how many a set says that it has.

    source: a path, or a file open for reading that can seek. folder: exists and is empty, and is empty again when the archive is
    refused. name: what the archive is called in messages; by default its path. It holds either a set of images as `generate`
    writes it (its two files, possibly in one folder), or one folder of images (png, jpg, bmp, webp) a class, possibly in one more,
    beside the manifest where `export` wrote them. Images keep their bytes and get numbers as names, in the order of the archive's
    names; those of an exported set keep the numbers that they have.
    Raises DataError when the archive is not what is allowed, is larger than the limits above, or would write outside the folder.
    """
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                return unpack_images(file, folder, name or str(source))
        except OSError as error:
            raise DataError(f"{name or str(source)!r} cannot be read ({error.strerror}): allowed is {ALLOWED}") from error
    name = name or "the archive"
    try:
        with _opened(source, name) as contents:
            return _unpack(contents, folder, name)
    except BaseException:
        for path in folder.iterdir():
            remove(path)
        raise


def _unpack(contents: _Contents, folder: Path, name: str) -> int:
    files = [member for member in contents.files if not _is_litter(member.path)]
    if not files:
        _refuse(name, "holds no images", ALLOWED)
    folders = [path for path in contents.folders if not _is_litter(path)]
    names = [member.path.name for member in files]
    if MANIFEST in names and IMAGES_FILE not in names and len(files) > 1:
        return _unpack_exported(files, folders, folder, name)
    if MANIFEST in names or IMAGES_FILE in names:
        return _unpack_set(files, folder, name)
    return _unpack_classes(files, folders, folder, name)


def _unpack_set(files: list[Member], folder: Path, name: str) -> int:
    tops = {member.path.parent for member in files}
    if sorted(member.path.name for member in files) != sorted((IMAGES_FILE, MANIFEST)) or len(tops) > 1 or len(files[0].path.parts) > 2:
        _refuse(
            name,
            f"has {_quoted(files[0].path)} and {len(files) - 1} more files, some of them a set's",
            f"{IMAGES_FILE} and {MANIFEST} and nothing else, possibly in one folder",
        )
    for member in files:
        with (folder / member.path.name).open("wb") as target:
            for chunk in _read(member, UNPACKED_BYTES if member.path.name == IMAGES_FILE else MANIFEST_BYTES, name):
                target.write(chunk)
        plain_rights(folder / member.path.name)
    try:
        with safe_open(folder / IMAGES_FILE, framework="pt") as file:
            shapes = {key: (file.get_slice(key).get_dtype(), tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
        _check_manifest((folder / MANIFEST).read_bytes())
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{name!r} cannot be read as a set of images ({_reason(error)}): allowed is one written by `generate`") from error
    kind, shape = shapes.get("images", ("", ()))
    fits = kind == "U8" and len(shape) == 4 and shape[1] == 3 and all(shape) and shapes.get("labels") == ("I64", shape[:1])
    if not fits or len(shapes) != 2:
        what = ", ".join(f"{key[:40]!r} {kind} {shape}" for key, (kind, shape) in sorted(shapes.items())[:3])
        _refuse(name, f"has tensors {what or 'of no kind'} in {IMAGES_FILE}", "images U8 (N, 3, H, W) and labels I64 (N,), N at least 1")
    return shape[0]


def _unpack_exported(files: list[Member], folders: list[PurePosixPath], folder: Path, name: str) -> int:
    """A set that `export` wrote as PNG files: one folder of them a class, and beside these the manifest, which counts them."""
    manifests = [member for member in files if member.path.name == MANIFEST]
    images = [member for member in files if member.path.name != MANIFEST]
    beside = {member.path.parent.parent for member in images}
    if len(manifests) > 1 or beside != {manifests[0].path.parent}:
        _refuse(name, f"has {_quoted(manifests[0].path)}, which is beside no folders of images", "a set written by `generate` or `export`")
    for member in images:
        if not _NUMBERED.fullmatch(member.path.stem):
            _refuse(name, f"has {_quoted(member.path)} in a set with a {MANIFEST}", "images that are numbered, as `export` does")
    content = b"".join(_read(manifests[0], MANIFEST_BYTES, name))
    try:
        _check_manifest(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name!r} cannot be read as a set of images ({_reason(error)}): allowed is one written by `export`") from error
    count = _unpack_classes(images, folders, folder, name, keep_numbers=True)
    (folder / MANIFEST).write_bytes(content)
    return count


def _check_manifest(content: bytes) -> None:
    if not isinstance(json.loads(content), dict):
        raise ValueError(f"{MANIFEST} is no JSON object")


def _unpack_classes(files: list[Member], folders: list[PurePosixPath], folder: Path, name: str, keep_numbers: bool = False) -> int:
    allowed = f"one folder of images a class ({', '.join(suffix[1:] for suffix in SUFFIXES)})"
    depths = {len(member.path.parts) for member in files}
    tops = {member.path.parts[0] for member in files}
    inside = len(depths) == 1 and depths == {3} and len(tops) == 1
    if not inside and depths != {2}:
        odd = next(member for member in files if len(member.path.parts) != 2)
        _refuse(name, f"has {_quoted(odd.path)}, which lies in no folder of a class", f"{allowed}, possibly in one more folder")
    depth = 1 if inside else 0
    for member in files:
        if member.path.suffix.lower() not in SUFFIXES:
            _refuse(name, f"has {_quoted(member.path)}, which is no image", allowed)
    classes = {member.path.parts[depth] for member in files}
    for one in sorted(classes):
        if one.startswith(".") or one != one.strip() or one.endswith("."):
            _refuse(name, f"has a folder {_quoted(one)}", "names of classes that neither begin nor end with a dot or space")
    for path in folders:
        # an empty class would be lost, and with it the order of the others
        if len(path.parts) == depth + 1 and path.parts[depth] not in classes and (not inside or path.parts[0] in tops):
            _refuse(name, f"has no images in {_quoted(path)}", allowed)
    # on some file systems these would be one folder, and two classes one
    if len({unicodedata.normalize("NFKC", one).casefold() for one in classes}) < len(classes):
        _refuse(name, "has two folders whose names differ only in case or accents' encoding", "a name of its own for each class")
    first: tuple[int, int] | None = None
    pixels = 0
    for number, member in enumerate(sorted(files, key=lambda member: member.path)):
        content = b"".join(_read(member, IMAGE_BYTES, name))
        kind, size = _check_image(content, member.path, name)
        first = first or size
        if size != first:
            _refuse(name, f"has images of {first[0]} x {first[1]} and of {size[0]} x {size[1]} pixels ({_quoted(member.path)})", "one size")
        pixels += 3 * size[0] * size[1]
        if pixels > UNPACKED_BYTES:
            _refuse(name, f"has more than {UNPACKED_BYTES // MEGABYTE:,} MB of pixels", "fewer or smaller images")
        stem = member.path.stem if keep_numbers else f"{number:06d}"
        target = folder / member.path.parts[depth] / f"{stem}.{kind.lower()}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    return len(files)


def _check_image(content: bytes, path: PurePosixPath, name: str) -> tuple[str, tuple[int, int]]:
    """Format and size of an image that can be decoded whole. Its size is known, and checked, before it is decoded."""
    formats = sorted(set(SUFFIXES.values()))
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            kind, size = str(image.format), image.size
            if size[0] * size[1] <= PIXELS:
                image.load()
    except Exception as error:  # Pillow raises whatever its decoders hit on: OSError, SyntaxError, struct.error and more
        raise DataError(f"{name!r} has {_quoted(path)}, which cannot be read as an image: allowed are {', '.join(formats)}") from error
    if size[0] * size[1] > PIXELS:
        _refuse(name, f"has {_quoted(path)} of {size[0]} x {size[1]} pixels", f"at most {PIXELS // MEGABYTE} million in an image")
    return kind, size


def _read(member: Member, limit: int, name: str) -> Iterator[bytes]:
    """The bytes of a member, no more than it declared and no more than `limit`."""
    if member.size > limit:
        _refuse(name, f"has {_quoted(member.path)} of {member.size:,} bytes", f"at most {limit:,}")
    count = 0
    with _readable(name), member.open() as file:
        while chunk := file.read(min(_CHUNK, member.size + 1 - count)):
            count += len(chunk)
            if count > member.size:
                break
            yield chunk
    if count != member.size:
        _refuse(name, f"has {_quoted(member.path)}, which is not the {member.size:,} bytes that it says", "an archive that is whole")


# what an archive says of itself


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[_Contents]:
    """The members of an archive, all of them checked by name, type and size."""
    size = file.seek(0, io.SEEK_END)
    if size > ARCHIVE_BYTES:
        _refuse(name, f"has {size:,} bytes", f"at most {ARCHIVE_BYTES:,}")
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    with ExitStack() as open_files:
        with _readable(name):
            if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
                archive = open_files.enter_context(zipfile.ZipFile(_Bounded(file, size, name)))
                contents = _checked(_zip_members(archive, name), size, name, UNPACKED_BYTES)
            elif start[:3] == b"\x1f\x8b\x08":
                unpacked = open_files.enter_context(gzip.GzipFile(fileobj=file, mode="rb"))
                contents = _checked(
                    _tar_members(open_files.enter_context(_tar(cast(IO[bytes], unpacked), name)), name), size, name, UNPACKED_BYTES
                )
            elif start[257:262] == b"ustar":
                contents = _checked(_tar_members(open_files.enter_context(_tar(file, name)), name), size, name, UNPACKED_BYTES)
            else:
                _refuse(name, f"begins with {start[:8]!r}", ALLOWED)
        yield contents


@contextmanager
def open_zip(path: Path, unpacked: int, allowed: str) -> Iterator[dict[str, Member]]:
    """The files of a zip by their names, checked as those of `unpack_images` are, and what is damaged in them while the block reads.

    unpacked: bytes that all of them may have together. allowed: what may be there instead of `path`, for messages.
    Raises DataError when it is no zip, or not what is allowed.
    """
    name = str(path)
    with ExitStack() as open_files:
        try:
            file = open_files.enter_context(path.open("rb"))
        except OSError as error:
            raise DataError(f"{name!r} cannot be read ({error.strerror}): allowed is {allowed}") from error
        size = file.seek(0, io.SEEK_END)
        with _readable(name, allowed):
            archive = open_files.enter_context(zipfile.ZipFile(_Bounded(file, size, name)))
            contents = _checked(_zip_members(archive, name), size, name, unpacked)
            yield {str(member.path): member for member in contents.files}


@contextmanager
def _readable(name: str, allowed: str = ALLOWED) -> Iterator[None]:
    """Says in a sentence what the readers of archives raise when one is damaged."""
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, ValueError, KeyError, IndexError, OverflowError,
        RuntimeError, NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's, not the archive's, which may only send to a place before the start
        raise DataError(f"{name!r} cannot be read ({_reason(error)}): allowed is {allowed}") from error


class _Bounded(io.RawIOBase):
    """A file of which no more than INDEX_BYTES are read at once, and nothing behind UNPACKED_BYTES and the headers of MEMBERS.

    zipfile and tarfile read the zip's directory and a tar's long names in one piece, as long as the file says that they are.
    """

    def __init__(self, file: IO[bytes], size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name

    def read(self, size: int | None = -1) -> bytes:
        at = self._file.tell()
        if size is None or size < 0:
            size = max(0, self._size - at)
        if size > INDEX_BYTES:
            _refuse(self._name, f"has an index or header of {size:,} bytes", f"at most {INDEX_BYTES:,}")
        self._check(at + size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            self._check(offset)
        return self._file.seek(offset, whence)

    def _check(self, at: int) -> None:
        # zipfile and tarfile read ahead by a block or two
        if at > self._size + MEGABYTE:
            _refuse(self._name, f"unpacks to more than {self._size:,} bytes", "less than that")

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _tar(file: IO[bytes], name: str) -> tarfile.TarFile:
    # a header and up to a block of padding for each member
    bounded = _Bounded(file, UNPACKED_BYTES + MEMBERS * 4 * tarfile.BLOCKSIZE, name)
    return tarfile.open(fileobj=bounded, mode="r:")


def _zip_members(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[str, Member | None]]:
    """Name and file, or name and None for a folder."""
    for info in archive.infolist():
        raw = info.orig_filename  # .filename is cut at a NUL
        kind = info.external_attr >> 28 if info.create_system in (3, 19) else 0  # the upper bits of the mode of Unix and macOS
        if kind not in (0, 0o04, 0o10):
            _refuse(name, f"has {_quoted(raw)}, which is a link or a device", "files and folders")
        if info.flag_bits & 0x1:
            _refuse(name, f"has {_quoted(raw)}, which is encrypted", "an archive without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # others take as much memory as the archive asks for
            _refuse(name, f"has {_quoted(raw)}, which is packed by method {info.compress_type}", "stored and deflated files")
        if info.is_dir():
            yield raw, None
        else:
            yield raw, Member(PurePosixPath(raw), info.file_size, info.compress_size, partial(archive.open, info))


def _tar_members(archive: tarfile.TarFile, name: str) -> Iterator[tuple[str, Member | None]]:
    def opened(info: tarfile.TarInfo) -> IO[bytes]:
        file = archive.extractfile(info)
        assert file is not None  # it is a regular file
        return file

    for info in archive:
        if info.isdir():
            yield info.name, None
        elif not info.isreg() or info.issparse():
            _refuse(name, f"has {_quoted(info.name)}, which is a link, a device or a sparse file", "files and folders")
        else:
            yield info.name, Member(PurePosixPath(info.name), info.size, None, partial(opened, info))
    # tarfile takes a damaged header for the end, which is a block of zeros
    archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # type: ignore[union-attr]
        _refuse(name, "is damaged or cut off", "an archive that is whole")


def _checked(members: Iterator[tuple[str, Member | None]], packed: int, name: str, unpacked: int) -> _Contents:
    contents = _Contents([], [])
    seen: set[PurePosixPath] = set()
    total, most = 0, min(unpacked, max(SMALL_BYTES, RATIO * packed))
    for count, (raw, member) in enumerate(members, start=1):
        if count > MEMBERS:
            _refuse(name, f"has more than {MEMBERS:,} files and folders", "at most that many")
        path = _safe_path(raw, name)
        if not path.parts:
            continue  # the folder that was packed, as tar writes it
        if path in seen:
            _refuse(name, f"has {_quoted(path)} twice", "each name once")
        seen.add(path)
        if member is None:
            contents.folders.append(path)
            continue
        if member.size < 0:
            _refuse(name, f"has {_quoted(path)} of {member.size:,} bytes", "0 or more")
        if member.packed is not None and member.size > max(SMALL_BYTES, RATIO * member.packed):
            _refuse(name, f"has {_quoted(path)}, packed to less than 1 / {RATIO} of its size", "images, which shrink less")
        total += member.size
        if total > most:
            limit = f"{unpacked:,} bytes, and at most {RATIO} times as many as the archive has, as images shrink less"
            _refuse(name, f"unpacks {packed:,} bytes to {total:,} and perhaps more", limit)
        contents.files.append(Member(path, member.size, member.packed, member.open))
    return contents


def _safe_path(raw: str, name: str) -> PurePosixPath:
    """The path of a member inside the archive. Raises DataError unless it is relative, goes down only and can be shown as it is."""
    # a leading ./ is what `tar -c .` writes
    parts = raw.removeprefix("./").rstrip("/").split("/") if raw not in (".", "./") else []
    allowed = "relative names below the archive's own folder"
    if raw.startswith("/") or "\\" in raw or raw[1:2] == ":":
        _refuse(name, f"has {_quoted(raw)}, an absolute path or one of Windows", allowed)
    if any(part in ("", ".", "..") for part in parts):
        _refuse(name, f"has {_quoted(raw)}, which leads elsewhere", allowed)
    if len(raw) > PATH_LENGTH or any(len(part) > NAME_LENGTH or len(part.encode(errors="replace")) > 255 for part in parts):
        _refuse(name, f"has {_quoted(raw)}, which is too long", f"at most {NAME_LENGTH} characters for a file or folder")
    # control characters, such as NUL or those that turn the direction of writing, and bytes that are no text
    if any(unicodedata.category(character).startswith("C") for character in raw):
        _refuse(name, f"has {_quoted(raw)}, a name with characters that cannot be shown", "letters, digits, punctuation and spaces")
    return PurePosixPath(*parts)


def _is_litter(path: PurePosixPath) -> bool:
    return path.parts[0] == "__MACOSX" or path.name in _LITTER or path.name.startswith("._")


def _quoted(value: object) -> str:
    """A name in a message: shown as Python writes it, so that no character of it acts, and no longer than it takes to find it."""
    return repr(_shortened(str(value)))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]


def _reason(error: BaseException) -> str:
    return _shortened(next(iter(str(error).splitlines()), "") or type(error).__name__)


def _refuse(name: str, what: str, allowed: str) -> NoReturn:
    raise DataError(f"{name!r} {what}: allowed is {allowed}")
