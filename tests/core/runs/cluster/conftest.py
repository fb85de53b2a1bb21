"""A manager whose runs are computed on a Ray cluster, and one whose runs are computed here."""

import pytest

from core.runs.manager import RunManager
from core.runs.store import RunStore


@pytest.fixture
def on_cluster(cluster, tmp_path):
    manager = RunManager(RunStore(tmp_path / "of the cluster"), executor="ray")
    yield manager
    manager.close()
    manager.store.close()


@pytest.fixture
def here(tmp_path):
    manager = RunManager(RunStore(tmp_path / "here"), executor="threads")
    yield manager
    manager.close()
    manager.store.close()


@pytest.fixture
def often(cluster, monkeypatch):
    """Runs on the cluster write a resume state at every opportunity."""
    monkeypatch.setattr("core.runs.cluster.executor.SECONDS_BETWEEN", 0.0)
