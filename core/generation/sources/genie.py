"""Genie's images (Jeon et al., GENIE: Show Me the Data for Quantization, CVPR 2023): a small generator and latent vectors for each batch.

Each batch has a fresh generator G and a latent vector z of each image, which are optimized together on

    L = sum over layers of (MSE(m, M) + MSE(s, S))  +  mean over images of sum over channels of (mean^2 + (deviation - 1)^2)

with m and s the mean and standard deviation of a BatchNorm layer's input over the batch, M and S the running ones, MSE a mean over
channels, and the last two of the image's own pixels. No labels: those of saved images are the teacher's classes. Every strided convolution
of the teacher reads its input at a random phase (`core/generation/swing.py`).

Only the images are here; Genie's quantization, block by block, is not. As in the authors' code, rates are 0.1 for z, on a plateau, and
0.01 for G, times 0.95 in every 100 of 4,000 iterations; with fewer iterations, G's rate falls as often, so that it ends at the same value.
Images are whatever G makes, also beyond black and white, until they are saved.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generation.bn_statistics import image_statistics
from core.generation.generators import SmallGenerator
from core.generation.losses import ForwardOutputs, Term
from core.generation.sources.base import ImageSource
from core.generation.sources.zeroq import root
from core.generation.swing import SwingingNetwork

LATENT = 256
_DECAY, _DECAYS = 0.95, 40  # of G's rate: the factor, and how often in a batch
_SMALLEST = 1e-4  # rate of z


def deviation_gaps(outputs: ForwardOutputs) -> Tensor:
    """Sum over layers of MSE(m, M) + MSE(s, S), a scalar. A layer that runs several times counts as several."""
    assert outputs.statistics is not None
    total = outputs.images.new_zeros(())
    for (running_mean, running_variance), passes in zip(outputs.statistics.running, outputs.statistics.batch):
        for mean, variance in passes:
            total = total + F.mse_loss(mean, running_mean) + F.mse_loss(root(variance), root(running_variance))
    return total


def input_gaps(outputs: ForwardOutputs) -> Tensor:
    """Mean over images of the sum over channels of mean^2 + (deviation - 1)^2, a scalar."""
    mean, variance = image_statistics(outputs.images)
    return (mean.square() + (root(variance) - 1).square()).sum(dim=1).mean()


class GenieImages(ImageSource):
    """A generator and latent vectors `(N, latent)`, optimized together for each batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._swinging = SwingingNetwork(self.model.network) if self.config.genie_swing else None
        own = (
            Term("deviations", "L_BNS of Genie", "means and deviations", 1.0, self._deviations),
            Term("input", "L_in of Genie", "statistics of the images", 1.0, input_gaps),
        )
        # a CUDA graph would keep the offsets of its first pass
        self.terms: Sequence[Term] = [replace(term, recordable=False) for term in own]
        self.start_batch(0)

    @property
    def network(self) -> nn.Module:
        return self.model.network if self._swinging is None else self._swinging.network

    def _deviations(self, outputs: ForwardOutputs) -> Tensor:
        self.labels = outputs.logits.detach().argmax(dim=1)  # the teacher's classes, without another pass
        return deviation_gaps(outputs)

    def start_batch(self, index: int) -> None:
        seed = self.machine.seed * 1_000_003 + index
        self._random = torch.Generator().manual_seed(seed)
        latent = self.config.latent or LATENT
        z = torch.randn(self.config.batches[index], latent, generator=self._random).to(self.model.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = SmallGenerator(latent, self.model.spec.shape)
        self._optimize(z, generator.to(self.model.device).to(memory_format=torch.channels_last))
        self.labels = self._classes()

    def _optimize(self, z: Tensor, generator: nn.Module) -> None:
        """Starts optimizing these with fresh optimizers."""
        self.z, self.generator = z.clone().requires_grad_(True), generator
        self.latent_optimizer = torch.optim.Adam([self.z], lr=self.config.genie_latent_lr)
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=self.config.genie_generator_lr)

    @torch.no_grad()
    def _classes(self) -> Tensor:
        return self.model.network(self.current().contiguous(memory_format=torch.channels_last)).argmax(dim=1)

    def parameters(self) -> Sequence[Tensor]:
        return [self.z, *self.generator.parameters()]

    def images(self, iteration: int) -> Tensor:
        if self._swinging is not None:
            self._swinging.draw(self._random)
        return self.generator(self.z)

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        rates = self.latent_rate(values, step_size), self.rate(values, iteration)
        for optimizer, rate in zip((self.latent_optimizer, self.optimizer), rates):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def latent_rate(self, values: Mapping[str, float], step_size: float) -> float:
        """Of z: that of the schedule, at least 1e-4."""
        largest = values["genie_latent_lr"]
        return max(largest * step_size, min(largest, _SMALLEST))

    def rate(self, values: Mapping[str, float], iteration: int) -> float:
        """Of the generator at an iteration of a batch (from 0)."""
        return values["genie_generator_lr"] * _DECAY ** (iteration * _DECAYS // self.config.iterations)

    @torch.no_grad()
    def current(self) -> Tensor:
        return self.generator(self.z)

    @torch.no_grad()
    def to_save(self, iteration: int, is_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        if iteration + 1 in self.config.snapshot_iterations:
            self.labels = self._classes()
            yield self.current(), self.labels

    def state(self) -> dict[str, Any]:
        return {
            "z": self.z.detach(),
            "generator": self.generator.state_dict(),
            "latent_optimizer": self.latent_optimizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._random.get_state(),
            "labels": self.labels,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self._optimize(state["z"].to(self.model.device), self.generator)
        self.latent_optimizer.load_state_dict(state["latent_optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._random.set_state(state["random"])
        self.labels = state["labels"].to(self.model.device)
