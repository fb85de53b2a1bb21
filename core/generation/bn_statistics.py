"""Batch statistics of the input of each BatchNorm layer, differentiable with respect to the images and cheap."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.models.full_precision import batch_norm_layers

_ROW = 512  # numbers in a row of `channel_rows`, at least, so that row-wise operations vectorize well
_EPS = 1e-5  # BatchNorm's own
_FLOOR = 0.01  # of a layer's mean running variance: 0 and 1 lower L_BNS of EfficientNet-Lite0 less


def channel_rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` `(N, C, H, W)` as a matrix `(N H W / k, k C)` and k: channels-last memory, k pixels with all their channels a row.

    A view if x is channels-last. With few channels, reductions over rows and products with a repeated `(C,)` are several times faster
    than with one pixel per row.
    """
    channels, count, repeat = x.shape[1], x.numel() // x.shape[1], 1
    while repeat * channels < _ROW and count % (2 * repeat) == 0:
        repeat *= 2
    return x.permute(0, 2, 3, 1).reshape(count // repeat, repeat * channels), repeat


def images_of(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse of `channel_rows`: a view of `shape` `(N, C, H, W)`, channels-last."""
    count, channels, height, width = shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def mean_and_variance(sums: Tensor, squares: Tensor, channels: int, count: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance `(C,)` from sums and sums of squares over `count` values, both `(k C,)`."""
    mean = sums.view(-1, channels).sum(dim=0) / count
    square = squares.view(-1, channels).sum(dim=0) / count
    return mean, (square - mean * mean).clamp_min_(0.0) * (count / (count - 1))


def statistics_slope(grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """a and b, both `(C,)`, of the gradient a x + b that mean and unbiased variance over `count` values x send back:

    d mean / dx = 1 / M        d var / dx = 2 (x - mean) / (M - 1),        M = count
    """
    slope = grad_variance * (2 / max(1, count - 1))
    return slope, grad_mean / count - slope * mean


def image_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the positions of each image of `x` `(N, C, H, W)`, both `(N, C)`; of one position, 0."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=1 if x.shape[2] * x.shape[3] > 1 else 0)
    return mean, variance


def with_batch(mean: Tensor, variance: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Statistics of each image over `positions`, both `(N, C)`, below those of the whole batch: both `(1 + N, C)`.

    Var of all M = N P values: ((P - 1) sum_i var_i + P sum_i (mean_i - mean)^2) / (M - 1)
    """
    center = mean.mean(dim=0)
    squares = (positions - 1) * variance.sum(dim=0) + positions * (mean - center).square().sum(dim=0)
    spread = squares / (len(mean) * positions - 1)
    return torch.cat([center[None], mean]), torch.cat([spread[None], variance])


def observed_statistics(x: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of `x` `(N, C, H, W)` over the batch, both `(C,)`; per_image: `(1 + N, C)`, see `with_batch`."""
    return with_batch(*image_statistics(x), x.shape[2] * x.shape[3]) if per_image else ChannelStatistics.apply(x)


class ChannelStatistics(torch.autograd.Function):
    """Mean and unbiased variance over (N, H, W) of `x` `(N, C, H, W)`, both `(C,)`.

    Unbiased because BatchNorm's running variance is. The mean of x and of x*x over the channels-last rows is many times faster on a
    CPU than torch.var_mean over the same elements, and its gradient is one multiply-add (`statistics_slope`).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rows, _ = channel_rows(x)
        count = x.numel() // x.shape[1]
        mean, variance = mean_and_variance(rows.sum(dim=0), (rows * rows).sum(dim=0), x.shape[1], count)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:  # type: ignore[override]
        x, mean = ctx.saved_tensors
        rows, repeat = channel_rows(x)
        slope, offset = statistics_slope(grad_mean, grad_variance, mean, x.numel() // x.shape[1])
        return images_of(torch.addcmul(offset.repeat(repeat), rows, slope.repeat(repeat)), x.shape)


@functools.lru_cache(maxsize=64)
def _places(passes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """For passes, each with a layer and a number of channels: the layer of each pass, and the pass of each channel, concatenated.

    Cached, because a CUDA graph must not copy from the CPU.
    """
    layers = torch.tensor([layer for layer, _ in passes], device=device)
    return layers, torch.tensor([number for number, (_, channels) in enumerate(passes) for _ in range(channels)], device=device)


@dataclass
class BatchStatistics:
    """Statistics of one forward pass: the name, running and batch `(mean, variance)` of each layer.

    images: those of each image over its positions, `(N, C)`, if they were collected.
    """

    names: list[str]
    running: list[tuple[Tensor, Tensor]]
    batch: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    images: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def clear(self) -> None:
        """Removes the statistics of the last forward pass; to be called before each one."""
        self.batch = [[] for _ in self.names]
        self.images = [[] for _ in self.names]

    def add(self, index: int, mean: Tensor, variance: Tensor) -> None:
        """Adds what `observed_statistics` returned for the layer of this index."""
        if mean.ndim == 2:
            self.images[index].append((mean[1:], variance[1:]))
            mean, variance = mean[0], variance[0]
        self.batch[index].append((mean, variance))

    def layer_losses(self) -> Tensor:
        """L_BNS of each layer `(L,)`: ||mean - running mean||_2 + ||var - running var||_2, summed where a layer runs twice.

        All layers are concatenated in one vector, because many small operations would cost more than the arithmetic.
        """
        passes = [(index, *own) for index, layer in enumerate(self.batch) for own in layer]
        if not passes:
            return self.running[0][0].new_zeros(len(self.names))
        losses = passes[0][1].new_zeros(len(self.names))
        places = _places.__wrapped__ if torch.compiler.is_compiling() else _places  # a compiler warns about the cache
        layers, place = places(tuple((index, len(mean)) for index, mean, _ in passes), losses.device)
        for kind in (0, 1):
            batch = torch.cat([own[kind] for _, *own in passes])
            running = torch.cat([self.running[index][kind] for index, _, _ in passes])
            squares = losses.new_zeros(len(passes)).index_add(0, place, (batch - running).square())
            # the gradient at zero is zero; that of the plain root is undefined
            norms = torch.where(squares == 0, 1.0, squares).sqrt() * (squares != 0)
            losses = losses.index_add(0, layers, norms.to(losses.dtype))
        return losses

    def divergences(self) -> Tensor:
        """KL(batch || running) of each layer `(L,)`, both taken as normal distributions: mean over channels, summed where a layer runs
        twice. With r the ratio of the batch variance to the running one, and the running mean and variance m and v, a channel has

            (r - 1 - log r + (mean - m)^2 / v) / 2

        A channel that is off by a given share of its running variance counts the same in every layer, whereas in L_BNS a few channels of
        large variance outweigh all others. Both variances are raised by BatchNorm's eps and 1 % of the layer's mean running variance, so
        that channels that hardly vary do not outweigh the others either.
        """
        passes = [(index, *own) for index, layer in enumerate(self.batch) for own in layer]
        losses = self.running[0][0].new_zeros(len(self.names))
        if not passes:
            return losses
        places = _places.__wrapped__ if torch.compiler.is_compiling() else _places
        layers, place = places(tuple((index, len(mean)) for index, mean, _ in passes), losses.device)
        means, variances = (torch.cat([own[kind] for _, *own in passes]) for kind in (0, 1))
        with torch.no_grad():
            running = torch.cat([self.running[index][0] for index, _, _ in passes])
            floors = torch.cat([(_EPS + _FLOOR * self.running[index][1].mean()).expand(len(mean)) for index, mean, _ in passes])
            scale = torch.cat([self.running[index][1] for index, _, _ in passes]) + floors
            shares = torch.cat([mean.new_full((len(mean),), 0.5 / len(mean)) for _, mean, _ in passes])
        ratio = (variances + floors) / scale
        channels = shares * (ratio - 1 - ratio.log() + (means - running).square() / scale)
        return losses.index_add(0, layers[place], channels.to(losses.dtype))

    @torch.no_grad()
    def end_to_end(self) -> Tensor:
        """Batch means and unbiased variances `(2, C)` of all layers, concatenated; without gradient.

        The mean over its passes for a layer that ran several times, NaN for one that did not run.
        """
        rows = []
        for kind in (0, 1):
            for (running, _), passes in zip(self.running, self.batch):
                if len(passes) == 1:
                    rows.append(passes[0][kind])
                elif passes:
                    rows.append(torch.stack([own[kind] for own in passes]).mean(dim=0))
                else:
                    rows.append(torch.full_like(running, float("nan")))
        return torch.cat(rows).view(2, -1)


def empty_statistics(network: nn.Module) -> BatchStatistics:
    """Names and running statistics of the BatchNorm layers of `network`. Raises ModelError when it has none."""
    layers = batch_norm_layers(network)
    if not layers:
        raise ModelError(f"{type(network).__name__} must have a BatchNorm layer with running statistics, got none")
    running = [(layer.get_buffer("running_mean"), layer.get_buffer("running_var")) for layer in layers.values()]
    statistics = BatchStatistics(list(layers), running)
    statistics.clear()
    return statistics


@contextmanager
def collect_statistics(network: nn.Module, per_image: bool = False) -> Iterator[BatchStatistics]:
    """Collects the batch statistics of every BatchNorm layer while the block runs; the hooks are removed afterwards.

    per_image: also those of each image.
    Raises ModelError when the network has no BatchNorm layer with running statistics.
    """
    statistics = empty_statistics(network)

    def hook_for(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            statistics.add(index, *observed_statistics(inputs[0], per_image))

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(i)) for i, layer in enumerate(batch_norm_layers(network).values())]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
