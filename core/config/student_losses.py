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
        label="Channel attention α_FA",
        symbol="α_FA",
        paper="1000 for CIFAR-10, 2000 for CIFAR-100, 4000 for ImageNet",
        step=100.0,
        of=("hast", "synq"),
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
        of=("hast", "synq"),
        low="0 halves the time of a step.",
        high="the copy no longer looks like the images.",
    )
    plf_features: float = knob(
        100.0,
        _AUTHORS + "weight of the squared distance between the features that enter the classifiers of student and teacher in PLF.",
        minimum=0.0,
        maximum=100_000.0,
        label="Features in PLF (weight)",
        symbol="μ",
        paper="100 for CIFAR, 4000 for ImageNet",
        step=10.0,
        of=("plf",),
        low="0 matches scores alone.",
        high="outweighs the scores.",
    )
    low_pass: float = knob(
        0.0,
        _AUTHORS + "cutoff of the low-pass filter that the images go through, in periods per image: higher frequencies fade. 0: 80 for "
        "images of 224 pixels, and in proportion for others.",
        minimum=0.0,
        maximum=10_000.0,
        label="Low-pass cutoff",
        symbol="D0",
        paper="80 for ImageNet",
        step=1.0,
        of=("synq",),
        low="blurs the images.",
        high="filters nothing, beyond the highest frequency: 0.7 times the side of the image.",
    )
    alpha_cam: float = knob(
        50.0,
        _AUTHORS + "weight of the squared distance between the class activation maps (Grad-CAM) of student and teacher.",
        minimum=0.0,
        maximum=100_000.0,
        label="Class activation α_CAM",
        symbol="α_CAM",
        paper="50 in the script, 200 as default",
        step=10.0,
        of=("synq",),
        low="0 lets the student look elsewhere.",
        high="outweighs the scores.",
    )
    synq_easy: float = knob(
        0.5,
        _AUTHORS + "images count in the cross entropy of SynQ if the teacher's probability of other classes than the label is below this.",
        minimum=0.0,
        maximum=1.0,
        label="Difficulty with labels in SynQ, at most",
        symbol="τ",
        paper="0.5 in the script, 0.7 best for CIFAR-10",
        step=0.05,
        of=("synq",),
        low="0 uses no labels.",
        high="1 uses the labels of all images, also where the teacher does not recognize them.",
    )
