"""Points of a sweep, its runs, and its table."""

import math
from statistics import mean, stdev

import pytest

from core.comparison import sweep
from core.comparison.search_space import points
from core.comparison.sweep import held_out_config, listed, rows, trials
from core.config import EvaluationConfig, RunConfig
from core.errors import ConfigError
from core.runs.state import RunState
from core.runs.store import RunStore

GRID = {"epsilon": [0.05, 0.1], "mu": [0.5, 0.9], "steps": [10, 20, 30]}
START = RunConfig(methods=("mi-fgsm",), bits=(3, 4), evaluation=EvaluationConfig(data="none", encoder=""))


def test_every_point_has_a_run_for_each_seed():
    found = trials(START, points(GRID), (0, 1))
    assert len(found) == 12 * 2
    for trial in found:
        config = trial.cell.config
        assert {name: config.value(name) for name in GRID} == trial.values
        assert [config.training_for(bits).steps for bits in (3, 4)] == [trial.values["steps"]] * 2
        assert config.machine.seed == trial.cell.seed
    with pytest.raises(ConfigError, match="epsilon"):
        trials(START, [{"epsilon": -1.0}], (0,))


def test_held_out_images_have_noise_of_their_own():
    config = held_out_config(START, (0, 1))
    assert config.machine.seed not in (0, 1)
    assert (config.methods, config.bits) == (("mi-fgsm", "adam"), ())
    assert config.generation.images == sweep.HELD_OUT_IMAGES
    with pytest.raises(ConfigError, match="seeds must not have 2000003"):
        held_out_config(START, (2_000_003,))


def test_the_table_has_the_mean_over_seeds_and_the_best_point_first(tmp_path):
    store = RunStore(tmp_path)
    grid_points = points({"epsilon": [0.05, 0.1]})
    agreement = {(0.05, 0): 80.0, (0.05, 1): 84.0, (0.1, 0): 90.0, (0.1, 1): 88.0}
    measured = []
    for trial in trials(START, grid_points, (0, 1)):
        run = store.create(trial.cell.config, "")
        for bits in (3, 4):
            share = agreement[trial.values["epsilon"], trial.cell.seed] + (0 if bits == 3 else 5)
            figures = {"agreement": share, "kl": share / 1000, "images": 50}
            outcome = {"real": {"calibrated": {**figures, "agreement": 1.0}, "trained": figures}}
            store.set_result(run, f"accuracy/mi-fgsm/W{bits}A{bits}", outcome)
        store.set_result(run, "seconds", 10.0 + trial.cell.seed)
        store.set_state(run, RunState.COMPLETE)
        measured.append((trial, run))
    found = rows(store, measured)
    store.close()
    assert [(row.width, row.values["epsilon"], row.mean) for row in found] == [
        ("W3A3", 0.1, 89.0), ("W3A3", 0.05, 82.0), ("W4A4", 0.1, 94.0), ("W4A4", 0.05, 87.0),
    ]  # fmt: skip
    assert found[1].agreement == (80.0, 84.0)
    assert found[1].spread == pytest.approx(stdev((80, 84)), abs=1e-3)
    assert found[1].standard_error == pytest.approx(100 * math.sqrt(0.82 * 0.18 / 100), abs=1e-3)
    assert found[1].seconds == mean((10, 11))
    text = sweep.as_text(found).splitlines()
    assert text[0].split() == ["bits", "method", "epsilon", "seeds", "agreement", "error", "spread", "KL", "seconds"]
    assert text[1].split()[:5] == ["W3A3", "MI-FGSM", "0.1", "2", "89.00"]


def test_points_that_differ_in_a_knob_of_another_method_are_listed_once():
    """epsilon is a knob of MI-FGSM, lr of Adam, and beta of both."""

    def row(method, run, **values):
        return sweep.Row(values, method, "W4A4", (run,), (0,), (90.0,), (0.1,), 1.0, 10.0)

    grid = points({"epsilon": [0.05, 0.1], "lr": [0.1, 0.2], "beta": [1.0]})
    table = [row("mi-fgsm", f"m{point['epsilon']}", **point) for point in grid] + [
        row("adam", f"a{point['lr']}", **point) for point in grid
    ]
    assert len(table) == 8
    found = listed(table)
    assert [(one.method, *one.values.values(), one.runs[0]) for one in found] == [
        ("mi-fgsm", 0.05, None, 1.0, "m0.05"), ("mi-fgsm", 0.1, None, 1.0, "m0.1"),
        ("adam", None, 0.1, 1.0, "a0.1"), ("adam", None, 0.2, 1.0, "a0.2"),
    ]  # fmt: skip
    assert sweep.as_text(found).splitlines()[1].split()[:5] == ["W4A4", "MI-FGSM", "0.05", "-", "1"]
