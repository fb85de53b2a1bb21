"""Terms that several methods with losses of their own share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from core.generation.bn_statistics import BatchStatistics
from core.generation.losses import ForwardOutputs, Term


def squared_gaps(statistics: BatchStatistics) -> Tensor:
    """BNS of GDFQ and IntraQ: mean over BatchNorm layers of MSE(batch mean, running mean) + MSE(batch variance, running variance), each a
    mean over channels. A layer that runs several times counts as several.

    The batch variance is unbiased, as the running variance is; their own code has the biased one, which is smaller by the factor
    1 - 1/(N H W).
    """
    gaps = [
        F.mse_loss(batch, running)
        for (own, passes) in zip(statistics.running, statistics.batch)
        for one in passes
        for batch, running in zip(one, own)
    ]
    return 2 * torch.stack(gaps).mean()


def layered_gaps(statistics: BatchStatistics, shallow: float = 0.2, deep: float = 1.1) -> Tensor:
    """Layered BNS of TexQ: `squared_gaps` with weight `shallow` for the first half of the BatchNorm layers, and `deep` for the others."""
    layers = []
    for index, (own, passes) in enumerate(zip(statistics.running, statistics.batch)):
        weight = shallow if index < len(statistics.running) // 2 else deep
        layers += [weight * F.mse_loss(batch, running) for one in passes for batch, running in zip(one, own)]
    return 2 * torch.stack(layers).mean()


def statistics_loss(outputs: ForwardOutputs) -> Tensor:
    """`squared_gaps` of a forward pass."""
    assert outputs.statistics is not None
    return squared_gaps(outputs.statistics)


def _activation(outputs: ForwardOutputs) -> Tensor:
    """-mean |f| of ZAQ, with f what enters the classifier."""
    assert outputs.features is not None
    return -outputs.features.abs().mean()


def gap_quantiles(statistics: BatchStatistics, quantile: float) -> list[tuple[float, float]]:
    """For each BatchNorm layer, the quantile over its channels of |batch mean - running mean|, and of the same for the variance.

    Of several passes the mean of the statistics counts; a layer that did not run has 0.
    """
    found = []
    for own, passes in zip(statistics.running, statistics.batch):
        pairs = zip(own, zip(*passes)) if passes else ()
        gaps = [(torch.stack(values).mean(dim=0) - running).abs() for running, values in pairs]
        found.append((float(gaps[0].quantile(quantile)), float(gaps[1].quantile(quantile))) if gaps else (0.0, 0.0))
    return found


def slack_gaps(statistics: BatchStatistics, slack: Sequence[tuple[float, float]]) -> Tensor:
    """BNS of DSG: mean over layers of the sum over channels of r^2, for means and variances, with r = max(|gap| - slack, 0).

    slack: of each layer, for its means and for its variances. In layer number l, r of channel number l is multiplied by sqrt(2).
    """
    layers = []
    for index, (own, passes, limits) in enumerate(zip(statistics.running, statistics.batch, slack)):
        for one in passes:
            squares = sum(((batch - running).abs() - limit).clamp_min(0.0).square() for batch, running, limit in zip(one, own, limits))
            assert isinstance(squares, Tensor)
            layers.append(squares.sum() + (squares[index] if index < len(squares) else 0.0))
    return torch.stack(layers).mean()


def correlation_inhibition(images: Tensor, noise: Tensor) -> Tensor:
    """L_SCI of DSG: 1e-4 MSE(e, e') + |sum_k w_k <v_k, v'_k>| for images and Gaussian images of the same shape `(N, C, H, W)`.

    e, v: eigenvalues, in ascending order, and eigenvectors of the cosine similarities `(N, N)` of the images; e', v': those of the Gaussian
    ones; w: e' scaled to 0 to 1. In float64, because eigenvectors of close eigenvalues have large gradients.
    """
    (values, vectors), (theirs, their_vectors) = (_eigen(one) for one in (images, noise))
    weights = (theirs - theirs.min()) / (theirs.max() - theirs.min())
    similarity = (weights * (vectors * their_vectors).sum(dim=0)).sum().abs()
    return (1e-4 * F.mse_loss(values, theirs) + similarity).to(images.dtype)


def _eigen(images: Tensor) -> tuple[Tensor, Tensor]:
    rows = F.normalize(images.flatten(1).double(), dim=1)
    return torch.linalg.eigh(rows @ rows.T)


SQUARED_GAPS = Term("gaps", "BNS", "squared gaps", "alpha_bns", statistics_loss)
CROSS_ENTROPY = Term("ce", "L_CE", "cross entropy", "beta", lambda outputs: F.cross_entropy(outputs.logits, outputs.labels))
ACTIVATION = Term("activation", "L_a", "activation", "alpha_activation", _activation, log=False, features=True)
