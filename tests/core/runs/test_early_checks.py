"""What is refused before a run is queued: in one sentence, within a second, and without torch."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from core.errors import CoreError
from core.models.identity import weights_hash
from core.models.registry import MODELS
from core.processes import module_environment
from core.runs.early_checks import check_architecture, check_classes, check_data, check_encoder, check_images, check_model, check_origin


def message(check, *values):
    with pytest.raises(CoreError) as error:
        check(*values)
    return str(error.value)


@pytest.fixture
def network(tmp_path):
    """The path of a network of ten unnamed classes."""
    weights, spec = MODELS["resnet20_cifar10"]
    path = tmp_path / "mine.safetensors"
    spec = replace(spec, name="mine", classes=tuple(map(str, range(10))))
    save_file(load_file(weights), path, metadata={"spec": json.dumps(asdict(spec))})
    return str(path)


def folders(path, count):
    """A data set of that many classes."""
    for index in range(count):
        (path / f"kind {index}").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path / f"kind {index}" / "0.png")
    return str(path)


def test_names_and_places_that_exist_pass(network, tmp_path):
    for model in ("resnet20_cifar10", "timm:resnet18", network):
        check_model(model)
    for data in ("auto", "none", "embedded", "cifar10", "cifar100", str(tmp_path)):
        check_data(data)
    (tmp_path / "weights.pt").touch()
    for encoder in ("", "embedded", "ViT-B-32:laion2b_s34b_b79k", f"ViT-B-32:{tmp_path / 'weights.pt'}"):
        check_encoder(encoder)
    (tmp_path / "images.npz").touch()
    for images in (tmp_path, tmp_path / "images.npz"):
        check_images(str(images))


@pytest.mark.parametrize("model", ["", "resnet", "timm:", "keras:resnet", "network.onnx"])
def test_unknown_models_are_refused(model):
    assert message(check_model, model).startswith(f"unknown model {model!r}: must be one of resnet20_cifar10, pytorchcv:NAME")


@pytest.mark.parametrize("model", ["timm:resnet5O", "torchvision:resnet19", "pytorchcv:resnet20_cifar11"])
def test_names_that_a_zoo_does_not_have_are_refused(model):
    zoo, _, name = model.partition(":")
    assert message(check_model, model).startswith(f"unknown model {model!r}: must be one of {zoo}:resnet")
    assert message(check_architecture, model) == message(check_model, model)
    if zoo == "pytorchcv":
        assert message(check_architecture, name) == message(check_architecture, model)
    check_architecture("resnet20_cifar10")


@pytest.mark.parametrize("ending", [".safetensors", ".pt2", ".PT2"])
def test_files_of_networks_that_do_not_exist_are_refused(tmp_path, ending):
    assert message(check_model, str(tmp_path / f"gone{ending}")).endswith("it does not exist")


@pytest.mark.parametrize("data", ["", "imagenet", "gone/folder", "gone.zip", "a\0b", "x" * 5000])
def test_evaluation_images_that_do_not_exist_are_refused(data):
    assert message(check_data, data).startswith("data must be auto, none, embedded, cifar10, cifar100, or the path of a folder")


@pytest.mark.parametrize("encoder", ["clip", "ViT-B-32", "ViT-B-32:", "ViT-Z:openai", ":openai"])
def test_unknown_encoders_are_refused(encoder):
    assert message(check_encoder, encoder).startswith(f"unknown encoder {encoder!r}: must be one of embedded")


def test_files_of_encoders_and_images_that_do_not_exist_are_refused(tmp_path):
    assert message(check_encoder, f"ViT-B-32:{tmp_path / 'gone.pt'}").endswith("it does not exist")
    assert message(check_images, str(tmp_path / "gone")).startswith("images must be an existing folder or archive of images")


def test_classes_are_those_of_the_network(network, tmp_path):
    check_classes("embedded", "resnet20_cifar10")
    check_classes("auto", network)
    check_classes("none", network)
    check_classes("cifar100", "timm:resnet18")  # unknown here: the run looks
    check_classes(folders(tmp_path / "ten", 10), network)
    assert message(check_classes, "cifar100", "resnet20_cifar10").startswith("data must have the classes of resnet20_cifar10")
    eleven = folders(tmp_path / "eleven", 11)
    check_classes(eleven, network)  # none is a class: measured without labels
    (tmp_path / "eleven" / "kind 0").rename(tmp_path / "eleven" / "0")
    assert message(check_classes, eleven, network) == f"data must have at most the 10 classes of mine, got 11 of {eleven!r}"
    (tmp_path / "eleven" / "classes.json").write_text(json.dumps({f"kind {index}": index % 10 for index in range(11)}), encoding="utf-8")
    check_classes(eleven, network)


def test_a_misspelled_class_is_refused_before_the_run(tmp_path):
    data = folders(tmp_path / "two", 2)
    (tmp_path / "two" / "kind 0").rename(tmp_path / "two" / "cat")
    expected = "got 2 folders with 'kind 1'; images in a single folder are measured without labels"
    assert message(check_classes, data, "resnet20_cifar10").endswith(expected)
    (tmp_path / "two" / "kind 1").rename(tmp_path / "two" / "dog")
    check_classes(data, "resnet20_cifar10")
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    (tmp_path / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
    for passes in ("two/cat", "cifar", "cifar/cifar-10-batches-py"):
        check_classes(str(tmp_path / passes), "resnet20_cifar10")


def test_images_made_from_another_network_are_refused_by_weights_or_by_name(network, embedded, tmp_path):
    images = tmp_path / "given"
    images.mkdir()

    def given(manifest):
        (images / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return str(tmp_path)

    same = {"name": "another name", "weights_sha256": weights_hash(embedded.network)}
    for model in ("resnet20_cifar10", network, "timm:resnet18"):
        check_origin(given({"network": same}), model)
    check_origin(given({"model": "mine"}), network)
    check_origin(str(tmp_path / "no manifest"), network)
    other = {"network": {"name": "resnet56", "weights_sha256": "0" * 64}}
    expected = "images must be made from the network to quantize, 'mine', got images made from 'resnet56'"
    assert message(check_origin, given(other), network) == expected
    assert message(check_origin, given({"model": "resnet56"}), network) == expected


def test_nothing_imports_torch(network, tmp_path):
    numbered = folders(tmp_path / "numbered", 3)
    for index in range(3):  # from 1 to the number of classes, or WordNet ids
        (tmp_path / "numbered" / f"kind {index}").rename(tmp_path / "numbered" / ("1", "10", "n01440764")[index])
    code = (
        "import sys; from core.runs.early_checks import *; "
        f"check_model({network!r}); check_model('timm:resnet18'); check_data({str(tmp_path)!r}); check_classes('embedded', {network!r}); "
        f"check_classes({folders(tmp_path / 'two', 2)!r}, {network!r}); check_classes({numbered!r}, {network!r}); "
        "check_encoder('ViT-B-32:laion2b_s34b_b79k'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=module_environment(), check=True)
