"""Reads untrusted files of weights without unpickling, and checks weights against the layout of a network.

Accepts safetensors, and files of torch.save, which are opened with `weights_only=True`: a file that would execute code is refused. Beside
tensors, such a file may have values of types that only hold data (_harmless_types), as training programs store their settings.
"""

import argparse
import datetime
import pathlib
import pickle
import pickletools
import re
import types
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import CoreError, ModelError, first_line, one_line, quoted
from core.files import JSON_BYTES, check_regular
from core.models.other_formats import (
    ALLOWED,
    KERAS,
    TAR,
    TAR_MARK,
    from_pickle,
    from_plain_pickle,
    from_torchscript,
    other_archive,
    other_format,
    unknown_format,
)
from core.models.shards import shards_of

HEADER_BYTES = JSON_BYTES  # the largest networks of pytorchcv need 1 MB for tensor names, and as much for class names
NAME_LENGTH = 200  # characters of a tensor or class name
_ZIP = b"PK\x03\x04"  # torch.save since 1.6
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))  # torch.save before
_IN_PLAIN_PICKLES = "torch.storage._load_from_bytes"  # with which a tensor is pickled, unless torch.save does it
_BEFORE = 3  # pickles before that of the content, in a file without an archive
_FIRST = 8  # operations of a pickle, enough to see what its object is
_PASSED = ("PROTO", "FRAME", "MARK", "BINUNICODE", "BINPUT")
_OF_UNPICKLER = "WeightsUnpickler error:"
_TAR_MARK_AT = 257  # byte
_QUANTIZED = re.compile(r"\.integer_weight\.|\.weight_quantizer\.|activation_quantizer_\d|\.weight_range\.")
_KERAS_MEMBER = "model.weights.h5"


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes may be safetensors. start: its first nine bytes, the header's length and the start of its JSON."""
    return len(start) == 9 and int.from_bytes(start[:8], "little") < size and start[8:] == b"{"


def is_weights(start: bytes, size: int) -> bool:
    """Whether a file may be safetensors or a file of torch.save. start: its first nine bytes; size: in bytes."""
    return is_safetensors(start, size) or start.startswith((_ZIP, *_PICKLES))


def read_content(path: Path, name: str = "") -> Any:
    """What a file of weights contains, its tensors on the CPU: usually a mapping with a state dict somewhere (core.models.state_dicts).

    name: used instead of the path in error messages. Raises ModelError for a file that cannot be read or would have to be unpickled.
    """
    name = name or str(path)
    try:
        check_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(_TAR_MARK_AT)
            is_tar = file.read(len(TAR_MARK)) == TAR_MARK
    except OSError as error:
        raise ModelError(f"{name} cannot be read ({error.strerror or error}); it must be {ALLOWED}") from error
    if is_tar and not is_weights(start, size):
        raise ModelError(f"{name} must be {ALLOWED}, got {TAR}")
    if not is_weights(start, size):
        what, lines = other_format(start, name) or unknown_format(start)
        raise ModelError(f"{name} must be {ALLOWED}, got {what}", lines)
    try:
        if is_safetensors(start, size):
            value: Any = _read_safetensors(path, start)
        else:
            if start.startswith(_ZIP):
                _check_archive(path, size, name)
            # for a path, torch would trust the suffix
            with path.open("rb") as file, torch.serialization.safe_globals(_harmless_types()):
                value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise UnpicklingError, RuntimeError, KeyError, EOFError and others
        reason, lines = reason_of(error), error.paste if isinstance(error, CoreError) else ()
        if start.startswith(_PICKLES) and not _is_of_torch(path):
            if _blocked(error) in ("", _IN_PLAIN_PICKLES):
                reason, lines = "it is a pickle that torch.save did not write", from_plain_pickle(Path(name).name)
        elif not lines:
            lines = _lines_for_pickle(error, path, name)
        raise ModelError(f"{name} cannot be read as weights ({reason}); it must be {ALLOWED}", lines) from error
    return value


def _is_of_torch(path: Path) -> bool:
    """Whether a file without an archive begins as torch.save began it before version 1.6."""
    with path.open("rb") as file:
        return pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:-1] in file.read(64)


def read_shards(index: Path, name: str = "") -> dict[str, Any]:
    """`read_content` of all shards that an index names, as one mapping. Also raises ModelError for a tensor that its shard lacks."""
    name = name or str(index)
    tensors: dict[str, Any] = {}
    for shard, names in shards_of(index, name).items():
        content = read_content(shard, str(Path(name).with_name(shard.name)))
        missing = [key for key in names if not isinstance(content, Mapping) or key not in content]
        if missing:
            raise ModelError(f"{shard.name} must have the tensors that {name} names, missing: {first_names(missing)}")
        tensors |= {key: content[key] for key in names}
    return tensors


def _lines_for_pickle(error: Exception, path: Path, name: str) -> tuple[str, ...]:
    """Lines to paste for a file that was refused because of an object in it; none for other errors."""
    blocked = _blocked(error)
    return from_pickle(Path(name).name, _first_class(path) == blocked) if blocked else ()


def _first_class(path: Path) -> str:
    """The class that the pickle in a file of torch.save begins with, that of the whole object; "" if it begins with something else."""
    with path.open("rb") as file:
        if file.read(4) == _ZIP:
            with zipfile.ZipFile(path) as archive:
                member = next(member for member in archive.namelist() if member.endswith("/data.pkl"))
                operations = [*islice(pickletools.genops(archive.read(member)), _FIRST)]
        else:
            file.seek(0)
            for _ in range(_BEFORE):
                deque(pickletools.genops(file), maxlen=0)
            operations = [*islice(pickletools.genops(file), _FIRST)]
    # without an archive, ("module", the class, ...) comes first
    first = next((argument for operation, argument, _ in operations if operation.name not in _PASSED), None)
    return first.replace(" ", ".") if isinstance(first, str) else ""


class _Ignored:
    """In place of objects that nothing here needs, and whose own code should not see an untrusted file, such as NumPy's."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _harmless_types() -> list[Any]:
    """Types of values beside the tensors, for `weights_only`: creating them executes nothing but a constructor that only stores.

    Paths become pure ones, which exist on every system and touch no file. Dictionaries and lists of other kinds become plain ones,
    because torch fills no others; arrays and objects of the libraries whose programs save them are ignored.
    """
    named: list[tuple[Any, str]] = [(_plain_dict, "collections.defaultdict"), (_plain_list, "collections.deque")]
    for module in ("pathlib", "pathlib._local"):
        named += [(pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath", "Path", "PurePath")]
        named += [(pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    for package in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        named += [(dict, f"{package}.utilities.{module}.AttributeDict") for module in ("parsing", "data")]
    ignored = ["numpy.ndarray", "numpy.dtype", "mmengine.logging.history_buffer.HistoryBuffer"]
    ignored += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
    return [
        *named, *((_Ignored, name) for name in ignored), _Ignored,
        argparse.Namespace, types.SimpleNamespace, list, dict, int, float, str, bool, frozenset, slice, range,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
    ]  # fmt: skip


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _plain_list(*_: Any) -> list[Any]:
    return []


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_BYTES:
        raise ValueError(f"its header must have at most {HEADER_BYTES:,} bytes, got {length:,}")
    return load_file(path)


def _check_archive(path: Path, size: int, name: str) -> None:
    """Raises ValueError for a compressed archive, and ModelError for one of another program with lines to paste.

    torch.save never compresses, so reading one of its files cannot take more memory.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise ModelError("it is a TorchScript program", from_torchscript(Path(name).name))
    if any(member.filename == _KERAS_MEMBER for member in members):
        raise ModelError(f"it is {KERAS[0]}", KERAS[1])
    if other := other_archive([member.filename for member in members]):
        raise ModelError(other)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(member.file_size for member in members) > size:
        raise ValueError("it is compressed")
    if any(member.file_size > HEADER_BYTES for member in members if member.filename.endswith(".pkl")):
        raise ValueError(f"the description of its tensors must have at most {HEADER_BYTES:,} bytes; NumPy arrays must be saved as tensors")


def reason_of(error: Exception) -> str:
    """The message of a reader's error in one line, without torch's advice to load the file unsafely."""
    if blocked := _blocked(error):
        return f"it contains an object of {blocked[:NAME_LENGTH]}, which could execute code"
    if isinstance(error, zipfile.BadZipFile) or "file not fully covered" in str(error):
        return "its end is missing: copy or download it again"
    found = str(error).partition(_OF_UNPICKLER)[2]
    return one_line(first_line(ValueError(found.strip()) if found.strip() else error)[:NAME_LENGTH])


def _blocked(error: Exception) -> str:
    """The class that torch refused to unpickle; "" for other errors."""
    blocked = re.search(r"GLOBAL ([\w.<>]+)|class ([\w.<>]+)", str(error).partition(_OF_UNPICKLER)[2])
    return (blocked[1] or blocked[2]) if blocked else ""


def check_not_quantized(names: Iterable[str], source: str) -> None:
    """Raises ModelError if these names of tensors are those of a quantized network that was exported by this program."""
    if any(_QUANTIZED.search(name) for name in names):
        raise ModelError(f"{source} must be a full-precision network, got a quantized network made by this program")


def check_layout(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, tuple[int, ...]], name: str, architecture: str) -> None:
    """Raises ModelError that lists the first missing and unexpected tensors, or else the first shapes that differ."""
    missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unexpected:
        raise ModelError(
            f"tensors of {name} must be those of {architecture}; missing: {first_names(missing)}; unexpected: {first_names(unexpected)}"
        )
    different = [key for key in sorted(expected) if tuple(shapes[key]) != expected[key]]
    if different:
        listed = "; ".join(f"{key} must be {expected[key]}, got {quoted(tuple(shapes[key]))}" for key in different[:3])
        raise ModelError(f"shapes of {name} must be those of {architecture}: {listed}{' ...' if len(different) > 3 else ''}")


def notes_of_conversion(types: Iterable[torch.dtype]) -> list[str]:
    """A note for the user on those of the types that are converted to float32; empty if there are none."""
    names = sorted({str(one).removeprefix("torch.") for one in types if one.is_floating_point and one != torch.float32})
    return [f"converted {' and '.join(names)} to float32"] if names else []


def first_names(names: Sequence[str]) -> str:
    """The first three names from an untrusted file, for an error message."""
    short = [name if name.isprintable() and len(name) <= NAME_LENGTH else repr(name[:50]) for name in names[:3]]
    return (", ".join(short) or "none") + (" ..." if len(names) > 3 else "")


@torch.no_grad()
def fill(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights with the same layout into a network.

    load_state_dict would not do: in MNASNet it depends on a version number that only a pickled state dict has.
    """
    for key, value in network.state_dict().items():
        value.copy_(weights[key])
