import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import ConfigError, CoreError, ModelError
from core.models.full_precision import load_model
from core.models.programs.importing import import_program
from core.models.registry import GivenSpec

SAID = {"image_size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3), "class_names": ("a", "b", "c", "d")}


def exported(network: nn.Module, path: Path) -> Path:
    program = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    return path


def refused(folder: Path, program: Path, error=ModelError, **changes) -> str:
    with pytest.raises(error) as caught:
        import_program(program, given=GivenSpec(**{**SAID, **changes}), out_folder=folder / "networks")
    assert "must" in str(caught.value)
    assert not (folder / "networks").exists()
    return str(caught.value)


def test_imported_program_can_be_loaded(small, tmp_path):
    given = exported(small.network, tmp_path / "given.pt2")
    out = import_program(given, given=GivenSpec(**SAID), out_folder=tmp_path / "networks")
    assert {path.name for path in out.parent.iterdir()} == {out.name, out.with_suffix(".json").name}
    assert "given (4 classes)" in json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["label"]
    model = load_model(str(out), "cpu")
    assert (model.spec.name, model.spec.classes, model.spec.mean) == ("given", SAID["class_names"], SAID["mean"])
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model.network(images), small.network(images))


def test_given_values_must_fit_the_program(small, tmp_path):
    given = exported(small.network, tmp_path / "given.pt2")
    assert "8 x 8 pixels" in refused(tmp_path, given, image_size=32)
    assert "must be of shape (2, 2)" in refused(tmp_path, given, class_names=("a", "b"))
    assert "std" in refused(tmp_path, given, std=(0.2, 0.2, 0.0))
    assert "mean" in refused(tmp_path, given, mean=(0.2, float("nan"), 0.0))
    assert "mean" in refused(tmp_path, given, ConfigError, mean=None)
    refused(tmp_path, tmp_path / "none.pt2", CoreError)


def test_image_size_and_classes_come_from_the_program(small, tmp_path):
    given = exported(small.network, tmp_path / "given.pt2")
    said = GivenSpec(mean=SAID["mean"], std=SAID["std"])
    spec = load_model(str(import_program(given, out_folder=tmp_path / "networks", given=said)), "cpu").spec
    assert (spec.image_size, spec.classes) == (8, ("class 0", "class 1", "class 2", "class 3"))


def test_unusable_network_is_refused(small, tmp_path):
    network = copy.deepcopy(small.network)
    network.output.weight.data[0, 0] = float("inf")
    assert "finite" in refused(tmp_path, exported(network, tmp_path / "a.pt2"))
    network = copy.deepcopy(small.network)
    network.bn1.reset_running_stats()
    network.bn2.reset_running_stats()
    assert "mean 0 and variance 1" in refused(tmp_path, exported(network, tmp_path / "b.pt2"))
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).eval()
    assert "at least one BatchNorm" in refused(tmp_path, exported(network, tmp_path / "c.pt2"))
