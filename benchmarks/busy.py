"""Training beside other programs: `python benchmarks/busy.py`. How long a step takes on a machine whose cores are busy.

The threads of OpenMP wait for each other at barriers by spinning, for as many rounds as GOMP_SPINCOUNT says; on a busy machine a thread
that spins takes the core that the thread it waits for needs. The product decides by the load (core/barriers.py). A process for it, and one
for each of several fixed counts, take training steps of the embedded network in turn, with the threads that torch chooses, beside 0, 1, 2
and 4 processes that only compute. OpenMP's own count is measured on the idle machine only, because beside busy processes it takes minutes.

Reported: median seconds of a step; over that of OpenMP's own count on the idle machine; and over the fair share, which is that time times
(threads + busy processes) / cores. Prints one JSON object and writes benchmarks/results/busy.json; `--rounds 3 --steps 4` takes five
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from core.barriers import INTERVAL, SPIN_COUNT, share_cores

BUSY = (0, 1, 2, 4)
COUNTS = ("0", SPIN_COUNT)
OWN, PRODUCT = "default", "product"  # OpenMP's own count, and the product's choice
_BUSY_LOOP = "while True: pass"


def steps(count: int, images: int = 64) -> None:
    """In a process of its own: for each line of standard input, the seconds of each of `count` training steps."""
    if os.environ.get("GOMP_SPINCOUNT") == PRODUCT:
        del os.environ["GOMP_SPINCOUNT"]
        share_cores()

    import torch

    from core.config import TrainingConfig
    from core.data.image_sets import ImageSet
    from core.data.labeled import embedded_images
    from core.models.full_precision import load_model
    from core.quantization.training import QuantizationTraining

    model = load_model("resnet20_cifar10", "cpu")
    pixels, labels = embedded_images()
    training = QuantizationTraining(
        model, ImageSet(pixels[:256], torch.tensor(labels[:256])), TrainingConfig(steps=1_000_000, training_batch_size=images)
    )
    for _ in range(3):
        training.step()
    print("ready", flush=True)
    for _ in sys.stdin:
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            training.step()
            taken.append(time.perf_counter() - began)
        print(json.dumps(taken), flush=True)


def started(spin_count: str, count: int) -> subprocess.Popen[str]:
    """A process that waits to take steps."""
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if spin_count != OWN:
        environment["GOMP_SPINCOUNT"] = spin_count
    process = subprocess.Popen(
        [sys.executable, __file__, "--steps", str(count), "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within the block, `count` processes compute."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY_LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(rounds: int, count: int, counts: Sequence[str], numbers: Sequence[int]) -> dict[str, dict[int, float]]:
    """Spin count -> number of busy processes -> median seconds of a step."""
    processes = {spin_count: started(spin_count, count) for spin_count in dict.fromkeys(counts)}
    taken: dict[str, dict[int, list[float]]] = {spin_count: {number: [] for number in numbers} for spin_count in processes}
    try:
        for _ in range(rounds):
            for number in numbers:
                for spin_count, process in processes.items():
                    if spin_count == OWN and number:
                        continue
                    assert process.stdin is not None
                    assert process.stdout is not None
                    with busy(number):
                        time.sleep(3 * INTERVAL)  # until the load is known
                        process.stdin.write("go\n")
                        process.stdin.flush()
                        taken[spin_count][number] += json.loads(process.stdout.readline())
    finally:
        for process in processes.values():
            process.kill()
    return {spin_count: {number: statistics.median(times) for number, times in own.items() if times} for spin_count, own in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="each takes steps with every count beside every number of processes")
    parser.add_argument("--steps", type=int, default=8, help="in a round")
    parser.add_argument("--counts", nargs="*", default=COUNTS, help="fixed values of GOMP_SPINCOUNT")
    parser.add_argument("--busy", nargs="*", type=int, default=BUSY, help="numbers of busy processes, beside none")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        steps(options.steps)
        return
    counts, numbers = dict.fromkeys([OWN, PRODUCT, *options.counts]), sorted({0, *options.busy})
    seconds = measure(options.rounds, options.steps, list(counts), numbers)

    import torch

    from benchmarks.machine import write

    idle, cores = seconds[OWN][0], os.cpu_count() or 1
    fair = {number: idle * max(1.0, (torch.get_num_threads() + number) / cores) for number in numbers}
    result = {
        "rounds": options.rounds,
        "steps": options.steps,
        "seconds": {count: {str(n): round(value, 4) for n, value in own.items()} for count, own in seconds.items()},
        "idle_over_default": {count: round(own[0] / idle, 3) for count, own in seconds.items()},
        "over_fair_share": {count: {str(n): round(value / fair[n], 3) for n, value in own.items()} for count, own in seconds.items()},
    }
    print(json.dumps(result, indent=1))
    write("busy", result)


if __name__ == "__main__":
    main()
