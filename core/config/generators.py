"""Knobs of the methods that train a generator."""

from dataclasses import dataclass

from core.config.knobs import Checked, knob

CONDITIONINGS = ("auto", "embedding", "batch-norm")
_GENERATORS = ("gdfq",)
_LABELED = ("gdfq",)  # the methods that match BatchNorm statistics


@dataclass(frozen=True)
class GeneratorKnobs(Checked):
    """Knobs that only methods with a generator have; part of GenerationConfig."""

    generator_batch_size: int = knob(
        32,
        "Images in an iteration of a generator. An image costs about four times as much as one whose pixels are moved.",
        minimum=2,
        maximum=4096,
        label="Generator batch size",
        paper="CIFAR 200, ImageNet 16",
        of=_GENERATORS,
        low="batch statistics are too noisy to match.",
        high="takes proportionally more memory and time per iteration.",
    )
    generator_lr: float = knob(
        1e-3,
        "Step size of the generator's Adam.",
        minimum=0.0,
        maximum=1.0,
        label="generator step size",
        symbol="lr_G",
        paper="1e-3",
        step=1e-4,
        live=True,
        slider=(1e-5, 0.1),
        log=True,
        of=_GENERATORS,
        low="images stay what the untrained generator makes.",
        high="the loss oscillates, and all images may become alike.",
    )
    alpha_bns: float = knob(
        0.1,
        "Weight of the squared gaps between batch and running statistics, mean over channels and layers, in a generator's loss.",
        minimum=0.0,
        maximum=100.0,
        label="α_BNS statistics",
        symbol="α_BNS",
        paper="0.1",
        step=0.01,
        live=True,
        slider=(1e-3, 10.0),
        log=True,
        of=_LABELED,
        low="0 follows labels alone: statistics do not match.",
        high="outweighs the labels.",
    )
    latent: int = knob(
        0,
        "Length of the noise vector that an image is generated from. 0: as published, 100.",
        minimum=0,
        maximum=4096,
        label="Latent size",
        paper="100",
        of=_GENERATORS,
        low="images of a class are alike.",
        high="more parameters to train.",
    )
    conditioning: str = knob(
        "auto",
        "How a generator is told the class: embedding (the noise times a vector of the class), batch-norm (scale and shift of a class in "
        "each BatchNorm layer), or auto: embedding for images up to 64 pixels, batch-norm for larger ones.",
        choices=CONDITIONINGS,
        paper="embedding for CIFAR, batch-norm for ImageNet",
        of=_LABELED,
    )
