"""How close a quantized network is to its full-precision one, measured without labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@torch.no_grad()
def agreement(network: nn.Module, model: FullPrecisionModel, images: Tensor) -> Agreement:
    """Compares `network`, in evaluation mode, with the full-precision `model` on images: uint8 `(N, C, H, W)`, N at least 1."""
    same, divergence, signal, noise = 0, 0.0, 0.0, 0.0
    for pixels in images.split(_BATCH):
        inputs = model.normalize(pixels).contiguous(memory_format=torch.channels_last)
        ours, theirs = network(inputs).float(), model.network(inputs).float()
        same += int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
        log_ours, log_theirs = F.log_softmax(ours, dim=1), F.log_softmax(theirs, dim=1)
        divergence += float(F.kl_div(log_ours, log_theirs, reduction="sum", log_target=True))
        exact = _centered(theirs)
        signal += float(exact.square().sum())
        noise += float((_centered(ours) - exact).square().sum())
    share = same / len(images)
    return Agreement(
        agreement=round(100 * share, 3),
        standard_error=round(100 * (share * (1 - share) / len(images)) ** 0.5, 3),
        kl=round(divergence / len(images), 6),
        images=len(images),
        score_sqnr=sqnr(signal, noise),
    )


def _centered(scores: Tensor) -> Tensor:
    return scores.double() - scores.double().mean(dim=1, keepdim=True)
