"""timm's networks, most of whose weights are on the Hugging Face Hub. A name may have a tag, as in resnet18.a1_in1k."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.channels import MODES, channels_title
from core.errors import ModelError, UnknownNameError, first_line
from core.models.registry import ModelSpec
from core.models.zoos.hub import hub_asked_once
from core.models.zoos.zoo import checkpoints_folder, known_interpolation, numbered_classes

if TYPE_CHECKING:
    from torch import nn

_CLASS_NAME = 200  # characters; some class descriptions of ImageNet-21k are longer


class Timm:
    """Adapter of timm."""

    def _config(self, name: str) -> Any:
        import timm

        try:
            config = timm.models.get_pretrained_cfg(name) if re.fullmatch(r"[\w.-]+", name) and timm.is_model(name) else None
        except RuntimeError as error:  # unknown tag
            raise self._unknown(name) from error
        if config is None:
            raise self._unknown(name)
        return config

    def _unknown(self, name: str) -> UnknownNameError:
        return UnknownNameError("architecture", name, ["any classifier of timm, such as resnet18 or resnet18.a1_in1k"])

    def names(self) -> list[str]:
        import timm

        return timm.list_models()

    def build(self, name: str, classes: int | None, channels: int = 3) -> nn.Module:
        import timm

        self._config(name)
        try:
            images: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
            return timm.create_model(name, pretrained=False, num_classes=classes, **images)
        except (RuntimeError, ValueError, TypeError, ImportError, AssertionError, AttributeError) as error:
            raise ModelError(
                f"timm:{name} cannot be built for {classes or 'its own number of'} classes and {channels_title(channels)} images "
                f"({first_line(error)}); "
                "use another architecture of timm"
            ) from error

    def spec(self, name: str) -> ModelSpec:
        config = self._config(name)
        channels, height, width = config.input_size
        if channels not in MODES or config.num_classes < 1:
            raise ModelError(
                f"timm:{name} must be a classifier of images with {min(MODES)} to {max(MODES)} channels, got {channels} channels "
                f"and {config.num_classes} classes"
            )
        return ModelSpec(
            name=f"timm:{name}",
            architecture=f"timm:{name}",
            classes=self._classes(config),
            image_size=(height, width),
            mean=tuple(config.mean),
            std=tuple(config.std),
            trained_on=f"unknown: timm's weights {'.'.join(filter(None, (name.partition('.')[0], config.tag)))}",
            resize=math.floor(min(height, width) / config.crop_pct),
            interpolation=known_interpolation(config.interpolation),
        )

    def _classes(self, config: Any) -> tuple[str, ...]:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        if config.label_names and len(config.label_names) == config.num_classes:
            return tuple(str(name)[:_CLASS_NAME] for name in config.label_names)
        subset = infer_imagenet_subset({"num_classes": config.num_classes})
        if subset is None:
            return numbered_classes(config.num_classes)
        return tuple(description[:_CLASS_NAME] for description in ImageNetInfo(subset).label_descriptions())

    def file(self, name: str) -> Path | None:
        config = self._config(name)
        if config.hf_hub_id:
            repository = config.hf_hub_id.partition("@")[0]
            return _hub_folder() / f"models--{repository.replace('/', '--')}" / "snapshots"
        return checkpoints_folder() / config.url.rpartition("/")[2] if config.url else None

    def load(self, name: str) -> nn.Module:
        import timm
        from timm.models._hub import download_cached_file

        config = self._config(name)
        if config.hf_hub_id:
            with hub_asked_once():
                return timm.create_model(name, pretrained=True)
        # For some files that timm downloads from a URL it falls back to unpickling; for a local file it does not.
        path = download_cached_file(config.url, check_hash=True, progress=True, cache_dir=str(checkpoints_folder()))
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": config.custom_load})

    def downloaded(self) -> list[str]:
        prefix = "models--timm--"
        folders = sorted(_hub_folder().glob(f"{prefix}*"))
        return [folder.name[len(prefix) :] for folder in folders if any(folder.glob("snapshots/*/*.safetensors"))]


def _hub_folder() -> Path:
    """The download folder of the Hugging Face Hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
