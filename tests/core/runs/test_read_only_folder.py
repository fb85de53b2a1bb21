"""A runs folder on a read-only disk: what is kept can be read, what writes says that it cannot, and it works again once it can."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, contextmanager

import pytest
from run_stores import created

from core.errors import RunError, StoreError
from core.runs.database import DATABASE
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore
from tests.small_disks import mounted

WRITES = [
    lambda store, run_id: store.create(store.config(run_id), "x"),
    lambda store, run_id: store.rename(run_id, "x"),
    lambda store, run_id: store.pin(run_id),
    lambda store, run_id: store.resume(run_id),
    lambda store, run_id: store.delete(run_id),
    lambda store, run_id: store.trash.put(run_id),
    lambda store, run_id: store.append(run_id, "generation", "adam", 2, {}),
    lambda store, run_id: store.set_result(run_id, "x", 1),
    lambda store, run_id: store.sync(),
    lambda store, run_id: store.owner,
]


@pytest.fixture
def source(tmp_path):
    """A store with a run, open."""
    store = RunStore(tmp_path / "source")
    run_id = created(store, RunState.STOPPED)
    store.append(run_id, "generation", "adam", 1, {"total": 1.5})
    yield store, run_id
    store.close()


@contextmanager
def read_only(folder, source):
    """A copy of a runs folder on a read-only disk."""
    with mounted(folder, 8) as disk:
        shutil.copytree(source, folder / "runs")
        disk.remount("ro")
        yield disk, folder / "runs"


@pytest.mark.parametrize("is_open", [True, False])
def test_runs_are_read_and_nothing_is_written(source, tmp_path, is_open):
    """With what a process had written but not merged into the database, if it was open when it was copied."""
    store, run_id = source
    if not is_open:
        store.close()
    assert (store.folder / f"{DATABASE}-wal").exists() == is_open
    with read_only(tmp_path / "disk", store.folder) as (_, folder):
        kept = RunStore(folder)
        assert [run.id for run in kept.runs()] == [run_id]
        assert [record.data for record in kept.records(run_id, "generation")] == [{"total": 1.5}]
        assert kept.mark_interrupted() == []
        assert kept.trash.runs() == []
        for act in WRITES:
            with pytest.raises(StoreError, match="^the runs folder must be writable, but .* is read-only: make it writable and try again$"):
                act(kept, run_id)
        kept.close()


def test_log_without_its_index_is_never_ignored(source, tmp_path):
    """The database alone would show an earlier state of the runs."""
    store, _ = source
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    (copy / f"{DATABASE}-shm").unlink()
    with read_only(tmp_path / "disk", copy) as (_, folder), pytest.raises(StoreError, match="must be writable, but .* is read-only"):
        RunStore(folder)


def test_folder_works_again_once_it_can_be_written(source, tmp_path):
    store, run_id = source
    with read_only(tmp_path / "disk", store.folder) as (disk, folder):
        kept = RunStore(folder)
        manager = RunManager(kept)
        with pytest.raises(StoreError, match="is read-only"):
            manager.start(kept.config(run_id))
        disk.remount("rw")
        assert kept.mark_interrupted() == []
        kept.rename(run_id, "writable")
        assert kept.run(run_id).name == "writable"
        assert kept.owner in os.listdir(folder / "owners")
        manager.close()
        kept.close()


def test_process_that_can_write_is_followed(source, tmp_path):
    """As in a container that has the runs folder of its host, read-only."""
    store, run_id = source
    with mounted(tmp_path / "disk", 1):  # to skip the test where nothing can be mounted
        pass
    view = tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", store.folder, view], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
        kept = RunStore(view)
        for name in ("first", "second"):
            store.rename(run_id, name)
            assert kept.run(run_id).name == name
        store.close()
        assert not (view / f"{DATABASE}-wal").exists()
        assert kept.run(run_id).name == "second"
        again = RunStore(store.folder)
        again.rename(run_id, "third")
        assert kept.run(run_id).name == "third"
        again.close()
        kept.close()
    finally:
        subprocess.run(["umount", view], check=True)


def test_other_schema_versions_are_refused(source, tmp_path):
    store, _ = source
    store.close()
    for version, message in ((5, "must be upgraded from schema version 5 to 7, but is read-only: copy it"), (99, "update this program")):
        with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        with read_only(tmp_path / f"disk {version}", store.folder) as (_, folder), pytest.raises(RunError, match=message):
            RunStore(folder)


def test_read_only_folder_without_a_database_is_refused(tmp_path):
    with mounted(tmp_path / "disk", 1) as disk:
        (disk.folder / "runs").mkdir()
        disk.remount("ro")
        for folder in (disk.folder / "runs", disk.folder / "new"):
            with pytest.raises(RunError, match="the runs folder must be a writable folder, got"):
                RunStore(folder)


def test_folder_of_another_user(source, tmp_path, monkeypatch):
    """As somebody without the right to write to the folder, or to the database alone, finds it; the tests are often run by root."""
    store, run_id = source
    access = os.access
    for denied in (store.folder, store.folder / DATABASE):
        monkeypatch.setattr(os, "access", lambda path, mode, denied=denied: access(path, mode) and os.fspath(path) != os.fspath(denied))
        kept = RunStore(store.folder)
        assert kept.run(run_id).name == "a name"
        with pytest.raises(StoreError, match="is read-only"):
            kept.rename(run_id, "x")
        kept.close()
        assert os.listdir(store.folder / "owners") == [store.owner]
