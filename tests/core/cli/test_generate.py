"""`python -m core`: what each command prints, and every way to refuse: one line on stderr, exit code 2, nothing half written."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import core.config
from core.__main__ import main
from core.config import GenerationConfig, RunConfig, TrainingConfig
from core.data.image_sets import load_image_set
from core.data.labelled import embedded_images
from core.errors import quoted
from core.export.image_sets import export_images
from core.generation.loop import Synthesis
from core.models.full_precision import build_architecture, load_model, save_checkpoint
from core.models.registry import CIFAR10_CLASSES, MODELS
from core.runs.store import RUNS_VARIABLE, RunStore

ROOT = Path(__file__).parents[2]
TINY = ["--images", "8", "--iterations", "3", "--snapshots", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu"]
QUANTIZE = ["--steps", "2", "--batch-size", "4", "--calibration-images", "8", "--range", "minmax", "--threads", "1", "--device", "cpu"]
QUANTIZE_KEYS = {"full_precision", "calibrated", "quantized", "standard_error", "evaluated_on", "seconds", "weight_bits", "activation_bits"}
GENERATE_KEYS = {"images", "image_iterations", "seconds", "bns_loss_first", "bns_loss_last", "teacher_agreement", "layers"}


@pytest.fixture(autouse=True)
def runs(tmp_path_factory, monkeypatch):
    """Where the runs of each test lie, away from its own folder."""
    folder = tmp_path_factory.mktemp("store") / "runs"
    monkeypatch.setenv(RUNS_VARIABLE, str(folder))
    return folder


def call(*arguments) -> int:
    """The exit code, whether it was returned or raised."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return code


def last_json(capsys) -> dict:
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1])


def tree(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capsys, out, *arguments) -> str:
    """Calls, and returns the only line on stderr after checking that nothing was left beside or at `out`."""
    parent = next(path for path in out.parents if path.exists())
    before = tree(parent)
    capsys.readouterr()
    code = call(*arguments, "--out", out)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("python -m core")
    assert captured.out == ""
    assert tree(parent) == before
    return lines[0]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two images of each CIFAR-10 class, as a folder."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / name).mkdir()
        for index in [i for i, other in enumerate(labels) if other == label][:2]:
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "set"
    assert call("generate", *TINY, "--out", folder, "--runs", folder.parent / "runs") == 0
    return folder


@pytest.fixture(scope="session")
def without_batch_norm(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "plain.safetensors"
    spec = replace(MODELS["resnet20_cifar10"][1], name="plain", architecture="squeezenet_v1_0")
    save_checkpoint(build_architecture("squeezenet_v1_0", 10), spec, path)
    return path


@pytest.fixture
def tiny_preset(monkeypatch, pictures):
    generation = GenerationConfig(images=8, iterations=3, snapshots=2, batch_size=4)
    quantization = TrainingConfig(range="minmax", steps=1, training_batch_size=4, calibration_images=8)
    monkeypatch.setattr(core.config, "PRESETS", {"quick": RunConfig(generation=generation, training=quantization, bits=(3, 4))})


# a checkpoint of one's own


@pytest.fixture(scope="session")
def of_others(tmp_path_factory):
    """The embedded network as another program would have saved it."""
    path = tmp_path_factory.mktemp("others") / "best.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in load_file(MODELS["resnet20_cifar10"][0]).items()}}, path)
    return path


def test_generate_and_quantize_with_a_checkpoint_of_others(tmp_path, capsys, of_others, pictures):
    given = ["--model", "pytorchcv:resnet20_cifar10", "--checkpoint", of_others, "--mean", "0.4914", "0.4822", "0.4465", "--json"]
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


def test_class_names_of_a_checkpoint_come_from_a_file(tmp_path, of_others):
    names = [f"thing {index}, naïve" for index in range(10)]
    (tmp_path / "names.txt").write_text("\ufeff" + "\r\n\r\n".join(f" {name} " for name in names) + "\n", encoding="utf-8")
    given = ["--model", "pytorchcv:resnet20_cifar10", "--checkpoint", of_others, "--class-names", tmp_path / "names.txt"]
    assert call("generate", *TINY, *given, "--runs", tmp_path / "runs", "--out", tmp_path / "set") == 0
    (network,) = (tmp_path / "runs" / "uploads" / "networks").glob("*.safetensors")
    assert list(load_model(str(network), "cpu").spec.classes) == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory"),
        (b"", "is empty: allowed is a text file in UTF-8, a class name a line"),
        (b"\n \r\n", "is empty"),
        (b"caf\xe9", "cannot be read ('utf-8' codec"),
        (b"a\nb\nc", "output.bias is (10,), allowed is (3,)"),
        (b"x" * 10_000_001, "has 10,000,001 bytes: allowed for class names are at most 10,000,000"),
    ],
)
def test_class_names_are_refused(tmp_path, capsys, of_others, content, words):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    given = ["--model", "pytorchcv:resnet20_cifar10", "--checkpoint", of_others, "--class-names", tmp_path / "names.txt"]
    message = refused(capsys, tmp_path / "deeper" / "set", "generate", *TINY, *map(str, given))
    assert words in message
    assert "allowed" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--class-names", "names.txt"], "class_names is 'names.txt' without a checkpoint"),
        (["--image-size", "32"], "image_size is 32 without a checkpoint"),
        (["--mean", "0.5", "0.5", "0.5"], "mean is [0.5, 0.5, 0.5] without a checkpoint"),
        (["--checkpoint", "none.pt"], "none.pt does not exist"),
        (["--checkpoint", "OTHERS", "--model", "timm:none"], "unknown architecture 'none'"),
        (["--checkpoint", "OTHERS", "--classes", "7"], "output.bias is (10,), allowed is (7,)"),
        (["--checkpoint", "OTHERS", "--std", "0", "1", "1"], "std [0.0, 1.0, 1.0]"),
        (["--checkpoint", "OTHERS", "--image-size", "x"], "no whole number"),
        (["--model", "timm:none"], "unknown architecture 'none'"),
        (["--model", "torchvision:"], "unknown architecture ''"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "run"])
def test_checkpoint_is_refused(tmp_path, capsys, of_others, tiny_preset, command, arguments, words):
    arguments = [str(of_others) if argument == "OTHERS" else argument for argument in arguments]
    assert words in refused(capsys, tmp_path / "deeper" / "set", command, *(TINY if command == "generate" else ()), *arguments)


# list


def test_a_reader_that_has_enough_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "core", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        command.stdout.close()  # before it has printed anything
        assert command.stderr.read() == ""
    assert command.returncode == 0


def test_list_as_a_command():
    done = subprocess.run([sys.executable, "-m", "core", "list", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    names = json.loads(done.stdout.splitlines()[-1])
    assert "resnet20_cifar10" in names["models"]
    assert {"pytorchcv", "torchvision", "timm"} <= {name.partition(":")[0] for name in names["models"]}
    assert "resnet20_cifar10" in names["offline"]
    assert names["optimizers"] == ["mi-fgsm", "adam"]
    assert names["ranges"] == ["minmax", "mse", "lsq"]
    assert names["bits"] == [2, 3, 4, 5, 6, 7, 8]
    assert names["presets"] == ["quick", "imagenet", "paper"]
    assert "embedded" in names["encoders"]
    assert {"embedded", "cifar10"} <= set(names["data"])


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["table"], ["--help"], ["generate", "--help"], ["generate", "--epsilon", "9", "--out", "x"], ["export", "--help"]],
)
def test_what_computes_nothing_imports_no_torch(arguments, tmp_path):
    code = f"""
import sys
from core.__main__ import main
try:
    main({arguments!r})
except SystemExit:
    pass
sys.exit(10 if "torch" in sys.modules else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_list_for_a_person(capsys):
    assert call("list") == 0
    out = capsys.readouterr().out
    for name in ("resnet20_cifar10", "mi-fgsm", "lsq", "quick", "2, 3, 4, 5, 6, 7, 8"):
        assert name in out


@pytest.mark.parametrize("command", ["generate", "quantize", "diversity", "run", "export", "pretrain", "pretrain-encoder", "list", "table"])
def test_every_command_has_help(capsys, command):
    assert call(command, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_flags_of_the_issue_exist(capsys):
    call("generate", "--help")
    text = capsys.readouterr().out
    flags = "model optimizer images iterations batch-size snapshots epsilon mu lr alpha-tv alpha-l2 beta seed threads out"
    for flag in flags.split():
        assert f"--{flag} " in text
    call("quantize", "--help")
    text = capsys.readouterr().out
    for flag in ["model", "images", "weight-bits", "activation-bits", "range", "steps", "batch-size", "data", "out"]:
        assert f"--{flag} " in text


# generate


def test_generate(generated, tmp_path, capsys):
    out = tmp_path / "deeper" / "set"
    assert call("generate", *TINY, "--optimizer", "adam", "--lr", "0.2", "--json", "--out", out) == 0
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


def test_generate_twice_gives_the_same_bits(generated, tmp_path):
    assert call("generate", *TINY, "--out", tmp_path / "again") == 0
    assert call("generate", *TINY, "--seed", "1", "--out", tmp_path / "other") == 0
    sets = [load_image_set(path).images for path in (generated, tmp_path / "again", tmp_path / "other")]
    assert bool((sets[0] == sets[1]).all())
    assert not bool((sets[0] == sets[2]).all())


def test_generate_for_a_person(tmp_path, capsys):
    assert call("generate", *TINY, "--out", tmp_path / "set") == 0
    out = capsys.readouterr().out
    for key in GENERATE_KEYS:
        assert key in out


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--model", "resnet2000"], "resnet2000", "resnet20_cifar10"),
        (["--model", "/nowhere/a.safetensors"], "/nowhere/a.safetensors", "checkpoint"),
        (["--optimizer", "sgd"], "sgd", "mi-fgsm, adam"),
        (["--images", "ten"], "ten", "whole number"),
        (["--images", "10.5"], "10.5", "whole number"),
        (["--epsilon", "much"], "much", "numbers such as"),
        (["--epsilon", "nan"], "nan", "0 to 2"),
        (["--epsilon", "-1"], "-1", "0 to 2"),
        (["--mu", "inf"], "inf", "0 to 2"),
        (["--images", "10", "--snapshots", "4"], "10", "multiple of snapshots (4)"),
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
    assert "no BatchNorm" in line
    assert "allowed" in line


def test_existing_folder_is_refused_and_kept(tmp_path, capsys, generated, pictures, tiny_preset):
    out = tmp_path / "full"
    out.mkdir()
    (out / "mine").write_text("1")
    commands = [
        ["generate", *TINY],
        ["quantize", *QUANTIZE, "--images", generated, "--data", pictures],
        ["run"],
        ["pretrain-encoder", "--data", pictures, "--batch-size", "4"],
    ]
    for command in commands:
        line = refused(capsys, out, *command)
        assert "full' exists already: allowed is a new or an empty folder" in line
    assert (out / "mine").read_text() == "1"


def test_name_below_a_file_is_refused_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("1")
    monkeypatch.setattr("core.generation.loop.synthesise", lambda *_: pytest.fail("computed for nothing"))
    capsys.readouterr()
    assert call("generate", *TINY, "--out", tmp_path / "file" / "set") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_interrupted_before_anything_is_computed_leaves_nothing(tmp_path, capsys, monkeypatch, runs):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("core.pipeline.prepare", interrupted)
    assert call("generate", *TINY, "--out", tmp_path / "set") == 130
    assert capsys.readouterr().err.splitlines() == ["python -m core generate: interrupted, nothing was written"]
    assert tree(tmp_path) == []
    assert not runs.exists()


def interrupt_after(monkeypatch, steps):
    """Ctrl-C after so many iterations of each method."""
    real = Synthesis.step

    def step(self):
        if self.step_count == steps:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Synthesis, "step", step)


def test_interrupted_run_is_resumed_to_the_same_bits(tmp_path, capsys, monkeypatch, runs):
    flags = ("generate", *TINY, "--seed", 5)
    assert call(*flags, "--out", tmp_path / "undisturbed") == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert call(*flags, "--out", tmp_path / "set") == 130
    run_id = listed(capsys)[0]["id"]
    assert not (tmp_path / "set").exists()
    assert [(run["state"], run["resumable"]) for run in listed(capsys)] == [("interrupted", True), ("complete", False)]
    capsys.readouterr()
    assert call("resume", run_id, "--json") == 0
    assert last_json(capsys).keys() >= GENERATE_KEYS
    names = ("undisturbed", "set")
    assert len({(tmp_path / name / "images.safetensors").read_bytes() for name in names}) == 1
    (run, _) = listed(capsys)
    assert (run["id"], run["state"], run["attempt"]) == (run_id, "complete", 2)


def test_interrupted_run_says_how_to_go_on(tmp_path, capsys, monkeypatch, runs):
    interrupt_after(monkeypatch, 1)
    assert call("generate", *TINY) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"python -m core generate: interrupted; go on with python -m core resume {listed(capsys)[0]['id']}"


def test_without_out_the_files_stay_in_the_run(capsys, runs):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    assert (runs / run_id / "images" / "mi-fgsm" / "manifest.json").is_file()


# runs, resume, delete


def listed(capsys) -> list[dict]:
    capsys.readouterr()
    assert call("runs", "--json") == 0
    return last_json(capsys)["runs"]


def test_runs_lists_none(capsys, runs):
    assert listed(capsys) == []
    assert call("runs") == 0
    assert capsys.readouterr().out == f"no runs in {runs}\n"


def test_runs_are_kept_where_the_argument_says(tmp_path, capsys, runs):
    assert call("generate", *TINY, "--runs", tmp_path / "elsewhere") == 0
    assert not runs.exists()
    capsys.readouterr()
    assert call("runs", "--runs", tmp_path / "elsewhere") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "complete" in line
    assert "resnet20_cifar10, mi-fgsm" in line


def test_delete(capsys, runs):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    assert call("delete", run_id, "--json") == 0
    assert last_json(capsys) == {"deleted": run_id}
    assert listed(capsys) == []
    assert not (runs / run_id).exists()


@pytest.mark.parametrize("command", ["resume", "delete", "export"])
@pytest.mark.parametrize("run_id", ["nothing", "../../etc", "", "x" * 5000])
def test_unknown_run_is_refused(command, run_id, capsys, runs):
    assert call(command, run_id, *(["--format", "packed", "--out", "new.safetensors"] if command == "export" else [])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert quoted(run_id) in line  # of a long one, its ends
    assert "allowed" in line


def test_complete_run_is_not_resumed(capsys, runs):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    assert call("resume", run_id) == 2
    assert "is complete: allowed is to resume one that was stopped" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["runs", "list"])
def test_runs_argument_that_is_a_file(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code = call(command, "--runs", tmp_path / "file")
    if command == "list":
        assert code == 0  # which has no use for it
    else:
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the runs folder must be a writable folder" in line
        assert "allowed" in line


# quantize


def test_quantize_single_layers(generated, pictures, capsys):
    arguments = ["--images", generated, *QUANTIZE, "--steps", 0, "--data", pictures, "--json"]
    assert call("quantize", *arguments, "--layer-bits", "output=8", "features.init_block.conv=2") == 0
    result = last_json(capsys)
    assert result["layer_bits"] == {"features.init_block.conv": 2, "output": 8}
    assert result["weight_size"] == 4 * 270_896 - 2 * 432 + 4 * 640


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["output"], "'output' is no layer with its width: allowed are pairs such as output=8"),
        (["=8"], "'=8' is no layer"),
        (["output=x"], "'x' is no whole number"),
        (["output=9"], "layer_bits is 9 for 'output': allowed are 2, 3, 4, 5, 6, 7, 8"),
        (["output=8", "output=7"], "layer_bits is given for 'output' twice"),
        (["nowhere=8"], "unknown layer in layer_bits 'nowhere': must be one of features.init_block.conv, "),
    ],
)
def test_layers_that_are_refused(generated, pictures, given, message, capsys):
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
    assert tree(tmp_path) == ["network", "network/quantize.json", "network/quantized.safetensors"]
    assert {**json.loads((out / "quantize.json").read_text()), "run": result["run"]} == result


def test_quantize_with_real_images(pictures, tmp_path, capsys):
    assert call("quantize", "--images", pictures, *QUANTIZE, "--steps", 0, "--data", pictures, "--json", "--out", tmp_path / "n") == 0
    result = last_json(capsys)
    assert result["quantized"] == result["calibrated"]


def test_quantize_with_exported_images(generated, pictures, tmp_path, embedded):
    """Every format gives the same network, to the byte."""
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


def test_quantize_refuses_a_numpy_archive_of_something_else(pictures, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    line = refused(capsys, tmp_path / "out", "quantize", "--images", tmp_path / "other.npz", "--data", pictures, *QUANTIZE)
    assert "other.npz' has no array 'manifest': allowed is a .npz file written by `export`" in line


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
        (["--data", "/nowhere"], "/nowhere", "one folder of images a class"),
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
    assert "no BatchNorm" in refused(capsys, tmp_path / "network", "quantize", *given)


@pytest.mark.parametrize("flag", ["--images", "--data"])
def test_quantize_refuses_a_picture_that_cannot_be_read(generated, pictures, tmp_path, capsys, flag):
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


# diversity


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


# run


def test_run(tiny_preset, tmp_path, capsys):
    out = tmp_path / "run"
    assert call("run", "--preset", "quick", "--bits", 4, 8, "--optimizers", "mi-fgsm", "adam", "--seed", 3, "--json", "--out", out) == 0
    result = last_json(capsys)
    assert result.keys() >= {"full_precision", "optimizers", "seconds"}
    assert list(result["optimizers"]) == ["mi-fgsm", "adam"]
    for figures in result["optimizers"].values():
        assert figures.keys() >= {"generation", "diversity", "accuracy"}
        assert figures["generation"].keys() >= GENERATE_KEYS
        assert list(figures["accuracy"]) == ["4", "8"]
        assert all(accuracy.keys() >= QUANTIZE_KEYS for accuracy in figures["accuracy"].values())
    assert {**json.loads((out / "result.json").read_text()), "run": result["run"]} == result
    assert os.listdir(tmp_path) == ["run"]
    manifest = load_image_set(out / "images" / "adam").manifest
    assert manifest["config"]["seed"] == 3


def test_run_takes_what_is_given_in_place_of_the_preset(tiny_preset, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("core.pipeline.execute", lambda config, *_: seen.append(config) or {})
    monkeypatch.setattr("core.pipeline.prepare", lambda *_: None)
    flags = ["--bits", 2, "--optimizers", "adam", "--encoder", "embedded", "--data", "cifar10", "--seed", 9, "--threads", 2]
    assert call("run", *flags, "--device", "auto", "--out", tmp_path / "run") == 0
    (config,) = seen
    assert (config.bits, config.methods, config.evaluation.encoder) == ((2,), ("adam",), "embedded")
    assert (config.machine.seed, config.seed_of_training) == (9, 9)
    assert (config.machine.threads, config.machine.threads) == (2, 2)
    assert (config.machine.device, config.machine.device, config.evaluation.data) == ("auto", "auto", "cifar10")
    assert config.generation.images == 8  # the preset's


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--preset", "slow"], "slow", "quick"),
        (["--bits", "1"], "1", "2, 3, 4, 5, 6, 7, 8"),
        (["--bits", "4", "9"], "9", "2, 3, 4, 5, 6, 7, 8"),
        (["--bits", "four"], "four", "whole number"),
        (["--optimizers", "sgd"], "sgd", "mi-fgsm, adam"),
        (["--model", "resnet2000"], "resnet2000", "resnet20_cifar10"),
        (["--data", "/nowhere"], "/nowhere", "one folder of images a class"),
        (["--encoder", "nonsense"], "nonsense", "embedded"),
        (["--device", "tpu"], "tpu", "auto, cpu"),
        (["--threads", "-1"], "-1", "0 to"),
    ],
)
def test_run_refuses(tiny_preset, tmp_path, capsys, arguments, value, allowed):
    line = refused(capsys, tmp_path / "deeper" / "run", "run", *arguments)
    assert value in line
    assert allowed in line


def test_run_refuses_a_network_without_batch_norm(tiny_preset, tmp_path, capsys, without_batch_norm):
    assert "no BatchNorm" in refused(capsys, tmp_path / "run", "run", "--model", without_batch_norm)


# pretrain


def test_pretrain_and_generate_from_what_it_wrote(pictures, tmp_path, capsys):
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


def test_pretrain_for_two_classes_works_or_is_refused_in_one_line(pictures, tmp_path, capsys):
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
        (["--data", "/nowhere"], "/nowhere", "one folder of images a class"),
        (["--batch-size", "21"], "20 images", "one batch of 21"),
        (["--epochs", "0"], "0", "1 to"),
        (["--lr", "fast"], "fast", "numbers such as"),
        (["--device", "tpu"], "tpu", "auto, cpu"),
    ],
)
def test_pretrain_refuses(pictures, tmp_path, capsys, arguments, value, allowed):
    given = ["--data", pictures, "--epochs", 1, "--batch-size", 4, "--threads", 1, *arguments]
    line = refused(capsys, tmp_path / "deeper" / "mine.safetensors", "pretrain", *given)
    assert value in line
    assert allowed in line


def test_pretrain_refuses_names_it_cannot_write(pictures, tmp_path, capsys):
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    given = ["--data", pictures, "--epochs", 1, "--batch-size", 4, "--threads", 1]
    assert "exists already" in refused(capsys, there, "pretrain", *given)
    assert there.read_text() == "mine"
    assert ".safetensors" in refused(capsys, tmp_path / "mine.pt", "pretrain", *given)


# table


def test_table_of_what_was_not_measured(capsys, monkeypatch, tmp_path):
    (tmp_path / "measured.json").write_text("[]")
    monkeypatch.setattr("core.runs.paper_table.MEASURED", tmp_path / "measured.json")
    assert call("table", "--json") == 0
    rows = last_json(capsys)["rows"]
    assert [row["row"] for row in rows][:2] == ["cifar10/resnet20/3", "cifar10/resnet20/4"]
    assert len(rows) == 12
    assert all(row["measured"] == [] for row in rows)
    assert call("table") == 0
    out = capsys.readouterr().out
    assert out.count("not measured") == 12
    assert max(map(len, out.splitlines())) <= 140


def test_table_measures_a_row_and_keeps_the_run(capsys, tiny_preset, pictures):
    row = ["table", "--run", "cifar10/resnet20/4", "--model", "resnet20_cifar10"]
    assert call(*row, "--seed", 3, "--json") == 0
    result = last_json(capsys)
    (line,) = result["rows"]
    newest = line["measured"][0]
    assert (line["row"], newest["run"], newest["model"]) == ("cifar10/resnet20/4", result["run"], "resnet20_cifar10")
    assert newest["evaluated_on"] == f"20 images of {pictures}"
    assert set(newest["top1"]) == {"mi-fgsm", "adam"}
    (run,) = listed(capsys)
    assert (run["id"], run["state"]) == (result["run"], "complete")
    assert call(*row[:1]) == 0
    out = capsys.readouterr().out
    assert f"(drop {newest['drop']['adam']:.2f}), from" in out
    assert result["run"] in out.replace("\n        ", " ")


@pytest.mark.parametrize(
    ("arguments", "value", "allowed"),
    [
        (["--run", "cifar10/resnet20/6"], "cifar10/resnet20/6", "cifar10/resnet20/5"),
        (["--run", "imagenet/resnet18/4"], "imagenet/resnet18/4", "--data"),
        (["--run", "cifar10/resnet20/4", "--model", "pytorchcv:resnet18"], "pytorchcv:resnet18", "resnet20_cifar10"),
        (["--run", "cifar10/resnet20/4", "--preset", "slow"], "slow", "quick, imagenet, paper"),
        (["--run", "cifar10/resnet20/4", "--model", "resnet20_cifar10", "--data", "/nowhere"], "/nowhere", "embedded, cifar10"),
        (["--model", "resnet20_cifar10"], "resnet20_cifar10", "only with --run"),
        (["--seed", "0"], "0", "only with --run"),
    ],
)
def test_table_refuses_and_starts_nothing(capsys, runs, arguments, value, allowed):
    assert call("table", *arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert value in line
    assert allowed in line
    assert captured.out == ""
    assert not runs.exists()


# the parser


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["generate", "--out", "x", "--nonsense", "3"], "--nonsense"),
        (["pretrain"], "--out"),
        (["quantize", "--out", "x"], "--images"),
        (["diversity"], "PATH"),
        (["generate", "--out"], "--out"),
    ],
)
def test_wrong_command_line_is_one_line(capsys, arguments, value):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert value in line
    assert captured.out == ""


def test_as_a_command_bad_input_ends_with_two(tmp_path):
    command = [sys.executable, "-m", "core", "quantize", "--images", "/nowhere", "--weight-bits", "1", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "python -m core quantize: weight_bits is 1: allowed are 2, 3, 4, 5, 6, 7, 8\n"
    assert tree(tmp_path) == []


# what is refused


def test_current_folder_is_no_place_for_the_result(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("core.generation.loop.synthesise", lambda *_: pytest.fail("computed for nothing"))
    capsys.readouterr()
    assert call("generate", *TINY, "--out", ".") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'.' is the current folder: allowed is" in line


def test_diversity_of_one_image_is_refused_in_one_line(pictures, tmp_path, capsys):
    (tmp_path / "cat").mkdir()
    picture = next((pictures / "cat").iterdir())
    (tmp_path / "cat" / "0.png").write_bytes(picture.read_bytes())
    capsys.readouterr()
    assert call("diversity", tmp_path, "--device", "cpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 images: allowed is at least 2" in line


def test_written_files_may_be_read_by_others(tiny_preset, generated, tmp_path):
    out = tmp_path / "run"
    assert call("run", "--bits", 4, "--optimizers", "adam", "--encoder", "", "--out", out) == 0
    (tmp_path / "plain").write_text("1")
    plain = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in out.rglob("*") if path.is_file()} == {plain}
