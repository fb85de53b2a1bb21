"""Full-precision networks: location of the weights, normalization of the input, and classes.

A network has one of four names: a key of MODELS (embedded, available offline); ZOO:NAME, whose weights are downloaded on first use; the
path of a .safetensors checkpoint written by `python -m core pretrain` or core.models.importing, whose header contains the spec; or the
path of a .pt2 program (core.models.programs), which contains the spec in an extra file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.channels import MODES
from core.errors import ModelError, UnknownNameError, quoted
from core.files import atomic_write, check_regular
from core.gpu import repeat_to_the_bit
from core.models.divergence import check_tensors
from core.models.programs.archive import read_spec
from core.models.programs.translation import load_program
from core.models.registry import INTERPOLATIONS, MODELS, ModelSpec
from core.models.weights import HEADER_BYTES, NAME_LENGTH, check_layout, check_not_quantized, fill
from core.models.zoos.lookup import ZOOS, build_architecture, find_pretrained, is_zoo_name, load_pretrained
from core.models.zoos.zoo import shapes_only

# limits on the spec in a checkpoint's header, because the file may be untrusted
CLASSES = 50_000  # twice as many as ImageNet-21k
IMAGE_SIZE = 1024  # as in PretrainConfig
IMAGE_SIZES = f"an integer from 1 to {IMAGE_SIZE}, or two of them, height and width"
LARGEST_CONSTANT = 3  # of mean and std: with pixels from 0 to 1 both are at most 1, with pixels from 0 to 255 usually above 50
NEEDED_LAYER = "BatchNorm layer with running statistics, from which images are generated"
TEXT_LENGTH = 5000  # `trained_on` may be the path of a folder


@dataclass
class FullPrecisionModel:
    """A network in evaluation mode with frozen parameters, and its spec."""

    network: nn.Module
    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 `(N, C, H, W)` in [0, 255] -> normalized float32, (pixels / 255 - mean) / std, on the network's device."""
        mean, std = self._channel_constants()
        return (pixels.to(self.device).float() / 255 - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """Normalized float `(N, C, H, W)` -> uint8 in [0, 255], rounded to the nearest pixel value."""
        mean, std = self._channel_constants()
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest valid normalized value of each channel (black and white), both `(1, C, 1, 1)`."""
        mean, std = self._channel_constants()
        return (0 - mean) / std, (1 - mean) / std

    def _channel_constants(self) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1)
        return (
            torch.tensor(self.spec.mean, device=self.device).view(shape),
            torch.tensor(self.spec.std, device=self.device).view(shape),
        )


def resolve_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `mps`. For a GPU, deterministic algorithms are switched on (core/gpu.py).

    Raises ModelError if this machine does not have the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name, False):
        present = ", ".join(device for device, here in available.items() if here)
        raise ModelError(f"device must be one of auto, {present} on this machine, got {name!r}")
    if name == "cuda":
        repeat_to_the_bit()
    return torch.device(name)


def batch_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> BatchNorm2d layer with running statistics, in the order of the modules."""
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


@torch.no_grad()
def batch_norm_affine(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """a and b, both `(C,)`, such that the BatchNorm layer in evaluation mode computes a x + b."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.affine:
        scale = scale * layer.weight.detach()
        return scale, layer.bias.detach() - scale * layer.running_mean
    return scale, -scale * layer.running_mean


def load_model(name: str, device: str = "auto") -> FullPrecisionModel:
    """The network `name` in evaluation mode with frozen parameters.

    name: a key of MODELS, "ZOO:NAME", the path of a .safetensors checkpoint with a header written by `save_checkpoint`, or the path of a
    .pt2 program with a spec written by `core.models.programs.export.save_program`.
    Raises UnknownNameError for any other name; ModelError for a file that does not fit or cannot be downloaded, or a network without
    BatchNorm layers or with values that are not finite.
    """
    network, spec = load_pretrained(name) if is_zoo_name(name) else _load_file(name)
    if not batch_norm_layers(network):
        raise ModelError(f"{name!r} must have at least one {NEEDED_LAYER}")
    check_tensors(network, repr(name))
    network.eval().requires_grad_(False)
    # channels-last makes convolutions and statistics per channel faster
    return FullPrecisionModel(network.to(resolve_device(device)).to(memory_format=torch.channels_last), spec)


def _load_file(name: str) -> tuple[nn.Module, ModelSpec]:
    path, spec = find_model(name)
    if path.suffix.lower() == ".pt2":
        return load_program(path), spec
    try:
        with safe_open(path, framework="pt") as file:
            check_not_quantized(file.keys(), str(path))  # first, because that of a program has no architecture to be built
            expected = layout_of(spec)
            # check names and shapes first: torch's message about them has many lines, and tensors that fit are no larger than the file
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            check_layout(shapes, expected, str(path), spec.architecture)
            weights = {key: file.get_tensor(key) for key in shapes}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}); it must be a checkpoint written by `pretrain`") from error
    # the initial weights are overwritten, so drawing them must not advance the global random number generator
    with torch.random.fork_rng(devices=[]):
        network = build_architecture(spec.architecture, len(spec.classes), spec.channels)
    fill(network, weights)
    return network, spec


def layout_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a checkpoint of this network, computed without allocating them.

    Raises UnknownNameError or ModelError as `build_architecture` does.
    """
    return dict(_layout(spec.architecture, len(spec.classes), spec.channels)[0])


def further_names(spec: ModelSpec) -> dict[str, str]:
    """Further name of a tensor of this network -> its first name, for layers that share parameters or are registered twice."""
    return dict(_layout(spec.architecture, len(spec.classes), spec.channels)[1])


def batch_norm_names(spec: ModelSpec) -> list[str]:
    """Names of `batch_norm_layers`, without loading weights. Raises UnknownNameError or ModelError as `build_architecture` does."""
    return list(_layout(spec.architecture, len(spec.classes), spec.channels)[2])


@lru_cache(maxsize=64)  # finding an architecture asks for each layout several times
def _layout(architecture: str, classes: int, channels: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str], list[str]]:
    """Layout, further names, and names of the BatchNorm layers."""
    with shapes_only():
        network = build_architecture(architecture, classes, channels)
    state = network.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    further = {name: known for name, tensor in state.items() if (known := first.setdefault(id(tensor), name)) != name}
    return {key: tuple(value.shape) for key, value in state.items()}, further, list(batch_norm_layers(network))


def batch_norm_names_of(name: str) -> list[str]:
    """Names of `batch_norm_layers` of the network `name` (see `load_model`). Raises UnknownNameError or ModelError."""
    path, spec = find_model(name)
    return list(batch_norm_layers(load_program(path))) if path.suffix.lower() == ".pt2" else batch_norm_names(spec)


def scores_of(output: Any, count: int) -> Tensor:
    """The output of a network for `count` images. Raises ModelError unless it is one tensor of scores `(count, classes)`."""
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == count:
        return output
    what = f"a tensor {quoted(tuple(output.shape))}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ModelError(f"the network's output for {count} images must be one tensor of scores (images, classes), got {what}")


def find_model(name: str) -> tuple[Path, ModelSpec]:
    """Path of the weights of `name`, and its spec, without loading the weights. Raises UnknownNameError or ModelError.

    The weights of a zoo may not have been downloaded yet.
    """
    if name in MODELS:
        return MODELS[name]
    if is_zoo_name(name):
        return find_pretrained(name)
    path = Path(name)
    if path.suffix.lower() == ".pt2":
        return path, _program_spec(path)
    if path.suffix.lower() != ".safetensors":
        zoos = ", ".join(f"{zoo}:NAME" for zoo in ZOOS)
        files = "the path of a .safetensors checkpoint written by `pretrain`, or of a .pt2 program"
        raise UnknownNameError("model", name, [*MODELS, zoos, files])
    try:
        check_regular(path)
    except OSError as error:
        raise ModelError(
            f"{name} cannot be read ({error.strerror}); the path must be that of a .safetensors checkpoint written by `pretrain`"
        ) from error
    try:
        _check_header_length(path, name)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return path, _spec_from(header["spec"], name)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} must be a checkpoint written by `pretrain`, whose header describes the network") from error


def _program_spec(path: Path) -> ModelSpec:
    spec = program_spec(path)
    if spec is None:
        raise ModelError(f"{path} must contain its classes, image size, mean and standard deviation; import it with --weights first")
    return spec


def program_spec(path: Path) -> ModelSpec | None:
    """The spec in a .pt2 program, None if it has none. Raises ModelError for an invalid one, and for a file that is not a program."""
    text = read_spec(path)
    if text is None:
        return None
    try:
        return _spec_from(text, str(path))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} must contain a valid description of its network; import it with --weights first") from error


def spec_in(path: Path) -> ModelSpec | None:
    """The spec in the header of a .safetensors file, whatever its name; None if it has none, or is another file."""
    try:
        _check_header_length(path, str(path))
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("spec")
        return None if text is None else _spec_from(text, str(path))
    except (SafetensorError, OSError, ModelError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _spec_from(text: str, name: str) -> ModelSpec:
    """The checked spec in a file. Raises ModelError for invalid values; KeyError, TypeError, ValueError or RecursionError if `text` is not
    a spec."""
    values = json.loads(text)
    spec = ModelSpec(**{**values, "classes": tuple(values["classes"]), "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    check_spec(asdict(spec) | values, name, " in the header")
    return spec


def _check_header_length(path: Path, name: str) -> None:
    """Raises ModelError if the declared length of the header is above HEADER_BYTES, because it would be read and parsed at once."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES:
        raise ModelError(f"header of {name} must have at most {HEADER_BYTES:,} bytes, got {length:,}")


def spec_values(spec: ModelSpec) -> dict[str, Any]:
    """The fields of a spec as JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}


def check_spec(values: Mapping[str, Any], name: str, where: str = "") -> None:
    """Raises ModelError for invalid fields of the spec of `name`, given as JSON values. where: appended to the field in the message."""
    classes, size, resize, mean, std = (values[key] for key in ("classes", "image_size", "resize", "mean", "std"))
    names = isinstance(classes, list) and 0 < len(classes) <= CLASSES and all(_short(one, NAME_LENGTH) for one in classes)
    rules = (
        ("classes", names, f"1 to {CLASSES:,} names of at most {NAME_LENGTH} characters"),
        ("image_size", is_image_size(size), IMAGE_SIZES),
        ("mean", _numbers(mean) and len(mean) in MODES, f"{min(MODES)} to {max(MODES)} finite numbers, one for each channel"),
        (
            "std",
            _numbers(std) and len(std) == len(mean) and all(one >= 1e-6 for one in std),  # the divisor in float32
            "as many finite numbers as mean, of at least 0.000001",
        ),
        *((key, _short(values[key], NAME_LENGTH), f"a string of at most {NAME_LENGTH} characters") for key in ("name", "architecture")),
        ("trained_on", _short(values["trained_on"], TEXT_LENGTH), f"a string of at most {TEXT_LENGTH} characters"),
        (
            "resize",
            resize is None or (type(resize) is int and 0 < resize <= 2 * IMAGE_SIZE),
            f"null, or an integer from 1 to {2 * IMAGE_SIZE}",
        ),
        ("interpolation", values["interpolation"] in INTERPOLATIONS, " or ".join(INTERPOLATIONS)),
    )
    for key, fits, allowed in rules:
        if not fits:
            raise ModelError(f"{key}{where} of {name} must be {allowed}, got {quoted(values[key])}")
    _check_scale(values["mean"], std, name, where)


def _check_scale(mean: Sequence[float], std: Sequence[float], name: str, where: str) -> None:
    """Raises ModelError for mean and std of pixels from 0 to 255, which Caffe and mmpretrain use, with both of them divided by 255."""
    if max(map(abs, (*mean, *std))) <= LARGEST_CONSTANT:
        return
    # one of them may be of the other scale: a standard deviation of pixels from 0 to 1 is at most 0.5
    divided = [" ".join(f"{one / 255:.6g}" if max(map(abs, values)) >= 1 else f"{one:.6g}" for one in values) for values in (mean, std)]
    given = [" ".join(f"{one:g}" for one in values) for values in (mean, std)]
    raise ModelError(
        f"mean and std{where} of {name} must be those of pixels from 0 to 1, but {given[0]} and {given[1]} are of pixels from 0 to 255; "
        f"divided by 255 they are mean {divided[0]} and std {divided[1]}"
    )


def _short(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length


def is_image_size(value: Any) -> bool:
    """Whether an untrusted value is one of IMAGE_SIZES."""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    return all(type(side) is int and 0 < side <= IMAGE_SIZE for side in sides)


def _numbers(values: Any) -> bool:
    # the bound excludes NaN and infinity
    return isinstance(values, list) and all(type(value) in (int, float) and abs(value) < 1e6 for value in values)


def save_checkpoint(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes the weights, and the spec in the header, atomically; the path is then the name of a model."""
    # copies, because safetensors refuses tensors that share memory, as those of tied layers do
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={"spec": json.dumps(asdict(spec))})
