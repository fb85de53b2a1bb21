"""Full-precision networks: where their weights lie, how their input is normalised, which classes they tell apart.

Two ways to name one: a name of MODELS (embedded, works offline), or the path of a .safetensors checkpoint written by
`python -m core pretrain`, whose header says which pytorchcv architecture it is, how images are normalised and what the classes are.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytorchcv.model_provider import get_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ModelError, UnknownNameError, shown
from core.files import whole
from core.models.registry import MODELS, ModelSpec

# what the header of a checkpoint may say; such a file can come from anybody
HEADER_BYTES = 16 << 20  # the largest networks of pytorchcv need 1 MB, and names of classes as much again
CLASSES = 50_000  # twice those of ImageNet-21k
IMAGE_SIZE = 1024  # as in PretrainConfig
NAME_LENGTH = 200
TEXT_LENGTH = 5000  # what a network was trained on may be the path of a folder


@dataclass
class FullPrecisionModel:
    """A network in evaluation mode with frozen parameters, and its spec."""

    network: nn.Module
    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 `(N, 3, H, W)` in [0, 255] -> float32 in the network's normalised space, on the network's device."""
        mean, std = self._channel_constants()
        return (pixels.to(self.device).float() / 255 - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised float `(N, 3, H, W)` -> uint8 in [0, 255], rounded to the nearest pixel value."""
        mean, std = self._channel_constants()
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid value of each channel in normalised space, both `(1, 3, 1, 1)`: black and white."""
        mean, std = self._channel_constants()
        return (0 - mean) / std, (1 - mean) / std

    def _channel_constants(self) -> tuple[Tensor, Tensor]:
        shape = (1, 3, 1, 1)
        return (
            torch.tensor(self.spec.mean, device=self.device).view(shape),
            torch.tensor(self.spec.std, device=self.device).view(shape),
        )


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `mps` as a torch device. Raises ModelError when this machine has no such device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name, False):
        present = ", ".join(device for device, here in available.items() if here)
        raise ModelError(f"device {name!r} is not available on this machine: allowed are auto, {present}")
    return torch.device(name)


def batch_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> BatchNorm2d layer that keeps running statistics, in the order of the modules."""
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


def build_architecture(architecture: str, classes: int) -> nn.Module:
    """An untrained pytorchcv network with weights from torch's global random numbers.

    Raises UnknownNameError for a name that pytorchcv does not have, ModelError when the network cannot be had for so many classes.
    """
    try:
        return get_model(architecture, pretrained=False, num_classes=classes)
    except AssertionError:
        pass  # those for CIFAR insist on its 10 or 100 classes, for no other reason than their name
    except (ValueError, TypeError, ImportError) as error:  # others are no classifiers, some want packages of their own
        raise UnknownNameError("architecture", architecture, ["any classifier of pytorchcv, such as resnet20_cifar10"]) from error
    network = get_model(architecture, pretrained=False)
    _replace_output(network, architecture, classes)
    return network


def _replace_output(network: nn.Module, architecture: str, classes: int) -> None:
    """Puts an untrained last layer with `classes` outputs in the place of the network's own. Raises ModelError where there is none."""
    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    present = getattr(network, "num_classes", None)
    parent, _, attribute = name.rpartition(".")
    if isinstance(last, nn.Linear) and last.out_features == present:
        output: nn.Module = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    elif isinstance(last, nn.Conv2d) and last.out_channels == present and last.kernel_size == (1, 1) and last.groups == 1:
        output = nn.Conv2d(last.in_channels, classes, 1, bias=last.bias is not None)
    else:
        raise ModelError(f"{architecture!r} cannot be built for {classes} classes: allowed are {present}")
    setattr(network.get_submodule(parent), attribute, output)


def load_model(name: str, device: str = "auto") -> FullPrecisionModel:
    """The network `name`, evaluation mode, parameters frozen.

    name: a key of MODELS, or a path to a .safetensors checkpoint with a header written by `save_checkpoint`.
    Raises UnknownNameError for a name that is neither; ModelError for a file that does not fit or a network without BatchNorm.
    """
    path, spec = find_model(name)
    expected = layout_of(spec)
    try:
        with safe_open(path, framework="pt") as file:
            # names and shapes first: torch's own message about them runs over many lines, and what fits is no larger than the file
            names = set(file.keys())
            missing, unexpected = sorted(set(expected) - names), sorted(names - set(expected))
            if missing or unexpected:
                raise ModelError(
                    f"{path} does not fit {spec.architecture}, whose own tensors are allowed: "
                    f"missing {_first_names(missing)}, unexpected {_first_names(unexpected)}"
                )
            for key in sorted(names):
                shape = tuple(file.get_slice(key).get_shape())
                if shape != expected[key]:
                    raise ModelError(f"{path} does not fit {spec.architecture}: {key} is {shown(shape)}, allowed is {expected[key]}")
            weights = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}): allowed is a checkpoint made by `pretrain`") from error
    # the untrained weights are thrown away, and nobody's random numbers are used up for them
    with torch.random.fork_rng(devices=[]):
        network = build_architecture(spec.architecture, len(spec.classes))
    network.load_state_dict(weights)
    if not batch_norm_layers(network):
        raise ModelError(
            f"{name!r} has no BatchNorm layer with running statistics: allowed are networks with at least one, as images are made from them"
        )
    network.eval().requires_grad_(False)
    # channels-last: convolutions are faster so, and the statistics of a channel lie together
    return FullPrecisionModel(network.to(resolve_device(device)).to(memory_format=torch.channels_last), spec)


def layout_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a checkpoint of this network holds. Takes no memory, however large the network.

    Raises UnknownNameError or ModelError as `build_architecture` does.
    """
    return {key: tuple(value.shape) for key, value in _shapes_only(spec).state_dict().items()}


def batch_norm_names(spec: ModelSpec) -> list[str]:
    """Names of `batch_norm_layers`, without weights. Raises UnknownNameError or ModelError as `build_architecture` does."""
    return list(batch_norm_layers(_shapes_only(spec)))


def _shapes_only(spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build_architecture(spec.architecture, len(spec.classes))


@torch.no_grad()
def check_scores(model: FullPrecisionModel, name: str, size: int | None = None) -> None:
    """One black image through the network, of its own size or `size` pixels. Raises ModelError unless it gives one finite score a class."""
    size, classes = model.spec.image_size if size is None else size, len(model.spec.classes)
    image = torch.zeros(1, 3, size, size, device=model.device).to(memory_format=torch.channels_last)
    try:
        scores = model.network(image)
        fits = isinstance(scores, Tensor) and tuple(scores.shape) == (1, classes) and bool(scores.isfinite().all())
        reason = "its scores are not"
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError) as error:
        fits, reason = False, next(iter(str(error).splitlines()), type(error).__name__)
    if not fits:
        raise ModelError(f"{name} cannot take an image of {size} x {size} pixels ({reason}): allowed is one finite score for each class")


def scores_of(output: Any, count: int) -> Tensor:
    """What a network puts out for `count` images. Raises ModelError unless it is one tensor of scores `(count, classes)`."""
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == count:
        return output
    what = f"a tensor {shown(tuple(output.shape))}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ModelError(f"the network puts out {what} for {count} images: allowed is one tensor of scores (images, classes)")


def find_model(name: str) -> tuple[Path, ModelSpec]:
    """Where the weights of `name` lie and its spec, without loading them. Raises UnknownNameError or ModelError."""
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if path.suffix != ".safetensors":
        raise UnknownNameError("model", name, [*MODELS, "the path of a .safetensors checkpoint made by `pretrain`"])
    if not os.path.isfile(name):  # unlike Path's, False for a name that is too long, or in a folder that may not be entered
        raise ModelError(f"{name} does not exist: allowed is a .safetensors checkpoint made by `pretrain`")
    try:
        _check_header_length(path, name)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        values = json.loads(header["spec"])
        spec = ModelSpec(**{**values, "classes": tuple(values["classes"]), "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} does not say what network it holds: allowed is a checkpoint made by `pretrain`") from error
    _check_spec(values, name)
    return path, spec


def _check_header_length(path: Path, name: str) -> None:
    """Raises ModelError for a header that says that it is longer than any network's: it would be read and parsed whole."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES:
        raise ModelError(f"{name} has a header of {length:,} bytes: allowed is at most {HEADER_BYTES:,}")


def _check_spec(values: Mapping[str, Any], name: str) -> None:
    """Raises ModelError when the header of the checkpoint `name` has values that no network can have."""
    classes, size, std = values["classes"], values["image_size"], values["std"]
    names = isinstance(classes, list) and 0 < len(classes) <= CLASSES and all(_short(one, NAME_LENGTH) for one in classes)
    rules = (
        ("classes", names, f"a list of names, 1 to {CLASSES:,} of at most {NAME_LENGTH} characters"),
        ("image_size", type(size) is int and 0 < size <= IMAGE_SIZE, f"a whole number above 0, at most {IMAGE_SIZE}"),
        ("mean", _three_numbers(values["mean"]), "three finite numbers"),
        ("std", _three_numbers(std) and min(std) >= 1e-6, "three finite numbers, at least 0.000001"),  # what divides in float32
        *((key, _short(values[key], NAME_LENGTH), f"a text of at most {NAME_LENGTH} characters") for key in ("name", "architecture")),
        ("trained_on", _short(values["trained_on"], TEXT_LENGTH), f"a text of at most {TEXT_LENGTH} characters"),
    )
    for key, fits, allowed in rules:
        if not fits:
            raise ModelError(f"{name} has {key} {shown(values[key])} in its header: allowed is {allowed}")


def _first_names(names: Sequence[str]) -> str:
    # those of the file are whatever somebody wrote into it
    shown = [name if name.isprintable() and len(name) <= NAME_LENGTH else repr(name[:50]) for name in names[:3]]
    return (", ".join(shown) or "nothing") + (" ..." if len(names) > 3 else "")


def _short(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length


def _three_numbers(values: Any) -> bool:
    # mean and standard deviation of values in [0, 1] are small; the bound is for NaN and infinity
    return isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) and abs(value) < 1e6 for value in values)


def save_checkpoint(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes the weights and, in the header, the spec, so that the file can be used as a model's name; the whole file or none."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with whole(path) as partial:
        save_file(state, partial, metadata={"spec": json.dumps(asdict(spec))})
