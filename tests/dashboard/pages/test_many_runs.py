"""Pages with more runs than they list: what they read, the search for older runs, and the parts of the table of runs."""

import re
import sqlite3
from dataclasses import replace

import pytest
from app_pages import SHORT, page, tables, texts

from core.runs.database import Database
from core.runs.state import RunState
from dashboard import session
from dashboard.pages import PAGES

MOST = 5


@pytest.fixture
def few_listed(runs_folder, monkeypatch):
    """Selection boxes and the table of runs list MOST runs."""
    monkeypatch.setattr(session, "MOST_LISTED", MOST)


def finished(count, first=0):
    """Ids of runs with images and accuracies, oldest first: "run-0", "run-1", and so on."""
    store, ids = session.store(), []
    for number in range(first, first + count):
        run_id = store.create(SHORT.with_knobs({"seed": number}), f"run-{number}")
        figures = {"bits": 4, "weight_bits": 4, "activation_bits": 4, "calibrated": 50.0, "quantized": 60.0 + (number * 7) % 10}
        for name, value in (("generation/adam", {}), ("full_precision", {"top1": 90.0}), ("accuracy/mi-fgsm/W4A4", figures)):
            store.set_result(run_id, name, value)
        store.set_state(run_id, RunState.COMPLETE)
        ids.append(run_id)
    return ids


@pytest.fixture
def reading(monkeypatch):
    """Statements and rows that were read from the database, as two lists to be cleared."""
    statements, rows = [], []
    connect = Database._connect

    def row(cursor, values):
        rows.append(values)
        return sqlite3.Row(cursor, values)

    def counted(self, *arguments):
        connection = connect(self, *arguments)
        connection.row_factory = row
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(Database, "_connect", counted)
    return statements, rows


@pytest.mark.parametrize("name", [one.name for one in PAGES])
def test_page_reads_as_much_of_many_runs_as_of_a_few(few_listed, reading, name):
    statements, rows = reading

    def read():
        page(name)  # fills caches
        statements.clear()
        rows.clear()
        page(name)
        return len(statements), len(rows)

    finished(3 * MOST)
    before = read()
    finished(5 * MOST, first=3 * MOST)
    assert read() == before
    assert before[0] > 0


def options(app, label):
    return [one for one in [*app.selectbox, *app.multiselect] if one.label == label][0].options


@pytest.mark.parametrize("name", ["quantize", "diversity", "export"])
def test_older_runs_are_found_by_search_and_by_address(few_listed, name):
    ids = finished(MOST + 3)
    app = page(name)
    assert [re.search(r"run-\d", option)[0] for option in options(app, "Run")] == ["run-7", "run-6", "run-5", "run-4", "run-3"]
    app.text_input(key=f"{name} run/search").set_value("RUN-1").run()
    assert [re.search(r"run-\d", option)[0] for option in options(app, "Run")] == ["run-7", "run-1"]  # the shown one, and what was found
    (box,) = [one for one in app.selectbox if one.label == "Run"]
    box.set_value(ids[1]).run()
    assert not app.exception
    assert app.query_params["run"] in (ids[1], [ids[1]])
    app = page(name, run=ids[0])
    (box,) = [one for one in app.selectbox if one.label == "Run"]
    assert box.value == ids[0]
    assert len(box.options) == MOST + 1
    app.text_input(key=f"{name} run/search").set_value("nothing like it").run()
    assert "No run matches the search." in texts(app)
    assert box.value == ids[0]


def test_box_without_older_runs_has_no_search(few_listed):
    finished(MOST)
    assert "quantize run/search" not in {field.key for field in page("quantize").text_input}


def test_any_run_can_be_compared(few_listed):
    ids = finished(MOST + 3)
    app = page("compare", runs=f"{ids[0]},{ids[-1]}")
    assert app.multiselect(key="runs to compare").value == [ids[0], ids[-1]]
    app.text_input(key="runs to compare/search").set_value("run-1").run()
    app.multiselect(key="runs to compare").set_value([ids[0], ids[-1], ids[1]]).run()
    assert not app.exception
    app.text_input(key="runs to compare/search").set_value("").run()
    assert app.multiselect(key="runs to compare").value == [ids[0], ids[-1], ids[1]]
    assert app.query_params["runs"] in (",".join([ids[0], ids[-1], ids[1]]), [",".join([ids[0], ids[-1], ids[1]])])


def test_table_shows_parts_of_all_runs_in_an_order(few_listed):
    finished(2 * MOST + 1)

    def names(app):
        return list(tables(app)[0]["name"])

    app = page("runs")
    assert names(app) == [f"run-{number}" for number in (10, 9, 8, 7, 6)]
    assert "11 of 11 runs" in texts(app)
    assert options(app, "Show") == ["1 to 5", "6 to 10", "11 to 11"]
    app.selectbox(key="part newest first").set_value(2 * MOST).run()
    assert names(app) == ["run-0"]
    app.selectbox(key="sort").set_value("W4A4").run()
    assert names(app) == ["run-7", "run-4", "run-1", "run-8", "run-5"]  # 69, 68, 67, 66 and 65 percent
    app.text_input(key="find").set_value("run-1").run()
    assert names(app) == ["run-10", "run-1"]
    assert not [box for box in app.selectbox if box.label in ("Show", "Sort by")]  # a click on a column header sorts all of them


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("studio", "given", "was given its images and did not generate any; this page shows another run."),
        ("studio", "nobody", "run 'nobody' does not exist"),
        ("quantize", "failed", "Run a failed one has no images; this page shows another run."),
        ("export", "trashed", "must be restored first, under Runs, within 7 days; this page shows another run."),
    ],
)
def test_address_of_a_run_that_the_page_cannot_show_is_explained(runs_folder, tmp_path, name, wanted, words):
    store = session.store()
    known = {
        "given": store.create(replace(SHORT, images_from=str(tmp_path)), "on given images"),
        "failed": store.create(SHORT, "a failed one"),
        "trashed": store.create(SHORT, "deleted"),
    }
    for run_id in known.values():
        store.set_state(run_id, RunState.FAILED)
    store.trash.put(known["trashed"])
    (shown,) = finished(1)
    app = page(name, run=known.get(wanted, wanted))
    assert [words in warning.value.replace("\\", "") for warning in app.warning] == [True]
    assert not page(name, run=shown).warning
    assert not page(name).warning
