"""`sweep`: every point is measured once, on held-out synthetic images."""

import json

import pytest
from command_line import call, last_json

from core.comparison import sweep
from core.runs.store import RunStore

SWEEP = ("sweep", "--preset", "quick", "--methods", "mi-fgsm", "--bits", "4", "--grid", "epsilon=0.05,0.2", "mu=0.5")


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(sweep, "HELD_OUT_IMAGES", 16)


def test_every_point_is_measured_once_and_without_real_images(tiny_preset, runs, capsys):
    assert call(*SWEEP, "--seeds", 0, 1, "--json") == 0
    found = last_json(capsys)
    assert found["missing"] == 0
    assert sorted(row["values"]["epsilon"] for row in found["rows"]) == [0.05, 0.2]
    assert [row["mean"] for row in found["rows"]] == sorted((row["mean"] for row in found["rows"]), reverse=True)
    store = RunStore(runs)
    stored = {run.id: run for run in store.runs()}
    assert len(stored) == 4
    for row in found["rows"]:
        assert row["seeds"] == [0, 1]
        for run_id, agreement in zip(row["runs"], row["agreement"]):
            config = stored[run_id].config
            assert {name: config.value(name) for name in row["values"]} == row["values"]
            assert config.evaluation.data == found["held_out"]
            figures = store.result(run_id, "accuracy/mi-fgsm/W4A4")["real"]["trained"]
            assert (figures["agreement"], figures["images"]) == (agreement, 32)
    # repeated with one more value, only its runs are computed
    assert call(*SWEEP[:-2], "epsilon=0.05,0.2,0.4", "mu=0.5", "--seeds", 0, 1) == 0
    assert "0.4" in capsys.readouterr().out
    assert len(store.runs()) == 6
    store.close()


def test_the_points_of_tpe_are_measured_and_the_same_again(tiny_preset, runs, capsys):
    pytest.importorskip("optuna")
    search = (*SWEEP[:-2], "epsilon=0.05..0.4", "--sampler", "tpe", "--points", 5, "--json")
    tables = []
    for _ in range(2):
        assert call(*search) == 0
        tables.append(last_json(capsys))
    assert tables[0]["missing"] == 0
    assert tables[0] == tables[1]
    values = {row["values"]["epsilon"] for row in tables[0]["rows"]}
    assert len(values) == 5
    assert all(0.05 <= value <= 0.4 for value in values)
    store = RunStore(runs)
    assert {run.config.generation.epsilon for run in store.runs()} == values
    assert len(store.runs()) == 5
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [(), ("--sampler", "tpe", "--points", 2)])
def test_a_sweep_on_a_cluster_prints_the_same_table(cluster, tiny_preset, tmp_path, capsys, sampler):
    tables = []
    for executor in ("local", "ray"):
        assert call(*SWEEP, *sampler, "--json", "--executor", executor, "--runs", tmp_path / executor) == 0
        rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        tables.append([{**row, "runs": [], "seconds": 0} for row in rows])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "epsilon"], "must be NAME=VALUE,VALUE, such as epsilon=0.05,0.1, got 'epsilon'"),
        (["--grid", "epsilon=0.1,,"], "must be NAME=VALUE,VALUE"),
        (["--grid", "epsilom=0.1"], "unknown knob 'epsilom'"),
        (["--grid", "epsilon=-3"], "epsilon must be"),
        (["--grid", "epsilon=many"], "epsilon must be a number, got 'many'"),
        (["--grid", "steps=1.5"], "steps must be a whole number, got '1.5'"),
        (["--grid", "data=none,embedded"], "grid must not have data"),
        (["--grid", "mu=0.1", "mu=0.2"], "grid must have each knob once, got mu twice"),
        (["--grid", "mu=0.1..0.9"], "mu must have values such as 0.1,0.9 in a grid, got the range 0.1..0.9"),
        (["--grid", "mu=0.1", "--sampler", "best"], "unknown sampler 'best'"),
        (["--grid", "mu=0.1", "--sampler", "tpe"], "points must be 1 to 10,000 with sampler 'tpe', got 0"),
        (["--grid", "mu=0.1", "--random", "2", "--points", "2"], "random must not be given with sampler or points"),
        (["--grid", "mu=0.1", "--random", "-1"], "random must be at least 1, or 0 for all points of the grid, got -1"),
    ],
)
def test_bad_input_is_refused(runs, tmp_path, capsys, arguments, message):
    capsys.readouterr()
    assert call("sweep", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not runs.exists()
