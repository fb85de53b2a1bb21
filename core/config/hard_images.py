"""Knobs of the methods whose images are to be hard: HAST, PLF, and SynQ."""

from dataclasses import dataclass

from core.config.knobs import Checked, knob
from core.config.method_knobs import step_size, weight


def _focus(title: str, method: str, default: float, paper: str) -> float:
    """The exponent of a method's focal cross entropy."""
    own: float = knob(
        default,
        f"Exponent of the focal cross entropy of {title}: how much less an image counts the more confidently it is recognized.",
        minimum=0.0,
        maximum=10.0,
        label=f"Focus of {title} (exponent)",
        symbol="γ",
        paper=paper,
        step=0.1,
        of=(method,),
        low="0 is the plain cross entropy.",
        high="only images that are hardly recognized count, so that images stay hard.",
    )
    return own


@dataclass(frozen=True)
class HardImageKnobs(Checked):
    """Knobs that only HAST, PLF, and SynQ have; part of GenerationConfig."""

    hast_lr: float = step_size("HAST", "hast", 0.1, paper=0.5)
    hast_beta: float = weight(
        10.0, "the focal cross entropy in HAST", "hast", "L_CE of HAST", "0 ignores labels.", "statistics match less."
    )
    hast_gamma: float = _focus("HAST", "hast", 2.0, "2 for CIFAR, 0.5 for ImageNet")
    hard_crop: float = knob(
        0.0,
        "Probability that the images of an iteration of HAST, PLF, or SynQ are cropped and mirrored at random.",
        minimum=0.0,
        maximum=1.0,
        label="Crops (probability)",
        paper="0 for CIFAR, 0.5 for ImageNet",
        step=0.05,
        of=("hast", "plf", "synq"),
        low="0 turns crops off.",
        high="the whole image is never optimized.",
    )
    plf_lr: float = step_size("PLF", "plf", 0.1, paper=0.5)
    plf_beta: float = weight(10.0, "the cross entropy in PLF", "plf", "L_CE of PLF", "0 ignores labels.", "statistics match less.")
    synq_lr: float = step_size("SynQ", "synq", 0.1, paper=0.5)
    synq_beta: float = weight(0.1, "the focal cross entropy in SynQ", "synq", "L_CE of SynQ", "0 ignores labels.", "statistics match less.")
    synq_gamma: float = _focus("SynQ", "synq", 0.5, "0.5")
