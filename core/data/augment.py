"""Random shifts, crops, and flips, of the whole batch or of each image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def jitter_batch(images: Tensor, max_shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """The batch `(N, C, H, W)`, cyclically shifted by up to `max_shift` pixels in each direction and mirrored with probability 1/2.

    All images get the same shift and flip. Differentiable: each pixel's gradient returns to its original position. A cyclic shift keeps
    every pixel, because there is no content beyond the border to shift in.
    """
    # always three draws, so that disabling the shift or the flip does not change the other
    draws = torch.rand(3, generator=generator).tolist()
    if max_shift:
        span = 2 * max_shift + 1
        shifts = (int(draws[0] * span) - max_shift, int(draws[1] * span) - max_shift)
        images = torch.roll(images, shifts=shifts, dims=(2, 3))
    if flip and draws[2] < 0.5:
        images = torch.flip(images, dims=(3,))
    return images


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Crops each image of `(N, C, H, W)` at random from its reflection-padded version, and mirrors it with probability 1/2.

    padding: in pixels on each side; at most H - 1 and W - 1 are used.
    """
    count, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).to(device)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(device)
    rows = torch.arange(height, device=device).expand(count, height)
    columns = torch.arange(width, device=device).expand(count, width)
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    if padding:
        # reflection padding must be smaller than the image
        padding_used = min(padding, height - 1, width - 1)
        images = F.pad(images.float(), (padding_used,) * 4, mode="reflect").to(images.dtype)
        rows = rows + offsets[0].clamp(max=2 * padding_used)[:, None]
        columns = columns + offsets[1].clamp(max=2 * padding_used)[:, None]
    index = torch.arange(count, device=device)
    return images.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutmix(images: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A copy of `(N, C, H, W)` in which a rectangle of each image, at the same position in all, comes from another image of the batch.

    The rectangle has the proportions of the image and a share of its area between 0 and 1, uniformly distributed. labels: int64 `(N,)`.
    Returns the images and the share of each class `(N, classes)` (CutMix, Yun et al., ICCV 2019, section 3.1).
    """
    count, _, height, width = images.shape
    share, x, y = torch.rand(3, generator=generator).tolist()
    rows, columns = int(height * math.sqrt(share)), int(width * math.sqrt(share))
    top, left = int(y * (height - rows + 1)), int(x * (width - columns + 1))
    others = torch.randperm(count, generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, top : top + rows, left : left + columns] = images[others, :, top : top + rows, left : left + columns]
    one_hot = F.one_hot(labels, classes).float()
    return mixed, torch.lerp(one_hot, one_hot[others], rows * columns / (height * width))


def resized_crops(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """A random part of each image of `(N, C, H, W)`, resized to the whole size, and mirrored with probability 1/2; differentiable.

    Parts have a share of the area between `smallest` and 1 and sides whose ratio is up to 4/3 times that of the image.
    """
    count = len(images)
    share, shape, x, y, mirrored = torch.rand(5, count, generator=generator)
    area, ratio = smallest + (1 - smallest) * share, torch.exp((2 * shape - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # from coordinates of the result to coordinates of the image, both from -1 to 1
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0], maps[:, 0, 2] = torch.where(mirrored < 0.5, -width, width), (2 * x - 1) * (1 - width)
    maps[:, 1, 1], maps[:, 1, 2] = height, (2 * y - 1) * (1 - height)
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
