"""The archive of a `torch.export` program, read without running anything that is in it.

`torch.export.load` is for one's own files only: it unpickles example inputs, constants and weights, evaluates texts of the file as
Python (sizes, by sympy, and guards), loads compiled libraries, and takes any name below `torch` for an operation. Nothing of that is
needed: a program's graph is JSON, and its tensors are raw bytes. Only these are read here, with a limit on each; the pickled
members, which every program has, are never opened. What the graph asks for is checked by core.models.program.
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

from core.errors import ModelError, quoted

MEGABYTE = 1 << 20
SPEC_FILE = "spec.json"  # the extra file that says what the network is, as core.models.program.save_program writes it
GRAPH_BYTES = 64 * MEGABYTE  # of JSON; a ResNet-50 needs 1 MB
SPEC_BYTES = 16 * MEGABYTE  # as the header of a checkpoint
INDEX_BYTES = 4 * MEGABYTE  # of the zip's directory, which is read at once
NAME_LENGTH = 500
SCHEMA = 8  # major version of torch's format
SHARED = 2  # times that the tensors may be as large as the file: two names of one weight
HOW_TO_EXPORT = (
    "torch.export.save(torch.export.export(network.eval(), (torch.zeros(2, 3, 32, 32),), "
    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), 'network.pt2') with the network's own image size"
)
_ALLOWED = f"a program as torch 2.15 writes it by {HOW_TO_EXPORT}"
# names become attributes and parts of generated code
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_STRIDED = 7
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64,
    12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class ProgramArchive:
    """What a program's archive holds.

    graph: its JSON, which nobody has checked. tensors: by the name that the module gave them, in its order. parameters: which of them
    are parameters.
    """

    graph: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    parameters: frozenset[str]


def read_archive(path: Path) -> ProgramArchive:
    """Graph and tensors of a .pt2 file. Raises ModelError, naming the file, for anything but a program with plain tensors."""
    with _opened(path) as members:
        models = [name for name in members.names if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            refuse(path, f"holds {len(models)} programs", "one")
        model = models[0].removeprefix("models/").removesuffix(".json")
        if members.read("byteorder", 16).strip() != b"little":
            refuse(path, "has numbers in another byte order", "little endian")
        program = members.json(models[0])
        version = program["schema_version"]["major"]
        if version != SCHEMA:
            refuse(path, f"is written in version {quoted(version)} of torch's format", f"version {SCHEMA}")
        tensors: dict[str, Tensor] = {}
        parameters: set[str] = set()
        storages: dict[str, Tensor] = {}
        total = 0
        for folder, kind in (("data/weights", "weights"), ("data/constants", "constants")):
            for name, meta in members.json(f"{folder}/{model}_{kind}_config.json")["config"].items():
                if name in tensors or not is_name(name):
                    refuse(path, f"has a tensor {quoted(name)}", "names of attributes, each once")
                if meta["use_pickle"] is not False or meta["tensor_meta"] is None:
                    refuse(path, f"has {name} as a pickle, which could run a program of its own", "plain tensors")
                member = f"{folder}/{meta['path_name']}"
                if member not in storages:
                    storages[member] = members.storage(member)
                tensors[name] = _tensor(storages[member], meta["tensor_meta"], name, path)
                total += tensors[name].nbytes
                if total > SHARED * members.size:
                    refuse(path, f"has tensors of {total:,} bytes and more", f"{SHARED} times as many as the file has")
                if meta["is_param"] is True:
                    parameters.add(name)
        return ProgramArchive(program, tensors, frozenset(parameters))


def read_spec(path: Path) -> str | None:
    """The text of SPEC_FILE in a .pt2 file, None where there is none. Raises ModelError for what is no such file."""
    with _opened(path) as members:
        name = f"extra/{SPEC_FILE}"
        return members.read(name, SPEC_BYTES).decode() if name in members.names else None


def is_name(value: object) -> bool:
    """Whether a name from the file is one of an attribute, as `layer1.0.weight`."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH and _NAME.fullmatch(value) is not None


def refuse(path: Path, what: str, allowed: str) -> NoReturn:
    raise ModelError(f"{path} {what}: allowed is {allowed}")


@contextmanager
def _opened(path: Path) -> Iterator["_Members"]:
    if not os.path.isfile(path):
        refuse(path, "does not exist", "a .pt2 program")
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            yield _Members(archive, path)
    except (
        zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError,
        RecursionError, NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        reason = quoted(next(iter(str(error).splitlines()), "") or type(error).__name__)
        raise ModelError(f"{path} cannot be read as a program ({reason}): allowed is {_ALLOWED}") from error


class _Bounded(io.FileIO):
    """A file of which no more than INDEX_BYTES are read at once, as zipfile reads the directory in one piece."""

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        if size is None or size < 0:  # the rest of it
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > INDEX_BYTES:
            raise zipfile.BadZipFile(f"a directory of more than {INDEX_BYTES:,} bytes")
        return super().read(size)


class _Members:
    """The members of the archive by their names below its one folder. They are stored as they are, so that none is larger than the file."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self.size = os.path.getsize(path)
        self.names: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in archive.infolist():
            _, _, name = info.filename.partition("/")
            if name in self.names:
                refuse(path, f"has {quoted(name)} twice", "each name once")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 0x1:
                refuse(path, f"has {quoted(name)} packed or encrypted", "what torch.export.save writes, which is neither")
            total += info.file_size
            if total > self.size:
                refuse(path, f"says that it unpacks to {total:,} bytes and more", f"its own {self.size:,}")
            self.names[name] = info

    def read(self, name: str, limit: int) -> bytearray:
        if name not in self.names:
            refuse(self._path, f"has no {quoted(name)}", _ALLOWED)
        info = self.names[name]
        if info.file_size > limit:
            refuse(self._path, f"has {quoted(name)} of {info.file_size:,} bytes", f"at most {limit:,}")
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
    """A tensor that looks into the bytes that the file has for it. Raises ModelError when it would be larger than they are."""
    if meta["dtype"] not in _DTYPES or meta["layout"] != _STRIDED:
        refuse(path, f"has {name} of another type", f"tensors of {', '.join(str(one).removeprefix('torch.') for one in _DTYPES.values())}")
    dtype = _DTYPES[meta["dtype"]]
    shape, stride = ([_size(one, name, path) for one in meta[key]] for key in ("sizes", "strides"))
    start = _size(meta["storage_offset"], name, path)
    if math.prod(shape) * dtype.itemsize > len(storage):
        refuse(path, f"has {len(storage):,} bytes for {name}, which is {quoted(tuple(shape))}", "all of its numbers")
    if len(storage) == 0:
        return torch.zeros(shape, dtype=dtype)
    # as_strided raises for what lies outside
    return storage[: len(storage) // dtype.itemsize * dtype.itemsize].view(dtype).as_strided(shape, stride, start)


def _size(value: Mapping[str, Any], name: str, path: Path) -> int:
    size = value["as_int"]
    if type(size) is not int or not 0 <= size < 1 << 40:
        refuse(path, f"has {name} with a size of {quoted(size)}", "whole numbers, 0 or more")
    return size
