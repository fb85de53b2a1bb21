"""Knobs of what the authors of methods that move pixels add to the loss of the student."""

from dataclasses import dataclass

from core.config.knobs import Checked, knob

_AUTHORS = "Under the authors' protocol: "


@dataclass(frozen=True)
class StudentLossKnobs(Checked):
    """Knobs of the student's loss under the authors' protocol of a method that moves pixels; part of TrainingConfig."""

    alpha_attention: float = knob(
        1000.0,
        _AUTHORS + "weight of the distance between the channel attentions of student and teacher (FA), at the end of each residual block.",
        minimum=0.0,
        maximum=100_000.0,
        label="α_FA channel attention",
        symbol="α_FA",
        paper="1000 for CIFAR-10, 2000 for CIFAR-100, 4000 for ImageNet",
        step=100.0,
        of=("hast",),
        low="0 matches scores alone.",
        high="outweighs the scores.",
    )
    perturbation: float = knob(
        0.01,
        _AUTHORS + "by how much each pixel of a second copy of the images is moved to raise the loss, in normalized units. The student is "
        "trained on both. 0 turns the copy off.",
        minimum=0.0,
        maximum=1.0,
        label="Perturbation",
        symbol="ε",
        paper="0.01 for CIFAR-10 and ImageNet, 0.02 for CIFAR-100",
        step=0.005,
        of=("hast",),
        low="0 halves the time of a step.",
        high="the copy no longer looks like the images.",
    )
