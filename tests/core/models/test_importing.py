"""Imports of weights files: the zoo or the user supplies the spec of the network; invalid files and values are refused with a message."""

import hashlib
import json
import math

import pytest
import timm
import torch
from pytorchcv.model_provider import get_model
from safetensors import safe_open
from torch import nn
from torchvision import models

from core.errors import CoreError, DataError, ModelError
from core.models import importing, registry
from core.models.full_precision import batch_norm_layers, find_model, load_model
from core.models.importing import import_checkpoint
from core.models.registry import GivenSpec
from core.models.zoos.lookup import known_spec

NAMES = {"pytorchcv": "pytorchcv:resnet20_cifar10", "torchvision": "torchvision:shufflenet_v2_x0_5", "timm": "timm:test_byobnet"}


def trained(network, size=32) -> nn.Module:
    """The network with statistics of one pass over noise, as if trained."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        network.train()(torch.randn(4, 3, size, size))
    return network.eval()


@pytest.fixture(scope="module")
def networks():
    """Zoo -> a network built by that zoo."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return {
            "pytorchcv": trained(get_model("resnet20_cifar10")),
            "torchvision": trained(models.shufflenet_v2_x0_5(num_classes=5), 64),
            "timm": trained(timm.create_model("test_byobnet", num_classes=7), 64),
        }


@pytest.fixture
def resnet(networks):
    """A state dict that a test may modify."""
    return {key: value.clone() for key, value in networks["pytorchcv"].state_dict().items()}


def write(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(("zoo", "size"), [("pytorchcv", 32), ("torchvision", 64), ("timm", 64)])
def test_imported_network_has_the_spec_of_its_zoo(tmp_path, networks, zoo, size):
    file = write({"state_dict": {f"module.{key}": value for key, value in networks[zoo].state_dict().items()}}, tmp_path / "my net.pth")
    path = import_checkpoint(file, NAMES[zoo], given=GivenSpec(image_size=size), out_folder=tmp_path / "kept")
    assert path.name == f"{hashlib.sha256(path.read_bytes()).hexdigest()}.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{path.stem}.json", path.name]
    classes = {"pytorchcv": 10, "torchvision": 5, "timm": 7}[zoo]
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == {
        "label": f"my net ({classes} classes), imported from my net.pth"
    }
    model, known = load_model(str(path), "cpu"), known_spec(NAMES[zoo])
    assert (model.spec.mean, model.spec.std, model.spec.architecture) == (known.mean, known.std, NAMES[zoo])
    assert model.spec.classes == (known.classes if zoo == "pytorchcv" else tuple(f"class {index}" for index in range(classes)))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.network(image), networks[zoo](image))


def test_given_values_override_those_of_the_zoo(tmp_path, networks):
    file = write(networks["torchvision"].state_dict(), tmp_path / "a.pt")
    path = import_checkpoint(
        file,
        NAMES["torchvision"],
        out_folder=tmp_path,
        given=GivenSpec(5, 96, mean=[0.1, 0.2, 0.3], std=(1, 1, 0.5), class_names=list("abcde")),
    )
    spec = find_model(str(path))[1]
    assert (spec.image_size, spec.mean, spec.std, spec.classes, spec.resize) == (96, (0.1, 0.2, 0.3), (1, 1, 0.5), tuple("abcde"), None)
    assert spec.trained_on == "unknown: imported from a.pt"


def test_importing_a_network_twice_gives_one_file(tmp_path, networks, resnet):
    first = import_checkpoint(write(resnet, tmp_path / "a.pt"), NAMES["pytorchcv"], out_folder=tmp_path / "kept")
    again = import_checkpoint(write({"model": resnet}, tmp_path / "a.pt"), NAMES["pytorchcv"], out_folder=tmp_path / "kept")
    assert first == again
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_half_precision_and_missing_counters_are_accepted(tmp_path, resnet):
    state = {key: value.half() for key, value in resnet.items() if not key.endswith("num_batches_tracked")}
    path = import_checkpoint(write(state, tmp_path / "a.pt"), "resnet20_cifar10", out_folder=tmp_path)
    loaded = load_model(str(path), "cpu").network.state_dict()
    assert loaded.keys() == resnet.keys()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items())


def test_importing_does_not_change_the_global_random_state(tmp_path, resnet):
    before = torch.get_rng_state()
    import_checkpoint(write(resnet, tmp_path / "a.pt"), "resnet20_cifar10", out_folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def refused(file, architecture=NAMES["pytorchcv"], error=ModelError, **given) -> str:
    """The error message; checks that no file is left in the folder."""
    kept = file.parent / "kept"
    with pytest.raises(error) as caught:
        import_checkpoint(file, architecture, out_folder=kept, given=GivenSpec(**given))
    assert not kept.exists() or list(kept.iterdir()) == []
    message = str(caught.value)
    assert message.isprintable()
    assert "must" in message or "unknown architecture" in message
    return message


def test_nonfinite_weights_are_refused(tmp_path, resnet):
    resnet["output.bias"][3] = math.nan
    assert "must be finite, got infinity or NaN in output.bias" in refused(write(resnet, tmp_path / "a.pt"))


def test_scores_that_are_finite_for_a_zero_image_only_are_refused(tmp_path, resnet):
    """An image of zeros gives finite scores; only noise makes these weights overflow."""
    resnet["features.init_block.conv.weight"].fill_(3e38)
    assert "must be finite for every class" in refused(write(resnet, tmp_path / "a.pt"))


def test_initial_statistics_are_refused(tmp_path):
    file = write(get_model("resnet20_cifar10").state_dict(), tmp_path / "a.pt")
    assert "must be those of a trained network, got the initial ones" in refused(file)


def test_network_without_batch_norm_is_refused(tmp_path):
    assert "must have at least one BatchNorm layer" in refused(
        write(models.squeezenet1_1().state_dict(), tmp_path / "a.pt"), "torchvision:squeezenet1_1"
    )


def test_names_that_do_not_fit_are_listed(tmp_path, resnet):
    message = refused(write({**resnet, "features.extra": torch.zeros(1)}, tmp_path / "a.pt"))
    assert "must be those of pytorchcv:resnet20_cifar10" in message
    assert "missing: none; unexpected: features.extra" in message
    del resnet["output.weight"]
    assert "missing: output.weight; unexpected: none" in refused(write(resnet, tmp_path / "a.pt"))


def test_shapes_that_do_not_fit_are_listed(tmp_path, resnet):
    file = write(resnet, tmp_path / "a.pt")
    message = refused(file, classes=12)
    assert "output.bias must be (12,), got (10,); output.weight must be (12, 64), got (10, 64)" in message


def test_integer_weights_are_refused(tmp_path, resnet):
    resnet["output.bias"] = resnet["output.bias"].int()
    assert "torch.int32 in output.bias" in refused(write(resnet, tmp_path / "a.pt"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": 0}, "must be an integer from 1 to 1024, or two of them, height and width, got 0"),
        ({"image_size": 5000}, "must be an integer from 1 to 1024, or two of them, height and width, got 5000"),
        ({"image_size": [32, 48, 3]}, "height and width, got [32, 48, 3]"),
        ({"image_size": [32, 0]}, "height and width, got [32, 0]"),
        ({"image_size": 1}, "1 x 1 pixels"),
        ({"mean": [0.5, 0.5]}, "must be 3 numbers, one for each channel, got 2"),
        ({"std": [0.5]}, "must be 3 numbers, one for each channel, got 1"),
        ({"mean": [math.nan] * 3}, "must be 1 to 4 finite numbers, one for each channel, got [nan, nan, nan]"),
        ({"std": [0.0, 1.0, 1.0]}, "of at least 0.000001, got [0.0, 1.0, 1.0]"),
        # mmpretrain, Caffe, and each with the other constants already divided
        (
            {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            "but 123.675 116.28 103.53 and 58.395 57.12 57.375 are of pixels from 0 to 255; "
            "divided by 255 they are mean 0.485 0.456 0.406 and std 0.229 0.224 0.225",
        ),
        ({"mean": [127.5] * 3, "std": [1.0] * 3}, "mean 0.5 0.5 0.5 and std 0.00392157 0.00392157 0.00392157"),
        ({"mean": [0.5] * 3, "std": [51.0] * 3}, "mean 0.5 0.5 0.5 and std 0.2 0.2 0.2"),
        ({"mean": [51.0] * 3, "std": [0.25] * 3}, "mean 0.2 0.2 0.2 and std 0.25 0.25 0.25"),
        ({"mean": [-127.5] * 3, "std": [127.5] * 3}, "mean -0.5 -0.5 -0.5 and std 0.5 0.5 0.5"),
        ({"classes": 0}, "must be 1 to 50,000, got 0"),
        ({"classes": -3}, "must be 1 to 50,000, got -3"),
        ({"classes": 10**9}, "must be 1 to 50,000, got 1,000,000,000"),
        ({"class_names": ["a", "b"], "classes": 10}, "must be 10, one for each class, got 2"),
        ({"class_names": ["x" * 201] * 10}, "classes of "),
    ],
)
def test_impossible_given_values_are_refused(tmp_path, resnet, given, words):
    assert words in refused(write(resnet, tmp_path / "a.pt"), **given)


@pytest.mark.parametrize("architecture", ["resnet2000", "torchvision:resnet2000", "timm:x", "nowhere:resnet18", "a.safetensors"])
def test_unknown_architecture_is_refused(tmp_path, resnet, architecture):
    assert "unknown architecture" in refused(write(resnet, tmp_path / "a.pt"), architecture, CoreError)


def test_file_that_is_too_large_is_not_read(tmp_path, resnet, monkeypatch):
    file = write(resnet, tmp_path / "a.pt")
    monkeypatch.setattr(registry, "NETWORK_BYTES", 1000)
    assert f"must be at most 1,000 bytes, got {file.stat().st_size:,}" in refused(file)


def test_missing_file_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pt")


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_malicious_pickle_is_refused_and_not_executed(tmp_path, resnet):
    message = refused(write({"state_dict": resnet, "epoch": Evil(tmp_path / "was executed")}, tmp_path / "a.pt"))
    assert "cannot be read as weights" in message
    assert not (tmp_path / "was executed").exists()


def test_number_of_classes_of_an_expanded_tensor_is_refused(tmp_path, resnet):
    """A view of one number with stride zero takes a few bytes in the file."""
    resnet["output.weight"] = torch.zeros(1, 1).expand(10**9, 64)
    assert "must be 1 to 50,000, got 1,000,000,000" in refused(write(resnet, tmp_path / "a.pt"))


def test_disk_error_is_reported(tmp_path, resnet, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "save_checkpoint", fails)
    assert "No space left" in refused(write(resnet, tmp_path / "a.pt"), error=DataError)


def test_efficientnet_lite0_with_its_real_weights(efficientnet_lite0):
    """ImageNet weights from a package: statistics of photographs, and depthwise convolutions."""
    model = efficientnet_lite0(64)
    assert model.spec.architecture == "timm:efficientnet_lite0"
    assert (model.spec.image_size, model.spec.mean, model.spec.std) == (64, (0.5,) * 3, (0.5,) * 3)
    assert len(model.spec.classes) == 1000
    assert len(batch_norm_layers(model.network)) == 49
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, :32] = 1
    with torch.no_grad():
        scores = model.network(image).softmax(1)
    # a trained classifier does not give every class the same probability
    assert scores.max() > 5 / 1000


def other_input(network: nn.Module, name: str, channels: int) -> nn.Module:
    """The network with a first convolution for images of so many channels, as its user would replace it."""
    first = network.get_submodule(name)
    parent, _, attribute = name.rpartition(".")
    made = nn.Conv2d(channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=first.bias is not None)
    setattr(network.get_submodule(parent), attribute, made)
    return network


@pytest.mark.parametrize(
    ("architecture", "make", "channels"),
    [
        ("torchvision:resnet18", lambda: other_input(models.resnet18(num_classes=3), "conv1", 1), 1),
        ("torchvision:mobilenet_v2", lambda: other_input(models.mobilenet_v2(num_classes=3), "features.0.0", 4), 4),
        ("timm:test_byobnet", lambda: timm.create_model("test_byobnet", in_chans=2, num_classes=3), 2),
        ("pytorchcv:resnet20_cifar10", lambda: get_model("resnet20_cifar10", in_channels=1, num_classes=10), 1),
    ],
)
def test_the_first_convolution_determines_the_channels(tmp_path, architecture, make, channels):
    size = 32 if architecture.startswith("pytorchcv") else (32, 48)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = make()
        network.train()(torch.randn(4, channels, 32, 32 if size == 32 else 48))
    file = write(network.eval().state_dict(), tmp_path / "a.pth")
    path = import_checkpoint(file, architecture, given=GivenSpec(image_size=size), out_folder=tmp_path / "kept")
    model, known = load_model(str(path), "cpu"), known_spec(architecture)
    assert (model.spec.channels, model.spec.image_size) == (channels, size)
    # the images of the zoo, normalized alike in each channel
    assert model.spec.mean == (round(sum(known.mean) / 3, 4),) * channels
    assert model.spec.std == (round(sum(known.std) / 3, 4),) * channels
    images = torch.randn(2, *model.spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.network(images), network(images))


def test_five_channels_are_refused(tmp_path):
    network = trained(timm.create_model("test_byobnet", num_classes=7), 64)
    state = other_input(network, "stem.conv", 5).state_dict()
    assert "stem.conv.weight must be (" in refused(write(state, tmp_path / "a.pt"), "timm:test_byobnet")


def test_an_old_file_of_square_images_keeps_its_name_and_content(tmp_path, networks):
    file = write(networks["pytorchcv"].state_dict(), tmp_path / "a.pt")
    kept = [
        import_checkpoint(file, NAMES["pytorchcv"], given=GivenSpec(image_size=size), out_folder=tmp_path / "kept")
        for size in (None, 32, [32], (32, 32))
    ]
    assert len(set(kept)) == 1
    spec = json.loads(header_of(kept[0])["spec"])
    assert (spec["image_size"], len(spec["mean"])) == (32, 3)


def header_of(path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()
