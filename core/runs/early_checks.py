"""What can be refused within a second, before a run is queued: names, places, and the number of classes. Imports no torch.

A run checks everything again, and more, before its first image (core.pipeline.prepare).
"""

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from core import layout
from core.config import DATA_NAMES, EVALUATION_SETS, RunConfig
from core.data.archives import MANIFEST_BYTES, is_archive, is_numpy_archive
from core.data.class_names import CLASSES, MAPPING_FILES, are_classes, dataset_mapping, is_wordnet_id
from core.data.evaluation_files import evaluation_targets
from core.data.layouts import FOR_EVALUATION, WITH_OR_WITHOUT_CLASSES, open_images
from core.data.manifests import check_made_from, parse_manifest
from core.data.real_images import check_real_images
from core.errors import DataError, EncoderError, ModelError, UnknownNameError, quoted
from core.files import check_regular, read_bounded
from core.models.registry import MODELS, NETWORK_SUFFIXES, ModelSpec
from core.models.zoos.lookup import ZOOS, is_zoo_name
from core.models.zoos.names import check_zoo_name

_NO_ENCODER, _EMBEDDED_ENCODER = "", "embedded"


def check_run(config: RunConfig) -> None:
    """Everything below, for a run. Raises CoreError."""
    check_model(config.model)
    check_encoder(config.evaluation.encoder)
    if config.bits:
        check_data(config.evaluation.data)
        check_classes(config.evaluation.data, config.model)
    if config.images_from:
        check_images(config.images_from)
        check_origin(config.images_from, config.model)
    elif "real" in config.methods:
        check_real_images(config.generation.real_images, config.evaluation.data)


def check_model(model: str) -> None:
    """Raises UnknownNameError or ModelError for a network that is neither embedded, in a zoo, nor an existing file of a network."""
    if model in MODELS:
        return
    if is_zoo_name(model) and model.partition(":")[2]:
        check_zoo_name(model)
        return
    if not model.lower().endswith(NETWORK_SUFFIXES):
        zoos = ", ".join(f"{zoo}:NAME" for zoo in ZOOS)
        raise UnknownNameError("model", model, [*MODELS, zoos, f"the path of a {' or '.join(NETWORK_SUFFIXES)} file"])
    try:
        check_regular(model)
    except OSError as error:
        raise ModelError(f"model must be the path of a file that can be read, got {quoted(model)}: {error.strerror}") from error


def check_architecture(architecture: str) -> None:
    """Raises UnknownNameError for an architecture that its zoo does not have; a name without a zoo is pytorchcv's."""
    check_zoo_name(architecture if is_zoo_name(architecture) else f"pytorchcv:{architecture}")


def check_data(data: str) -> None:
    """Raises DataError for evaluation images that do not exist."""
    if data in DATA_NAMES or os.path.isdir(data) or (is_archive(Path(data)) and os.path.isfile(data)):
        return
    raise DataError(
        f"data must be {', '.join(DATA_NAMES)}, or the path of {WITH_OR_WITHOUT_CLASSES}, or a zip file of it, got {quoted(data)}"
    )


def check_classes(data: str, model: str) -> None:
    """Raises DataError for evaluation images of another data set's classes, or in folders of which only some are classes of the network.

    As far as the classes of the network can be read without building it, and those of the images without unpacking them.
    """
    spec = _spec_of(model)
    if spec is None:
        return
    if data in EVALUATION_SETS:
        if dataset_mapping(CLASSES[data], spec) is None:
            raise DataError(f"data must have the classes of {spec.name}, {data!r} has others; use {WITH_OR_WITHOUT_CLASSES}")
    elif os.path.isdir(data) and not _is_of_torchvision(data):
        files = open_images(Path(data), FOR_EVALUATION, *DATA_NAMES, labels_needed=False)
        if any(os.path.lexists(files.source / name) for name in MAPPING_FILES) or any(map(is_wordnet_id, files.classes)):
            return  # a run looks: timm knows the WordNet ids, and imports torch
        if not files.classes or not are_classes(files.classes, spec, str(files.source), files.kind, files.empty):
            return
        if len(files.classes) > len(spec.classes):
            raise DataError(
                f"data must have at most the {len(spec.classes)} classes of {spec.name}, got {len(files.classes)} of {quoted(data)}"
            )
        if not all(name.isdecimal() for name in files.classes):
            evaluation_targets(files, spec)


def _is_of_torchvision(data: str) -> bool:
    """Whether a folder is CIFAR as torchvision stores it, which `core.data.cifar` reads, with torch."""
    names = ("cifar-10-batches-py", "cifar-100-python")
    return Path(os.path.abspath(data)).name in names or any(os.path.isdir(os.path.join(data, name)) for name in names)


def check_encoder(encoder: str) -> None:
    """Raises UnknownNameError or EncoderError for an encoder whose architecture open_clip does not have, or whose file does not exist."""
    architecture, _, weights = encoder.partition(":")
    if encoder in (_NO_ENCODER, _EMBEDDED_ENCODER):
        return
    package = find_spec("open_clip")  # does not import it
    folder = Path(package.origin).parent if package and package.origin else Path()
    if not weights or not any(path.stem == architecture for path in folder.glob("model_configs/*.json")):
        raise UnknownNameError("encoder", encoder, [_EMBEDDED_ENCODER, "ARCH:PRETRAINED as open_clip lists them", "ARCH:FILE"])
    if Path(weights).suffix:
        try:
            check_regular(weights)
        except OSError as error:
            raise EncoderError(f"encoder must name a file that can be read, got {quoted(encoder)}: {error.strerror}") from error


def check_images(images_from: str) -> None:
    """Raises DataError for images of a run that do not exist."""
    if not os.path.isdir(images_from) and not (
        os.path.isfile(images_from) and (is_archive(Path(images_from)) or is_numpy_archive(Path(images_from)))
    ):
        raise DataError(f"images must be an existing folder or archive of images, got {quoted(images_from)}")


def check_origin(images_from: str, model: str) -> None:
    """Raises DataError for given images that were made from another network than `model`, as far as it can be read without building it."""
    spec, method = _spec_of(model), layout.USER_IMAGES
    folder = layout.user_image_sets(Path(images_from), (method,))[method]
    if spec is None or not os.path.isfile(folder / layout.MANIFEST):
        return
    try:
        manifest = parse_manifest(read_bounded(folder / layout.MANIFEST, MANIFEST_BYTES))
    except (OSError, ValueError):  # a run says what is wrong with it
        return
    check_made_from(manifest, spec.name, lambda: _weights_hash(MODELS[model][0] if model in MODELS else Path(model)))


def _weights_hash(file: Path) -> str | None:
    """`core.models.identity.weights_hash` of a .safetensors file; None for a type of numbers that NumPy does not have."""
    digest = hashlib.sha256()
    try:
        for name, value in sorted(load_file(file).items()):
            digest.update(f"{name} torch.{value.dtype} {value.shape}\n".encode() + value.tobytes())
    except (SafetensorError, OSError, KeyError, TypeError):
        return None
    return digest.hexdigest()


def _spec_of(model: str) -> ModelSpec | None:
    """The spec of an embedded network or in the header of a .safetensors file; None for others, and for files that a run will refuse."""
    if model in MODELS:
        return MODELS[model][1]
    if not model.lower().endswith(".safetensors") or not os.path.isfile(model):
        return None
    try:
        with safe_open(model, framework="np") as file:
            values = json.loads((file.metadata() or {})["spec"])
        return ModelSpec(**{**values, "classes": tuple(map(str, values["classes"]))})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None
