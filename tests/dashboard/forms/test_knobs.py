"""Widgets of knobs: which appear, their limits, and the values they return."""

import pytest
from streamlit.testing.v1 import AppTest

from core.config import GenerationConfig, TrainingConfig, add_knob, find_knob, knob, live_knobs, remove_knob
from dashboard.forms.knobs import log_steps, number_arguments, slider_options


def test_log_steps():
    assert log_steps(0.03, 3) == [0.0, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3]
    assert log_steps(0.02, 2.9) == [0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 2.9]
    assert log_steps(1e-12, 2e-12) == [0.0, 1e-12, 2e-12]
    assert log_steps(4, 9) == [0.0, 4, 5.0, 9]
    assert log_steps(1e-5, 0.3) == [0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3]


@pytest.fixture
def added():
    """Adds knobs to the generation section, and removes them after the test."""
    names = []

    def add(name, *arguments, **options):
        add_knob(GenerationConfig, name, knob(*arguments, **options))
        names.append(name)

    yield add
    for name in names:
        remove_knob(GenerationConfig, name)


def sliders(methods, values):
    import streamlit as st  # AppTest runs the body as a script

    from core.config import GenerationConfig, live_knobs
    from dashboard.forms.knobs import live_sliders

    initial = {name: getattr(GenerationConfig(), name) for name in live_knobs(GenerationConfig)} | values
    st.session_state["result"] = live_sliders(initial, "key", methods=methods)


def shown(*methods, **values):
    """An app with the live sliders of these methods; live knobs start at their defaults or the given values."""
    app = AppTest.from_function(sliders, args=(methods, values), default_timeout=60).run()
    assert not app.exception, app.exception
    return app


def slider_names(app):
    return {slider.key.removeprefix("key/") for slider in [*app.slider, *app.select_slider]}


def test_sliders_appear_only_for_methods_that_have_the_knob():
    every = set(live_knobs(GenerationConfig))
    weights = {"alpha_tv", "alpha_l2", "beta"}
    assert slider_names(shown("mi-fgsm")) == {"epsilon", "mu", *weights}
    assert slider_names(shown("adam")) == {"lr", *weights}
    assert slider_names(shown("adam", "mi-fgsm")) == {"epsilon", "mu", "lr", *weights}
    assert slider_names(shown("zeroq")) == {"zeroq_lr"}
    assert slider_names(shown("zeroq", "adam")) == {"zeroq_lr", "lr", *weights}
    assert slider_names(shown("gdfq")) == {"beta", "generator_lr", "alpha_bns"}
    assert slider_names(shown()) == every


def test_a_knob_without_a_slider_keeps_its_value():
    app = shown("adam", epsilon=0.0123456789)
    app.slider(key="key/lr").set_value(0.25).run()
    app.select_slider(key="key/alpha_l2").set_value(0.03).run()
    defaults = {name: getattr(GenerationConfig(), name) for name in live_knobs(GenerationConfig)}
    assert app.session_state["result"] == defaults | {"epsilon": 0.0123456789, "lr": 0.25, "alpha_l2": 0.03}


def test_a_slider_has_the_range_of_its_knob():
    app = shown()
    for name, live in live_knobs(GenerationConfig).items():
        low, high = live.metadata["slider"]
        if live.metadata["log"]:
            options = [float(option) for option in app.select_slider(key=f"key/{name}").options]
            assert options == log_steps(low, high)
        else:
            slider = app.slider(key=f"key/{name}")
            assert (slider.min, slider.max, slider.step) == (low, high, live.metadata["step"])


def test_options_of_a_slider_are_its_steps_and_the_values_it_had():
    live = live_knobs(GenerationConfig)
    assert slider_options(live["mu"], [0.5])[:3] == [0.0, 0.05, 0.1]
    assert slider_options(live["mu"], [0.5])[-1] == 1.5
    assert len(slider_options(live["epsilon"], [0.1])) == 101  # from 0 to 0.5 in steps of 0.005
    assert slider_options(live["beta"], [0.0007, 200])[:3] == [0.0, 0.0007, 0.03]
    assert slider_options(live["beta"], [0.0007, 200])[-1] == 200


def test_a_value_outside_the_range_of_the_slider_extends_it():
    app = shown(epsilon=1.75, beta=0.0007)
    assert (app.slider(key="key/epsilon").value, app.slider(key="key/epsilon").max) == (1.75, 1.75)
    beta = app.select_slider(key="key/beta")
    assert (beta.value, beta.options[:3]) == (0.0007, ["0", "0.0007", "0.03"])


def test_an_added_live_knob_gets_a_slider(added):
    added("strength", 0.5, "Strength.", minimum=0.0, maximum=4.0, live=True, label="γ strength", of=("adam",))
    added("decay", 0.1, "Decay.", minimum=0.01, maximum=1.0, live=True, log=True)
    added("narrow", 0.5, "Narrow.", minimum=0.0, maximum=1.0, live=True, slider=(0.2, 0.8))
    added("count", 3, "Count.", minimum=1, maximum=9, live=True)
    app = shown("adam", narrow=0.1)
    strength = app.slider(key="key/strength")
    assert (strength.label, strength.min, strength.max, strength.step, strength.value) == ("γ strength", 0.0, 4.0, 0.04, 0.5)
    assert "Strength." in strength.help
    assert app.select_slider(key="key/decay").options == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]  # 0 is below the minimum
    assert (app.slider(key="key/narrow").min, app.slider(key="key/narrow").max) == (0.1, 0.8)
    count = app.slider(key="key/count").set_value(7)
    assert (count.min, count.max, count.step) == (1, 9, 1)
    strength.set_value(2.0)
    app.run()
    result = app.session_state["result"]
    assert (result["strength"], result["count"], result["decay"]) == (2.0, 7, 0.1)
    assert type(result["count"]) is int
    assert slider_names(shown("mi-fgsm")).isdisjoint({"strength"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("steps", {"min_value": 0, "max_value": 1_000_000, "step": 50}),
        ("training_lr", {"min_value": 0.0, "max_value": 1.0, "step": 1e-4, "format": "%g"}),
        ("training_batch_size", {"min_value": 1, "max_value": 4096, "step": 1}),
    ],
)
def test_number_fields_have_the_limits_of_the_knob(name, expected):
    section, found = find_knob(name)
    assert section == "training"
    assert number_arguments(found) == expected
    # Streamlit rejects limits whose type is not that of the value
    kind = type(getattr(TrainingConfig(), name))
    assert {type(value) for argument, value in number_arguments(found).items() if argument != "format"} == {kind}


def grid(names):
    import streamlit as st

    from core.config import PRESETS
    from dashboard.forms.knobs import knob_grid

    st.session_state["result"] = knob_grid(PRESETS["paper"], names, "key")


def test_every_type_of_knob_has_a_widget_with_its_start_value(added):
    added("unbounded", 2.5, "A number without limits.")
    names = ["images", "burn_in", "noise", "flip", "data", "unbounded", "training_lr", "activation_bits"]
    app = AppTest.from_function(grid, args=(names,), default_timeout=60).run()
    assert not app.exception, app.exception
    assert app.session_state["result"] == {
        "images": 5120,
        "burn_in": 0.2,
        "noise": "white",
        "flip": True,
        "data": "auto",
        "unbounded": 2.5,
        "training_lr": 1e-4,
        "activation_bits": 0,
    }
    app.selectbox(key="key/noise").set_value("pink")
    app.checkbox(key="key/flip").uncheck()
    app.text_input(key="key/data").set_value("  embedded ")
    app.number_input(key="key/images").set_value(8)
    app.number_input(key="key/unbounded").set_value(-1e9)
    app.run()
    changed = {"noise": "pink", "flip": False, "data": "embedded", "images": 8, "unbounded": -1e9}
    assert {name: app.session_state["result"][name] for name in changed} == changed
