"""Reads untrusted files of weights without unpickling, unwraps them, and checks them against the layout of a network.

Accepts safetensors, and files of torch.save, which are opened with `weights_only=True`: a file that would execute code is refused.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import ModelError, first_line, one_line, quoted
from core.files import JSON_BYTES, check_regular

HEADER_BYTES = JSON_BYTES  # the largest networks of pytorchcv need 1 MB for tensor names, and as much for class names
NAME_LENGTH = 200  # characters of a tensor or class name
_ZIP = b"PK\x03\x04"  # torch.save since 1.6
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))  # torch.save before
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_WRAPPINGS = 4  # levels of nesting
_PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel; of Lightning and others; of torch.compile
ALLOWED = "a .safetensors file, or a state dict written by torch.save(network.state_dict(), file)"


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes may be safetensors. start: its first nine bytes, the header's length and the start of its JSON."""
    return len(start) == 9 and int.from_bytes(start[:8], "little") < size and start[8:] == b"{"


def is_weights(start: bytes, size: int) -> bool:
    """Whether a file may be safetensors or a file of torch.save. start: its first nine bytes; size: in bytes."""
    return is_safetensors(start, size) or start.startswith((_ZIP, *_PICKLES))


def read_weights(path: Path, name: str = "") -> dict[str, Tensor]:
    """Name -> tensor of a file of weights, on the CPU.

    A state dict is also found inside {"state_dict": ...}, {"model": ...} or {"model_state_dict": ...}, up to four levels deep.
    name: used instead of the path in error messages. Raises ModelError for a file that cannot be read, contains anything but tensors, or
    would have to be unpickled.
    """
    name = name or str(path)
    try:
        check_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"{name} cannot be read ({error.strerror or error}); it must be {ALLOWED}") from error
    if not is_weights(start, size):
        raise ModelError(f"{name} must be {ALLOWED}, got a file that begins with {start!r}")
    try:
        if is_safetensors(start, size):
            value: Any = _read_safetensors(path, start)
        else:
            if start.startswith(_ZIP):
                _check_archive(path, size)
            with path.open("rb") as file:  # for a path, torch would trust the suffix
                value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise UnpicklingError, RuntimeError, KeyError, EOFError and others
        raise ModelError(f"{name} cannot be read as weights ({reason_of(error)}); it must be {ALLOWED}") from error
    return _tensors(value, name)


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_BYTES:
        raise ValueError(f"its header must have at most {HEADER_BYTES:,} bytes, got {length:,}")
    return load_file(path)


def _check_archive(path: Path, size: int) -> None:
    """Raises ValueError for a compressed archive. torch.save never compresses, so reading one of its files cannot take more memory."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(member.file_size for member in members) > size:
        raise ValueError("it is compressed")
    if any(member.file_size > HEADER_BYTES for member in members if member.filename.endswith(".pkl")):
        raise ValueError(f"the description of its tensors must have at most {HEADER_BYTES:,} bytes")


def reason_of(error: Exception) -> str:
    """The message of a reader's error in one line, without torch's advice to load the file unsafely."""
    text = first_line(error)
    found = str(error).partition("WeightsUnpickler error: ")[2]
    return one_line(next(iter(found.splitlines()), "")[:NAME_LENGTH] or text[:NAME_LENGTH])


def _tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The state dict in the content of a file, unwrapped. Raises ModelError for anything but plain tensors under names."""
    for _ in range(_WRAPPINGS):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value, Mapping) and isinstance(value.get(key), Mapping)), None)
        if inner is None:
            break
        value = inner
    if not isinstance(value, Mapping) or not value:
        raise ModelError(f"{name} must be {ALLOWED}, got {quoted(value) if isinstance(value, Mapping) else type(value).__name__}")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError(f"{name} must contain only plain tensors under names, got {quoted(tensor)} under {quoted(key)}")
    return dict(value)


def without_prefixes(weights: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same tensors without prefixes of training frameworks, such as "module."; unchanged if any name is already expected."""
    result = dict(weights)
    while not expected.keys() & result.keys():
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in result)), None)
        if prefix is None:
            break
        result = {key[len(prefix) :]: value for key, value in result.items()}
    return result


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
