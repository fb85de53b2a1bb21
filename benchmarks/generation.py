"""Cost of one iteration of the generation, relative to the network alone, and of other methods: `python benchmarks/generation.py`.

One batch of the embedded ResNet-20, on one core unless --threads is given. The loops run in turns, first only ours with the network, then
all of them; a ratio is the median over rounds:

    network          forward pass and gradient with respect to the images, nothing else
    mi-fgsm, adam    a complete iteration of ours: shift, all losses, statistics of every layer, optimizer, clamp, records
    by torch         the same for mi-fgsm, without the compiled kernels (core/generation/fused/kernels.c)
    DeepInversion, IntraQ, ZeroQ    their loops, reimplemented (benchmarks/peers), with the weight gradients that the originals compute;
                     "frozen": without these gradients, an advantage that the originals do not have

--mct PYTHON also runs benchmarks/peers/mct.py with that interpreter, in turns with ours. Also measures how time and memory grow with the
number of images. Prints one JSON object and writes benchmarks/results/generation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.machine import against, in_turns, write
from benchmarks.peers.deepinversion import DeepInversion
from benchmarks.peers.intraq import IntraQ
from benchmarks.peers.zeroq import ZeroQ
from core.config import GenerationConfig
from core.generation.fused import kernels
from core.generation.loop import GenerationLoop
from core.memory import keep_memory
from core.models.full_precision import load_model

ROOT = Path(__file__).parents[1]
BATCH = 128
CONFIG = GenerationConfig(images=4 * BATCH, iterations=10_000, batch_size=BATCH, snapshots=4)
TURNS = 7  # with model-compression-toolkit
PEERS = (DeepInversion, IntraQ, ZeroQ)


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds and ratios of one iteration of each loop."""
    torch.set_num_threads(threads)
    model = load_model("resnet20_cifar10", "cpu")
    methods = {"mi-fgsm": GenerationLoop(model, CONFIG), "adam": GenerationLoop(model, CONFIG, "adam")}
    by_torch = GenerationLoop(model, CONFIG)
    source = methods["mi-fgsm"].source
    images = source.current().clone(memory_format=torch.preserve_format).requires_grad_(True)
    labels = source.labels

    def network() -> None:
        torch.autograd.grad(F.cross_entropy(model.network(images), labels), images)

    def plain() -> None:
        with kernels.by_torch():
            by_torch.step()

    peers = {peer.__name__: peer(model, labels, images) for peer in PEERS}
    frozen = {f"{peer.__name__}, frozen": peer(model, labels, images, freeze=True) for peer in PEERS}
    # in two groups, because a loop that leaves hundreds of megabytes behind slows down the next one
    alone = {"network": network, **{name: method.step for name, method in methods.items()}, "by torch": plain}
    beside = {**alone, **{name: peer.step for name, peer in {**peers, **frozen}.items()}}
    own, table = against(in_turns(alone, 2 * rounds), "network"), against(in_turns(beside, rounds), "network")
    return {
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "rounds": rounds,
        "iteration": own,
        "beside_others": table,
        "times_as_fast": {
            name: {form: round(table[name]["ratio"] / table[form]["ratio"], 2) for form in ("mi-fgsm", "by torch")}
            for name in (*peers, *frozen)
        },
        "kernels": kernels.description(),
    }


def toolkit(python: str, threads: int) -> dict[str, Any]:
    """The result of peers/mct.py, run by an interpreter that has the toolkit, in turns with as many seconds of ours."""
    command = [python, str(ROOT / "benchmarks/peers/mct.py"), "--threads", str(threads), "--batch", str(BATCH), "--iterations", "13"]
    torch.set_num_threads(threads)
    method = GenerationLoop(load_model("resnet20_cifar10", "cpu"), CONFIG)
    theirs, ours, versions = [], [], {}
    for _ in range(TURNS):
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)
        theirs.append(answer["seconds_per_iteration"])
        versions = answer["versions"]
        ours.append(statistics.median(in_turns({"ours": method.step}, 25)["ours"]))
    ratios = [their / our for their, our in zip(theirs, ours)]
    return {
        "milliseconds": [round(1e3 * seconds, 1) for seconds in theirs],
        "ours": [round(1e3 * seconds, 1) for seconds in ours],
        "times_as_fast": round(statistics.median(ratios), 2),
        "between": [round(min(ratios), 2), round(max(ratios), 2)],
        "versions": versions,
    }


def growth(threads: int) -> list[dict[str, float]]:
    """Microseconds per image and iteration, and peak memory, of `python -m core generate` for increasing numbers of images."""
    # VmHWM, because the peak from getrusage includes the memory of the parent process
    code = (
        "import sys; from core.__main__ import main; main(sys.argv[1:]); "
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    rows = []
    for images in (512, 2048, 8192):
        with tempfile.TemporaryDirectory() as folder:
            command = ["generate", "--images", str(images), "--iterations", "2", "--snapshots", "1", "--threads", str(threads)]
            command = [sys.executable, "-c", code, *command, "--runs", folder, "--json"]
            lines = subprocess.run(
                command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            ).stdout.splitlines()
        result = json.loads(lines[-2])
        rows.append(
            {
                "images": images,
                "microseconds_an_image_and_iteration": round(1e6 * result["seconds"] / result["image_iterations"], 1),
                "peak_megabytes": round(int(lines[-1]) / 1024, 1),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--mct", metavar="PYTHON", help="interpreter of an environment with model-compression-toolkit")
    options = parser.parse_args()
    keep_memory()  # as a run does; the network alone and the peers' loops benefit as well
    began = time.perf_counter()
    measured = measure(options.threads, options.rounds)
    if options.mct:
        measured["model-compression-toolkit"] = toolkit(options.mct, options.threads)
    measured["growth"] = growth(options.threads)
    measured["seconds"] = round(time.perf_counter() - began, 1)
    write("generation", measured)
    print(json.dumps(measured, indent=1))
