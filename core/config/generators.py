"""Knobs of the methods that train a generator."""

from dataclasses import dataclass

from core.config.adaptive import ADAPTIVE, AdaptiveKnobs
from core.config.centers import CenterKnobs
from core.config.knobs import knob

CONDITIONINGS = ("auto", "embedding", "batch-norm")
_GENERATORS = ("gdfq", "qimera", "zaq", "dsg-g", *ADAPTIVE, "texq")
_LABELED = ("gdfq", "qimera", "dsg-g", "texq")  # the methods that match BatchNorm statistics


@dataclass(frozen=True)
class GeneratorKnobs(AdaptiveKnobs, CenterKnobs):
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
        label="Generator step size",
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
        label="Statistics α_BNS",
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
        "Length of the noise vector that an image is generated from. 0: as published, which is 100, 256 for ZAQ and Genie, and the width "
        "of the classifier's input for Qimera.",
        minimum=0,
        maximum=4096,
        label="Latent size",
        paper="100",
        of=(*_GENERATORS, "genie"),
        low="images of a class are alike.",
        high="more parameters to train.",
    )
    conditioning: str = knob(
        "auto",
        "How a generator is told the class: embedding (the noise times a vector of the class), batch-norm (scale and shift of a class in "
        "each BatchNorm layer), or auto: embedding for images up to 64 pixels, batch-norm for larger ones.",
        choices=CONDITIONINGS,
        paper="embedding for CIFAR, batch-norm for ImageNet",
        low="one choice is not better than the other.",
        high="one choice is not better than the other.",
        of=("gdfq", "dsg-g", *ADAPTIVE, "texq"),
    )
    superposed_share: float = knob(
        0.4,
        "Share of the batches whose images are between classes.",
        minimum=0.0,
        maximum=1.0,
        label="Superposed batches p",
        symbol="p",
        paper="0.4",
        step=0.05,
        live=True,
        slider=(0.0, 1.0),
        of=("qimera",),
        low="0 makes images of one class each.",
        high="few images that the teacher is sure of.",
    )
    superposed_classes: int = knob(
        2,
        "How many classes an image of such a batch is between, drawn with repetition.",
        minimum=2,
        maximum=1000,
        label="Superposed classes K",
        symbol="K",
        paper="CIFAR-10 2, CIFAR-100 10, ImageNet 100 to 500",
        of=("qimera",),
        low="2 explores the borders of pairs of classes.",
        high="images of no class in particular.",
    )
    alpha_relations: float = knob(
        1.0,
        "Weight of the difference between the relations within the feature maps of student and teacher (SCRM), for both networks.",
        minimum=0.0,
        maximum=100.0,
        label="Relations α_R",
        symbol="α_R",
        paper="1",
        step=0.1,
        of=("zaq",),
        low="0 compares scores alone.",
        high="outweighs the scores.",
    )
    alpha_activation: float = knob(
        0.1,
        "Weight of the mean absolute feature that enters the teacher's classifier, which the generator raises.",
        minimum=0.0,
        maximum=100.0,
        label="Activation α_A",
        symbol="α_A",
        paper="0.1",
        step=0.01,
        live=True,
        slider=(1e-3, 10.0),
        log=True,
        of=("zaq",),
        low="0 leaves the generator without a loss while it learns alone.",
        high="outweighs the disagreement of student and teacher.",
    )
    student_steps: int = knob(
        5,
        "Steps of the student for each step of the generator.",
        minimum=1,
        maximum=1000,
        label="Student steps per generator step",
        paper="5",
        of=("zaq",),
        low="the student does not learn before the images change.",
        high="the images hardly change in a short training.",
    )
    genie_latent_lr: float = knob(
        0.1,
        "Step size of Genie's latent vectors (Adam).",
        minimum=0.0,
        maximum=10.0,
        label="Genie latent step size",
        symbol="lr_z",
        paper="0.1",
        step=0.01,
        live=True,
        slider=(0.0, 1.0),
        of=("genie",),
        low="images differ only as the first vectors do.",
        high="vectors jump, and the loss oscillates.",
    )
    genie_generator_lr: float = knob(
        0.01,
        "Step size of Genie's generators (Adam), which falls to 14 % over the iterations of a batch.",
        minimum=0.0,
        maximum=1.0,
        label="Genie generator step size",
        symbol="lr_G",
        paper="0.01",
        step=1e-3,
        live=True,
        slider=(1e-4, 0.1),
        log=True,
        of=("genie",),
        low="images stay what the untrained generator makes.",
        high="the loss oscillates.",
    )
    genie_swing: bool = knob(
        True,
        "Shift the input of every strided convolution by up to one pixel at random, in Genie.",
        label="Swing convolution of Genie",
        paper="on",
        of=("genie",),
        low="images have checkerboards, because some pixels are read more often than others.",
        high="every pixel is read as often as every other; statistics match less.",
    )
