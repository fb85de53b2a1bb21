"""Stored sweeps, the runs that have measured their points, and what they cost."""

from dataclasses import replace

import pytest

from core.comparison.search_space import GRID, RANDOM, Range, points
from core.comparison.sweep import held_out_config
from core.comparison.sweeps import (
    distinct,
    forget,
    held_out_folder,
    keep,
    known,
    measured,
    new_sweep,
    runs_of,
    seconds_for_work,
    seconds_of_sweep,
    stored,
    trials_of,
    with_points,
    work_of,
)
from core.config import RunConfig
from core.errors import ConfigError
from core.runs.state import RunState
from core.runs.store import RunStore

START = RunConfig(methods=("mi-fgsm",), bits=(4,))
SPACE = {"epsilon": [0.05, 0.1], "mu": [0.5]}


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "runs")
    yield store
    store.close()


def grid(**changes):
    sweep = new_sweep(START, changes.get("space", SPACE), GRID, 0, changes.get("seeds", (0, 1)))
    return with_points(sweep, points(sweep.space))


def test_a_sweep_is_read_as_it_was_stored(store):
    sweep = replace(new_sweep(START, {"epsilon": Range(0.01, 1.0), "steps": [1, 2]}, RANDOM, 3, (4, 5)), user="ann", executor="ray")
    sweep = with_points(sweep, points(sweep.space, 3))
    keep(store, sweep)
    assert stored(store) == [sweep]
    forget(store, sweep.id)
    assert stored(store) == []


def test_the_same_sweep_has_the_same_id_and_any_other_another():
    ids = [grid().id, grid(seeds=(0,)).id, grid(space={"epsilon": [0.05], "mu": [0.5]}).id]
    assert len(set(ids)) == 3
    assert grid().id == new_sweep(START.with_knobs({"data": "embedded", "encoder": "embedded"}), SPACE, GRID, 0, [0, 1]).id


def test_a_knob_of_a_later_version_changes_neither_id_nor_held_out_images(store, monkeypatch):
    before, folder = grid(), held_out_folder(store, grid())
    to_dict = RunConfig.to_dict

    def later(config):
        values = to_dict(config)
        return {**values, "generation": {**values["generation"], "a_new_knob": 0.5}}

    monkeypatch.setattr(RunConfig, "to_dict", later)
    assert grid().id == before.id
    assert held_out_folder(store, grid()) == folder


def test_a_stored_sweep_keeps_its_held_out_images(store):
    keep(store, replace(grid(), held_out="0123456789abcdef"))
    (sweep,) = stored(store)
    assert held_out_folder(store, sweep).name == "0123456789abcdef"
    assert {trial.cell.config.evaluation.data for trial in trials_of(store, sweep)} == {str(held_out_folder(store, sweep))}


def test_a_repeated_sweep_keeps_when_it_was_made_and_the_newest_is_first(store):
    first, second = replace(grid(), created=1.0), replace(grid(seeds=(7,)), created=2.0)
    keep(store, first)
    keep(store, second)
    assert known(store, grid()).created == 1.0
    assert [sweep.created for sweep in stored(store)] == [2.0, 1.0]


@pytest.mark.parametrize("text", ["", "{}", '{"start": 1}', "[" * 100_000])
def test_a_file_of_another_version_does_not_hide_the_others(store, text):
    keep(store, grid())
    (store.folder / "sweeps" / "other.json").write_text(text, encoding="utf-8")
    assert [sweep.id for sweep in stored(store)] == [grid().id]


def test_a_weights_file_in_the_runs_folder_moves_with_it(store, tmp_path):
    network = store.folder / "uploads" / "networks" / "mine.safetensors"
    network.parent.mkdir(parents=True)
    network.touch()
    keep(store, new_sweep(replace(START, model=str(network)), SPACE, GRID, 0, (0,)))
    moved = RunStore(store.folder.rename(tmp_path / "moved"))
    (sweep,) = stored(moved)
    assert sweep.start.model == str(moved.folder / "uploads" / "networks" / "mine.safetensors")
    moved.close()


def test_what_cannot_be_swept_is_refused():
    with pytest.raises(ConfigError, match="grid must have at least one knob, got none"):
        new_sweep(START, {}, GRID, 0, (0,))


def test_each_trial_has_its_complete_run_first_then_an_active_one_then_one_that_ended_early(store):
    sweep = grid()
    wanted = trials_of(store, sweep)
    assert len(wanted) == 4
    assert [run for _, run in measured(store, wanted)] == [None] * 4
    ids = []
    for trial, state in zip([wanted[0], wanted[0], wanted[1], wanted[2]], ["complete", "failed", "failed", "queued"]):
        ids.append(store.create(trial.cell.config, ""))
        if state != "queued":
            store.set_state(ids[-1], RunState(state))
    # the same settings on other images measure no point of the sweep
    other = store.create(wanted[3].cell.config.with_knobs({"data": "none"}), "")
    store.set_state(other, RunState.COMPLETE)
    assert [run and run.id for _, run in measured(store, wanted)] == [ids[0], ids[2], ids[3], None]


def test_a_knob_that_a_method_does_not_have_needs_no_runs_of_its_own(store):
    """epsilon is a knob of MI-FGSM, lr is one of Adam."""
    start = replace(START, methods=("mi-fgsm", "adam"))
    sweep = new_sweep(start, {"epsilon": [0.05, 0.1, 0.2], "lr": [0.1, 0.3]}, GRID, 0, (0,))
    wanted = trials_of(store, with_points(sweep, points(sweep.space)))
    assert len(wanted) == 12
    apart = distinct(wanted)
    assert [(trial.cell.method, trial.values["epsilon" if trial.cell.method == "mi-fgsm" else "lr"]) for trial in apart] == [
        ("mi-fgsm", 0.05), ("adam", 0.1), ("adam", 0.3), ("mi-fgsm", 0.1), ("mi-fgsm", 0.2),
    ]  # fmt: skip
    assert runs_of(sweep, points(sweep.space)) == {"mi-fgsm": 3, "adam": 2}
    ids = {}
    for trial in apart:
        run = store.create(trial.cell.config, "")
        store.set_state(run, RunState.COMPLETE)
        ids[trial.cell.method, trial.cell.config.value("epsilon" if trial.cell.method == "mi-fgsm" else "lr")] = run
    for trial, run in measured(store, wanted):
        value = trial.values["epsilon" if trial.cell.method == "mi-fgsm" else "lr"]
        assert run.id == ids[trial.cell.method, value]


def test_costs_are_those_of_complete_runs_by_the_work_of_each(store):
    sweep = grid()
    assert seconds_of_sweep(store, sweep, sweep.points) is None
    wanted = trials_of(store, sweep)
    run = store.create(wanted[0].cell.config, "")
    store.set_result(run, "seconds", 50.0)
    store.set_state(run, RunState.COMPLETE)
    work = wanted[0].cell.cost
    assert seconds_for_work(store, START.model) == pytest.approx(50.0 / work)
    images = work_of(held_out_config(sweep.start, sweep.seeds))
    assert seconds_of_sweep(store, sweep, sweep.points) == pytest.approx(50.0 * (4 * work + images) / work)
    held_out_folder(store, sweep).mkdir(parents=True)
    assert seconds_of_sweep(store, sweep, sweep.points) == pytest.approx(200.0)
    assert seconds_for_work(store, "another") is None
