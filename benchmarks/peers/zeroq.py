"""The image loop of ZeroQ, reimplemented for comparison.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020; their program is distill_data.py of amirgholami/ZeroQ, in its
later version (folder classification). This module was written after reading it and shares no code with it.

One iteration:
  1. clear the gradients of the network and of the images, and the outputs that the hooks hold;
  2. forward pass; a hook on each convolution keeps its output, which is the input of the BatchNorm layer behind it;
  3. for each layer, mean and standard deviation of every image separately over its positions: m, s `(N, C)`, with the unbiased variance
     and s = sqrt(variance + 1e-6). With M the running mean and S = sqrt(running variance + 1e-6):
         loss += (||M - m||_F^2 + ||S - s||_F^2) / N
     and the same for the images themselves, with M = 0 and S = 1. No labels, no smoothness term;
  4. backward pass, also through the weights of the network, which are not frozen; one step of Adam (lr 0.5, torch's default betas);
  5. the loss, as a Python number, goes to ReduceLROnPlateau (factor 0.1, patience 100, smallest lr 1e-4).
500 iterations, one batch; 64 images in their run.sh, 32 by default. Images are not clamped.

Versions: the first one divided by the number of channels, had a step size of 0.1, and stopped once the loss fell to 5 (layers + 1). The
later one, implemented here, divides by the number of images, has a step size of 0.5, and never stops early. An iteration costs the same.

Differences from the original, and why:
  - the starting images are given, so that all peers can start alike; `initial_images` draws those of the original;
  - labels are accepted, as by the other peers, and ignored: ZeroQ has none.
"""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from benchmarks.peers.plain import plain_copy, plain_images
from core.models.full_precision import FullPrecisionModel, batch_norm_layers


def initial_images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """The starting images of ZeroQ, `(count, 3, size, size)`: whole numbers from 0 to 254, minus 127.5, divided by 5418.75.

    The divisor is meant to bring the variance to 1, but is the variance itself and not its root, so that images start almost gray
    (standard deviation 0.0136). Kept as in the original.
    """
    return (torch.randint(255, (count, 3, size, size), generator=generator).float() - 127.5) / 5418.75


class OutputHook:
    """Keeps the last output of one convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.output: Tensor | None = None
        self._handle = layer.register_forward_hook(self._after)

    def _after(self, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.output = output

    def remove(self) -> None:
        self.output = None
        self._handle.remove()


class ZeroQ:
    """Optimizes one batch of images.

    model: does not change. labels: ignored. images: normalized noise `(N, 3, H, W)`. freeze: see `plain_copy`; the original does not.
    Raises ValueError if the network has fewer convolutions than BatchNorm layers: these are paired with the first convolutions, in order.
    """

    iterations = 500  # fixed in their loop
    learning_rate = 0.5
    smallest_learning_rate = 1e-4
    patience = 100
    epsilon = 1e-6  # added to every variance

    def __init__(self, model: FullPrecisionModel, labels: Tensor, images: Tensor, freeze: bool = False) -> None:
        self.network = plain_copy(model, freeze)
        self.loss = float("nan")
        norms = list(batch_norm_layers(self.network).values())
        convolutions = [layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d)][: len(norms)]
        if len(convolutions) < len(norms):
            raise ValueError(f"number of convolutions must be at least {len(norms)}, one for each BatchNorm layer, got {len(convolutions)}")
        self._running = [
            (norm.get_buffer("running_mean").clone(), (norm.get_buffer("running_var") + self.epsilon).sqrt()) for norm in norms
        ]
        self._hooks = [OutputHook(layer) for layer in convolutions]
        self._images = plain_images(images)
        self._image_statistics = torch.zeros(1, 3, device=images.device), torch.ones(1, 3, device=images.device)
        self._optimizer = torch.optim.Adam([self._images], lr=self.learning_rate)
        self._scheduler = ReduceLROnPlateau(self._optimizer, patience=self.patience, min_lr=self.smallest_learning_rate)

    @property
    def images(self) -> Tensor:
        """`(N, 3, H, W)`, normalized."""
        return self._images.detach()

    def step(self) -> None:
        """One iteration, see the docstring of this module."""
        self.network.zero_grad()
        self._optimizer.zero_grad()
        for hook in self._hooks:
            hook.output = None
        self.network(self._images)

        loss_of_means: Tensor | float = 0.0
        loss_of_deviations: Tensor | float = 0.0
        observed = [(running, hook.output) for running, hook in zip(self._running, self._hooks)]
        for (running_mean, running_deviation), x in [*observed, (self._image_statistics, self._images)]:
            mean, deviation = self._statistics(x)
            loss_of_means += squared_distance(running_mean, mean)
            loss_of_deviations += squared_distance(running_deviation, deviation)
        loss = loss_of_means + loss_of_deviations

        loss.backward()
        self._optimizer.step()
        self.loss = loss.item()
        self._scheduler.step(self.loss)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of each image: `(N, C, H, W)` -> `(N, C)` twice."""
        mean = x.view(x.shape[0], x.shape[1], -1).mean(dim=2)
        variance = x.view(x.shape[0], x.shape[1], -1).var(dim=2)
        return mean, torch.sqrt(variance + self.epsilon)

    def close(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()


def squared_distance(expected: Tensor, observed: Tensor) -> Tensor:
    """Squared distance of `expected` `(C,)` or `(1, C)` to `observed` `(N, C)`: sum over channels, mean over images."""
    # the square of the norm, as in the original
    return (expected - observed).norm() ** 2 / observed.shape[0]
