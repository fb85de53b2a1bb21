"""A complete tiny run: its files, what it reports, and what is refused before anything is computed."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from core import pipeline
from core.config import EvaluationConfig, GenerationConfig, RunConfig, TrainingConfig
from core.data.image_sets import ImageSet, load_image_set, save_image_set
from core.data.labeled import embedded_images
from core.errors import DataError, RunError, RunStopped, UnknownNameError
from core.evaluation.agreement import agreement
from core.evaluation.diversity import measure_diversity
from core.evaluation.encoder import load_encoder
from core.generation.fused import kernels
from core.models.registry import CIFAR10_CLASSES
from core.quantization.analysis import analyze
from core.quantization.integer.inference import integer_inference_network
from core.quantization.saved_network import load_quantized
from core.quantization.sensitivity import sensitivities
from core.quantization.training import QuantizationTraining
from core.reporting import NoControl, NullReporter
from tests.core.recorded_runs import Recorder, StopsAt

GENERATION = GenerationConfig(images=8, iterations=3, snapshots=2, batch_size=4)
TRAINING = TrainingConfig(range="minmax", steps=2, training_batch_size=4, calibration_images=8)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of 20 CIFAR-10 test images, two per class."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / name).mkdir()
        for index in [i for i, other in enumerate(labels) if other == label][:2]:
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / name / f"{index}.png")
    return str(folder)


@pytest.fixture(scope="module")
def config(data):
    return RunConfig(generation=GENERATION, training=TRAINING, evaluation=EvaluationConfig(data=data), bits=(3, 8), steps_by_bits={8: 0})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A complete run: its folder, its result, and what it reported."""
    folder, recorder = tmp_path_factory.mktemp("run"), Recorder()
    return folder, pipeline.execute(config, folder, recorder, NoControl()), recorder


def series_of(recorder, stage):
    return [(method, step) for name, method, step, _ in recorder.records if name == stage]


def test_files_of_a_run(whole):
    folder, _, recorder = whole
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    # the state of a stage is removed with the stage; the caller removes the folder
    expected = [
        "checkpoint/done.json",
        "checkpoint/full-precision scores.safetensors",
        "result.json",
        *(f"checkpoint/held-out images/{name}" for name in ("images.safetensors", "manifest.json")),
    ]
    for method in ("adam", "mi-fgsm"):
        expected += [f"images/{method}/images.safetensors", f"images/{method}/manifest.json"]
        for width in ("W3A3", "W8A8"):
            expected += [f"quantized/{method}/{width}/quantized.safetensors", f"quantized/{method}/{width}/quantize.json"]
            kept = recorder.results[f"accuracy/{method}/{width}"]["kept"]
            if recorder.results[f"accuracy/{method}/{width}"]["real"][kept]["agreement"] < 100:
                expected.append(f"quantized/{method}/{width}/disagreements.safetensors")
    assert files == sorted(expected)


@pytest.mark.parametrize(
    ("folder", "sentence"), [("", "real_images must be a folder of images, got none"), ("data", "real_images must be another folder than")]
)
def test_real_images_are_refused_before_anything_is_computed(config, data, folder, sentence):
    asked = replace(config, methods=("adam", "real")).with_knobs({"real_images": data if folder else ""})
    with pytest.raises(DataError, match=sentence):
        pipeline.prepare(asked, NullReporter())
    pipeline.prepare(replace(asked, methods=("adam",)), NullReporter())


def test_result_matches_the_files(whole):
    folder, result, _ = whole
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == result
    for method in ("adam", "mi-fgsm"):
        for bits in (3, 8):
            written = json.loads((folder / "quantized" / method / f"W{bits}A{bits}" / "quantize.json").read_text(encoding="utf-8"))
            assert written == result["methods"][method]["accuracy"][str(bits)]
        manifest = json.loads((folder / "images" / method / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["summary"] == result["methods"][method]["generation"]
        assert manifest["method"] == method


def test_result_has_all_figures(whole):
    _, result, _ = whole
    assert result.keys() == {"full_precision", "methods", "references", "seconds"}
    assert list(result["methods"]) == ["mi-fgsm", "adam"]
    for figures in result["methods"].values():
        assert figures.keys() == {"generation", "diversity", "accuracy"}
        assert figures["generation"]["images"] == 8
        assert figures["generation"]["image_iterations"] == 4 * 3
        assert figures["generation"]["layers"] == 21
        assert figures["diversity"]["images"] == 8
        assert -1 <= figures["diversity"]["mean_similarity"] <= 1
        for bits, accuracy in figures["accuracy"].items():
            assert accuracy["weight_bits"] == accuracy["activation_bits"] == int(bits)
            assert accuracy["full_precision"] == result["full_precision"]
            assert "20 images" in accuracy["evaluated_on"]
            # of n = 20 images: a multiple of 5 %, and sqrt(p (1 - p) / n)
            share = accuracy["quantized"] / 100
            assert accuracy["quantized"] % 5 == 0
            assert accuracy["standard_error"] == pytest.approx(100 * (share * (1 - share) / 20) ** 0.5, abs=1e-3)
            before = result["full_precision"] / 100
            variance = (share * (1 - share) + before * (1 - before)) / 20
            assert accuracy["drop_error"] == pytest.approx(100 * variance**0.5, abs=2e-3)
            assert accuracy["float32_bytes"] == 4 * 272_474  # pytorchcv's ResNet-20
            assert accuracy["weight_size"] / 8 < accuracy["bytes"] < accuracy["weight_size"] / 8 + 50_000
        assert figures["accuracy"]["3"]["steps"] == 2
        assert figures["accuracy"]["8"]["steps"] == 0
        assert figures["accuracy"]["8"]["kept"] == "calibrated"
        assert figures["accuracy"]["8"]["held_out"].keys() == {"calibrated"}
        compared = figures["accuracy"]["3"]["held_out"]
        assert compared.keys() == {"calibrated", "trained"}
        assert compared["trained"]["images"] == 16  # 8 by each of two methods
        better = min(compared, key=lambda name: compared[name]["kl"])
        assert figures["accuracy"]["3"]["kept"] == better
        assert figures["accuracy"]["3"]["quantized"] == figures["accuracy"]["3"][better]
        assert figures["accuracy"]["8"]["quantized"] == figures["accuracy"]["8"]["calibrated"]


def test_full_precision_accuracy(whole, embedded, data):
    images = load_image_set(data)  # CIFAR-10's classes are in alphabetical order, as the folders are
    with torch.no_grad():
        right = (embedded.network(embedded.normalize(images.images)).argmax(dim=1) == images.labels).float().mean()
    assert whole[1]["full_precision"] == pytest.approx(100 * float(right), abs=1e-3)


def test_saved_network_has_the_reported_accuracy(whole, embedded, data):
    folder, result, _ = whole
    images = load_image_set(data)
    for method in ("mi-fgsm", "adam"):
        quantized = load_quantized(folder / "quantized" / method / "W3A3" / "quantized.safetensors", embedded)
        network = integer_inference_network(quantized, embedded.spec)
        with torch.no_grad():
            right = (network(embedded.normalize(images.images)).argmax(dim=1) == images.labels).float().mean()
        assert result["methods"][method]["accuracy"]["3"]["quantized"] == pytest.approx(100 * float(right), abs=1e-3)


def test_methods_stay_at_the_same_step(whole):
    _, _, recorder = whole
    assert series_of(recorder, "generation") == [(method, step) for step in (1, 2, 3) for method in ("mi-fgsm", "adam")]


def test_methods_start_from_the_same_noise(whole):
    _, _, recorder = whole
    first = [values for stage, _, step, values in recorder.records if stage == "generation" and step == 1]
    for key in ("bns", "tv", "l2", "ce"):
        assert first[0][key] == first[1][key]
    labels = [load_image_set(whole[0] / "images" / method).labels for method in ("mi-fgsm", "adam")]
    assert torch.equal(*labels)
    assert labels[0].tolist() == [0, 1, 2, 3] * 2


def test_every_training_step_is_reported(whole):
    _, _, recorder = whole
    assert series_of(recorder, "training") == [(f"{method} W3A3", step) for method in ("mi-fgsm", "adam") for step in (1, 2)]


def test_accuracy_is_reported_during_training(whole):
    """After calibration, at the checks, and after the last step; without steps only after calibration."""
    _, result, recorder = whole
    for method in ("mi-fgsm", "adam"):
        assert [step for name, step in series_of(recorder, "test") if name == f"{method} W3A3"] == [0, 1, 2]
        assert [step for name, step in series_of(recorder, "test") if name == f"{method} W8A8"] == [0]
        figures = result["methods"][method]["accuracy"]["3"]
        top1 = [values["top1"] for stage, name, _, values in recorder.records if (stage, name) == ("test", f"{method} W3A3")]
        # a check takes up to 500 images, so all 20, and the first and last figures are the reported ones
        assert (top1[0], top1[-1]) == (figures["calibrated"], figures["trained"])
        assert 0 < figures["test_seconds"] < figures["seconds"]
    assert {values["images"] for stage, *_, values in recorder.records if stage == "test"} == {20}


def test_layers_are_analyzed(whole):
    folder, result, recorder = whole
    for method in ("mi-fgsm", "adam"):
        for width, bits in (("W3A3", 3), ("W8A8", 8)):
            found = recorder.results[f"layers/{method}/{width}"]
            assert found["images"] == 16
            assert found["measured_on"] == "16 held-out synthetic images"
            assert len(found["layers"]) == 22
            summary = result["methods"][method]["accuracy"][str(bits)]["layers"]
            assert summary["measured_on"] == found["measured_on"]
            assert summary["sqnr"] == {layer["name"]: layer["sqnr"] for layer in found["layers"]}
            assert {layer["bits"] for layer in found["layers"]} == {bits}
            assert found["weight_size"] == bits * sum(layer["weights"] for layer in found["layers"])
            assert len(json.dumps(found)) < 40_000


def test_accuracy_checks_do_not_change_the_result(tmp_path, config, whole):
    """Bit-identical with and without checks, also with learned ranges and an EMA, which replaces the weights during a check."""
    given = replace(config, images_from=str(whole[0] / "images"), bits=(3,), methods=("adam",)).with_knobs({"encoder": ""})
    given = replace(given, training=replace(given.training, range="lsq", ema_decay=0.9, steps=5), steps_by_bits={})
    recorders = {}
    for checks in (0, 4):
        own = given.with_knobs({"accuracy_checks": checks})
        (tmp_path / str(checks)).mkdir()
        recorders[checks] = Recorder()
        pipeline.execute(own, tmp_path / str(checks), recorders[checks], NoControl())
    assert [step for _, step in series_of(recorders[0], "test")] == [0, 5]
    assert [step for _, step in series_of(recorders[4], "test")] == [0, 1, 2, 3, 4, 5]
    name = "quantized/adam/W3A3/quantized.safetensors"
    assert_same_tensors(tmp_path / "0" / name, tmp_path / "4" / name)


@pytest.mark.slow
def test_accuracy_checks_use_the_moving_average(embedded, data):
    """A check measures the network that training would end with at that step."""
    images = load_image_set(data, embedded.spec)
    config = replace(TRAINING, weight_bits=3, activation_bits=3, range="lsq", ema_decay=0.5, steps=3, training_batch_size=20)
    training = QuantizationTraining(embedded, images, config)
    training.step()
    training.step()
    own = {name: value.clone() for name, value in training.student.state_dict().items()}
    average = [value.clone() for value in training._average.values]
    with training.averaged_parameters() as student:
        assert all(torch.equal(one, other) for one, other in zip(student.parameters(), average))
        assert not torch.equal(student.state_dict()["features.init_block.conv.weight"], own["features.init_block.conv.weight"])
    assert all(torch.equal(value, own[name]) for name, value in training.student.state_dict().items())
    assert all(torch.equal(one, other) for one, other in zip(training._average.values, average))


@pytest.mark.parametrize("keep", ["better", "trained"])
def test_training_that_harms_is_kept_only_on_request(tmp_path, config, whole, keep, embedded, data):
    given = replace(config, images_from=str(whole[0] / "images"), bits=(8,), methods=("adam",), steps_by_bits={})
    given = given.with_knobs({"encoder": "", "steps": 3, "training_lr": 0.3, "ema_decay": 0.0, "keep": keep})
    recorder = Recorder()
    outcome = pipeline.execute(given, tmp_path, recorder, NoControl())["methods"]["adam"]["accuracy"]["8"]
    assert outcome["trained"] < outcome["calibrated"] - 20  # the step size ruins it
    kept = "calibrated" if keep == "better" else "trained"
    assert (outcome["kept"], outcome["quantized"]) == (kept, outcome[kept])
    saved = integer_inference_network(
        load_quantized(tmp_path / "quantized" / "adam" / "W8A8" / "quantized.safetensors", embedded), embedded.spec
    )
    images = load_image_set(data)
    with torch.no_grad():
        right = (saved(embedded.normalize(images.images)).argmax(dim=1) == images.labels).float().mean()
    assert outcome[kept] == pytest.approx(100 * float(right), abs=1e-3)
    warnings = [value for name, value in recorder.results.items() if name.startswith("warning/kept")]
    assert all(("moved" in layer) == (keep == "trained") for layer in recorder.results["layers/adam/W8A8"]["layers"])
    if keep == "trained":
        assert outcome["held_out"] == {}
        assert warnings == []
    else:
        compared = outcome["held_out"]
        assert compared["calibrated"]["score_sqnr"] > compared["trained"]["score_sqnr"]
        assert compared["calibrated"]["agreement"] > compared["trained"]["agreement"]
        assert len(warnings) == 1
        assert warnings[0].endswith("so the calibrated network is kept. Try a smaller learning rate (training_lr).")


@pytest.fixture(scope="module")
def unlabeled(config):
    return replace(config.with_knobs({"data": "none", "encoder": ""}), methods=("adam",))


@pytest.fixture(scope="module")
def without_data(unlabeled, tmp_path_factory):
    """A complete run without evaluation images: its folder, its result, and what it reported."""
    folder, recorder = tmp_path_factory.mktemp("run"), Recorder()
    return folder, pipeline.execute(unlabeled, folder, recorder, NoControl()), recorder


def test_a_run_without_evaluation_images_is_measured_on_held_out_images(without_data, embedded):
    folder, result, recorder = without_data
    assert result["full_precision"] is None
    assert "full_precision" not in recorder.results
    assert series_of(recorder, "test") == []
    held_out = load_image_set(folder / "checkpoint" / "held-out images").images
    for width, networks in (("3", {"calibrated", "trained"}), ("8", {"calibrated"})):
        outcome = result["methods"]["adam"]["accuracy"][width]
        accuracies = ("full_precision", "calibrated", "trained", "quantized", "standard_error", "drop_error", "evaluated_on")
        assert [outcome[name] for name in accuracies] == [None] * 7
        assert outcome["held_out"].keys() == networks
        saved = load_quantized(folder / "quantized" / "adam" / f"W{width}A{width}" / "quantized.safetensors", embedded)
        figures = asdict(agreement(integer_inference_network(saved, embedded.spec), embedded, held_out))
        assert outcome["held_out"][outcome["kept"]] == {**figures, "measured_on": "16 held-out synthetic images"}
        assert outcome["real"] == {}
        assert recorder.results[f"accuracy/adam/W{width}A{width}"]["held_out"] == outcome["held_out"]
    assert result["methods"]["adam"]["accuracy"]["8"]["held_out"]["calibrated"]["score_sqnr"] > 10


def test_evaluation_images_change_no_bit_of_the_network(without_data, whole):
    name = "quantized/adam/W3A3/quantized.safetensors"
    assert (without_data[0] / name).read_bytes() == (whole[0] / name).read_bytes()
    outcomes = [result["methods"]["adam"]["accuracy"]["3"]["held_out"] for _, result, _ in (without_data, whole)]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("stage", ["generating held-out images", "training adam W3A3"])
def test_a_run_without_evaluation_images_resumes_to_the_same_bits(tmp_path, unlabeled, without_data, stage):
    class Stopping(NoControl):
        left = 2

        def pause_point(self):
            if recorder.stages and recorder.stages[-1][0] == stage:
                self.left -= 1
                if not self.left:
                    raise RunStopped("enough")

    recorder = Recorder()
    with pytest.raises(RunStopped):
        pipeline.execute(unlabeled, tmp_path, recorder, Stopping())
    resumed = Recorder()
    result = pipeline.execute(unlabeled, tmp_path, resumed, NoControl())
    name = "quantized/adam/W3A3/quantized.safetensors"
    assert (tmp_path / name).read_bytes() == (without_data[0] / name).read_bytes()
    ours, theirs = (one["methods"]["adam"]["accuracy"]["3"] for one in (result, without_data[1]))
    assert (ours["held_out"], ours["kept"]) == (theirs["held_out"], theirs["kept"])
    assert resumed.results["layers/adam/W3A3"] == without_data[2].results["layers/adam/W3A3"]


def test_bits_chosen_by_size_are_not_chosen_again_when_a_run_resumes(tmp_path, unlabeled, monkeypatch):
    class Stopping(NoControl):
        def pause_point(self):
            if recorder.stages and recorder.stages[-1][0] == "training adam W3A3":
                raise RunStopped("enough")

    config, whole = replace(unlabeled.with_knobs({"size": 120.0}), bits=(3,)), tmp_path / "whole"
    expected = pipeline.execute(config, whole, Recorder(), NoControl())["methods"]["adam"]["accuracy"]["3"]
    assert expected["bytes"] <= 120_000
    recorder = Recorder()
    with pytest.raises(RunStopped):
        pipeline.execute(config, tmp_path / "stopped", recorder, Stopping())
    allocation = recorder.results["allocation/adam/W3A3"]
    assert dict(zip(allocation["layers"], allocation["bits"])) == expected["layer_weight_bits"]
    monkeypatch.delattr("core.quantization.training.chosen_widths")
    pipeline.execute(config, tmp_path / "stopped", Recorder(), NoControl())
    name = "quantized/adam/W3A3/quantized.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes()


def test_layers_are_measured_on_held_out_images(without_data, embedded):
    folder, _, recorder = without_data
    held_out = load_image_set(folder / "checkpoint" / "held-out images").images
    saved = load_quantized(folder / "quantized" / "adam" / "W3A3" / "quantized.safetensors", embedded)
    sensitive = sensitivities(embedded, saved, held_out)
    expected = [layer | {"score_sqnr": sensitive[layer["name"]]} for layer in analyze(embedded, saved, held_out)["layers"]]
    before = ("calibrated", "moved")
    found = recorder.results["layers/adam/W3A3"]["layers"]
    assert [{name: value for name, value in layer.items() if name not in before} for layer in found] == expected
    assert not any(name in layer for layer in recorder.results["layers/adam/W8A8"]["layers"] for name in before)  # it has no steps


def test_layers_of_a_trained_network_are_beside_those_of_the_calibrated_one(tmp_path, without_data, unlabeled, embedded):
    given = replace(unlabeled, images_from=str(without_data[0] / "images"), bits=(3,), steps_by_bits={}).with_knobs({"steps": 2})
    recorder = Recorder()
    pipeline.execute(given.with_knobs({"keep": "trained"}), tmp_path, recorder, NoControl())
    images = load_image_set(without_data[0] / "images" / "adam")
    training = QuantizationTraining(embedded, images, given.training_for(3), given.seed_of_training)
    held_out = load_image_set(tmp_path / "checkpoint" / "held-out images").images
    calibrated = analyze(embedded, training.quantized, held_out)["layers"]
    saved = load_quantized(tmp_path / "quantized" / "adam" / "W3A3" / "quantized.safetensors", embedded)
    found = recorder.results["layers/adam/W3A3"]
    for layer, own, before, after in zip(found["layers"], calibrated, training.quantized.layers, saved.layers, strict=True):
        assert layer["calibrated"] == {"weight": own["weight"], "input": own["input"]}
        with torch.no_grad():
            # rounded weights over the steps between them
            steps = [
                (one.weight_quantizer(one.weight) / one.weight_quantizer.scale.view(-1, *[1] * (one.weight.ndim - 1))).round()
                for one in (before, after)
            ]
        assert layer["moved"] == pytest.approx(100 * float((steps[0] != steps[1]).double().mean()), abs=1e-3)
    assert any(layer["moved"] for layer in found["layers"])
    assert len(json.dumps(found)) < 60_000


@pytest.fixture(scope="module")
def photos(data, tmp_path_factory):
    """The images of `data`, half in one folder and half in folders that are no classes of the network."""
    folder = tmp_path_factory.mktemp("photos")
    for number, path in enumerate(sorted(Path(data).rglob("*.png"))):
        target = folder / ("", "spring/trip")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def without_labels(unlabeled, photos, tmp_path_factory):
    """A complete run on evaluation images without labels: its folder, its result, and what it reported."""
    folder, recorder = tmp_path_factory.mktemp("run"), Recorder()
    return folder, pipeline.execute(unlabeled.with_knobs({"data": str(photos)}), folder, recorder, NoControl()), recorder


def compared_on(images, network, model):
    """Figures of two networks on uint8 images, one by one."""
    with torch.no_grad():
        inputs = model.normalize(images).contiguous(memory_format=torch.channels_last)
        ours, theirs = network(inputs).double(), model.network(inputs).double()
    divergence = (theirs.softmax(1) * (theirs.log_softmax(1) - ours.log_softmax(1))).sum(1).mean()
    return 100 * float((ours.argmax(1) == theirs.argmax(1)).double().mean()), float(divergence)


def test_a_run_without_labels_is_measured_on_its_images(without_labels, without_data, photos, embedded):
    folder, result, recorder = without_labels
    assert result["full_precision"] is None
    assert "full_precision" not in recorder.results
    assert series_of(recorder, "test") == []
    assert f"'{photos.name}' has no folder for each class of resnet20_cifar10: measured without labels." in recorder.results.values()
    images = torch.stack([pil_to_tensor(Image.open(path)) for path in sorted(photos.rglob("*.png"))])
    assert len(images) == 20
    for width, networks in (("3", {"calibrated", "trained"}), ("8", {"calibrated"})):
        outcome = result["methods"]["adam"]["accuracy"][width]
        assert [outcome[name] for name in ("full_precision", "calibrated", "trained", "quantized", "standard_error")] == [None] * 5
        assert outcome["evaluated_on"] == f"20 images of {photos}"
        assert outcome["real"].keys() == networks
        saved = load_quantized(folder / "quantized" / "adam" / f"W{width}A{width}" / "quantized.safetensors", embedded)
        agreement, kl = compared_on(images, integer_inference_network(saved, embedded.spec), embedded)
        figures = outcome["real"][outcome["kept"]]
        assert figures["agreement"] == pytest.approx(agreement, abs=1e-3)
        assert figures["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-5)
        assert figures["standard_error"] == pytest.approx((agreement * (100 - agreement) / 20) ** 0.5, abs=1e-3)
        assert (figures["images"], figures["measured_on"]) == (20, f"20 images of {photos}")
        assert recorder.results[f"accuracy/adam/W{width}A{width}"]["real"] == outcome["real"]
        # the images take no part in any choice
        assert outcome["held_out"] == without_data[1]["methods"]["adam"]["accuracy"][width]["held_out"]
        name = f"quantized/adam/W{width}A{width}/quantized.safetensors"
        assert (folder / name).read_bytes() == (without_data[0] / name).read_bytes()


def test_labeled_images_are_compared_as_well(whole, without_labels):
    """The same images in another order: the same figures as without labels."""
    for bits in ("3", "8"):
        labeled, unlabeled = (result["methods"]["adam"]["accuracy"][bits]["real"] for _, result, _ in (whole, without_labels))
        assert labeled.keys() == unlabeled.keys()
        for name, figures in labeled.items():
            assert figures["agreement"] == unlabeled[name]["agreement"]
            assert figures["kl"] == pytest.approx(unlabeled[name]["kl"], abs=1e-5)


@pytest.mark.parametrize("stage", ["evaluating full precision", "training adam W3A3"])
def test_a_run_without_labels_resumes_to_the_same_figures_after_its_images_were_moved(tmp_path, unlabeled, without_labels, photos, stage):
    class Stopping(NoControl):
        left = 2 if stage.startswith("training") else 1

        def pause_point(self):
            if recorder.stages and recorder.stages[-1][0] == stage:
                self.left -= 1
                if not self.left:
                    raise RunStopped("enough")

    recorder, moved = Recorder(), tmp_path / "moved"
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "run").mkdir()
    with pytest.raises(RunStopped):
        pipeline.execute(unlabeled.with_knobs({"data": str(tmp_path / "photos")}), tmp_path / "run", recorder, Stopping())
    (tmp_path / "photos").rename(moved)
    if stage.startswith("training"):
        # an earlier version kept no scores
        (tmp_path / "run" / "checkpoint" / "full-precision scores.safetensors").unlink()
    result = pipeline.execute(unlabeled.with_knobs({"data": str(moved)}), tmp_path / "run", Recorder(), NoControl())
    ours, theirs = (one["methods"]["adam"]["accuracy"] for one in (result, without_labels[1]))
    for bits in ("3", "8"):
        assert json.loads(json.dumps(ours[bits]["real"]).replace(str(moved), str(photos))) == theirs[bits]["real"]
        assert ours[bits]["kept"] == theirs[bits]["kept"]


def test_an_unlabeled_image_that_cannot_be_read_is_counted_out(tmp_path, unlabeled, photos, without_data):
    for number in range(120):
        shutil.copy(next(photos.glob("*.png")), tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(next(photos.glob("*.png")).read_bytes()[:600])
    (tmp_path / "run").mkdir()
    given = replace(unlabeled, images_from=str(without_data[0] / "images"), bits=(8,)).with_knobs({"data": str(tmp_path)})
    recorder = Recorder()
    result = pipeline.execute(given, tmp_path / "run", recorder, NoControl())
    figures = result["methods"]["adam"]["accuracy"]["8"]["real"]["calibrated"]
    assert (figures["images"], figures["measured_on"]) == (120, f"120 images of {tmp_path}")
    assert recorder.results["warning/damage"].startswith("1 of 121 images")
    (tmp_path / "strict").mkdir()
    with pytest.raises(DataError, match=r"broken\.png must be an image"):
        pipeline.execute(given.with_knobs({"strict": True}), tmp_path / "strict", Recorder(), NoControl())


def test_without_evaluation_images_the_trained_network_is_compared_and_kept_on_request(tmp_path, unlabeled, without_data):
    given = replace(unlabeled, images_from=str(without_data[0] / "images"), bits=(8,), steps_by_bits={})
    given = given.with_knobs({"steps": 3, "training_lr": 0.3, "ema_decay": 0.0, "keep": "trained"})
    outcome = pipeline.execute(given, tmp_path, Recorder(), NoControl())["methods"]["adam"]["accuracy"]["8"]
    assert outcome["kept"] == "trained"
    assert outcome["held_out"]["trained"]["kl"] > outcome["held_out"]["calibrated"]["kl"]


def test_held_out_images_are_none_of_the_run(whole, tmp_path, config):
    """Other noise; and what was stopped in their midst continues to the same bits."""
    held_out = load_image_set(whole[0] / "checkpoint" / "held-out images").images
    assert len(held_out) == 16
    for method in ("mi-fgsm", "adam"):
        own = load_image_set(whole[0] / "images" / method).images
        assert not any(torch.equal(one, other) for one in held_out for other in own)

    class Stopping(NoControl):
        left = 2

        def pause_point(self):
            if recorder.stages and recorder.stages[-1][0] == "generating held-out images":
                self.left -= 1
                if not self.left:
                    raise RunStopped("enough")

    recorder = Recorder()
    given = replace(config, images_from=str(whole[0] / "images"), bits=(3,), methods=("adam",), steps_by_bits={})
    with pytest.raises(RunStopped):
        pipeline.execute(given, tmp_path, recorder, Stopping())
    pipeline.execute(given, tmp_path, Recorder(), NoControl())
    assert torch.equal(load_image_set(tmp_path / "checkpoint" / "held-out images").images, held_out)


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_resumed_training_repeats_no_check(tmp_path, config, whole, stop_at):
    """Stopped before, at and after a check: no record is missing or duplicated, and the network is bit-identical."""

    class Stopping(Recorder, NoControl):
        stopping = True

        def pause_point(self):
            steps = [step for _, step in series_of(self, "training")]
            if self.stopping and len(steps) >= stop_at:
                raise RunStopped("enough")

        def rewind(self, stage, method, step):
            self.records = [one for one in self.records if one[:2] != (stage, method) or one[2] <= step]

    given = replace(config, images_from=str(whole[0] / "images"), bits=(3,), methods=("adam",), steps_by_bits={}).with_knobs(
        {"encoder": ""}
    )
    given = given.with_knobs({"range": "lsq", "ema_decay": 0.9, "steps": 6, "accuracy_checks": 1})
    recorder = Stopping()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    pipeline.execute(given, tmp_path / "whole", NullReporter(), NoControl())
    with pytest.raises(RunStopped):
        pipeline.execute(given, tmp_path / "parts", recorder, recorder)
    recorder.stopping = False
    pipeline.execute(given, tmp_path / "parts", recorder, recorder)
    assert [step for _, step in series_of(recorder, "training")] == [1, 2, 3, 4, 5, 6]
    assert [step for _, step in series_of(recorder, "test")] == [0, 3, 6]
    name = "quantized/adam/W3A3/quantized.safetensors"
    assert_same_tensors(tmp_path / "whole" / name, tmp_path / "parts" / name)


def test_unknown_layer_is_refused_first(tmp_path, config):
    recorder = Recorder()
    wrong = replace(config, training=replace(config.training, layer_bits={"nowhere": 8}))
    with pytest.raises(UnknownNameError, match=r"unknown layer in layer_bits 'nowhere': must be one of features.init_block.conv, .*output"):
        pipeline.execute(wrong, tmp_path, recorder, NoControl())
    assert recorder.records == []


def test_stages_in_order(whole):
    _, _, recorder = whole
    names = [name for name, _ in recorder.stages]
    assert dict(recorder.stages)["generation"] == 6
    assert dict(recorder.stages)["training adam W3A3"] == 2
    order = ["generation", "evaluating full precision", "diversity of adam", "training mi-fgsm W3A3", "training adam W3A3"]
    assert [name for name in names if name in order] == order


def test_results_are_reported(whole):
    _, result, recorder = whole
    methods, widths = ("mi-fgsm", "adam"), ("W3A3", "W8A8")
    expected = {"full_precision", "layers", "terms", "methods"} | {
        f"{kind}/{method}" for kind in ("generation", "diversity") for method in methods
    }
    kinds = ("accuracy", "answers", "hits", "layers")
    expected |= {"reference/noise", "reference/real"}
    reported = {name for name in recorder.results if not name.startswith("warning/")}
    assert reported == expected | {f"{kind}/{method}/{width}" for kind in kinds for method in methods for width in widths}
    assert recorder.results["accuracy/adam/W3A3"]["quantized"] == result["methods"]["adam"]["accuracy"]["3"]["quantized"]
    assert recorder.results["full_precision"]["top1"] == result["full_precision"]
    assert {"histogram", "matrix", "neighbours"} <= recorder.results["diversity/adam"].keys()


def test_references_are_noise_and_evaluation_images(whole, data):
    _, result, recorder = whole
    measured = measure_diversity(load_image_set(data), load_encoder("embedded", "cpu"))
    noise, real = result["references"]["noise"], result["references"]["real"]
    assert real["mean_similarity"] == pytest.approx(measured["mean_similarity"], abs=1e-4)
    assert real["within_class_similarity"] == pytest.approx(measured["within_class_similarity"], abs=1e-4)
    assert "20 images of" in real["description"]
    assert (noise["images"], real["images"]) == (4, 20)  # 8 images are 2 snapshots of 4 noise images
    assert noise["within_class_similarity"] is None
    for name, figures in result["references"].items():
        assert figures["encoder"] == result["methods"]["adam"]["diversity"]["encoder"]
        announced = recorder.results[f"reference/{name}"]
        assert announced == {**figures, **{chart: announced[chart] for chart in ("histogram", "similarities")}}


def test_references_of_a_run_without_evaluation(tmp_path, whole, config, embedded):
    """The embedded images if they fit the network, else none: such a run downloads nothing and does not fail."""
    images = whole[0] / "images"
    config = replace(config, images_from=str(images), bits=()).with_knobs({"data": "cifar10"})
    for name in ("fits", "other"):
        (tmp_path / name).mkdir()
    result = pipeline.execute(config, tmp_path / "fits", NullReporter(), NoControl())
    assert "512 of the first 2,000 CIFAR-10 test images" in result["references"]["real"]["description"]
    other = replace(embedded, spec=replace(embedded.spec, classes=("a", "b")))
    prepared = replace(pipeline.prepare(config, NullReporter()), model=other)
    recorder = Recorder()
    result = pipeline.execute(config, tmp_path / "other", recorder, NoControl(), prepared)
    assert result["references"]["real"].keys() == {"left_out"}
    assert "data must have the classes of" in recorder.results["reference/real"]["left_out"]
    assert result["references"]["noise"]["images"] == 4


def test_finished_references_are_not_computed_again(tmp_path, whole, config):
    config = replace(config, images_from=str(whole[0] / "images"), bits=())

    class StopsBeforeReal(Recorder, NoControl):
        def pause_point(self):
            if self.stages[-1][0] == "diversity of real images":
                raise RunStopped("enough")

    for name in ("parts", "whole"):
        (tmp_path / name).mkdir()
    recorder = StopsBeforeReal()
    with pytest.raises(RunStopped):
        pipeline.execute(config, tmp_path / "parts", recorder, recorder)
    recorder = Recorder()
    result = pipeline.execute(config, tmp_path / "parts", recorder, NoControl())
    assert [name for name, _ in recorder.stages if "diversity" in name] == ["diversity of real images"]
    assert result["references"] == pipeline.execute(config, tmp_path / "whole", NullReporter(), NoControl())["references"]


def test_run_with_a_result_computes_nothing_and_changes_no_file(tmp_path, whole, config, monkeypatch):
    """Its process was killed after the result was written. Not even the network is loaded, which may be gone by now."""
    folder = shutil.copytree(whole[0], tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(pipeline, "prepare", lambda *_: pytest.fail("prepared again"))
    assert pipeline.execute(config, folder, NullReporter(), NoControl()) == whole[1]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_result_that_cannot_be_read_is_named(tmp_path, config, text):
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"result\.json must be a file written by a run, but cannot be read \(.*: delete it"):
        pipeline.execute(config, tmp_path, NullReporter(), NoControl())


def test_snapshots_are_reported_and_kept(whole):
    _, _, recorder = whole
    kept = {(method, frame.step) for method, frame, keep in recorder.pictures if keep}
    assert kept == {(method, step) for method in ("mi-fgsm", "adam") for step in (1, 2, 3)}  # the first, and snapshots after 2 and 3
    saved = load_image_set(whole[0] / "images" / "adam").images
    shown = {frame.step: torch.from_numpy(frame.images) for method, frame, _ in recorder.pictures if method == "adam"}
    assert torch.equal(torch.cat([shown[2], shown[3]]), saved)


def test_running_statistics_are_those_of_the_network(whole, embedded):
    layers = [module for module in embedded.network.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = whole[2].statistics
    assert statistics.channels == [layer.num_features for layer in layers]
    assert statistics.means.tolist() == [value for layer in layers for value in layer.running_mean.tolist()]
    assert statistics.variances.tolist() == [value for layer in layers for value in layer.running_var.tolist()]


def test_same_config_gives_the_same_bits(tmp_path, config, whole):
    folder, result, _ = whole
    again = pipeline.execute(replace(config, bits=(3,)).with_knobs({"encoder": ""}), tmp_path, NullReporter(), NoControl())
    for method in ("mi-fgsm", "adam"):
        for name in (f"images/{method}/images.safetensors", f"quantized/{method}/W3A3/quantized.safetensors"):
            # tensors, because the header may have another order
            assert_same_tensors(folder / name, tmp_path / name)
        for key in ("calibrated", "quantized"):
            assert again["methods"][method]["accuracy"]["3"][key] == result["methods"][method]["accuracy"]["3"][key]


def assert_same_tensors(one, other):
    from safetensors.torch import load_file

    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_generation_alone(tmp_path):
    recorder = Recorder()
    config = RunConfig(generation=GENERATION, bits=(), methods=("adam",), evaluation=EvaluationConfig(encoder=""))
    result = pipeline.execute(config, tmp_path, recorder, NoControl())
    assert result.keys() == {"methods", "seconds"}
    assert result["methods"].keys() == {"adam"}
    assert result["methods"]["adam"].keys() == {"generation"}
    assert {name for name, _ in recorder.stages} == {"generation"}
    assert not (tmp_path / "quantized").exists()


def test_images_from_a_run(tmp_path, whole, config):
    """The same images give the same network and are not generated again."""
    recorder = Recorder()
    images = whole[0] / "images"
    result = pipeline.execute(
        replace(config, images_from=str(images), bits=(3,)).with_knobs({"encoder": ""}), tmp_path, recorder, NoControl()
    )
    assert "generation" not in dict(recorder.stages)
    assert not (tmp_path / "images").exists()
    for method in ("mi-fgsm", "adam"):
        assert result["methods"][method]["accuracy"]["3"]["quantized"] == whole[1]["methods"][method]["accuracy"]["3"]["quantized"]
        assert result["methods"][method]["generation"] == whole[1]["methods"][method]["generation"]
        name = f"quantized/{method}/W3A3/quantized.safetensors"
        assert_same_tensors(whole[0] / name, tmp_path / name)


def test_images_from_a_run_for_one_method(tmp_path, whole, config):
    config = replace(config, images_from=str(whole[0] / "images"), bits=(), methods=("adam",)).with_knobs({"encoder": ""})
    assert pipeline.given_images(config) == {"adam": whole[0] / "images" / "adam"}
    assert pipeline.execute(config, tmp_path, NullReporter(), NoControl())["methods"].keys() == {"adam"}


def test_images_from_a_single_set(tmp_path, whole, config):
    config = replace(config, images_from=str(whole[0] / "images" / "adam"), bits=(8,)).with_knobs({"encoder": ""})
    result = pipeline.execute(config, tmp_path, NullReporter(), NoControl())
    assert result["methods"].keys() == {"given"}
    assert (tmp_path / "quantized" / "given" / "W8A8" / "quantized.safetensors").is_file()
    assert result["methods"]["given"]["accuracy"]["8"]["calibrated"] == whole[1]["methods"]["adam"]["accuracy"]["8"]["calibrated"]


def test_real_images_keep_their_classes(tmp_path, config, monkeypatch, data):
    """Folders named after classes of the network are these classes in any order: cat is 3 and dog is 5, not 0 and 1."""
    from pathlib import Path
    from shutil import copytree

    for name in ("cat", "dog"):
        copytree(Path(data) / name, tmp_path / "pets" / name)
    trained_on = []

    def quantize(given, *_rest):
        trained_on.append(given.images.labels.tolist())
        return {}

    monkeypatch.setattr(pipeline, "quantize", quantize)
    (tmp_path / "run").mkdir()
    pipeline.execute(
        replace(config, images_from=str(tmp_path / "pets"), bits=(8,)).with_knobs({"encoder": ""}),
        tmp_path / "run",
        NullReporter(),
        NoControl(),
    )
    assert trained_on == [[3, 3, 5, 5]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_stop_ends_a_generation_at_the_next_iteration(tmp_path, count):
    recorder = Recorder()
    with pytest.raises(RunStopped, match="enough"):
        pipeline.execute(
            RunConfig(generation=GENERATION, bits=(), evaluation=EvaluationConfig(encoder="")), tmp_path, recorder, StopsAt(count)
        )
    assert series_of(recorder, "generation") == [(method, step) for step in range(1, count + 1) for method in ("mi-fgsm", "adam")]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(("began", "ends"), [("torch", "C"), ("C", "torch")])
def test_resumed_run_on_a_machine_with_another_compiler(tmp_path, monkeypatch, began, ends):
    """Begun without a C compiler, a run ends with the same bits where there is one; the other way around, it says that it cannot."""
    if kernels.description() != "C":
        pytest.skip("needs a C compiler")
    config = RunConfig(generation=GENERATION, methods=("adam",), bits=(), evaluation=EvaluationConfig(encoder=""))
    library = kernels._library()

    def machine(kind):
        monkeypatch.setattr(kernels, "_library", lambda: library if kind == "C" else "no C compiler")

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    machine(began)
    pipeline.execute(config, tmp_path / "whole", NullReporter(), NoControl())
    stopped = StopsAt(2)
    with pytest.raises(RunStopped):
        pipeline.execute(config, tmp_path / "parts", Recorder(), stopped)
    machine(ends)
    recorder = Recorder()
    pipeline.execute(config, tmp_path / "parts", recorder, NoControl())
    images = [load_image_set(tmp_path / name / "images" / "adam") for name in ("whole", "parts")]
    assert [one.manifest["summary"]["kernels"] for one in images][1].startswith("torch")
    if ends == "C":
        assert torch.equal(images[0].images, images[1].images)
        assert "warning/kernels" not in recorder.results
    else:
        assert "the images by Adam will differ slightly" in recorder.results["warning/kernels"]


def test_stop_ends_a_training_at_the_next_step(tmp_path, whole, config):
    class Training(Recorder, NoControl):
        def pause_point(self):
            if series_of(self, "training"):
                raise RunStopped("enough")

    recorder = Training()
    config = replace(config, images_from=str(whole[0] / "images"), bits=(3,)).with_knobs({"encoder": ""})
    with pytest.raises(RunStopped):
        pipeline.execute(config, tmp_path, recorder, recorder)
    assert series_of(recorder, "training") == [("mi-fgsm W3A3", 1)]
    assert not (tmp_path / "result.json").exists()


def wrong_size(folder):
    save_image_set(ImageSet(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4)), folder)


def wrong_label(folder):
    save_image_set(ImageSet(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) + 7), folder)


@pytest.mark.parametrize(("write", "message"), [(wrong_size, "32 x 32.*16 x 16"), (wrong_label, "0 to 9.*got 10")])
def test_mismatched_images_are_refused_first(tmp_path, config, write, message):
    given, out, recorder = tmp_path / "given", tmp_path / "out", Recorder()
    given.mkdir()
    out.mkdir()
    write(given)
    with pytest.raises(DataError, match=message):
        pipeline.execute(replace(config, images_from=str(given)), out, recorder, NoControl())
    assert recorder.records == []
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c.with_knobs({"encoder": "nonsense"}), UnknownNameError),
        (lambda c: c.with_knobs({"data": "/nowhere"}), DataError),
        (lambda c: replace(c, images_from="/nowhere"), DataError),
        (lambda c: c.with_knobs({"model": "x"}), UnknownNameError),
    ],
    ids=["encoder", "data", "images", "model"],
)
def test_bad_input_is_refused_before_the_first_image(tmp_path, config, change, error):
    recorder = Recorder()
    with pytest.raises(error, match="must be"):
        pipeline.execute(change(config), tmp_path, recorder, NoControl())
    assert recorder.records == []
    assert list(tmp_path.iterdir()) == []


def test_threads_are_set_and_restored(tmp_path):
    seen, before = [], torch.get_num_threads()

    class Watcher(NullReporter):
        def record(self, *_):
            seen.append(torch.get_num_threads())

    config = RunConfig(generation=GENERATION, bits=()).with_knobs({"threads": before + 1, "encoder": ""})
    pipeline.execute(config, tmp_path, Watcher(), NoControl())
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
