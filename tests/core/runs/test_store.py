"""The runs of one store: states, stages, names, notes and tags."""

import json
import sqlite3
import time
from pathlib import Path

import pytest
from run_stores import CONFIG, FINISHED, UNFINISHED, created

from core.config import RunConfig
from core.errors import RunError
from core.runs.database import DATABASE
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore, default_folder


def test_finished_states():
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


def test_ids_are_distinct_and_the_newest_run_is_first(store):
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
    assert store.run(run_id).started == started  # the time of the first start
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


def test_unknown_run_is_refused(store):
    for call in (store.run, store.delete, lambda name: store.set_state(name, RunState.RUNNING), lambda name: store.rename(name, "other")):
        with pytest.raises(RunError, match="run 'nobody' does not exist"):
            call("nobody")
    assert store.records("nobody", "generation") == []
    assert store.changes("nobody") == []
    assert store.results("nobody") == {}
    assert store.frames.read("nobody", "adam") is None


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


def test_a_pause_does_not_count_as_time_of_the_stage(store, monkeypatch):
    run_id = store.create(RunConfig(), "")
    store.set_state(run_id, RunState.RUNNING)
    store.set_stage(run_id, "generation", 80)
    for step in range(1, 9):
        store.append(run_id, "generation", "adam", step, {"total": 1.0})
    store.set_state(run_id, RunState.PAUSED)
    began = store.run(run_id).stage_started
    monkeypatch.setattr(time, "time", lambda: began + 600)
    store.requeue(run_id)
    store.set_state(run_id, RunState.RUNNING)
    run = store.run(run_id)
    assert (run.stage_started, run.stage_done, run.step) == (began + 600, 8, 8)


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
def test_limits_of_names_notes_and_tags(store, write, message):
    run_id = created(store)
    before = store.run(run_id)
    with pytest.raises(RunError, match=message):
        write(store, run_id)
    assert store.run(run_id) == before


def test_at_most_one_run_is_the_baseline(store):
    ids = [created(store) for _ in range(3)]
    assert not any(run.pinned for run in store.runs())
    for run_id in ids:
        store.pin(run_id)
        assert [run.id for run in store.runs() if run.pinned] == [run_id]
    with pytest.raises(RunError, match="does not exist"):
        store.pin("nobody")
    assert store.run(ids[2]).pinned  # unchanged
    store.unpin(ids[0])
    assert store.run(ids[2]).pinned
    store.unpin(ids[2])
    assert not any(run.pinned for run in store.runs())


def test_images_folder_of_generated_and_given_images(store, tmp_path):
    run = store.run(created(store))
    assert store.images_folder(run) == store.run_folder(run.id) / "images"
    given = store.run(store.create(RunConfig(images_from=str(tmp_path / "given")), ""))
    assert store.images_folder(given) == tmp_path / "given"


def test_runs_persist_after_reopening(tmp_path):
    first = RunStore(tmp_path)
    run_id = created(first, RunState.COMPLETE)
    first.append(run_id, "generation", "adam", 1, {"total": 2.5})
    before = first.run(run_id)
    first.close()
    second = RunStore(tmp_path)
    assert second.run(run_id) == before
    assert second.records(run_id, "generation")[0].data == {"total": 2.5}
    second.close()


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)
    assert default_folder() == Path("runs")
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "elsewhere"))
    assert default_folder() == tmp_path / "elsewhere"
    RunStore().close()
    assert (tmp_path / "elsewhere" / DATABASE).is_file()


def test_config_is_stored_as_json(store):
    run_id = created(store)
    with sqlite3.connect(store.folder / DATABASE) as connection:
        text = connection.execute("SELECT config FROM run WHERE id = ?", (run_id,)).fetchone()[0]
    assert RunConfig.from_dict(json.loads(text)) == CONFIG


def test_stage_of_an_unknown_run_is_refused(store):
    with pytest.raises(RunError, match="run 'nobody' does not exist"):
        store.set_stage("nobody", "generation", 3)


def test_run_whose_folder_cannot_be_created_is_still_queued(store, monkeypatch):
    mkdir = Path.mkdir

    def fails(path, *rest, **options):
        if path.parent == store.folder:
            raise OSError(28, "No space left on device")
        mkdir(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fails)
        run_id = created(store)
    assert store.run(run_id).state is RunState.QUEUED  # the error occurs when it is computed
    assert not store.run_folder(run_id).exists()
