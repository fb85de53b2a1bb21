"""A store with one real finished run, made once per session; each test gets its own copy. And logins."""

import shutil
from collections import OrderedDict

import pytest
import streamlit as st
from finished_runs import store_of_one_run
from login_cookies import OIDC, TOKEN

from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.store import RUNS_VARIABLE
from dashboard import session
from dashboard.server import settings
from tests.evaluation_images import few_evaluation_images

TINY = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=40, iterations=4, batch_size=20, snapshots=2),
    training=TrainingConfig(steps=3, training_batch_size=20),
    bits=(4,),
)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory):
    """The folder of a store with one complete run of both methods."""
    with few_evaluation_images():
        return store_of_one_run(tmp_path_factory.mktemp("finished"), TINY, "a finished run")


@pytest.fixture(scope="module")
def fewer_images():
    """What the pages start is evaluated on as many images as the finished run."""
    with few_evaluation_images():
        yield


@pytest.fixture
def runs_folder(tmp_path, monkeypatch, runs_in_threads, fewer_images):
    """An empty store for the pages; runs that they start are stopped after the test."""
    folder = tmp_path / "runs"
    monkeypatch.setenv(RUNS_VARIABLE, str(folder))
    session.manager.clear()
    session.sweeper.clear()
    # copies of the one finished run have the same id, and some tests change their results and records
    session.shared_cache.clear()
    monkeypatch.setattr(session, "_records", OrderedDict())
    yield folder
    session.manager().close()
    session.manager.clear()


@pytest.fixture
def with_finished_run(runs_folder, finished_runs):
    """The id of the finished run, in the store of `runs_folder`."""
    shutil.copytree(finished_runs, runs_folder, dirs_exist_ok=True)
    return session.store().runs()[0].id


@pytest.fixture
def with_token(monkeypatch):
    """A login by token is configured."""
    monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN)


@pytest.fixture
def with_accounts(monkeypatch):
    """A login by account is configured."""
    monkeypatch.setattr(settings, "auth", lambda: OIDC)


@pytest.fixture
def cookies(monkeypatch):
    """The cookies that the browser sends with a session."""
    sent: dict[str, str] = {}
    monkeypatch.setattr(type(st.context), "cookies", property(lambda context: sent))
    return sent
