"""Networks of others by "ZOO:NAME": their architectures, what is known of them, and their weights, which are downloaded on first use.

Each zoo's own loader finds and fetches the file. It is opened without unpickling (core.models.weights), which the loaders of pytorchcv
and torchvision would do. Nothing here imports torch before it is needed, so that what works offline can be listed quickly.
"""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from core.errors import CoreError, ModelError, UnknownNameError, first_line
from core.models.registry import CIFAR10_CLASSES, CIFAR100_CLASSES, INTERPOLATIONS, MODELS, ZOOS, ModelSpec, split_name

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LISTED = 10  # names in a message
_CLASS_NAME = 200  # characters; some of ImageNet-21k have more


class Zoo(Protocol):
    """What is asked of a zoo. `name` is one of its own, without the zoo; one that it does not have raises UnknownNameError."""

    def build(self, name: str, classes: int | None) -> nn.Module:
        """Untrained; None: for as many classes as its weights. Raises ModelError when it cannot be had for so many."""

    def spec(self, name: str) -> ModelSpec:
        """What the source knows of the trained network."""

    def file(self, name: str) -> Path | None:
        """Where its weights lie, or would lie when they were downloaded; None where there are none."""

    def load(self, name: str) -> nn.Module:
        """With its weights, which are downloaded when they are missing. Raises whatever its loader does when that fails."""

    def downloaded(self) -> list[str]:
        """Names whose weights are on this machine. Imports no torch."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are built in the block take no memory, however large they are: their tensors have shapes and no values.

    Not the meta device as it is: some architectures (RegNet, those with stochastic depth) calculate with tensors how wide they are.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    made = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}

    class OnMeta(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **{**(kwargs or {}), **({"device": "meta"} if function in made else {})})

    with torch.random.fork_rng(devices=[]), OnMeta():
        yield


def build_architecture(architecture: str, classes: int | None) -> nn.Module:
    """An untrained network with weights from torch's global random numbers.

    architecture: "ZOO:NAME"; without a zoo it is pytorchcv's. classes: None for as many as the zoo's own weights have.
    Raises UnknownNameError for a name that the zoo does not have, ModelError when the network cannot be had for so many classes.
    """
    zoo, name = _split(architecture)
    return _ZOOS[zoo].build(name, classes)


def known_spec(architecture: str) -> ModelSpec:
    """Normalisation, image size, class names and how images are resized, as the zoo knows them of its own weights.

    Raises UnknownNameError for a name that the zoo does not have, ModelError for one that is no classifier of square colour images.
    """
    zoo, name = _split(architecture)
    return _ZOOS[zoo].spec(name)


def find_pretrained(name: str) -> tuple[Path, ModelSpec]:
    """Where the weights of "ZOO:NAME" lie, or would lie when they were downloaded, and the spec.

    Raises ModelError where there are none, and what `known_spec` raises.
    """
    spec = known_spec(name)
    zoo, inner = _split(name)
    path = _ZOOS[zoo].file(inner)
    if path is None:
        raise ModelError(
            f"{name} has no trained weights in {zoo}: allowed is a network that has, or a checkpoint of your own for this architecture"
        )
    return path, spec


def load_pretrained(name: str) -> tuple[nn.Module, ModelSpec]:
    """The network "ZOO:NAME" with the weights of its zoo, downloaded on first use, with progress on stderr.

    Raises ModelError when they cannot be had, which says where the file would be and what works without a network.
    """
    import torch

    path, spec = find_pretrained(name)
    zoo, inner = _split(name)
    with _said_in_a_sentence(name, path), redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
        return _ZOOS[zoo].load(inner), spec


@contextmanager
def _said_in_a_sentence(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except CoreError:
        raise
    except Exception as error:  # each loader raises what its HTTP client and its reader do
        from core.models.weights import reason_of

        names = [other for other in offline_names() if other != name]
        listed = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
        raise ModelError(
            f"{name} could not be loaded ({reason_of(error)}): allowed is its file at {path}, "
            f"or one that works without a network ({listed})"
        ) from error


def offline_names() -> list[str]:
    """The networks that work without a network: embedded ones, and those that were downloaded. Imports no torch."""
    return [*MODELS, *(f"{zoo}:{name}" for zoo in ZOOS for name in _ZOOS[zoo].downloaded())]


def _split(architecture: str) -> tuple[str, str]:
    return split_name(architecture) or ("pytorchcv", architecture)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _checkpoints_folder() -> Path:
    """Where torch.hub keeps what it downloads."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def _package(name: str) -> Path:
    """Folder of a package that is not imported for it."""
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _keep_own(state: dict[str, Any], network: nn.Module) -> None:
    """Removes what the network does not have, such as heads that only training uses; in place, as a state dict carries its versions."""
    own = network.state_dict().keys()
    for key in [key for key in state if key not in own]:
        del state[key]


class _Pytorchcv:
    """pytorchcv keeps its files in ~/.torch/models, and knows size and data set of each network."""

    # as its author trained and evaluates them (imgclsmob); CIFAR-100 and SVHN are normalised as CIFAR-10 there
    cifar_mean, cifar_std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    small = MappingProxyType({"_cifar10": CIFAR10_CLASSES, "_cifar100": CIFAR100_CLASSES, "_svhn": tuple("0123456789")})
    titles = MappingProxyType({"_cifar10": "CIFAR-10", "_cifar100": "CIFAR-100", "_svhn": "SVHN"})

    def folder(self) -> Path:
        return Path("~/.torch/models").expanduser()

    def build(self, name: str, classes: int | None) -> nn.Module:
        from pytorchcv.model_provider import get_model

        wanted = {} if classes is None else {"num_classes": classes}
        try:
            return get_model(name, pretrained=False, **wanted)
        except AssertionError:
            pass  # those for CIFAR insist on its 10 or 100 classes, for no other reason than their name
        except (ValueError, TypeError, ImportError) as error:  # others are no classifiers, some want packages of their own
            raise self._unknown(name) from error
        network = get_model(name, pretrained=False)
        assert classes is not None
        _replace_output(network, name, classes)
        return network

    def _unknown(self, name: str) -> UnknownNameError:
        return UnknownNameError("architecture", name, ["any classifier of pytorchcv, such as resnet20_cifar10"])

    def rows(self) -> dict[str, dict[str, str]]:
        with (_package("pytorchcv") / "models" / "common" / "model_metainfos.csv").open(newline="", encoding="utf-8") as file:
            return {row["model_name"]: row for row in csv.DictReader(file)}

    def spec(self, name: str) -> ModelSpec:
        row = self.rows().get(name, {})
        data = row.get("test_dataset")
        if data not in ("in1k", "cf", "cub"):
            raise self._unknown(name)
        with shapes_only():
            network = self.build(name, None)
        count, size = getattr(network, "num_classes", None), getattr(network, "in_size", (0,))[0]
        if not isinstance(count, int):
            raise self._unknown(name)
        ending = next((ending for ending in self.small if name.endswith(ending)), None)
        if ending is not None:
            return ModelSpec(
                f"pytorchcv:{name}", f"pytorchcv:{name}", self.small[ending], size, self.cifar_mean, self.cifar_std,
                f"{self.titles[ending]}, by pytorchcv",
            )  # fmt: skip
        factor = 0.875 if row["img_scale"] == "NA" else float(row["img_scale"])
        size = size if row["img_size"] == "NA" else int(row["img_size"])
        return ModelSpec(
            f"pytorchcv:{name}", f"pytorchcv:{name}", _imagenet_classes(count) if data == "in1k" else _numbered(count), size,
            IMAGENET_MEAN, IMAGENET_STD, f"{'ImageNet-1k' if data == 'in1k' else 'CUB-200-2011'}, by pytorchcv",
            resize=math.ceil(size / factor),
        )  # fmt: skip

    def file(self, name: str) -> Path | None:
        row = self.rows()[name]
        if row["checksum"] == "NA":
            return None
        return self.folder() / f"{name}-{row['error_value']}-{row['checksum'][:8]}.pth"

    def load(self, name: str) -> nn.Module:
        from pytorchcv.models.common.model_store import get_model_file

        from core.models.weights import read_weights

        state = read_weights(Path(get_model_file(name, str(self.folder()))))
        network = self.build(name, None)
        _keep_own(state, network)
        network.load_state_dict(state)
        return network

    def downloaded(self) -> list[str]:
        present = {path.name for path in self.folder().glob("*.pth")}
        if not present:
            return []
        return [name for name in self.rows() if (path := self.file(name)) is not None and path.name in present]


class _Torchvision:
    """torchvision's classifiers with their default weights, which torch.hub downloads."""

    # heads that only training uses, and whose BatchNorm layers no image reaches afterwards
    with_auxiliary_heads = ("googlenet", "inception_v3")

    def _check(self, name: str) -> None:
        from torchvision import models

        if name not in models.list_models(module=models):
            raise UnknownNameError("architecture", name, ["any classifier of torchvision, such as resnet18"])

    def _weights(self, name: str) -> Any:
        from torchvision import models

        self._check(name)
        return models.get_model_weights(name).DEFAULT

    def build(self, name: str, classes: int | None) -> nn.Module:
        from torchvision import models

        self._check(name)
        more = {"aux_logits": False, "init_weights": True} if name in self.with_auxiliary_heads else {}
        count = len(self._weights(name).meta["categories"]) if classes is None else classes
        return models.get_model_builder(name)(weights=None, num_classes=count, **more)

    def spec(self, name: str) -> ModelSpec:
        weights = self._weights(name)
        transforms = weights.transforms()
        # with their weights these two take normalised images and normalise them again, to mean 0.5; here it is done once
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
            interpolation=_interpolation(transforms.interpolation.value),
        )

    def file(self, name: str) -> Path | None:
        return _checkpoints_folder() / self._weights(name).url.rpartition("/")[2]

    def load(self, name: str) -> nn.Module:
        state = self._weights(name).get_state_dict(
            model_dir=str(_checkpoints_folder()), map_location="cpu", progress=True, check_hash=True, weights_only=True
        )
        if name.startswith("densenet"):  # from a time when names of modules could have a point in them
            for key in [key for key in state if re.search(r"denselayer\d+\.(norm|conv)\.[12]\.", key)]:
                state[re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key)] = state.pop(key)
        network = self.build(name, None)
        _keep_own(state, network)
        network.load_state_dict(state)
        return network

    def downloaded(self) -> list[str]:
        present = {path.name for path in _checkpoints_folder().glob("*.pth")}
        return sorted(name for name, file in _torchvision_files().items() if file in present) if present else []


def _torchvision_files() -> dict[str, str]:
    """Name -> file of the default weights of torchvision's classifiers, read from its source, as importing it would import torch."""
    files = {}
    for path in (_package("torchvision") / "models").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        default = {}
        for enum, body in re.findall(r"^class (\w+)\(WeightsEnum\):\n((?:[ \t].*\n|\n)*)", source, re.MULTILINE):
            chosen = re.search(r"DEFAULT = (\w+)", body)
            url = chosen and re.search(rf'\b{chosen[1]} = Weights\(\s*(?:#.*\s*)*url="[^"]*/([^"/]+)"', body)
            if url:
                default[enum] = url[1]
        for name, enum in re.findall(r"^def (\w+)\(\s*\*, weights: Optional\[(\w+)\]", source, re.MULTILINE):
            if enum in default:
                files[name] = default[enum]
    return files


class _Timm:
    """timm's weights, which the Hugging Face hub keeps; a name may have a tag, as in resnet18.a1_in1k."""

    def _config(self, name: str) -> Any:
        import timm

        try:
            config = timm.models.get_pretrained_cfg(name) if re.fullmatch(r"[\w.-]+", name) and timm.is_model(name) else None
        except RuntimeError as error:  # a tag that it does not have
            raise self._unknown(name) from error
        if config is None:
            raise self._unknown(name)
        return config

    def _unknown(self, name: str) -> UnknownNameError:
        return UnknownNameError("architecture", name, ["any classifier of timm, such as resnet18 or resnet18.a1_in1k"])

    def build(self, name: str, classes: int | None) -> nn.Module:
        import timm

        self._config(name)
        try:
            return timm.create_model(name, pretrained=False, num_classes=classes)
        except (RuntimeError, ValueError, TypeError, ImportError, AssertionError, AttributeError) as error:
            raise ModelError(
                f"timm:{name} cannot be built for {classes or 'its own'} classes ({first_line(error)}): "
                "allowed is another architecture of timm"
            ) from error

    def spec(self, name: str) -> ModelSpec:
        config = self._config(name)
        channels, height, width = config.input_size
        if channels != 3 or height != width or config.num_classes < 1:
            raise ModelError(
                f"timm:{name} takes {channels} channels of {height} x {width} pixels and gives {config.num_classes} scores: "
                "allowed are classifiers of square colour images"
            )
        return ModelSpec(
            name=f"timm:{name}",
            architecture=f"timm:{name}",
            classes=self._classes(config),
            image_size=height,
            mean=tuple(config.mean),
            std=tuple(config.std),
            trained_on=f"not known: timm's weights {'.'.join(filter(None, (name.partition('.')[0], config.tag)))}",
            resize=math.floor(height / config.crop_pct),
            interpolation=_interpolation(config.interpolation),
        )

    def _classes(self, config: Any) -> tuple[str, ...]:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        if config.label_names and len(config.label_names) == config.num_classes:
            return tuple(str(name)[:_CLASS_NAME] for name in config.label_names)
        subset = infer_imagenet_subset({"num_classes": config.num_classes})
        if subset is None:
            return _numbered(config.num_classes)
        return tuple(description[:_CLASS_NAME] for description in ImageNetInfo(subset).label_descriptions())

    def file(self, name: str) -> Path | None:
        config = self._config(name)
        if config.hf_hub_id:
            repository = config.hf_hub_id.partition("@")[0]
            return _hub_folder() / f"models--{repository.replace('/', '--')}" / "snapshots"
        return _checkpoints_folder() / config.url.rpartition("/")[2] if config.url else None

    def load(self, name: str) -> nn.Module:
        import timm
        from timm.models._hub import download_cached_file

        config = self._config(name)
        if config.hf_hub_id:
            return timm.create_model(name, pretrained=True)
        # timm would fall back to unpickling for some files that it gets from an address, but not for one that it is given
        path = download_cached_file(config.url, check_hash=True, progress=True, cache_dir=str(_checkpoints_folder()))
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": config.custom_load})

    def downloaded(self) -> list[str]:
        prefix = "models--timm--"
        folders = sorted(_hub_folder().glob(f"{prefix}*"))
        return [folder.name[len(prefix) :] for folder in folders if any(folder.glob("snapshots/*/*.safetensors"))]


def _hub_folder() -> Path:
    """Where the Hugging Face hub keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _interpolation(name: str) -> str:
    return name if name in INTERPOLATIONS else "bicubic"  # lanczos, or one at random: bicubic is nearest to both


def _imagenet_classes(count: int) -> tuple[str, ...]:
    """Those of torchvision, in the order of ImageNet's folders, which is everybody's."""
    from torchvision.models import ResNet18_Weights

    names = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return names if len(names) == count else _numbered(count)


def _replace_output(network: nn.Module, architecture: str, classes: int) -> None:
    """Puts an untrained last layer with `classes` outputs in the place of the network's own. Raises ModelError where there is none."""
    from torch import nn

    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    present = getattr(network, "num_classes", None)
    parent, _, attribute = name.rpartition(".")
    if isinstance(last, nn.Linear) and last.out_features == present:
        output: nn.Module = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    elif isinstance(last, nn.Conv2d) and last.out_channels == present and last.kernel_size == (1, 1) and last.groups == 1:
        output = nn.Conv2d(last.in_channels, classes, 1, bias=last.bias is not None)
    else:
        raise ModelError(f"{architecture!r} cannot be built for {classes} classes: allowed are {present}")
    setattr(network.get_submodule(parent), attribute, output)


_ZOOS: Mapping[str, Zoo] = MappingProxyType({"pytorchcv": _Pytorchcv(), "torchvision": _Torchvision(), "timm": _Timm()})
