"""`quantize` and `diversity`: output, files, and refusals."""

import json
import re
import shutil

import numpy as np
import pytest
from command_line import QUANTIZE, QUANTIZE_KEYS, call, last_json, refused, tree

from core.data.image_sets import load_image_set
from core.export.image_sets import export_images
from core.models.registry import CIFAR10_CLASSES


def test_bit_widths_of_single_layers(generated, pictures, capsys):
    arguments = ["--images", generated, *QUANTIZE, "--steps", 0, "--data", pictures, "--json"]
    assert call("quantize", *arguments, "--layer-bits", "output=8", "features.init_block.conv=2") == 0
    result = last_json(capsys)
    assert result["layer_bits"] == {"features.init_block.conv": 2, "output": 8}
    assert result["weight_size"] == 4 * 270_896 - 2 * 432 + 4 * 640


def test_bits_of_layers_within_a_size(generated, pictures, capsys):
    arguments = ["--images", generated, *QUANTIZE, "--steps", 0, "--data", pictures]
    assert call("quantize", *arguments, "--size", "140kB", "--json") == 0
    result = last_json(capsys)
    assert len(result["layer_weight_bits"]) == 22
    assert 139_000 < result["bytes"] <= 140_000
    assert call("quantize", *arguments, "--size", "0.08MB") == 2
    assert re.search(r"size must be at least 8\d\.\d+ kB, that of this network at 2 bits, got 80 kB$", capsys.readouterr().err.strip())
    assert call("quantize", *arguments, "--size", "small") == 2
    assert "argument --size: must be a size, such as 150kB or 1.5MB, got 'small'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["output"], "must be NAME=BITS, such as output=8, got 'output'"),
        (["=8"], "must be NAME=BITS, such as output=8, got '=8'"),
        (["output=x"], "must be a whole number, such as 4, got 'x'"),
        (["output=9"], "layer_bits must be one of 2, 3, 4, 5, 6, 7, 8 for 'output', got 9"),
        (["output=8", "output=7"], "layer_bits must name each layer once, got 'output' twice"),
        (["nowhere=8"], "unknown layer in layer_bits 'nowhere': must be one of features.init_block.conv, "),
    ],
)
def test_bad_layer_bits_are_refused(generated, pictures, given, message, capsys):
    assert call("quantize", "--images", generated, *QUANTIZE, "--data", pictures, "--layer-bits", *given) == 2
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line


def test_quantize(generated, pictures, tmp_path, capsys):
    out = tmp_path / "network"
    code = call(
        "quantize", "--images", generated, *QUANTIZE, "--weight-bits", 3, "--activation-bits", 5, "--data", pictures, "--json", "--out", out
    )
    assert code == 0
    result = last_json(capsys)
    assert result.keys() >= QUANTIZE_KEYS
    assert (result["weight_bits"], result["activation_bits"], result["steps"]) == (3, 5, 2)
    assert "20 images" in result["evaluated_on"]
    for key in ("full_precision", "calibrated", "quantized"):
        assert result[key] in [5.0 * right for right in range(21)]
    assert tree(tmp_path) == [
        "network",
        *(f"network/{name}" for name in ("disagreements.safetensors", "quantize.json", "quantized.safetensors")),
    ]
    assert {**json.loads((out / "quantize.json").read_text(encoding="utf-8")), "run": result["run"]} == result


def test_images_made_from_another_network_are_refused(generated, pictures, tmp_path, capsys):
    copy = tmp_path / "images"
    shutil.copytree(generated, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    network = {"name": "resnet56", "weights_sha256": "0" * 64}
    (copy / "manifest.json").write_text(json.dumps({**manifest, "network": network}), encoding="utf-8")
    assert call("quantize", "--images", copy, *QUANTIZE, "--data", pictures) == 2
    assert (
        "images must be made from the network to quantize, 'resnet20_cifar10', got images made from 'resnet56'" in capsys.readouterr().err
    )


def test_quantize_with_real_images(pictures, tmp_path, capsys):
    assert call("quantize", "--images", pictures, *QUANTIZE, "--steps", 0, "--data", pictures, "--json", "--out", tmp_path / "n") == 0
    result = last_json(capsys)
    assert result["quantized"] == result["calibrated"]


def test_quantize_with_exported_images(generated, pictures, tmp_path, embedded):
    """Every format gives the same network, byte for byte."""
    given = {"generated": generated}
    for format, name in (("png", "png"), ("safetensors", "safetensors"), ("npz", "set.npz")):
        given[format] = tmp_path / name
        export_images(load_image_set(generated), embedded, format, given[format])
    networks = set()
    for name, path in given.items():
        out = tmp_path / "out" / name
        assert call("quantize", "--images", path, *QUANTIZE, "--data", pictures, "--out", out) == 0
        networks.add((out / "quantized.safetensors").read_bytes())
    assert len(networks) == 1


def test_quantize_refuses_other_numpy_archives(pictures, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    line = refused(capsys, tmp_path / "out", "quantize", "--images", tmp_path / "other.npz", "--data", pictures, *QUANTIZE)
    assert "must be a .npz file written by `export`" in line


def test_diversity_of_images_without_labels(pictures, tmp_path, capsys):
    for number, picture in enumerate(sorted(pictures.rglob("*.png"))[:4]):
        (tmp_path / f"{number}.png").write_bytes(picture.read_bytes())
    (tmp_path / "meta").mkdir()
    assert call("diversity", tmp_path, "--threads", 1, "--device", "cpu", "--json") == 0
    (one,) = last_json(capsys)["sets"]
    assert (one["images"], one["within_class_similarity"]) == (4, None)
    assert call("quantize", "--images", tmp_path, *QUANTIZE, "--data", pictures) == 2
    assert "labels are needed here" in capsys.readouterr().err


def test_evaluation_images_without_labels(generated, pictures, tmp_path, capsys):
    for number, picture in enumerate(sorted(pictures.rglob("*.png"))[:5]):
        (tmp_path / f"{number}.png").write_bytes(picture.read_bytes())
    assert call("quantize", "--images", generated, *QUANTIZE, "--steps", 0, "--data", tmp_path) == 0
    captured = capsys.readouterr()
    said = f"warning: {tmp_path.name!r} has no folder for each class of resnet20_cifar10: measured without labels."
    assert captured.err.count(said) == 1
    real = captured.out.partition("\nreal\n")[2].split()
    assert real[:2] == ["calibrated", "agreement"]
    assert " ".join(real).partition("measured_on ")[2].startswith(f"5 images of {tmp_path}")
    assert "None" not in captured.out


def test_damaged_images_are_skipped_and_said_once(pictures, tmp_path, capsys):
    """One cannot be opened, and one breaks off."""
    data = tmp_path / "data" / "valid"
    for folder in pictures.iterdir():
        (data / folder.name).mkdir(parents=True)
        for number in range(10):
            for picture in folder.glob("*.png"):
                (data / folder.name / f"{number}-{picture.name}").write_bytes(picture.read_bytes())
    one, other = sorted(data.rglob("*.png"))[3:5]
    one.write_bytes(b"")
    other.write_bytes(other.read_bytes()[:200])
    arguments = ["quantize", "--images", pictures, *QUANTIZE, "--data", tmp_path / "data"]
    assert call(*arguments, "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["evaluated_on"] == f"198 images of {tmp_path / 'data'}"
    said = f"warning: 2 of 200 images of {data} cannot be read and are skipped: {one.name!r}, {other.name!r}."
    assert captured.err.count(said) == 1
    assert captured.err.count(f"Images of {data} are used, the only folder of {tmp_path / 'data'} with images.") == 1
    assert call(*arguments, "--strict") == 2
    assert f"{one} must be an image" in capsys.readouterr().err
    one.unlink()
    other.unlink()
    assert call(*arguments, "--json") == 0
    without = last_json(capsys)
    assert {key: without[key] for key in QUANTIZE_KEYS - {"seconds"}} == {key: result[key] for key in QUANTIZE_KEYS - {"seconds"}}


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--weight-bits", "1"], "1", "2, 3, 4, 5, 6, 7, 8"),
        (["--weight-bits", "9"], "9", "2, 3, 4, 5, 6, 7, 8"),
        (["--activation-bits", "1"], "1", "2, 3, 4, 5, 6, 7, 8"),
        (["--activation-bits", "9"], "9", "2, 3, 4, 5, 6, 7, 8"),
        (["--weight-bits", "four"], "four", "whole number"),
        (["--range", "max"], "max", "minmax, mse, lsq"),
        (["--images", "/nowhere"], "/nowhere", "folder written by `generate`"),
        (["--data", "/nowhere"], "/nowhere", "one folder of images per class"),
        (["--data", "imagenet"], "imagenet", "embedded"),
        (["--model", "resnet2000"], "resnet2000", "resnet20_cifar10"),
        (["--steps", "-1"], "-1", "0 to"),
        (["--training-optimizer", "lamb"], "lamb", "adam, sgd"),
    ],
)
def test_quantize_refuses(generated, pictures, tmp_path, capsys, arguments, value, allowed):
    given = ["--images", generated, "--data", pictures, *QUANTIZE, *arguments]
    line = refused(capsys, tmp_path / "deeper" / "network", "quantize", *given)
    assert value in line
    assert allowed in line


def test_quantize_refuses_a_network_without_batch_norm(generated, pictures, tmp_path, capsys, without_batch_norm):
    given = ["--images", generated, "--data", pictures, *QUANTIZE, "--model", without_batch_norm]
    assert "must have at least one BatchNorm layer" in refused(capsys, tmp_path / "network", "quantize", *given)


@pytest.mark.parametrize("flag", ["--images", "--data"])
def test_quantize_refuses_an_unreadable_image(generated, pictures, tmp_path, capsys, flag):
    bad = tmp_path / "bad"
    for name in CIFAR10_CLASSES:
        (bad / name).mkdir(parents=True)
        (bad / name / "0.png").write_bytes(b"no image at all")
    given = {"--images": generated, "--data": pictures, flag: bad}
    (tmp_path / "parent").mkdir()
    capsys.readouterr()
    code = call("quantize", *(word for pair in given.items() for word in pair), *QUANTIZE, "--out", tmp_path / "parent" / "network")
    assert code == 2
    assert "0.png" in capsys.readouterr().err.splitlines()[-1]
    assert tree(tmp_path / "parent") == []


def test_diversity(generated, pictures, capsys):
    assert call("diversity", generated, pictures, "--threads", 1, "--device", "cpu", "--json") == 0
    result = last_json(capsys)
    assert result.keys() >= {"encoder", "sets"}
    assert result["encoder"] == "embedded"
    assert [one["path"] for one in result["sets"]] == [str(generated), str(pictures)]
    assert [one["images"] for one in result["sets"]] == [8, 20]
    for one in result["sets"]:
        assert one.keys() >= {"path", "images", "mean_similarity", "within_class_similarity"}
        assert -1 <= one["mean_similarity"] <= one["within_class_similarity"] <= 1


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["/nowhere"], "/nowhere", "folder written by `generate`"),
        (["--encoder", "nonsense"], "nonsense", "embedded"),
        (["--encoder", "ViT-B-32:nonsense"], "ViT-B-32:nonsense", "ViT-B-32:openai"),
        (["--device", "tpu"], "tpu", "auto, cpu"),
        (["--threads", "-1"], "-1", "0 "),
        (["--threads", "two"], "two", "whole number"),
    ],
)
def test_diversity_refuses(generated, capsys, arguments, value, allowed):
    capsys.readouterr()
    assert call("diversity", generated, *arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert value in line
    assert allowed in line


def test_diversity_of_one_image_is_refused(pictures, tmp_path, capsys):
    (tmp_path / "cat").mkdir()
    picture = next((pictures / "cat").iterdir())
    (tmp_path / "cat" / "0.png").write_bytes(picture.read_bytes())
    capsys.readouterr()
    assert call("diversity", tmp_path, "--device", "cpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must have at least 2 images" in line
