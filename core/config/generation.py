"""Knobs of the data generation, the paper's step 1."""

import math
from dataclasses import dataclass

from core.config.choices import BNS_FORMS, NOISES, SCHEDULES
from core.config.generators import GeneratorKnobs
from core.config.hard_images import HardImageKnobs
from core.config.knobs import knob
from core.config.method_knobs import step_size, weight
from core.config.references import ReferenceKnobs
from core.errors import ConfigError
from core.generation.methods import L_TOTAL

MOST_SHARDS = 5_000  # all are in one manifest


@dataclass(frozen=True)
class GenerationConfig(GeneratorKnobs, HardImageKnobs, ReferenceKnobs):
    """Knobs of the data generation. A knob that only some methods have names them in `of`."""

    images: int = knob(
        512,
        "Images saved. With k snapshots, images / k noise images are optimized, two or more: the number is rounded up to fit.",
        minimum=1,
        maximum=1_000_000,
        paper="5,120 for ImageNet",
        low="training sees the same few images again and again, and overfits to them.",
        high="takes proportionally longer and more memory; each doubling helps less.",
    )
    iterations: int = knob(
        50,
        "Optimizer steps for each batch.",
        minimum=1,
        maximum=100_000,
        low="images stay noise, their statistics far from the network's.",
        high="takes proportionally longer and makes the images more alike.",
    )
    batch_size: int = knob(
        128,
        "Noise images optimized together. The statistics of the batch are matched, not those of each image.",
        minimum=2,
        maximum=4096,
        low="below about 32, batch statistics are too noisy to match.",
        high="takes proportionally more memory and time per iteration.",
    )
    snapshots: int = knob(
        4,
        "How often each batch is saved, evenly spaced after the burn-in.",
        minimum=1,
        maximum=100,
        symbol="k",
        paper="saves intermediate iterates, number not stated",
        low="1 saves only the final images, the slowest way to make a given number.",
        high="fewer noise images for as many saved ones: faster, but with more early states and more versions of each image.",
    )
    shard_size: int = knob(
        0,
        "Images in each shard: the set is written as WebDataset tar files, which need not fit into memory, as batches are finished. 0: all "
        "in one file.",
        minimum=0,
        maximum=1_000_000,
        low="many small files.",
        high="few large files; a set of one shard cannot be shared between the processes that read it.",
        in_form=False,
        affects_result=False,
    )
    burn_in: float = knob(
        0.2,
        "Fraction of the iterations before the first snapshot.",
        minimum=0.0,
        maximum=0.95,
        step=0.05,
        low="the first snapshot is nearly noise.",
        high="snapshots are close together and almost the same image.",
    )
    half_resolution_fraction: float = knob(
        0.0,
        "Fraction of the iterations that run first, at half the image size and about a third of the cost; then images are upsampled and "
        "continue with fresh momentum. For networks of 224 pixels and more that accept both sizes. 0 turns it off.",
        minimum=0.0,
        maximum=0.9,
        step=0.05,
        label="Half-resolution phase (fraction)",
        low="0 is the plain method: nothing is saved.",
        high="leaves little time for fine structure and delays the first snapshot.",
        old_names=("half_resolution",),
    )
    noise: str = knob(
        "pink",
        "Initial noise: white (independent pixels), pink (equal power per octave, as in photographs), or gray (almost none, as in ZeroQ).",
        choices=NOISES,
        paper="Gaussian, which is white",
    )
    schedule: str = knob(
        "linear",
        "Step size over the iterations: linear decays to 2 %, so that images settle; constant leaves them coarse; plateau falls to a tenth "
        "when the loss has not fallen for `patience` iterations.",
        choices=SCHEDULES,
    )
    patience: int = knob(
        100,
        "Iterations without a lower loss, after which the schedule plateau reduces the step size.",
        minimum=0,
        maximum=100_000,
        low="the step size falls while the loss still fluctuates.",
        high="the step size never falls.",
    )
    bns_form: str = knob(
        "divergence",
        "How batch statistics are compared with the running ones: divergence (KL divergence of their normal distributions, mean over "
        "channels, sum over layers, scaled so that the other weights suit every network) or norms (L_BNS of the paper, which grows with "
        "the network).",
        choices=BNS_FORMS,
        of=(L_TOTAL,),
        label="Form of the BatchNorm loss",
        paper="norms",
    )
    epsilon: float = knob(
        0.1,
        "Step size of MI-FGSM in normalized units: every pixel moves by this much.",
        minimum=0.0,
        maximum=2.0,
        label="MI-FGSM step ε",
        symbol="ε",
        step=0.005,
        live=True,
        slider=(0.0, 0.5),
        of=("mi-fgsm",),
        low="images barely change in the given iterations.",
        high="coarse, grainy images whose statistics oscillate instead of settling.",
    )
    mu: float = knob(
        0.5,
        "Momentum of MI-FGSM: the fraction of the accumulated gradient that is kept.",
        minimum=0.0,
        maximum=2.0,
        label="MI-FGSM momentum μ",
        symbol="μ",
        step=0.05,
        live=True,
        slider=(0.0, 1.5),
        of=("mi-fgsm",),
        low="0 is plain FGSM: each step follows the current gradient, which oscillates.",
        high="from 1 on, old gradients dominate and images overshoot.",
    )
    lr: float = knob(
        0.1,
        "Step size of Adam in normalized units.",
        minimum=0.0,
        maximum=2.0,
        label="Adam step size",
        symbol="lr",
        step=0.005,
        live=True,
        slider=(0.0, 0.5),
        of=("adam",),
        low="images barely change in the given iterations.",
        high="images overshoot and L_BNS oscillates.",
    )
    zeroq_lr: float = step_size("ZeroQ", "zeroq", 0.5)
    dsg_lr: float = step_size("DSG", "dsg", 0.9)
    dsg_slack: float = knob(
        0.9,
        "Quantile of the gaps between the statistics of Gaussian images and the running ones, up to which DSG ignores gaps.",
        minimum=0.0,
        maximum=1.0,
        label="Slack of DSG (quantile)",
        paper="0.9",
        step=0.05,
        of=("dsg",),
        low="0 has hardly any slack: all images have the same statistics, as in ZeroQ.",
        high="1 ignores all gaps that Gaussian images have: images hardly move.",
    )
    dsg_sci: float = weight(
        1.0, "the similarity of the images in DSG", "dsg", "L_SCI of DSG", "0 lets images resemble each other.", "statistics match less."
    )
    dsg_beta: float = weight(
        2.0,
        "the cross entropy in DSG",
        "dsg",
        "L_CE of DSG",
        "0 ignores labels.",
        "clear but uniform classes, and statistics that match less.",
    )
    dsg_tv: float = weight(
        0.01, "the total variation of the batch in DSG", "dsg", "R_TV of DSG", "0 leaves high frequencies.", "blurs the images."
    )
    dsg_l2: float = weight(
        0.01, "the l2 norm of the pixels in DSG", "dsg", "R_l2 of DSG", "0 leaves contrast to the other losses.", "grays the images."
    )
    intraq_lr: float = step_size("IntraQ", "intraq", 0.1, paper=0.5)
    intraq_beta: float = weight(1.0, "the soft labels in IntraQ", "intraq", "L_SI of IntraQ", "0 ignores labels.", "statistics match less.")
    intraq_crop: float = knob(
        0.5,
        "Probability that the images of an iteration of IntraQ are cropped and mirrored at random.",
        minimum=0.0,
        maximum=1.0,
        label="Crops of IntraQ (probability)",
        paper="0.5",
        step=0.05,
        of=("intraq",),
        low="0 turns crops off.",
        high="the whole image is never optimized.",
    )
    intraq_area: float = knob(
        0.5,
        "Smallest share of the area in a crop of IntraQ.",
        minimum=0.05,
        maximum=1.0,
        label="Smallest crop of IntraQ (area)",
        symbol="η",
        paper="0.5",
        step=0.05,
        of=("intraq",),
        low="crops show a small part of an image, enlarged.",
        high="1 mirrors images without cropping them.",
    )
    intraq_target: float = knob(
        0.95,
        "Lowest target of the label's probability in IntraQ.",
        minimum=0.0,
        maximum=1.0,
        label="Lowest target of IntraQ",
        symbol="ε",
        paper="0.95 for CIFAR-10, 0.6 for CIFAR-100, 1 for ImageNet",
        step=0.01,
        of=("intraq",),
        low="images that are hardly recognized.",
        high="1 wants full confidence in every image.",
    )
    intraq_near: float = knob(
        0.05,
        "Cosine distance of an image from the center of its class in IntraQ, at least.",
        minimum=0.0,
        maximum=2.0,
        label="Smallest distance in a class of IntraQ",
        symbol="λ_l",
        paper="0.05 for CIFAR-10, 0.02 for CIFAR-100, 0 for ImageNet",
        step=0.01,
        of=("intraq",),
        low="0 lets images of a class be alike.",
        high="images move away from their class.",
    )
    intraq_far: float = knob(
        0.8,
        "Cosine distance of an image from the center of its class in IntraQ, at most.",
        minimum=0.0,
        maximum=2.0,
        label="Largest distance in a class of IntraQ",
        symbol="λ_u",
        paper="0.8 for CIFAR-10, 1 for CIFAR-100, 2 for ImageNet",
        step=0.05,
        of=("intraq",),
        low="images of a class become alike.",
        high="2 never limits the distance.",
    )
    alpha_tv: float = knob(
        3e-4,
        "Weight of total variation: smooths the images.",
        minimum=0.0,
        maximum=100.0,
        label="Smoothness α_TV",
        symbol="α_TV",
        step=1e-4,
        live=True,
        of=(L_TOTAL,),
        slider=(1e-5, 3.0),
        log=True,
        low="0 leaves high frequencies that photographs do not have.",
        high="blurs the images and makes them alike.",
    )
    alpha_l2: float = knob(
        3e-7,
        "Weight of the l2 norm of the pixels: pulls the images toward the mean color.",
        minimum=0.0,
        maximum=100.0,
        label="Pixel size α_l2",
        symbol="α_l2",
        step=1e-7,
        live=True,
        of=(L_TOTAL,),
        slider=(3e-8, 3.0),
        log=True,
        low="0 leaves contrast to the other losses.",
        high="pulls all pixels to the mean color: gray images whose statistics no longer match.",
    )
    beta: float = knob(
        1.0,
        "Weight of the cross entropy to the assigned label.",
        minimum=0.0,
        maximum=100.0,
        label="Labels β",
        symbol="β",
        step=0.05,
        live=True,
        of=(L_TOTAL, "gdfq", "qimera", "dsg-g", "texq"),
        slider=(0.03, 100.0),
        log=True,
        low="0 ignores labels: the teacher recognizes the assigned class in few images.",
        high="clear but uniform classes, and statistics that match less.",
    )
    max_shift: int = knob(
        0,
        "Largest random shift, in pixels, before each forward pass. 0 turns it off.",
        minimum=0,
        maximum=64,
        label="Random shift (pixels)",
        low="0 lets statistics match best.",
        high="batch statistics change with every shift, and match less; from 8 on, seams run through the images.",
    )
    flip: bool = knob(
        False,
        "Mirror the batch at random before each forward pass.",
        label="Random flip",
        low="images are optimized for one orientation only.",
        high="batch statistics change with every flip, and match less; mirror images suit classes without left and right, not letters.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        available = self.iterations - math.floor(self.burn_in * self.iterations)
        if self.snapshots > available:
            raise ConfigError(f"snapshots must be at most {available}, the iterations left after the burn-in, got {self.snapshots}")
        if self.shard_size and self.saved_images > self.shard_size * MOST_SHARDS:
            least = math.ceil(self.saved_images / MOST_SHARDS)
            raise ConfigError(f"shard_size must be 0 or at least {least:,} for {self.saved_images:,} images, got {self.shard_size:,}")
        if self.half_iterations >= self.snapshot_iterations[0]:
            raise ConfigError(
                f"half_resolution_fraction must end before the first snapshot, at iteration {self.snapshot_iterations[0]} with burn_in "
                f"{self.burn_in}, got {self.half_resolution_fraction}, which is {self.half_iterations} of {self.iterations} iterations"
            )

    @property
    def noise_images(self) -> int:
        """How many noise images are optimized: at least two, because the variance of one is not defined."""
        return max(2, math.ceil(self.images / self.snapshots))

    @property
    def saved_images(self) -> int:
        """How many images are saved: `images`, rounded up to a multiple of `snapshots`, of two noise images at least."""
        return self.noise_images * self.snapshots

    @property
    def batches(self) -> list[int]:
        """Sizes of the batches; never one image alone, because a batch of one has no variance to match."""
        sizes = [self.batch_size] * (self.noise_images // self.batch_size)
        rest = self.noise_images % self.batch_size
        if rest == 1 and sizes:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    @property
    def starts(self) -> list[int]:
        """For each saved image, in order, the index of the noise image it started from: batch by batch, snapshot by snapshot."""
        starts: list[int] = []
        first = 0
        for size in self.batches:
            starts += self.snapshots * list(range(first, first + size))
            first += size
        return starts

    @property
    def half_iterations(self) -> int:
        """How many iterations of a batch run first, at half the image size."""
        return math.floor(self.half_resolution_fraction * self.iterations)

    @property
    def snapshot_iterations(self) -> tuple[int, ...]:
        """The iterations, counted from 1, after which a batch is saved: evenly spaced after the burn-in, including the last."""
        start = math.floor(self.burn_in * self.iterations)
        span = self.iterations - start
        return tuple(start + math.ceil(span * (i + 1) / self.snapshots) for i in range(self.snapshots))
