"""Branches of a run in the store and the queue; their bits are tested in tests/core/stages/test_branch.py."""

import hashlib
from dataclasses import replace

import pytest
from background_runs import LONG, TINY, ended, is_in, paused, running, steps, wait_until

from core.config import RunConfig
from core.errors import ConfigError, RunError, UnknownNameError
from core.runs import branches
from core.runs.events import StoreReporter
from core.runs.state import RunState

CONFIG = replace(TINY, generation=replace(TINY.generation, images=16, iterations=6, batch_size=8), bits=())


def finished(manager, config=CONFIG, changes=()) -> str:
    run_id = manager.start(config, changes=changes)
    assert ended(manager, run_id).state is RunState.COMPLETE, manager.store.run(run_id).traceback
    manager.wait(run_id)
    return run_id


def branched(manager, run_id, at, **values) -> str:
    branch = manager.branch(run_id, at, values)
    assert ended(manager, branch).state is RunState.COMPLETE, manager.store.run(branch).traceback
    manager.wait(branch)
    return branch


def stored(store, run_id) -> str:
    """A branch that was stopped before it was computed."""
    branch = branches.create_branch(store, run_id, 2, {})
    store.set_state(branch, RunState.STOPPED)
    return branch


def figures(manager, run_id):
    """(method, step) -> figures, without the time."""
    return {(one.series, one.step): {**one.data, "seconds": 0} for one in manager.store.records(run_id, "generation")}


def files(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


CHANGES = [
    {"method": "mi-fgsm", "step": 2, "name": "epsilon", "value": 0.05},
    {"method": "adam", "step": 8, "name": "beta", "value": 3.0},
    {"method": "mi-fgsm", "step": 10, "name": "mu", "value": 1.1},
]


def test_unchanged_branch_has_the_figures_and_images_of_its_run(manager):
    """Also of a run with live changes before the batch, in it, and after the branch."""
    run_id = finished(manager, changes=CHANGES)
    assert manager.store.changes(run_id) == sorted(CHANGES, key=lambda change: change["step"])
    branch = branched(manager, run_id, 9)
    wanted, found = figures(manager, run_id), figures(manager, branch)
    assert [key for key in found if key[1] > 9] == [(method, step) for step in (10, 11, 12) for method in ("mi-fgsm", "adam")]
    assert all(found[key] == wanted[key] for key in found)
    assert manager.store.frames.steps(branch, "adam")[-1] == 12
    for method in ("mi-fgsm", "adam"):
        one, other = (manager.store.frames.read(each, method, 12) for each in (run_id, branch))
        assert one.images.tobytes() == other.images.tobytes()


def test_branch_goes_on_with_other_values_and_the_changes_of_other_knobs(manager):
    run_id = finished(manager, changes=CHANGES)
    branch = branched(manager, run_id, 9, epsilon=0.3)
    run = manager.store.run(branch)
    assert (run.name, run.parent, run.branch_at, run.config.methods) == ("ε 0.3 from iteration 3 of batch 2", run_id, 9, ("mi-fgsm",))
    changes = manager.store.changes(branch)
    assert [(one["step"], one["name"], one["value"]) for one in changes] == [(9, "epsilon", 0.3), (10, "mu", 1.1)]
    wanted, found = figures(manager, run_id), figures(manager, branch)
    assert found["mi-fgsm", 9] == wanted["mi-fgsm", 9]
    assert found["mi-fgsm", 11]["bns"] != wanted["mi-fgsm", 11]["bns"]


def test_a_knob_of_all_methods_branches_all(manager):
    run_id = finished(manager)
    assert manager.store.run(branched(manager, run_id, 4, beta=0.1)).config.methods == ("mi-fgsm", "adam")


def test_branches_leave_their_run_as_it_is_and_are_in_no_list(manager):
    store = manager.store
    run_id = finished(manager)
    before = files(store.run_folder(run_id)), store.results(run_id), store.changes(run_id), figures(manager, run_id)
    branch = branched(manager, run_id, 2, epsilon=0.3)
    assert before == (files(store.run_folder(run_id)), store.results(run_id), store.changes(run_id), figures(manager, run_id))
    assert [run.id for run in store.runs()] == [run_id]
    assert store.lists.count() == 1
    assert [run.id for run in branches.branches(store, run_id)] == [branch]


def test_interrupted_branch_resumes_with_the_same_bits(manager, monkeypatch):
    run_id = finished(manager)
    wanted = figures(manager, branched(manager, run_id, 3, mu=1.2, lr=0.3))
    record, stopped = StoreReporter.record, []

    def stopping(reporter, stage, method, step, values):
        record(reporter, stage, method, step, values)
        if step == 4 and not stopped:
            stopped.append(reporter._run_id)
            manager.control(reporter._run_id).stop()

    monkeypatch.setattr(StoreReporter, "record", stopping)
    branch = manager.branch(run_id, 3, {"mu": 1.2, "lr": 0.3})
    assert ended(manager, branch).state is RunState.STOPPED
    manager.resume(branch)
    assert ended(manager, branch).state is RunState.COMPLETE
    assert stopped == [branch]
    assert figures(manager, branch) == wanted


def test_running_run_pauses_until_its_branch_is_computed(manager):
    """Other runs wait for both."""
    run_id = running(manager, replace(LONG, methods=("mi-fgsm",)))
    waiting = manager.start(TINY)
    branch = manager.branch(run_id, 2, {"epsilon": 0.3})

    def computed(one):
        return max((record.step for record in manager.store.records(one, "generation")), default=0)

    # the branch has all the time: it overtakes the run, although that began earlier
    wait_until(lambda: computed(branch) > computed(run_id) + 2)

    def rests():
        """Whether the run takes no step while the branch takes some; it looks whether one is there a few times a second only."""
        at, of_branch = computed(run_id), computed(branch)
        wait_until(lambda: computed(branch) > of_branch + 5)
        return computed(run_id) == at

    wait_until(rests)
    at = computed(run_id)
    assert manager.store.run(run_id).state is RunState.RUNNING
    assert manager.store.run(waiting).state is RunState.QUEUED
    manager.control(branch).stop()
    assert ended(manager, branch).state is RunState.STOPPED
    wait_until(lambda: computed(run_id) > at + 2)
    assert manager.store.run(waiting).state is RunState.QUEUED


def test_paused_run_can_be_branched(manager):
    run_id = paused(manager)
    at = min(own[-1] for own in steps(manager, run_id).values())
    branch = manager.branch(run_id, at, {"epsilon": 0.3})
    wait_until(lambda: max((one.step for one in manager.store.records(branch, "generation")), default=0) > at)
    assert manager.store.run(run_id).state is RunState.PAUSED


def test_branches_are_deleted_with_their_run_and_removed_alone(manager):
    store = manager.store
    run_id = finished(manager)
    kept, removed = stored(store, run_id), stored(store, run_id)
    manager.remove_branch(removed)
    assert [run.id for run in branches.branches(store, run_id)] == [kept]
    assert not store.run_folder(removed).exists()
    with pytest.raises(RunError, match="must be a branch"):
        manager.remove_branch(run_id)
    store.trash.put(run_id)
    store.trash.restore(run_id)
    assert [run.id for run in branches.branches(store, run_id)] == [kept]
    store.delete(run_id)
    assert not store.run_folder(kept).exists()
    with pytest.raises(RunError, match="does not exist"):
        store.run(kept)


def test_active_branch_is_stopped_when_removed_and_keeps_its_run_from_being_deleted(manager):
    run_id = running(manager)
    branch = manager.branch(run_id, 2, {"epsilon": 0.3})
    manager.control(run_id).stop()
    ended(manager, run_id)
    wait_until(is_in(manager, branch, RunState.RUNNING))
    for delete in (manager.store.trash.put, manager.store.delete):
        with pytest.raises(RunError, match="must be finished to be deleted, but is running"):
            delete(run_id)
    manager.remove_branch(branch)
    manager.store.delete(run_id)


def test_refusals(manager):
    run_id = finished(manager)
    for at in (0, 6, 12, 13):
        with pytest.raises(RunError, match=f"1 to 12, and not the last of a batch of 6, got {at}$"):
            manager.branch(run_id, at, {})
    with pytest.raises(ConfigError, match="epsilon must be"):
        manager.branch(run_id, 2, {"epsilon": -1.0})
    with pytest.raises(UnknownNameError, match="live knob"):
        manager.branch(run_id, 2, {"iterations": 9})
    with pytest.raises(UnknownNameError, match="live knob"):
        manager.branch(run_id, 2, {"generator_lr": 0.1})  # of methods that the run does not have
    first = stored(manager.store, run_id)
    with pytest.raises(RunError, match="it is a branch"):
        manager.branch(first, 2, {})
    for _ in range(branches.MOST - 1):
        stored(manager.store, run_id)
    with pytest.raises(RunError, match="must have fewer than 4 branches"):
        manager.branch(run_id, 2, {})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"methods": ("noise",)}, "nothing optimizes"), ({"images_from": "images", "methods": ("given",)}, "were given")],
)
def test_runs_without_live_knobs_say_why(store, changed, reason):
    run_id = store.create(replace(RunConfig(bits=()), **changed), "")
    with pytest.raises(RunError, match=reason):
        branches.create_branch(store, run_id, 2, {})


def test_names_say_what_differs_and_from_where():
    one_batch = replace(CONFIG, generation=replace(CONFIG.generation, batch_size=16))
    epochs = replace(CONFIG, methods=("gdfq",))
    assert branches.branch_name(CONFIG, 8, {"epsilon": 0.2, "beta": 2.0}) == "ε 0.2, β 2 from iteration 2 of batch 2"
    assert branches.branch_name(one_batch, 3, {"lr": 0.05}) == "lr 0.05 from iteration 3"
    assert branches.branch_name(epochs, 8, {}) == "unchanged from iteration 2 of epoch 2"
