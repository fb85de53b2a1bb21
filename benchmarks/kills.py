"""Kills runs at random moments and counts what was lost: `python benchmarks/kills.py --kills 200`.

Two small runs (generation by both methods and training with learned ranges; generation by MI-FGSM and training with min-max ranges and
SGD) are computed once without a kill. Then each is started, killed with SIGKILL after a random time, and resumed by the next process,
again and again until it is complete; then it is deleted, with kills during the deletion as well. Processes are forked from one that has
already loaded torch, so that a kill costs a fraction of a second and hits the work, not the import. Resume states are written at every
opportunity, so that most kills come near one.

After every kill, the state that the next process finds is checked: the database is intact, every run is there, none has lost records
older than its resume state, and no orphaned files are left. Prints one JSON object; the exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from core import layout
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.errors import RunError
from core.runs.control import LocalControl
from core.runs.database import DATABASE
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.state import RunState
from core.runs.store import RunStore

FILES = (f"{layout.IMAGES}/**/{layout.IMAGES_FILE}", f"{layout.QUANTIZED}/**/*.safetensors")


def configs(data: Path) -> dict[str, RunConfig]:
    """Small runs with every kind of resume state."""
    generation = GenerationConfig(images=32, snapshots=2, batch_size=8, iterations=8)
    training = TrainingConfig(steps=12, training_batch_size=8, calibration_images=16)
    whole = RunConfig(
        machine=MachineConfig(seed=3, device="cpu", threads=1),
        generation=generation,
        training=training,
        bits=(4,),
        evaluation=EvaluationConfig(data=str(data), encoder=""),
    )
    minmax = replace(training, range="minmax", training_optimizer="sgd", alpha_feature=0.0, ema_decay=0.0, training_lr=1e-3)
    return {
        "learned": whole,
        "minmax": replace(whole, training=minmax, bits=(3, 8), methods=("mi-fgsm",)),
    }


def write_data(folder: Path) -> None:
    """Writes some of the embedded evaluation images, one folder per class."""
    from PIL import Image

    from core.data.labeled import load_evaluation_set
    from core.models.registry import MODELS

    spec = MODELS["resnet20_cifar10"][1]
    images = load_evaluation_set("embedded", spec)
    for index in range(24):
        pixels, label = images[index]
        target = folder / spec.classes[int(label)]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(target / f"{index}.png")
    for name in spec.classes:
        if not (folder / name).is_dir():
            pixels, _ = images[0]
            (folder / name).mkdir()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name / "0.png")


class Telling(StoreReporter):
    """Also signals each step through a pipe, so that the parent can time its kills relative to steps."""

    def record(self, stage: str, method: str, step: int, values: Mapping[str, Any]) -> None:
        super().record(stage, method, step, values)
        tell()


def tell() -> None:
    """Signals one event to the parent."""
    if _PIPE:
        os.write(_PIPE[1], b".")


_PIPE: list[int] = []


def in_child(work: Callable[[], None], after: int = 0, seconds: float | None = None) -> tuple[bool, float]:
    """Does the work in a forked process, which is killed `seconds` after it has signaled `after` events; seconds None: it is not killed.

    Returns whether it finished, and the seconds it took.
    """
    began = time.monotonic()
    _PIPE[:] = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(_PIPE[1])
    if seconds is not None:
        # the pipe ends with the process
        while after > 0 and (told := os.read(_PIPE[0], after)):
            after -= len(told)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(_PIPE[0])
    _PIPE.clear()
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"a process that was not killed ended with status {status}")
    return status == 0, time.monotonic() - began


def work_on(folder: Path, config: RunConfig | None, out: Path | None = None) -> None:
    """What each process does with the folder: resumes the unfinished run, or starts one."""
    store = RunStore(folder)
    store.mark_interrupted()
    unfinished = [run.id for run in store.runs() if run.state.can_resume()]
    if unfinished:
        run_id = unfinished[0]
        store.resume(run_id)
    else:
        assert config is not None
        run_id = store.create(config, "killed", out=str(out or ""))
    past = store.changes(run_id)
    control = LocalControl(past=past)
    if not past:
        control.set("epsilon", 0.05, ["mi-fgsm"])  # a live change, which a resumed run must apply again
    perform(store, run_id, Telling(store, run_id), control, every=0.0)
    store.close()


def fingerprint(folder: Path) -> str:
    """A hash of all images and weights below a run's folder."""
    digest = hashlib.sha256()
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def saved_steps(run_folder: Path) -> dict[tuple[str, str], int]:
    """(stage, series) -> number of steps in the resume state."""
    import torch

    path = run_folder / layout.CHECKPOINT / "state.pt"
    if not path.exists():
        return {}
    saved = torch.load(path, weights_only=True)
    if saved["part"] == "generation":
        return {("generation", method): state["step_count"] for method, state in saved["state"].items()}
    _, method, width = saved["part"].split("/")
    return {("training", f"{method} {width}"): saved["state"]["training"]["step_count"]}


def look(folder: Path, expected: int) -> Counter[str]:
    """Problems in the folder after a kill, as the next process finds it: kind -> count."""
    wrong: Counter[str] = Counter()
    try:
        store = RunStore(folder)
        store.mark_interrupted()
        sound = sqlite3.connect(folder / DATABASE).execute("PRAGMA integrity_check").fetchone()[0]
        runs = store.runs()
    except (RunError, sqlite3.Error):
        traceback.print_exc()
        return Counter({"unreadable databases": 1})
    wrong["unreadable databases"] += sound != "ok"
    wrong["runs lost"] += max(0, expected - len(runs))
    wrong["runs that seem to live"] += sum(not run.state.is_finished() for run in runs)
    for run in runs:
        for (stage, method), saved in saved_steps(store.run_folder(run.id)).items():
            steps = [record.step for record in store.records(run.id, stage) if record.series == method]
            wrong["records lost before the checkpoint"] += set(range(1, saved + 1)) - set(steps) != set()
            wrong["steps lost beyond one iteration"] += max(steps, default=0) > saved + 1
    store.close()
    known = {run.id for run in runs} | {"owners", "owners.lock", ".reserve", "out", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}
    wrong["orphaned files"] += len([path for path in folder.iterdir() if path.name not in known])
    wrong["orphaned files"] += len(list(folder.rglob("*.partial"))) + len(list((folder / "owners").iterdir()))
    return wrong


def measure(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kills runs until there were `kills` kills; returns what was lost."""
    import core.pipeline  # noqa: F401  # loads torch before the first fork

    chance = random.Random(seed)
    data = folder / "data"
    write_data(data)
    wrong: Counter[str] = Counter()
    where: Counter[str] = Counter()
    complete = equal = deleted = 0
    wanted: dict[str, str] = {}
    length: dict[str, float] = {}
    for name, config in configs(data).items():
        target = folder / f"undisturbed-{name}"
        _, length[name] = in_child(partial(work_on, target, config))
        store = RunStore(target)
        wanted[name] = fingerprint(store.run_folder(store.runs()[0].id))
        store.close()
    while where.total() < kills:
        for name, config in configs(data).items():
            target = folder / f"killed-{name}"
            out = target / "out"
            started = False
            while True:
                # half of the kills at any time, half near a step
                after, longest = chance.choice(((0, 0.5 * length[name]), (chance.randint(1, 9), 0.05)))
                seconds = chance.uniform(0.0, longest) if where.total() < kills else None
                ended, _ = in_child(partial(work_on, target, config, out), after, seconds)
                if ended:
                    break
                store = RunStore(target)
                runs = store.runs()
                where[runs[0].stage.split(" ")[0] if runs else "before the start"] += 1
                store.close()
                wrong.update(look(target, int(started)))
                started = started or bool(runs)
            store = RunStore(target)
            run = store.runs()[0]
            store.close()
            complete += run.state is RunState.COMPLETE
            same = fingerprint(target / run.id) == wanted[name] and fingerprint(out) == wanted[name]
            equal += same
            if not same:
                print(f"{name} ended with a different result", file=sys.stderr)
            # delete the run, with kills during the deletion too
            while True:

                def delete(target: Path = target, run_id: str = run.id) -> None:
                    store = RunStore(target)
                    store.mark_interrupted()
                    tell()
                    if store.runs():
                        store.delete(run_id)
                    store.close()

                seconds = chance.uniform(0.0, 0.01) if where.total() < kills else None
                ended, _ = in_child(delete, 1, seconds)
                if ended:
                    break
                where["deletion"] += 1
                wrong.update(look(target, 0))
                store = RunStore(target)
                rest = store.runs()
                store.close()
                # the run must be either complete or deleted
                wrong["half deleted runs"] += bool(rest) and fingerprint(target / run.id) != wanted[name]
            wrong.update(look(target, 0))
            wrong["runs that came back"] += (target / run.id).exists()
            deleted += 1
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            print(f"{where.total()} kills, {complete} runs complete, {equal} equal", file=sys.stderr)
    return {
        "kills": where.total(),
        "kills_by_stage": dict(where),
        "runs_resumed_to_their_end": complete,
        "equal_to_the_bit": equal,
        "deleted": deleted,
        "wrong": {name: count for name, count in wrong.items() if count},
        "looked_for": sorted(wrong),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outcome = measure(options.kills, options.seed, Path(temporary))
    print(json.dumps(outcome, indent=2))
    failed = outcome["wrong"] or not outcome["runs_resumed_to_their_end"] == outcome["equal_to_the_bit"] == outcome["deleted"]
    raise SystemExit(1 if failed else 0)
