"""Weights that others have written: read without unpickling, unwrapped, and held against the layout of a network.

safetensors, or what torch.save writes, opened with `weights_only=True`: a file that would run code is refused, and never runs it.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import ModelError, first_line, one_line, quoted

HEADER_BYTES = 16 << 20  # the largest networks of pytorchcv need 1 MB, and names of classes as much again
NAME_LENGTH = 200  # of a tensor or a class in a message
_ZIP = b"PK\x03\x04"  # torch.save since 1.6
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))  # torch.save before
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_WRAPPINGS = 4  # of one in another
_PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, of Lightning and others, of torch.compile
ALLOWED = "a .safetensors file, or a state dict that was written by torch.save(network.state_dict(), file)"


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with these nine can be safetensors: the length of a JSON header, and the header."""
    return len(start) == 9 and int.from_bytes(start[:8], "little") < size and start[8:] == b"{"


def is_weights(start: bytes, size: int) -> bool:
    """Whether it can be safetensors or a file of torch.save."""
    return is_safetensors(start, size) or start.startswith((_ZIP, *_PICKLES))


def read_weights(path: Path, name: str = "") -> dict[str, Tensor]:
    """Name -> tensor of a file of weights on the CPU, as they are called there, but for what they are wrapped in.

    A state dict within {"state_dict": ...}, {"model": ...} or {"model_state_dict": ...} is found, also one in another.
    name: what the file is called in messages; its path, where it is empty. Raises ModelError for a file that cannot be read, holds
    anything but tensors, or would have to be unpickled.
    """
    name = name or str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"{name} cannot be read ({error.strerror or error}): allowed is {ALLOWED}") from error
    if not is_weights(start, size):
        raise ModelError(f"{name} begins with {start!r}: allowed is {ALLOWED}")
    try:
        if is_safetensors(start, size):
            value: Any = _read_safetensors(path, start)
        else:
            if start.startswith(_ZIP):
                _check_archive(path, size)
            with path.open("rb") as file:  # of a path, torch believes the ending
                value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever they hit on: UnpicklingError, RuntimeError, KeyError, EOFError and more
        raise ModelError(f"{name} cannot be read as weights ({reason_of(error)}): allowed is {ALLOWED}") from error
    return _tensors(value, name)


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, at most {HEADER_BYTES:,} are read")
    return load_file(path)


def _check_archive(path: Path, size: int) -> None:
    """torch.save compresses nothing: what would grow when it is read was not written by it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(member.file_size for member in members) > size:
        raise ValueError("it is compressed")
    if any(member.file_size > HEADER_BYTES for member in members if member.filename.endswith(".pkl")):
        raise ValueError(f"it says more than {HEADER_BYTES:,} bytes about its tensors")


def reason_of(error: Exception) -> str:
    """What an error of a reader says, in one line, without torch's advice to open such files all the same."""
    text = first_line(error)
    found = str(error).partition("WeightsUnpickler error: ")[2]
    return one_line(next(iter(found.splitlines()), "")[:NAME_LENGTH] or text[:NAME_LENGTH])


def _tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    for _ in range(_WRAPPINGS):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value, Mapping) and isinstance(value.get(key), Mapping)), None)
        if inner is None:
            break
        value = inner
    if not isinstance(value, Mapping) or not value:
        raise ModelError(f"{name} holds {quoted(value) if isinstance(value, Mapping) else type(value).__name__}: allowed is {ALLOWED}")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError(f"{name} holds {quoted(tensor)} under {quoted(key)}: allowed are plain tensors under names only")
    return dict(value)


def without_prefixes(weights: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same tensors without what training has put before each of their names, as long as none of them is one of the network's."""
    result = dict(weights)
    while not expected.keys() & result.keys():
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in result)), None)
        if prefix is None:
            break
        result = {key[len(prefix) :]: value for key, value in result.items()}
    return result


def check_layout(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, tuple[int, ...]], name: str, architecture: str) -> None:
    """Raises ModelError that lists the first names which only one of the two has, or else the first shapes that differ."""
    missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unexpected:
        raise ModelError(
            f"{name} does not fit {architecture}, whose own tensors are allowed: "
            f"missing {first_names(missing)}, unexpected {first_names(unexpected)}"
        )
    different = [key for key in sorted(expected) if tuple(shapes[key]) != expected[key]]
    if different:
        listed = "; ".join(f"{key} is {quoted(tuple(shapes[key]))}, allowed is {expected[key]}" for key in different[:3])
        raise ModelError(f"{name} does not fit {architecture}: {listed}{' ...' if len(different) > 3 else ''}")


def first_names(names: Sequence[str]) -> str:
    """The first three, of whatever somebody has written into a file."""
    short = [name if name.isprintable() and len(name) <= NAME_LENGTH else repr(name[:50]) for name in names[:3]]
    return (", ".join(short) or "nothing") + (" ..." if len(names) > 3 else "")


@torch.no_grad()
def fill(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights of the same layout into a network.

    Unlike load_state_dict, which in some networks depends on a version number that only a pickled state dict has (MNASNet).
    """
    for key, value in network.state_dict().items():
        value.copy_(weights[key])
