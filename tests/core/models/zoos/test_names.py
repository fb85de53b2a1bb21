"""Names of the zoos, read from their sources, against what the libraries themselves list."""

import time

import pytest
import timm
from pytorchcv.model_provider import _models
from torchvision import models

from core.errors import UnknownNameError
from core.models.zoos import names


def test_names_are_those_of_the_libraries():
    deprecated = timm.models.get_deprecated_models()
    assert names._timm()[0] == {*timm.list_models(), *deprecated}
    assert names._torchvision()[0] == set(models.list_models(module=models))
    assert names._pytorchcv()[0] == set(_models)


def test_every_name_with_weights_passes():
    for name in timm.list_pretrained():
        names.check_zoo_name(f"timm:{name}")
    names.check_zoo_name("pytorchcv:ResNet18")


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("timm:resnet5O", "timm:resnet50"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("pytorchcv:resnet20_cifar11", "pytorchcv:resnet20_cifar10"),
        ("torchvision:resnet18.a1_in1k", "torchvision:resnet18"),
        ("timm:resnet18.a1_in1kk", "timm:resnet18"),
        ("timm:", "a name in timm"),
        ("timm:../../secret", "a name in timm"),
        ("timm:Resnet18", "timm:resnet18"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_its_neighbors(model, near):
    with pytest.raises(UnknownNameError) as error:
        names.check_zoo_name(model)
    assert str(error.value).startswith(f"unknown model {model!r}: must be")
    assert near in str(error.value)


def test_sources_of_another_form_refuse_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "package_folder", lambda _: tmp_path)
    (tmp_path / "model_provider.py").write_text("NAMES = ()", encoding="utf-8")
    for zoo, read in names._NAMES.items():
        monkeypatch.setattr(names, "_NAMES", {zoo: read.__wrapped__})
        names.check_zoo_name(f"{zoo}:anything")


def test_it_takes_no_second():
    began = time.process_time()
    for read in names._NAMES.values():
        read.__wrapped__()
    assert time.process_time() - began < 1
