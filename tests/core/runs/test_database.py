"""Schema versions, damaged databases, and the reserve for a full disk."""

import json
import os
import sqlite3
from contextlib import closing, contextmanager

import pytest
from run_stores import CONFIG, created

from core.errors import RunError, StoreError
from core.runs.database import DATABASE, Database
from core.runs.state import RunState
from core.runs.store import RunStore


def test_database_of_a_newer_version_is_refused_and_unchanged(tmp_path):
    store = RunStore(tmp_path)
    created(store)
    store.close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RunError, match="must have schema version 0 to 7, got 99"):
        RunStore(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (1,)


def test_a_running_process_of_an_earlier_version_does_not_spoil_the_upgrade(tmp_path):
    """Before version 7, `sync` wrote the version number of its own program, also over that of an upgraded schema."""
    store = RunStore(tmp_path)
    run_id = created(store)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 8")  # upgraded while it is open here
    store.database.sync()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (8,)
        connection.execute("PRAGMA user_version = 6")  # as an earlier version does
    store.close()
    again = RunStore(tmp_path)
    assert [run.id for run in again.runs()] == [run_id]
    again.close()


# a copy of the schema of version 1, because the code that creates it may change
VERSION_1 = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, config TEXT NOT NULL, state TEXT NOT NULL, owner TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, error TEXT NOT NULL DEFAULT '', traceback TEXT NOT NULL DEFAULT '',
    stage TEXT NOT NULL DEFAULT '', stage_started REAL, step INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE record (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
    stage TEXT NOT NULL, lane TEXT NOT NULL, step INTEGER NOT NULL, data TEXT NOT NULL
);
CREATE INDEX record_by_run ON record (run, stage, id);
CREATE TABLE change (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
    lane TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL NOT NULL
);
CREATE TABLE result (
    run TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE, name TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (run, name)
);
PRAGMA user_version = 1;
"""


@pytest.fixture
def version_1(tmp_path):
    """A runs folder of version 1 with a complete, a running and a queued run."""
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection, connection:
        connection.executescript(VERSION_1)
        for index, (run_id, state) in enumerate((("one", "complete"), ("two", "running"), ("three", "queued"))):
            connection.execute(
                "INSERT INTO run (id, name, config, state, owner, created, started, stage, step, total) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (run_id, f"run {run_id}", json.dumps(CONFIG.to_dict()), state, "gone", 100.0 + index, 105.0, "generation", 2, 10),
            )
            for step in (1, 2):
                connection.execute(
                    "INSERT INTO record (run, stage, lane, step, data) VALUES (?, 'generation', 'adam', ?, ?)",
                    (run_id, step, json.dumps({"total": step / 3})),
                )
            connection.execute("INSERT INTO change (run, lane, step, name, value) VALUES (?, 'adam', 1, 'lr', 0.25)", (run_id,))
            connection.execute("INSERT INTO result (run, name, data) VALUES (?, 'full_precision', '{\"top1\": 92.5}')", (run_id,))
            (tmp_path / run_id).mkdir()
    return tmp_path


def test_database_of_version_1_is_upgraded(version_1):
    store = RunStore(version_1)
    with closing(sqlite3.connect(version_1 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert [(run.id, run.name, run.state, run.created) for run in store.runs()] == [
        ("three", "run three", RunState.QUEUED, 102.0),
        ("two", "run two", RunState.RUNNING, 101.0),
        ("one", "run one", RunState.COMPLETE, 100.0),
    ]
    for run in store.runs():
        assert run.config == CONFIG
        assert (run.started, run.stage, run.step, run.total) == (105.0, "generation", 2, 10)
        assert (run.attempt, run.user, run.out, run.output_subset) == (1, "", "", "")
        assert [(record.step, record.data) for record in store.records(run.id, "generation")] == [
            (1, {"total": 1 / 3}),
            (2, {"total": 2 / 3}),
        ]
        assert store.changes(run.id) == [{"method": "adam", "step": 1, "name": "lr", "value": 0.25}]
        assert store.results(run.id) == {"full_precision": {"top1": 92.5}}
    store.close()


def test_runs_of_version_1_can_be_resumed_deleted_and_queued(version_1):
    store = RunStore(version_1)
    assert sorted(store.mark_interrupted()) == ["three", "two"]
    new = store.create(CONFIG, "")
    store.resume("two")
    store.resume("three")
    assert store.ahead("three") == [new, "two"]
    assert store.run("two").attempt == 2
    with pytest.raises(RunError, match="resumed, but is complete"):
        store.resume("one")
    store.delete("one")
    assert not (version_1 / "one").exists()
    store.close()
    RunStore(version_1).close()  # it can be opened again


def test_migration_that_fails_halfway_changes_nothing(version_1, monkeypatch):
    execute = Database._migrate

    class Breaking:
        def __init__(self, connection):
            self.connection, self.left = connection, 4

        def execute(self, statement):
            self.left -= 1
            if self.left < 0:
                raise sqlite3.OperationalError("database or disk is full")
            return self.connection.execute(statement)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_migrate", lambda self, connection: execute(self, Breaking(connection)))
        with pytest.raises(StoreError, match="is full: free"):
            RunStore(version_1)
    with closing(sqlite3.connect(version_1 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert "place" not in {row[1] for row in connection.execute("PRAGMA table_info(run)")}
    assert os.listdir(version_1 / "owners") == []
    store = RunStore(version_1)
    assert len(store.runs()) == 3
    store.close()


# the changes of version 2
VERSION_2 = """
ALTER TABLE run ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
ALTER TABLE run ADD COLUMN user TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN out TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN part TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN stage_done INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX change_by_run ON change (run, id);
UPDATE run SET place = 7, attempt = 2, user = 'u', out = '/o', part = 'p', stage_done = 1 WHERE id = 'one';
UPDATE run SET deleted = 1, state = 'stopped' WHERE id = 'three';
PRAGMA user_version = 2;
"""


@pytest.fixture
def version_2(version_1):
    """The same folder, upgraded to version 2 and used there. The third run is deleted except for its files."""
    with closing(sqlite3.connect(version_1 / DATABASE)) as connection:
        connection.executescript(VERSION_2)
    return version_1


def test_database_of_version_2_is_upgraded(version_2):
    store = RunStore(version_2)
    with closing(sqlite3.connect(version_2 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    two, one = store.runs()
    assert (one.id, one.name, one.config, one.state, one.created, one.started) == (
        "one",
        "run one",
        CONFIG,
        RunState.COMPLETE,
        100.0,
        105.0,
    )
    assert (one.attempt, one.user, one.out, one.output_subset, one.stage_done) == (2, "u", "/o", "p", 1)
    for run in (one, two):
        assert (run.note, run.tags, run.pinned, run.trashed) == ("", (), False, None)
        assert [record.data for record in store.records(run.id, "generation")] == [{"total": 1 / 3}, {"total": 2 / 3}]
        assert store.changes(run.id) == [{"method": "adam", "step": 1, "name": "lr", "value": 0.25}]
        assert store.results(run.id) == {"full_precision": {"top1": 92.5}}
    assert store.mark_interrupted() == ["two"]
    assert not (version_2 / "three").exists()
    store.set_note("one", "kept")
    store.trash.put("one")
    store.close()
    store = RunStore(version_2)
    store.trash.restore("one")
    assert store.run("one").note == "kept"
    store.close()


@pytest.mark.parametrize("statements", range(7))
def test_migration_from_version_2_that_fails_halfway_changes_nothing(version_2, monkeypatch, statements):
    """Fails at one of its statements: four of version 3, two of version 4, and the version number."""
    execute = Database._migrate

    class Breaking:
        def __init__(self, connection):
            self.connection, self.left = connection, statements + 1  # the first only reads the version

        def execute(self, statement):
            self.left -= 1
            if self.left < 0:
                raise sqlite3.OperationalError("database or disk is full")
            return self.connection.execute(statement)

    with closing(sqlite3.connect(version_2 / DATABASE)) as connection:
        before = list(connection.iterdump())
    with monkeypatch.context() as patch:
        patch.setattr(Database, "_migrate", lambda self, connection: execute(self, Breaking(connection)))
        with pytest.raises(StoreError, match="is full: free"):
            RunStore(version_2)
    with closing(sqlite3.connect(version_2 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert list(connection.iterdump()) == before
    store = RunStore(version_2)
    assert [run.id for run in store.runs()] == ["two", "one"]
    store.close()


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_file_that_is_not_a_database_is_refused(tmp_path, content):
    (tmp_path / DATABASE).write_bytes(content)
    with pytest.raises(RunError) as caught:
        RunStore(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / DATABASE} must be a database of this program or absent, but cannot be read (" in message
    assert "\n" not in message
    assert (tmp_path / DATABASE).read_bytes() == content
    assert os.listdir(tmp_path / "owners") == []


def test_unusable_runs_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="the runs folder must be a writable folder, got"):
        RunStore(tmp_path / "file")
    (tmp_path / "runs" / DATABASE).mkdir(parents=True)
    with pytest.raises(RunError, match="must be a database of this program .* cannot be read"):
        RunStore(tmp_path / "runs")


def test_reserve_is_used_once_and_refilled(store, monkeypatch):
    from core.runs.database import RESERVE, RESERVE_BYTES

    reserve, write, refused = store.folder / RESERVE, store.database.write, []
    assert reserve.stat().st_size == RESERVE_BYTES

    @contextmanager
    def full(durable=True):
        if reserve.exists():
            refused.append(durable)
            raise StoreError("the disk is full") from sqlite3.OperationalError("database or disk is full")
        with write(durable) as connection:
            yield connection

    run_id = created(store)
    monkeypatch.setattr(store.database, "write", full)
    store.set_state(run_id, RunState.FAILED, "full")
    assert refused == [True]
    assert not reserve.exists()
    monkeypatch.undo()
    created(store)
    assert reserve.stat().st_size == RESERVE_BYTES


def test_connection_in_a_transaction_is_not_reused(store):
    with store.database.read() as stuck:
        stuck.execute("BEGIN IMMEDIATE")
    created(store)
    assert len(store.runs()) == 1
