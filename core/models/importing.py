"""Imports checkpoints trained elsewhere for an architecture of a zoo: reads and checks them, and stores them as a .safetensors file.

The stored file is like one written by `pretrain`: it contains its spec, and its path is the name of a model.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from core.channels import one_or_two
from core.errors import ModelError, one_line
from core.files import JSON_BYTES, not_stored, read_bounded, sync, write_json
from core.layout import NETWORKS
from core.models.candidates import of_content, read_weights_file
from core.models.checks import check_network
from core.models.full_precision import CLASSES, check_spec, save_checkpoint, spec_in, spec_values
from core.models.identification import NAME_IT, choose
from core.models.matching import Matched, complete, match
from core.models.registry import GivenSpec, ModelSpec, check_size
from core.models.shards import INDEX_SUFFIX
from core.models.weights import fill, first_names
from core.models.zoos.lookup import build_architecture, known_spec
from core.models.zoos.zoo import numbered_classes

LABEL_LENGTH = 60  # characters of a name in the label of a network


def import_checkpoint(file: Path, architecture: str, *, out_folder: Path, given: GivenSpec | None = None, name: str = "") -> Path:
    """Stores weights for an architecture as a network below `out_folder`, named by the hash of its content; returns the new path.

    file: safetensors, a file of torch.save with a state dict in it, or the index of several such files. architecture: "ZOO:NAME"; "" for
    the one that the file is found to be of (core.models.candidates), or that its header names. given:
    values that are None default to the width of the classifier in the file for classes, and to the zoo's spec for the rest; unknown class
    names become "class 0" and so on. The file also determines the number of channels; if the zoo's is another, the average of its mean
    and std is used for each. name: used instead of the path in error messages. HASH.json beside the network contains its label, and notes
    about what was found and chosen in the file.
    Raises UnknownNameError for the architecture; ModelError for a file that cannot be read or does not fit, a network without BatchNorm
    layers or with initial statistics, or one whose scores for noise are not finite; DataError if it cannot be stored.
    """
    given = given or GivenSpec()
    source = name or str(file)
    check_size(file, source)
    matched, notes = _matched(file, architecture, source)
    known, weights = matched.known, matched.weights
    classes = given.classes
    if classes is None:
        classes = len(given.class_names) if given.class_names else matched.classes
    if not 0 < classes <= CLASSES:
        raise ModelError(f"number of classes of {source} must be 1 to {CLASSES:,}, got {classes:,}")
    spec = _spec(known, source, classes, given)
    network = _filled(spec, weights, source)
    weights.clear()  # the check and the writing need the memory
    check_network(network, spec, source)
    try:
        return store(lambda path: save_checkpoint(network, spec, path), ".safetensors", out_folder, label(spec, source), notes)
    except OSError as error:
        raise not_stored(source, out_folder, error) from error


def _matched(file: Path, architecture: str, source: str) -> tuple[Matched, tuple[str, ...]]:
    """The weights in a file under the names of their architecture, and what the user should know about them."""
    contained = None if architecture else spec_in(file)
    content = read_weights_file(file, source)
    if architecture or contained is not None:
        matched = match(content, contained or known_spec(architecture), source)
        return matched, matched.notes
    possible = of_content(content, source)
    best, *others = choose([one.candidate for one in possible], source)
    matched = possible[0].matched
    if not best.named:  # as many classes as the zoo's own weights have, by chance
        matched = replace(matched, known=replace(matched.known, classes=numbered_classes(len(matched.known.classes))))
    found = f"found {source} to be weights of {best.architecture} with {best.classes} classes"
    if others:
        found += f"; {first_names([other.architecture for other in others])} would fit as well; to choose one, {NAME_IT}"
    return matched, (found, *matched.notes)


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
    complete(weights, spec, source)
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
