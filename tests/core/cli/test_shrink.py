"""shrink: from a weights file that the product has never seen to the file of a small network."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from core.cli.parser import main
from core.cli.progress import Progress
from core.models.zoos.lookup import build_architecture
from core.stages import planning

CLASSES = 7


@pytest.fixture(scope="module")
def network():
    """A ResNet-20 with another head and statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_architecture("pytorchcv:resnet20_cifar10", CLASSES)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(autouse=True)
def smallest_run(monkeypatch):
    """What a run has at least when its time is too short: the product's own minimum takes most of the time of a test."""
    monkeypatch.setattr(planning, "_LEAST", {"images": 16, "iterations": 4, "steps": 2})


@pytest.mark.parametrize("kind", ["weights", "program"])
def test_a_file_becomes_a_small_network(network, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if kind == "weights":
        file = tmp_path / "best.pth"
        torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, file)
        more = []
    else:
        file = tmp_path / "best.pt2"
        example = (torch.zeros(2, 3, 32, 32),)
        torch.export.save(torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), file)
        more = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["shrink", str(file), "--budget", "1s", "--json", *more, *runs]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["recommended"] == 4
    assert printed["headline"].startswith(f"{file.name} in 4 bits: ")
    assert printed["methods"]["mi-fgsm"]["accuracy"]["4"]["held_out"]["calibrated"]["images"] > 0
    assert printed["out"] == "best-4bit.onnx"
    scores = onnxruntime.InferenceSession(tmp_path / "best-4bit.onnx").run(None, {"images": np.zeros((2, 3, 32, 32), np.float32)})[0]
    assert scores.shape == (2, CLASSES)
    assert (tmp_path / "best-4bit.onnx").stat().st_size < file.stat().st_size / 4
    # refused before anything is computed, because the file exists now
    assert main(["shrink", str(file), "--budget", "1s", *runs]) == 2
    assert "out must be a new file" in capsys.readouterr().err


def test_table_has_a_line_for_each_width(network, tmp_path, capsys):
    torch.save(network.state_dict(), tmp_path / "best.pth")
    out = tmp_path / "small.safetensors"
    command = [
        "shrink",
        str(tmp_path / "best.pth"),
        "--bits",
        "4",
        "8",
        "--budget",
        "1s",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(out),
    ]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["bits", "size", "top-1", "drop", "same", "answer"]
    assert [line.split()[0] for line in lines[1:3]] == ["4", "8"]
    assert sum(line.endswith("recommended") for line in lines) == 1
    assert lines[-1].startswith(f"{out} is the network; run ")
    assert out.is_file()


def test_the_same_command_continues_what_was_interrupted(network, tmp_path, monkeypatch, capsys):
    file, out, runs = tmp_path / "best.pth", tmp_path / "new" / "small", tmp_path / "my runs"
    torch.save(network.state_dict(), file)
    command = ["shrink", str(file), "--budget", "1s", "--runs", str(runs), "--out", str(out)]
    record = Progress.record

    def interrupted(self, stage, series, step, values):
        record(self, stage, series, step, values)
        if stage == "training":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "record", interrupted)
        assert main(command) == 130
    run_id = next(runs.glob("2*-*")).name
    said = f"interrupted; repeat the command to continue, or python -m core resume {run_id} --runs '{runs}'"
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m core shrink: {said}"
    assert not out.parent.exists()
    # another file, and other bits, are another run
    with monkeypatch.context() as patched:
        patched.setattr("core.cli.shrink.prepared_for", lambda *_: pytest.fail("a new run"))
        with pytest.raises(pytest.fail.Exception):
            main([*command, "--bits", "3"])
        with pytest.raises(pytest.fail.Exception):
            main([*command[:-1], str(tmp_path / "other.onnx")])
        assert main(command) == 0
    printed = capsys.readouterr()
    assert f"resuming run {run_id}, which was interrupted" in printed.err
    assert printed.out.splitlines()[-1] == f"{out}.onnx is the network; run {run_id} has everything else."
    assert out.with_suffix(".onnx").is_file()
    assert main([*command, "--json"]) == 2  # the file exists
    assert "out must be a new file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bits", "9"], "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 9"),
        (["--bits", "4", "4"], "bits must have each value once, got 4, 4"),
        (["--budget", "0"], "argument --budget: time must be more than 0, got '0'"),
        (["--out", "small.gguf"], "out must end in .onnx, .safetensors, .pt2, .pte or .tflite, got 'small.gguf'"),
        (["--budget", "-5m"], "argument --budget: time must be written like 90s, 10m or 1h30m, got '-5m'"),
        (["--budget", "soon"], "argument --budget: time must be written like 90s, 10m or 1h30m, got 'soon'"),
    ],
)
def test_bad_values_are_refused_first(flags, message, tmp_path, capsys):
    try:
        code = main(["shrink", str(tmp_path / "none.pth"), *flags])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
