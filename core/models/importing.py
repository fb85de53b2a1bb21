"""Checkpoints of others, for an architecture of a zoo: read, checked, and kept as a .safetensors file that says all about its network.

From then on the file is like one made by `pretrain`: its path is a model's name, and whoever loads it needs nothing else.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from core.errors import DataError, ModelError, one_line
from core.files import sync, write_json
from core.models.checks import check_network
from core.models.full_precision import (
    CLASSES,
    FullPrecisionModel,
    check_spec,
    layout_of,
    save_checkpoint,
    spec_values,
)
from core.models.registry import NETWORK_BYTES, ModelSpec
from core.models.weights import check_layout, fill, first_names, read_weights, without_prefixes
from core.models.zoos.lookup import build_architecture, known_spec

_LABEL = 60  # characters of a name in what a network is called on the pages
_COUNTER = "num_batches_tracked"  # BatchNorm layers have it since torch 0.4.1, and do not use it in evaluation mode


def import_checkpoint(
    file: Path,
    architecture: str,
    *,
    out_folder: Path,
    classes: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "",
) -> Path:
    """Weights for an architecture as a network of ours below `out_folder`, named by the hash of its content; returns its path.

    file: safetensors, or a state dict by torch.save. architecture: "ZOO:NAME". What is None comes from the source, as far as it knows:
    classes from the width of the classifier in the file, the rest from what the zoo says of its own weights; class names that nobody
    knows are "class 0" and so on. mean, std: three numbers each, of RGB in [0, 1]. image_size: in pixels. name: what the file is called
    in messages; its path, where it is empty. HASH.json beside the network has what the pages call it.
    Raises UnknownNameError for the architecture; ModelError for a file that is no such thing or does not fit, a network without
    BatchNorm layers or with untouched statistics, or one whose scores for noise are not finite; DataError when it cannot be kept.
    """
    called = name or str(file)
    check_size(file, called)
    known = known_spec(architecture)
    weights = read_weights(file, called)
    weights = without_prefixes(weights, layout_of(known))
    if classes is None:
        classes = len(class_names) if class_names else _classifier_width(weights, known)
    if not 0 < classes <= CLASSES:
        raise ModelError(f"{called} is for {classes:,} classes: allowed are 1 to {CLASSES:,}")
    spec = _spec(known, called, classes, image_size, mean, std, class_names)
    network = FullPrecisionModel(_filled(spec, weights, called), spec)
    check_network(network.network, spec, called)
    try:
        return keep(lambda path: save_checkpoint(network.network, spec, path), ".safetensors", out_folder, label(spec, called))
    except OSError as error:
        raise not_kept(called, out_folder, error) from error


def not_kept(called: str, folder: Path, error: OSError) -> DataError:
    """What to say when the disk refuses."""
    return DataError(
        f"{called} could not be kept in {folder} ({error.strerror or error}): allowed is a folder with room that can be written to"
    )


def check_size(file: Path, called: str) -> None:
    """Raises ModelError for a file that is missing or larger than NETWORK_BYTES."""
    try:
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{called} does not exist: allowed is a checkpoint, .safetensors or a state dict by torch.save, or a .pt2 program"
        ) from error
    if size > NETWORK_BYTES:
        raise ModelError(f"{called} has {size:,} bytes: allowed is at most {NETWORK_BYTES:,}")


def _classifier_width(weights: Mapping[str, Tensor], known: ModelSpec) -> int:
    """How many classes the tensors are for: one whose shape depends on that number says so. The source's number, where none does."""
    count = len(known.classes)
    own, other = (layout_of(replace(known, classes=("",) * number)) for number in (count, count + 1))
    for key, shape in own.items():
        # the bias and the weights of a classifier, or of several
        place = next((place for place, (one, two) in enumerate(zip(shape, other.get(key, shape))) if one != two), None)
        if place is not None and key in weights and weights[key].ndim == len(shape):
            return weights[key].shape[place]
    return count


def _spec(
    known: ModelSpec,
    called: str,
    count: int,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    class_names: Sequence[str] | None,
) -> ModelSpec:
    """What was given, in place of what the source knows. Raises ModelError for values that no network can have."""
    if class_names is not None and len(class_names) != count:
        raise ModelError(f"{called} is for {count} classes, and {len(class_names)} names were given: allowed is one name for each class")
    names = class_names or (known.classes if len(known.classes) == count else [f"class {index}" for index in range(count)])
    title = one_line(Path(called).stem)[:_LABEL] or "imported"
    values = asdict(known) | {
        "name": title,
        "classes": tuple(names),
        "trained_on": f"not known: imported from {one_line(Path(called).name)[:200]}",
        "mean": known.mean if mean is None else tuple(mean),
        "std": known.std if std is None else tuple(std),
        "image_size": known.image_size if image_size is None else image_size,
        # the source's rule is for the source's size
        "resize": known.resize if image_size in (None, known.image_size) else None,
    }
    spec = ModelSpec(**values)
    check_spec(spec_values(spec), called)
    return spec


def _filled(spec: ModelSpec, weights: dict[str, Tensor], called: str) -> torch.nn.Module:
    """The network with these weights. Raises ModelError that names what does not fit, before anything large is built."""
    expected = layout_of(spec)
    for key in expected:
        if key.rpartition(".")[2] == _COUNTER:
            weights.setdefault(key, torch.zeros((), dtype=torch.long))
    check_layout({key: tuple(value.shape) for key, value in weights.items()}, expected, called, spec.architecture)
    other = [key for key, value in weights.items() if not value.is_floating_point() and not key.endswith(_COUNTER)]
    if other:
        raise ModelError(f"{called} has {weights[other[0]].dtype} in {first_names(other)}: allowed are floating point numbers")
    with torch.random.fork_rng(devices=[]):
        network = build_architecture(spec.architecture, len(spec.classes))
    fill(network, weights)
    return network.eval().requires_grad_(False)


def keep(write: Callable[[Path], object], suffix: str, folder: Path, label: str) -> Path:
    """Has `write` write a network below `folder`, whole, and names it by the hash of its content: the same network twice is one file.

    label: what the pages call it, which is in HASH.json beside it. Raises OSError when it cannot be kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        written = Path(temporary) / f"network{suffix}"
        write(written)
        with written.open("rb") as file:
            target = folder / f"{hashlib.file_digest(file, 'sha256').hexdigest()}{suffix}"
        if not target.exists():
            # first what it is called, so that a network is never without
            write_json(target.with_suffix(".json"), {"label": one_line(label)})
            written.replace(target)
            sync(folder)
    return target


def label(spec: ModelSpec, called: str) -> str:
    """What the pages call an imported network."""
    return f"{spec.name[:_LABEL]} ({len(spec.classes)} classes), imported from {Path(called).name[:_LABEL]}"
