"""Deleting runs and restoring them."""

import sqlite3
import time
from contextlib import closing

import pytest
from run_stores import UNFINISHED, created, frame

from core.errors import RunError
from core.runs.database import DATABASE
from core.runs.run import DAYS_IN_TRASH
from core.runs.state import RunState
from core.runs.trash import Trash


def in_trash(store) -> str:
    run_id = created(store, RunState.COMPLETE)
    store.append(run_id, "generation", "adam", 1, {"total": 1.0})
    store.set_note(run_id, "a note")
    store.pin(run_id)
    (store.run_folder(run_id) / "file").write_text("content", encoding="utf-8")
    store.trash.put(run_id)
    return run_id


def test_run_in_the_trash_is_unlisted_and_restored_unchanged(store):
    other = created(store)
    run_id = created(store, RunState.STOPPED)
    (store.run_folder(run_id) / "file").write_text("content", encoding="utf-8")
    store.append(run_id, "generation", "adam", 1, {"total": 1.0})
    store.set_tags(run_id, ["a tag"])
    before = store.run(run_id)
    moment = time.time()
    store.trash.put(run_id)
    assert [run.id for run in store.runs()] == [other]
    (trashed,) = store.trash.runs()
    assert moment <= trashed.trashed <= time.time()
    assert (trashed.id, trashed.name, trashed.tags) == (run_id, "a name", ("a tag",))
    for call in (
        store.run,
        store.config,
        store.trash.put,
        store.resume,
        store.pin,
        lambda name: store.rename(name, "other"),
        lambda name: store.set_note(name, "other"),
        lambda name: store.set_tags(name, []),
        lambda name: store.set_state(name, RunState.RUNNING),
    ):
        with pytest.raises(RunError, match=f"run '{run_id}' was deleted: it must be restored first, under Runs, within 7 days"):
            call(run_id)
    store.trash.restore(run_id)
    assert store.run(run_id) == before
    assert store.trash.runs() == []
    assert (store.run_folder(run_id) / "file").read_text(encoding="utf-8") == "content"
    assert [record.data for record in store.records(run_id, "generation")] == [{"total": 1.0}]


@pytest.mark.parametrize("state", UNFINISHED)
def test_unfinished_run_cannot_be_moved_to_the_trash(store, state):
    run_id = created(store, state)
    with pytest.raises(RunError, match=f"must be finished to be deleted, but is {state}"):
        store.trash.put(run_id)
    assert store.run(run_id).trashed is None


def test_only_runs_in_the_trash_can_be_restored(store):
    run_id = created(store, RunState.COMPLETE)
    for name in (run_id, "nobody"):
        with pytest.raises(RunError, match=f"run to restore must have been deleted within the last 7 days, got '{name}'"):
            store.trash.restore(name)


def test_restored_baseline_does_not_replace_a_new_one(store):
    first = in_trash(store)
    store.trash.restore(first)
    assert store.run(first).pinned
    store.trash.put(first)
    second = created(store)
    store.pin(second)
    store.trash.restore(first)
    assert [run.id for run in store.runs() if run.pinned] == [second]


def test_run_in_the_trash_can_be_deleted_permanently(store):
    run_id, kept = in_trash(store), in_trash(store)
    store.delete(run_id)
    assert not store.run_folder(run_id).exists()
    assert [run.id for run in store.trash.runs()] == [kept]
    with pytest.raises(RunError, match="must have been deleted within the last 7 days"):
        store.trash.restore(run_id)
    assert store.records(run_id, "generation") == []


def test_expired_runs_are_deleted(store, monkeypatch):
    old, new, restored = in_trash(store), in_trash(store), in_trash(store)
    week = DAYS_IN_TRASH * 24 * 3600
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE run SET trashed = ? WHERE id IN (?, ?)", (time.time() - week - 60, old, restored))
        connection.execute("UPDATE run SET trashed = ? WHERE id = ?", (time.time() - week + 60, new))
    expire = Trash._expire

    def restored_meanwhile(run_id, long_ago, connection):
        if run_id == restored:
            connection.execute("UPDATE run SET trashed = NULL WHERE id = ?", (run_id,))
        return expire(run_id, long_ago, connection)

    monkeypatch.setattr(store.trash, "_expire", restored_meanwhile)
    store.mark_interrupted()
    assert [run.id for run in store.trash.runs()] == [new]
    assert [run.id for run in store.runs()] == [restored]
    assert not store.run_folder(old).exists()
    assert (store.run_folder(new) / "file").exists()
    assert (store.run_folder(restored) / "file").exists()


def test_interrupted_deletion_is_completed_later(store, monkeypatch):
    run_id = in_trash(store)
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE run SET trashed = 1.0")

    def died(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("core.runs.trash.remove", died)
        with pytest.raises(KeyboardInterrupt):
            store.mark_interrupted()
    assert store.trash.runs() == store.runs() == []  # a partly deleted run cannot be restored
    with pytest.raises(RunError, match="must have been deleted within the last 7 days"):
        store.trash.restore(run_id)
    store.mark_interrupted()
    assert not store.run_folder(run_id).exists()


@pytest.mark.parametrize("state", UNFINISHED)
def test_unfinished_run_cannot_be_deleted(store, state):
    run_id = created(store, state)
    with pytest.raises(RunError, match=f"must be finished to be deleted, but is {state}"):
        store.delete(run_id)
    assert store.run(run_id).state is state
    assert store.run_folder(run_id).is_dir()


def test_deleting_removes_everything_of_one_run_only(store):
    run_id, other = created(store), created(store)
    for target in (run_id, other):
        store.append(target, "generation", "adam", 1, {})
        store.add_change(target, "adam", 1, "lr", 0.5)
        store.set_result(target, "a", 1)
        store.frames.save(target, "adam", frame(1), True)
        store.set_state(target, RunState.COMPLETE)
    store.delete(run_id)
    assert [run.id for run in store.runs()] == [other]
    assert not store.run_folder(run_id).exists()
    with pytest.raises(RunError, match="does not exist"):
        store.run(run_id)
    with sqlite3.connect(store.folder / DATABASE) as connection:
        for table, column in (("run", "id"), ("record", "run"), ("change", "run"), ("result", "run")):
            assert connection.execute(f"SELECT {column} FROM {table}").fetchall() == [(other,)], table
    assert store.frames.read(other, "adam").step == 1
