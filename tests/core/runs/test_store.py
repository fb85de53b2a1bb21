"""The contract in the store's docstring."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from core.config import EvaluationConfig, GenerationConfig, RunConfig
from core.errors import RunError
from core.reporting import Frame, RunningStatistics
from core.runs.database import DATABASE, Database
from core.runs.run import DAYS_IN_TRASH
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore, default_folder
from core.runs.trash import Trash

ROOT = Path(__file__).parents[3]
CONFIG = RunConfig(
    generation=GenerationConfig(images=8, snapshots=2, iterations=5),
    bits=(2,),
    steps_by_bits={2: 7},
    evaluation=EvaluationConfig(encoder=""),
)
FINISHED = [state for state in RunState if state.is_finished()]
UNFINISHED = [state for state in RunState if not state.is_finished()]


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


def created(store, state=RunState.QUEUED) -> str:
    run_id = store.create(CONFIG, "a name")
    if state is not RunState.QUEUED:
        store.set_state(run_id, state)
    return run_id


def test_states_that_are_the_end():
    assert [state.value for state in UNFINISHED] == ["queued", "running", "paused"]
    assert [state.value for state in FINISHED] == ["complete", "stopped", "failed", "interrupted"]


def test_new_run(store):
    before = time.time()
    run_id = created(store)
    run = store.run(run_id)
    assert (run.id, run.name, run.config, run.state) == (run_id, "a name", CONFIG, RunState.QUEUED)
    assert before <= run.created <= time.time()
    assert (run.started, run.ended, run.error, run.traceback, run.stage, run.step, run.total) == (None, None, "", "", "", 0, 0)
    assert store.run_folder(run_id).is_dir()
    assert store.runs() == [run]


def test_ids_are_distinct_and_newest_comes_first(store):
    ids = [created(store) for _ in range(20)]
    assert len(set(ids)) == 20
    assert [run.id for run in store.runs()] == ids[::-1]


def test_times_of_a_run(store):
    run_id = created(store, RunState.RUNNING)
    started = store.run(run_id).started
    assert started >= store.run(run_id).created
    store.set_state(run_id, RunState.PAUSED)
    time.sleep(0.01)
    store.set_state(run_id, RunState.RUNNING)
    assert store.run(run_id).started == started  # of the first time
    assert store.run(run_id).ended is None
    store.set_state(run_id, RunState.COMPLETE)
    assert store.run(run_id).ended > started


@pytest.mark.parametrize("state", FINISHED)
def test_finished_state_does_not_change(store, state):
    run_id = created(store)
    store.set_state(run_id, state, "an error", "a traceback")
    before = store.run(run_id)
    for other in RunState:
        with pytest.raises(RunError, match=f"{run_id}' must be unfinished to change its state, but is {state}"):
            store.set_state(run_id, other, "another")
    assert store.run(run_id) == before
    assert (before.error, before.traceback) == ("an error", "a traceback")


def test_unknown_run(store):
    for call in (store.run, store.delete, lambda name: store.set_state(name, RunState.RUNNING), lambda name: store.rename(name, "other")):
        with pytest.raises(RunError, match="run 'nobody' does not exist"):
            call("nobody")
    assert store.records("nobody", "generation") == []
    assert store.changes("nobody") == []
    assert store.results("nobody") == {}
    assert store.frames.read("nobody", "adam") is None


def test_nothing_is_kept_of_a_run_that_does_not_exist(store):
    with pytest.raises((RunError, sqlite3.IntegrityError)):
        store.append("nobody", "generation", "adam", 1, {"total": 1.0})
    assert store.records("nobody", "generation") == []


def test_records_come_back_in_the_order_of_writing(store):
    run_id, other = created(store), created(store)
    written = [(method, step) for step in (3, 1, 2, 2) for method in ("mi-fgsm", "adam")]
    for method, step in written:
        store.append(run_id, "generation", method, step, {"total": step / 3, "layers": [1.5, 2.5]})
    store.append(run_id, "training", "adam W4A4", 1, {"ce": 0.5})
    store.append(other, "generation", "adam", 99, {})
    records = store.records(run_id, "generation")
    assert [(record.series, record.step) for record in records] == written
    assert [record.id for record in records] == sorted({record.id for record in records})
    assert records[0].data == {"total": 1.0, "layers": [1.5, 2.5]}
    assert records[2].data["total"] == 1 / 3  # to the last bit
    assert [record.data for record in store.records(run_id, "training")] == [{"ce": 0.5}]


def test_records_after_an_id(store):
    run_id = created(store)
    for step in range(5):
        store.append(run_id, "generation", "adam", step, {})
    records = store.records(run_id, "generation")
    assert store.records(run_id, "generation", after=records[2].id) == records[3:]
    assert store.records(run_id, "generation", after=records[-1].id) == []


def test_what_is_returned_is_a_copy(store):
    run_id = created(store)
    store.append(run_id, "generation", "adam", 1, {"total": 1.0})
    store.set_result(run_id, "a", {"b": [1]})
    store.add_change(run_id, "adam", 1, "lr", 0.5)
    store.records(run_id, "generation")[0].data["total"] = 2.0
    store.results(run_id)["a"]["b"].append(2)
    store.changes(run_id).clear()
    assert store.records(run_id, "generation")[0].data == {"total": 1.0}
    assert store.results(run_id) == {"a": {"b": [1]}}
    assert len(store.changes(run_id)) == 1


def test_stage_counts_its_steps(store):
    run_id = created(store)
    store.set_stage(run_id, "generation", 4)
    for step in range(3):
        store.append(run_id, "generation", "adam", step, {})
    run = store.run(run_id)
    assert (run.stage, run.step, run.total) == ("generation", 3, 4)
    assert run.stage_started == pytest.approx(time.time(), abs=5)
    store.set_stage(run_id, "training", 9)
    run = store.run(run_id)
    assert (run.stage, run.step, run.total) == ("training", 0, 9)


def test_changes_in_order(store):
    run_id, other = created(store), created(store)
    store.add_change(run_id, "mi-fgsm", 7, "mu", 0.1)
    store.add_change(run_id, "adam", 3, "lr", 0.25)
    store.add_change(other, "adam", 1, "lr", 0.5)
    assert store.changes(run_id) == [
        {"method": "mi-fgsm", "step": 7, "name": "mu", "value": 0.1},
        {"method": "adam", "step": 3, "name": "lr", "value": 0.25},
    ]


def test_last_result_of_a_name_holds(store):
    run_id = created(store)
    store.set_result(run_id, "b", 1)
    store.set_result(run_id, "a", {"x": None})
    store.set_result(run_id, "b", [2.5, "ε"])
    assert store.results(run_id) == {"a": {"x": None}, "b": [2.5, "ε"]}
    assert list(store.results(run_id)) == store.result_names(run_id) == ["a", "b"]


def test_rename(store):
    run_id = created(store)
    store.rename(run_id, "'; DROP TABLE run; --")
    assert store.run(run_id).name == "'; DROP TABLE run; --"
    store.set_state(run_id, RunState.COMPLETE)
    store.rename(run_id, "after its end")
    assert store.run(run_id).name == "after its end"


def test_note_and_tags(store):
    run_id, other = created(store), created(store)
    assert (store.run(run_id).note, store.run(run_id).tags) == ("", ())
    store.set_note(run_id, "two lines\n*as they are* ' \" ;--")
    store.set_tags(run_id, ["seed 1", "  a   b ", "a b", "Ümlaut, with comma"])
    run = store.run(run_id)
    assert run.note == "two lines\n*as they are* ' \" ;--"
    assert run.tags == ("a b", "seed 1", "Ümlaut, with comma")
    assert run in store.runs()
    assert (store.run(other).note, store.run(other).tags) == ("", ())
    store.set_note(run_id, "")
    store.set_tags(run_id, [])
    assert (store.run(run_id).note, store.run(run_id).tags) == ("", ())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda store, run: store.set_tags(run, ["good", " \n "]), "a tag must have a visible character, got an empty tag"),
        (lambda store, run: store.set_tags(run, ["x" * 41]), "tag must have at most 40 characters, got 41 in 'x+'"),
        (lambda store, run: store.set_tags(run, map(str, range(21))), "a run must have at most 20 tags, got 21"),
        (lambda store, run: store.set_note(run, "x" * 4001), "note must have at most 4,000 characters, got 4,001"),
        (lambda store, run: store.rename(run, "x" * 201), "name must have at most 200 characters, got 201"),
    ],
)
def test_what_is_written_about_a_run_has_a_measure(store, write, message):
    run_id = created(store)
    before = store.run(run_id)
    with pytest.raises(RunError, match=message):
        write(store, run_id)
    assert store.run(run_id) == before


def test_one_run_is_the_baseline(store):
    ids = [created(store) for _ in range(3)]
    assert not any(run.pinned for run in store.runs())
    for run_id in ids:
        store.pin(run_id)
        assert [run.id for run in store.runs() if run.pinned] == [run_id]
    with pytest.raises(RunError, match="does not exist"):
        store.pin("nobody")
    assert store.run(ids[2]).pinned  # as before
    store.unpin(ids[0])
    assert store.run(ids[2]).pinned
    store.unpin(ids[2])
    assert not any(run.pinned for run in store.runs())


# the trash


def in_trash(store) -> str:
    run_id = created(store, RunState.COMPLETE)
    store.append(run_id, "generation", "adam", 1, {"total": 1.0})
    store.set_note(run_id, "a note")
    store.pin(run_id)
    (store.run_folder(run_id) / "file").write_text("content")
    store.trash.put(run_id)
    return run_id


def test_run_in_the_trash_is_in_no_list_and_comes_back_as_it_was(store):
    other = created(store)
    run_id = created(store, RunState.STOPPED)
    (store.run_folder(run_id) / "file").write_text("content")
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
    assert (store.run_folder(run_id) / "file").read_text() == "content"
    assert [record.data for record in store.records(run_id, "generation")] == [{"total": 1.0}]


@pytest.mark.parametrize("state", UNFINISHED)
def test_unfinished_run_does_not_go_into_the_trash(store, state):
    run_id = created(store, state)
    with pytest.raises(RunError, match=f"must be finished to be deleted, but is {state}"):
        store.trash.put(run_id)
    assert store.run(run_id).trashed is None


def test_only_what_is_in_the_trash_can_be_restored(store):
    run_id = created(store, RunState.COMPLETE)
    for name in (run_id, "nobody"):
        with pytest.raises(RunError, match=f"run to restore must have been deleted within the last 7 days, got '{name}'"):
            store.trash.restore(name)


def test_baseline_that_was_in_the_trash_meanwhile_gives_way(store):
    first = in_trash(store)
    store.trash.restore(first)
    assert store.run(first).pinned
    store.trash.put(first)
    second = created(store)
    store.pin(second)
    store.trash.restore(first)
    assert [run.id for run in store.runs() if run.pinned] == [second]


def test_run_in_the_trash_can_be_deleted_for_good(store):
    run_id, kept = in_trash(store), in_trash(store)
    store.delete(run_id)
    assert not store.run_folder(run_id).exists()
    assert [run.id for run in store.trash.runs()] == [kept]
    with pytest.raises(RunError, match="must have been deleted within the last 7 days"):
        store.trash.restore(run_id)
    assert store.records(run_id, "generation") == []


def test_trash_is_emptied_of_what_was_long_in_it(store, monkeypatch):
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


def test_process_that_dies_while_it_empties_the_trash_leaves_the_rest_to_the_next(store, monkeypatch):
    run_id = in_trash(store)
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE run SET trashed = 1.0")

    def died(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("core.runs.trash.remove", died)
        with pytest.raises(KeyboardInterrupt):
            store.mark_interrupted()
    assert store.trash.runs() == store.runs() == []  # nobody restores half of a run
    with pytest.raises(RunError, match="must have been deleted within the last 7 days"):
        store.trash.restore(run_id)
    store.mark_interrupted()
    assert not store.run_folder(run_id).exists()


# for tables and charts of many runs


def test_curves_are_the_numbers_of_the_records(store):
    run_id = created(store)
    for step in range(1, 4):
        for method in ("mi-fgsm", "adam"):
            store.append(run_id, "generation", method, step, {"total": step / 3, "layers": [1.0, 2.0], "seconds": step * 0.1})
    store.append(run_id, "generation", "adam", 4, {"total": float("nan"), "other": 5})
    last, curves = store.curves(run_id, "generation")
    records = store.records(run_id, "generation")
    assert last == records[-1].id
    assert list(curves) == ["mi-fgsm", "adam"]
    assert set(curves["mi-fgsm"]) == {"step", "total", "seconds"}
    assert curves["mi-fgsm"]["total"].tolist() == [1 / 3, 2 / 3, 1.0]
    assert curves["adam"]["step"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(curves["adam"]["total"], [1 / 3, 2 / 3, 1.0, np.nan])
    np.testing.assert_array_equal(curves["adam"]["other"], [np.nan, np.nan, np.nan, 5])
    assert store.curves(run_id, "generation", after=records[-2].id)[1]["adam"]["step"].tolist() == [4]
    assert store.curves(run_id, "generation", after=last) == (last, {})
    assert store.curves(run_id, "training") == (0, {})


def test_some_results_of_all_runs(store):
    first, second = created(store), created(store)
    store.set_result(first, "full_precision", {"top1": 92.5})
    store.set_result(first, "accuracy/adam/W4A4", {"quantized": 90.0})
    store.set_result(first, "accuracy_of_another_kind", 1)
    store.set_result(first, "diversity/adam", {"matrix": [1]})
    store.set_result(second, "accuracy/adam/W4A4", {"quantized": 91.0})
    assert store.results_of_all(["full_precision", "accuracy"]) == {
        first: {"full_precision": {"top1": 92.5}, "accuracy/adam/W4A4": {"quantized": 90.0}},
        second: {"accuracy/adam/W4A4": {"quantized": 91.0}},
    }
    assert store.results_of_all(["accuracy"], second) == {second: {"accuracy/adam/W4A4": {"quantized": 91.0}}}
    assert store.results_of_all(["nothing"]) == {}


def frame(step, count=2):
    return Frame(step, np.full((count, 3, 4, 4), step, dtype=np.uint8), np.arange(count))


def full_frame(step, count=2, channels=5):
    random = np.random.default_rng(step)
    confidence, means, variances = (random.random(size, dtype=np.float32) for size in (count, channels, channels))
    images, labels = random.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8), random.integers(0, 10, count)
    return Frame(step, images, labels, labels[::-1].copy(), confidence, means, variances)


def same(first, second) -> bool:
    """To the last bit and the type."""
    return all(
        np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype
        for one, other in zip(vars(first).values(), vars(second).values())
    )


def test_frames_latest_and_kept(store):
    run_id = created(store)
    assert store.frames.read(run_id, "adam") is None
    for step, keep in ((1, True), (2, False), (10, True), (11, False)):
        store.frames.save(run_id, "adam", frame(step), keep)
    store.frames.save(run_id, "mi-fgsm", frame(5), False)
    assert store.frames.steps(run_id, "adam") == [1, 10]
    assert store.frames.steps(run_id, "mi-fgsm") == []
    assert same(store.frames.read(run_id, "adam"), frame(11))
    assert same(store.frames.read(run_id, "adam", 10), frame(10))
    assert store.frames.read(run_id, "adam", 2) is None
    assert store.frames.read(run_id, "mi-fgsm").step == 5


def test_a_frame_comes_back_as_it_was(store):
    run_id = created(store)
    store.frames.save(run_id, "adam", full_frame(3), True)
    for step in (None, 3):
        assert same(store.frames.read(run_id, "adam", step), full_frame(3))


def test_a_frame_of_an_earlier_version_has_only_images_and_labels(store):
    run_id = created(store)
    folder = store.run_folder(run_id) / "frames" / "adam"
    folder.mkdir(parents=True)
    old = frame(4)
    np.savez(folder / "00000004.npz", images=old.images, labels=old.labels, step=4)
    read = store.frames.read(run_id, "adam", 4)
    assert same(read, old)
    assert (read.predicted, read.confidence, read.means, read.variances) == (None, None, None, None)


def test_running_statistics(store):
    run_id = created(store)
    assert store.frames.running_statistics(run_id) is None
    store.frames.save_running_statistics(run_id, RunningStatistics([2, 1], np.float32([1, 2, 3]), np.float32([0.5, 0.25, 4])))
    read = store.frames.running_statistics(run_id)
    assert read.channels == [2, 1]
    assert read.means.tolist() == [1, 2, 3]
    assert read.variances.tolist() == [0.5, 0.25, 4]
    assert read.means.dtype == read.variances.dtype == np.float32
    store.frames.save(run_id, "adam", frame(1), True)
    store.rewind(run_id, "generation", "adam", 0)  # a resumed run has the same network
    assert store.frames.running_statistics(run_id) is not None


@pytest.mark.parametrize("left", ["the beginning", "zeros at the end", "zeros in the middle"])
def test_what_a_power_cut_leaves_of_a_frame_is_missing(store, left):
    """Neither an exception nor half a picture, wherever the file ends."""
    run_id = created(store)
    store.frames.save(run_id, "adam", full_frame(1), True)
    path = store.run_folder(run_id) / "frames" / "adam" / "00000001.npz"
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        if left == "the beginning":
            path.write_bytes(whole[:position])
        elif left == "zeros at the end":
            path.write_bytes(whole[:position].ljust(len(whole), b"\0"))
        else:
            path.write_bytes(whole[:position] + bytes(64) + whole[position + 64 :])
        read = store.frames.read(run_id, "adam", 1)
        assert read is None or same(read, full_frame(1)), position
    assert store.frames.steps(run_id, "adam") == [1]


def test_frame_that_is_read_while_it_is_written_is_whole(store):
    run_id = created(store)
    store.frames.save(run_id, "adam", frame(0, 64), False)
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            read = store.frames.read(run_id, "adam")
            if not (read.images == read.step).all():
                torn.append(read.step)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(100):
        store.frames.save(run_id, "adam", frame(step, 64), False)
    stop.set()
    reader.join()
    assert torn == []


@pytest.mark.parametrize("state", UNFINISHED)
def test_unfinished_run_is_not_deleted(store, state):
    run_id = created(store, state)
    with pytest.raises(RunError, match=f"must be finished to be deleted, but is {state}"):
        store.delete(run_id)
    assert store.run(run_id).state is state
    assert store.run_folder(run_id).is_dir()


def test_deleting_removes_everything_of_one_run(store):
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


def test_images_are_those_made_or_those_given(store, tmp_path):
    run = store.run(created(store))
    assert store.images_folder(run) == store.run_folder(run.id) / "images"
    given = store.run(store.create(RunConfig(images_from=str(tmp_path / "given")), ""))
    assert store.images_folder(given) == tmp_path / "given"


def test_runs_are_there_after_reopening(tmp_path):
    first = RunStore(tmp_path)
    run_id = created(first, RunState.COMPLETE)
    first.append(run_id, "generation", "adam", 1, {"total": 2.5})
    before = first.run(run_id)
    first.close()
    second = RunStore(tmp_path)
    assert second.run(run_id) == before
    assert second.records(run_id, "generation")[0].data == {"total": 2.5}
    second.close()


def test_database_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    store = RunStore(tmp_path)
    created(store)
    store.close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RunError, match="must have schema version 0 to 4, got 99"):
        RunStore(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (1,)


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)
    assert default_folder() == Path("runs")
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "elsewhere"))
    assert default_folder() == tmp_path / "elsewhere"
    RunStore().close()
    assert (tmp_path / "elsewhere" / DATABASE).is_file()


# many threads and processes


def in_threads(count, function) -> None:
    errors, barrier = [], threading.Barrier(count)

    def work(index):
        try:
            barrier.wait()
            function(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_one_store_in_many_threads(store):
    run_id = created(store)
    in_threads(6, lambda index: [store.append(run_id, "generation", f"method {index}", step, {"i": index}) for step in range(25)])
    records = store.records(run_id, "generation")
    assert len(records) == store.run(run_id).step == 150
    for index in range(6):
        assert [record.step for record in records if record.series == f"method {index}"] == list(range(25))


def test_many_stores_open_one_new_folder_at_once(tmp_path):
    for attempt in range(5):
        stores = {}

        def opened(index, folder=tmp_path / str(attempt), stores=stores):
            stores[index] = RunStore(folder)
            created(stores[index])

        in_threads(8, opened)
        assert len(stores[0].runs()) == 8


def test_two_stores_see_each_others_writing(store):
    other = RunStore(store.folder)
    run_id = created(store, RunState.RUNNING)
    assert other.run(run_id) == store.run(run_id)
    other.append(run_id, "generation", "adam", 1, {"by": "other"})
    store.append(run_id, "generation", "adam", 2, {"by": "store"})
    assert [record.data["by"] for record in store.records(run_id, "generation")] == ["other", "store"]
    assert other.records(run_id, "generation") == store.records(run_id, "generation")
    other.close()


def process(folder, code, *arguments) -> subprocess.Popen:
    """A process with a store and one running run; it prints the id, does `code` and ends."""
    source = f"""
import sys, time
from pathlib import Path
from core.config import RunConfig
from core.runs.state import RunState
from core.runs.store import RunStore
store = RunStore(Path({str(folder)!r}))
run_id = store.create(RunConfig(), "of a process")
store.set_state(run_id, RunState.RUNNING)
print(run_id, flush=True)
{code}
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", source, *arguments], cwd=ROOT, text=True, **pipes)


def test_dead_process_leaves_an_interrupted_run_and_a_living_one_is_left_alone(store):
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


def test_store_opened_in_a_thread_that_has_ended_still_lives(tmp_path):
    """As in the dashboard, where the thread of the first page view makes the store and ends."""
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


def test_config_is_kept_as_json(store):
    run_id = created(store)
    with sqlite3.connect(store.folder / DATABASE) as connection:
        text = connection.execute("SELECT config FROM run WHERE id = ?", (run_id,)).fetchone()[0]
    assert RunConfig.from_dict(json.loads(text)) == CONFIG


def test_stage_of_an_unknown_run(store):
    with pytest.raises(RunError, match="run 'nobody' does not exist"):
        store.set_stage("nobody", "generation", 3)


def owners(store) -> list[str]:
    return sorted(os.listdir(store.folder / "owners"))


def test_lock_file_is_gone_after_close(tmp_path):
    first, second = RunStore(tmp_path), RunStore(tmp_path)
    assert len(owners(first)) == 2
    first.close()
    first.close()  # a second time changes nothing
    assert len(owners(second)) == 1
    second.close()
    assert owners(second) == []


def test_lock_files_of_dead_processes_are_removed_whatever_the_clock_says(store):
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


def test_run_that_another_process_takes_over_meanwhile_is_none_of_ours(tmp_path, monkeypatch):
    first = RunStore(tmp_path)
    run_id = created(first, RunState.RUNNING)
    first.close()
    second, third = RunStore(tmp_path), RunStore(tmp_path)

    def taken_over_by_another(owner):
        monkeypatch.undo()
        assert third.mark_interrupted() == [run_id]
        third.resume(run_id)
        return False

    monkeypatch.setattr(second.database.process, "is_alive", taken_over_by_another)
    assert second.mark_interrupted() == []
    assert second.run(run_id).state is RunState.QUEUED
    second.close()
    third.close()


# versions

# the schema as it was in version 1, written down, as the code that made it may change
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
    """A folder as version 1 left it: a complete run, one that was going on, and one that waited."""
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


def test_database_of_version_1_is_brought_forward(version_1):
    store = RunStore(version_1)
    with closing(sqlite3.connect(version_1 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
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


def test_runs_of_version_1_can_be_resumed_deleted_and_stand_in_the_line(version_1):
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
    RunStore(version_1).close()  # and opens a second time


def test_migration_that_fails_halfway_has_not_happened(version_1, monkeypatch):
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
        with pytest.raises(RunError, match="is full: free"):
            RunStore(version_1)
    with closing(sqlite3.connect(version_1 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert "place" not in {row[1] for row in connection.execute("PRAGMA table_info(run)")}
    assert os.listdir(version_1 / "owners") == []
    store = RunStore(version_1)
    assert len(store.runs()) == 3
    store.close()


# what version 2 added to it
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
    """The same, brought to version 2 and used there; the third run was deleted but for its files."""
    with closing(sqlite3.connect(version_1 / DATABASE)) as connection:
        connection.executescript(VERSION_2)
    return version_1


def test_database_of_version_2_is_brought_forward(version_2):
    store = RunStore(version_2)
    with closing(sqlite3.connect(version_2 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
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


@pytest.mark.parametrize("statements", range(5))
def test_migration_from_version_2_that_fails_halfway_has_not_happened(version_2, monkeypatch, statements):
    """At each of its statements."""
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
        with pytest.raises(RunError, match="is full: free"):
            RunStore(version_2)
    with closing(sqlite3.connect(version_2 / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert list(connection.iterdump()) == before
    store = RunStore(version_2)
    assert [run.id for run in store.runs()] == ["two", "one"]
    store.close()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_file_that_is_no_database(tmp_path, content):
    (tmp_path / DATABASE).write_bytes(content)
    with pytest.raises(RunError) as caught:
        RunStore(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / DATABASE} must be a database of this program or absent, but cannot be read (" in message
    assert "\n" not in message
    assert (tmp_path / DATABASE).read_bytes() == content
    assert os.listdir(tmp_path / "owners") == []


def test_folder_that_cannot_keep_runs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="the runs folder must be a writable folder, got"):
        RunStore(tmp_path / "file")
    (tmp_path / "runs" / DATABASE).mkdir(parents=True)
    with pytest.raises(RunError, match="must be a database of this program .* cannot be read"):
        RunStore(tmp_path / "runs")


def test_run_whose_folder_cannot_be_made_holds_up_nobody(store, monkeypatch):
    mkdir = Path.mkdir

    def fails(path, *rest, **options):
        if path.parent == store.folder:
            raise OSError(28, "No space left on device")
        mkdir(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fails)
        run_id = created(store)
    assert store.run(run_id).state is RunState.QUEUED  # whoever computes it finds out
    assert not store.run_folder(run_id).exists()


def test_reserve_is_given_up_once_and_filled_again(store, monkeypatch):
    from core.runs.database import RESERVE, RESERVE_BYTES

    reserve, write, refused = store.folder / RESERVE, store.database.write, []
    assert reserve.stat().st_size == RESERVE_BYTES

    @contextmanager
    def full(durable=True):
        if reserve.exists():
            refused.append(durable)
            raise sqlite3.OperationalError("database or disk is full")
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


def test_connection_that_is_stuck_is_not_used_again(store):
    with store.database.read() as stuck:
        stuck.execute("BEGIN IMMEDIATE")
    created(store)
    assert len(store.runs()) == 1


# processes


def test_what_another_left_half_written_may_belong_to_somebody_else(store, monkeypatch, tmp_path):
    """The copy that a dead one began may lie where this process may not write; the run is interrupted all the same."""
    dead = RunStore(store.folder)
    run_id = dead.create(CONFIG, "", out=str(tmp_path / "out"))
    dead.set_state(run_id, RunState.RUNNING)
    dead.close()

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("core.runs.store.remove", refused)
    assert store.mark_interrupted() == [run_id]
    assert store.run(run_id).state is RunState.INTERRUPTED


def test_nothing_of_a_run_that_was_taken_over_is_removed(tmp_path, monkeypatch):
    """One marks it, another resumes it and writes; the first must not remove what the second is writing."""
    first = RunStore(tmp_path)
    run_id = created(first, RunState.RUNNING)
    first.close()
    second, third = RunStore(tmp_path), RunStore(tmp_path)
    partial = second.run_folder(run_id) / ".state.pt.partial"
    partial.touch()

    def taken_over(owner):
        monkeypatch.undo()
        assert third.mark_interrupted() == [run_id]
        assert not partial.exists()
        third.resume(run_id)
        partial.touch()
        return False

    monkeypatch.setattr(second.database.process, "is_alive", taken_over)
    assert second.mark_interrupted() == []
    assert partial.exists()
    second.close()
    third.close()


BUSY = """
import random
from core.errors import RunError
from core.reporting import Frame, RunningStatistics
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
        # whoever comes second is told so
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
def test_clock_and_signals_bury_nobody_who_lives(store, monkeypatch, years):
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
from core.reporting import Frame, RunningStatistics
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
