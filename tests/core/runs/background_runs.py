"""Starts small runs in the background and waits for them."""

import time
from dataclasses import replace

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.runs.state import RunState

TINY = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    generation=GenerationConfig(images=8, iterations=3, snapshots=1, batch_size=4),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


# far more iterations than any test waits for
LONG = replace(TINY, generation=replace(TINY.generation, images=4, iterations=100_000))


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def is_in(manager, run_id, state):
    return lambda: manager.store.run(run_id).state is state


def steps(manager, run_id) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"mi-fgsm": [], "adam": []}
    for record in manager.store.records(run_id, "generation"):
        found[record.series].append(record.step)
    return found


def ended(manager, run_id):
    wait_until(lambda: manager.store.run(run_id).state.is_finished())
    return manager.store.run(run_id)


def running(manager, config=LONG, records=4) -> str:
    run_id = manager.start(config)
    wait_until(lambda: len(manager.store.records(run_id, "generation")) >= records)
    return run_id


def paused(manager, config=LONG) -> str:
    run_id = running(manager, config)
    manager.control(run_id).pause()
    wait_until(is_in(manager, run_id, RunState.PAUSED))
    return run_id
