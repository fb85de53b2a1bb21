"""Qimera (Choi et al., NeurIPS 2021): GDFQ whose generator also makes images between classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generation.generators import GeneratorBody
from core.generation.sources.gdfq import GDFQ
from core.models.classifier import classifier_width

_EPS = 1e-5


class SuperposingGenerator(nn.Module):
    """Noise `(N, K, latent)`, labels `(N, K)` and their shares `(N, K)` -> images `(N, C, H, W)`.

    The embedding of each label plus its noise is standardized and the K of an image are added, weighted by their shares. With K = 1 each
    vector is standardized over its own entries, otherwise each of the K places over entries and batch, as in the authors' code.
    """

    def __init__(self, latent: int, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, latent)
        self.body = GeneratorBody(latent, shape)

    def vectors(self, noise: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
        """What enters the body, `(N, latent)`."""
        embedded = self.embedding(labels) + noise
        over = (2,) if labels.shape[1] == 1 else (0, 2)
        variance, mean = torch.var_mean(embedded, dim=over, keepdim=True, unbiased=False)
        return (shares.unsqueeze(2) * (embedded - mean) / (variance + _EPS).sqrt()).sum(dim=1)

    def forward(self, noise: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
        return self.body(self.vectors(noise, labels, shares), labels[:, 0])


class Qimera(GDFQ):
    """L_G = beta CE(teacher(x), shares) + alpha_bns BNS, as in GDFQ.

    With probability `superposed_share`, a batch has images of `superposed_classes` classes each, drawn with repetition, whose shares are
    the softmax of standard normals; otherwise each image has one class. The student's cross entropy has the same shares. A saved image
    gets the label of the largest share. The noise vector is as long as the classifier's input.

    The paper also describes a fully connected layer behind the embedding, and embeddings that begin as the classifier's weights. The
    authors' scripts for CIFAR-10 use neither, and their figures are those of the scripts, so there is neither here.
    """

    def published_latent(self) -> int:
        return classifier_width(self.model.network)

    def make_generator(self) -> nn.Module:
        return SuperposingGenerator(self.latent, self.model.spec.shape, len(self.model.spec.classes))

    def _generated(self, z: Tensor, labels: Tensor) -> Tensor:
        ones = torch.ones(len(labels), 1, device=labels.device)
        return self._scaled(self.generator(z.unsqueeze(1), labels.unsqueeze(1), ones))

    def images(self, iteration: int) -> Tensor:
        return self._composed(torch.randint(len(self.model.spec.classes), (self._batch_size,), generator=self._random))

    def _composed(self, labels: Tensor) -> Tensor:
        """Images with these first labels `(N,)`; sets their targets, and `labels` to the largest."""
        classes, device, count = len(self.model.spec.classes), self.model.device, len(labels)
        superposed = float(torch.rand((), generator=self._random)) < self._value("superposed_share")
        places = self.config.superposed_classes if superposed else 1
        others = torch.randint(classes, (count, places - 1), generator=self._random)
        every = torch.cat([labels.cpu().unsqueeze(1), others], dim=1)
        shares = torch.randn(count, places, generator=self._random).softmax(dim=1)
        noise = torch.randn(count, places, self.latent, generator=self._random)
        self._targets = torch.zeros(count, classes).scatter_add(1, every, shares).to(device)
        self.labels = self._targets.argmax(dim=1)
        return self._scaled(self.generator(noise.to(device), every.to(device), shares.to(device)))

    def targets(self) -> Tensor:
        return self._targets

    @torch.no_grad()
    def current(self) -> Tensor:
        images = super().current()
        self._targets = F.one_hot(self.labels, len(self.model.spec.classes)).to(images.dtype)
        return images

    @torch.no_grad()
    def sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._composed(labels), self.labels
