"""The image loop of IntraQ for CIFAR-10, reimplemented for comparison.

Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for Zero-Shot Network Quantization", CVPR 2022; their
program is data_generate/distill_data.py of zysxmu/IntraQ. This module was written after reading it and shares no code with it.

One iteration:
  1. toss a coin for the whole batch. Heads: each image is cropped separately (at a random place, 50 to 100 % of its area, sides 3:4 to
     4:3), enlarged bilinearly to full size, and mirrored with probability 1/2. Tails: each image is unchanged. Either way the images are
     processed one by one and stacked again. In the backward pass the gradient of each of the N images is written into a separate batch
     that is zero elsewhere, and N such batches are added;
  2. forward pass; a hook on each BatchNorm2d computes the mean of its input and, in a second pass, the biased variance; another keeps
     the output of the last pooling layer, the features;
  3. loss = mean over layers of MSE(mean, running mean) + the same for variances
          + mean over images of (softmax probability of the label - target)^2, where the target is 1 or, for half of the images, a number
            between 0.95 and 1, drawn once
          + distance of the features to the mean features of the class in earlier batches, as 1 - cosine: by how much it is below 0.05 and
            by how much above 0.8, each averaged over the images whose class has been seen before;
  4. compute the accuracy of the batch with numpy, and read each part of the loss as a Python number and the state of the optimizer, for
     a line that they print in every iteration;
  5. backward pass, also through the weights of the network, which are not frozen, and whose gradients are accumulated and never cleared;
     one step of Adam (lr 0.5, torch's default betas); the loss goes to ReduceLROnPlateau (factor 0.1, patience 50, smallest lr 1e-4).
1,000 iterations; batches of 256, 5 batches in each of 4 runs. The values are those of their data_generate/run_generate_cifar10.sh.
Images are not clamped.

Differences from the original, and why:
  - starting noise and labels are given, so that all peers start alike. Theirs are N(0, 1) and random labels;
  - this is their first batch: no class has been seen before, and the two cosine terms are computed with a mask of zeros, as they do.
    Their later batches run the same operations on other numbers;
  - the line is built but not printed;
  - coin and targets come from our own generators, so that a run can be repeated after `torch.manual_seed`: crops and mirrors use torch's
    global random numbers, as in torchvision;
  - crops are enlarged without antialiasing, as torchvision did at the time: it is cheaper and makes no difference when enlarging.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop

from benchmarks.peers.plain import plain_copy, plain_images
from core.models.full_precision import FullPrecisionModel


class IntraQ:
    """Optimizes one batch of images.

    model: does not change; it has a pooling layer, and a linear layer at its end. labels: `(N,)`. images: normalized noise
    `(N, 3, H, W)`. freeze: see `plain_copy`; the original does not.
    """

    iterations = 1000  # fixed in their loop as 500 * 2
    learning_rate = 0.5
    smallest_learning_rate = 1e-4
    patience = 50
    augmented = 0.5  # probability that the images of an iteration are cropped
    crop_area = 0.5  # smallest part of the area: --augMargin
    lowest_target = 0.95  # --targetPro
    nearest = 0.05  # --cosineMargin
    farthest = 0.8  # --cosineMargin_upper

    def __init__(self, model: FullPrecisionModel, labels: Tensor, images: Tensor, freeze: bool = False) -> None:
        self.network = plain_copy(model, freeze)
        self.loss = float("nan")
        self.parts: dict[str, float] = {}
        self.line = ""
        self._images = plain_images(images)
        self._labels = labels.cpu().numpy()
        self._random = random.Random(0)
        self._label_mask = F.one_hot(labels, num_classes=len(model.spec.classes)).float()
        self._targets = self._label_mask * self._draw_targets(len(labels)).to(labels.device)[:, None]
        width = next(layer.in_features for layer in reversed(list(self.network.modules())) if isinstance(layer, nn.Linear))
        # no earlier images: random features, and a mask that selects none of them
        self._earlier_features = torch.randn(len(labels), width, generator=torch.Generator().manual_seed(0)).to(labels.device)
        self._earlier_mask = torch.zeros(len(labels), device=labels.device)
        self._cosine = nn.CosineSimilarity(dim=1, eps=1e-6)
        self._crop = RandomResizedCrop(size=images.shape[-1], scale=(self.crop_area, 1.0), antialias=False)
        self._mirror = RandomHorizontalFlip()
        self._optimizer = torch.optim.Adam([self._images], lr=self.learning_rate)
        self._scheduler = ReduceLROnPlateau(self._optimizer, patience=self.patience, min_lr=self.smallest_learning_rate)

        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []
        self._running_means: list[Tensor] = []
        self._running_variances: list[Tensor] = []
        self._features: Tensor | None = None
        norms = [layer for layer in self.network.modules() if isinstance(layer, nn.BatchNorm2d)]
        # pytorchcv calls the last one final_pool, the name that the original looks for
        pool = [layer for layer in self.network.modules() if isinstance(layer, (nn.AvgPool2d, nn.AdaptiveAvgPool2d))][-1]
        self._handles = [layer.register_forward_hook(self._after_norm) for layer in norms]
        self._handles.append(pool.register_forward_hook(self._after_pool))

    def _draw_targets(self, count: int) -> Tensor:
        """Target probability of the label of each image, `(N,)`: random for half of them, 1 for the others."""
        drawn = [self._random.uniform(self.lowest_target, 1.0) if self._random.random() < 0.5 else 1.0 for _ in range(count)]
        return torch.tensor(drawn)

    def _after_norm(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self._means.append(inputs[0].mean([0, 2, 3]))
        self._variances.append(inputs[0].var([0, 2, 3], unbiased=False))
        self._running_means.append(layer.get_buffer("running_mean"))
        self._running_variances.append(layer.get_buffer("running_var"))

    def _after_pool(self, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._features = output

    @property
    def images(self) -> Tensor:
        """`(N, 3, H, W)`, normalized."""
        return self._images.detach()

    def step(self) -> None:
        """One iteration, see the docstring of this module."""
        if self._random.random() < self.augmented:
            batch = torch.stack([self._mirror(self._crop(self._images[j])) for j in range(len(self._images))])
        else:
            batch = torch.stack([self._images[j] for j in range(len(self._images))])

        for kept in (self._means, self._variances, self._running_means, self._running_variances):
            kept.clear()
        self._features = None
        logits = self.network(batch)
        features = torch.squeeze(self._features)
        accuracy = np.mean(np.argmax(logits.detach().cpu().numpy(), axis=1) == self._labels)

        errors = F.mse_loss(F.softmax(logits, dim=1), self._targets, reduction="none") * self._label_mask
        target = errors.sum(dim=1).mean()
        # the cosine twice, as in the original
        near = self._mean_of_seen(self.nearest - (1.0 - self._cosine(features, self._earlier_features.detach())))
        far = self._mean_of_seen((1.0 - self._cosine(features, self._earlier_features.detach())) - self.farthest)
        mean = torch.zeros(1, device=logits.device)
        variance = torch.zeros(1, device=logits.device)
        for layer in range(len(self._means)):
            mean += F.mse_loss(self._means[layer], self._running_means[layer].detach())
            variance += F.mse_loss(self._variances[layer], self._running_variances[layer].detach())
        mean = mean / len(self._means)
        variance = variance / len(self._means)
        loss = mean + variance + target + near + far

        parts = {"mean": mean, "variance": variance, "target": target, "near": near, "far": far}
        rate = self._optimizer.state_dict()["param_groups"][0]["lr"]
        self.parts = {name: part.item() for name, part in parts.items()}
        self.line = f"lr {rate} accuracy {accuracy} {self.parts}"

        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.loss = loss.item()
        self._scheduler.step(self.loss)

    def _mean_of_seen(self, excess: Tensor) -> Tensor:
        """The positive part of `(N,)`, averaged over the images whose class has been seen before; 0 if there are none."""
        return torch.sum(torch.clamp(excess, min=0) * self._earlier_mask) / (torch.sum(self._earlier_mask) + 1e-6)

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
