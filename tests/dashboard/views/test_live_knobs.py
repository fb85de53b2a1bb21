"""The live knobs of a run: which there are, their values over the iterations, and changes from the browser."""

from dataclasses import replace

import pytest

from core.config import GenerationConfig, has_knob, live_knobs
from core.runs.control import LocalControl
from core.runs.state import RunState
from dashboard import session
from dashboard.charts.style import color
from dashboard.views import live_knobs as view


@pytest.fixture
def run(with_finished_run):
    return session.store().run(with_finished_run)


def groups(run):
    (data,) = view.values(run, ended=True).values()
    return {group: {knob["name"]: knob for knob in knobs} for group, knobs in data["knobs"].items()}


def test_every_method_has_its_knobs_and_all_have_those_of_each(run):
    shown = groups(run)
    assert list(shown) == ["all", "mi-fgsm", "adam"]
    for method in ("mi-fgsm", "adam"):
        assert list(shown[method]) == list(live_knobs(GenerationConfig, method))
    assert set(shown["all"]) == {*shown["mi-fgsm"], *shown["adam"]}
    for knobs in shown.values():
        for knob in knobs.values():
            assert {knob["value"], knob["start"]} <= set(knob["options"])
            assert (knob["previous"], knob["since"]) == (None, None)


def test_values_over_the_iterations(run):
    for method, step, value in (("mi-fgsm", 1, 0.5), ("adam", 1, 0.5), ("adam", 3, 20.0)):
        session.store().add_change(run.id, method, step, "beta", value)
    shown = groups(run)
    start = run.config.generation.beta
    adam = shown["adam"]["beta"]
    assert (adam["start"], adam["previous"], adam["value"], adam["since"]) == (start, 0.5, 20.0, 4)
    assert adam["lines"] == [[color("adam"), [(0, start), (1, 0.5), (3, 20.0)]]]
    both = shown["all"]["beta"]  # the value of the first method, the course of each
    assert (both["value"], both["previous"], both["since"]) == (0.5, start, 2)
    assert [line[0] for line in both["lines"]] == [color("mi-fgsm"), color("adam")]
    assert 20.0 in both["options"]


def test_an_active_run_of_another_server_has_none(run):
    assert view.values(replace(run, state=RunState.RUNNING), ended=False) == {}


@pytest.fixture
def control(run, monkeypatch):
    made = LocalControl()
    monkeypatch.setattr(session.manager(), "control", lambda run_id: made)
    return made


def test_a_change_reaches_the_methods_of_its_group_that_have_the_knob(run, control):
    view.change(run, {"group": "all", "name": "epsilon", "value": 0.2})
    view.change(run, {"group": "adam", "name": "beta", "value": 5})
    assert control.values("mi-fgsm", 1) == {"epsilon": 0.2}
    assert control.values("adam", 1) == {"beta": 5}
    assert not has_knob(live_knobs(GenerationConfig)["epsilon"], "adam")


@pytest.mark.parametrize(
    "new",
    [
        {"group": "all", "name": "images", "value": 5},
        {"group": "all", "name": "beta", "value": -1},
        {"group": "all", "name": "beta", "value": "1"},
        {"group": "nobody", "name": "beta", "value": 1},
    ],
)
def test_a_browser_cannot_set_anything_else(run, control, new, monkeypatch):
    said = []
    monkeypatch.setattr(view.st, "toast", lambda text, **_: said.append(text))
    view.change(run, new)
    assert control.values("adam", 1) == control.values("mi-fgsm", 1) == {}
    assert len(said) == (new["group"] != "nobody")
