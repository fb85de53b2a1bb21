"""Full-precision networks: where their weights lie, how their input is normalised, which classes they tell apart.

Two ways to name one: a name of MODELS (embedded, works offline), or the path of a .safetensors checkpoint written by
`python -m core pretrain`, whose header says which pytorchcv architecture it is, how images are normalised and what the classes are.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pytorchcv.model_provider import get_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ModelError, UnknownNameError
from core.models.registry import MODELS, ModelSpec


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
    """An untrained pytorchcv network. Raises UnknownNameError for a name that pytorchcv does not have."""
    try:
        return get_model(architecture, pretrained=False, num_classes=classes)
    except ValueError as error:
        raise UnknownNameError("architecture", architecture, ["any classifier of pytorchcv, such as resnet20_cifar10"]) from error


def load_model(name: str, device: str = "auto") -> FullPrecisionModel:
    """The network `name`, evaluation mode, parameters frozen.

    name: a key of MODELS, or a path to a .safetensors checkpoint with a header written by `save_checkpoint`.
    Raises UnknownNameError for a name that is neither; ModelError for a file that does not fit or a network without BatchNorm.
    """
    path, spec = find_model(name)
    network = build_architecture(spec.architecture, len(spec.classes))
    try:
        with safe_open(path, framework="pt") as file:
            # shapes first: torch's own message about them runs over many lines
            expected = network.state_dict()
            names = set(file.keys())
            missing, unexpected = sorted(set(expected) - names), sorted(names - set(expected))
            if missing or unexpected:
                raise ModelError(
                    f"{path} does not fit {spec.architecture}: missing {', '.join(missing[:3]) or 'nothing'}"
                    f"{' ...' if len(missing) > 3 else ''}, unexpected {', '.join(unexpected[:3]) or 'nothing'}"
                    f"{' ...' if len(unexpected) > 3 else ''}"
                )
            weights = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise ModelError(
                f"{path} does not fit {spec.architecture}: {key} is {tuple(value.shape)}, allowed is {tuple(expected[key].shape)}"
            )
    network.load_state_dict(weights)
    if not batch_norm_layers(network):
        raise ModelError(
            f"{name!r} has no BatchNorm layer with running statistics: allowed are networks with at least one, as images are made from them"
        )
    network.eval().requires_grad_(False)
    return FullPrecisionModel(network.to(resolve_device(device)), spec)


def find_model(name: str) -> tuple[Path, ModelSpec]:
    """Where the weights of `name` lie and its spec, without loading them. Raises UnknownNameError or ModelError."""
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if path.suffix != ".safetensors":
        raise UnknownNameError("model", name, [*MODELS, "the path of a .safetensors checkpoint made by `pretrain`"])
    if not path.is_file():
        raise ModelError(f"{name} does not exist: allowed is a .safetensors checkpoint made by `pretrain`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        values = json.loads(header["spec"])
        spec = ModelSpec(**{**values, "classes": tuple(values["classes"]), "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{name} does not say what network it holds: allowed is a checkpoint made by `pretrain`") from error
    return path, spec


def save_checkpoint(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes the weights and, in the header, the spec, so that the file can be used as a model's name."""
    temporary = path.with_suffix(".partial")
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(state, temporary, metadata={"spec": json.dumps(asdict(spec))})
    temporary.replace(path)
