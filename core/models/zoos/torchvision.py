"""torchvision's classifiers with their default weights, which torch.hub downloads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UnknownNameError
from core.models.registry import ModelSpec
from core.models.zoos.zoo import checkpoints_folder, known_interpolation, remove_unknown_keys

if TYPE_CHECKING:
    from torch import nn


class Torchvision:
    """Adapter of torchvision."""

    # They have heads used only in training, whose BatchNorm layers see no image in evaluation mode.
    with_auxiliary_heads = ("googlenet", "inception_v3")

    def names(self) -> list[str]:
        from torchvision import models

        return models.list_models(module=models)

    def _check(self, name: str) -> None:
        if name not in self.names():
            raise UnknownNameError("architecture", name, ["any classifier of torchvision, such as resnet18"])

    def _weights(self, name: str) -> Any:
        from torchvision import models

        self._check(name)
        return models.get_model_weights(name).DEFAULT

    def build(self, name: str, classes: int | None, channels: int = 3) -> nn.Module:
        from torchvision import models

        self._check(name)
        options = {"aux_logits": False, "init_weights": True} if name in self.with_auxiliary_heads else {}
        count = len(self._weights(name).meta["categories"]) if classes is None else classes
        network = models.get_model_builder(name)(weights=None, num_classes=count, **options)
        if channels != 3:
            _set_channels(network, channels)
        return network

    def spec(self, name: str) -> ModelSpec:
        weights = self._weights(name)
        transforms = weights.transforms()
        # With their weights, these two networks normalize their normalized input again, to mean 0.5. Here this is done once, outside.
        half = (0.5, 0.5, 0.5) if name in self.with_auxiliary_heads else None
        return ModelSpec(
            name=f"torchvision:{name}",
            architecture=f"torchvision:{name}",
            classes=tuple(weights.meta["categories"]),
            image_size=transforms.crop_size[0],
            mean=half or tuple(transforms.mean),
            std=half or tuple(transforms.std),
            trained_on=f"ImageNet-1k, by torchvision ({weights.name})",
            resize=transforms.resize_size[0],
            interpolation=known_interpolation(transforms.interpolation.value),
        )

    def file(self, name: str) -> Path | None:
        return checkpoints_folder() / self._weights(name).url.rpartition("/")[2]

    def load(self, name: str) -> nn.Module:
        state = self._weights(name).get_state_dict(
            model_dir=str(checkpoints_folder()), map_location="cpu", progress=True, check_hash=True, weights_only=True
        )
        if name.startswith("densenet"):  # the files are older than the rule that module names contain no dots
            for key in [key for key in state if re.search(r"denselayer\d+\.(norm|conv)\.[12]\.", key)]:
                state[re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key)] = state.pop(key)
        network = self.build(name, None)
        remove_unknown_keys(state, network)
        network.load_state_dict(state)
        return network

    def downloaded(self) -> list[str]:
        present = {path.name for path in checkpoints_folder().glob("*.pth")}
        if not present:
            return []
        return [name for name in self.names() if self._weights_file(name) in present]  # imports torch, which takes seconds

    def _weights_file(self, name: str) -> str:
        from torchvision import models

        return models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]


def _set_channels(network: nn.Module, channels: int) -> None:
    """Makes the first convolution one for images of so many channels, untrained: torchvision has no option for it."""
    from torch import nn

    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
    first.reset_parameters()
