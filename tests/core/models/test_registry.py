import json

import pytest

from core.models.registry import own_name

HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("my net (10 classes), imported from my net.pth", "my net.pth"),
        ("my net (10 classes), uploaded as a.safetensors", "a.safetensors"),
        ("a label of another form", "a label of another form"),
        (None, "an uploaded network (01234567)"),
    ],
)
def test_a_stored_network_has_the_name_of_its_file(tmp_path, label, name):
    path = tmp_path / f"{HASH}.safetensors"
    if label is not None:
        path.with_suffix(".json").write_text(json.dumps({"label": label}), encoding="utf-8")
    assert own_name(str(path)) == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("resnet20_cifar10", "resnet20_cifar10"),
        ("timm:a/b", "timm:a/b"),
        ("/a/folder/my net.safetensors", "my net.safetensors"),
        ("net.pt2", "net.pt2"),
    ],
)
def test_other_networks_keep_their_name_without_a_folder(model, name):
    assert own_name(model) == name
