"""DSG's form for training (Zhang et al., CVPR 2021; Qin et al., PAMI 2023): GDFQ with relaxed statistics and unlike images."""

import torch
from torch import Tensor

from core.generation.bn_statistics import collect_statistics
from core.generation.losses import ForwardOutputs, Term
from core.generation.method_terms import CROSS_ENTROPY, correlation_inhibition, gap_quantiles, slack_gaps
from core.generation.scale import to_own_scale
from core.generation.sources.gdfq import GDFQ

_QUANTILE = 0.9  # epsilon of the paper
_GAUSSIAN = 256  # images that the slack is measured on


class DSGGenerator(GDFQ):
    """L_G = beta CE + alpha_bns slack BNS + L_SCI / L, with L the number of BatchNorm layers.

    slack BNS is `slack_gaps` and L_SCI `correlation_inhibition`. The slack of a layer is the 0.9 quantile over its channels of the gap that
    Gaussian images have, as in the paper, measured when the generation begins. As in the authors' code, channel l of layer l counts twice.
    That code also takes the absolute value of gap minus slack, so that small gaps are pushed up to the slack; its slack is not published,
    and with this one every layer would be pushed to the statistics of noise, so gaps below the slack cost nothing here, as in the paper.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        slack = self._measured_slack()
        layers = len(slack)

        def slack_bns(outputs: ForwardOutputs) -> Tensor:
            assert outputs.statistics is not None
            return slack_gaps(outputs.statistics, slack)

        def inhibition(outputs: ForwardOutputs) -> Tensor:
            noise = torch.randn(outputs.images.shape, generator=self._random).to(outputs.images.device)
            return correlation_inhibition(outputs.images, noise) / layers

        self.terms = (
            CROSS_ENTROPY,
            Term("slack", "SDA", "slack statistics", "alpha_bns", slack_bns),
            Term("sci", "L_SCI", "sample correlation", None, inhibition, recordable=False),
        )

    @torch.no_grad()
    def _measured_slack(self) -> list[tuple[float, float]]:
        generator = torch.Generator().manual_seed(self.machine.seed)
        noise = torch.randn(_GAUSSIAN, *self.model.spec.shape, generator=generator).to(self.model.device)
        with collect_statistics(self.model.network) as statistics:
            for part in to_own_scale(noise, self.model).split(self.config.batch_size):
                self.model.network(part.contiguous(memory_format=torch.channels_last))
        return gap_quantiles(statistics, _QUANTILE)
