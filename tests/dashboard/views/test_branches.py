"""Branches on the Studio: the form that starts them, and their images and curves beside the run."""

import re

import pytest
from app_pages import component, htmls, page, texts
from waiting import wait_until

from core.runs.branches import branches
from core.runs.state import RunState
from dashboard import session
from dashboard.images.contact_sheet import data_uri
from dashboard.text import plain
from dashboard.views.branch_form import values_at


def alts(app):
    return [sheet["alt"] for sheet in component(app, "sheet")]


def picture_of(frame, index):
    """The picture of one image of a frame, as a data URI."""
    return data_uri(frame.images[index].transpose(1, 2, 0))


def complete(branch_id):
    return lambda: session.store().run(branch_id).state is RunState.COMPLETE


@pytest.mark.slow
def test_branch_is_started_shown_and_removed(with_finished_run):
    app = page("studio", at=2)
    assert alts(app) == ["synthetic images by MI-FGSM", "synthetic images by Adam"]
    app.button(key="try other values").click().run()
    assert app.button(key="start branch").disabled
    assert app.slider(key=f"branch iteration/{with_finished_run}/2").value == 2
    app.slider(key=f"branch/{with_finished_run}/2/epsilon").set_value(0.4).run()
    assert app.button(key="start branch").label == plain("Start: ε 0.4 from iteration 2")
    app.button(key="start branch").click().run()
    assert not app.exception
    (branch,) = branches(session.store(), with_finished_run)
    assert (branch.name, branch.branch_at) == ("ε 0.4 from iteration 2", 2)
    wait_until(complete(branch.id))

    # at iteration 2 both are the same; at 3 and at the newest they are not, and the run is as it was
    for address, same in (({"at": 2}, True), ({"at": 3}, False), ({}, False)):
        app = page("studio", **address)
        assert "A: ε 0.4 from iteration 2" in texts(app)
        assert alts(app)[2:] == ["MI-FGSM, batch 1", "MI-FGSM, branch A, batch 1"]
        of_run, _, beside, of_branch = (sheet["picture"] for sheet in component(app, "sheet"))
        assert of_run == beside
        assert (of_branch == of_run) is same
    frame = session.store().frames.read(branch.id, "mi-fgsm", 3)
    assert f"confidence {100 * frame.confidence.mean():.0f} %" in texts(page("studio", at=3))

    # an image of the branch is enlarged as one of the run is: clicked, in the address, with its history beside that of the run
    app = page("studio", at=3, method="mi-fgsm", image=1, beside=branch.id)
    assert [sheet["chosen"] for sheet in component(app, "sheet")] == [None, None, None, 1]
    (large,) = [html for html in htmls(app) if 'alt="image 1 by MI-FGSM, branch A"' in html]
    assert "MI-FGSM, branch A, image 1:" in texts(app)
    own, beside = (re.findall(r'data-step="(.)".*?src="(.*?)"', html, re.DOTALL) for html in htmls(app) if "data-step" in html)
    assert [step for step, _ in own] == [step for step, _ in beside] == ["1", "2", "3", "4"]
    assert [one == other for one, other in zip(own, beside)] == [True, True, False, False]  # it leaves the run at 2
    assert beside[2][1] == re.search('src="(.*?)"', large)[1] == picture_of(session.store().frames.read(branch.id, "mi-fgsm", 3), 1)
    app.button(key="close image").click().run()
    assert not {"method", "image", "beside"} & set(app.query_params)
    # the run's own image beside its branch, and an image of no branch
    app = page("studio", at=3, method="mi-fgsm", image=1, beside=1)
    assert [sheet["chosen"] for sheet in component(app, "sheet")] == [None, None, 1, None]
    assert "MI-FGSM, image 1:" in texts(app)
    (warning,) = [one.value for one in page("studio", method="mi-fgsm", image=1, beside="nonsense").warning if "address" in one.value]
    assert warning.replace("\\", "") == "image in the address must be of one of the run's branches, got mi-fgsm of nonsense"

    app = page("studio", method="mi-fgsm", image=1, beside=branch.id)
    app.button(key=f"Remove {branch.id}").click().run()
    assert "image" not in app.query_params
    assert not [warning for warning in app.warning if "address" in warning.value]
    assert branches(session.store(), with_finished_run) == []
    assert len(alts(page("studio"))) == 2


def test_form_begins_with_the_values_of_that_moment(with_finished_run):
    store = session.store()
    for step, value in ((1, 0.2), (3, 0.3)):
        store.add_change(with_finished_run, "mi-fgsm", step, "epsilon", value)
    run = store.run(with_finished_run)
    methods = list(run.config.methods)
    assert [values_at(run, methods, at)["epsilon"] for at in (0, 1, 2, 3)] == [run.config.generation.epsilon, 0.2, 0.2, 0.3]
    assert values_at(run, methods, 3)["lr"] == run.config.generation.lr


def test_last_iteration_starts_the_form_in_the_middle(with_finished_run):
    app = page("studio")  # at iteration 4 of 4
    app.button(key="try other values").click().run()
    slider = app.slider(key=f"branch iteration/{with_finished_run}/4")
    assert (slider.min, slider.max, slider.value) == (1, 3, 1)
    app.button(key="cancel branch").click().run()
    assert not app.button(key="try other values").disabled


def test_a_run_with_four_branches_says_that_it_has_no_room(with_finished_run):
    store = session.store()
    for index in range(4):
        store.create(store.config(with_finished_run), f"branch {index}", parent=with_finished_run, branch_at=2)
        store.set_state(branches(store, with_finished_run)[-1].id, RunState.STOPPED)
    app = page("studio")
    assert app.button(key="try other values").disabled
    assert "at most 4 branches" in app.button(key="try other values").help
    assert sum(button.key.startswith("Resume ") for button in app.button if button.key) == 4
