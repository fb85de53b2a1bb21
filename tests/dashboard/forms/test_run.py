"""The forms that start a run: every knob has a widget, and only edited settings change."""

from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from core.config import (
    PRESETS,
    SECTIONS,
    EvaluationConfig,
    GenerationConfig,
    RunConfig,
    TrainingConfig,
    add_knob,
    help_text,
    knob,
    knobs,
    label,
    remove_knob,
)
from core.errors import RunError
from core.generation.methods import METHODS
from core.layout import USER_IMAGES
from dashboard.forms.run import with_own_images


def run_script(start):
    import streamlit as st  # AppTest runs the body as a script

    from dashboard.forms.run import run_form

    st.session_state["config"] = run_form(start, "form", {})


def executor_script(start):
    import streamlit as st

    from dashboard.forms.run import chosen_executor, run_form

    run_form(start, "form", {})
    st.session_state["executor"] = chosen_executor("form")


def quantization_script(start):
    import streamlit as st

    from dashboard.forms.run import quantization_form

    st.session_state["config"], st.session_state["pressed"], st.session_state["file"] = quantization_form(start, "form")


@pytest.fixture
def form(runs_folder):
    """Shows a form that starts from a config."""

    def show(script, start):
        app = AppTest.from_function(script, args=(start,), default_timeout=60).run()
        assert not app.exception, app.exception
        return app

    return show


def widgets(app):
    kinds = (app.number_input, app.selectbox, app.checkbox, app.text_input, app.multiselect)
    return {widget.key.rpartition("/")[2]: widget for kind in kinds for widget in kind}


def start(app):
    app.button(key="start").click().run()
    assert not app.exception, app.exception
    return app.session_state["config"]


def test_every_form_knob_has_a_widget_with_its_label_and_help(form):
    found = widgets(form(run_script, RunConfig(methods=tuple(METHODS))))
    for section in SECTIONS.values():
        for name, field in knobs(section).items():
            if field.metadata["in_form"]:
                assert found[name].label == label(field)
                assert found[name].help == help_text(section, name).replace("\n", "\n\n")
    assert {"model", "methods", "bits", "steps", "training_lr"} <= found.keys()
    assert found.keys().isdisjoint({"weight_bits", "layer_bits", "epsilon"})


@pytest.mark.parametrize("section", SECTIONS)
def test_an_added_knob_appears_in_the_form(form, section):
    add_knob(SECTIONS[section], "extra", knob(0.5, "An extra knob.", minimum=0.0, maximum=2.0, label="Extra"))
    try:
        app = form(run_script, RunConfig())
        extra = widgets(app)["extra"]
        assert (extra.label, extra.value, extra.min, extra.max) == ("Extra", 0.5, 0.0, 2.0)
        extra.set_value(1.5)
        config = start(app)
        assert config.value("extra") == 1.5
        assert getattr(config, section).extra == 1.5
    finally:
        remove_knob(SECTIONS[section], "extra")


def test_nothing_starts_before_the_button_is_pressed(form):
    app = form(run_script, PRESETS["quick"])
    assert app.session_state["config"] is None
    assert start(app) == PRESETS["quick"]


@pytest.mark.parametrize("reachable", [True, False])
def test_a_cluster_can_be_chosen_where_one_is_named(form, monkeypatch, reachable):
    assert not form(run_script, RunConfig()).segmented_control  # none is named

    def free():
        if not reachable:
            raise RunError("the Ray cluster at 'ray://10.0.0.1:10001' cannot be used: it does not answer")
        return "2 nodes; 3 of 8 CPUs free"

    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    monkeypatch.setattr("dashboard.forms.run.free", free)
    app = form(executor_script, RunConfig())
    assert app.session_state["executor"] == ""
    app.segmented_control(key="form/where").set_value("Ray cluster").run()
    assert app.session_state["executor"] == "ray"
    assert app.button(key="start").disabled is not reachable
    if reachable:
        assert "2 nodes; 3 of 8 CPUs free" in [caption.value for caption in app.caption]
    else:
        assert "cannot be used" in app.error[0].value


def test_real_images_need_a_folder(form, tmp_path):
    app = form(run_script, replace(PRESETS["quick"], methods=("mi-fgsm", "real")))
    assert app.button(key="start").disabled
    assert [error.value.replace("\\", "") for error in app.error] == ["real_images must be a folder of images, got none"]
    widgets(app)["real_images"].set_value(str(tmp_path)).run()
    assert not app.error
    assert start(app).generation.real_images == str(tmp_path)
    assert "real_images" not in widgets(form(run_script, PRESETS["quick"]))


def test_slider_values_are_part_of_the_config(form):
    def script(start):
        import streamlit as st

        from dashboard.forms.run import run_form

        st.session_state["config"] = run_form(start, "form", {"epsilon": 0.25})

    quick = PRESETS["quick"]
    assert start(form(script, quick)) == replace(quick, generation=replace(quick.generation, epsilon=0.25))


def test_conflicting_knobs_are_rejected(form):
    app = form(run_script, RunConfig())
    app.number_input(key="form/generation/snapshots").set_value(41)
    app.button(key="start").click().run()
    assert app.exception[0].message == "snapshots must be at most 40, the iterations left after the burn-in, got 41"


@pytest.mark.parametrize(("field", "value", "name"), [("data", "gone/folder", "the evaluation images"), ("encoder", "clip", "the encoder")])
def test_a_refused_text_disables_start_until_it_is_corrected(form, field, value, name):
    app = form(run_script, RunConfig())
    text = app.text_input(key=f"form/machine/{field}")
    before = text.value
    text.set_value(value).run()
    (error,) = app.error
    assert value in error.value
    assert app.button(key="start").disabled
    assert app.caption[-1].value == f"Start is disabled: see {name} above."
    app.text_input(key=f"form/machine/{field}").set_value(before).run()
    assert not app.error
    assert start(app) == RunConfig()


def test_an_unknown_network_disables_start_until_another_is_chosen(form):
    app = form(run_script, RunConfig(model="resnet"))
    (error,) = app.error
    assert "unknown model 'resnet'" in error.value
    assert app.button(key="start").disabled
    app.selectbox(key="form/machine/model").set_value(RunConfig().model).run()
    assert not app.error
    assert start(app) == RunConfig()


def test_evaluation_images_of_other_classes_are_refused_at_their_field(form):
    app = form(run_script, RunConfig())
    app.text_input(key="form/machine/data").set_value("cifar100")
    app.button(key="start").click().run()
    (error,) = app.error
    assert "data must have the classes of resnet20" in error.value.replace("\\", "")
    assert app.button(key="start").disabled
    assert app.session_state["config"] is None
    app.multiselect(key="form/bits").set_value([]).run()  # then nothing is evaluated
    assert not app.button(key="start").disabled


def test_images_that_are_gone_disable_start(form):
    app = form(run_script, RunConfig(images_from="/gone", methods=("adam",)))
    assert len(app.error) == 1
    assert app.button(key="start").disabled


def test_form_for_given_images_has_no_generation_settings(form, tmp_path):
    (tmp_path / "a *folder*").mkdir()
    given = RunConfig(images_from=str(tmp_path / "a *folder*"), methods=("of others",))
    app = form(run_script, given)
    assert [tab.label for tab in app.tabs] == ["Quantization", "Network and machine"]
    found = widgets(app)
    assert found.keys().isdisjoint({*knobs(GenerationConfig), "methods"})
    assert "\\*folder\\*" in app.caption[0].value
    assert start(app) == given


def test_steps_and_learning_rate_have_the_limits_of_their_knobs(form):
    found = widgets(form(run_script, RunConfig()))
    for name in ("steps", "training_lr"):
        meta = knobs(TrainingConfig)[name].metadata
        assert (found[name].min, found[name].max, found[name].step) == (meta["minimum"], meta["maximum"], meta["step"])
        assert found[name].value is None


@pytest.mark.parametrize(
    ("bits", "steps_by_bits", "expected"),
    [
        ((3, 4), {3: 300, 4: 250}, "300 at 3 bits, 250 at 4 bits"),
        ((3, 4), {3: 300, 5: 150}, "300 at 3 bits, else 77"),
        ((4,), {}, "77"),
        ((), {3: 300}, "77"),
    ],
)
def test_an_empty_field_shows_and_keeps_the_start_values(form, bits, steps_by_bits, expected):
    config = RunConfig(bits=bits, training=TrainingConfig(steps=77), steps_by_bits=steps_by_bits)
    app = form(run_script, config)
    steps = widgets(app)["steps"]
    assert steps.placeholder == expected
    assert f"Leave empty to use {expected}." in steps.help
    assert start(app) == config


def test_a_number_of_steps_applies_to_every_bit_width(form):
    quick = PRESETS["quick"]
    app = form(run_script, quick)
    widgets(app)["steps"].set_value(0)
    assert start(app) == replace(quick, training=replace(quick.training, steps=0), steps_by_bits={})
    widgets(app)["training_lr"].set_value(0.25)
    assert start(app) == replace(quick, training=replace(quick.training, steps=0, training_lr=0.25), steps_by_bits={}, lr_by_bits={})


def test_form_for_existing_images_has_only_quantization_knobs(form):
    quick = PRESETS["quick"]
    app = form(quantization_script, quick)
    found = widgets(app)
    assert found.keys().isdisjoint({*knobs(GenerationConfig), "encoder", "compile", "model"})
    in_form = {name for name, field in knobs(TrainingConfig).items() if field.metadata["in_form"] and not field.metadata["of"]}
    assert found.keys() == in_form | {"bits", "steps", "training_lr", "data", "accuracy_checks", "seed", "budget", "device", "threads"}
    assert (app.session_state["config"], app.session_state["pressed"], app.session_state["file"]) == (quick, False, "")
    found["bits"].set_value([2])
    found["seed"].set_value(9)
    app.button(key="quantize").click().run()
    assert app.session_state["pressed"]
    assert app.session_state["config"] == replace(quick, bits=(2,), machine=replace(quick.machine, seed=9))


def test_own_images_replace_the_methods_and_the_network():
    quick = RunConfig(evaluation=EvaluationConfig(accuracy_checks=7))
    config = with_own_images(quick, "/a folder", "a network")
    assert config == replace(quick, images_from="/a folder", methods=(USER_IMAGES,), model="a network")


def test_networks_of_the_zoos_are_listed_below_the_embedded_one(form):
    app = form(run_script, RunConfig())
    box = next(box for box in app.selectbox if box.key.endswith("/model"))
    assert box.options[0] == "resnet20_cifar10"
    assert {"timm:resnet18", "torchvision:mobilenet_v2", "pytorchcv:resnet56_cifar10"} <= set(box.options)
    assert len(box.options) == len(set(box.options))
