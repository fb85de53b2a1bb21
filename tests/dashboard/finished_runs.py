"""Stores with one complete run, for fixtures."""

from pathlib import Path

from core.config import RunConfig
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore


def store_of_one_run(folder: Path, config: RunConfig, name: str) -> Path:
    """Computes a run in a new store in `folder`; returns the folder."""
    store = RunStore(folder)
    manager = RunManager(store)
    run_id = manager.start(config, name)
    manager.wait(run_id)
    manager.close()
    assert store.run(run_id).state is RunState.COMPLETE, store.run(run_id).traceback
    store.close()
    return folder
