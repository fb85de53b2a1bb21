"""Shared by tests of forms: what they start."""

import pytest

from core.runs.state import RunState
from dashboard import session


@pytest.fixture
def started(runs_folder, monkeypatch):
    """Configs that a form started; they are not computed."""
    configs = []
    manager = session.manager()

    def start(config, name="", user="", changes=(), executor=""):
        configs.append(config)
        run_id = manager.store.create(config, name or "a run", changes=changes)
        manager.store.set_state(run_id, RunState.STOPPED)
        return run_id

    monkeypatch.setattr(manager, "start", start)
    return configs
