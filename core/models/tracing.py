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
