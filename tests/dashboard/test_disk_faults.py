"""A full disk, and a runs folder that cannot be read or written: a sentence on the page, and nothing that was typed is lost."""

import shutil
import sqlite3
from contextlib import closing, contextmanager

import pytest
from app_pages import ROOT, component, page, tables, texts
from streamlit.testing.v1 import AppTest
from test_runs_and_comparison import finished, select

from core.runs import database
from core.runs.database import DATABASE, Database
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE
from dashboard import session
from dashboard.pages import PAGES
from dashboard.updates import live_view
from dashboard.views import status
from tests.small_disks import mounted


@pytest.fixture
def full(monkeypatch):
    """A list: while it has something in it, nothing can be written to the database."""
    found, write = [], Database.write

    @contextmanager
    def no_space(self, durable=True):
        if found:
            with self.errors():
                raise sqlite3.OperationalError("database or disk is full")
        with write(self, durable) as connection:
            yield connection

    monkeypatch.setattr(Database, "write", no_space)
    return found


def shows(app, full):
    """Whether the page shows the sentence; the page works again when there is space."""
    assert not app.exception, app.exception
    shown = [one.value.replace("\\", "") for one in (*app.error, *app.toast)]
    full.clear()
    return any(f"the disk that holds {session.store().folder} is full: free some space" in text for text in shown)


def test_start_keeps_what_was_chosen(runs_folder, full):
    app = page("studio", "all settings/")
    app.multiselect(key="quick/methods").set_value(["adam"])
    app.number_input(key="quick/generation/images").set_value(40)
    full.append(True)
    app.button(key="start").click().run()
    assert shows(app, full)
    assert app.multiselect(key="quick/methods").value == ["adam"]
    assert app.number_input(key="quick/generation/images").value == 40
    assert session.store().runs() == []


def test_start_again_keeps_the_settings_of_the_earlier_run(runs_folder, full):
    run_id = finished("earlier", seed=5)
    app = page("studio", **{"from": run_id})
    full.append(True)
    app.button(key="start").click().run()
    assert shows(app, full)
    assert app.query_params["from"] == run_id


@pytest.mark.parametrize(
    ("name", "opened", "button"),
    [
        ("quantize", "quantize/{}/False", "quantize"),
        ("diversity", "Measure with an encoder", "measure"),
        ("paper", "Measure a row", "measure row"),
    ],
)
def test_buttons_that_start_runs(with_finished_run, full, name, opened, button):
    app = page(name, opened.format(with_finished_run))
    full.append(True)
    app.button(key=button).click().run()
    assert shows(app, full)
    assert [run.id for run in session.store().runs()] == [with_finished_run]


def test_resume(runs_folder, full):
    run_id = finished("stopped", final=RunState.STOPPED)
    app = page("runs")
    select(app, 0)
    full.append(True)
    app.button(key=f"resume {run_id}").click().run()
    assert shows(app, full)
    assert session.store().run(run_id).state == "stopped"


def test_description_keeps_what_was_typed(runs_folder, full):
    run_id = finished("as it was")
    app = select(page("runs"), 0)
    app.text_input(key=f"name {run_id}").set_value("a new name")
    app.text_area(key=f"note {run_id}").set_value("a long note")
    full.append(True)
    app.button(key="save description").click().run()
    assert shows(app, full)
    assert app.text_input(key=f"name {run_id}").value == "a new name"
    assert app.text_area(key=f"note {run_id}").value == "a long note"
    app.button(key="save description").click().run()
    assert (session.store().run(run_id).name, session.store().run(run_id).note) == ("a new name", "a long note")


@pytest.mark.parametrize("button", ["pin", "delete"])
def test_buttons_of_a_run(runs_folder, full, button):
    run_id = finished("a run")
    app = select(page("runs"), 0)
    full.append(True)
    app.button(key=button).click().run()
    assert shows(app, full)
    assert not session.store().run(run_id).pinned


def test_tags_of_several_runs(runs_folder, full):
    runs = [finished(name) for name in "ab"]
    app = select(page("runs"), 0, 1)
    app.multiselect(key="tags to add").set_value(["new"])
    full.append(True)
    app.button(key="save tags").click().run()
    assert shows(app, full)
    assert app.multiselect(key="tags to add").value == ["new"]
    assert all(session.store().run(run_id).tags == () for run_id in runs)


@pytest.mark.parametrize("button", ["restore", "delete permanently"])
def test_deleted_runs(runs_folder, full, button):
    run_id = finished("deleted")
    session.store().trash.put(run_id)
    app = select(page("runs", "deleted runs"), 0, table="deleted")
    full.append(True)
    app.button(key=button).click().run()
    assert shows(app, full)
    assert [run.id for run in session.store().trash.runs()] == [run_id]


def router(**address):
    app = AppTest.from_file(str(ROOT / "streamlit_app.py"), default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    return app


def test_folder_that_is_removed_under_a_server(runs_folder, tmp_path):
    run_id = finished("a run")
    app = router(run=run_id).run()
    assert not app.exception
    assert "a run" in texts(app)
    (run,) = session.store().runs()
    layout = live_view.collect_updates(status.STATUS, run_id, "")["layout"]
    runs_folder.rename(tmp_path / "away")
    app.run()
    assert not app.exception
    assert [one.value.replace("\\", "") for one in app.error] == [
        f"the runs folder {runs_folder} was removed or is not mounted: put it back and try again"
    ]
    gone = live_view.collect_updates(status.STATUS, run_id, "")
    assert (gone["layout"], gone["values"]) == ("unreadable", {})
    assert not runs_folder.exists()
    (tmp_path / "away").rename(runs_folder)
    app.run()
    assert not app.exception
    assert not app.error
    assert "a run" in texts(app)
    assert live_view.collect_updates(status.STATUS, run_id, "")["layout"] == layout


def test_view_asks_on_until_the_folder_is_back(runs_folder, monkeypatch):
    """The page shows the sentence in place of the view, whose layout then differs from that of the next update."""
    run_id = finished("a run", final=None)
    app = select(page("runs"), 0)
    connected = [data["layout"] for data in component(app, "update_socket")]
    assert connected == [live_view.collect_updates(status.STATUS, run_id, "")["layout"]]

    def unreadable(self, run_id):
        with self.errors():
            raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "run", unreadable)
        app.run()
        assert not app.exception
        assert "cannot be read or written (disk I/O error): check its disk" in texts(app)
        assert [data["layout"] for data in component(app, "update_socket")] == ["unreadable"]
        assert live_view.collect_updates(status.STATUS, run_id, "")["layout"] == "unreadable"
    assert live_view.collect_updates(status.STATUS, run_id, "")["layout"] == connected[0]


def test_warnings_of_a_run(runs_folder):
    run_id = finished("a run")
    session.store().set_result(run_id, "warning/kernels", "the images by *Adam* will differ")
    app = select(page("runs"), 0)
    assert [one.value.replace("\\", "") for one in app.warning] == ["the images by *Adam* will differ"]
    session.store().set_result(run_id, "warning/kept", "the *calibrated* network is kept")
    app = select(page("runs"), 0)
    assert not app.warning
    (folded,) = [expander for expander in app.expander if expander.label == "2 warnings"]
    shown = [markdown.value.replace("\\", "") for markdown in folded.markdown]
    assert sorted(shown) == ["the *calibrated* network is kept", "the images by *Adam* will differ"]


def test_read_only_folder_can_still_be_listed(runs_folder, monkeypatch):
    finished("a run")

    def read_only(self, name):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("core.runs.owner.Owner.is_alive", read_only)
    monkeypatch.setattr("core.runs.owner.Owner.remove_stale", lambda self: read_only(self, ""))
    app = page("runs")
    assert [table["name"].tolist() for table in tables(app) if "name" in table] == [["a run"]]
    assert "must be writable" in texts(app)


def test_folder_on_a_read_only_disk(tmp_path, monkeypatch, finished_runs, runs_in_threads):
    """Every page shows what is kept; what needs writing says in one sentence that it cannot."""
    sentence = "the runs folder must be writable, but {} is read-only: make it writable and try again"
    with mounted(tmp_path / "disk", 40) as disk:
        folder = tmp_path / "disk" / "runs"
        monkeypatch.setenv(RUNS_VARIABLE, str(folder))
        session.manager.clear()
        shutil.copytree(finished_runs, folder)
        disk.remount("ro")
        run_id = session.store().runs()[0].id
        for one in PAGES:
            app = router(run=run_id)
            app.switch_page(one.path).run() if one is not PAGES[0] else app.run()
            assert not app.exception, (one.name, app.exception)
            assert not app.error, (one.name, texts(app))
        app = select(page("runs"), 0)
        assert "The folder is read-only" in texts(app)
        app.text_input(key=f"name {run_id}").set_value("a new name")
        app.button(key="save description").click().run()
        assert [text.value.replace("\\", "") for text in app.error] == [sentence.format(folder)]
        assert app.text_input(key=f"name {run_id}").value == "a new name"
        for name, parameter, button in (("studio", "from", "start"), ("export", "run", "make")):
            app = page(name, **{parameter: run_id})
            app.button(key=button).click().run()
            assert [text.value.replace("\\", "") for text in app.error] == [sentence.format(folder)], name
        session.manager().close()
        session.store().close()
        session.manager.clear()


def test_locked_database(runs_folder, monkeypatch):
    run_id = finished("as it was")
    session.store().close()
    session.manager.clear()
    monkeypatch.setattr(database, "SECONDS_FOR_A_LOCK", 0.1)
    app = select(page("runs"), 0)
    app.text_input(key=f"name {run_id}").set_value("a new name")
    with closing(sqlite3.connect(runs_folder / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        app.button(key="save description").click().run()
        assert not app.exception
        assert "is locked by another process: try again" in texts(app)
        other.execute("ROLLBACK")
    assert app.text_input(key=f"name {run_id}").value == "a new name"
