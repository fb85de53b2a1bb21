"""AdaDFQ (Qian et al., Adaptive Data-Free Quantization, CVPR 2023): a generator whose images suit what the student can learn."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import TrainingConfig
from core.generation.disagreement import balance_loss, gap_entropy
from core.generation.losses import ForwardOutputs, Term
from core.generation.method_terms import statistics_loss
from core.generation.sources.gdfq import GDFQ, SMALL


def _agreement(outputs: ForwardOutputs) -> Tensor:
    """CE(P + Q, y) of a student that equals the teacher."""
    return F.cross_entropy(2 * outputs.logits, outputs.labels)


_STATISTICS = Term("gaps", "BNS", "squared gaps", "adaptive_bns", statistics_loss)


class AdaDFQ(GDFQ):
    """L_G = max(low - H', 0) + max(H' - high, 0) + alpha_ds CE(P - Q, y) + alpha_as CE(P + Q, y) + gamma BNS

    with P and Q the scores of teacher and student, H' the entropy of softmax(P - Q) relative to the batch (`relative_entropy`), BNS the
    mean squared gaps of `squared_gaps`, and everything averaged over the images. alpha_ds favors images on which only the teacher is right,
    alpha_as images that both recognize; the bounds keep the disagreement between too little and too much to learn from. The authors'
    common factor beta is 1 and is part of both weights.

    Each step draws z and y as in GDFQ, moves the generator against the student as it is, and then the student on the same images. Under the
    authors' protocol its loss is

        L_Q = -T^2 mean entropy(softmax((P - Q) / T)),    T = 20 for images up to 64 pixels, 5 for larger ones,

    which is least where both networks agree up to a constant. It has no labels and no KL divergence: the paper's text suggests
    distillation, but the published figures are those of the code. Both learning rates become a tenth after 1/4, 1/2 and 3/4 of the steps.

    Without a student, in the generation stage, Q = P: P - Q is constant, and alpha_as CE(2 P, y) + gamma BNS are left.
    """

    terms: Sequence[Term] | None = (Term("ce", "L_AS", "cross entropy", "adaptive_agreement", _agreement), _STATISTICS)
    disagreement_knob, low_knob = "adadfq_disagreement", "adadfq_low"

    def join(self, training: TrainingConfig) -> None:
        super().join(training)
        self.terms = (_STATISTICS,)  # the others depend on the student

    def student_loss(self, images: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
        ours, theirs = (network(images.contiguous(memory_format=torch.channels_last)) for network in (student, teacher))
        gap = theirs - ours
        entropies = balance_loss(gap, self._value(self.low_knob), self._value("adaptive_high"))
        disagreement = self._value(self.disagreement_knob) * F.cross_entropy(gap, labels)
        return entropies + disagreement + self._value("adaptive_agreement") * F.cross_entropy(theirs + ours, labels)

    def authors_training(self, training: TrainingConfig) -> TrainingConfig:
        return training

    def authors_loss(self, images: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
        temperature = 20.0 if max(self.model.spec.size) <= SMALL else 5.0
        with torch.no_grad():
            theirs = teacher(images)
        return -(temperature**2) * gap_entropy((theirs - student(images)) / temperature).mean()


class AdaSG(AdaDFQ):
    """AdaSG (Qian et al., Rethinking Data-Free Quantization as a Zero-Sum Game, AAAI 2023): AdaDFQ with another balance of disagreement
    and agreement, which the authors' code has as constants.
    """

    disagreement_knob, low_knob = "adasg_disagreement", "adasg_low"
