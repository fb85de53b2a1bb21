"""Kills runs with `--out` between their last computation and their end: `python benchmarks/kills_at_end.py --kills 200`.

The window is from the writing of the result to the removal of the resume state, with the copy to `--out` and the mark COMPLETE between
them. A run is computed once up to the window. Then a copy of it is resumed and killed with SIGKILL at a line of Python in the window, again
and again, at lines spread evenly over the window; every other one is killed once more, at a random line, while it is resumed.

After the last kill the run is resumed to its end. It is lost if anything was computed again, if it does not become COMPLETE, if the copy
differs from the run's files, or if a resume state or a partial file stays behind. Prints one JSON object; the exit code is 1 if a run was
lost.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.kills import configs, fingerprint, in_child, look, work_on, write_data
from core import layout, pipeline
from core.runs.output_folder import NOT_RESULTS
from core.runs.state import RunState
from core.runs.store import RunStore

_TRACED = (str(Path(pipeline.__file__).parent), shutil.__file__)  # lines of other files are not counted


class Killer:
    """Counts lines from the beginning of the window on, and kills this process at line `at`; None: never."""

    def __init__(self, at: int | None) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Killer:
        if event == "line" and frame.f_code.co_filename.startswith(_TRACED):
            self.lines += 1
            if self.lines == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self

    def watch(self) -> None:
        """The window begins where the result is written, or read when an earlier process wrote it."""
        for name in ("write_json", "_stored_result"):
            setattr(pipeline, name, partial(self._begin, getattr(pipeline, name)))

    def _begin(self, function: Callable[..., Any], *arguments: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame:
            frame.f_trace = self
            frame = frame.f_back
        sys.settrace(self)
        return function(*arguments)


def finish(folder: Path, at: int | None, lines: Path) -> None:
    """Resumes the run in a process that computes nothing and is killed at line `at`. Writes the number of lines to the file `lines`."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed again")

    for name in ("generate", "quantize", "measure_full_precision", "diversity"):
        setattr(pipeline, name, refuse)
    killer = Killer(at)
    killer.watch()
    try:
        work_on(folder, None)
    except Exception:
        traceback.print_exc()  # the run is FAILED, and so counts as lost
    sys.settrace(None)
    lines.write_text(str(killer.lines), encoding="utf-8")


def wrong_at_the_end(folder: Path, wanted: str) -> list[str]:
    """What is wrong with the folder after the run has been resumed to its end."""
    store = RunStore(folder)
    store.mark_interrupted()
    (run,) = store.runs()
    source, out = store.run_folder(run.id), folder / "out"
    found = [] if run.state is RunState.COMPLETE else [f"the run is {run.state}: {run.error}"]
    store.close()
    results = sorted(path.relative_to(source) for path in source.rglob("*") if path.relative_to(source).parts[0] not in NOT_RESULTS)
    files = [str(path) for path in results if (source / path).is_file()]
    if (
        results != sorted(path.relative_to(out) for path in out.rglob("*"))
        or filecmp.cmpfiles(source, out, files, shallow=False)[0] != files
    ):
        found.append("the copy differs from the run's files")
    if fingerprint(source) != wanted:
        found.append("images or networks differ")
    if (source / layout.CHECKPOINT).exists():
        found.append("the resume state was left behind")
    return found + [f"{count} {kind}" for kind, count in look(folder, 1).items() if count]


def measure(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kills a run in the window `kills` times; returns what was lost."""
    chance = random.Random(seed)
    data, target, template, lines = folder / "data", folder / "run", folder / "template", folder / "lines"
    write_data(data)

    def first() -> None:
        Killer(1).watch()
        work_on(target, configs(data)["minmax"], target / "out")

    ended, _ = in_child(first)
    assert not ended
    shutil.copytree(target, template)
    in_child(partial(finish, target, None, lines))
    window = int(lines.read_text(encoding="utf-8"))
    (run_folder,) = (path.parent for path in target.glob(f"*/{layout.RESULT}") if path.parent.name != "out")
    wanted = fingerprint(run_folder)
    lost: dict[str, list[str]] = {}
    states: Counter[str] = Counter()
    done = runs = 0
    while done < kills:
        shutil.rmtree(target)
        shutil.copytree(template, target)
        where = [1 + done * window // kills]
        if runs % 2 and done + 1 < kills:
            where.append(chance.randint(1, window))
        for at in where:
            if unfinished(target):
                ended, _ = in_child(partial(finish, target, at, lines))
                done += not ended
                states[state_of(target)] += not ended
                if ended:  # the window of a run whose result was written is shorter
                    break
        if unfinished(target):
            in_child(partial(finish, target, None, lines))
        wrong = wrong_at_the_end(target, wanted)
        if wrong:
            lost[f"killed at {where} of {window} lines"] = wrong
        runs += 1
    return {"kills": done, "lines_in_the_window": window, "states_after_a_kill": dict(states), "runs": runs, "lost": lost}


def state_of(folder: Path) -> str:
    """The state of the only run, as the next process finds it."""
    store = RunStore(folder)
    store.mark_interrupted()
    (run,) = store.runs()
    store.close()
    return str(run.state)


def unfinished(folder: Path) -> bool:
    """Whether the run must be resumed."""
    return state_of(folder) != RunState.COMPLETE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outcome = measure(options.kills, options.seed, Path(temporary))
    print(json.dumps(outcome, indent=2))
    raise SystemExit(1 if outcome["lost"] else 0)
