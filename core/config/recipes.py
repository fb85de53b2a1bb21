"""The recipes that made the embedded network and the embedded CLIP encoder: their knobs."""

from dataclasses import Field, dataclass
from typing import Any

from core.channels import height_and_width, one_or_two
from core.config.choices import DEVICES
from core.config.knobs import Checked, knob
from core.errors import ConfigError

_ANY_NETWORK = "No seed is better than another; each gives another network."
_ANY_ENCODER = "No seed is better than another; each gives another encoder, whose similarities are on another scale."
_GIVEN = "none of its own, it uses the weights of pytorchcv"
_GIVEN_ENCODER = "none of its own, it uses a CLIP that is not named"
_TRAINING_IMAGES = "Training images: cifar10 or cifar100 (downloaded by torchvision), or a folder with one folder per class."


@dataclass(frozen=True)
class PretrainConfig(Checked):
    """Knobs of the pretraining. The defaults made the embedded resnet20_cifar10."""

    architecture: str = knob(
        "resnet20_cifar10", "A classifier of pytorchcv, by its name there; or torchvision:NAME or timm:NAME.", paper=_GIVEN
    )
    data: str = knob("cifar10", _TRAINING_IMAGES, paper=_GIVEN)
    image_size: int | tuple[int, int] = knob(
        32,
        "Side of the images in pixels, or height and width.",
        minimum=8,
        maximum=1024,
        low="details that tell classes apart are lost, and deep networks have no pixels left in their last layers.",
        high="time and memory grow with its square.",
        paper=_GIVEN,
    )
    channels: int = knob(
        3,
        "Channels of the images: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.",
        minimum=1,
        maximum=4,
        low="1 leaves out colors.",
        high="a file without an alpha channel gets one that is the same everywhere.",
        paper=_GIVEN,
    )
    epochs: int = knob(
        36,
        "Passes over the training images.",
        minimum=1,
        maximum=10_000,
        low="the network underfits.",
        high="takes proportionally longer, gains little and may overfit.",
        paper=_GIVEN,
    )
    batch_size: int = knob(
        128,
        "Images in a training step.",
        minimum=2,
        maximum=65_536,
        low="noisy gradients and BatchNorm statistics.",
        high="takes more memory, and needs a larger step size to converge in as few epochs.",
        paper=_GIVEN,
    )
    lr: float = knob(
        0.2,
        "Peak step size of SGD: 2 epochs of warm-up, then cosine decay to zero.",
        minimum=1e-8,
        maximum=10.0,
        low="learns slowly and ends with lower accuracy.",
        high="the loss oscillates or diverges.",
        paper=_GIVEN,
    )
    weight_decay: float = knob(
        5e-4,
        "Weight decay, on kernels and the classifier only.",
        minimum=0.0,
        maximum=1.0,
        low="overfits.",
        high="keeps the weights too small to fit the images.",
        paper=_GIVEN,
    )
    label_smoothing: float = knob(
        0.05,
        "Label smoothing in the first 80 % of epochs.",
        minimum=0.0,
        maximum=0.9,
        low="0 trains toward full confidence in each label.",
        high="the network stays uncertain about every image.",
        paper=_GIVEN,
    )
    crop_padding: int = knob(
        4,
        "Reflect padding of the random crop, in pixels.",
        minimum=0,
        maximum=64,
        low="0 shows each image in one position only.",
        high="much of each image is reflected border.",
        paper=_GIVEN,
    )
    seed: int = knob(
        0, "Seed of the weights, order, crops and flips.", minimum=0, maximum=2**31 - 1, low=_ANY_NETWORK, high=_ANY_NETWORK, paper=_GIVEN
    )
    threads: int = knob(
        0,
        "CPU threads; 0 lets torch choose.",
        minimum=0,
        maximum=1024,
        low="1 leaves cores idle.",
        high="more threads than cores slow each other down.",
        paper=_GIVEN,
    )
    device: str = knob("auto", "Where to compute; auto uses CUDA, else MPS, else the CPU.", choices=DEVICES, paper=_GIVEN)

    def __post_init__(self) -> None:
        if isinstance(self.image_size, (list, tuple)) and len(self.image_size) == 2:
            object.__setattr__(self, "image_size", one_or_two(self.image_size))
        super().__post_init__()
        shorter = min(height_and_width(self.image_size))
        if self.crop_padding >= shorter:
            raise ConfigError(
                f"crop_padding must be less than image_size ({shorter}), because the border is a reflection of the image, "
                f"got {self.crop_padding}"
            )

    @classmethod
    def _check(cls, name: str, value: Any, knob_field: Field) -> None:
        """Height and width are checked one by one."""
        sides = value if name == "image_size" and isinstance(value, tuple) and len(value) == 2 else (value,)
        for side in sides:
            super()._check(name, side, knob_field)


@dataclass(frozen=True)
class EncoderTrainingConfig(Checked):
    """Knobs of the contrastive training. The defaults made the embedded encoder."""

    data: str = knob("cifar10", _TRAINING_IMAGES, paper=_GIVEN_ENCODER)
    epochs: int = knob(
        12,
        "Passes over the training images.",
        minimum=1,
        maximum=10_000,
        low="similar images are embedded no closer together than others.",
        high="takes proportionally longer and gains little.",
        paper=_GIVEN_ENCODER,
    )
    batch_size: int = knob(
        256,
        "Images and captions contrasted with each other.",
        minimum=2,
        maximum=65_536,
        low="each image is contrasted with few others, so the network learns little.",
        high="takes more memory, and more captions in a batch are the same.",
        paper=_GIVEN_ENCODER,
    )
    lr: float = knob(
        2e-3,
        "Peak step size of AdamW: warm-up over 5 % of the steps, then cosine decay to zero.",
        minimum=1e-8,
        maximum=1.0,
        low="learns slowly and ends with lower accuracy.",
        high="the loss oscillates, and all embeddings may collapse.",
        paper=_GIVEN_ENCODER,
    )
    weight_decay: float = knob(
        0.05,
        "Weight decay of AdamW, on matrices and kernels only.",
        minimum=0.0,
        maximum=1.0,
        low="overfits.",
        high="keeps the weights too small to tell images apart.",
        paper=_GIVEN_ENCODER,
    )
    crop_padding: int = knob(
        4,
        "Reflect padding of the random crop, in pixels of the original image.",
        minimum=0,
        maximum=64,
        low="0 shows each image in one position only.",
        high="much of each image is reflected border.",
        paper=_GIVEN_ENCODER,
    )
    seed: int = knob(
        0,
        "Seed of the weights, order, crops and captions.",
        minimum=0,
        maximum=2**31 - 1,
        low=_ANY_ENCODER,
        high=_ANY_ENCODER,
        paper=_GIVEN_ENCODER,
    )
    threads: int = knob(
        0,
        "CPU threads; 0 lets torch choose.",
        minimum=0,
        maximum=1024,
        low="1 leaves cores idle.",
        high="more threads than cores slow each other down.",
        paper=_GIVEN_ENCODER,
    )
