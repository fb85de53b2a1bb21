"""`pretrain`: output, files, and refusals."""

import os

import pytest
from command_line import TINY, call, last_json, refused

from core.data.image_sets import load_image_set
from core.models.full_precision import load_model
from core.models.registry import CIFAR10_CLASSES


def test_generate_from_a_pretrained_network(pictures, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    code = call("pretrain", "--data", pictures, "--epochs", 1, "--batch-size", 4, "--threads", 1, "--device", "cpu", "--json", "--out", out)
    assert code == 0
    result = last_json(capsys)
    assert result["out"] == str(out)
    assert result["classes"] == list(CIFAR10_CLASSES)
    assert str(pictures) in result["trained_on"]
    assert os.listdir(tmp_path) == ["mine.safetensors"]
    assert call("generate", *TINY, "--model", out, "--json", "--out", tmp_path / "set") == 0
    assert last_json(capsys)["images"] == 8
    assert load_image_set(tmp_path / "set").manifest["model"] == "mine"


def test_grey_images_that_are_not_square(pictures, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    flags = ["--architecture", "timm:test_byobnet", "--channels", 1, "--image-size", 32, 48, "--epochs", 1, "--batch-size", 4]
    assert call("pretrain", "--data", pictures, *flags, "--threads", 1, "--device", "cpu", "--out", out) == 0
    assert load_model(str(out), "cpu").spec.shape == (1, 32, 48)
    assert call("generate", *TINY, "--model", out, "--out", tmp_path / "set") == 0
    assert load_image_set(tmp_path / "set").images.shape == (8, 1, 32, 48)


def test_pretraining_for_two_classes_succeeds_or_is_refused_in_one_line(pictures, tmp_path, capsys):
    two = tmp_path / "two"
    two.mkdir()
    for name in ("cat", "dog"):
        (two / name).symlink_to(pictures / name)
    out = tmp_path / "mine.safetensors"
    code = call("pretrain", "--data", two, "--epochs", 1, "--batch-size", 4, "--threads", 1, "--device", "cpu", "--out", out)
    if code == 0:
        assert load_model(str(out), "cpu").spec.classes == ("cat", "dog")
    else:
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2
        assert "2" in line
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--architecture", "nonsense"], "nonsense", "pytorchcv"),
        (["--architecture", "squeezenet_v1_0"], "squeezenet_v1_0", "at least one"),
        (["--data", "/nowhere"], "/nowhere", "one folder of images per class"),
        (["--batch-size", "21"], "got 20", "one batch of 21"),
        (["--epochs", "0"], "0", "1 to"),
        (["--image-size", "32", "7"], "got 7", "8 to 1,024"),
        (["--image-size", "32", "32", "32"], "got [32, 32, 32]", "8 to 1,024"),
        (["--channels", "5"], "got 5", "1 to 4"),
        (["--lr", "fast"], "fast", "a number, such as 0.1"),
        (["--device", "tpu"], "tpu", "auto, cpu"),
    ],
)
def test_pretrain_refuses(pictures, tmp_path, capsys, arguments, value, allowed):
    given = ["--data", pictures, "--epochs", 1, "--batch-size", 4, "--threads", 1, *arguments]
    line = refused(capsys, tmp_path / "deeper" / "mine.safetensors", "pretrain", *given)
    assert value in line
    assert allowed in line


def test_pretrain_refuses_existing_files_and_other_suffixes(pictures, tmp_path, capsys):
    there = tmp_path / "there.safetensors"
    there.write_text("mine", encoding="utf-8")
    given = ["--data", pictures, "--epochs", 1, "--batch-size", 4, "--threads", 1]
    assert "already exists" in refused(capsys, there, "pretrain", *given)
    assert there.read_text(encoding="utf-8") == "mine"
    assert ".safetensors" in refused(capsys, tmp_path / "mine.pt", "pretrain", *given)
