"""The Studio in Streamlit's AppTest: the form, the player, live changes and links."""

import json
import time

import numpy as np
import pytest
from app_pages import SHORT, component, components, htmls, page, texts
from waiting import wait_until

from core.config import PRESETS, EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.runs.events import SECONDS_BETWEEN_FRAMES
from core.runs.state import RunState
from dashboard import session
from dashboard.text import plain
from dashboard.views import live_knobs, status

LONG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=20, iterations=5000, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


def studio(run_id, **address):
    return page("studio", run=run_id, **address)


@pytest.mark.slow
def test_start_uses_the_values_of_sliders_and_form(runs_folder):
    app = page("studio", "all settings/")
    app.slider(key="new/quick/epsilon").set_value(0.2)
    app.select_slider(key="new/quick/beta").set_value(0.5)
    app.run()
    app.number_input(key="quick/generation/images").set_value(64)
    app.number_input(key="quick/generation/iterations").set_value(7)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/machine/encoder").set_value("")
    app.button(key="start").click().run()
    assert not app.exception
    (run,) = session.store().runs()
    config = run.config.generation
    assert run.config.lr_by_bits == PRESETS["quick"].lr_by_bits
    assert (config.epsilon, config.beta, config.images, config.iterations) == (0.2, 0.5, 64, 7)
    assert run.config.bits == ()
    wait_until(lambda: session.store().run(run.id).state is RunState.COMPLETE)
    app.run()
    assert app.query_params["run"] == run.id
    assert [name for name, _ in components(app) if name != "text_block"] == ["sheet", "sheet", "player", "figure", "knobs"]


def test_invalid_form_shows_the_error_and_starts_nothing(runs_folder):
    app = page("studio", "all settings/")
    app.number_input(key="quick/generation/snapshots").set_value(51)
    app.button(key="start").click().run()
    assert [error.value for error in app.error] == [plain("snapshots must be at most 40, the iterations left after the burn-in, got 51")]
    assert session.store().runs() == []


@pytest.mark.slow
def test_finished_run_shows_all_methods_side_by_side(with_finished_run):
    app = page("studio")
    assert "MI-FGSM" in texts(app)
    assert "Adam" in texts(app)
    (player,) = component(app, "player")
    assert (player["steps"], player["latest"], player["at"], player["following"]) == ([1, 2, 3], 4, None, "")
    sheets = component(app, "sheet")
    assert [sheet["alt"] for sheet in sheets] == ["synthetic images by MI-FGSM", "synthetic images by Adam"]
    assert sheets[0]["header"][1] == "automobile"
    assert "teacher: " in sheets[0]["cells"][0][1]


def test_link_opens_all_methods_at_an_iteration(with_finished_run):
    newest, app = page("studio"), studio(with_finished_run, at=2)
    assert component(app, "player")[0]["at"] == 2
    frames = [session.store().frames.read(with_finished_run, method, 2) for method in ("mi-fgsm", "adam")]
    for frame, sheet, last in zip(frames, component(app, "sheet"), component(newest, "sheet")):
        assert sheet["picture"] != last["picture"]
        assert f"{100 * frame.confidence[0]:.0f} %" in sheet["cells"][0][1]
    assert texts(studio(with_finished_run, at=2, view="loss")).count("iteration 2 of 4") == 2  # in the line of each method's values


def about_the_address(app):
    """Warnings but those about the run itself, whose few steps match little and make its networks worse."""
    of_the_run = ("the calibrated network is kept", "match the running statistics less than usual")
    return [warning.value for warning in app.warning if not any(words in warning.value for words in of_the_run)]


@pytest.mark.parametrize(("at", "problem"), [("x", "got 'x'"), ("99", ""), ("-3", "got '-3'")])
def test_link_with_an_invalid_iteration_shows_the_newest(with_finished_run, at, problem):
    app = studio(with_finished_run, at=at)
    assert component(app, "player")[0]["at"] is None
    assert [plain(problem) in warning for warning in about_the_address(app)] == ([True] if problem else [])


def test_link_opens_an_image_with_histories_of_all_methods(with_finished_run):
    app = studio(with_finished_run, method="adam", image=3, at=2)
    assert [sheet["chosen"] for sheet in component(app, "sheet")] == [None, 3]
    (large,) = [html for html in htmls(app) if 'alt="image 3 by Adam"' in html]
    strips = [html for html in htmls(app) if "data-step" in html]
    assert len(strips) == 2
    for strip in strips:
        assert [f'data-step="{step}"' in strip for step in (1, 2, 3, 4)] == [True] * 4
    assert strips[0] != strips[1]
    assert "Adam, image 3: cat" in texts(app)
    app.button(key="close image").click().run()
    assert "image" not in app.query_params
    assert "method" not in app.query_params
    assert not any("data-step" in html or html == large for html in htmls(app))


@pytest.mark.parametrize("address", [{"method": "sgd", "image": 1}, {"method": "adam", "image": 64}])
def test_link_to_an_unknown_image_names_the_known_ones(with_finished_run, address):
    (warning,) = about_the_address(studio(with_finished_run, **address))
    expected = f"image in the address must be 0 to 19 of mi-fgsm, adam, got {address['image']} of {address['method']}"
    assert warning.replace("\\", "") == expected


@pytest.mark.parametrize(
    ("view", "titles"),
    [
        ("loss", ["Loss: curves over iterations"]),
        ("layers", ["Layers over time: curves over iterations"]),
        ("heatmaps", ["L_BNS by layer and iteration"]),
        ("layer", ["L_BNS of every layer at the shown iteration", "channels of layer 5, batch against running statistics"]),
        ("overview", ["L_BNS in total and by layer, and teacher agreement"]),
        ("nonsense", ["L_BNS in total and by layer, and teacher agreement"]),
    ],
)
def test_link_opens_a_chart_and_draws_no_other(with_finished_run, view, titles):
    app = studio(with_finished_run, view=view, layer=5)
    assert [figure["title"] for figure in component(app, "figure")] == titles


def test_chosen_chart_and_layer_are_in_the_address(with_finished_run):
    app = studio(with_finished_run)
    app.segmented_control(key="view").set_value("layer").run()
    assert app.query_params["view"] == "layer"
    app.selectbox(key="layer/0").set_value(6).run()
    assert app.query_params["layer"] == "7"
    assert component(app, "figure")[1]["title"].startswith("channels of layer 7")


def test_run_from_an_earlier_version_is_shown_without_missing_data(with_finished_run):
    store = session.store()
    for path in (store.run_folder(with_finished_run) / "frames").rglob("*.npz"):
        with np.load(path) as file:
            known = {name: file[name] for name in ("images", "labels", "step") if name in file}
        path.unlink()
        if known:
            np.savez(path, **known)
    session.shared_cache.clear()  # other tests have drawn the same run
    app = studio(with_finished_run, view="layer", method="adam", image=3)
    assert component(app, "sheet")[0]["cells"][0] == [0, "airplane", False]
    assert "did not record the teacher's predictions" in texts(app)
    assert "did not record channel statistics" in texts(app)


@pytest.mark.slow
def test_live_change_pause_step_and_stop_of_an_active_run(runs_folder, monkeypatch):
    for limit in ("_SECONDS_FOR_A_STEP", "_SECONDS_FOR_IMAGES"):
        monkeypatch.setattr(status, limit, 5)  # for busy machines
    manager, store = session.manager(), session.store()
    run_id = manager.start(LONG)
    wait_until(lambda: len(store.records(run_id, "generation")) > 2)
    app = page("studio")
    app.button(key="pause").click().run()
    wait_until(lambda: store.run(run_id).state is RunState.PAUSED)
    steps = len(store.records(run_id, "generation"))
    # AppTest cannot move the sliders of the component (tests/browser/test_studio_screen.py does)
    live_knobs.change(store.run(run_id), {"group": "all", "name": "epsilon", "value": 0.03})
    live_knobs.change(store.run(run_id), {"group": "all", "name": "alpha_tv", "value": 0.01})
    time.sleep(SECONDS_BETWEEN_FRAMES)  # images that follow sooner are not stored
    app.button(key="step").click().run()
    wait_until(lambda: len(store.records(run_id, "generation")) == steps + 2)  # one iteration of each method
    changed = {(change["method"], change["name"], change["value"], change["step"]) for change in store.changes(run_id)}
    assert changed == {
        ("mi-fgsm", "epsilon", 0.03, steps // 2),
        ("mi-fgsm", "alpha_tv", 0.01, steps // 2),
        ("adam", "alpha_tv", 0.01, steps // 2),
    }
    # the page immediately shows the result of the step
    assert component(app, "player")[0]["latest"] == steps // 2 + 1
    figure = json.loads(component(app, "figure")[0]["figure"])
    assert {note["text"] for note in figure["layout"]["annotations"]} >= {"ε = 0.03, α_TV = 0.01"}
    live_knobs.change(store.run(run_id), {"group": "adam", "name": "beta", "value": 5.0})
    app.button(key="step").click().run()
    wait_until(lambda: len(store.records(run_id, "generation")) == steps + 4)
    (last,) = [change for change in store.changes(run_id) if change["name"] == "beta"]
    assert (last["method"], last["value"], last["step"]) == ("adam", 5.0, steps // 2 + 1)
    app.button(key="stop").click().run()
    wait_until(lambda: store.run(run_id).state is RunState.STOPPED)
    assert len(store.records(run_id, "generation")) == steps + 4


def test_failed_run_shows_its_error(runs_folder):
    run_id = session.manager().start(SHORT.with_knobs({"encoder": "nonsense"}))
    session.manager().wait(run_id)
    app = page("studio")
    assert session.store().run(run_id).state is RunState.FAILED
    assert any("nonsense" in error.value and "embedded" in error.value for error in app.error)
    assert "UnknownNameError" in app.code[0].value
