"""The Methods page in Streamlit's AppTest: the table of a protocol, its files, and the form that measures what is missing."""

import json

import pytest
from app_pages import htmls, page, tables, texts

from core.comparison import kept
from core.comparison.cells import found
from core.comparison.table import rows
from core.runs import paper_table
from dashboard import session


def test_table_is_that_of_the_command(with_finished_run):
    app = page("methods", run=with_finished_run)
    (frame,) = tables(app)
    store = session.store()
    expected = rows(store, found(store, store.config(with_finished_run)))
    assert list(zip(frame["width"], frame["method"])) == [(row.width, row.title) for row in expected]
    known = store.result(with_finished_run, "accuracy/mi-fgsm/W4A4")
    line = frame[(frame["method"] == "MI-FGSM") & (frame["width"] == "W4A4")].iloc[0]
    assert line["drop"] == pytest.approx(known["full_precision"] - known["trained"])
    assert "paired bootstrap" in texts(app)


def test_comparisons_that_came_with_the_program_are_shown(with_finished_run, tmp_path, monkeypatch):
    store, path = session.store(), tmp_path / "measured.json"
    path.write_text(json.dumps({"runs": [], "comparisons": []}), encoding="utf-8")
    monkeypatch.setattr(paper_table, "MEASURED", path)
    assert "Measured with this program" not in [expander.label for expander in page("methods").expander]
    entry = kept.entry(store, with_finished_run, "the finished run") | {"date": "2001-02-03", "processor": "a processor"}
    path.write_text(json.dumps({"runs": [], "comparisons": [entry]}), encoding="utf-8")
    app = page("methods", "kept comparisons", run=with_finished_run)
    both = tables(app)
    assert len(both) == 2
    assert both[0].equals(both[1])
    assert "the finished run. Measured on 2001-02-03 on one machine (a processor) with:" in texts(app)
    assert any(block.value.startswith("python -m core compare") for block in app.code)


def test_best_and_worst_images_of_each_method(with_finished_run):
    assert not [html for html in htmls(page("methods", run=with_finished_run)) if "data:image/png" in html]  # not while it is closed
    app = page("methods", f"best and worst/{with_finished_run}", run=with_finished_run)
    pictures = [block.proto.body for block in app.get("html") if "data:image/png" in block.proto.body]
    methods = session.store().config(with_finished_run).methods
    assert len(pictures) == 2 * len(methods)
    assert "takes for another class" in texts(app)


def test_form_starts_only_what_is_missing(with_finished_run):
    seed = session.store().config(with_finished_run).machine.seed
    app = page("methods", run=with_finished_run)
    app.text_input(key=f"seeds/{with_finished_run}").set_value(f"{seed}, {seed + 1}").run()
    methods = session.store().config(with_finished_run).methods
    button = app.button(key="measure methods")
    assert button.label == f"Start {len(methods)} run{'s' if len(methods) > 1 else ''}"
    button.click().run()
    assert not app.exception
    started = [run for run in session.store().runs() if run.id != with_finished_run]
    for run in started:
        session.manager().control(run.id).stop()
    assert sorted(run.config.methods for run in started) == sorted((method,) for method in methods)
    assert {run.config.machine.seed for run in started} == {seed + 1}


def test_real_images_need_a_folder(with_finished_run, tmp_path):
    app = page("methods", run=with_finished_run)
    app.multiselect(key=f"methods/{with_finished_run}").set_value(["noise", "real"]).run()
    assert [error.value.replace("\\", "") for error in app.error] == ["real_images must be a folder of images, got none"]
    app.text_input(key=f"real images/{with_finished_run}").set_value(str(tmp_path)).run()
    assert not app.error
    assert not app.exception
    assert app.button(key="measure methods").label == "Start 6 runs"


@pytest.mark.parametrize("written", ["", "one", "1, -2", "1 1"])
def test_seeds_that_are_none_are_named(with_finished_run, written):
    app = page("methods", run=with_finished_run)
    app.text_input(key=f"seeds/{with_finished_run}").set_value(written).run()
    (error,) = app.error
    assert "seeds must" in error.value
    assert not [button for button in app.button if button.key == "measure methods"]


def test_without_a_run_the_page_says_where_to_start(runs_folder):
    assert "Start one in the Studio" in texts(page("methods"))


def test_files_are_named_by_their_content(with_finished_run):
    """ "CSV" alone is the button of the table, which saves the columns that it shows."""
    app = page("methods", run=with_finished_run)
    assert [button.proto.label for button in app.get("download_button")] == ["All columns (CSV)", "Table (LaTeX)", "Figure (SVG)"]
