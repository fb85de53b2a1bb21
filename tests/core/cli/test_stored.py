"""`runs`, `resume` and `delete`: stored runs, and resuming an interrupted one."""

import pytest
from command_line import GENERATE_KEYS, TINY, call, last_json, listed
from PIL import Image

from core.data.labeled import embedded_images
from core.errors import quoted
from core.generation.loop import GenerationLoop
from core.models.full_precision import load_model, save_checkpoint
from core.models.registry import CIFAR10_CLASSES, MODELS
from tests.small_disks import mounted


def test_runs_without_any(capsys, runs):
    assert listed(capsys) == []
    assert call("runs") == 0
    assert capsys.readouterr().out == f"no runs in {runs}\n"


def test_runs_are_stored_in_the_given_folder(tmp_path, capsys, runs):
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


@pytest.mark.parametrize("command", ["resume", "delete", "branch", "export"])
@pytest.mark.parametrize("run_id", ["nothing", "../../etc", "", "x" * 5000])
def test_unknown_run_is_refused(command, run_id, capsys, runs):
    options = {"export": ["--format", "packed", "--out", "new.safetensors"], "branch": ["--at", 1]}
    assert call(command, run_id, *options.get(command, [])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert quoted(run_id) in line  # shortened to its two ends if it is long
    assert "must" in line


def test_complete_run_cannot_be_resumed(capsys, runs):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    assert call("resume", run_id) == 2
    assert "must be stopped, failed or interrupted to be resumed, but is complete" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["runs", "list"])
def test_file_as_runs_folder_is_refused(command, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    code = call(command, "--runs", tmp_path / "file")
    if command == "list":
        assert code == 0  # it does not use the folder
    else:
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the runs folder must be a writable folder" in line
        assert "must" in line


def test_runs_on_a_read_only_disk(tmp_path, capsys, tiny_preset):
    """They are listed, and exported elsewhere; what would change them says that it cannot."""
    with mounted(tmp_path / "disk", 40) as disk:
        runs = ("--runs", tmp_path / "disk" / "runs")
        assert call("run", "--preset", "quick", "--bits", 4, "--methods", "adam", *runs, "--json") == 0
        run_id = last_json(capsys)["run"]
        disk.remount("ro")
        assert call("runs", *runs) == 0
        assert "complete" in capsys.readouterr().out
        assert call("table", *runs) == 0
        for kind, name in (("card", "card"), ("npz", "images.npz"), ("packed", "packed.safetensors")):
            assert call("export", run_id, "--format", kind, "--out", tmp_path / name, *runs) == 0, kind
            assert (tmp_path / name).exists()
        capsys.readouterr()
        for command in (("delete", run_id), ("resume", run_id), ("generate", *TINY)):
            assert call(*command, *runs) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert f"the runs folder must be writable, but {runs[1]} is read-only: make it writable and try again" in line


def interrupt_after(monkeypatch, steps):
    """Raises KeyboardInterrupt after `steps` iterations of each method."""
    real = GenerationLoop.step

    def step(self):
        if self.step_count == steps:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(GenerationLoop, "step", step)


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


def test_interrupted_run_prints_the_command_to_resume_it(tmp_path, capsys, monkeypatch, runs):
    interrupt_after(monkeypatch, 1)
    assert call("generate", *TINY) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"python -m core generate: interrupted; resume with python -m core resume {listed(capsys)[0]['id']}"


def pictures(folder):
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (folder / name).mkdir(parents=True)
        Image.fromarray(images[labels.index(label)].permute(1, 2, 0).numpy()).save(folder / name / "one.png")
    return folder


def test_a_run_whose_files_were_moved_says_what_is_missing_and_takes_the_new_places(tmp_path, capsys, monkeypatch, runs):
    data, network = pictures(tmp_path / "pictures"), tmp_path / "net.safetensors"
    save_checkpoint(load_model("resnet20_cifar10", "cpu").network, MODELS["resnet20_cifar10"][1], network)
    knobs = ("--model", network, "--data", data, "--steps", 1, "--encoder", "", "--methods", "adam", "--bits", 4, "--accuracy-checks", 0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert call("run", *TINY, *knobs) == 130
    run_id = listed(capsys)[0]["id"]
    data.rename(tmp_path / "new pictures")
    assert call("resume", run_id) == 2
    (line,) = capsys.readouterr().err.splitlines()
    missing = f"the evaluation images of this run must be at '{data}', which does not exist: put it there again"
    assert f"{missing}, or say where it is now with `python -m core resume {run_id} --data PATH`" in line
    assert listed(capsys)[0]["error"] in line
    network.rename(tmp_path / "new.safetensors")
    for given, says in (
        (
            ("--images", "x"),
            "new place to what is gone, and of this run that is the network and the evaluation images",
        ),
        (("--model", tmp_path / "new.safetensors"), missing),
        (("--data", tmp_path / "nowhere"), "nowhere"),
    ):
        assert call("resume", run_id, *given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert call("resume", run_id, "--data", tmp_path / "new pictures", "--json") == 0
    assert last_json(capsys)["full_precision"] >= 80
    assert call("resume", run_id, "--data", data) == 2
    assert "must be stopped, failed or interrupted to get new places, but is complete" in capsys.readouterr().err
