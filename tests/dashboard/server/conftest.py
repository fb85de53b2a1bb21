"""No login is configured at first, and each test has its own file of logins."""

import pytest
from streamlit import config

from core.runs.store import RUNS_VARIABLE
from dashboard.server import logins, settings


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No login configured, a loopback address, no guesses yet."""
    for variable in (settings.TOKEN_VARIABLE, settings.USERS_VARIABLE, settings.ADMINS_VARIABLE, settings.UNPROTECTED_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setattr(logins, "guesses", logins.Guesses())
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", before)
