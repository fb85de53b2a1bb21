"""How evenly student and teacher differ over the classes, as AdaSG (Qian et al., AAAI 2023) and AdaDFQ (Qian et al., CVPR 2023) measure it.

A gap `(N, classes)` is the teacher's scores minus the student's.
"""

import math

import torch
from torch import Tensor

_SMALLEST = 1e-6  # range of entropies; in float32, that of networks that agree on all images is 0


def gap_entropy(gap: Tensor) -> Tensor:
    """Entropy of softmax(gap) in nats, `(N,)`: log classes where both networks agree up to a constant, 0 where they differ in one class."""
    logs = gap.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def relative_entropy(gap: Tensor) -> Tensor:
    """H' = (H - min H) / (log classes - min H), `(N,)`, 0 to 1, with H = `gap_entropy` and the minimum over the batch.

    Differentiable in the minimum, too, as in the authors' code.
    """
    entropy = gap_entropy(gap)
    least = entropy.min()
    return (entropy - least) / (math.log(gap.shape[1]) - least).clamp_min(_SMALLEST)


def balance_loss(gap: Tensor, low: float, high: float) -> Tensor:
    """Mean over the batch of max(low - H', 0) + max(H' - high, 0), with H' = `relative_entropy`."""
    entropy = relative_entropy(gap)
    return (torch.relu(low - entropy) + torch.relu(entropy - high)).mean()
