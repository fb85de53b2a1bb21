"""The Sweep page in Streamlit's AppTest: what it shows of a sweep, and the form that starts one."""

import json
from dataclasses import replace

import pytest
from app_pages import component, page, tables, texts

from core.comparison import sweep as comparison
from core.comparison.search_space import GRID, points
from core.comparison.sweeps import distinct, keep, new_sweep, stored, trials_of, with_points
from core.config import PRESETS, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.state import RunState
from dashboard import session


@pytest.fixture
def half_of_a_sweep(runs_folder):
    """A stored sweep of two points at two bit widths with two seeds, of which three of four runs are complete."""
    store = session.store()
    start = replace(PRESETS["quick"], methods=("mi-fgsm",), bits=(3, 4))
    sweep = new_sweep(start, {"epsilon": [0.05, 0.1], "mu": [0.5]}, GRID, 0, (0, 1))
    sweep = with_points(sweep, points(sweep.space))
    keep(store, sweep)
    for trial, agreement in zip(trials_of(store, sweep), (80.0, 82.0, 90.0)):
        run = store.create(trial.cell.config, "")
        for bits in (3, 4):
            figures = {"agreement": agreement + bits, "kl": 0.25, "images": 512}
            store.set_result(run, f"accuracy/mi-fgsm/W{bits}A{bits}", {"real": {"calibrated": figures, "trained": figures}})
        store.set_result(run, "seconds", 60.0)
        store.set_state(run, RunState.COMPLETE)
    return sweep


def metrics(app):
    return {metric.label: metric.value for metric in app.metric}


def test_points_of_a_width_with_the_best_first(half_of_a_sweep):
    app = page("sweep")
    (frame,) = tables(app)
    assert list(zip(frame["ε"], frame["agreement"])) == [(0.1, 93.0), (0.05, 84.0)]
    assert list(frame["seeds"]) == ["0", "0, 1"]
    assert frame["spread"][1] == pytest.approx(2**0.5, abs=1e-3)
    assert metrics(app) == {
        "Best so far, W3A3": "93.00 %",
        "Best so far, W4A4": "94.00 %",
        "Runs": "3 of 4",
        "Cost so far": "3 min",
        "Cost of the rest": "about 60 s",
    }
    assert "Best at W3A3: MI-FGSM with ε 0.1, μ 0.5." in texts(app)
    assert len(component(app, "figure")) == 2
    (frame,) = tables(page("sweep", width="W4A4"))
    assert list(frame["agreement"]) == [94.0, 85.0]


def complete_sweep(methods, space, agreement):
    """A stored sweep whose runs are all complete. agreement: of the method and the values of a point."""
    store = session.store()
    sweep = new_sweep(replace(PRESETS["quick"], methods=methods, bits=(4,)), space, GRID, 0, (0,))
    sweep = with_points(sweep, points(sweep.space))
    keep(store, sweep)
    for trial in distinct(trials_of(store, sweep)):
        run = store.create(trial.cell.config, "")
        figures = {"agreement": agreement(trial.cell.method, trial.values), "kl": 0.25, "images": 512}
        store.set_result(run, f"accuracy/{trial.cell.method}/W4A4", {"real": {"calibrated": figures, "trained": figures}})
        store.set_state(run, RunState.COMPLETE)


def boxes(app):
    """Label -> value and options of the boxes above the figures."""
    return {box.label: (box.value, box.options) for box in app.selectbox if box.label.startswith(("Heat map", "Method"))}


def right_figure(app):
    return json.loads(component(app, "figure")[1]["figure"])


def test_the_heat_map_is_of_a_method_that_has_both_knobs(runs_folder):
    """epsilon and mu are knobs of MI-FGSM; Adam, which is better here, would have the same value in every cell."""
    complete_sweep(
        ("mi-fgsm", "adam"), {"epsilon": [0.05, 0.1], "mu": [0.5, 0.9]},
        lambda method, values: 95.0 if method == "adam" else 100 * values["epsilon"] + 10 * values["mu"],
    )  # fmt: skip
    app = page("sweep")
    assert boxes(app) == {
        "Heat map: across": ("epsilon", ["MI-FGSM step ε", "MI-FGSM momentum μ"]),
        "Heat map: up": ("mu", ["MI-FGSM momentum μ"]),
    }
    (trace,) = right_figure(app)["data"]
    assert (trace["x"], trace["y"], trace["z"]) == (["0.05", "0.1"], ["0.5", "0.9"], [[10.0, 15.0], [14.0, 19.0]])
    (trace,) = right_figure(page("sweep", across="mu"))["data"]
    assert (trace["x"], trace["z"]) == (["0.5", "0.9"], [[10.0, 14.0], [15.0, 19.0]])


def test_the_method_and_the_knobs_of_the_heat_map_are_chosen_and_kept_in_the_address(runs_folder):
    complete_sweep(
        ("mi-fgsm", "adam"), {"beta": [1.0, 2.0], "alpha_tv": [0.001, 0.002], "epsilon": [0.05, 0.1]},
        lambda method, values: 50 + 10 * values["beta"] + (0 if method == "adam" else 1 + 100 * values["epsilon"]),
    )  # fmt: skip
    app = page("sweep")
    method, options = boxes(app)["Heat map: method"]
    assert (method, options) == ("mi-fgsm", ["MI-FGSM", "Adam"])  # the best one
    assert len(boxes(app)["Heat map: across"][1]) == 3
    (trace,) = right_figure(app)["data"]
    assert trace["z"] == [[71.0, 81.0]] * 2  # with the better epsilon
    assert trace["customdata"] == [[2, 2]] * 2
    app.selectbox(key="of/mi-fgsm").set_value("adam").run()
    app.selectbox(key="across/beta").set_value("alpha_tv").run()
    assert not app.exception
    assert (app.query_params["of"], app.query_params["across"]) == ("adam", "alpha_tv")
    for shown in (app, page("sweep", of="adam", across="alpha_tv")):
        assert boxes(shown)["Heat map: method"][0] == "adam"
        assert [len(boxes(shown)[f"Heat map: {place}"][1]) for place in ("across", "up")] == [2, 1]  # epsilon is no knob of Adam
        (trace,) = right_figure(shown)["data"]
        assert (trace["x"], trace["z"]) == (["0.001", "0.002"], [[60.0, 60.0], [70.0, 70.0]])
        assert trace["customdata"] == [[1, 1]] * 2  # a run for both values of epsilon


def test_where_no_method_has_two_of_the_knobs_there_is_the_one_of_the_chosen_method(runs_folder):
    complete_sweep(
        ("mi-fgsm", "adam"), {"epsilon": [0.05, 0.1], "lr": [0.1, 0.3]},
        lambda method, values: 100 * values["lr"] if method == "adam" else 100 * values["epsilon"],
    )  # fmt: skip
    app = page("sweep")
    (frame,) = tables(app)
    assert frame["method"].tolist() == ["Adam", "Adam", "MI-FGSM", "MI-FGSM"]  # each point once
    assert frame["ε"].tolist()[2:] == [0.1, 0.05]
    assert frame["ε"].isna().tolist() == [True, True, False, False]
    assert "Best at W4A4: Adam with lr 0.3." in texts(app)
    assert boxes(app) == {"Method": ("adam", ["Adam", "MI-FGSM"])}
    (trace,) = right_figure(app)["data"]
    assert (trace["x"], trace["y"]) == (["0.1", "0.3"], [10.0, 30.0])
    (trace,) = right_figure(page("sweep", of="mi-fgsm"))["data"]
    assert (trace["x"], trace["y"]) == (["0.05", "0.1"], [5.0, 10.0])


def test_a_sweep_that_nothing_computes_can_be_continued_and_removed(half_of_a_sweep, monkeypatch):
    app = page("sweep")
    continued = []
    monkeypatch.setattr(type(session.sweeper()), "start", lambda self, sweep: continued.append(sweep.id))
    app.button(key="continue sweep").click().run()
    assert continued == [half_of_a_sweep.id]
    app.button(key="remove sweep").click().run()
    assert not app.exception
    assert stored(session.store()) == []
    assert len(session.store().runs()) == 3


def test_the_form_says_what_it_costs_and_starts(half_of_a_sweep, monkeypatch):
    started = []
    monkeypatch.setattr(type(session.sweeper()), "start", lambda self, sweep: started.append(sweep))
    app = page("sweep", "opened/new sweep")
    assert "**12 runs**" not in texts(app)
    app.text_input(key="sweep/values/epsilon").set_value("0.1, 0.2, 0.3").run()
    app.text_input(key="sweep/values/mu").set_value("0.5 0.9").run()
    app.text_input(key="sweep/seeds").set_value("0, 1").run()
    assert "6 points, 1 method, 2 seeds: **12 runs**, and one for the held-out images. About **" in texts(app)
    button = app.button(key="start sweep")
    assert button.label == "Start 12 runs"
    button.click().run()
    assert not app.exception
    (sweep,) = started
    assert (sweep.space, sweep.seeds, sweep.sampler) == ({"epsilon": [0.1, 0.2, 0.3], "mu": [0.5, 0.9]}, (0, 1), GRID)
    assert sweep.start.evaluation.data == "none"


def test_a_range_is_drawn_from_at_random(runs_folder):
    app = page("sweep")
    app.text_input(key="sweep/values/epsilon").set_value("0.01..1").run()
    app.number_input(key="sweep/count").set_value(5).run()
    assert not app.exception
    assert app.button(key="start sweep").label == "Start 5 runs"
    assert "The time is known when a run of this network is complete." in texts(app)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("values/mu", "often", "mu must be a number, got 'often'"),
        ("values/mu", "0.5, 0.5", "mu must have each value once"),
        ("values/mu", "-1", "mu must be"),
        ("values/mu", " ", "mu must have at least one value"),
        ("seeds", "one", "seeds must be numbers"),
    ],
)
def test_what_is_no_value_is_named(runs_folder, key, value, message):
    app = page("sweep")
    app.text_input(key=f"sweep/{key}").set_value(value).run()
    (error,) = app.error
    assert message in error.value.replace("\\", "")
    assert not [button for button in app.button if button.key == "start sweep"]


@pytest.mark.slow
def test_a_sweep_is_computed_by_the_server(runs_folder, monkeypatch):
    monkeypatch.setattr(comparison, "HELD_OUT_IMAGES", 8)
    start = RunConfig(
        machine=MachineConfig(device="cpu", threads=1),
        generation=GenerationConfig(images=8, iterations=2, batch_size=8, snapshots=1),
        training=TrainingConfig(range="minmax", steps=1, training_batch_size=8),
        methods=("mi-fgsm",),
        bits=(4,),
    )
    sweep = new_sweep(start, {"epsilon": [0.05, 0.2]}, GRID, 0, (0,))
    session.sweeper().start(sweep)
    assert "computing" in texts(page("sweep"))
    session.sweeper().wait(sweep.id, 300)
    assert session.sweeper().error(sweep.id) == ""
    app = page("sweep")
    assert metrics(app)["Runs"] == "2 of 2"
    (frame,) = tables(app)
    for run, agreement in zip(
        sorted(session.store().runs(), key=lambda run: run.config.generation.epsilon), frame.sort_values("ε")["agreement"]
    ):
        outcome = session.store().result(run.id, "accuracy/mi-fgsm/W4A4")["real"]["trained"]
        assert (outcome["agreement"], outcome["images"]) == (agreement, 16)
