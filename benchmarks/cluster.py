"""Runs and large sets on a Ray cluster: `python benchmarks/cluster.py faults scaling simulation`. Needs Ray: `make cluster`.

`faults`: a comparison of six runs, and a large set of 24 batches, on a cluster of two nodes with one CPU each, on this machine. Again and
again a worker is killed with SIGKILL, a node is removed as by a power failure and another one added, or the program that started it all is
killed and started again with the same command. Reported for each kind: kills; tasks that are lost, that is, not complete at the end or
with other bits than without a cluster; and repeated, the seconds since the last resume state of each run that was hit, whose work was
computed twice. The exit code is 1 if anything was lost.

`scaling`: how much longer a run takes on a node than here, in turns; and how much faster two nodes with one core each are than one, for a
comparison and for a large set without its first batches. Nothing else may run on this machine.

`simulation`: time and cost of a comparison on ImageNet and of a set of a million images of 224 pixels, on 1 to 64 GPUs. Ray's part is
simulated: a task goes to the GPU that is free first, and the program that started it handles what comes back, one batch after another. How
long a batch takes to be written is measured here, and so is an image's iteration on one core. A GPU is as many times as fast as a core as
it was for the embedded network (benchmarks/results/gpu.json and generation.json); networks of 224 pixels were not measured on a GPU.

Prints one JSON object; with all three parts, it writes benchmarks/results/cluster.json.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.local_cluster import LocalCluster
from benchmarks.machine import RESULTS, write
from core import layout
from core.files import read_json
from core.reporting import WARNING
from core.runs.state import RunState
from core.runs.store import RunStore

ROOT = Path(__file__).parents[1]
KINDS = ("worker", "node", "program")
WORKERS = (b"ray::NodeRun", b"ray::_compute")  # names of the processes that compute a run and a batch
_COMPARED = "--methods mi-fgsm adam --seeds 0 1 2 --bits 4 --images 64 --batch-size 64 --snapshots 1 --iterations 60 --threads 1"
_SMALL = "--images 64 --batch-size 64 --snapshots 1 --iterations 40 --bits 4 --steps 40 --threads 1"
_SETTLE = 120.0  # seconds within which Ray notices a loss


def _set(batches: int, iterations: int) -> list[str]:
    images = 64 * batches
    return f"--images {images} --batch-size 64 --snapshots 1 --iterations {iterations} --shard-size 256 --threads 1".split()


class Program:
    """A command of the product, in a process of its own. folder: where its runs are."""

    def __init__(self, folder: Path, *arguments: str, address: str = "") -> None:
        executor = ["--executor", address] if address else []
        command = [sys.executable, "-m", "core", *arguments, "--runs", str(folder), *executor]
        self.log = folder.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        """Waits for its end. Raises RuntimeError if it failed."""
        if self.process.wait():
            raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-2000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def cluster(nodes: int) -> Iterator[LocalCluster]:
    """Nodes with one CPU each. The program that starts runs is none of them."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        own = LocalCluster(Path(folder))
        try:
            for _ in range(nodes - 1):
                own.add_node()
            yield own
        finally:
            own.close()


def workers() -> list[int]:
    """The processes that compute a run or a batch at this moment."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                if (path / "cmdline").read_bytes().startswith(WORKERS):
                    found.append(int(path.name))
            except OSError:  # it has ended
                continue
    return found


def contents(folder: Path) -> dict[str, str]:
    """The images and networks of the complete runs in a store, and their SHA-256: "METHOD SEED FILE" -> digest."""
    found = {}
    store = RunStore(folder)
    try:
        for run in store.runs():
            if run.state is RunState.COMPLETE:
                config = store.config(run.id)
                own = store.run_folder(run.id)
                for path in sorted(path for path in own.rglob("*") if path.suffix in (".tar", ".safetensors")):
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[f"{config.methods[0]} {config.machine.seed} {path.relative_to(own)}"] = digest
    finally:
        store.close()
    return found


class Faults:
    """Hits a program on a cluster again and again, each time in another way."""

    def __init__(self, folder: Path, arguments: Sequence[str], own: LocalCluster, seed: int) -> None:
        self._folder, self._arguments, self._cluster = folder, list(arguments), own
        self._random = random.Random(seed)
        self.kills = dict.fromkeys(KINDS, 0)
        self.repeated = dict.fromkeys(KINDS, 0.0)

    def endure(self, most: int) -> None:
        """Until the program has ended by itself; after `most` kills it is left alone."""
        program = self._program()
        for kind in (KINDS * most)[:most]:
            self._wait(program, self._random.uniform(10, 30))
            if program.process.poll() is not None or not (hit := workers()):
                break
            before, warned = self._unsaved(), self._warnings()
            if kind == "worker":
                os.kill(self._random.choice(hit), signal.SIGKILL)
            elif kind == "node":
                self._cluster.remove_node()
                self._cluster.add_node()
            else:
                program.kill()
                program = self._again()
            self.kills[kind] += 1
            print(f"killed a {kind}", file=sys.stderr, flush=True)
            self.repeated[kind] += sum(before.values()) if kind == "program" else self._of_the_lost(program, before, warned)
        program.finish()

    def _program(self) -> Program:
        return Program(self._folder, *self._arguments, address=self._cluster.client)

    def _again(self) -> Program:
        """The same command, which goes on where it was; a set is resumed."""
        if self._arguments[0] == "compare":
            return self._program()
        store = RunStore(self._folder)
        try:
            run = store.runs()[0].id
        finally:
            store.close()
        return Program(self._folder, "resume", run, *self._arguments[-2:], address=self._cluster.client)

    def _wait(self, program: Program, seconds: float) -> None:
        """Until something is computed, and then so long."""
        while program.process.poll() is None and not workers():
            time.sleep(0.2)
        end = time.monotonic() + seconds
        while program.process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)

    def _unsaved(self) -> dict[str, float]:
        """Seconds since the last resume state of each run that is computed, or since it began to compute."""
        store, now, found = RunStore(self._folder), time.time(), {}
        try:
            for run in store.runs():
                if run.state is RunState.RUNNING:
                    saved = [path.stat().st_mtime for path in (store.run_folder(run.id) / layout.CHECKPOINT).glob("*") if path.is_file()]
                    found[run.id] = now - max([*saved, run.started or now])
        finally:
            store.close()
        return found

    def _warnings(self) -> dict[str, int]:
        store = RunStore(self._folder)
        try:
            return {run.id: sum(name.startswith(f"{WARNING}/cluster") for name in store.results(run.id)) for run in store.runs()}
        finally:
            store.close()

    def _of_the_lost(self, program: Program, before: Mapping[str, float], warned: Mapping[str, int]) -> float:
        """The unsaved seconds of the run that says that it was hit; of a set, whose batch is computed again without a word, those of it."""
        if self._arguments[0] == "generate":
            return sum(before.values())
        end = time.monotonic() + _SETTLE
        while time.monotonic() < end and program.process.poll() is None:
            hit = [run for run, count in self._warnings().items() if count > warned.get(run, 0)]
            if hit:
                return sum(before.get(run, 0.0) for run in hit)
            time.sleep(0.5)
        return 0.0


def faults(kills: int, folder: Path) -> dict[str, Any]:
    """What was killed, lost, and repeated, for a comparison and for a large set."""
    cases = {
        "comparison": ["compare", *_COMPARED.split(), "--steps", "60"],
        "large set": ["generate", "--method", "mi-fgsm", *_set(24, 30)],
    }
    result = {}
    with cluster(2) as own:
        for number, (name, arguments) in enumerate(cases.items()):
            here, there = folder / f"here {number}", folder / f"there {number}"
            Program(here, *arguments).finish()
            expected = contents(here)
            workers_option = ["--workers", "2"] if name == "large set" else []
            hit = Faults(there, [*arguments, *workers_option], own, seed=number)
            hit.endure(kills)
            found = contents(there)
            result[name] = {
                "tasks": 24 if workers_option else 6,
                "files": len(expected),
                "kills": hit.kills,
                "lost": sorted(file for file in expected if found.get(file) != expected[file]),
                "repeated_seconds": {kind: round(seconds, 1) for kind, seconds in hit.repeated.items()},
            }
            print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
    return result


def _seconds(folder: Path, *arguments: str, address: str = "") -> float:
    began = time.perf_counter()
    Program(folder / f"{time.monotonic_ns()}", *arguments, address=address).finish()
    return time.perf_counter() - began


def scaling(rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of the same work here, on one node, and on two."""
    compared = ["compare", *_COMPARED.split(), "--steps", "20"]
    with cluster(1) as own:
        pairs = [
            (_seconds(folder, "run", *_SMALL.split()), _seconds(folder, "run", *_SMALL.split(), address=own.client))
            for _ in range(rounds + 1)
        ][1:]
        single = _on_cluster(folder, compared, own.client, 1)
    with cluster(2) as own:
        double = _on_cluster(folder, compared, own.client, 2)
    return {
        "run": {
            "here_seconds": [round(here, 1) for here, _ in pairs],
            "on_a_node_seconds": [round(there, 1) for _, there in pairs],
            "overhead_seconds": round(statistics.median(there - here for here, there in pairs), 1),
        },
        "two_nodes_against_one": {name: round(single[name] / double[name], 2) for name in single},
        "seconds": {"one node": single, "two nodes": double},
    }


def _on_cluster(folder: Path, compared: Sequence[str], address: str, count: int) -> dict[str, float]:
    """Seconds of a comparison; and those that a large set of 26 batches takes longer than one of 2, which is all but its start."""
    workers_option = ["--workers", str(count)]
    few, many = (
        _seconds(folder, "generate", "--method", "mi-fgsm", *_set(batches, 30), *workers_option, address=address) for batches in (2, 26)
    )
    return {"comparison": round(_seconds(folder, *compared, address=address), 1), "large set": round(many - few, 1)}


# the simulation

GPUS = (1, 2, 4, 8, 16, 32, 64)
NETWORK_BYTES = 1.25e9  # a second: 10 Gbit/s into the machine of the program
RUN_SECONDS = 15.0  # from a free node to the first iteration: process, imports, network, inputs


def makespan(tasks: Sequence[float], places: int, handled: float = 0.0) -> float:
    """Seconds until all tasks are done and handled. A task goes to the place that is free first; what each gives is handled by one program,
    one after another, in `handled` seconds; a task begins only while fewer than three for each place wait for that, as in `generate`."""
    free = [0.0] * places
    heapq.heapify(free)
    waiting: list[float] = []  # when those that were begun are handled
    program = 0.0
    for seconds in tasks:
        begin = heapq.heappop(free)
        if len(waiting) >= 3 * places:
            begin = max(begin, waiting[-3 * places])
        heapq.heappush(free, begin + seconds)
        program = max(program, begin + seconds) + handled
        waiting.append(program)
    return max(program, max(free))


def _gpu_against_core() -> float:
    """How many times as fast as a core a GPU makes images of the embedded network, at the largest batch that was measured."""
    gpu, core = read_json(RESULTS / "gpu.json")["generation"][-1], read_json(RESULTS / "generation.json")
    of_gpu = gpu["mi-fgsm"]["milliseconds"] / gpu["batch"]
    of_core = core["iteration"]["mi-fgsm"]["milliseconds"] / core["batch"]  # with one thread
    return float(of_core / of_gpu)


def _measured(pixels: int) -> dict[str, float]:
    """Seconds on one core: of an image of ResNet-50 in an iteration, of one in a training step, and of one that is put into a shard."""
    import numpy as np
    import torch
    from torchvision.models import resnet50

    from core.config import PRESETS, GenerationConfig
    from core.data.shards import about_shards, write_shard
    from core.generation.loop import GenerationLoop
    from core.models.full_precision import FullPrecisionModel
    from core.models.registry import ModelSpec
    from core.quantization.training import QuantizationTraining

    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = ModelSpec("resnet50", "resnet50", tuple(f"class {number}" for number in range(1000)), pixels, (0.5,) * 3, (0.25,) * 3, "nothing")
    model = FullPrecisionModel(resnet50().eval().requires_grad_(False), spec)
    loop = GenerationLoop(model, GenerationConfig(images=16, batch_size=16, iterations=6, snapshots=1), "mi-fgsm")
    iteration = _fastest(loop.step, 3) / 16
    while not loop.finished:
        loop.step()
    training = QuantizationTraining(model, loop.image_set(), PRESETS["imagenet"].training_for(4))
    step = _fastest(training.step, 2) / training.config.training_batch_size
    random_image = np.random.default_rng(0).normal(128, 40, (3, pixels, pixels)).clip(0, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.tar"

        def put() -> None:
            write_shard(path, 0, ((random_image, 0) for _ in range(200)))
            about_shards([path], [200])

        return {"iteration": iteration, "training": step, "written": _fastest(put, 3) / 200, "bytes": path.stat().st_size / 200}


def _fastest(function: Callable[[], Any], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return min(taken)


def simulation() -> dict[str, Any]:
    """Hours and GPU hours for each number of GPUs."""
    from core.config import PRESETS

    core, factor = _measured(224), _gpu_against_core()
    preset = PRESETS["imagenet"]
    generation = preset.generation
    # ten methods, three seeds; each run has three bit widths, on 5,120 images and 20 times the steps of the preset
    images, steps = 5120, 20 * sum(preset.steps_by_bits.values())
    made = images / generation.snapshots * generation.iterations * core["iteration"] / factor
    trained = steps * preset.training.training_batch_size * core["training"] / factor
    run = RUN_SECONDS + made + trained
    million, batch = 1_000_000, 256
    saved = batch * generation.snapshots
    task = batch * generation.iterations * core["iteration"] / factor
    written = saved * core["written"]
    batches = [task] * (million // saved + 1)
    of_network = saved * 3 * 224 * 224 / NETWORK_BYTES
    cores = os.cpu_count() or 1
    cases = {"comparison": ([run] * 30, 0.0), f"million, written by {cores} cores": (batches, max(written, of_network))}
    cases |= {f"million, written by {more} cores": (batches, max(written * cores / more, of_network)) for more in (8, 32) if more > cores}
    curves: dict[str, Any] = {}
    for name, (tasks, handled) in cases.items():
        hours = {gpus: makespan(tasks, gpus, handled) / 3600 for gpus in GPUS}
        curves[name] = {gpus: {"hours": round(one, 2), "gpu_hours": round(one * gpus, 1)} for gpus, one in hours.items()}
    return {
        "cores": os.cpu_count(),
        "seconds_on_a_core": {name: round(value, 5) for name, value in core.items()},
        "gpu_against_core": round(factor),
        "seconds_of_a_run": round(run),
        "seconds_of_a_batch": round(task, 1),
        "seconds_to_write_a_batch": round(written, 2),
        "seconds_to_send_a_batch": round(of_network, 2),
        **curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("faults", "scaling", "simulation")
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--kills", type=int, default=6, help="of each of the two cases of `faults` (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="of `scaling` (default: 3)")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "faults" in options.parts:
            result["faults"] = faults(options.kills, Path(folder))
        if "scaling" in options.parts:
            result["scaling"] = scaling(options.rounds, Path(folder))
    if "simulation" in options.parts:
        result["simulation"] = simulation()
    print(json.dumps(result, indent=1))
    if set(options.parts) == set(parts):
        write("cluster", result)
    if any(case["lost"] for case in result.get("faults", {}).values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
