"""Computing one run from its place in the queue to its end, in the calling thread."""

import json
import signal
import sqlite3
import threading
import time
from contextlib import closing

import pytest

import core.pipeline
from core import layout
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.errors import ConfigError, CoreError, RunError, RunStopped
from core.reporting import NoControl, NullReporter
from core.runs import execution
from core.runs.database import DATABASE
from core.runs.execution import AT_ONCE_VARIABLE, describe_error, perform, runs_at_once, wait_for_turn
from core.runs.state import RunState
from core.runs.store import RunStore

CONFIG = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    generation=GenerationConfig(images=4, iterations=2, snapshots=1, batch_size=4),
    methods=("mi-fgsm",),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def computed(monkeypatch):
    """Replaces the computation: lists the calls, and calls `does`, which the test may replace."""

    class Computed(list):
        does = staticmethod(lambda: {"done": True})

    found = Computed()

    def execute(config, folder, *rest):
        found.append((config, folder))
        return found.does()

    monkeypatch.setattr(core.pipeline, "execute", execute)
    return found


def go(store, run_id, finish=None, **options):
    """finish: called when files are delivered, in place of that."""
    with pytest.MonkeyPatch.context() as patched:
        if finish is not None:
            patched.setattr(execution, "deliver", lambda *_: finish() or {})
        return perform(store, run_id, NullReporter(), NoControl(), **options)


def test_run_is_computed_with_its_config_and_complete(store, computed, monkeypatch):
    run_id, order = store.create(CONFIG, ""), []
    computed.does = lambda: order.append(store.run(run_id).state) or {"done": True}
    monkeypatch.setattr(execution, "deliver", lambda store, run, *rest: order.append(store.run(run.id).state) or {"file": "x"})
    assert go(store, run_id) == {"done": True, "file": "x"}
    assert computed == [(CONFIG, store.run_folder(run_id))]
    assert order == [RunState.RUNNING, RunState.RUNNING]  # files are delivered before the run counts as complete
    assert store.run(run_id).state is RunState.COMPLETE


def test_results_are_copied_to_where_the_run_was_asked_to_put_them(store, computed, tmp_path):
    """Whoever computes the run: a server may resume one that the command line started."""
    run_id = store.create(CONFIG, "", out=str(tmp_path / "out"))
    computed.does = lambda: (store.run_folder(run_id) / "result.json").write_text("{}", encoding="utf-8") and {"done": True}
    go(store, run_id)
    assert (tmp_path / "out" / "result.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (RunStopped("enough"), RunState.STOPPED, ""),
        (CoreError("x is 3: allowed is 4"), RunState.FAILED, "x is 3: allowed is 4"),
        (KeyboardInterrupt(), RunState.INTERRUPTED, "it was interrupted from the keyboard"),
        (ZeroDivisionError("division by zero"), RunState.FAILED, "ZeroDivisionError: division by zero"),
        (RuntimeError("\n\nfirst\nsecond\n"), RunState.FAILED, "RuntimeError: first"),
        (KeyError(), RunState.FAILED, "KeyError"),
        (SystemExit(3), RunState.FAILED, "SystemExit: 3"),
        (RecursionError("maximum recursion depth exceeded"), RunState.FAILED, "RecursionError: maximum recursion depth exceeded"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("where", ["computing", "finishing"])
def test_reason_for_the_end_of_a_run_is_stored_and_raised(store, computed, error, state, text, where):
    def fails():
        raise error

    run_id = store.create(CONFIG, "")
    if where == "computing":
        computed.does = fails
    with pytest.raises(type(error)) as caught:
        go(store, run_id, finish=fails)
    assert caught.value is error
    run = store.run(run_id)
    assert (run.state, run.error) == (state, text)
    assert ("Traceback" in run.traceback and "fails" in run.traceback) == (state is RunState.FAILED)
    assert run.ended is not None


def resume_state(store, run_id):
    folder = store.run_folder(run_id) / layout.CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").write_text("{}", encoding="utf-8")
    return folder


def test_resume_state_is_removed_after_the_run_is_complete(store, computed):
    run_id, found = store.create(CONFIG, ""), []
    folder = resume_state(store, run_id)
    go(store, run_id, finish=lambda: found.append(folder.exists()))
    assert found == [True]
    assert store.run(run_id).state is RunState.COMPLETE
    assert not folder.exists()


@pytest.mark.parametrize("ending", [RunStopped("enough"), CoreError("x is 3"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_resume_state_of_a_run_that_is_not_complete_is_kept(store, computed, ending):
    def fails():
        raise ending

    run_id = store.create(CONFIG, "")
    folder = resume_state(store, run_id)
    with pytest.raises(type(ending)):
        go(store, run_id, finish=fails)
    store.mark_interrupted()
    assert folder.exists()


def test_resume_state_that_stays_behind_is_removed_later(store, computed, monkeypatch):
    """The process was killed after COMPLETE, or the files could not be removed then: the run is complete all the same."""
    run_id = store.create(CONFIG, "")
    folder = resume_state(store, run_id)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("core.runs.store.remove", refused)
        go(store, run_id)
        assert store.mark_interrupted() == []  # and does not raise
    assert store.run(run_id).state is RunState.COMPLETE
    assert folder.exists()
    later = RunStore(store.folder)
    assert later.mark_interrupted() == []
    assert not folder.exists()
    assert later.run(run_id) == store.run(run_id)
    later.close()


def test_error_of_a_full_disk_names_the_folder_and_how_to_resume(store):
    text = describe_error(OSError(28, "No space left on device"), store)
    assert str(store.folder) in text
    assert "resume" in text


def test_unreadable_config_does_not_hide_other_runs_and_is_not_replaced(store, computed):
    odd, good = store.create(CONFIG, "odd"), store.create(CONFIG, "good")
    store.set_state(odd, RunState.FAILED, "as it was")
    store.set_state(good, RunState.COMPLETE)
    unreadable = ["{", "null", "[1]", '{"generation": 3}', '{"bits": 3}', "[" * 100_000]
    unreadable += [json.dumps({**CONFIG.to_dict(), **odd_part}) for odd_part in ({"of_tomorrow": 3}, {"generation": {"epsilon": "big"}})]
    for text in unreadable:
        with closing(sqlite3.connect(store.folder / DATABASE)) as connection, connection:
            connection.execute("UPDATE run SET config = ? WHERE id = ?", (text, odd))
        assert [run.id for run in store.runs()] == [good, odd]
        shown = store.run(odd)
        assert "this version cannot read the settings" in shown.error
        assert "\n" not in shown.error
        with pytest.raises(ConfigError, match="must be"):
            store.config(odd)
        store.resume(odd)
        with pytest.raises(ConfigError):
            go(store, odd)
        assert computed == []
        assert store.run(odd).state is RunState.FAILED


def test_runs_at_once(monkeypatch):
    monkeypatch.delenv(AT_ONCE_VARIABLE, raising=False)
    assert runs_at_once() == 1
    for text, expected in (("", 1), ("1", 1), ("2", 2), ("1024", 1024)):
        monkeypatch.setenv(AT_ONCE_VARIABLE, text)
        assert runs_at_once() == expected


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", " 2", "1025", "²", "9" * 5000])
def test_bad_runs_at_once_is_refused(monkeypatch, text):
    monkeypatch.setenv(AT_ONCE_VARIABLE, text)
    with pytest.raises(ConfigError, match="RUNS_AT_ONCE must be a whole number, 1 to 1024, got "):
        runs_at_once()


@pytest.mark.parametrize("at_once", [1, 2])
def test_run_waits_for_its_turn(store, at_once):
    before = [store.create(CONFIG, "") for _ in range(2)]
    mine = store.create(CONFIG, "")
    store.create(CONFIG, "behind")
    waiting = threading.Thread(target=wait_for_turn, args=(store, mine, lambda: False, at_once), daemon=True)
    waiting.start()
    waiting.join(0.4)
    assert waiting.is_alive()
    for run_id in before[at_once - 1 :]:
        store.set_state(run_id, RunState.STOPPED)
    waiting.join(5)
    assert not waiting.is_alive()


def test_paused_run_lets_others_go_first(store):
    first, second = store.create(CONFIG, ""), store.create(CONFIG, "")
    store.set_state(first, RunState.PAUSED)
    wait_for_turn(store, second, lambda: False, 1)
    assert store.ahead(second) == []
    store.requeue(first)
    assert store.ahead(first) == [second]


def test_stop_while_waiting(store, computed):
    store.create(CONFIG, "before")
    mine, stopping = store.create(CONFIG, ""), []
    threading.Timer(0.3, lambda: stopping.append(True)).start()
    with pytest.raises(RunStopped, match="before it began"):
        go(store, mine, stopping=lambda: bool(stopping))
    assert store.run(mine).state is RunState.STOPPED
    assert store.run(mine).started is None
    assert computed == []


def test_dead_runs_ahead_are_marked(store, computed, monkeypatch):
    monkeypatch.setattr(execution, "_SECONDS_BETWEEN_CENSUSES", 0.1)
    dead = RunStore(store.folder)
    theirs = dead.create(CONFIG, "")
    dead.set_state(theirs, RunState.RUNNING)
    mine = store.create(CONFIG, "")
    done = threading.Thread(target=go, args=(store, mine), daemon=True)
    done.start()
    done.join(0.6)
    assert done.is_alive()  # the process of the run ahead is alive
    dead.database.process._lock.release()  # as the operating system does when a process is killed
    done.join(10)
    assert not done.is_alive()
    assert store.run(theirs).state is RunState.INTERRUPTED
    assert store.run(mine).state is RunState.COMPLETE
    dead.close()


def test_interrupted_run_is_resumed_only_once(store):
    """Two stores resume an interrupted run at the same time, in several rounds. The second is refused."""
    others = [RunStore(store.folder) for _ in range(2)]
    for _ in range(10):
        run_id = store.create(CONFIG, "")
        store.set_state(run_id, RunState.INTERRUPTED)
        got, refused, barrier = [], [], threading.Barrier(2)

        def claim(index, run_id=run_id, got=got, refused=refused, barrier=barrier):
            barrier.wait()
            try:
                others[index].resume(run_id)
                got.append(index)
            except RunError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=claim, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == len(refused) == 1
        assert "to be resumed, but is queued" in refused[0]
        assert store.run(run_id).attempt == 2
    for other in others:
        other.close()


def test_ctrl_c_while_waiting(store):
    store.create(CONFIG, "before")
    mine = store.create(CONFIG, "")
    main = threading.main_thread().ident
    threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    # tests that a shell started in the background ignore SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            go(store, mine)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 5
    assert store.run(mine).state is RunState.INTERRUPTED
