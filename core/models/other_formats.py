"""Files that are no weights this program can read: what they are, and what to do instead. Imports no torch.

Where a few lines of the user's own Python help, they come with the error (CoreError.paste). They run where the file was made, by the
person who made it, which is where unpickling it is safe.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.models.shards import ABOUT_INDEX

ALLOWED = "a .safetensors file, or a state dict written by torch.save(network.state_dict(), file)"
EXPORT_LINES = (
    "import torch",
    "program = torch.export.export(network.eval(), (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))",
    'torch.export.save(program, "network.pt2")  # with the image size of the network instead of 224',
)
SAVE_LINES = ("import torch", 'torch.save(network.state_dict(), "weights.pth")')
PARAMETERS_ALONE = "must have the running statistics of BatchNorm layers, from which images are generated, got parameters alone"
WHOLE_LINES = (
    "import torch",
    "network.eval()  # the whole network, with its BatchNorm layers and its classifier",
    'torch.save(network.state_dict(), "weights.pth")  # not network.parameters(), which lacks the running statistics',
)
KERAS = (
    "a Keras file, whose layers this program cannot read: build the same network in PyTorch, copy the weights into it, and export that",
    EXPORT_LINES,
)
_ONNX = (
    "an ONNX file, in which the BatchNorm layers are usually folded into the convolutions, so that nothing is left to generate images "
    "from: export the network that it was made from",
    EXPORT_LINES,
)
_LITE = (
    "a TensorFlow Lite file, in which the BatchNorm layers are folded into the convolutions, so that nothing is left to generate images "
    "from: build the network that it was made from in PyTorch, copy its weights into it, and export that",
    EXPORT_LINES,
)
_PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"
}  # fmt: skip
# how a file begins, or the ending of its name -> what it is and what to do instead, and lines to paste
_BEGINNINGS = {
    **{start: (f"a file packed with {program}: unpack it first", ()) for start, program in _PACKED.items()},
    b"\x89HDF": KERAS,
    b"\x08": _ONNX,
    b"\x93NUMPY": ("an array of NumPy: save a dictionary of tensors, under the names in network.state_dict()", SAVE_LINES),
}
_ENDINGS = {".onnx": _ONNX, ".h5": KERAS, ".hdf5": KERAS, ".keras": KERAS, ".tflite": _LITE}
_SAFETENSORS = b"\0\0\0{"  # from the sixth byte on: the end of the header's length, whose first byte may be ONNX's, and its JSON
_POINTER = b"version h"  # ttps://git-lfs.github.com/spec/v1
_PAGES = (b"<!doctype", b"<html")
TAR_MARK = b"ustar"  # of a tar archive, from the 258th byte on
TAR = "a file packed with tar: unpack it first"
_LITE_MARK = b"TFL3"  # from the fifth byte on


def other_format(start: bytes, name: str) -> tuple[str, tuple[str, ...]] | None:
    """What a file is that has no weights, with what to do instead, and lines to paste; None if neither its start nor its name tells.

    start: its first nine bytes. name: with its ending.
    """
    if start[5:] == _SAFETENSORS:
        return None
    if start.lstrip().startswith(b"{"):
        return ABOUT_INDEX, ()
    if start[4:8] == _LITE_MARK:
        return _LITE
    by_start = next((other for begin, other in _BEGINNINGS.items() if start.startswith(begin)), None)
    return by_start or next((other for ending, other in _ENDINGS.items() if name.lower().endswith(ending)), None)


def unknown_format(start: bytes) -> tuple[str, tuple[str, ...]]:
    """As `other_format`, for a file that it does not know and that has no weights."""
    if not start:
        return "an empty file: copy or download it again", ()
    if start == _POINTER:
        return "a pointer of Git LFS instead of the file: fetch the file itself", ("git lfs pull",)
    if start.lower().startswith(_PAGES):
        return "a web page instead of the file: download it again", ()
    if start.isascii() and start.decode().isprintable():
        return f"a text file that begins with {start.decode()!r}: save the weights where the network was trained", SAVE_LINES
    return f"a file that begins with {start!r}", ()


def other_archive(members: Sequence[str]) -> str:
    """What a zip archive is that was not written by torch.save, and what to do instead; empty if it may be. members: names of its files."""
    if any(name.rpartition("/")[2] == "data.pkl" for name in members):
        return ""
    if members and all(name.endswith(".npy") for name in members):
        return "it is an archive of NumPy arrays: save them as a dictionary of tensors, under the names in network.state_dict()"
    return "it is a zip archive of other files: unpack it first"


def from_torchscript(name: str) -> tuple[str, ...]:
    """Lines that save the weights of a TorchScript program, which have the names that they had before."""
    return ("import torch", f"network = torch.jit.load({name!r})", 'torch.save(network.state_dict(), "weights.pth")')


def from_plain_pickle(name: str) -> tuple[str, ...]:
    """Lines that save the weights in a file of pickle.dump, tensors or arrays under names."""
    return (
        "import pickle, torch",
        f"saved = pickle.load(open({name!r}, 'rb'))  # where you trained it, and only a file of your own",
        'torch.save({key: torch.as_tensor(value) for key, value in saved.items()}, "weights.pth")',
    )


def from_pickle(name: str, is_network: bool) -> tuple[str, ...]:
    """Lines that save the weights in a file of torch.save with objects. is_network: whether the file is one object, and no dictionary."""
    load = f"saved = torch.load({name!r}, weights_only=False)"
    careful = "where you trained it, and only a file of your own"
    if is_network:
        return ("import torch", f"{load}  # {careful}", 'torch.save(saved.state_dict(), "weights.pth")')
    take = f'{load}["model"]  # or another of its keys; {careful}'
    return ("import torch", take, 'torch.save(saved.state_dict() if hasattr(saved, "state_dict") else saved, "weights.pth")')
