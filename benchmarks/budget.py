"""Accuracy and time with a budget of time: `python benchmarks/budget.py`.

Runs the embedded network with `--budget` 3, 10, and 30 minutes, images of MI-FGSM, and 3 and 4 bits. Reported for each: the minutes that
the run took, and their ratio to the budget; the images, iterations, and training steps that it chose; and top-1 on the embedded 2,000
images, in percent. Everything else on the machine should rest: a run cannot know how busy it will be later. Prints one JSON object and
writes benchmarks/results/budget.json; takes three quarters of an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MINUTES = (3.0, 10.0, 30.0)
METHOD = "mi-fgsm"
CHOSEN = ("images", "iterations", "steps")


def measure(minutes: float, more: Sequence[str]) -> dict[str, Any]:
    """What `run` printed. more: further flags of `run`."""
    command = ["run", "--methods", METHOD, "--bits", "3", "4", "--budget", str(minutes), "--json"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "core", *command, "--runs", folder, *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            encoding="utf-8",
        )
        seconds = time.perf_counter() - began
    return figures(minutes, seconds, json.loads(done.stdout.splitlines()[-1]))


def figures(minutes: float, seconds: float, printed: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one run. seconds: from the start of the program to its end."""
    accuracy = printed["methods"][METHOD]["accuracy"]
    return {
        "minutes": round(seconds / 60, 2),
        "ratio": round(seconds / (60 * minutes), 3),
        **{name: printed["plan"][name] for name in CHOSEN},
        "full_precision": printed["full_precision"],
        "top1": {bits: result["quantized"] for bits, result in accuracy.items()},
        "standard_error": {bits: result["standard_error"] for bits, result in accuracy.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs="+", type=float, default=MINUTES)
    options, more = parser.parse_known_args()  # more: flags of `run`
    budgets = {}
    for minutes in options.minutes:
        budgets[f"{minutes:g}"] = measure(minutes, more)
        print(json.dumps(budgets[f"{minutes:g}"]), file=sys.stderr, flush=True)
    result = {"flags": more, "budgets": budgets}
    print(json.dumps(result, indent=1))

    from benchmarks.machine import write

    if not more and tuple(options.minutes) == MINUTES:
        write("budget", result)


if __name__ == "__main__":
    main()
