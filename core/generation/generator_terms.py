"""Terms of the losses of generators."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.generation.bn_statistics import BatchStatistics
from core.generation.losses import ForwardOutputs, Term


def squared_gaps(statistics: BatchStatistics) -> Tensor:
    """BNS of GDFQ: mean over BatchNorm layers of MSE(batch mean, running mean) + MSE(batch variance, running variance), each a mean over
    channels. A layer that runs several times counts as several.

    The batch variance is unbiased, as the running variance is; GDFQ's own code has the biased one, which is smaller by the factor
    1 - 1/(N H W).
    """
    gaps = [
        F.mse_loss(batch, running)
        for (own, passes) in zip(statistics.running, statistics.batch)
        for one in passes
        for batch, running in zip(one, own)
    ]
    return 2 * torch.stack(gaps).mean()


def _squared_gaps(outputs: ForwardOutputs) -> Tensor:
    assert outputs.statistics is not None
    return squared_gaps(outputs.statistics)


SQUARED_GAPS = Term("gaps", "BNS", "squared gaps", "alpha_bns", _squared_gaps)
CROSS_ENTROPY = Term("ce", "L_CE", "cross entropy", "beta", lambda outputs: F.cross_entropy(outputs.logits, outputs.labels))
