"""Stores, managers and faults for the tests of runs."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from file_faults import CONFIG, STAGES, Faults, compute, fingerprint, prepared_with

from core.runs.manager import RunManager
from core.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@pytest.fixture
def prepared(small):
    return prepared_with(small)


@pytest.fixture
def in_memory(tmp_path):
    """A folder in memory if possible, because many short runs would mostly wait for the disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def undisturbed(in_memory, prepared, faults):
    """(operations, fingerprint, records) of a run without faults."""
    store = RunStore(in_memory / "undisturbed")
    faults.watch(store.folder)
    run_id = store.create(CONFIG, "")
    compute(store, run_id, prepared)
    faults.rest()
    records = [(record.stage, record.series, record.step) for stage in STAGES for record in store.records(run_id, stage)]
    found = faults.counted.copy(), fingerprint(store.run_folder(run_id)), records
    store.close()
    return found


@pytest.fixture
def manager(tmp_path):
    manager = RunManager(RunStore(tmp_path / "runs"))
    yield manager
    manager.close()
    manager.store.close()
