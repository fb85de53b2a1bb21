"""Specs and names of networks, and the embedded networks with their weights. Imports no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from core.channels import MODES, height_and_width, one_or_two
from core.errors import ModelError, one_line
from core.models.shards import total_size

ASSETS = Path(__file__).parents[2] / "assets"
# Limit on an imported network; a ResNet-152 is 230 MB. Streamlit holds an upload in memory, up to `server.maxUploadSize`.
NETWORK_BYTES = 500 << 20
NETWORK_SUFFIXES = (".safetensors", ".pt2")  # of names of networks that are files
INTERPOLATIONS = ("bilinear", "bicubic")
_HASH = re.compile(r"[0-9a-f]{64}")  # the name of a network that `core.models.user_files` or an upload stored
_FROM = re.compile(r" classes\), (?:uploaded as|imported from) (.+)")  # in its label
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# in the order of the labels
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
    kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
    orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 (a hundred quotation marks)
)


@dataclass(frozen=True)
class ModelSpec:
    """Description of a network apart from its weights."""

    name: str
    architecture: str  # ZOO:NAME, or "program"; a name without a zoo is pytorchcv's
    classes: tuple[str, ...]
    image_size: int | tuple[int, int]  # height and width in pixels; one number for square images
    mean: tuple[float, ...]  # of each channel, 1 to 4 of them, of values in [0, 1]
    std: tuple[float, ...]
    trained_on: str
    # length in pixels to which the short side of evaluation images is resized before the center crop; None: see core.data.labeled
    resize: int | None = None
    interpolation: str = "bilinear"  # one of INTERPOLATIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", one_or_two(self.image_size))

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return len(self.mean)

    @property
    def mode(self) -> str:
        """Pillow's mode of the images."""
        return MODES[self.channels]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return height_and_width(self.image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.channels, *self.size)


@dataclass(frozen=True)
class GivenSpec:
    """What the user states about a network to be imported; None for what its source or the file determines.

    classes: number of classes. image_size: height and width in pixels, or one number for both. mean, std: one number for each channel, of
    values in [0, 1], as used in training.
    class_names: one for each class.
    """

    classes: int | None = None
    image_size: int | Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    class_names: Sequence[str] | None = None


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


def check_size(file: Path, source: str) -> None:
    """Raises ModelError if the file is missing, not a regular file, or larger than NETWORK_BYTES: of an index, its shards together."""
    try:
        size = total_size(file, source)
    except OSError as error:
        raise ModelError(
            f"{source} cannot be read ({error.strerror}); it must be a .safetensors file, a state dict by torch.save, or a .pt2 program"
        ) from error
    if size > NETWORK_BYTES:
        raise ModelError(f"size of {source} must be at most {NETWORK_BYTES:,} bytes, got {size:,}")


def own_name(model: str) -> str:
    """The name of a network for people: of a stored one, that of the file it came from; of another file, without its folder."""
    path = Path(model)
    if not model.endswith(NETWORK_SUFFIXES):
        return path.name if path.is_absolute() else model
    if not _HASH.fullmatch(path.stem):
        return path.name
    try:
        label = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["label"]
        found = _FROM.search(label)
    except (OSError, ValueError, KeyError, TypeError):
        return f"an uploaded network ({path.stem[:8]})"
    return one_line(found[1] if found else label)
