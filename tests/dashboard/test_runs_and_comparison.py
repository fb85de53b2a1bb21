"""The Runs and Compare pages in Streamlit's AppTest, on handwritten stores."""

import time

import pytest
import streamlit
from app_pages import component, tables
from streamlit.testing.v1 import AppTest

from core.config import MachineConfig, RunConfig
from core.runs.state import RunState
from dashboard import session
from dashboard.tables import run_list
from dashboard.text import plain


def finished(name, seed=0, final=RunState.COMPLETE, records=3) -> str:
    store = session.store()
    run_id = store.create(RunConfig(machine=MachineConfig(seed=seed), bits=(4,)), name)
    store.set_state(run_id, RunState.RUNNING)
    for step in range(1, records + 1):
        for method in ("mi-fgsm", "adam"):
            store.append(run_id, "generation", method, step, {"total": 10.0 / step + seed, "layers": [1.0] * 20, "seconds": 0.1 * step})
    store.set_result(run_id, "full_precision", {"top1": 92.1})
    for method, top1 in (("mi-fgsm", 90.0), ("adam", 80.0)):
        row = {"bits": 4, "weight_bits": 4, "activation_bits": 4, "calibrated": 50.0, "quantized": top1 + seed, "standard_error": 0.5}
        store.set_result(run_id, f"accuracy/{method}/W4A4", row)
    if final is not None:
        store.set_state(run_id, final)
    return run_id


def page(name, **query):
    app = AppTest.from_file(f"../../dashboard/pages/{name}.py", default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def select(app, *rows, table="runs"):
    """Selects rows of a table, as clicks would."""
    (data,) = [data for data in component(app, "table") if data["name"] == table]
    app.query_params[f"{table}.rows"] = ",".join(data["rows"][row]["id"] for row in rows)
    app.run()
    assert not app.exception, app.exception
    return app


def table(app, column):
    return next(table for table in tables(app) if column in table)


@pytest.fixture
def three(runs_folder):
    """Ids of three finished runs, newest first, as in the table."""
    return [finished(f"*run* {seed}", seed) for seed in range(3)][::-1]


def test_table_has_the_columns_to_sort_by(three):
    app = page("runs")
    rows = table(app, "minutes")
    assert list(rows["name"]) == ["*run* 2", "*run* 1", "*run* 0"]
    assert list(rows["W4A4 %"]) == [92.0, 91.0, 90.0]  # on MI-FGSM's images
    assert list(rows["full precision %"]) == [92.1] * 3
    assert list(rows["network"]) == ["resnet20_cifar10"] * 3


def test_list_is_filtered_by_text_tag_and_state(three):
    store = session.store()
    store.set_tags(three[0], ["good one", "seed"])
    store.set_tags(three[1], ["seed"])
    store.set_note(three[2], "The Odd one")
    failed = finished("failed", final=RunState.FAILED)
    app = page("runs", find="odd RUN")
    assert list(table(app, "minutes")["name"]) == ["*run* 0"]
    app = page("runs")
    app.multiselect(key="tag").set_value(["seed"]).run()
    assert list(table(app, "minutes")["name"]) == ["*run* 2", "*run* 1"]
    app.multiselect(key="tag").set_value(["seed", "good one"]).run()
    assert list(table(app, "minutes")["name"]) == ["*run* 2"]
    app.multiselect(key="tag").set_value([])
    app.multiselect(key="state").set_value(["failed"]).run()
    assert list(table(app, "minutes")["name"]) == ["failed"]
    assert store.run(failed).name == "failed"
    app.text_input(key="find").set_value("nothing of that kind").run()
    assert any("No run matches the filters" in caption.value for caption in app.caption)


def test_selection_follows_the_run_and_not_its_row(three):
    """A new run at the top of the list does not move the selection."""
    app = select(page("runs"), 1)
    assert any("\\*run\\* 1" in markdown.value for markdown in app.markdown)
    finished("a new one")
    app.run()
    assert not app.exception
    assert any("\\*run\\* 1" in markdown.value for markdown in app.markdown)
    app.text_input(key="find").set_value("run").run()
    assert any("\\*run\\* 1" in markdown.value for markdown in app.markdown)


def test_run_is_renamed_and_gets_a_note(three):
    app = select(page("runs"), 0)
    app.text_input(key=f"name {three[0]}").set_value("another name")
    app.text_area(key=f"note {three[0]}").set_value("a note")
    app.multiselect(key=f"tags {three[0]}").set_value([])
    app.button(key="save description").click().run()
    run = session.store().run(three[0])
    assert (run.name, run.note) == ("another name", "a note")


def test_baseline_is_pinned_and_unpinned(three):
    app = select(page("runs"), 2)
    app.button(key="pin").click().run()
    assert [run.id for run in session.store().runs() if run.pinned] == [three[2]]
    assert list(table(app, "minutes")["name"]) == ["*run* 2", "*run* 1", f"*run* 0 {run_list.BASELINE}"]
    assert app.button(key="pin").label == "Unpin as baseline"
    app.button(key="pin").click().run()
    assert not any(run.pinned for run in session.store().runs())


def test_deletion_is_undone(three):
    app = select(page("runs"), 1)
    app.button(key="delete").click().run()
    assert not app.exception
    assert [run.id for run in session.store().runs()] == [three[0], three[2]]
    assert any("Deleted **\\*run\\* 1**" in markdown.value for markdown in app.markdown)
    app.button(key="undo").click().run()
    assert not app.exception
    assert [run.id for run in session.store().runs()] == three
    assert not any("Deleted **" in markdown.value for markdown in app.markdown)


def test_several_runs_are_deleted_and_restored_from_the_trash(three):
    app = select(page("runs"), 0, 1, 2)
    app.button(key="delete").click().run()
    assert session.store().runs() == []
    app = page("runs")  # a session that has deleted nothing
    assert any("No runs yet" in info.value for info in app.info)
    app.session_state["deleted runs"] = True
    app.run()
    assert sorted(table(app, "deleted")["name"]) == ["*run* 0", "*run* 1", "*run* 2"]
    select(app, 0, 1, table="deleted")
    assert app.button(key="restore").label == "Restore 2 runs"
    app.button(key="restore").click().run()
    assert not app.exception
    assert len(session.store().runs()) == 2
    (left,) = session.store().trash.runs()
    app = select(app, 0, table="deleted")
    app.button(key="delete permanently").click().run()
    assert not app.exception
    assert session.store().trash.runs() == []
    assert not session.store().run_folder(left.id).exists()


def test_active_run_cannot_be_deleted(runs_folder):
    finished("going on", final=None)
    app = select(page("runs"), 0)
    assert app.button(key="delete").disabled


def test_several_runs_are_tagged_together(three):
    session.store().set_tags(three[0], ["old", "both"])
    session.store().set_tags(three[1], ["both"])
    app = select(page("runs"), 0, 1)
    app.multiselect(key="tags to add").set_value(["old"])
    app.multiselect(key="tags to remove").set_value(["both"])
    app.button(key="save tags").click().run()
    assert not app.exception
    assert [run.tags for run in session.store().runs()] == [("old",), ("old",), ()]


@pytest.mark.parametrize(
    ("rows", "button", "target"),
    [
        ((0, 2), "compare", ("dashboard/pages/compare.py", "runs", (0, 2))),
        ((1,), "start again", ("dashboard/pages/studio.py", "from", (1,))),
    ],
)
def test_selected_runs_open_in_other_pages(three, monkeypatch, rows, button, target):
    went = []  # a page opened alone cannot switch to another
    monkeypatch.setattr(streamlit, "switch_page", lambda page, query_params: went.append((page, query_params)))
    select(page("runs"), *rows).button(key=button).click().run()
    name, parameter, places = target
    assert went == [(name, {parameter: ",".join(three[place] for place in places)})]


# the comparison


def test_comparison_says_what_to_do_first(runs_folder):
    assert any("Start one in the Studio" in info.value for info in page("compare").info)
    only = finished("the only one")
    assert any("Choose two or more" in info.value for info in page("compare", runs=only).info)


def test_comparison_of_the_runs_in_the_address(three):
    session.store().pin(three[1])
    app = page("compare", runs=",".join(three[:2]), curve="total loss", x="seconds", smoothing="0.5", log="true")
    assert app.multiselect(key="runs to compare").value == three[:2]
    (differing,) = [table for table in tables(app) if "setting" in table and len(table.columns) == 3]
    assert list(differing["setting"]) == ["Seed"]
    assert list(differing["A · *run* 2"]) == ["2"]
    assert list(differing["B · *run* 1 ★"]) == ["1"]
    assert app.slider(key="smoothing").value == 0.5
    assert app.toggle(key="log").value is True
    values = table(app, "best at iteration")
    assert list(values["last − baseline"])[:2] == pytest.approx([1.0, 1.0])
    assert list(table(app, "W4A4 − baseline")["W4A4 %"]) == [92.0, 82.0, 91.0, 81.0]
    assert len(component(app, "figure")) == 2
    app.multiselect(key="runs to compare").set_value([three[2], three[0], three[1]]).run()
    assert not app.exception
    assert app.query_params["runs"] in ([",".join([three[2], three[0], three[1]])], ",".join([three[2], three[0], three[1]]))
    app.selectbox(key="curve").set_value("training loss").run()
    assert any("None of these runs has recorded training loss" in caption.value for caption in app.caption)


def test_unknown_and_deleted_runs_in_the_address_give_warnings(three):
    session.store().trash.put(three[2])
    app = page("compare", runs=f"{three[0]},<b>nobody,{three[2]},{three[1]},{three[0]}", curve="nothing", x="1", smoothing="7", log="maybe")
    assert app.multiselect(key="runs to compare").value == three[:2]
    assert len(app.warning) == 2
    assert plain("<b>nobody") in app.warning[0].value
    assert app.selectbox(key="curve").value == "total loss"


def test_comparison_with_settings_of_another_version(three):
    with session.store().database.write() as connection:
        connection.execute("UPDATE run SET config = '{\"new\": 1}' WHERE id = ?", (three[0],))
    app = page("compare", runs=",".join(three))
    assert any("This version cannot read the settings" in warning.value for warning in app.warning)
    assert len(component(app, "figure")) == 2


def test_comparison_follows_an_active_run(three):
    going_on = finished("going on", final=None)
    app = page("compare", runs=f"{three[0]},{going_on}")
    assert max(table(app, "best at iteration")["best at iteration"]) == 3
    session.store().append(going_on, "generation", "adam", 4, {"total": 0.5, "seconds": 0.4})
    app.run()
    assert max(table(app, "best at iteration")["best at iteration"]) == 4


def test_list_of_200_runs_reads_no_records(runs_folder, monkeypatch):
    """And takes less than 5 seconds."""
    first = finished("first", records=200)
    with session.store().database.write() as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(run)")]
        others = ", ".join(columns[1:])
        for index in range(199):
            copy = f"copy{index:03d}"
            connection.execute(f"INSERT INTO run (id, {others}) SELECT ?, {others} FROM run WHERE id = ?", (copy, first))
            connection.execute("INSERT INTO result (run, name, data) SELECT ?, name, data FROM result WHERE run = ?", (copy, first))
    monkeypatch.setattr(type(session.store()), "records", None)
    monkeypatch.setattr(type(session.store()), "curves", None)
    app = page("runs")
    began = time.monotonic()
    app.run()
    assert len(table(app, "minutes")) == 200
    assert time.monotonic() - began < 5
