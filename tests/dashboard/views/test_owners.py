"""Where users log in, others than the owner see the controls of a run disabled with the reason, and a forged click does nothing."""

import pytest
from app_pages import ROOT, SHORT, component, page, texts
from login_cookies import token_cookie
from streamlit.testing.v1 import AppTest

from core.errors import RunError
from core.runs.control import LocalControl
from core.runs.state import RunState
from dashboard import session
from dashboard.server import logins, settings
from dashboard.views import live_knobs, run_actions

REASON = "Only Emma can do this."


class Recorder(LocalControl):
    """The control of a run, with everything that was done to it."""

    def __init__(self):
        super().__init__()
        self.done = []

    def pause(self):
        self.done.append("pause")

    def step(self):
        self.done.append("step")

    def stop(self):
        self.done.append("stop")

    def set(self, name, value, methods):
        self.done.append(name)


@pytest.fixture
def emmas(runs_folder, with_token, cookies, monkeypatch):
    """Emma's active run: its id, and its control."""
    monkeypatch.setattr("dashboard.views.status._SECONDS_FOR_A_STEP", 0.1)
    cookies.update(token_cookie("Anna"))
    store, control = session.store(), Recorder()
    run_id = store.create(SHORT, "a run", user="Emma")
    store.set_state(run_id, RunState.RUNNING)
    session.manager()._controls[run_id] = control
    yield run_id, control
    del session.manager()._controls[run_id]
    store.set_state(run_id, RunState.STOPPED)


def press(key, as_user, cookies):
    """A click on the owner's page that the server gets from another user: as if they had enabled the button in their browser."""
    cookies.update(token_cookie("Emma"))
    app = page("studio")
    cookies.update(token_cookie(as_user))
    app.button(key=key).click().run()
    assert not app.exception
    return app


def move_slider(run_id):
    """What the server does when a browser says that a slider was moved, which AppTest cannot do."""
    live_knobs.change(session.store().run(run_id), {"group": "all", "name": "epsilon", "value": 0.03})


def toasts(app):
    return [toast.value.replace("\\", "") for toast in app.toast]


def test_others_see_the_controls_disabled_with_the_reason(emmas):
    app = page("studio")
    for key in ("pause", "step", "stop"):
        assert app.button(key=key).disabled
        assert app.button(key=key).help.replace("\\", "") == REASON
    (knobs,) = component(app, "knobs")
    assert knobs["refusal"] == REASON  # the sliders are disabled
    assert REASON in texts(app)


@pytest.mark.parametrize("key", ["pause", "step", "stop"])
def test_a_forged_click_does_nothing(key, emmas, cookies):
    _, control = emmas
    app = press(key, "Anna", cookies)
    assert control.done == []
    assert toasts(app) == [f"run 'a run': {REASON}"]
    press(key, "Emma", cookies)
    assert control.done == [key]


def test_a_forged_slider_does_nothing(emmas, cookies, monkeypatch):
    run_id, control = emmas
    said = []
    monkeypatch.setattr(live_knobs.st, "toast", lambda words, **_: said.append(words.replace("\\", "")))
    move_slider(run_id)
    assert control.done == []
    assert said == [f"run 'a run': {REASON}"]
    cookies.update(token_cookie("Emma"))
    move_slider(run_id)
    assert control.done == ["epsilon"]


@pytest.mark.parametrize(("user", "admins"), [("Emma", ""), ("Anna", "anna")], ids=["the owner", "an admin"])
def test_owners_and_admins_can(user, admins, emmas, monkeypatch, cookies):
    run_id, control = emmas
    monkeypatch.setenv(settings.ADMINS_VARIABLE, admins)
    cookies.update(token_cookie(user))
    app = page("studio")
    assert not any(app.button(key=key).disabled for key in ("pause", "step", "stop"))
    for key in ("pause", "step", "stop"):
        app.button(key=key).click().run()
    move_slider(run_id)
    assert control.done == ["pause", "step", "stop", "epsilon"]


def test_a_login_that_ended_while_the_page_was_open_does_nothing_more(emmas, cookies):
    _, control = emmas
    cookies.update(token_cookie("Emma"))
    app = page("studio")
    logins.end(logins.login_in(cookies))
    app.button(key="stop").click().run()
    assert control.done == []
    assert toasts(app) == ["run 'a run': Log in first."]


def runs_page(run_id):
    app = AppTest.from_file(str(ROOT / "dashboard" / "pages" / "runs.py"), default_timeout=60)
    app.query_params["runs.rows"] = run_id
    return app.run()


def test_others_cannot_resume_delete_or_restore_a_run(runs_folder, with_token, cookies):
    store = session.store()
    run_id = store.create(SHORT, "a run", user="Emma")
    store.set_state(run_id, RunState.STOPPED)
    app = press(f"resume {run_id}", "Anna", cookies)
    assert store.run(run_id).state is RunState.STOPPED
    assert toasts(app) == [f"run 'a run': {REASON}"]
    app = runs_page(run_id)
    assert app.button(key="delete").disabled
    assert app.button(key="delete").help.replace("\\", "") == REASON

    cookies.update(token_cookie("Emma"))
    app = runs_page(run_id)
    cookies.update(token_cookie("Anna"))
    app.button(key="delete").click().run()
    assert [run.id for run in store.runs()] == [run_id]
    cookies.update(token_cookie("Emma"))
    runs_page(run_id).button(key="delete").click().run()
    assert [run.id for run in store.trash.runs()] == [run_id]

    cookies.update(token_cookie("Anna"))
    with pytest.raises(RunError, match=REASON):
        run_actions._restore(store.trash.runs())
    assert [run.id for run in store.trash.runs()] == [run_id]
