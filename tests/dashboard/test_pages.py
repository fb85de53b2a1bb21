"""Each page by Streamlit's own AppTest: what it shows of real runs, and what its buttons do."""

import time
from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from core.config import PRESETS, GenerationConfig, RunConfig
from core.runs.state import RunState
from dashboard import state

SHORT = RunConfig(generation=GenerationConfig(images=20, iterations=3, batch_size=20, snapshots=1, device="cpu"), bits=(), encoder="")
LONG = RunConfig(generation=GenerationConfig(images=20, iterations=5000, batch_size=20, snapshots=1, device="cpu"), bits=(), encoder="")


def page(name):
    app = AppTest.from_file(f"../../dashboard/pages/{name}.py", default_timeout=60)
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app):
    return " ".join(element.value for kind in (app.markdown, app.caption, app.info, app.error) for element in kind)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def charts(app):
    return list(app.get("plotly_chart"))


@pytest.mark.parametrize(
    ("name", "first_step"), [("studio", "Press Start"), ("quantize", "Studio"), ("diversity", "Studio"), ("runs", "Studio")]
)
def test_an_empty_page_says_what_to_do_first(runs_folder, name, first_step):
    app = page(name)
    assert any(first_step in info.value for info in app.info)


def test_studio_starts_a_run_with_the_values_of_its_sliders_and_form(runs_folder):
    app = page("studio")
    app.slider(key="new/quick/epsilon").set_value(0.2)
    app.select_slider(key="new/quick/beta").set_value(0.5)
    app.run()
    app.number_input(key="quick/generation/images").set_value(64)
    app.number_input(key="quick/generation/iterations").set_value(7)
    app.multiselect(key="quick/bits").set_value([])
    app.text_input(key="quick/encoder").set_value("")
    app.button(key="start").click().run()
    assert not app.exception
    (run,) = state.store().runs()
    config = run.config.generation
    assert run.config.lr_by_bits == PRESETS["quick"].lr_by_bits
    assert (config.epsilon, config.beta, config.images, config.iterations) == (0.2, 0.5, 64, 7)
    assert run.config.bits == ()
    wait_until(lambda: state.store().run(run.id).state is RunState.COMPLETE)
    app.run()
    assert app.query_params["run"] == run.id
    assert len(charts(app)) == 4  # one part of the loss, one layer, and a heatmap for each optimizer


def test_studio_says_what_is_wrong_and_starts_nothing(runs_folder):
    app = page("studio")
    app.number_input(key="quick/generation/images").set_value(51)
    app.button(key="start").click().run()
    assert [error.value for error in app.error] == ["images is 51: allowed is a multiple of snapshots (4)"]
    assert state.store().runs() == []


def test_studio_shows_a_finished_run_with_both_optimizers_side_by_side(with_finished_run):
    app = page("studio")
    assert "MI-FGSM" in texts(app)
    assert "Adam" in texts(app)
    pictures = [element.proto.body for element in app.get("html") if "data:image/png;base64," in element.proto.body]
    assert len(pictures) == 2
    assert "automobile" in pictures[0]
    before = list(pictures)
    app.select_slider(key=f"frame/{with_finished_run}").set_value(1).run()
    pictures = [element.proto.body for element in app.get("html")]
    assert pictures[0] != before[0]


def test_studio_turns_pauses_steps_and_stops_a_running_job(runs_folder):
    manager, store = state.manager(), state.store()
    run_id = manager.start(LONG)
    wait_until(lambda: len(store.records(run_id, "generation")) > 2)
    app = page("studio")
    app.button(key="pause").click().run()
    wait_until(lambda: store.run(run_id).state is RunState.PAUSED)
    steps = len(store.records(run_id, "generation"))
    app.slider(key=f"live/{run_id}/epsilon").set_value(0.03).run()
    app.select_slider(key=f"live/{run_id}/alpha_tv").set_value(0.01).run()
    app.button(key="step").click().run()
    wait_until(lambda: len(store.records(run_id, "generation")) == steps + 2)  # one iteration of each of two lanes
    changed = {(change["lane"], change["name"], change["value"], change["step"]) for change in store.changes(run_id)}
    assert changed == {
        ("mi-fgsm", "epsilon", 0.03, steps // 2),
        ("mi-fgsm", "alpha_tv", 0.01, steps // 2),
        ("adam", "alpha_tv", 0.01, steps // 2),
    }
    app.run()
    app.button(key="stop").click().run()
    wait_until(lambda: store.run(run_id).state is RunState.STOPPED)
    assert len(store.records(run_id, "generation")) == steps + 2


def test_a_failed_run_says_why(runs_folder):
    run_id = state.manager().start(replace(SHORT, encoder="nonsense"))
    state.manager().wait(run_id)
    app = page("studio")
    assert state.store().run(run_id).state is RunState.FAILED
    assert any("nonsense" in error.value and "embedded" in error.value for error in app.error)
    assert "UnknownNameError" in app.code[0].value


def test_quantize_shows_accuracy_and_the_paper(with_finished_run):
    app = page("quantize")
    assert "first 2,000 CIFAR-10 test images" in texts(app)
    table = next(frame.value for frame in app.dataframe if "calibrated %" in frame.value)
    assert sorted(table["images by"]) == ["adam", "mi-fgsm"]
    assert (table["trained %"] > 50).all()
    paper = next(frame.value for frame in app.dataframe if "DFFG (the paper)" in frame.value)
    assert list(paper["DFFG (the paper)"]) == [84.68, 91.63, 93.30]
    assert len(charts(app)) == 3


def test_quantize_starts_from_the_images_of_a_run(with_finished_run):
    app = page("quantize")
    app.multiselect(key="quick/bits").set_value([8])
    app.number_input(key="quick/steps").set_value(0)
    app.button(key="quantize").click().run()
    assert not app.exception
    newest = state.store().runs()[0]
    assert newest.id != with_finished_run
    assert newest.config.images_from == str(state.store().run_folder(with_finished_run) / "images")
    state.manager().wait(newest.id)
    results = state.store().results(newest.id)
    assert abs(results["accuracy/mi-fgsm/W8A8"]["quantized"] - results["full_precision"]["top1"]) < 1.0


def test_diversity_names_its_encoder_and_shows_both_sets(with_finished_run):
    app = page("diversity")
    assert "**embedded**, trained on the 50,000 CIFAR-10 training images" in texts(app)
    assert len(app.metric) == 4
    assert len(charts(app)) == 3
    assert len([element for element in app.get("html") if "data:image/png" in element.proto.body]) == 2


def test_diversity_with_an_unknown_encoder_fails_with_the_names_that_work(with_finished_run):
    app = page("diversity")
    app.text_input(key="diversity/encoder").set_value("nonsense")
    app.button(key="measure").click().run()
    newest = state.store().runs()[0]
    state.manager().wait(newest.id)
    assert "allowed are embedded" in state.store().run(newest.id).error
    app.run()
    assert any("nonsense" in error.value for error in app.error)


def test_runs_lists_what_was_done_before_the_server_started(with_finished_run):
    app = page("runs")
    table = app.dataframe[0].value
    assert list(table["name"]) == ["a finished run"]
    assert list(table["state"]) == ["complete"]
    assert "4 bits" in table["trained % (MI-FGSM images)"][0]
