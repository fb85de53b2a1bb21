"""The generator of GDFQ (Xu et al., ECCV 2020), which Qimera, ZAQ and DSG adopted.

    z -> linear -> 128 x s x s -> BN -> upsample -> conv 128 -> BN -> LeakyReLU
                                     -> upsample -> conv 64 -> BN -> LeakyReLU -> conv C -> tanh -> BN

with 3 x 3 kernels and s a quarter of the image size on each side. The last BatchNorm has no affine parameters, so each channel of a batch
of images has zero mean and unit variance. A generator always normalizes with the statistics of the batch, as in its training.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (128, 64)  # channels after the first and after the second upsampling
_FIRST_EPS = 1e-5
_SLOPE = 0.2  # of LeakyReLU
EPS = 0.8  # of the inner BatchNorm layers


class ConditionalBatchNorm(nn.Module):
    """BatchNorm with the statistics of the batch, and a scale and a shift for each class, 1 and 0 at first; classes 1: one for all."""

    def __init__(self, channels: int, classes: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """`x` `(N, C, H, W)`, labels `(N,)`."""
        if len(self.scale) == 1:
            return F.batch_norm(x, None, None, self.scale[0], self.shift[0], training=True, eps=self.eps)
        normal = F.batch_norm(x, None, None, training=True, eps=self.eps)
        return normal * self.scale[labels][:, :, None, None] + self.shift[labels][:, :, None, None]


class GeneratorBody(nn.Module):
    """Vectors `(N, latent)` and labels `(N,)` -> images `(N, C, H, W)` whose channels have zero mean and unit variance over the batch.

    shape: of an image, (C, H, W). classes: 1, or those that BatchNorm layers are conditioned on. eps: of the inner BatchNorm layers.
    Sides that 4 does not divide are upsampled from the next larger integers.
    """

    def __init__(self, latent: int, shape: tuple[int, int, int], classes: int = 1, eps: float = EPS) -> None:
        super().__init__()
        channels, *size = shape
        self.sizes = [tuple(math.ceil(side / factor) for side in size) for factor in (4, 2, 1)]
        self.linear = nn.Linear(latent, WIDTHS[0] * math.prod(self.sizes[0]))
        self.norm = ConditionalBatchNorm(WIDTHS[0], classes, _FIRST_EPS)
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, WIDTHS))
        self.norms = nn.ModuleList(ConditionalBatchNorm(width, classes, eps) for width in WIDTHS)
        self.last = nn.Conv2d(WIDTHS[-1], channels, 3, padding=1)

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        x = self.linear(vectors).view(len(vectors), WIDTHS[0], *self.sizes[0]).contiguous(memory_format=torch.channels_last)
        x = self.norm(x, labels)
        for size, convolution, norm in zip(self.sizes[1:], self.convolutions, self.norms):
            x = convolution(F.interpolate(x, size=size, mode="nearest"))
            x = F.leaky_relu(norm(x, labels), _SLOPE)
        return F.batch_norm(self.last(x).tanh(), None, None, training=True)


class EmbeddingGenerator(nn.Module):
    """GDFQ for CIFAR: z `(N, latent)` times an embedding of the label enters the body."""

    def __init__(self, latent: int, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, latent)
        self.body = GeneratorBody(latent, shape)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.body(z * self.embedding(labels), labels)


class SmallGenerator(nn.Module):
    """Genie (Jeon et al., CVPR 2023): vectors `(N, latent)` -> images `(N, C, H, W)` as those of `GeneratorBody`.

        z -> linear -> 128 x s x s -> BN -> upsample -> conv 64 -> BN -> LeakyReLU -> upsample -> conv C -> tanh -> BN

    One hidden convolution, no labels. The BatchNorm layers have torch's eps.
    """

    def __init__(self, latent: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *size = shape
        first, hidden = WIDTHS
        self.sizes = [tuple(math.ceil(side / factor) for side in size) for factor in (4, 2, 1)]
        self.linear = nn.Linear(latent, first * math.prod(self.sizes[0]))
        self.norms = nn.ModuleList(ConditionalBatchNorm(width, 1, _FIRST_EPS) for width in WIDTHS)
        self.convolution = nn.Conv2d(first, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.linear(vectors).view(len(vectors), WIDTHS[0], *self.sizes[0]).contiguous(memory_format=torch.channels_last)
        labels = x.new_zeros(len(x), dtype=torch.long)  # one for all
        x = self.convolution(F.interpolate(self.norms[0](x, labels), size=self.sizes[1], mode="nearest"))
        x = F.leaky_relu(self.norms[1](x, labels), _SLOPE)
        x = self.last(F.interpolate(x, size=self.sizes[2], mode="nearest"))
        return F.batch_norm(x.tanh(), None, None, training=True)
