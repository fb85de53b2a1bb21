"""The classifier of a network: its last linear layer or convolution."""

from torch import nn

from core.errors import ModelError


def classifier_of(network: nn.Module) -> nn.Linear | nn.Conv2d:
    """The last linear layer or convolution in the order of registration. Raises ModelError for a network without any."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise ModelError(f"{type(network).__name__} must have a linear layer or a convolution, got none")
    return layers[-1]


def classifier_width(network: nn.Module) -> int:
    """Length of the feature vector that enters the classifier."""
    layer = classifier_of(network)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
