"""Writes `runs_of_version_1`: runs as stored before configs, modules and names were reworked.

Must be run with the code of commit daa19da and one thread, from the root of a checkout of that commit:

    PYTHONPATH=. OMP_NUM_THREADS=1 python THIS_FILE NEW_FOLDER

Never run it with later code, which would store runs of a later version. It writes:

    runs/                  a store: the database in one file, a folder for each run, an uploaded network and a few evaluation images
    configs/NAME.json      RunConfig.to_dict() of each run, each preset and each command
    flags.json             every flag of every command
    expected.json          results of the two unfinished runs, resumed by that code: SHA-256 of tensors, labels, steps, accuracies
    expected.safetensors   the images of these two runs, as "RUN/OPTIMIZER"

Paths of the store in the database and in JSON and safetensors files are replaced by PLACEHOLDER. All runs except two use a small uploaded
network, so that files are small and runs resume quickly.
"""

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.io import write_png

from core import layout
from core.__main__ import _build_parser
from core.config import PRESETS, GenerationConfig, QuantizationConfig, RunConfig
from core.data.labelled import embedded_images
from core.errors import RunStopped
from core.models.full_precision import load_model
from core.models.program_import import import_program
from core.runs.events import StoreReporter
from core.runs.live import LiveControl
from core.runs.store import DATABASE, RunStore
from core.runs.table import row_config
from core.runs.worker import perform
from dashboard import exports

PLACEHOLDER = "@RUNS@"
KILLED, STOPPED = "killed in generation", "stopped in training"


class Network(nn.Module):
    """Three convolutions with BatchNorm, a residual addition, and a classifier with 10 classes, for images of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.output = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)) + x)
        return self.output(x.mean((2, 3)))


class Watching(StoreReporter):
    """Calls `then` after it has recorded step `step` of `method` in `stage`."""

    def __init__(self, store: RunStore, run_id: str, stage: str, method: str, step: int, then: Callable[[], None]) -> None:
        super().__init__(store, run_id)
        self._at, self._then = (stage, method, step), then

    def record(self, stage, lane, step, values) -> None:
        super().record(stage, lane, step, values)
        if (stage, lane, step) == self._at:
            self._then()


class Sliders(LiveControl):
    """Changes epsilon of MI-FGSM at iteration 2 and beta of both optimizers at iteration 3."""

    def values(self, lane, step):
        if step >= 2:
            self.set("epsilon", 0.05, ["mi-fgsm"])
        if step >= 3:
            self.set("beta", 0.5, [lane])
        return super().values(lane, step)


def upload(folder: Path) -> str:
    """Stores the small network as an uploaded program; returns its path."""
    torch.manual_seed(1)
    network = Network().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average
    with torch.no_grad():
        network(torch.randn(256, 3, 32, 32))
    file = folder / "small.pt2"
    images = torch.export.Dim("images", min=1, max=4096)
    torch.export.save(torch.export.export(network.eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: images},)), file)
    spec = load_model("resnet20_cifar10", "cpu").spec
    path = import_program(
        file, out_folder=folder / layout.UPLOADS / layout.NETWORKS, mean=spec.mean, std=spec.std, class_names=spec.classes
    )
    file.unlink()
    return str(path)


def evaluation_images(folder: Path) -> str:
    """Writes the first 4 embedded images per class as PNG files, one folder per class; returns the path. Few images evaluate fast."""
    classes = load_model("resnet20_cifar10", "cpu").spec.classes
    images, labels = embedded_images()
    for label, name in enumerate(classes):
        of_class = folder / layout.UPLOADS / "evaluation" / name
        of_class.mkdir(parents=True, exist_ok=True)
        for index in [index for index, other in enumerate(labels) if other == label][:4]:
            write_png(images[index], str(of_class / f"{index:04d}.png"))
    return str(folder / layout.UPLOADS / "evaluation")


def configs(model: str, evaluation: str) -> dict[str, RunConfig]:
    """Name -> config of each run, except those that use the images of another run."""
    generation = GenerationConfig(model=model, images=8, iterations=4, snapshots=2, batch_size=4, threads=1, device="cpu")
    quantization = QuantizationConfig(model=model, steps=2, batch_size=4, calibration_images=8, evaluations=1, device="cpu", threads=1)
    small = RunConfig(generation, quantization, bits=(4,), encoder="")
    embedded = replace(
        small,
        generation=replace(generation, model="resnet20_cifar10"),
        quantization=replace(quantization, model="resnet20_cifar10", evaluations=0, data=evaluation),
    )
    return {
        "complete": replace(small, bits=(3, 4), steps_by_bits={3: 1}, lr_by_bits={3: 1e-3, 4: 2e-4}, encoder="embedded"),
        KILLED: replace(embedded, generation=replace(embedded.generation, images=16), bits=(), encoder="embedded"),
        STOPPED: replace(small, quantization=replace(quantization, steps=4), optimizers=("mi-fgsm",), activation_bits=8),
        "live changes": small,
        "layer widths": replace(small, quantization=replace(quantization, layer_bits={"conv2": 8, "output": 6}), optimizers=("adam",)),
        "embedded network": replace(embedded, optimizers=("adam",), quantization=replace(embedded.quantization, steps=1)),
    }


def compute(store: RunStore, name: str, config: RunConfig, live: LiveControl | None = None) -> str:
    """Computes a complete run; returns its id."""
    run_id = store.create(config, name)
    perform(store, run_id, StoreReporter(store, run_id), live or LiveControl())
    return run_id


def kill(folder: Path, config: RunConfig) -> None:
    """Starts a run and kills its process after writing records and images newer than the last resume state."""
    store = RunStore(folder)
    run_id = store.create(config, KILLED)
    reporter = Watching(store, run_id, "generation", "adam", 7, lambda: os._exit(9))
    perform(store, run_id, reporter, LiveControl(), every=0.0)


def stop(store: RunStore, config: RunConfig) -> None:
    """Starts a run and stops it after the second of four training steps."""
    run_id = store.create(config, STOPPED)
    live = LiveControl()
    try:
        perform(store, run_id, Watching(store, run_id, "training", "mi-fgsm W4A8", 2, live.stop), live, every=0.0)
    except RunStopped:
        return
    raise AssertionError("the run was complete before it was stopped")


def expected(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Resumes the unfinished runs in `folder` until they are complete; returns their results and images."""
    store = RunStore(folder)
    store.mark_interrupted()
    outcomes, pixels = {}, {}
    for run in store.runs():
        if run.name not in (KILLED, STOPPED):
            continue
        store.resume(run.id)
        result = perform(store, run.id, StoreReporter(store, run.id), LiveControl(past=store.changes(run.id)))
        home = store.run_folder(run.id)
        files = {str(path.relative_to(home)): load_file(path) for path in sorted(home.rglob("*.safetensors"))}
        images = {Path(name).parent.name: tensors for name, tensors in files.items() if name.startswith(layout.IMAGES)}
        for method, tensors in images.items():
            pixels[f"{run.name}/{method}"] = tensors["images"]
        outcomes[run.name] = {
            "sha256": {name: {key: sha256(tensor) for key, tensor in sorted(tensors.items())} for name, tensors in files.items()},
            "labels": {method: tensors["labels"].tolist() for method, tensors in images.items()},
            "steps": {
                stage: [[record.lane, record.step] for record in store.records(run.id, stage)] for stage in ("generation", "training")
            },
            "result": result,
        }
    store.close()
    return outcomes, pixels


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def commands_configs() -> dict[str, RunConfig]:
    """The presets, and the configs that commands stored when given some of their options."""
    generation = GenerationConfig(optimizer="adam", images=64, schedule="constant")
    quantization = QuantizationConfig(weight_bits=3, activation_bits=8, range="mse", layer_bits={"output": 8})
    start = PRESETS["quick"]
    return {
        **{f"preset {name}": config for name, config in PRESETS.items()},
        "command generate": RunConfig(generation, QuantizationConfig(), optimizers=("adam",), bits=(), encoder=""),
        "command quantize": RunConfig(
            GenerationConfig(threads=2, device="cpu"),
            replace(quantization, threads=2, device="cpu"),
            optimizers=("given",),
            bits=(3,),
            activation_bits=8,
            encoder="",
            images_from=f"{PLACEHOLDER}/images",
        ),
        "command run": replace(
            start,
            generation=replace(start.generation, seed=5, threads=2, device="cpu"),
            quantization=replace(start.quantization, quantization_seed=5, threads=2, device="cpu", layer_bits={"output": 8}),
            bits=(2, 8),
            optimizers=("mi-fgsm",),
        ),
        "command table": row_config("cifar10/resnet20/4", start, "resnet20_cifar10", ""),
    }


def flags() -> dict[str, list[str]]:
    """Each command with all its flags and a value for each. Paths do not exist, so that a command stops there if it accepts all flags."""
    given = {
        "model": "nowhere.safetensors",
        "data": "nowhere",
        "run": "nowhere",
        "row": "cifar10/resnet20/4",
        "device": "cpu",
        "half_resolution": "0.1",
    }
    kinds = {"_whole": "4", "_number": "0.5", "_layer_width": "output=8"}
    (commands,) = [action for action in _build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found = {}
    for name, parser in commands.choices.items():
        words = []
        for action in parser._actions:
            if action.dest == "help":
                continue
            value = given.get(action.dest) or str(action.default or kinds.get(getattr(action.type, "__name__", ""), "nowhere"))
            values = [value] * (action.nargs if isinstance(action.nargs, int) else 1)
            words.append([*action.option_strings[:1], *values])
        # positional arguments come first
        found[name] = [word for part in sorted(words, key=lambda part: part[0].startswith("--")) for word in part]
    return found


def one_file(folder: Path, old: str) -> None:
    """Merges the database into one file, removes the files of processes, and replaces the path `old` by PLACEHOLDER."""
    connection = sqlite3.connect(folder / DATABASE)
    for table, column in (("run", "config"), ("run", "name"), ("run", "out"), ("result", "data"), ("record", "data")):
        connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, PLACEHOLDER))
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("VACUUM")
    connection.close()
    shutil.rmtree(folder / "owners")
    for name in ("owners.lock", ".reserve"):
        (folder / name).unlink()
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(old, PLACEHOLDER), encoding="utf-8")
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if any(old in value for value in metadata.values()):
            save_file(load_file(path), path, {key: value.replace(old, PLACEHOLDER) for key, value in metadata.items()})
    left = [str(path) for path in folder.rglob("*") if path.is_file() and old.encode() in path.read_bytes()]
    assert not left, f"the path of the store is still in {left}"


def main(target: Path) -> None:
    folder = target / "runs"
    folder.mkdir(parents=True)
    model = upload(folder)
    evaluation = evaluation_images(folder)
    settings = configs(model, evaluation)
    killed = subprocess.run([sys.executable, __file__, "--kill", str(folder), model, evaluation], check=False)
    assert killed.returncode == 9, "the run was complete before its process was killed"
    store = RunStore(folder)
    complete = compute(store, "complete", settings["complete"])
    store.set_note(complete, "A note of two lines,\nwith *stars*.")
    store.set_tags(complete, ["first", "small network"])
    store.pin(complete)
    stop(store, settings[STOPPED])
    for name in ("live changes", "layer widths", "embedded network"):
        compute(store, name, settings[name], Sliders() if name == "live changes" else None)
    images = store.run_folder(complete) / layout.IMAGES
    given = replace(settings["complete"], bits=(4,), encoder="", images_from=str(images))
    compute(store, "given images of both", given)
    compute(store, "given images", replace(given, optimizers=("given",), images_from=str(images / "adam")))
    run = store.run(complete)
    offer = exports.offers(run, store.run_folder(complete), ["adam", "mi-fgsm"])[0]
    exports.make(store.folder, complete, offer, "packed", store.run_folder(complete))
    kept = {run.name: store.config(run.id) for run in store.runs()}
    store.close()
    copy = target / "copy"
    shutil.copytree(folder, copy)
    outcomes, pixels = expected(copy)
    shutil.rmtree(copy)
    one_file(folder, str(folder))
    text = json.dumps(outcomes, indent=1).replace(str(copy), PLACEHOLDER).replace(str(folder), PLACEHOLDER)
    (target / "expected.json").write_text(text + "\n", encoding="utf-8")
    save_file(pixels, target / "expected.safetensors")
    (target / "flags.json").write_text(json.dumps(flags(), indent=1) + "\n", encoding="utf-8")
    (target / "configs").mkdir()
    for name, config in {**kept, **commands_configs()}.items():
        text = json.dumps(config.to_dict(), indent=2).replace(str(folder), PLACEHOLDER)
        (target / "configs" / f"{name.replace(' ', '_')}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--kill":
        kill(Path(sys.argv[2]), configs(*sys.argv[3:])[KILLED])
    else:
        main(Path(sys.argv[1]).absolute())
