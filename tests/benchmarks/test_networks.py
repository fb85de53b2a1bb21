"""The networks of benchmarks/networks.py classify, and survive the ways there and back."""

import pytest
import torch

from benchmarks.networks import EMBEDDED, NETWORKS, figures, given, load
from core.data.labeled import embedded_images
from core.models.registry import CIFAR10_CLASSES
from core.recipes.pretrain import CIFAR10_MEAN, CIFAR10_STD


@pytest.mark.parametrize(("name", "accuracy"), [("vgg", 88.17), ("mobilenetv2", 79.81)])
def test_each_network_has_its_accuracy(name, accuracy):
    pixels, labels = embedded_images()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    with torch.no_grad():
        predicted = load(name)((pixels[:250].float() / 255 - mean) / std).argmax(dim=1)
    share = 100 * float((predicted == torch.tensor(labels[:250])).float().mean())
    assert abs(share - accuracy) < 7  # three standard errors of 250 images
    assert name in NETWORKS


def test_a_network_is_given_as_a_program_with_its_classes(tmp_path):
    flags = given("vgg", tmp_path)
    images = torch.randn(3, 3, 32, 32)
    program = torch.export.load(flags[flags.index("--weights") + 1]).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images), load("vgg")(images))
    assert (tmp_path / "classes.txt").read_text(encoding="utf-8").split() == list(CIFAR10_CLASSES)
    assert flags[flags.index("--mean") + 1 :][:3] == [str(value) for value in CIFAR10_MEAN]
    assert given(EMBEDDED, tmp_path) == ["--model", EMBEDDED]


def test_the_drop_is_that_of_the_kept_network():
    accuracy = {"3": {"calibrated": 80.0, "trained": 75.0, "kept": "calibrated", "quantized": 80.0, "standard_error": 0.9}}
    generation = {"bns_loss_first": 200.0, "bns_loss_last": 25.0}
    printed = {"full_precision": 92.5, "seconds": 7.0, "methods": {"adam": {"generation": generation, "accuracy": accuracy}}}
    method = figures(printed)["methods"]["adam"]
    assert method["bns_loss_ratio"] == 0.125
    assert method["accuracy"]["3"]["drop"] == 12.5
    assert method["accuracy"]["3"]["kept"] == "calibrated"
