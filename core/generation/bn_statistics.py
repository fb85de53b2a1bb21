"""Batch statistics of what enters each BatchNorm layer, differentiable with respect to the images and cheap."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.models.full_precision import batch_norm_layers


class ChannelStatistics(torch.autograd.Function):
    """Mean and unbiased variance over (N, H, W) of `x` `(N, C, H, W)`, both `(C,)`.

    Unbiased because BatchNorm's running variance is. The mean of x and of x*x over the channels-last rows is many times faster on a
    CPU than torch.var_mean over the same elements, and its gradient is one multiply-add:

        d mean_c / dx = 1 / M        d var_c / dx = 2 (x - mean_c) / (M - 1),        M = N H W
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # a view where x is channels-last
        count = rows.shape[0]
        mean = rows.mean(dim=0)
        variance = ((rows * rows).mean(dim=0) - mean * mean).clamp_min_(0.0) * (count / (count - 1))
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:  # type: ignore[override]
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = grad_variance * (2 / (count - 1))
        offset = grad_mean / count - slope * mean
        shape = (1, -1, 1, 1)
        return torch.addcmul(offset.view(shape), x, slope.view(shape))


@dataclass
class BatchStatistics:
    """What one forward pass left behind: for each layer its name, and `(mean, variance)` of the batch and of training."""

    names: list[str]
    running: list[tuple[Tensor, Tensor]]
    batch: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets the last forward pass; call it before each one."""
        self.batch = [[] for _ in self.names]

    def layer_losses(self) -> Tensor:
        """L_BNS of each layer `(L,)`: ||mean - running mean||_2 + ||var - running var||_2, added up where a layer runs twice."""
        losses = []
        for (running_mean, running_variance), passes in zip(self.running, self.batch):
            parts = [
                torch.linalg.vector_norm(mean - running_mean) + torch.linalg.vector_norm(variance - running_variance)
                for mean, variance in passes
            ]
            losses.append(torch.stack(parts).sum() if parts else running_mean.new_zeros(()))
        return torch.stack(losses)


@contextmanager
def collect_statistics(network: nn.Module) -> Iterator[BatchStatistics]:
    """Collects the batch statistics of every BatchNorm layer while the block runs; the hooks are gone afterwards.

    Raises ModelError when the network has no BatchNorm layer with running statistics.
    """
    layers = batch_norm_layers(network)
    if not layers:
        raise ModelError(f"{type(network).__name__} has no BatchNorm layer with running statistics: allowed are networks with at least one")
    running = [(layer.get_buffer("running_mean"), layer.get_buffer("running_var")) for layer in layers.values()]
    statistics = BatchStatistics(list(layers), running)
    statistics.clear()

    def hook_for(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            statistics.batch[index].append(ChannelStatistics.apply(inputs[0]))

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(i)) for i, layer in enumerate(layers.values())]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
