"""Reads untrusted zip files: every name, type and size is checked before anything is unpacked.

What a zip file states about itself (sizes, counts) is checked first, and the unpacked bytes are counted again, because both can lie.
"""

import errno
import io
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from core.errors import DataError, first_line
from core.files import check_regular

MEGABYTE = 1 << 20
UNPACKED_BYTES = 2048 * MEGABYTE  # of all files, and of all pixels: an image set is held in memory completely when it is used
MEMBERS = 60_000  # CIFAR-10 and its folders; a zip file with more than 65,535 needs another format (zip64)
RATIO = 200  # images hardly compress: black ones in an uncompressed format reach 150, a bomb 1,000
SMALL_BYTES = 64 * 1024  # the ratio of smaller files does not matter
NAME_LENGTH = 200  # characters of a file or folder name; file systems accept 255 bytes
PATH_LENGTH = 1000  # characters
INDEX_BYTES = 12 * MEGABYTE  # of the directory of the zip file, which is read in one piece: 200 for each of MEMBERS
_CHUNK = MEGABYTE


@dataclass(frozen=True)
class Member:
    """A file in a zip file. size, packed: uncompressed and compressed size in bytes."""

    path: PurePosixPath
    size: int
    packed: int
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Contents:
    """Files and folders of a zip file."""

    files: list[Member]
    folders: list[PurePosixPath]


@contextmanager
def open_zip(path: Path, unpacked: int, allowed: str) -> Iterator[dict[str, Member]]:
    """Yields the files of a zip file by name, after the checks of `zip_contents`.

    unpacked: limit on the sum of uncompressed sizes in bytes. allowed: description of valid files for error messages.
    Raises DataError, also while the block reads, if the file is not a valid zip file or exceeds the limits.
    """
    name = str(path)
    with ExitStack() as stack:
        try:
            check_regular(path)
            file = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise DataError(f"{name!r} cannot be read ({error.strerror}); it must be {allowed}") from error
        with readable(name, allowed), zip_contents(file, name, unpacked, allowed) as contents:
            yield {str(member.path): member for member in contents.files}


@contextmanager
def zip_contents(file: IO[bytes], name: str, unpacked: int, allowed: str) -> Iterator[Contents]:
    """Yields the files and folders of a zip file, all checked by name, type and size.

    file: seekable. name: of the file in error messages. unpacked, allowed: see `open_zip`. Raises DataError.
    """
    size = file.seek(0, io.SEEK_END)
    with ExitStack() as stack:
        with readable(name, allowed):
            archive = stack.enter_context(zipfile.ZipFile(_Bounded(file, size, name)))
            contents = _checked(_members(archive, name), size, name, unpacked)
        yield contents


def read_member(member: Member, limit: int, name: str, allowed: str) -> Iterator[bytes]:
    """Yields the bytes of a file in pieces. Raises DataError if there are more than `limit`, or not as many as declared."""
    if member.size > limit:
        refuse(name, f"size of {quoted_name(member.path)} must be at most {limit:,} bytes, got {member.size:,}")
    count = 0
    with readable(name, allowed), member.open() as file:
        while chunk := file.read(min(_CHUNK, member.size + 1 - count)):
            count += len(chunk)
            if count > member.size:
                break
            yield chunk
    if count != member.size:
        refuse(name, f"{quoted_name(member.path)} must have its declared size of {member.size:,} bytes, but the file is damaged")


@contextmanager
def readable(name: str, allowed: str) -> Iterator[None]:
    """Turns the errors that zipfile raises for a damaged file into a DataError."""
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, KeyError, IndexError, OverflowError, RuntimeError,
        NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the disk; a damaged file only causes seeks to negative positions
        raise DataError(f"{name!r} cannot be read ({reason_of(error)}); it must be {allowed}") from error


class _Bounded(io.RawIOBase):
    """A file that refuses to read more than INDEX_BYTES at once, because zipfile reads the directory in one piece."""

    def __init__(self, file: IO[bytes], size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = max(0, self._size - self._file.tell())
        if size > INDEX_BYTES:
            refuse(self._name, f"directory of the zip file must have at most {INDEX_BYTES:,} bytes, got {size:,}")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _members(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[str, Member | None]]:
    """Name and file, or name and None for a folder."""
    for info in archive.infolist():
        raw = info.orig_filename  # .filename is cut at a NUL character
        kind = info.external_attr >> 28 if info.create_system in (3, 19) else 0  # the file type in the mode of Unix and macOS
        if kind not in (0, 0o04, 0o10):
            refuse(name, f"members must be files and folders, {quoted_name(raw)} is a link or a device")
        if info.flag_bits & 0x1:
            refuse(name, f"members must not be encrypted, {quoted_name(raw)} is")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # the memory that other methods need is chosen by the file
            refuse(name, f"compression method must be stored or deflated, got method {info.compress_type} for {quoted_name(raw)}")
        if info.is_dir():
            yield raw, None
        else:
            yield raw, Member(PurePosixPath(raw), info.file_size, info.compress_size, partial(archive.open, info))


def _checked(members: Iterator[tuple[str, Member | None]], packed: int, name: str, unpacked: int) -> Contents:
    contents = Contents([], [])
    seen: set[PurePosixPath] = set()
    total, most = 0, min(unpacked, max(SMALL_BYTES, RATIO * packed))
    for count, (raw, member) in enumerate(members, start=1):
        if count > MEMBERS:
            refuse(name, f"number of files and folders must be at most {MEMBERS:,}, got more")
        path = _safe_path(raw, name)
        if not path.parts:
            continue  # the top folder itself
        if path in seen:
            refuse(name, f"names must be unique, got {quoted_name(path)} twice")
        seen.add(path)
        if member is None:
            contents.folders.append(path)
            continue
        if member.size > max(SMALL_BYTES, RATIO * member.packed):
            refuse(name, f"compression ratio must be at most {RATIO}, as for images, that of {quoted_name(path)} is higher")
        total += member.size
        if total > most:
            limit = f"{unpacked:,} bytes and {RATIO} times the {packed:,} bytes of the zip file"
            refuse(name, f"unpacked size must be at most {limit}, got at least {total:,}")
        contents.files.append(Member(path, member.size, member.packed, member.open))
    return contents


def _safe_path(raw: str, name: str) -> PurePosixPath:
    """The path of a member inside the zip file. Raises DataError unless it is relative, only leads down, and is printable."""
    parts = raw.removeprefix("./").rstrip("/").split("/") if raw not in (".", "./") else []
    if raw.startswith("/") or "\\" in raw or raw[1:2] == ":":
        refuse(name, f"paths must be relative, {quoted_name(raw)} is an absolute or Windows path")
    if any(part in ("", ".", "..") for part in parts):
        refuse(name, f"paths must stay inside the zip file, {quoted_name(raw)} leads elsewhere")
    if len(raw) > PATH_LENGTH or any(len(part) > NAME_LENGTH or len(part.encode(errors="replace")) > 255 for part in parts):
        refuse(name, f"names must have at most {NAME_LENGTH} characters, {quoted_name(raw)} is too long")
    # control characters such as NUL, characters that change the writing direction, and bytes that are not valid text
    if any(unicodedata.category(character).startswith("C") for character in raw):
        refuse(name, f"names must be letters, digits, punctuation and spaces, {quoted_name(raw)} has non-printable characters")
    return PurePosixPath(*parts)


def quoted_name(value: object) -> str:
    """A name for an error message: its repr(), so that no character has an effect, shortened to about 80 characters."""
    return repr(_shortened(str(value)))


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its type, shortened to about 80 characters."""
    return _shortened(first_line(error))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]


def refuse(name: str, problem: str) -> NoReturn:
    """Raises DataError for a file. problem: "X must be Y, got Z"."""
    raise DataError(f"{name!r}: {problem}")
