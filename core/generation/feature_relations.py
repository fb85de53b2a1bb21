"""SCRM of ZAQ (Liu et al., CVPR 2021): how far the relations within the feature maps of two networks differ."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.full_precision import batch_norm_layers
from core.models.hooks import hooked

_MAPS = 3  # the last ones
_MOST = 32  # on a side of a map; larger ones are averaged, because the attention has a number for each pair of positions
_SHARE = 0.1  # of the attended map, added to the map itself


def feature_relations(images: Tensor, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
    """The mean absolute difference of the scores, and SCRM summed over feature maps; differentiable in images and student.

    A map is the last output of a BatchNorm layer at each resolution, of which the last three count. The authors take the outputs of the
    three residual groups of their own ResNets, which lie behind the addition.
    """
    scores, maps = [], []
    for network in (teacher, student):
        outputs: dict[tuple[int, int], Tensor] = {}

        def keep(_name: str, _inputs: object, output: Tensor, outputs: dict = outputs) -> None:
            outputs[tuple(output.shape[2:])] = output

        with hooked(batch_norm_layers(network), keep):
            scores.append(network(images.contiguous(memory_format=torch.channels_last)))
        maps.append(list(outputs.values())[-_MAPS:])
    relations = torch.stack([relation_distance(theirs, own) for theirs, own in zip(*maps)]).sum()
    return F.l1_loss(scores[1], scores[0]), relations


def relation_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """SCRM of one map `(N, C, H, W)`: L1 of the maps after spatial attention plus L1 after channel attention."""
    first, second = (_flat(one) for one in (teacher, student))
    return F.l1_loss(spatially_attended(second), spatially_attended(first)) + F.l1_loss(channel_attended(second), channel_attended(first))


def _flat(features: Tensor) -> Tensor:
    """`(N, C, H W)`, with unit length over the channels."""
    if max(features.shape[2:]) > _MOST:
        features = F.adaptive_avg_pool2d(features, (min(_MOST, features.shape[2]), min(_MOST, features.shape[3])))
    return F.normalize(features.flatten(2), dim=1)


def spatially_attended(features: Tensor) -> Tensor:
    """0.1 F A^T + F with A = softmax(F^T F) over its last dimension, for F `(N, C, P)`."""
    attention = (features.transpose(1, 2) @ features).softmax(dim=-1)
    return _SHARE * features @ attention.transpose(1, 2) + features


def channel_attended(features: Tensor) -> Tensor:
    """0.1 A F + F with A = softmax(rowmax(F F^T) - F F^T) over its last dimension, for F `(N, C, P)`."""
    energy = features @ features.transpose(1, 2)
    attention = (energy.amax(dim=-1, keepdim=True) - energy).softmax(dim=-1)
    return _SHARE * attention @ features + features
