import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from core.config import TrainingConfig
from core.data.image_sets import ImageSet
from core.errors import ConfigError, CoreError, ModelError
from core.models.checks import PROBABILITIES
from core.models.full_precision import load_model
from core.models.importing import notes_of
from core.models.programs.export import save_program
from core.models.programs.importing import import_program
from core.models.registry import GivenSpec
from core.quantization.integer.inference import integer_inference_network
from core.quantization.training import QuantizationTraining

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


def grey(height, width, dynamic=()) -> tuple[nn.Module, tuple[int, ...], dict]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        network.train()(torch.randn(8, 1, height, width))
    return network.eval(), (2, 1, height, width), dict.fromkeys((0, *dynamic), torch.export.Dim.DYNAMIC)


@pytest.mark.parametrize(
    ("dynamic", "given", "size"),
    [
        ((), None, (8, 12)),
        ((), (8, 12), (8, 12)),
        ((2, 3), (16, 12), (16, 12)),
        ((2, 3), [10], 10),
        ((3,), None, 8),  # the width is free, so that it is the height
        ((3,), (8, 20), (8, 20)),
    ],
)
def test_channels_height_and_width_of_a_program(tmp_path, dynamic, given, size):
    network, shape, dimensions = grey(8, 12, dynamic)
    torch.export.save(torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=(dimensions,)), tmp_path / "a.pt2")
    said = GivenSpec(mean=(0.5,), std=(0.2,), image_size=given)
    model = load_model(str(import_program(tmp_path / "a.pt2", out_folder=tmp_path / "networks", given=said)), "cpu")
    assert (model.spec.channels, model.spec.image_size) == (1, size)
    images = torch.randn(2, *model.spec.shape)
    torch.testing.assert_close(model.network(images), network(images))


def test_values_that_do_not_fit_a_grey_program_are_refused(tmp_path):
    network, shape, dimensions = grey(8, 12)
    torch.export.save(torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=(dimensions,)), tmp_path / "a.pt2")

    def message(**changes):
        said = GivenSpec(**{"mean": (0.5,), "std": (0.2,), **changes})
        with pytest.raises(CoreError) as caught:
            import_program(tmp_path / "a.pt2", out_folder=tmp_path / "networks", given=said)
        return str(caught.value)

    assert "must be 8 x 12 pixels, got 8 x 8" in message(image_size=8)
    assert "must be 8 x 12 pixels, got 12 x 8" in message(image_size=(12, 8))
    assert "height and width, got [8, 12, 1]" in message(image_size=[8, 12, 1])
    assert "height and width, got (8, -1)" in message(image_size=[8, -1])
    assert "mean of " in message(mean=(0.5,) * 3)
    assert "must be one number, got 3" in message(mean=(0.5,) * 3)
    assert "std must be given" in message(std=None)


def test_program_that_this_program_exported_is_named_as_what_it_is(small, tmp_path):
    images = ImageSet(torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 4)
    quantized = QuantizationTraining(small, images, TrainingConfig(steps=0, calibration_images=8)).quantized
    save_program(integer_inference_network(quantized, small.spec), small.spec, tmp_path / "mine.pt2")
    assert "got a quantized one, such as this program exports" in refused(tmp_path, tmp_path / "mine.pt2")


class Outputs(nn.Module):
    """A network with more outputs, or scores of another shape, than the one it wraps."""

    def __init__(self, network, form):
        super().__init__()
        self.network, self.form = network, form

    def forward(self, images):
        scores = self.network(images)
        if self.form == "map":
            return scores[:, :, None, None]
        if self.form == "column":
            return scores[:, :, None]
        if self.form == "row":
            return scores[:, None, None]
        if self.form == "features first":
            return images[:, :, :4, :4], (scores[..., None], scores.square())
        if self.form == "tuple":
            return scores, scores.square()
        if self.form == "pooled features first":
            return {"features": images.mean(dim=(2, 3)), "logits": scores}
        if self.form == "auxiliary first":
            return {"aux_logits": scores.square(), "logits": scores}
        return {"out": scores, "aux": scores.square(), "features": images.mean(dim=(2, 3))}


def test_program_whose_scores_are_probabilities_is_noted(small, tmp_path):
    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small.network

        def forward(self, images):
            return self.network(images).softmax(dim=1)

    given = exported(Softmax().eval(), tmp_path / "given.pt2")
    out = import_program(given, given=GivenSpec(**SAID), out_folder=tmp_path / "networks")
    assert notes_of(str(out)) == [PROBABILITIES]


@pytest.mark.parametrize(
    ("form", "notes"),
    [
        ("map", []),
        ("column", []),
        ("row", []),
        ("tuple", ["took the first of 2 outputs as the scores"]),
        ("mapping", ["took the first of 3 outputs as the scores"]),
        ("auxiliary first", ["took number 2 of 2 outputs as the scores"]),
        ("pooled features first", ["took number 2 of 2 outputs as the scores"]),
        ("features first", ["took number 2 of 3 outputs as the scores"]),
    ],
)
def test_scores_are_found_among_the_outputs(small, tmp_path, form, notes):
    given = exported(Outputs(small.network, form).eval(), tmp_path / "given.pt2")
    out = import_program(given, given=GivenSpec(**SAID), out_folder=tmp_path / "networks")
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(load_model(str(out), "cpu").network(images), small.network(images))
    assert notes_of(str(out)) == notes


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_program_of_another_precision_is_converted_and_says_so(small, tmp_path, kind):
    network = copy.deepcopy(small.network).to(kind)
    images = torch.zeros(2, 3, 8, 8, dtype=kind)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "given.pt2")
    out = import_program(tmp_path / "given.pt2", given=GivenSpec(**SAID), out_folder=tmp_path / "networks")
    assert notes_of(str(out)) == [f"converted {str(kind).removeprefix('torch.')} to float32"]
    images = torch.randn(3, 3, 8, 8)
    # the weights have been rounded, but what is computed with them is not
    torch.testing.assert_close(load_model(str(out), "cpu").network(images), network.float()(images))
