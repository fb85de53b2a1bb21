"""The Paper page in Streamlit's AppTest: the table with local measurements, and the form that measures a row."""

import pandas as pd
import pytest
import streamlit
from app_pages import page, tables

from core.config import PRESETS
from core.runs.paper_table import row_config
from dashboard import session
from dashboard.text import plain


def test_table_shows_the_measurements_of_a_run(with_finished_run):
    app = page("paper")
    whole, measured = tables(app)
    lines = whole.set_index("row")["measured"]
    assert len(lines) == 12
    assert pd.isna(lines["imagenet/resnet50/5"])
    assert lines["cifar10/resnet20/4"] > 1.7e9  # seconds since the epoch
    (line,) = [line for _, line in measured.iterrows() if line["run"] == with_finished_run]
    known = session.store().result(with_finished_run, "accuracy/mi-fgsm/W4A4")
    assert line["top-1 mi-fgsm"] == known["quantized"]
    assert line["drop mi-fgsm"] == pytest.approx(known["full_precision"] - known["quantized"], abs=0.005)
    assert (
        line["setting"]
        == "quick with images 40, iterations 4, batch_size 20, snapshots 2, steps 3, training_batch_size 20, training_lr 0.0005"
    )


def test_form_measures_a_row(runs_folder, monkeypatch):
    went = []  # a page opened alone cannot switch to another
    monkeypatch.setattr(streamlit, "switch_page", lambda page, query_params: went.append((page, query_params)))
    app = page("paper")
    app.selectbox(key="row").set_value("cifar10/resnet20/5").run()
    assert app.selectbox(key="cifar10/resnet20/5/model").value == "resnet20_cifar10"
    app.button(key="measure row").click().run()
    assert not app.exception
    (run,) = session.store().runs()
    session.manager().control(run.id).stop()
    assert went == [("dashboard/pages/studio.py", {"run": run.id})]
    assert run.config.to_dict() == row_config("cifar10/resnet20/5", PRESETS["quick"], "resnet20_cifar10").to_dict()


def test_form_says_what_is_missing_and_starts_nothing(runs_folder):
    app = page("paper")
    app.selectbox(key="row").set_value("imagenet/resnet18/4").run()
    app.button(key="measure row").click().run()
    (error,) = app.error
    assert plain("imagenet/resnet18/4") in error.value
    assert session.store().runs() == []
