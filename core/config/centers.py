"""Knobs of TexQ, which makes an image of each class that guides its generator: the center of the class."""

from dataclasses import dataclass

from core.config.knobs import Checked, knob


@dataclass(frozen=True)
class CenterKnobs(Checked):
    """Knobs that only TexQ has; part of GenerationConfig."""

    texq_share: float = knob(
        0.25,
        "Share of the iterations of TexQ, the first ones, that make the image of each class; the others train the generator.",
        minimum=0.0,
        maximum=0.9,
        label="Iterations for centers",
        paper="1,500 iterations",
        step=0.05,
        of=("texq",),
        low="images of the classes stay noise, and guide the generator nowhere; 0 makes none.",
        high="few iterations are left for the generator.",
    )
    texq_lr: float = knob(
        0.05,
        "Step size of Adam for the image of each class in TexQ, in normalized units.",
        minimum=0.0,
        maximum=2.0,
        label="Step size of centers",
        symbol="lr_c",
        paper="0.05",
        step=0.01,
        live=True,
        slider=(0.0, 0.5),
        of=("texq",),
        low="images of the classes barely change.",
        high="images overshoot and the loss oscillates.",
    )
    texq_guidance: float = knob(
        1.0,
        "Weight of the distance between an image and the center of its class beyond the bounds of TexQ.",
        minimum=0.0,
        maximum=100.0,
        label="Weight of the centers",
        step=0.1,
        live=True,
        slider=(0.01, 100.0),
        log=True,
        of=("texq",),
        low="0 ignores the centers.",
        high="images of a class become alike.",
    )
    texq_near: float = knob(
        0.3,
        "Cosine distance of an image from the center of its class in TexQ, at least.",
        minimum=0.0,
        maximum=2.0,
        label="Smallest distance from the center",
        paper="0.3 and 0.5 are its two bounds",
        step=0.05,
        of=("texq",),
        low="0 lets images equal the center.",
        high="images move away from their class.",
    )
    texq_far: float = knob(
        0.5,
        "Cosine distance of an image from the center of its class in TexQ, at most.",
        minimum=0.0,
        maximum=2.0,
        label="Largest distance from the center",
        paper="0.3 and 0.5 are its two bounds",
        step=0.05,
        of=("texq",),
        low="images of a class become alike.",
        high="2 never limits the distance.",
    )
    texq_noise: float = knob(
        0.015,
        "Standard deviation of the noise that is added to the centers of TexQ in each iteration.",
        minimum=0.0,
        maximum=10.0,
        label="Noise of the centers",
        symbol="ε",
        paper="0.015",
        step=0.005,
        of=("texq",),
        low="0 has the same center in each iteration.",
        high="centers point anywhere.",
    )
