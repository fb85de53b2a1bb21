"""The full-precision network in the format of an exported one, for comparison: written once for a run and kept in its folder."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from torch import nn

from core import layout
from core.export.formats import ONNX_FORMATS, PHONE_FORMATS, SUFFIXES
from core.export.onnx import save_onnx
from core.export.provenance import versions
from core.files import atomic_write
from core.models.full_precision import FullPrecisionModel, save_checkpoint
from core.models.identity import weights_hash
from core.models.programs import export as programs
from core.models.registry import ModelSpec

_EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript", "executorch", "litert-torch")
_CODE = ("onnx.py", "onnx_graph.py", "executorch.py", "litert.py", "decomposed.py")


def float32_file(kind: str, model: FullPrecisionModel, folder: Path, temporary: Path, preprocessing: bool = False) -> Path:
    """The full-precision network as a file in the format `kind`, from the folder of the run if it is there, or else written.

    For packed, it is a weights file. A kept file is used again only for the same network, preprocessing, and versions of the exporters;
    older ones are removed. The file is in `temporary` if the folder of the run cannot be written. Raises ModelError if the network cannot
    be translated.
    """
    suffix = SUFFIXES[kind]
    if kind == "packed":  # written in less time than it takes to find out whether it is there
        path = temporary / f"float32{suffix}"
        save_checkpoint(model.network, model.spec, path)
        return path
    images = "uint8" if preprocessing else "float32"
    kept = folder / layout.FLOAT32 / f"{images}-{_key(model)}{suffix}"
    if kept.is_file():
        return kept
    path = temporary / f"float32{suffix}"
    _save(kind, model, path, preprocessing)
    try:
        kept.parent.mkdir(exist_ok=True)
        for other in kept.parent.glob(f"{images}-*{suffix}"):
            other.unlink()
        with atomic_write(kept) as partial:
            shutil.copyfile(path, partial)
    except OSError:
        return path  # another user's run, or a full disk: the next export writes it again
    return kept


def _save(kind: str, model: FullPrecisionModel, path: Path, preprocessing: bool) -> None:
    if kind in ONNX_FORMATS:
        save_onnx(copy.deepcopy(model.network), model.spec, path, preprocessing=preprocessing)
    elif kind in PHONE_FORMATS:
        save_for_phones(kind, copy.deepcopy(model.network), model.spec, path, preprocessing)
    else:
        programs.save_program(model.network, model.spec, path, preprocessing)


def save_for_phones(kind: str, network: nn.Module, spec: ModelSpec, path: Path, preprocessing: bool) -> None:
    """Writes a network in one of PHONE_FORMATS, see `save_executorch` and `save_litert`; `network` is modified."""
    if kind == "pte":
        from core.export.executorch import save_executorch

        save_executorch(network, spec, path, preprocessing)
    else:
        from core.export.litert import save_litert

        save_litert(network, spec, path, preprocessing)


def _key(model: FullPrecisionModel) -> str:
    """Of everything that the file depends on: the network, with its layers and weights, and the programs that write it."""
    code = [inspect.getsource(programs), *(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _CODE)]
    parts = [weights_hash(model.network), str(model.network), asdict(model.spec), versions(_EXPORTERS), *code]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
