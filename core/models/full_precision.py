"""Full-precision networks: where their weights lie, how their input is normalised, which classes they tell apart.

Four ways to name one: a name of MODELS (embedded, works offline); ZOO:NAME of another zoo, whose weights are downloaded on first use;
the path of a .safetensors checkpoint written by `python -m core pretrain` or by core.models.importing, whose header says which
architecture it is, how images are normalised and what the classes are; or the path of a .pt2 program (core.models.program) that has the
same in an extra file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ModelError, UnknownNameError, quoted
from core.files import atomic_write
from core.gpu import repeat_to_the_bit
from core.models.programs.archive import read_spec
from core.models.programs.translation import load_program
from core.models.registry import INTERPOLATIONS, MODELS, ModelSpec
from core.models.weights import HEADER_BYTES, NAME_LENGTH, check_layout, fill
from core.models.zoos.lookup import ZOOS, build_architecture, find_pretrained, is_zoo_name, load_pretrained
from core.models.zoos.zoo import shapes_only

# what the header of a checkpoint may say; such a file can come from anybody
CLASSES = 50_000  # twice those of ImageNet-21k
IMAGE_SIZE = 1024  # as in PretrainConfig
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
    """`auto`, `cpu`, `cuda` or `mps` as a torch device; a GPU gives the same bits again from then on (core/gpu.py).

    Raises ModelError when this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name, False):
        present = ", ".join(device for device, here in available.items() if here)
        raise ModelError(f"device {name!r} is not available on this machine: allowed are auto, {present}")
    if name == "cuda":
        repeat_to_the_bit()
    return torch.device(name)


def batch_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> BatchNorm2d layer that keeps running statistics, in the order of the modules."""
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


@torch.no_grad()
def batch_norm_affine(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """a and b, both `(C,)`, with which a BatchNorm layer in evaluation mode is a x + b."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.affine:
        scale = scale * layer.weight.detach()
        return scale, layer.bias.detach() - scale * layer.running_mean
    return scale, -scale * layer.running_mean


def load_model(name: str, device: str = "auto") -> FullPrecisionModel:
    """The network `name`, evaluation mode, parameters frozen.

    name: a key of MODELS, "ZOO:NAME", a path to a .safetensors checkpoint with a header written by `save_checkpoint`, or to a .pt2
    program with the spec that `core.models.programs.translation.save_program` writes.
    Raises UnknownNameError for a name that is none of them; ModelError for a file that does not fit or cannot be downloaded, or a
    network without BatchNorm.
    """
    network, spec = load_pretrained(name) if is_zoo_name(name) else _load_file(name)
    if not batch_norm_layers(network):
        raise ModelError(
            f"{name!r} has no BatchNorm layer with running statistics: allowed are networks with at least one, as images are made from them"
        )
    network.eval().requires_grad_(False)
    # channels-last: convolutions are faster so, and the statistics of a channel lie together
    return FullPrecisionModel(network.to(resolve_device(device)).to(memory_format=torch.channels_last), spec)


def _load_file(name: str) -> tuple[nn.Module, ModelSpec]:
    path, spec = find_model(name)
    if path.suffix == ".pt2":
        return load_program(path), spec
    expected = layout_of(spec)
    try:
        with safe_open(path, framework="pt") as file:
            # names and shapes first: torch's own message about them runs over many lines, and what fits is no larger than the file
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            check_layout(shapes, expected, str(path), spec.architecture)
            weights = {key: file.get_tensor(key) for key in shapes}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}): allowed is a checkpoint made by `pretrain`") from error
    # the untrained weights are thrown away, and nobody's random numbers are used up for them
    with torch.random.fork_rng(devices=[]):
        network = build_architecture(spec.architecture, len(spec.classes))
    fill(network, weights)
    return network, spec


def layout_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a checkpoint of this network holds. Takes no memory, however large the network.

    Raises UnknownNameError or ModelError as `build_architecture` does.
    """
    return {key: tuple(value.shape) for key, value in _shapes_only(spec).state_dict().items()}


def batch_norm_names(spec: ModelSpec) -> list[str]:
    """Names of `batch_norm_layers`, without weights. Raises UnknownNameError or ModelError as `build_architecture` does."""
    return list(batch_norm_layers(_shapes_only(spec)))


def batch_norm_names_of(name: str) -> list[str]:
    """Names of `batch_norm_layers` of the network `name`, as `load_model` takes it. Raises UnknownNameError or ModelError."""
    path, spec = find_model(name)
    return list(batch_norm_layers(load_program(path))) if path.suffix == ".pt2" else batch_norm_names(spec)


def _shapes_only(spec: ModelSpec) -> nn.Module:
    with shapes_only():
        return build_architecture(spec.architecture, len(spec.classes))


def scores_of(output: Any, count: int) -> Tensor:
    """What a network puts out for `count` images. Raises ModelError unless it is one tensor of scores `(count, classes)`."""
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == count:
        return output
    what = f"a tensor {quoted(tuple(output.shape))}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ModelError(f"the network puts out {what} for {count} images: allowed is one tensor of scores (images, classes)")


def find_model(name: str) -> tuple[Path, ModelSpec]:
    """Where the weights of `name` lie and its spec, without loading them. Raises UnknownNameError or ModelError.

    Those of a zoo may still have to be downloaded to there.
    """
    if name in MODELS:
        return MODELS[name]
    if is_zoo_name(name):
        return find_pretrained(name)
    path = Path(name)
    if path.suffix == ".pt2":
        return path, _program_spec(path)
    if path.suffix != ".safetensors":
        zoos = ", ".join(f"{zoo}:NAME" for zoo in ZOOS)
        files = "the path of a .safetensors checkpoint made by `pretrain`, or of a .pt2 program"
        raise UnknownNameError("model", name, [*MODELS, zoos, files])
    if not os.path.isfile(name):  # unlike Path's, False for a name that is too long, or in a folder that may not be entered
        raise ModelError(f"{name} does not exist: allowed is a .safetensors checkpoint made by `pretrain`")
    try:
        _check_header_length(path, name)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return path, _spec_from(header["spec"], name)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} does not say what network it holds: allowed is a checkpoint made by `pretrain`") from error


def _program_spec(path: Path) -> ModelSpec:
    allowed = "a program with classes, image size, mean and standard deviation, as importing it writes one"
    text = read_spec(path)
    if text is None:
        raise ModelError(f"{path} does not say what its classes are and how its images are normalised: allowed is {allowed}")
    try:
        return _spec_from(text, str(path))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not say what network it holds: allowed is {allowed}") from error


def _spec_from(text: str, name: str) -> ModelSpec:
    """The spec of a file, checked. Raises ModelError for values that no network can have, and what a text that is no spec makes Python
    raise."""
    values = json.loads(text)
    spec = ModelSpec(**{**values, "classes": tuple(values["classes"]), "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    check_spec(asdict(spec) | values, name, " in its header")
    return spec


def _check_header_length(path: Path, name: str) -> None:
    """Raises ModelError for a header that says that it is longer than any network's: it would be read and parsed whole."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES:
        raise ModelError(f"{name} has a header of {length:,} bytes: allowed is at most {HEADER_BYTES:,}")


def spec_values(spec: ModelSpec) -> dict[str, Any]:
    """The fields of a spec as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}


def check_spec(values: Mapping[str, Any], name: str, where: str = "") -> None:
    """Raises ModelError when the fields of a spec, as JSON has them, have values that no network `name` can have."""
    classes, size, std, resize = values["classes"], values["image_size"], values["std"], values["resize"]
    names = isinstance(classes, list) and 0 < len(classes) <= CLASSES and all(_short(one, NAME_LENGTH) for one in classes)
    rules = (
        ("classes", names, f"a list of names, 1 to {CLASSES:,} of at most {NAME_LENGTH} characters"),
        ("image_size", type(size) is int and 0 < size <= IMAGE_SIZE, f"a whole number above 0, at most {IMAGE_SIZE}"),
        ("mean", _three_numbers(values["mean"]), "three finite numbers"),
        ("std", _three_numbers(std) and min(std) >= 1e-6, "three finite numbers, at least 0.000001"),  # what divides in float32
        *((key, _short(values[key], NAME_LENGTH), f"a text of at most {NAME_LENGTH} characters") for key in ("name", "architecture")),
        ("trained_on", _short(values["trained_on"], TEXT_LENGTH), f"a text of at most {TEXT_LENGTH} characters"),
        (
            "resize",
            resize is None or (type(resize) is int and 0 < resize <= 2 * IMAGE_SIZE),
            f"none, or a whole number above 0, at most {2 * IMAGE_SIZE}",
        ),
        ("interpolation", values["interpolation"] in INTERPOLATIONS, " or ".join(INTERPOLATIONS)),
    )
    for key, fits, allowed in rules:
        if not fits:
            raise ModelError(f"{name} has {key} {quoted(values[key])}{where}: allowed is {allowed}")


def _short(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length


def _three_numbers(values: Any) -> bool:
    # mean and standard deviation of values in [0, 1] are small; the bound is for NaN and infinity
    return isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) and abs(value) < 1e6 for value in values)


def save_checkpoint(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes the weights and, in the header, the spec, so that the file can be used as a model's name; the whole file or none."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={"spec": json.dumps(asdict(spec))})
