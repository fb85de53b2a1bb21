"""Knobs of the methods whose generator adapts to the student: AdaDFQ and AdaSG."""

from dataclasses import dataclass

from core.config.knobs import Checked, knob

ADAPTIVE = ("adadfq", "adasg")


def _disagreement(title: str, method: str, default: float, paper: str) -> float:
    """The knob that weighs the images on which only the teacher is right."""
    own: float = knob(
        default,
        f"Weight of the cross entropy of teacher minus student in {title}: images on which only the teacher is right.",
        minimum=0.0,
        maximum=100.0,
        label=f"Disagreement in {title} α_ds",
        symbol="α_ds",
        paper=paper,
        step=0.05,
        of=(method,),
        low="0 does not look for images on which the student errs.",
        high="images that teach the student nothing else.",
    )
    return own


def _low(title: str, method: str, default: float, paper: str) -> float:
    """The knob of the lower bound of the entropy."""
    own: float = knob(
        default,
        f"Entropy of teacher minus student in {title}, 0 to 1, below which the networks disagree too much.",
        minimum=0.0,
        maximum=1.0,
        label=f"Lowest entropy in {title} λ_l",
        symbol="λ_l",
        paper=paper,
        step=0.05,
        of=(method,),
        low="0 never limits the disagreement.",
        high="images on which the networks agree anyway.",
    )
    return own


@dataclass(frozen=True)
class AdaptiveKnobs(Checked):
    """Knobs that only AdaDFQ and AdaSG have; part of GenerationConfig."""

    adaptive_bns: float = knob(
        1.0,
        "Weight of the squared gaps between batch and running statistics, mean over channels and layers, in the generator's loss.",
        minimum=0.0,
        maximum=100.0,
        label="Statistics γ",
        symbol="γ",
        paper="1",
        step=0.1,
        live=True,
        slider=(0.01, 100.0),
        log=True,
        of=ADAPTIVE,
        low="0 follows the scores alone: statistics do not match.",
        high="outweighs the scores.",
    )
    adaptive_agreement: float = knob(
        0.1,
        "Weight of the cross entropy of teacher plus student: images that both recognize.",
        minimum=0.0,
        maximum=100.0,
        label="Agreement α_as",
        symbol="α_as",
        paper="0.1",
        step=0.01,
        live=True,
        slider=(1e-3, 10.0),
        log=True,
        of=ADAPTIVE,
        low="0 ignores whether images are recognized.",
        high="images that teach the student nothing new.",
    )
    adadfq_disagreement: float = _disagreement("AdaDFQ", "adadfq", 0.2, "0.2; 0.3 for ResNet-18 at 5 bits; 0.1 for ResNet-50 at 4 bits")
    adadfq_low: float = _low("AdaDFQ", "adadfq", 0.1, "0.1; 0.3 or 0.4 for ImageNet")
    adasg_disagreement: float = _disagreement("AdaSG", "adasg", 0.1, "0.1")
    adasg_low: float = _low("AdaSG", "adasg", 0.3, "0.3")
    adaptive_high: float = knob(
        0.8,
        "Entropy of teacher minus student, 0 to 1, above which the networks agree too much.",
        minimum=0.0,
        maximum=1.0,
        label="Highest entropy λ_u",
        symbol="λ_u",
        paper="0.8",
        step=0.05,
        of=ADAPTIVE,
        low="images on which the student errs.",
        high="1 never limits the agreement.",
    )
