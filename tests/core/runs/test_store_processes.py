"""Several threads, stores and processes use one runs folder."""

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from run_stores import CONFIG, UNFINISHED, created, in_threads, process

from core.errors import RunError
from core.runs.database import DATABASE
from core.runs.state import RunState
from core.runs.store import RunStore


def test_one_store_in_many_threads(store):
    run_id = created(store)
    in_threads(6, lambda index: [store.append(run_id, "generation", f"method {index}", step, {"i": index}) for step in range(25)])
    records = store.records(run_id, "generation")
    assert len(records) == store.run(run_id).step == 150
    for index in range(6):
        assert [record.step for record in records if record.series == f"method {index}"] == list(range(25))


def test_many_stores_open_a_new_folder_at_once(tmp_path):
    for attempt in range(5):
        stores = {}

        def opened(index, folder=tmp_path / str(attempt), stores=stores):
            stores[index] = RunStore(folder)
            created(stores[index])

        in_threads(8, opened)
        assert len(stores[0].runs()) == 8


def test_two_stores_read_each_others_records(store):
    other = RunStore(store.folder)
    run_id = created(store, RunState.RUNNING)
    assert other.run(run_id) == store.run(run_id)
    other.append(run_id, "generation", "adam", 1, {"by": "other"})
    store.append(run_id, "generation", "adam", 2, {"by": "store"})
    assert [record.data["by"] for record in store.records(run_id, "generation")] == ["other", "store"]
    assert other.records(run_id, "generation") == store.records(run_id, "generation")
    other.close()


def test_run_of_a_dead_process_is_interrupted_and_of_a_live_one_is_not(store):
    living, dying = (process(store.folder, "sys.stdin.read()") for _ in range(2))
    try:
        living_run, dying_run = living.stdout.readline().strip(), dying.stdout.readline().strip()
        assert store.mark_interrupted() == []
        assert {store.run(run_id).state for run_id in (living_run, dying_run)} == {RunState.RUNNING}
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait(10)
        assert store.mark_interrupted() == [dying_run]
        assert store.run(living_run).state is RunState.RUNNING
        run = store.run(dying_run)
        assert run.state is RunState.INTERRUPTED
        assert "process" in run.error
        assert run.ended is not None
        assert store.mark_interrupted() == []
    finally:
        for one in (living, dying):
            one.kill()
            one.communicate(timeout=10)
    assert store.mark_interrupted() == [living_run]


def test_own_runs_are_never_interrupted(store):
    run_id = created(store, RunState.RUNNING)
    assert store.mark_interrupted() == []
    other = RunStore(store.folder)
    assert other.mark_interrupted() == []
    assert store.run(run_id).state is RunState.RUNNING
    other.close()


@pytest.mark.parametrize("state", UNFINISHED)
def test_every_unfinished_state_is_interrupted_after_close(tmp_path, state):
    first = RunStore(tmp_path)
    run_id, done = created(first, state), created(first, RunState.COMPLETE)
    first.close()
    second = RunStore(tmp_path)
    assert second.mark_interrupted() == [run_id]
    assert second.run(done).state is RunState.COMPLETE
    second.close()


def test_store_opened_in_a_thread_that_has_ended_stays_alive(tmp_path):
    """In the dashboard, the thread of the first page view creates the store and ends."""
    opened = []
    thread = threading.Thread(target=lambda: opened.append(RunStore(tmp_path)))
    thread.start()
    thread.join()
    run_id = created(opened[0], RunState.RUNNING)
    other = RunStore(tmp_path)
    assert other.mark_interrupted() == []
    assert other.run(run_id).state is RunState.RUNNING
    other.close()


def test_store_opened_in_one_thread_may_be_closed_in_another(tmp_path):
    opened = []
    thread = threading.Thread(target=lambda: opened.append(RunStore(tmp_path)))
    thread.start()
    thread.join()
    run_id = created(opened[0], RunState.RUNNING)
    opened[0].close()
    other = RunStore(tmp_path)
    assert other.mark_interrupted() == [run_id]
    other.close()


def test_two_processes_write_at_once(store):
    code = """
for step in range(100):
    store.append(run_id, "generation", "adam", step, {"step": step})
store.set_state(run_id, RunState.COMPLETE)
"""
    processes = [process(store.folder, code) for _ in range(2)]
    ids = [one.communicate(timeout=60)[0].split()[0] for one in processes]
    assert [one.returncode for one in processes] == [0, 0]
    for run_id in ids:
        assert store.run(run_id).state is RunState.COMPLETE
        assert [record.step for record in store.records(run_id, "generation")] == list(range(100))


def owners(store) -> list[str]:
    return sorted(os.listdir(store.folder / "owners"))


def test_close_removes_the_lock_file(tmp_path):
    first, second = RunStore(tmp_path), RunStore(tmp_path)
    assert len(owners(first)) == 2
    first.close()
    first.close()  # a second time has no effect
    assert len(owners(second)) == 1
    second.close()
    assert owners(second) == []


def test_lock_files_of_dead_processes_are_removed_regardless_of_their_time(store):
    living = RunStore(store.folder)
    for name in ("dead", "from the future", "from the past"):
        (store.folder / "owners" / name).touch()
    os.utime(store.folder / "owners" / "from the past", (1, 1))
    os.utime(store.folder / "owners" / "from the future", (1 << 33, 1 << 33))
    before = owners(store)
    for name in before:
        os.utime(store.folder / "owners" / name, (1, 1))
    store.mark_interrupted()
    assert owners(store) == [name for name in before if len(name) == 32]
    assert len(owners(store)) == 2
    living.close()


def test_run_resumed_elsewhere_meanwhile_is_not_marked(tmp_path, monkeypatch):
    first = RunStore(tmp_path)
    run_id = created(first, RunState.RUNNING)
    first.close()
    second, third = RunStore(tmp_path), RunStore(tmp_path)

    def resumed_by_another(owner):
        monkeypatch.undo()
        assert third.mark_interrupted() == [run_id]
        third.resume(run_id)
        return False

    monkeypatch.setattr(second.database.process, "is_alive", resumed_by_another)
    assert second.mark_interrupted() == []
    assert second.run(run_id).state is RunState.QUEUED
    second.close()
    third.close()


def test_run_is_marked_even_if_partial_files_cannot_be_removed(store, monkeypatch, tmp_path):
    """The partial copy of a dead process may be in a folder that this process cannot write to."""
    dead = RunStore(store.folder)
    run_id = dead.create(CONFIG, "", out=str(tmp_path / "out"))
    dead.set_state(run_id, RunState.RUNNING)
    dead.close()

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("core.runs.store.remove", refused)
    assert store.mark_interrupted() == [run_id]
    assert store.run(run_id).state is RunState.INTERRUPTED


def test_partial_files_of_a_run_resumed_elsewhere_are_kept(tmp_path, monkeypatch):
    """If another process resumes a run while this one marks it, its partial files must not be removed."""
    first = RunStore(tmp_path)
    run_id = created(first, RunState.RUNNING)
    first.close()
    second, third = RunStore(tmp_path), RunStore(tmp_path)
    partial = second.run_folder(run_id) / ".state.pt.partial"
    partial.touch()

    def resumed_elsewhere(owner):
        monkeypatch.undo()
        assert third.mark_interrupted() == [run_id]
        assert not partial.exists()
        third.resume(run_id)
        partial.touch()
        return False

    monkeypatch.setattr(second.database.process, "is_alive", resumed_elsewhere)
    assert second.mark_interrupted() == []
    assert partial.exists()
    second.close()
    third.close()


BUSY = """
import random
from core.errors import RunError
chance = random.Random(int(sys.argv[1]))
mine = [run_id]
for round in range(30):
    mine.append(store.create(RunConfig(), f"{sys.argv[1]} {round}"))
    store.set_stage(mine[-1], "generation", 5)
    for step in range(5):
        store.append(mine[-1], "generation", "adam", step, {"step": step})
    store.set_state(mine[-1], RunState.COMPLETE)
    store.mark_interrupted()
    for other in chance.sample(store.runs(), 2):
        # the second process to delete a run gets an error
        try:
            store.delete(other.id)
        except RunError as error:
            assert "does not exist" in str(error) or "but is running" in str(error) or "but is queued" in str(error), error
store.set_state(run_id, RunState.COMPLETE)
"""


def test_processes_create_append_and_delete_at_once(store):
    processes = [process(store.folder, BUSY, str(index)) for index in range(3)]
    for one in processes:
        _, said = one.communicate(timeout=120)
        assert one.returncode == 0, said
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("SELECT count(*) FROM run WHERE deleted").fetchone() == (0,)
    left = store.runs()
    assert 0 < len(left) < 93
    for run in left:
        assert run.state is RunState.COMPLETE
        assert store.run_folder(run.id).is_dir()
        assert [record.step for record in store.records(run.id, "generation")] == list(range(run.total))
    folders = {path.name for path in store.folder.iterdir() if path.is_dir()} - {"owners"}
    assert folders == {run.id for run in left}


@pytest.mark.parametrize("years", [0, 30, -30])
def test_clock_and_signals_do_not_make_a_process_look_dead(store, monkeypatch, years):
    now = time.time
    living = process(store.folder, "sys.stdin.read()")
    try:
        run_id = living.stdout.readline().strip()
        monkeypatch.setattr(time, "time", lambda: now() + years * 365 * 86400)
        os.kill(living.pid, signal.SIGSTOP)
        assert store.mark_interrupted() == []
        assert store.run(run_id).state is RunState.RUNNING
        with pytest.raises(RunError, match="resumed, but is running"):
            store.resume(run_id)
        os.kill(living.pid, signal.SIGKILL)
        living.wait(10)
        assert store.mark_interrupted() == [run_id]
        store.resume(run_id)
        assert store.run(run_id).state is RunState.QUEUED
    finally:
        living.kill()
        living.communicate(timeout=10)


CLAIM = """
sys.stdin.readline()
from core.errors import RunError
store.mark_interrupted()
try:
    store.resume(sys.argv[1])
    print("mine", flush=True)
except RunError as error:
    print(error, flush=True)
sys.stdin.readline()
"""


def test_two_processes_claim_one_interrupted_run(store):
    left = process(store.folder, "sys.stdin.read()")
    run_id = left.stdout.readline().strip()
    left.kill()
    left.communicate(timeout=10)
    claimants = [process(store.folder, CLAIM, run_id) for _ in range(3)]
    try:
        for one in claimants:
            one.stdout.readline()
        for one in claimants:
            one.stdin.write("\n")
            one.stdin.flush()
        said = [one.stdout.readline().strip() for one in claimants]
        assert said.count("mine") == 1
        assert all("resumed, but is queued" in text for text in said if text != "mine")
        assert store.run(run_id).attempt == 2
    finally:
        for one in claimants:
            one.kill()
            one.communicate(timeout=10)
