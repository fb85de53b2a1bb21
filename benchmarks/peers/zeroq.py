"""The image loop of ZeroQ, written anew for comparison.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020; their program is distill_data.py of amirgholami/ZeroQ, in its
later version (folder classification). This module was written from a reading of it and shares no code with it.

One iteration:
  1. clear the gradients of the network and of the images, and forget what the hooks hold;
  2. forward; a hook after each convolution keeps its output, which is what enters the BatchNorm layer behind it;
  3. for each layer, mean and standard deviation of every image on its own over its positions: m, s `(N, C)`, with the unbiased variance
     and s = sqrt(variance + 1e-6). With M the running mean and S = sqrt(running variance + 1e-6):
         loss += (||M - m||_F^2 + ||S - s||_F^2) / N
     and the same for the images themselves, with M = 0 and S = 1. No labels, nothing that smooths;
  4. backward, through the weights of the network too, which nobody has frozen; one step of Adam (lr 0.5, torch's own betas);
  5. the loss, as a Python number, to ReduceLROnPlateau (factor 0.1, patience 100, smallest lr 1e-4).
500 iterations, one batch; 64 images in their run.sh, 32 by default. Images are not clamped.

Which version: the first one divided by the number of channels, stepped by 0.1, and stopped once the loss fell to 5 (layers + 1); the
later one, which this is, divides by the number of images, steps by 0.5 and never stops early. An iteration costs the same in both.

What is different here, and why:
  - the starting images are given, so that all peers can start alike; `initial_images` draws what theirs starts from;
  - labels are taken, as with the other peers, and ignored: ZeroQ has none.
"""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from benchmarks.peers.plain import plain_copy, plain_images
from core.models.full_precision import FullPrecisionModel, batch_norm_layers


def initial_images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`(count, 3, size, size)` from which ZeroQ starts: whole numbers from 0 to 254, less 127.5, divided by 5418.75.

    The divisor is meant to bring the variance to 1, but is that variance itself and not its root, so that images start almost grey
    (standard deviation 0.0136). It is left so.
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

    model: stays as it is. labels: ignored. images: normalised noise `(N, 3, H, W)`. freeze: see `plain_copy`; theirs does not.
    Raises ValueError when the network has fewer convolutions than BatchNorm layers: the first of the one are paired with the other.
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
        """`(N, 3, H, W)`, normalised."""
        return self._images.detach()

    def step(self) -> None:
        """One iteration, see above."""
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
    """Squared distance of `expected` `(C,)` or `(1, C)` to `observed` `(N, C)`, summed over channels, mean over images."""
    # by way of the norm and its square, as theirs
    return (expected - observed).norm() ** 2 / observed.shape[0]
