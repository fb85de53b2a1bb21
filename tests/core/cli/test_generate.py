"""`generate`: output, files, weights files, and refusals."""

import json
import os

import pytest
from command_line import GENERATE_KEYS, QUANTIZE, TINY, call, last_json, refused, tree

from core.data.image_sets import load_image_set
from core.errors import ModelError
from core.models.full_precision import find_model, load_model
from core.runs.store import RunStore


def test_generate(generated, tmp_path, capsys):
    out = tmp_path / "deeper" / "set"
    assert call("generate", *TINY, "--method", "adam", "--lr", "0.2", "--json", "--out", out) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result.keys() >= GENERATE_KEYS
    assert (result["images"], result["image_iterations"], result["layers"]) == (8, 12, 21)
    assert 0 <= result["teacher_agreement"] <= 100
    assert result["bns_loss_first"] > 0
    assert "generation" in captured.err  # the progress bar
    assert len(load_image_set(out)) == 8
    assert tree(tmp_path) == ["deeper", "deeper/set", "deeper/set/images.safetensors", "deeper/set/manifest.json"]
    assert load_image_set(out).manifest["config"]["lr"] == 0.2


@pytest.mark.parametrize(
    ("method", "flag", "knob"),
    [("zeroq", "--zeroq-lr", "zeroq_lr"), ("dsg", "--dsg-sci", "dsg_sci"), ("intraq", "--intraq-crop", "intraq_crop")],
)
def test_generate_with_a_loss_of_its_own(tmp_path, capsys, method, flag, knob):
    out = tmp_path / "set"
    assert call("generate", *TINY, "--method", method, flag, "0.25", "--json", "--out", out) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.keys() >= GENERATE_KEYS
    assert result["bns_loss_first"] > 0
    manifest = load_image_set(out).manifest
    assert (manifest["method"], manifest["config"][knob]) == (method, 0.25)


def test_number_of_images_is_rounded_up_and_said(tmp_path, capsys):
    rounded = ["--images", "7", "--snapshots", "4", "--iterations", "5"]
    assert call("generate", *TINY, *rounded, "--json", "--out", tmp_path / "set") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["images"] == 8
    assert captured.err.count("warning: 8 images are saved instead of 7: two or more noise images, 4 times each.\n") == 1
    assert len(load_image_set(tmp_path / "set")) == 8
    assert call("generate", *TINY, "--images", "1", "--method", "adam", "--json", "--out", tmp_path / "one") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["images"] == 4
    assert "4 images are saved instead of 1" in captured.err
    assert len(load_image_set(tmp_path / "one")) == 4


def test_generate_twice_gives_the_same_bits(generated, tmp_path):
    assert call("generate", *TINY, "--out", tmp_path / "again") == 0
    assert call("generate", *TINY, "--seed", "1", "--out", tmp_path / "other") == 0
    sets = [load_image_set(path).images for path in (generated, tmp_path / "again", tmp_path / "other")]
    assert bool((sets[0] == sets[1]).all())
    assert not bool((sets[0] == sets[2]).all())


def test_generate_prints_its_result(tmp_path, capsys):
    assert call("generate", *TINY, "--out", tmp_path / "set") == 0
    out = capsys.readouterr().out
    for key in GENERATE_KEYS:
        assert key in out


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--model", "resnet2000"], "resnet2000", "resnet20_cifar10"),
        (["--model", "/nowhere/a.safetensors"], "/nowhere/a.safetensors", "checkpoint"),
        (["--method", "sgd"], "sgd", "mi-fgsm, adam"),
        (["--images", "ten"], "ten", "whole number"),
        (["--images", "10.5"], "10.5", "whole number"),
        (["--epsilon", "much"], "much", "a number, such as 0.1"),
        (["--epsilon", "nan"], "nan", "0 to 2"),
        (["--epsilon", "-1"], "-1", "0 to 2"),
        (["--mu", "inf"], "inf", "0 to 2"),
        (["--images", "0"], "0", "1 to"),
        (["--batch-size", "1"], "1", "2 to"),
        (["--threads", "-1"], "-1", "0 to"),
        (["--device", "tpu"], "tpu", "auto, cpu"),
        (["--iterations", "0"], "0", "1 to"),
    ],
)
def test_generate_refuses(tmp_path, capsys, arguments, value, allowed):
    line = refused(capsys, tmp_path / "deeper" / "set", "generate", *TINY, *arguments)
    assert value in line
    assert allowed in line


def test_generate_refuses_a_network_without_batch_norm(tmp_path, capsys, without_batch_norm):
    line = refused(capsys, tmp_path / "deeper" / "set", "generate", *TINY, "--model", without_batch_norm)
    assert "plain.safetensors" in line
    assert "must have at least one BatchNorm layer" in line
    assert "must" in line


def test_existing_folder_is_refused_and_kept(tmp_path, capsys, generated, pictures, tiny_preset):
    out = tmp_path / "full"
    out.mkdir()
    (out / "mine").write_text("1", encoding="utf-8")
    commands = [
        ["generate", *TINY],
        ["quantize", *QUANTIZE, "--images", generated, "--data", pictures],
        ["run"],
        ["pretrain-encoder", "--data", pictures, "--batch-size", "4"],
    ]
    for command in commands:
        line = refused(capsys, out, *command)
        assert "output path must be new or an empty folder" in line
    assert (out / "mine").read_text(encoding="utf-8") == "1"


def test_output_path_below_a_file_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("1", encoding="utf-8")
    monkeypatch.setattr("core.stages.generation.GenerationLoop", lambda *_: pytest.fail("computed for nothing"))
    capsys.readouterr()
    assert call("generate", *TINY, "--out", tmp_path / "file" / "set") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_interruption_before_the_first_stage_leaves_no_files(tmp_path, capsys, monkeypatch, runs):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("core.pipeline.prepare", interrupted)
    assert call("generate", *TINY, "--out", tmp_path / "set") == 130
    assert capsys.readouterr().err.splitlines() == ["python -m core generate: interrupted, nothing was written"]
    assert tree(tmp_path) == []
    assert not runs.exists()


def test_without_out_the_images_are_in_the_folder_of_the_run(capsys, runs):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    assert (runs / run_id / "images" / "mi-fgsm" / "manifest.json").is_file()


def test_generate_and_quantize_with_a_weights_file(tmp_path, capsys, of_others, pictures):
    given = ["--model", "pytorchcv:resnet20_cifar10", "--weights", of_others, "--mean", "0.4914", "0.4822", "0.4465", "--json"]
    runs = ["--runs", tmp_path / "runs"]
    capsys.readouterr()
    assert call("generate", *TINY, *given, *runs, "--out", tmp_path / "set") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (network,) = (tmp_path / "runs" / "uploads" / "networks").glob("*.safetensors")
    store = RunStore(tmp_path / "runs")
    assert store.run(result["run"]).config.model == str(network)
    store.close()
    assert load_model(str(network), "cpu").spec.mean == (0.4914, 0.4822, 0.4465)
    assert call("quantize", *QUANTIZE, "--images", tmp_path / "set", "--data", pictures, *given, *runs, "--out", tmp_path / "w4a4") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["full_precision"] > 70
    assert len(list(network.parent.iterdir())) == 2


def test_weights_alone_are_found_and_the_note_names_the_architecture(tmp_path, capsys, of_others):
    assert call("generate", *TINY, "--weights", of_others, "--runs", tmp_path / "runs", "--out", tmp_path / "set", "--json") == 0
    said = capsys.readouterr().err
    assert "best.pth to be weights of pytorchcv:resnet20_cifar10 with 10 classes" in said
    assert "would fit as well; to choose one, name it with --model ZOO:NAME" in said
    (network,) = (tmp_path / "runs" / "uploads" / "networks").glob("*.safetensors")
    assert find_model(str(network))[1].architecture == "pytorchcv:resnet20_cifar10"


@pytest.mark.parametrize("command", ["generate", "quantize", "run"])
def test_weights_alone_ask_for_the_architecture_and_a_model_given_wins(tmp_path, monkeypatch, command):
    asked = []

    def imported(file, architecture, **_):
        asked.append(architecture)
        raise ModelError("enough")

    monkeypatch.setattr("core.models.user_files.import_network", imported)
    images = ["--images", tmp_path] if command == "quantize" else []
    for model in ([], ["--model", "resnet20_cifar10"], ["--model", "timm:resnet18"]):
        assert call(command, *images, "--weights", tmp_path / "a.pth", *model) == 2
    assert asked == ["", "resnet20_cifar10", "timm:resnet18"]


def test_lines_to_paste_follow_the_refusal(tmp_path, capsys):
    (tmp_path / "mine.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    assert call("generate", *TINY, "--weights", tmp_path / "mine.onnx") == 2
    sentence, *lines = capsys.readouterr().err.splitlines()
    assert "got an ONNX file, in which the BatchNorm layers are usually folded into the convolutions" in sentence
    assert [line[:4] for line in lines] == ["    "] * 3
    assert lines[-1].strip().startswith('torch.export.save(program, "network.pt2")')


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_at_once(tmp_path, capsys, of_others):
    os.mkfifo(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "pipe.npz")
    given = ["--model", "pytorchcv:resnet20_cifar10", "--weights"]
    for arguments, kind in (
        ([*given, tmp_path / "pipe.pt"], "a named pipe"),
        ([*given, of_others, "--class-names", tmp_path / "pipe.pt"], "a named pipe"),
        ([*given, of_others, "--class-names", "/dev/zero"], "a device"),
        ([*given, "/dev/zero"], "a device"),
        ([*given, tmp_path], "a folder"),
    ):
        line = refused(capsys, tmp_path / "deeper" / "set", "generate", *TINY, *map(str, arguments))
        assert f"cannot be read (it is {kind}, not a regular file)" in line
    line = refused(capsys, tmp_path / "deeper" / "set", "quantize", *QUANTIZE, "--images", tmp_path / "pipe.npz")
    assert "got another file" in line


def test_class_names_are_read_from_a_file(tmp_path, in_this_process, of_others):
    names = [f"thing {index}, naïve" for index in range(10)]
    (tmp_path / "names.txt").write_text("\ufeff" + "\r\n\r\n".join(f" {name} " for name in names) + "\n", encoding="utf-8")
    given = ["--model", "pytorchcv:resnet20_cifar10", "--weights", of_others, "--class-names", tmp_path / "names.txt"]
    assert call("generate", *TINY, *given, "--runs", tmp_path / "runs", "--out", tmp_path / "set") == 0
    (network,) = (tmp_path / "runs" / "uploads" / "networks").glob("*.safetensors")
    assert list(load_model(str(network), "cpu").spec.classes) == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (it does not exist"),
        (b"", "is empty: must be a UTF-8 text file with one class name per line"),
        (b"\n \r\n", "is empty"),
        (b"caf\xe9", "cannot be read ('utf-8' codec"),
        (b"a\nb\nc", "output.bias must be (3,), got (10,)"),
        (b"x" * 10_000_001, "it has more than 10,000,000 bytes"),
    ],
)
def test_bad_class_names_are_refused(tmp_path, capsys, in_this_process, of_others, content, words):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    given = ["--model", "pytorchcv:resnet20_cifar10", "--weights", of_others, "--class-names", tmp_path / "names.txt"]
    message = refused(capsys, tmp_path / "deeper" / "set", "generate", *TINY, *map(str, given))
    assert words in message
    assert "must" in message or "cannot be read" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--class-names", "names.txt"], "class_names must come with --weights FILE, got 'names.txt' alone"),
        (["--image-size", "32"], "image_size must come with --weights FILE, got 32 alone"),
        (["--image-size", "32", "48"], "image_size must come with --weights FILE, got (32, 48) alone"),
        (["--weights", "OTHERS", "--image-size", "32", "48", "3"], "or two of them, height and width, got [32, 48, 3]"),
        (["--weights", "OTHERS", "--mean", "0.5"], "must be 3 numbers, one for each channel, got 1"),
        (["--mean", "0.5", "0.5", "0.5"], "mean must come with --weights FILE, got [0.5, 0.5, 0.5] alone"),
        (["--weights", "none.pt"], "none.pt cannot be read (it does not exist)"),
        (["--weights", "OTHERS", "--model", "timm:none"], "unknown architecture 'none'"),
        (["--weights", "OTHERS", "--classes", "7"], "output.bias must be (7,), got (10,)"),
        (["--weights", "OTHERS", "--std", "0", "1", "1"], "as many finite numbers as mean, of at least 0.000001, got [0.0, 1.0, 1.0]"),
        (["--weights", "OTHERS", "--image-size", "x"], "must be a whole number, such as 4, got 'x'"),
        (["--model", "timm:none"], "unknown architecture 'none'"),
        (["--model", "torchvision:"], "unknown architecture ''"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "run"])
def test_bad_weights_options_are_refused(tmp_path, capsys, in_this_process, of_others, tiny_preset, command, arguments, words):
    arguments = [str(of_others) if argument == "OTHERS" else argument for argument in arguments]
    assert words in refused(capsys, tmp_path / "deeper" / "set", command, *(TINY if command == "generate" else ()), *arguments)


def test_a_set_in_shards_is_quantized_as_the_set_in_one_file(generated, tmp_path, capsys):
    assert call("generate", *TINY, "--shard-size", "3", "--out", tmp_path / "shards") == 0
    assert tree(tmp_path / "shards") == ["images-000000.tar", "images-000001.tar", "images-000002.tar", "manifest.json"]
    for name, images in (("one", generated), ("other", tmp_path / "shards")):
        assert call("quantize", *QUANTIZE, "--images", images, "--data", "none", "--out", tmp_path / name) == 0
    files = [tmp_path / name / "quantized.safetensors" for name in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    capsys.readouterr()
    similarities = []
    for images in (generated, tmp_path / "shards"):
        assert call("diversity", images, "--json", "--device", "cpu", "--threads", "1") == 0
        similarities.append(last_json(capsys)["sets"][0]["mean_similarity"])
    assert similarities[0] == similarities[1]


def test_too_many_shards_are_refused(tmp_path, capsys):
    line = refused(capsys, tmp_path / "set", "generate", "--images", "1000000", "--shard-size", "100")
    assert "shard_size must be 0 or at least 200 for 1,000,000 images, got 100" in line
