"""Sentences for a runs folder that is full, locked, read-only or gone, and that it works again afterwards."""

import errno
import os
import shutil
import sqlite3
import threading
from contextlib import closing, contextmanager

import pytest
from run_stores import CONFIG, created

from core.errors import StoreError
from core.reporting import NoControl, NullReporter
from core.runs import database
from core.runs.execution import attempt, perform
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore
from core.runs.store_errors import DATABASE, store_error

# what pages and runs do with a store
READS = [
    lambda store, run_id: store.run(run_id),
    lambda store, run_id: store.runs(),
    lambda store, run_id: store.records(run_id, "generation"),
    lambda store, run_id: store.trash.runs(),
]
WRITES = [
    lambda store, run_id: store.create(CONFIG, "another"),
    lambda store, run_id: store.rename(run_id, "x"),
    lambda store, run_id: store.set_note(run_id, "x"),
    lambda store, run_id: store.set_tags(run_id, ["x"]),
    lambda store, run_id: store.pin(run_id),
    lambda store, run_id: store.unpin(run_id),
    lambda store, run_id: store.trash.put(run_id),
    lambda store, run_id: store.trash.restore(run_id),
    lambda store, run_id: store.delete(run_id),
    lambda store, run_id: store.resume(run_id),
    lambda store, run_id: store.set_state(run_id, RunState.RUNNING),
    lambda store, run_id: store.append(run_id, "generation", "adam", 1, {}),
    lambda store, run_id: store.set_result(run_id, "x", 1),
    lambda store, run_id: store.sync(),
]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (sqlite3.OperationalError("database or disk is full"), "the disk that holds {} is full: free some space"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk that holds {} is full: free some space"),
        (sqlite3.OperationalError("database is locked"), "the database in {} is locked by another process"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "the runs folder must be writable, but {} is read-only"),
        (OSError(errno.EROFS, "Read-only file system"), "the runs folder must be writable, but {} is read-only"),
        (sqlite3.OperationalError("disk I/O error"), "the database in {} cannot be read or written \\(disk I/O error\\): check its disk"),
        (sqlite3.DatabaseError("database disk image is malformed"), "the database in {} cannot be read or written \\(database disk image"),
    ],
    ids=str,
)
def test_sentences(store, error, sentence):
    found = store_error(error, store.folder)
    assert found is not None
    assert str(found).startswith(sentence.format(store.folder).replace("\\", ""))


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.IntegrityError("FOREIGN KEY constraint failed"),
        sqlite3.ProgrammingError("Cannot operate on a closed database."),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/images"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        ValueError("x"),
    ],
    ids=repr,
)
def test_errors_that_are_not_about_the_folder(store, error):
    assert store_error(error, store.folder) is None


def test_folder_that_is_removed_and_put_back(store, tmp_path):
    """Open connections would go on with the deleted database, and what they write would be lost."""
    run_id = created(store, RunState.STOPPED)
    away = store.folder.rename(tmp_path / "away")
    for act in (*READS, *WRITES, lambda store, run_id: store.mark_interrupted()):
        with pytest.raises(StoreError, match="was removed or is not mounted: put it back"):
            act(store, run_id)
    assert not store.folder.exists()  # nothing has created it again, so that it can be put back
    away.rename(store.folder)
    for act in READS:
        act(store, run_id)
    store.rename(run_id, "it is back")
    assert store.run(run_id).name == "it is back"


def test_folder_that_is_replaced_by_a_backup(store, tmp_path):
    run_id = created(store, RunState.STOPPED)
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = shutil.copytree(store.folder, tmp_path / "backup")
    store.rename(run_id, "after the backup")
    store.folder.rename(tmp_path / "away")
    backup.rename(store.folder)
    assert store.run(run_id).name == "a name"
    store.rename(run_id, "in the backup")
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
        assert connection.execute("SELECT name FROM run").fetchall() == [("in the backup",)]


def test_folder_that_is_removed_can_be_closed(tmp_path):
    store = RunStore(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs")
    store.close()
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def read_only(monkeypatch):
    """A list: while it has something in it, the disk is read-only, as the kernel makes one that has errors."""
    found = []

    class Connection(sqlite3.Connection):
        def execute(self, statement, *values):
            if found and statement == "BEGIN IMMEDIATE":
                raise sqlite3.OperationalError("attempt to write a readonly database")
            return super().execute(statement, *values)

    connect, opened = sqlite3.connect, os.open

    def open_file(path, flags, *rest, **keywords):
        if found and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **keywords)

    monkeypatch.setattr(database.sqlite3, "connect", lambda *rest, **keywords: connect(*rest, factory=Connection, **keywords))
    monkeypatch.setattr(os, "open", open_file)
    return found


def test_folder_that_becomes_read_only(read_only, tmp_path):
    store = RunStore(tmp_path / "runs")
    run_id = created(store, RunState.STOPPED)
    dead = RunStore(tmp_path / "runs")
    theirs = created(dead, RunState.RUNNING)
    dead.database.process._lock.release()  # as the operating system does when a process is killed
    read_only.append(True)
    for act in (*WRITES, lambda store, run_id: store.mark_interrupted()):
        with pytest.raises(StoreError, match="must be writable, but .* is read-only: make it writable"):
            act(store, run_id)
    assert store.run(run_id).state is RunState.STOPPED  # it can still be read
    read_only.clear()
    assert store.mark_interrupted() == [theirs]
    store.rename(run_id, "writable")
    assert store.run(run_id).name == "writable"
    read_only.append(True)
    store.close()
    read_only.clear()


@contextmanager
def locked(folder):
    """Another connection holds the write lock."""
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def impatient(monkeypatch, tmp_path):
    """A store that waits for a tenth of a second for locks."""
    monkeypatch.setattr(database, "SECONDS_FOR_A_LOCK", 0.1)
    store = RunStore(tmp_path / "impatient")
    yield store
    store.close()


def test_database_that_another_process_locks(impatient):
    run_id = created(impatient, RunState.STOPPED)
    with locked(impatient.folder):
        for act in WRITES:
            with pytest.raises(StoreError, match="is locked by another process: try again"):
                act(impatient, run_id)
        assert impatient.run(run_id).name == "a name"  # a lock does not keep anybody from reading
        RunStore(impatient.folder).close()  # nor from opening the folder
        assert (impatient.folder / database.RESERVE).exists()  # which is for full disks
    impatient.rename(run_id, "x")


class WhileLocked(NullReporter):
    """Each record finds the database locked for longer than a transaction waits."""

    def __init__(self, store, run_id):
        self.store, self.run_id = store, run_id

    def record(self, stage, series, step, values):
        with closing(sqlite3.connect(self.store.folder / DATABASE, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN EXCLUSIVE")
            unlock = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
            unlock.start()
            self.store.append(self.run_id, stage, series, step, values)
            unlock.join()


def test_run_waits_for_a_locked_database(impatient, monkeypatch, prepared):
    run_id = impatient.create(prepared.config, "")
    perform(impatient, run_id, WhileLocked(impatient, run_id), NoControl(), prepared=prepared, every=1e9)
    assert impatient.run(run_id).state is RunState.COMPLETE
    assert [record.step for record in impatient.records(run_id, "generation")] == [1, 2]


def test_run_whose_folder_is_removed_is_failed_once_it_is_back(store, tmp_path, monkeypatch):
    monkeypatch.setattr("core.runs.execution.SECONDS_BETWEEN_TRIES", 0.01)
    run_id = created(store, RunState.RUNNING)
    away = tmp_path / "away"

    def compute():
        store.folder.rename(away)
        threading.Timer(0.2, lambda: away.rename(store.folder)).start()
        store.append(run_id, "generation", "adam", 1, {})

    attempt(store, run_id, compute)
    run = store.run(run_id)
    assert run.state is RunState.FAILED
    assert "was removed or is not mounted" in run.error
    store.resume(run_id)


def test_end_of_a_run_that_was_deleted_meanwhile(store):
    """There is nothing to store its end in."""
    run_id = created(store, RunState.STOPPED)

    def compute():
        store.delete(run_id)
        raise StoreError("x")

    attempt(store, run_id, compute)


def test_manager_starts_nothing_in_a_folder_that_is_gone(tmp_path):
    manager = RunManager(RunStore(tmp_path / "runs"))
    (tmp_path / "runs").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="was removed"):
        manager.start(CONFIG)
    os.rename(tmp_path / "away", tmp_path / "runs")
    assert manager.store.runs() == []
    manager.close()
    manager.store.close()
