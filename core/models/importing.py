"""Imports checkpoints trained elsewhere for an architecture of a zoo: reads and checks them, and stores them as a .safetensors file.

The stored file is like one written by `pretrain`: it contains its spec, and its path is the name of a model.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from core.channels import MODES, for_channels, one_or_two
from core.errors import CoreError, ModelError, one_line
from core.files import JSON_BYTES, not_stored, read_bounded, sync, write_json
from core.layout import NETWORKS
from core.models.checks import check_network
from core.models.full_precision import CLASSES, check_spec, further_names, layout_of, save_checkpoint, spec_values
from core.models.registry import GivenSpec, ModelSpec, check_size
from core.models.shards import INDEX_SUFFIX, is_index
from core.models.state_dicts import COUNTER, check_complete, find_state_dict
from core.models.weights import check_layout, fill, first_names, read_content, read_shards
from core.models.zoos.lookup import build_architecture, known_spec
from core.models.zoos.zoo import numbered_classes

LABEL_LENGTH = 60  # characters of a name in the label of a network


def import_checkpoint(file: Path, architecture: str, *, out_folder: Path, given: GivenSpec | None = None, name: str = "") -> Path:
    """Stores weights for an architecture as a network below `out_folder`, named by the hash of its content; returns the new path.

    file: safetensors, a file of torch.save with a state dict in it, or the index of several such files. architecture: "ZOO:NAME". given:
    values that are None default to the width of the classifier in the file for classes, and to the zoo's spec for the rest; unknown class
    names become "class 0" and so on. The file also determines the number of channels; if the zoo's is another, the average of its mean
    and std is used for each. name: used instead of the path in error messages. HASH.json beside the network contains its label, and notes
    about what was chosen in the file.
    Raises UnknownNameError for the architecture; ModelError for a file that cannot be read or does not fit, a network without BatchNorm
    layers or with initial statistics, or one whose scores for noise are not finite; DataError if it cannot be stored.
    """
    given = given or GivenSpec()
    source = name or str(file)
    check_size(file, source)
    known = known_spec(architecture)
    read = read_shards if is_index(file) else read_content
    found = find_state_dict(read(file, source), layout_of(known), source)
    weights = found.weights
    known = _with_channels(known, _input_channels(weights, known))
    classes = given.classes
    if classes is None:
        classes = len(given.class_names) if given.class_names else _classifier_width(weights, known)
    if not 0 < classes <= CLASSES:
        raise ModelError(f"number of classes of {source} must be 1 to {CLASSES:,}, got {classes:,}")
    spec = _spec(known, source, classes, given)
    network = _filled(spec, weights, source)
    weights.clear()  # the check and the writing need the memory
    check_network(network, spec, source)
    try:
        return store(lambda path: save_checkpoint(network, spec, path), ".safetensors", out_folder, label(spec, source), found.notes)
    except OSError as error:
        raise not_stored(source, out_folder, error) from error


def _classifier_width(weights: Mapping[str, Tensor], known: ModelSpec) -> int:
    """Number of classes, read from a tensor whose shape depends on it; the zoo's number if the file has no such tensor."""
    count = len(known.classes)
    # in the bias and the weights of one or several classifiers
    return _size_that_grows(weights, *(replace(known, classes=("",) * number) for number in (count, count + 1))) or count


def _input_channels(weights: Mapping[str, Tensor], known: ModelSpec) -> int:
    """Number of channels of the images, read from the first convolution; the zoo's number if the file has no such tensor."""
    kernels = {key: shape for key, shape in layout_of(known).items() if len(shape) == 4 and key in weights}
    if all(tuple(weights[key].shape) == shape for key, shape in kernels.items()):
        return known.channels
    other = next(channels for channels in MODES if channels != known.channels)
    try:
        found = _size_that_grows(weights, known, _with_channels(known, other))
    except CoreError:  # it can only be built for the zoo's number
        found = None
    return known.channels if found is None or found not in MODES else found


def _size_that_grows(weights: Mapping[str, Tensor], one: ModelSpec, other: ModelSpec) -> int | None:
    """The size in the file of the first dimension that differs between the layouts of two specs; None if the file has no such tensor."""
    shapes, other_shapes = layout_of(one), layout_of(other)
    for key, shape in shapes.items():
        sizes = zip(shape, other_shapes.get(key, shape))
        dimension = next((index for index, (size, other_size) in enumerate(sizes) if size != other_size), None)
        if dimension is not None and key in weights and weights[key].ndim == len(shape):
            return weights[key].shape[dimension]
    return None


def _with_channels(known: ModelSpec, channels: int) -> ModelSpec:
    """The spec for images of so many channels, normalized alike."""
    return replace(known, mean=for_channels(known.mean, channels), std=for_channels(known.std, channels))


def _spec(known: ModelSpec, source: str, count: int, given: GivenSpec) -> ModelSpec:
    """The zoo's spec with the given values. Raises ModelError for invalid values."""
    if given.class_names is not None and len(given.class_names) != count:
        raise ModelError(f"number of class names of {source} must be {count}, one for each class, got {len(given.class_names)}")
    check_normalization(given, known.channels, source)
    size = known.image_size if given.image_size is None else one_or_two(given.image_size)
    names = given.class_names or (known.classes if len(known.classes) == count else numbered_classes(count))
    title = one_line(Path(source.removesuffix(INDEX_SUFFIX)).stem)[:LABEL_LENGTH] or "imported"
    values = asdict(known) | {
        "name": title,
        "classes": tuple(names),
        "trained_on": f"unknown: imported from {one_line(Path(source).name)[:200]}",
        "mean": known.mean if given.mean is None else tuple(given.mean),
        "std": known.std if given.std is None else tuple(given.std),
        "image_size": size,
        # the zoo's value only fits the zoo's image size
        "resize": known.resize if size == known.image_size else None,
    }
    spec = ModelSpec(**values)
    check_spec(spec_values(spec), source)
    return spec


def check_normalization(given: GivenSpec, channels: int, source: str) -> None:
    """Raises ModelError unless a given mean or std has a number for each channel."""
    for key, numbers in (("mean", given.mean), ("std", given.std)):
        if numbers is not None and len(numbers) != channels:
            raise ModelError(f"{key} of {source} must be {one_for_each(channels)}, got {len(numbers)}")


def one_for_each(channels: int) -> str:
    """What mean and std must be, for messages."""
    return "one number" if channels == 1 else f"{channels} numbers, one for each channel"


def _filled(spec: ModelSpec, weights: dict[str, Tensor], source: str) -> torch.nn.Module:
    """The network with these weights. Raises ModelError, before any large tensor is allocated, if they do not fit."""
    expected = layout_of(spec)
    for key in expected:
        if key.rpartition(".")[2] == COUNTER:
            weights.setdefault(key, torch.zeros((), dtype=torch.long))
    shared = further_names(spec)  # some programs write a shared tensor once, under any of its names
    weights |= {first: weights[further] for further, first in shared.items() if further in weights and first not in weights}
    weights |= {further: weights[first] for further, first in shared.items() if first in weights and further not in weights}
    check_complete(weights, expected, source)
    check_layout({key: tuple(value.shape) for key, value in weights.items()}, expected, source, spec.architecture)
    with torch.random.fork_rng(devices=[]):
        network = build_architecture(spec.architecture, len(spec.classes), spec.channels)
    floating = {key for key, value in network.state_dict().items() if value.is_floating_point()}
    other = [key for key, value in weights.items() if key in floating and not value.is_floating_point()]
    if other:
        raise ModelError(f"tensors of {source} must be floating point, got {weights[other[0]].dtype} in {first_names(other)}")
    fill(network, weights)
    return network.eval().requires_grad_(False)


def store(write: Callable[[Path], object], suffix: str, folder: Path, label: str, notes: Sequence[str] = ()) -> Path:
    """Has `write` write a network below `folder`, atomically, and names it by the hash of its content, so duplicates are stored once.

    label: display name, written to HASH.json beside it, as are notes for the user. Raises OSError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        written = Path(temporary) / f"network{suffix}"
        write(written)
        with written.open("rb") as file:
            target = folder / f"{hashlib.file_digest(file, 'sha256').hexdigest()}{suffix}"
        if not target.exists():
            # the label first, so that no network is ever without one
            described = {"label": one_line(label), **({"notes": [one_line(note) for note in notes]} if notes else {})}
            write_json(target.with_suffix(".json"), described)
            written.replace(target)
            sync(folder)
    return target


def notes_of(model: str) -> list[str]:
    """What the import of a stored network noted for the user; empty for any other model name."""
    path = Path(model).with_suffix(".json")
    if path.parent.name != NETWORKS or not path.is_file():
        return []
    try:
        return [str(note) for note in json.loads(read_bounded(path, JSON_BYTES)).get("notes", ())]
    except (OSError, ValueError, AttributeError, TypeError):
        return []  # the file only describes the network


def label(spec: ModelSpec, source: str) -> str:
    """Display name of an imported network."""
    return f"{spec.name[:LABEL_LENGTH]} ({len(spec.classes)} classes), imported from {Path(source).name[:LABEL_LENGTH]}"
