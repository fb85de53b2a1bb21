"""Checks that images can be generated from a network that was trained elsewhere."""

import torch
from torch import Tensor, nn

from core.errors import ModelError, first_line
from core.models.divergence import check_tensors, first_not_finite, tensor_not_finite
from core.models.full_precision import NEEDED_LAYER, batch_norm_layers
from core.models.registry import ModelSpec
from core.models.weights import first_names
from core.untrusted import allow_more_memory

_IMAGES = 2  # several, but no more, because each takes memory
_LARGE = 512  # pixels; above, the activations of one image can be more than a small file may take (core/untrusted.py)
_BYTES = 256  # for each pixel beyond a large image: what efficientnet_lite0 and mobilenet_v2 need for their activations, and some more
_SEED = 0
PROBABILITIES = (
    "its scores are probabilities, which add up to 1, so images and training follow them less than logits; better export the network "
    "without its last softmax"
)
_SUM = 1e-4  # what rounding may change in a sum of probabilities
_ALIKE = 0.01  # of the largest score: what rounding may change in an image's scores, which depends on the size of its batch


def check_network(network: nn.Module, spec: ModelSpec, called: str = "") -> tuple[str, ...]:
    """Raises ModelError unless images can be generated from the statistics of this network and classified by it.

    Returns notes for the user. network: in evaluation mode; normalized images `(N, *spec.shape)` -> logits `(N, classes)`. It must have two
    classes or more and a BatchNorm layer; its parameters and statistics must be finite, with non-negative variance, and the statistics not
    the initial ones of every layer; and its scores for noise must be finite for every class, for one image and, unless they are large, for
    several, and the same for an image alone and in a batch. The mode of the network and the global random number generator are not changed.
    called: its name in error messages, by default spec.name.
    """
    called = called or spec.name
    if len(spec.classes) < 2:  # softmax of one score is 1, so all losses and agreements would be those of a perfect network
        raise ModelError(
            f"{called} must have a score for each of two or more classes, got one score per image; of a network for yes or no, export "
            "torch.cat([torch.zeros_like(score), score], dim=1), which has the same probabilities"
        )
    check_tensors(network, called)
    _check_statistics(network, called)
    scores = _check_independent(network, spec, called)
    if (scores >= 0).all() and (scores.sum(dim=1) - 1).abs().max() < _SUM:
        return (PROBABILITIES,)
    return ()


def _check_statistics(network: nn.Module, called: str) -> None:
    layers = batch_norm_layers(network)
    if not layers:
        raise ModelError(f"{called} must have at least one {NEEDED_LAYER}")
    untouched = []
    for name, layer in layers.items():
        mean, variance = layer.running_mean, layer.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        if not (variance >= 0).all():
            raise ModelError(f"running variances of {name} in {called} must be 0 or more, got {float(variance.min()):g}")
        if (mean == 0).all() and (variance == 1).all():
            untouched.append(name)
    if len(untouched) == len(layers):
        raise ModelError(
            f"running statistics of {called} must be those of a trained network, got the initial ones (mean 0 and variance 1 everywhere)"
        )


@torch.no_grad()
def check_scores(network: nn.Module, spec: ModelSpec, called: str, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Raises ModelError unless the network's scores for noise are finite. size: height and width of the noise, by default spec.size.

    Returns the scores of one image in a batch and alone, both `(classes,)`. A large image is only scored alone, twice.
    """
    height, width = size or spec.size
    classes = len(spec.classes)
    device = next(network.parameters()).device
    more = height * width - _LARGE**2
    noise = torch.rand(1 if more > 0 else _IMAGES, spec.channels, height, width, generator=torch.Generator().manual_seed(_SEED))
    noise[1:] /= 4  # darker, so that a batch has other statistics than its first image
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    noise = noise.sub_(mean).div_(std).to(device)
    allow_more_memory(_BYTES * max(0, more))
    first = []
    for images in (noise, noise[:1]):
        try:
            scores = network(images)
        except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError) as error:
            raise ModelError(
                f"image size of {called} must be one that the network supports, {height} x {width} pixels with {len(images)} images fails "
                f"({first_line(error)})"
            ) from error
        if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(images), classes):
            shape = tuple(getattr(scores, "shape", ()))
            raise ModelError(f"scores of {called} for {len(images)} images must be of shape ({len(images)}, {classes}), got {shape}")
        if not scores.isfinite().all():
            where = tensor_not_finite(network) or first_not_finite(network, images) or "the scores themselves"
            raise ModelError(f"scores of {called} for noise must be finite for every class, got infinity or NaN, first in {where}")
        first.append(scores[0])
    in_batch, alone = first
    return in_batch, alone


def _check_independent(network: nn.Module, spec: ModelSpec, called: str) -> Tensor:
    """`check_scores`; also raises ModelError unless an image has the same scores each time, in a batch and alone. Returns both."""
    in_batch, alone = check_scores(network, spec, called)
    largest = max(float(in_batch.abs().max()), float(alone.abs().max()))
    share = float((in_batch - alone).abs().max()) / (largest or 1.0)
    if share <= _ALIKE:
        return torch.stack([in_batch, alone])
    if not torch.equal(check_scores(network, spec, called)[1], alone):
        raise ModelError(
            f"scores of {called} must be the same each time, got a difference of {share:.0%} of the largest for the same image; "
            "dropout must be off in evaluation mode"
        )
    kinds = nn.modules.batchnorm._BatchNorm
    found = [name for name, layer in network.named_modules() if isinstance(layer, kinds) and layer.running_mean is None]
    raise ModelError(
        f"scores of {called} for an image must not depend on the other images of its batch, got a difference of {share:.0%} of the "
        f"largest; BatchNorm layers must have running statistics{f', missing: {first_names(found)}' if found else ''}"
    )
