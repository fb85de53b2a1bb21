"""What a network has to be before images are made from it: checks of one that somebody else trained, each with the reason in words."""

import torch
from torch import Tensor, nn

from core.errors import ModelError, first_line
from core.models.full_precision import batch_norm_layers
from core.models.registry import ModelSpec

_IMAGES = 4
_SEED = 0


def check_network(network: nn.Module, spec: ModelSpec, called: str = "") -> None:
    """Raises ModelError unless images can be made from the statistics of this network and classified by it.

    network: evaluation mode, normalised images `(N, 3, spec.image_size, spec.image_size)` -> logits `(N, classes)`. It has a BatchNorm
    layer, its statistics are finite, of positive variance and not those that a layer starts with, and it gives a finite score for each
    class on noise, for one image as for several. The network's mode and the global random numbers are left alone. called: what it is
    called in messages; empty: spec.name.
    """
    _check_statistics(network, called or spec.name)
    check_scores(network, spec, called or spec.name)


def _check_statistics(network: nn.Module, called: str) -> None:
    layers = batch_norm_layers(network)
    if not layers:
        raise ModelError(
            f"{called} has no BatchNorm layer with running statistics: allowed are networks with at least one, as images are made from them"
        )
    untouched = []
    for name, layer in layers.items():
        mean, variance = layer.running_mean, layer.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        if not (mean.isfinite().all() and variance.isfinite().all() and (variance >= 0).all()):
            raise ModelError(f"{called} has statistics in {name} that none can be: allowed are finite means and variances from 0 up")
        if (mean == 0).all() and (variance == 1).all():
            untouched.append(name)
    if len(untouched) == len(layers):
        raise ModelError(
            f"{called} has the BatchNorm statistics that every network starts with, mean 0 and variance 1: "
            "allowed are those of a trained network"
        )


@torch.no_grad()
def check_scores(network: nn.Module, spec: ModelSpec, called: str, size: int | None = None) -> None:
    """Raises ModelError unless the network gives a finite score for each class on noise of its own size, or of `size` pixels."""
    size, classes = size or spec.image_size, len(spec.classes)
    device = next(network.parameters()).device
    pixels = torch.rand(_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(_SEED))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    noise = ((pixels - mean) / std).to(device)
    for images in (noise, noise[:1]):
        try:
            scores = network(images)
        except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError) as error:
            raise ModelError(
                f"{called} cannot take {len(images)} images of {size} x {size} pixels ({first_line(error)}): "
                "allowed is an image size that the network was made for"
            ) from error
        if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(images), classes):
            shape = tuple(getattr(scores, "shape", ()))
            raise ModelError(f"{called} gives scores of {shape} for {len(images)} images: allowed is one for each of {classes} classes")
        if not scores.isfinite().all():
            raise ModelError(f"{called} gives scores on noise that are not finite: allowed is one finite score for each class")
