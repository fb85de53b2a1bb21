"""Every page in Streamlit's AppTest: without runs, with a run from an earlier server, and with a run whose weights file was deleted."""

import json
from dataclasses import asdict, replace

import pytest
import streamlit
from app_pages import ROOT, SHORT, component, page, tables, texts
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from core.models.registry import MODELS
from core.runs import paper_table
from core.runs.state import RunState
from dashboard import session


@pytest.mark.parametrize(
    ("name", "first_step"),
    [
        ("studio", "No image of yours is needed"),
        ("quantize", "Studio"),
        ("diversity", "Studio"),
        ("runs", "Studio"),
        ("compare", "Studio"),
        ("export", "Studio"),
        ("paper", "press Measure"),
        ("sweep", "press Start"),
    ],
)
def test_page_without_runs_names_the_first_step(runs_folder, name, first_step, tmp_path, monkeypatch):
    (tmp_path / "measured.json").write_text('{"runs": [], "comparisons": []}', encoding="utf-8")
    monkeypatch.setattr(paper_table, "MEASURED", tmp_path / "measured.json")
    app = page(name)
    assert first_step in texts(app)


def test_runs_lists_runs_from_earlier_servers(with_finished_run):
    app = page("runs")
    table = tables(app)[0]
    assert list(table["name"]) == ["a finished run"]
    assert list(table["state"]) == ["complete"]
    assert table["W4A4 %"][0] == session.store().result(with_finished_run, "accuracy/mi-fgsm/W4A4")["quantized"]


@pytest.mark.slow
def test_pages_show_a_run_whose_weights_file_was_deleted(runs_folder, tmp_path):
    embedded, spec = MODELS["resnet20_cifar10"]
    path = tmp_path / "gone.safetensors"
    save_file(load_file(embedded), path, metadata={"spec": json.dumps(asdict(replace(spec, name="mine")))})
    config = replace(SHORT, model=str(path))
    run_id = session.manager().start(config.with_knobs({"encoder": "embedded"}))
    session.manager().wait(run_id)
    assert session.store().run(run_id).state is RunState.COMPLETE
    assert session.store().result(run_id, "classes") == list(spec.classes)  # for the pages, which must not import torch to find them
    path.unlink()
    for name, number in (("quantize", 0), ("diversity", 3), ("runs", 0)):
        assert len(component(page(name), "figure")) == number
    assert len(component(page("studio"), "sheet")) == 2


def test_a_link_clicked_before_the_page_is_drawn_keeps_the_run(runs_folder, monkeypatch):
    """On a slow machine, clicking a link stops the script of the first page early."""
    asked, newer = (session.store().create(SHORT, name) for name in ("asked for", "newer"))
    for run_id in (asked, newer):
        session.store().set_state(run_id, RunState.COMPLETE)
    app = AppTest.from_file(str(ROOT / "streamlit_app.py"), default_timeout=60)
    app.query_params["run"] = asked
    with monkeypatch.context() as slow:
        slow.setattr(streamlit, "navigation", lambda *args, **options: streamlit.stop())
        app.run()
    del app.query_params["run"]
    app.run()
    assert not app.exception, app.exception
    assert "asked for" in texts(app)
    assert "newer" not in texts(app)


@pytest.mark.parametrize("name", ["studio", "quantize", "diversity", "export"])
def test_a_run_chosen_on_another_page_is_in_the_address(with_finished_run, name):
    app = AppTest.from_file(str(ROOT / "dashboard" / "pages" / f"{name}.py"))
    app.session_state["shown run"] = with_finished_run
    app.run(timeout=60)
    assert app.query_params["run"] in (with_finished_run, [with_finished_run])
    assert "run" not in page(name).query_params  # the newest run, which may be another one tomorrow
