"""How close a quantized network is to its full-precision one, measured without labels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.evaluation.answers import Answers
from core.models.full_precision import FullPrecisionModel
from core.quantization.analysis import sqnr

_BATCH = 64


@dataclass(frozen=True)
class Agreement:
    """Share of images to which both networks give the same class, in percent, and its standard error in points; the mean over images of
    KL(full precision || quantized) between the softmax of the scores, in nats; and the signal-to-quantization-noise ratio of the scores
    in dB, 10 log10(sum z^2 / sum (z' - z)^2) over all images and classes, z and z' the scores of the full-precision and the quantized
    network minus their mean over the classes of an image, which the softmax ignores: at 20 dB the error is a tenth of the signal. None
    if either sum is zero or not finite.
    """

    agreement: float
    standard_error: float
    kl: float
    images: int
    score_sqnr: float | None

    @property
    def decibels(self) -> float:
        """`score_sqnr` for comparisons: infinite for equal scores, minus infinity where scores are not finite."""
        if self.score_sqnr is None:
            return math.inf if self.kl == 0 else -math.inf
        return self.score_sqnr


def agreement(network: nn.Module, model: FullPrecisionModel, images: Tensor) -> Agreement:
    """How close `network` is to `model`; arguments are those of `compare`."""
    return compare(network, model, images).figures()


@torch.no_grad()
def compare(network: nn.Module, model: FullPrecisionModel, images: Tensor) -> "Comparison":
    """Compares `network`, in evaluation mode, with the full-precision `model` on images: uint8 `(N, C, H, W)`, N at least 1."""
    comparison = Comparison()
    for pixels in images.split(_BATCH):
        inputs = model.normalize(pixels).contiguous(memory_format=torch.channels_last)
        comparison.add(network(inputs), model.network(inputs))
    return comparison


class Comparison:
    """The sums of the figures of Agreement, over batches, and the answers of both networks."""

    def __init__(self) -> None:
        self.images = self.same = 0
        self.divergence = self.signal = self.noise = 0.0
        self._ours: list[Tensor] = []  # class and confidence: float64 (B, 2)
        self._theirs: list[Tensor] = []

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Scores `(N, classes)` of the quantized and of the full-precision network."""
        ours, theirs = ours.float(), theirs.float()
        self.images += len(ours)
        own_classes, their_classes = ours.argmax(dim=1), theirs.argmax(dim=1)
        self.same += int((own_classes == their_classes).sum())
        log_ours, log_theirs = F.log_softmax(ours, dim=1), F.log_softmax(theirs, dim=1)
        for kept, classes, logarithms in ((self._ours, own_classes, log_ours), (self._theirs, their_classes, log_theirs)):
            confidence = logarithms.gather(1, classes[:, None])[:, 0].exp()
            kept.append(torch.stack([classes.double(), confidence.double()], dim=1).cpu())
        self.divergence += float(F.kl_div(log_ours, log_theirs, reduction="sum", log_target=True))
        exact = _centered(theirs)
        self.signal += float(exact.square().sum())
        self.noise += float((_centered(ours) - exact).square().sum())

    def answers(self) -> tuple[Answers, Answers]:
        """Of the quantized and of the full-precision network, on the images that were added, at least one batch."""
        ours, theirs = (torch.cat(kept) for kept in (self._ours, self._theirs))
        made = [Answers(one[:, 0].int().numpy(), one[:, 1].half().numpy()) for one in (ours, theirs)]
        return made[0], made[1]

    def figures(self) -> Agreement:
        """The figures of what was added, at least one image."""
        share = self.same / self.images
        return Agreement(
            agreement=round(100 * share, 3),
            standard_error=round(100 * (share * (1 - share) / self.images) ** 0.5, 3),
            kl=round(self.divergence / self.images, 6),
            images=self.images,
            score_sqnr=sqnr(self.signal, self.noise),
        )


def _centered(scores: Tensor) -> Tensor:
    return scores.double() - scores.double().mean(dim=1, keepdim=True)
