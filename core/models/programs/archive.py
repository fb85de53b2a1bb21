"""Reads the archive of a `torch.export` program without executing anything in it.

`torch.export.load` is only safe for trusted files: it unpickles example inputs, constants and weights, evaluates strings as Python
(sizes, through sympy, and guards), loads compiled libraries, and accepts any name in `torch` as an operation. None of this is needed,
because a program's graph is JSON and its tensors are raw bytes. Only these are read, with a limit on each; the pickled members, which
every program has, are never opened. The operations of the graph are checked by core.models.programs.translation.
"""

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from core.errors import ModelError, first_line, quoted
from core.files import JSON_BYTES, check_regular

MEGABYTE = 1 << 20
SPEC_FILE = "spec.json"  # the extra file with the ModelSpec, written by core.models.programs.export.save_program
GRAPH_BYTES = 64 * MEGABYTE  # of JSON; a ResNet-50 needs 1 MB
SPEC_BYTES = JSON_BYTES  # same limit as for the header of a checkpoint
INDEX_BYTES = 4 * MEGABYTE  # of the zip directory, which is read in one piece
NAME_LENGTH = 500
SCHEMA = 8  # major version of torch's file format
SHARED = 2  # limit on tensor bytes as a multiple of the file size, because a weight may have two names
HOW_TO_EXPORT = (
    "torch.export.save(torch.export.export(network.eval(), (torch.zeros(2, 3, 32, 32),), "
    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), 'network.pt2') and the network's own image size"
)
_ALLOWED = f"a program written by torch 2.9 or newer with {HOW_TO_EXPORT}"
# names become attributes and appear in generated code
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_STRIDED = 7
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64,
    12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class ProgramArchive:
    """Content of a program's archive.

    graph: its JSON, not yet checked. tensors: by their name in the exported module, in its order. parameters: names of the tensors that
    are parameters.
    """

    graph: Mapping[str, Any]
    tensors: dict[str, Tensor]
    parameters: frozenset[str]


def read_archive(path: Path) -> ProgramArchive:
    """Graph and tensors of a .pt2 file. Raises ModelError, naming the file, unless it is a program with plain tensors."""
    with _opened(path) as members:
        models = [name for name in members.names if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            refuse(path, f"number of programs must be 1, got {len(models)}")
        model = models[0].removeprefix("models/").removesuffix(".json")
        if members.read("byteorder", 16).strip() != b"little":
            refuse(path, "byte order must be little-endian")
        program = members.json(models[0])
        version = program["schema_version"]["major"]
        if version != SCHEMA:
            refuse(path, f"version of torch's file format must be {SCHEMA}, got {quoted(version)}")
        tensors: dict[str, Tensor] = {}
        parameters: set[str] = set()
        storages: dict[str, Tensor] = {}
        total = 0
        for folder, kind in (("data/weights", "weights"), ("data/constants", "constants")):
            for name, meta in members.json(f"{folder}/{model}_{kind}_config.json")["config"].items():
                if name in tensors or not is_name(name):
                    refuse(path, f"tensor names must be unique names of attributes, got {quoted(name)}")
                if meta["use_pickle"] is not False or meta["tensor_meta"] is None:
                    refuse(path, f"{name} must be a plain tensor, got a pickle, which could execute code")
                member = f"{folder}/{meta['path_name']}"
                if member not in storages:
                    storages[member] = members.storage(member)
                tensors[name] = _tensor(storages[member], meta["tensor_meta"], name, path)
                total += tensors[name].nbytes
                if total > SHARED * members.size:
                    refuse(path, f"tensors must have at most {SHARED} times as many bytes as the file, got at least {total:,}")
                if meta["is_param"] is True:
                    parameters.add(name)
        return ProgramArchive(program, tensors, frozenset(parameters))


def read_spec(path: Path) -> str | None:
    """Text of SPEC_FILE in a .pt2 file, None if it is missing. Raises ModelError if the file is not a program."""
    with _opened(path) as members:
        name = f"extra/{SPEC_FILE}"
        return members.read(name, SPEC_BYTES).decode() if name in members.names else None


def is_name(value: object) -> bool:
    """Whether a name from the file is that of an attribute, such as `layer1.0.weight`."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH and _NAME.fullmatch(value) is not None


def refuse(path: Path, problem: str) -> NoReturn:
    """Raises ModelError for a file. problem: "X must be Y, got Z"."""
    raise ModelError(f"{path}: {problem}")


@contextmanager
def _opened(path: Path) -> Iterator["_Members"]:
    try:
        check_regular(path)
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror}); the path must be that of a .pt2 program")
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            yield _Members(archive, path)
    except (
        zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError,
        RecursionError, NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        reason = quoted(first_line(error))
        raise ModelError(f"{path}: cannot be read as a program ({reason}); it must be {_ALLOWED}") from error


class _Bounded(io.FileIO):
    """A file that refuses to read more than INDEX_BYTES at once, because zipfile reads the directory in one piece."""

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        if size is None or size < 0:  # the rest of the file
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > INDEX_BYTES:
            raise zipfile.BadZipFile(f"a directory of more than {INDEX_BYTES:,} bytes")
        return super().read(size)


class _Members:
    """Members of the archive by their names below its top folder. They must be uncompressed, so none is larger than the file."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self.size = os.path.getsize(path)
        self.names: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in archive.infolist():
            _, _, name = info.filename.partition("/")
            if name in self.names:
                refuse(path, f"member names must be unique, got {quoted(name)} twice")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 0x1:
                refuse(path, f"members must be neither compressed nor encrypted, got {quoted(name)}; torch.export.save does neither")
            total += info.file_size
            if total > self.size:
                refuse(path, f"size of all members must be at most {self.size:,} bytes, that of the file, got at least {total:,}")
            self.names[name] = info

    def read(self, name: str, limit: int) -> bytearray:
        if name not in self.names:
            refuse(self._path, f"{quoted(name)} is missing; the file must be {_ALLOWED}")
        info = self.names[name]
        if info.file_size > limit:
            refuse(self._path, f"size of {quoted(name)} must be at most {limit:,} bytes, got {info.file_size:,}")
        content = bytearray()
        with self._archive.open(info) as file:
            while chunk := file.read(MEGABYTE):
                content += chunk
        return content

    def json(self, name: str) -> Any:
        return json.loads(self.read(name, GRAPH_BYTES))

    def storage(self, name: str) -> Tensor:
        content = self.read(name, self.size)
        return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _tensor(storage: Tensor, meta: Mapping[str, Any], name: str, path: Path) -> Tensor:
    """A tensor as a view of its bytes in the file. Raises ModelError if it needs more bytes than there are."""
    if meta["dtype"] not in _DTYPES or meta["layout"] != _STRIDED:
        refuse(path, f"type of {name} must be one of {', '.join(str(one).removeprefix('torch.') for one in _DTYPES.values())}")
    dtype = _DTYPES[meta["dtype"]]
    shape, stride = ([_size(one, name, path) for one in meta[key]] for key in ("sizes", "strides"))
    start = _size(meta["storage_offset"], name, path)
    if math.prod(shape) * dtype.itemsize > len(storage):
        refuse(path, f"{name} of shape {quoted(tuple(shape))} must fit in its {len(storage):,} bytes of data")
    if len(storage) == 0:
        return torch.zeros(shape, dtype=dtype)
    # as_strided raises an error if the tensor extends beyond the storage
    return storage[: len(storage) // dtype.itemsize * dtype.itemsize].view(dtype).as_strided(shape, stride, start)


def _size(value: Mapping[str, Any], name: str, path: Path) -> int:
    size = value["as_int"]
    if type(size) is not int or not 0 <= size < 1 << 40:
        refuse(path, f"sizes of {name} must be non-negative integers, got {quoted(size)}")
    return size
