"""Export of a run's quantized network to a file that runs elsewhere, and that is verified before it is moved to its final path."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import layout
from core.config import RunConfig, TrainingConfig
from core.data.image_sets import load_image_set
from core.data.labeled import EvaluationSet, find_evaluation_set
from core.errors import ConfigError, DataError, ModelError, RunError, UnknownNameError, first_line
from core.evaluation.diversity import evenly_spaced
from core.evaluation.references import noise_images
from core.export.float32 import float32_file, save_for_phones
from core.export.formats import ONNX_FORMATS, PHONE_FORMATS, STANDARD_FORMATS, SUFFIXES, can_preprocess, new_file
from core.export.onnx import save_onnx
from core.export.packed import save_packed
from core.export.standard_onnx import standard_network
from core.export.targets import find_target, target_of
from core.export.verify import verify
from core.files import atomic_write, parents_of, temporary_folder
from core.generation.methods import in_order
from core.layout import NETWORK_FILE, user_image_sets
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.programs.export import save_program
from core.models.programs.importing import ARCHITECTURE
from core.quantization.integer.inference import integer_inference_network
from core.quantization.integer.weights import integer_network
from core.quantization.placement import QuantizedNetwork
from core.quantization.saved_network import load_quantized
from core.reporting import Control, NoControl, NullReporter, Reporter
from core.threads import cpu_threads

RANGE_IMAGES = 256  # images whose ranges a standard ONNX file has


def export_network(
    folder: Path,
    config: RunConfig,
    kind: str,
    out: Path,
    method: str = "",
    bits: int = 0,
    reporter: Reporter | None = None,
    control: Control | None = None,
    target: str = "",
    preprocessing: bool = False,
) -> dict[str, Any]:
    """Writes a quantized network of the run in `folder` to `out`, atomically, and returns the path and the figures of `verify`.

    kind: one of NETWORK_FORMATS. target: a name of TARGETS, in which the file is checked; default: that of the format. preprocessing: the
    file takes uint8 images and normalizes them, in all formats but packed. method, bits: which network; an empty method is the first one
    of the run, 0 bits the only width of the method. Everything is computed on the CPU. Where the run has no evaluation images, or they
    cannot be read any more, the scores are compared on noise images; then, and where the images have no labels, the accuracies are None,
    and `left_out` says why. Raises CoreError if there is no such network, `out` cannot be written or the network has operations that the
    format does not support; RunStopped if the run is stopped.
    """
    reporter, control = reporter or NullReporter(), control or NoControl()
    out = new_file(kind, out)
    if preprocessing and not can_preprocess(kind):
        raise ConfigError(f"preprocessing must be written into a format of {', '.join(filter(can_preprocess, SUFFIXES))}, got {kind}")
    chosen = find_target(target) if target else target_of(kind)
    path, method, quantization = find_network(folder, config, method, bits)
    with cpu_threads(config.machine.threads):
        model = load_model(config.model, "cpu")
        evaluation_set, left_out = _images_to_compare(model, config)
        quantized = load_quantized(path, model)
        with temporary_folder() as temporary:
            written = temporary / f"quantized{SUFFIXES[kind]}"
            reporter.stage(f"exporting {method} {quantization.width} as {kind}", 0)
            control.pause_point()
            images = _images_for_ranges(folder, config, method, model) if kind in STANDARD_FORMATS and quantized.traced else None
            save_network(kind, quantized, model, quantization, written, images, preprocessing)
            float32 = float32_file(kind, model, folder, temporary, preprocessing)
            reporter.stage("evaluating the file and the network", 0)
            figures = verify(kind, written, float32, quantized, model, evaluation_set, control.pause_point, chosen, preprocessing)
            _put(written, out)
    if left_out:
        figures |= dict.fromkeys(("torch_accuracy", "onnxruntime_accuracy", "file_accuracy", "standard_error")) | {"left_out": left_out}
    checked_for = {"target": target} if target else {}
    return {"out": str(out), "format": kind, **checked_for, "method": method, "width": quantization.width, **figures}


def _images_to_compare(model: FullPrecisionModel, config: RunConfig) -> tuple[EvaluationSet, str]:
    """The evaluation images of the run, or noise images where it has none that can be read; and why no accuracy is compared, if so."""
    try:
        found = find_evaluation_set(config.evaluation.data, model.spec, strict=config.evaluation.strict)
        reason = "the run has no evaluation images"
    except DataError as error:
        found, reason = None, f"the evaluation images cannot be read: {error}"
    if found is not None:
        return found, "" if found.labeled else "accuracy was not compared, because the evaluation images have no labels"
    noise = noise_images(model, config.generation, config.machine.seed)
    evaluation_set = EvaluationSet(noise.pixels(), noise.labels.tolist(), noise.manifest["description"], model.spec.image_size)
    return evaluation_set, f"accuracy was not compared, because {reason}"


def _put(written: Path, out: Path) -> None:
    try:
        with parents_of(out), atomic_write(out) as partial:
            shutil.copyfile(written, partial)
    except OSError as error:
        raise DataError(
            f"out must be in a folder with enough space, and {str(out)!r} could not be written ({error.strerror or first_line(error)})"
        ) from error


def find_network(folder: Path, config: RunConfig, method: str = "", bits: int = 0) -> tuple[Path, str, TrainingConfig]:
    """File, method and training config of a quantized network of the run in `folder`; method and bits as in `export_network`.

    Raises ConfigError for a method or bit width that the run does not have, or if `bits` is needed; RunError if it has no network.
    """
    methods: dict[str, dict[int, Path]] = {}
    for width in config.bits:
        for path in sorted((folder / layout.QUANTIZED).glob(f"*/{config.training_for(width).width}/{NETWORK_FILE}")):
            methods.setdefault(path.parts[-3], {})[width] = path
    if not methods:
        raise RunError(f"run must have finished at least one quantized network, and {folder.name!r} has none")
    if not method:
        method = in_order(methods)[0]
    if method not in methods:
        raise UnknownNameError("method", method, methods)
    widths = methods[method]
    if not bits and len(widths) > 1:
        raise ConfigError(f"bits must be given, because {method} has several bit widths: {', '.join(map(str, widths))}")
    bits = bits or next(iter(widths))
    if bits not in widths:
        one_of = "one of " if len(widths) > 1 else ""
        raise ConfigError(f"bits must be {one_of}{', '.join(map(str, widths))} for {method}, got {bits}")
    return widths[bits], method, config.training_for(bits)


def _images_for_ranges(folder: Path, config: RunConfig, method: str, model: FullPrecisionModel) -> Tensor:
    """Normalized images that the run trained this network on, at most RANGE_IMAGES. Raises DataError if they cannot be read any more."""
    root = Path(config.images_from) if config.images_from else folder / layout.IMAGES
    images = load_image_set(user_image_sets(root, [method]).get(method, root / method), model.spec).images
    chosen = images[evenly_spaced(len(images), RANGE_IMAGES)]
    return model.normalize(chosen).contiguous(memory_format=torch.channels_last)


def save_network(
    kind: str,
    quantized: QuantizedNetwork,
    model: FullPrecisionModel,
    config: TrainingConfig,
    path: Path,
    images: Tensor | None = None,
    preprocessing: bool = False,
) -> None:
    """Writes the network in one of NETWORK_FORMATS; `quantized` stays unchanged. Raises ModelError if it cannot be translated.

    images: normalized `(N, C, H, W)`, from which the standard formats find the ranges that `standard_network` adds. Without them, and for a
    network that could not be traced, ONNX formats are "onnx-exact", and pte and tflite are refused. preprocessing: see `save_onnx`.
    """
    if kind in PHONE_FORMATS:
        if images is None or not quantized.traced:
            raise ModelError(f"{model.spec.name} must be a network that torch.fx can trace; try the format onnx, packed or pt2")
        save_for_phones(kind, standard_network(quantized, images), model.spec, path, preprocessing)
    elif kind in STANDARD_FORMATS and images is not None and quantized.traced:
        save_onnx(standard_network(quantized, images, kind == "onnx-symmetric"), model.spec, path, config, preprocessing)
    elif kind in ONNX_FORMATS:
        save_onnx(integer_inference_network(quantized, model.spec), model.spec, path, config, preprocessing)
    elif kind == "pt2":
        save_program(integer_inference_network(quantized, model.spec), model.spec, path, preprocessing)
    else:
        full_precision = model.network if model.spec.architecture == ARCHITECTURE else None
        save_packed(integer_network(quantized), model.spec, config, path, full_precision)
