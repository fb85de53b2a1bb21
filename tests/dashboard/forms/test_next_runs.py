"""The settings of what may follow a run."""

from dataclasses import replace

import pytest

from core.config import PRESETS, RunConfig
from core.runs.state import RunState
from dashboard import session
from dashboard.forms.next_runs import NEXT_RUNS, settings_of


def run_of(config):
    store = session.store()
    run_id = store.create(config, "a run")
    store.set_state(run_id, RunState.COMPLETE)
    return store.run(run_id)


def test_more_bits_train_on_the_images_of_the_run(with_finished_run):
    run = session.store().run(with_finished_run)
    found = settings_of(run, "bits")
    assert (found.bits, found.methods) == ((5,), ("adam", "mi-fgsm"))
    assert found.images_from == str(session.store().images_folder(run))
    assert found.training == run.config.training


def test_a_run_whose_images_are_gone_generates_them_again(runs_folder):
    run = run_of(RunConfig(bits=(4, 6)))
    assert settings_of(run, "bits") == replace(run.config, bits=(7,))
    assert NEXT_RUNS["bits"].settings(run_of(RunConfig(bits=(8,)))) is None


def test_more_time_is_twice_of_what_the_run_had(runs_folder):
    found = settings_of(run_of(PRESETS["quick"]), "time")
    assert found.generation.iterations == 2 * PRESETS["quick"].generation.iterations
    assert [found.training_for(bits).steps for bits in found.bits] == [
        2 * PRESETS["quick"].training_for(bits).steps for bits in PRESETS["quick"].bits
    ]
    assert settings_of(run_of(RunConfig().with_knobs({"budget": 30.0})), "time").machine.budget == 60


def test_another_method_is_one_that_the_run_does_not_have(runs_folder):
    run = run_of(RunConfig())
    found = settings_of(run, "method").methods
    assert found[: len(run.config.methods)] == run.config.methods
    assert len(set(found)) == len(run.config.methods) + 1


def test_another_seed(runs_folder):
    assert settings_of(run_of(RunConfig().with_knobs({"seed": 4})), "seed").machine.seed == 5


@pytest.mark.parametrize("name", ["", "unknown"])
def test_without_a_change_the_settings_are_those_of_the_run(runs_folder, name):
    run = run_of(RunConfig())
    assert settings_of(run, name) == run.config
