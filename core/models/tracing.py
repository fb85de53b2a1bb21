"""How torch.fx reads a network here, and which of its layers compute something of their own."""

from torch import fx, nn

_CONTAINERS = ("torch.nn.modules.module", "torch.nn.modules.container")


class LayerTracer(fx.Tracer):
    """Keeps layers of classes derived from torch's own whole, where torch.fx keeps only torch's own.

    What they add, such as timm's padding that depends on the size of the image, often cannot be traced, and whoever looks for
    convolutions and BatchNorm layers in the graph would not find them.
    """

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return super().is_leaf_module(module, qualified_name) or any(
            base.__module__.startswith("torch.nn.modules.") and base.__module__ not in _CONTAINERS for base in type(module).__mro__
        )


def computes_as(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a layer derived from `base`, one of torch's, computes what `base` does."""
    own = type(layer)
    return isinstance(layer, base) and all(
        getattr(own, name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward", "__call__")
    )


def has_activation_inside(layer: nn.Module) -> bool:
    """Whether it is timm's BatchNorm2d with an activation inside, `layer.act`."""
    if not isinstance(layer, nn.BatchNorm2d) or computes_as(layer, nn.BatchNorm2d):
        return False
    from timm.layers import BatchNormAct2d  # takes seconds, which whoever built such a layer has spent already

    return computes_as(layer, BatchNormAct2d)
