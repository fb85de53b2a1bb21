"""Files that can be exported from a finished run, and how to make them. No streamlit in here.

`python -m core export` makes a file in a separate process, because the server must not compute. The file is stored in the run's folder,
with the figures that the command printed beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import layout
from core.config import IMAGE_FORMATS
from core.errors import RunError
from core.export.formats import SUFFIXES, can_preprocess
from core.export.targets import TARGETS, Target
from core.files import atomic_write, temporary_folder, write_json
from core.generation.methods import method_order
from core.runs.run import Run
from dashboard.names import method_name

_ROOT = Path(__file__).parents[2]
# formats, and of networks also targets: what they are
FORMATS = {
    "onnxruntime": "ONNX Runtime: ONNX, integer kernels",
    "openvino": "OpenVINO: ONNX, integer kernels",
    "tensorrt": "TensorRT and NPUs: ONNX, INT8 around zero",
    "executorch": "ExecuTorch: pte, int8 kernels for phones",
    "litert": "LiteRT: tflite, int8 kernels for phones and boards",
    "torch": "PyTorch: pt2, a torch.export program",
    "packed": "this program: packed safetensors, weights at their bit width",
    "onnx-exact": "ONNX with the scores of this program to the bit, slow",
    "png": "PNG files, one folder per class (zip)",
    "safetensors": "safetensors, the format of this program (zip)",
    "npz": "NumPy archive, a calibration set",
    "card": "Markdown with pictures (zip)",
}
_OF_NETWORKS = (*TARGETS, "packed", "onnx-exact")
# of those that are one file
_SUFFIXES = {**SUFFIXES, "npz": ".npz", **{name: SUFFIXES[target.format] for name, target in TARGETS.items()}}
_USUAL = ("onnxruntime", "executorch", "litert", "torch", "packed", "npz")  # whose files are told apart by their endings


@dataclass(frozen=True)
class Offer:
    """Something that can be exported. name: of its file, without the suffix. formats: names of FORMATS. options: of the command."""

    title: str
    name: str
    formats: tuple[str, ...]
    options: tuple[str, ...]


def _images_of(method: str) -> str:
    return method_name(method) if method == layout.USER_IMAGES else f"images by {method_name(method)}"


def offers(run: Run, folder: Path, methods: Sequence[str]) -> list[Offer]:
    """All offers of a run. folder: of the run. methods: those whose images are complete."""
    found = []
    for method in sorted((path.name for path in (folder / layout.QUANTIZED).glob("*") if path.is_dir()), key=method_order):
        found += [offer for bits in run.config.bits if (offer := network_offer(run, folder, method, bits)) is not None]
    if not run.config.images_from:
        for method in sorted(methods, key=method_order):
            found.append(Offer(_images_of(method), f"{method}-images", IMAGE_FORMATS, ("--method", method)))
    if found and (folder / layout.RESULT).is_file() and run.config.bits:
        found.append(Offer("model card", "model-card", ("card",), ()))
    return found


def network_offer(run: Run, folder: Path, method: str, bits: int) -> Offer | None:
    """The offer of one quantized network; None if the run has not saved it. folder: of the run."""
    width = run.config.training_for(bits).width
    if not (folder / layout.QUANTIZED / method / width / layout.NETWORK_FILE).is_file():
        return None
    title = f"{width} network, trained on {_images_of(method)}"
    return Offer(title, f"{method}-{width}", _OF_NETWORKS, ("--method", method, "--bits", str(bits)))


def normalizes(kind: str) -> bool:
    """Whether networks of this kind can be written so that they take pixels and normalize them."""
    return can_preprocess(TARGETS[kind].format if kind in TARGETS else kind)


def content(runs: Path, run_id: str, offer: Offer, kind: str, folder: Path) -> bytes:
    """The file that `make` makes with these arguments, or made before. kind: one that is one file. Raises RunError as `make` does."""
    path = folder / layout.EXPORTS / _file_name(offer, kind)
    if path not in (made for made, _ in exported(folder)):
        path = make(runs, run_id, offer, kind, folder)
    return path.read_bytes()


def _file_name(offer: Offer, kind: str, preprocessing: bool = False) -> str:
    suffix = _SUFFIXES.get(kind, "")
    words = [] if kind in _USUAL or not suffix else [kind.removeprefix("onnx-")]
    return "-".join([offer.name, *words, *(["uint8"] if preprocessing else [])]) + suffix


def make(runs: Path, run_id: str, offer: Offer, kind: str, folder: Path, preprocessing: bool = False) -> Path:
    """Makes the file and returns its path in `folder`, that of the run. Takes seconds to minutes.

    runs: folder of the run store. kind: one of the offer's formats. preprocessing: the file takes uint8 images and normalizes them. Raises
    RunError with the command's error message if it fails.
    """
    target = folder / layout.EXPORTS
    target.mkdir(exist_ok=True)
    with temporary_folder(target, ".making-") as temporary:
        out = temporary / _file_name(offer, kind, preprocessing)
        arguments = ["export", run_id, "--runs", str(runs), "--target" if kind in TARGETS else "--format", kind, *offer.options]
        arguments += [*(["--with-preprocessing"] if preprocessing else []), "--out", str(out), "--json"]
        command = [sys.executable, "-m", "core", *arguments]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        process = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)
        if process.returncode:
            said = [line for line in process.stderr.splitlines() if line.strip()]
            raise RunError(
                said[-1].removeprefix("python -m core export: ") if said else f"the export failed with exit code {process.returncode}"
            )
        figures = json.loads(process.stdout.splitlines()[-1])
        made = Path(shutil.make_archive(f"{out}-{kind}", "zip", out)) if out.is_dir() else out
        path = target / made.name
        write_json(path.with_name(f"{path.name}.json"), {**figures, "out": path.name, "title": offer.title, "bytes": made.stat().st_size})
        with atomic_write(path) as partial:
            made.replace(partial)
    return path


def exported(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Exported files of a run with their figures, the newest first."""
    found = []
    for path in (folder / layout.EXPORTS).glob("*.json"):
        file = path.with_suffix("")
        if file.is_file():
            found.append((file, json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda one: one[0].stat().st_mtime, reverse=True)


FILE_COLUMNS = ("File", "Content", "Size", "One image, one thread", "Top-1", "Checked in")


def file_cells(figures: dict[str, Any]) -> list[str]:
    """The texts of a file in FILE_COLUMNS, but for its name; of a file without a network only the first two."""
    megabytes = f"{figures['bytes'] / 1e6:.2f} MB"
    if "torch_accuracy" not in figures:
        return [figures["title"], megabytes, "", "", ""]
    target = TARGETS.get(figures.get("target", ""))
    content = f"{figures['title']}, for {target.title}" if target else f"{figures['title']}, {figures['format']}"
    size = f"{megabytes}, float32 {figures['float32_bytes'] / 1e6:.2f} MB"
    return [content, size, _latency(figures), _top1(figures), _check(figures, target)]


def _latency(figures: dict[str, Any]) -> str:
    """How fast a network is on the machine that wrote it, compared with float32 in the same format and program."""
    own, before = figures["latency_ms"], figures["float32_latency_ms"]
    if not own or not before:
        return "–"
    times = max(own / before, before / own)
    compared = f"{times:.1f} times as {'long' if own > before else 'fast'} as" if times >= 1.05 else "as fast as"
    return f"{own:.2g} ms, {compared} float32"


def _top1(figures: dict[str, Any]) -> str:
    own, before = figures["file_accuracy"], figures["torch_accuracy"]
    if own is None or before is None:
        return figures.get("left_out", "–")
    return f"{own:.2f} %, network {before:.2f} %"


def _check(figures: dict[str, Any], target: Target | None) -> str:
    checked = f"✓ {figures['latency_measured_in']}"
    return checked if target is None or figures["target"] == target.package else f"{checked}, not run in {target.title}"


def check_in_words(figures: dict[str, Any]) -> str:
    """How close the scores of the file are to those of the network; empty for a file without one."""
    if "torch_accuracy" not in figures:
        return ""
    within = figures["within_last_scale"]
    words = f"Largest difference of a score: {figures['max_output_difference']:.2g}."
    return words if within is None else f"{words} No score differs by more than one step of the last quantizer on {within:.2f} % of images."
