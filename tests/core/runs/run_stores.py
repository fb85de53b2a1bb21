"""Creates runs for the tests of the store, in this process, threads and other processes."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from core.config import EvaluationConfig, GenerationConfig, RunConfig
from core.reporting import Frame
from core.runs.state import RunState

ROOT = Path(__file__).parents[3]


CONFIG = RunConfig(
    generation=GenerationConfig(images=8, snapshots=2, iterations=5),
    bits=(2,),
    steps_by_bits={2: 7},
    evaluation=EvaluationConfig(encoder=""),
)


FINISHED = [state for state in RunState if state.is_finished()]


UNFINISHED = [state for state in RunState if not state.is_finished()]


def created(store, state=RunState.QUEUED) -> str:
    run_id = store.create(CONFIG, "a name")
    if state is not RunState.QUEUED:
        store.set_state(run_id, state)
    return run_id


def frame(step, count=2):
    return Frame(step, np.full((count, 3, 4, 4), step, dtype=np.uint8), np.arange(count))


def in_threads(count, function) -> None:
    errors, barrier = [], threading.Barrier(count)

    def work(index):
        try:
            barrier.wait()
            function(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def process(folder, code, *arguments) -> subprocess.Popen:
    """A process with a store and a running run. It prints the id of the run, executes `code` and exits."""
    source = f"""
import sys, time
from pathlib import Path
from core.config import RunConfig
from core.runs.state import RunState
from core.runs.store import RunStore
store = RunStore(Path({str(folder)!r}))
run_id = store.create(RunConfig(), "of a process")
store.set_state(run_id, RunState.RUNNING)
print(run_id, flush=True)
{code}
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", source, *arguments], cwd=ROOT, **pipes, encoding="utf-8")
