"""A Gaussian low-pass filter."""

import torch
from torch import Tensor


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """The images `(N, C, H, W)` with each frequency multiplied by exp(-d^2 / (2 cutoff^2)); the mean of each channel stays.

    d: distance from frequency 0 in periods per image, along both axes together. cutoff: of a frequency that keeps 61 %. Images are taken
    as periodic.
    """
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=images.device)
    gain = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * cutoff**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(height, width))
