"""Stores, managers and faults for the tests of runs."""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from file_faults import CONFIG, STAGES, Faults, compute, fingerprint, prepared_with

from core.evaluation import real
from core.generation import forward_pass
from core.quantization.training import QuantizationTraining
from core.runs.manager import RunManager
from core.runs.store import RunStore
from core.stages import quantization


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
def fast_engine(monkeypatch):
    """The engine without what takes time and writes no file: evaluation, analysis, and tracing the network again for each run."""
    monkeypatch.setattr(forward_pass, "with_statistics", functools.cache(forward_pass.with_statistics))
    monkeypatch.setattr(QuantizationTraining, "inference_network", lambda training: training.student)
    monkeypatch.setattr(quantization, "top1_hits", lambda network, model, images, **_: torch.zeros(len(images), dtype=torch.bool))

    def scored_alike(network, model, images, see, **_):
        see(torch.zeros(len(images), len(model.spec.classes)), images.labels)

    monkeypatch.setattr(real, "each_batch", scored_alike)
    monkeypatch.setattr(quantization, "analyze", lambda *_: {"layers": []})


@pytest.fixture
def undisturbed(in_memory, prepared, faults, fast_engine):
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
