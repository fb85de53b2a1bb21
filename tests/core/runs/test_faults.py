"""Every file operation of a run fails, once or permanently: the run reports it, no partial file is visible, and it can be resumed.

The network is small and the steps are few, so that a run can be repeated for each of its operations.
"""

import errno
import itertools
import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from file_faults import CONFIG, FULL, STAGES, check_files, check_store, compute, fingerprint, is_sentence

import core.pipeline
from core.errors import CoreError, RunError, RunStopped, StoreError
from core.reporting import NoControl
from core.runs.database import DATABASE, RESERVE, Database
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RunStore


def one_fault(folder, prepared, faults, undisturbed, at, error, for_good) -> str:
    """Computes a run with operation `at` failing and checks everything that must hold afterwards. Returns the kind of operation."""
    store = RunStore(folder)
    run_id, raised = "", None
    faults.watch(store.folder, at, error, for_good)
    try:
        run_id = store.create(CONFIG, "")
        compute(store, run_id, prepared)
    except BaseException as failure:
        raised = failure
    faults.rest()
    about = f"operation {at} ({faults.failed[:1]}), {raised!r}"
    assert faults.failed, about
    kind = faults.failed[0]
    if not run_id:
        # failed before the run existed
        assert isinstance(raised, (OSError, StoreError)), about
        assert store.runs() == [], about
        store.close()
        return kind
    run = store.run(run_id)
    if raised is None:
        # the operation was not needed, or was repeated
        assert run.state is RunState.COMPLETE, about
    else:
        assert run.state is RunState.FAILED, about
        assert is_sentence(run.error), (about, run.error)
        assert "Traceback" in run.traceback, about
        if error is FULL:
            assert "full" in run.error, (about, run.error)
    check_files(store.run_folder(run_id))
    check_store(store, run_id)
    store.close()

    again = RunStore(folder)
    check_store(again, run_id)
    assert again.mark_interrupted() == []
    assert again.run(run_id).state is run.state
    if run.state is RunState.FAILED:
        again.resume(run_id)
        compute(again, run_id, prepared)
        assert again.run(run_id).state is RunState.COMPLETE, about
        assert again.run(run_id).error == ""
    operations, wanted, records = undisturbed
    assert fingerprint(again.run_folder(run_id)) == wanted, about
    assert [(record.stage, record.series, record.step) for stage in STAGES for record in again.records(run_id, stage)] == records, about
    assert list(folder.rglob("*.partial")) == [], about
    assert not (again.run_folder(run_id) / "checkpoint").exists(), about
    again.close()
    return kind


@pytest.mark.slow
def test_disk_that_fills_up_at_each_kind_of_operation(in_memory, prepared, faults, undisturbed):
    """From an operation on, the disk has no space except the reserve: from the first of each kind, and from every third."""
    operations, *_ = undisturbed
    numbers = sorted({*faults.first.values(), *range(1, operations.total() + 1, 3)})
    kinds = {one_fault(in_memory / str(at), prepared, faults, undisturbed, at, FULL, for_good=True) for at in numbers}
    assert kinds == operations.keys() >= {"sync", "replace", "create", "write", "safetensors", "mkdir", "commit", "open", "chmod"}


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_single_failing_operations(in_memory, prepared, faults, undisturbed, code):
    """One operation fails, and the next succeeds; a different sample of operations for each error."""
    operations, *_ = undisturbed
    error = FULL if code == errno.ENOSPC else OSError(code, os.strerror(code))
    for at in range(1 + code % 11, operations.total() + 1, 11):
        one_fault(in_memory / str(at), prepared, faults, undisturbed, at, error, for_good=False)


def test_final_state_is_stored_once_there_is_space(tmp_path, monkeypatch, prepared, faults):
    """If the reserve is not enough, the manager tries again until it can store FAILED with error and traceback."""
    monkeypatch.setattr("core.runs.execution.SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr(core.pipeline, "prepare", lambda config, reporter: prepared)
    manager = RunManager(RunStore(tmp_path))
    happens = faults.happens
    blocked = []

    def nothing_fits(kind, path=None):
        if kind == "commit" and faults.counted["commit"] > 10 and len(blocked) < 8:
            blocked.append(kind)
            raise sqlite3.OperationalError("database or disk is full")
        happens(kind, path)

    monkeypatch.setattr(faults, "happens", nothing_fits)
    faults.watch(tmp_path)
    run_id = manager.start(CONFIG)
    manager.wait(run_id, 60)
    faults.rest()
    run = manager.store.run(run_id)
    assert len(blocked) == 8
    assert run.state is RunState.FAILED
    assert "full" in run.error
    assert "Traceback" in run.traceback
    manager.close()
    manager.store.close()


def test_database_that_cannot_grow(tmp_path, monkeypatch, prepared):
    """SQLite's page limit keeps it from growing."""
    store = RunStore(tmp_path)
    run_id = store.create(CONFIG, "")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        size = connection.execute("PRAGMA page_count").fetchone()[0]
    store.close()
    connect, limit = Database._connect, [size]

    def limited(self, *arguments):
        connection = connect(self, *arguments)
        connection.execute(f"PRAGMA max_page_count = {limit[0]}")
        return connection

    monkeypatch.setattr(Database, "_connect", limited)
    store = RunStore(tmp_path)
    store.mark_interrupted()
    store.resume(run_id)
    with pytest.raises(StoreError, match="full"):
        append_for_ever(store, run_id)
    check_store_at_all(store, run_id)
    kept = len(store.records(run_id, "generation"))
    assert kept == store.run(run_id).step
    with pytest.raises(StoreError, match="full"):
        store.append(run_id, "generation", "mi-fgsm", 1, {"layers": [1.5] * 3000})
    # changing a row needs no new page
    store.set_state(run_id, RunState.FAILED, "the disk is full")
    assert store.run(run_id).error == "the disk is full"
    store.close()
    limit[0] = 1 << 20
    store = RunStore(tmp_path)
    assert len(store.records(run_id, "generation")) == kept
    store.resume(run_id)
    compute(store, run_id, prepared)
    assert store.run(run_id).state is RunState.COMPLETE
    check_store(store, run_id)
    store.close()


def append_for_ever(store, run_id) -> None:
    for step in itertools.count(1):
        store.append(run_id, "generation", "mi-fgsm", step, {"total": 0.5, "layers": [1.5] * 30})


def check_store_at_all(store, run_id) -> None:
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert store.run(run_id).id == run_id


@pytest.mark.parametrize("leave", [0, 40_000, 150_000, 400_000])
def test_real_disk_that_fills_up(small_disk, monkeypatch, prepared, undisturbed, leave):
    """The run fails with a message, everything it stored stays readable, also in a reopened store, and it resumes once there is space."""
    folder = small_disk.folder
    store = RunStore(folder / "runs")
    run_id = store.create(CONFIG, "")

    class Filling(StoreReporter):
        def record(self, stage, method, step, values):
            super().record(stage, method, step, {**values, "more": "x" * 20_000})
            if (stage, step) == ("generation", 1):
                small_disk.fill(leave)
            if stage == "training":
                small_disk.fill()

    with pytest.raises(StoreError, match="is full: free some space and resume the run"):
        perform(store, run_id, Filling(store, run_id), NoControl(), prepared=prepared, every=0.0)
    run = store.run(run_id)
    assert run.state is RunState.FAILED
    assert str(store.folder) in run.error
    assert "full" in run.error
    assert is_sentence(run.error)
    assert "Traceback" in run.traceback
    # while the disk is full, this store and a reopened one can read
    small_disk.fill()
    check_files(store.run_folder(run_id))
    check_store(store, run_id)
    stored = store.records(run_id, "generation")
    assert stored
    store.close()
    small_disk.fill()
    store = RunStore(folder / "runs")
    assert store.mark_interrupted() == []
    assert store.run(run_id) == run
    assert store.records(run_id, "generation") == stored
    small_disk.remount("size=64m")
    store.resume(run_id)
    compute(store, run_id, prepared)
    assert store.run(run_id).state is RunState.COMPLETE
    assert (store.folder / RESERVE).stat().st_size == 1 << 20  # refilled
    check_store(store, run_id)
    assert fingerprint(store.run_folder(run_id)) == undisturbed[1]
    store.close()


def test_interrupted_run_is_marked_on_a_full_disk(small_disk):
    folder = small_disk.folder
    store = RunStore(folder / "runs")
    run_id = store.create(CONFIG, "")
    store.set_state(run_id, RunState.RUNNING)
    store.close()
    small_disk.fill()
    store = RunStore(folder / "runs")
    assert store.mark_interrupted() == [run_id]
    assert store.run(run_id).state is RunState.INTERRUPTED
    store.close()


def test_error_of_a_copy_to_a_full_disk_names_that_disk(small_disk, tmp_path, prepared):
    folder = small_disk.folder
    small_disk.fill(8192)
    store = RunStore(tmp_path / "runs")
    out = folder / "out"
    run_id = store.create(CONFIG, "", out=str(out))
    with pytest.raises(CoreError):
        compute(store, run_id, prepared)
    run = store.run(run_id)
    assert run.state is RunState.FAILED
    assert is_sentence(run.error)
    assert str(out) in run.error
    assert "No space left" in run.error
    assert [path.name for path in folder.iterdir()] == ["someone-else.bin"]
    small_disk.remount("size=64m")
    store.resume(run_id)
    compute(store, run_id, prepared)
    assert fingerprint(out) == fingerprint(store.run_folder(run_id))
    store.close()


def test_resume_state_that_cannot_be_saved_at_a_stop(tmp_path, prepared, faults):
    """A run stopped on a full disk reports that it could not save its resume state, and resumes from the previous one."""

    class Stops(NoControl):
        def pause_point(self):
            faults.watch(tmp_path, 1, FULL)
            raise RunStopped("enough")

    store = RunStore(tmp_path)
    run_id = store.create(CONFIG, "")
    with pytest.raises(StoreError, match="full"):
        perform(store, run_id, StoreReporter(store, run_id), Stops(), prepared=replace(prepared, evaluation_set=None), every=1e9)
    faults.rest()
    assert store.run(run_id).state is RunState.FAILED
    assert "full" in store.run(run_id).error
    store.close()


def test_thread_that_cannot_start(tmp_path, monkeypatch):
    """The run is FAILED and does not block the queue."""
    manager = RunManager(RunStore(tmp_path))

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", start)
        with pytest.raises(RunError, match="cannot start without a thread .*resume it"):
            manager.start(CONFIG)
    (run,) = manager.store.runs()
    assert run.state is RunState.FAILED
    assert "can't start new thread" in run.error
    assert not manager.controls(run.id)
    manager.close()
    manager.store.close()
