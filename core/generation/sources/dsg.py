"""DSG (Zhang et al., CVPR 2021; Qin et al., PAMI 2023): ZeroQ's loss with room for the images to differ, as for use without training.

    L = L_slack + L_SCI + 2 L_CE + 0.01 R_TV + 0.01 R_l2

Slack alignment: the gaps M - m and S - s of ZeroQ (zeroq.py) count only beyond a slack of their layer, max(|gap| - delta, 0), which is
squared and summed over channels and layers, mean over images. delta is the 0.9-quantile, over channels, of the gaps that a batch of
Gaussian images has in the layer: one number for means and one for standard deviations. Layer-sample enhancement: the gap of image i in
layer i is doubled.

Sample correlation inhibition: with e_k and v_k the eigenvalues and eigenvectors of the images' matrix of cosine similarities, e'_k and
v'_k those of as many Gaussian images, new in each iteration, and w_k the e'_k scaled to 0 to 1,

    L_SCI = (1e-4 mean_k (e_k - e'_k)^2 + |sum_k w_k <v_k, v'_k>|) / number of layers

R_TV is the sum of the norms of four differences over the whole batch, rolled by up to 30 pixels in both directions.

As in the authors' code, and unlike in the paper, the gap of image i in layer i is doubled before it is squared, for the first 20 images.
Unlike there, delta is computed here, because their files of it are not public; labels are balanced instead of drawn; pixels stay between
black and white.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from core.generation.bn_statistics import collect_statistics
from core.generation.losses import TERMS, ForwardOutputs, Term, batch_variation
from core.generation.method_terms import correlation_inhibition
from core.generation.sources.zeroq import ZeroQImages, image_gaps, root

_ROLL = 30  # pixels
_ENHANCED = 20  # images


class DSGImages(ZeroQImages):
    """ZeroQ with slack in the statistics, diversity of the images, and labels."""

    step_knob = "dsg_lr"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._slack = gaussian_slack(self.model.network, self._gaussian(), self.config.dsg_slack)
        self._other: Tensor = self.pixels.detach()
        self._roll = (0, 0)
        self.terms = (
            Term("slack", "L_slack", "statistics beyond the slack", 1.0, self._slack_loss),
            Term("sci", "L_SCI", "similarity of the images", "dsg_sci", self._correlation),
            Term("dsg_tv", "R_TV", "total variation of the batch", "dsg_tv", self._variation),
            replace(TERMS["l2"], weight="dsg_l2"),
            replace(TERMS["ce"], weight="dsg_beta"),
        )

    def images(self, iteration: int) -> Tensor:
        images = super().images(iteration)
        # drawn here, so that the resume state between two iterations has the generator alone
        self._other = torch.randn(images.shape, generator=self._random).to(images.device)
        rows, columns = torch.randint(-_ROLL, _ROLL + 1, (2,), generator=self._random).tolist()
        self._roll = rows, columns
        return images

    def _gaussian(self) -> Tensor:
        """A batch of Gaussian images, the same in every run with this seed."""
        generator = torch.Generator().manual_seed(self.machine.seed)
        shape = self.config.batches[0], *self.model.spec.shape
        return torch.randn(shape, generator=generator).to(self.model.device)

    def _slack_loss(self, outputs: ForwardOutputs) -> Tensor:
        return slack_loss(outputs, self._slack)

    def _correlation(self, outputs: ForwardOutputs) -> Tensor:
        return correlation_inhibition(outputs.images, self._other) / len(outputs.layer_losses)

    def _variation(self, outputs: ForwardOutputs) -> Tensor:
        return batch_variation(torch.roll(outputs.images, self._roll, dims=(2, 3)))


@torch.no_grad()
def gaussian_slack(network: nn.Module, images: Tensor, quantile: float) -> Tensor:
    """delta of means and of standard deviations of each layer and, last, of the images, which have none: `(2, L + 1)`."""
    with collect_statistics(network) as statistics:
        network(images)
    slack = images.new_zeros(2, len(statistics.names) + 1)
    for index, ((running_mean, running_variance), passes) in enumerate(zip(statistics.running, statistics.batch)):
        for mean, variance in passes[:1]:
            slack[0, index] = (running_mean - mean).abs().quantile(quantile)
            slack[1, index] = (root(running_variance) - root(variance)).abs().quantile(quantile)
    return slack


def slack_loss(outputs: ForwardOutputs, slack: Tensor) -> Tensor:
    """L_slack of a batch, a scalar. slack: `(2, L + 1)`, see `gaussian_slack`."""
    assert outputs.statistics is not None
    passes = [(index, mean.shape[1]) for index, own in enumerate(outputs.statistics.images) for mean, _ in own]
    layers, counts = torch.tensor([*passes, (slack.shape[1] - 1, outputs.images.shape[1])], device=slack.device).T
    layer = layers.repeat_interleave(counts)  # of each channel
    numbers = torch.arange(len(outputs.images), device=slack.device)[:, None]
    factors = 1 + ((numbers == layer) & (numbers < _ENHANCED)).to(slack.dtype)
    residuals = [(gaps.abs() - own[layer]).clamp_min(0) * factors for gaps, own in zip(image_gaps(outputs), slack)]
    return torch.stack([own.square().sum() for own in residuals]).sum() / len(outputs.images)
