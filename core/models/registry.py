"""The embedded networks: where their weights lie, how their input is normalised, which classes they tell apart. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ASSETS = Path(__file__).parents[2] / "assets"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class ModelSpec:
    """What has to be known of a network besides its weights."""

    name: str
    architecture: str  # pytorchcv's name
    classes: tuple[str, ...]
    image_size: int  # pixels, height and width
    mean: tuple[float, float, float]  # of RGB in [0, 1]
    std: tuple[float, float, float]
    trained_on: str


MODELS: Mapping[str, tuple[Path, ModelSpec]] = MappingProxyType(
    {
        "resnet20_cifar10": (
            ASSETS / "models" / "resnet20_cifar10.safetensors",
            ModelSpec(
                name="resnet20_cifar10",
                architecture="resnet20_cifar10",
                classes=CIFAR10_CLASSES,
                image_size=32,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.2470, 0.2435, 0.2616),
                trained_on="the 50,000 CIFAR-10 training images, by this project",
            ),
        )
    }
)
