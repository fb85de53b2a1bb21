"""One way to show a figure and a table: how their files are called, that every page goes it, and that no CSV is a formula."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import text
from dashboard.charts import files as chart_files

DASHBOARD = Path(text.__file__).parent


def test_a_file_is_called_what_the_run_and_the_chart_are():
    assert chart_files.file_name("quick, seed 0 accuracy") == "quick-seed-0-accuracy"
    assert chart_files.file_name("../../etc/passwd\0 <b>") == "etc-passwd-b"
    assert chart_files.file_name("Läufe ε=0.1") == "läufe-ε-0-1"
    assert chart_files.file_name("///") == "chart"
    long = chart_files.file_name("x" * 300 + " similarity matrix adam")
    assert len(long) <= 80
    assert long.endswith("-similarity-matrix-adam")


def test_the_script_survives_what_cleans_html():
    """DOMPurify, by which Streamlit cleans HTML, throws away a script with anything like a tag in it."""
    script = chart_files.script()
    assert not any(f"<{character}" in script for character in "/!abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_every_page_shows_figures_and_tables_the_one_way():
    wrong = []
    for path in DASHBOARD.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("plotly_chart", "dataframe"):
                if (path.name, node.func.attr) == ("figures.py", "dataframe"):
                    continue
                wrong.append(
                    f"{path.relative_to(DASHBOARD)}:{node.lineno} calls {node.func.attr}: allowed are figures.show and figures.table"
                )
    assert wrong == []


@pytest.mark.parametrize("formula", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1", "-", "+a"])
def test_a_text_that_a_spreadsheet_would_compute_is_none_any_more(formula):
    cell = text.cell(formula)
    assert cell != formula
    assert cell[1:] == formula
    assert cell[0] == "\u2060"


@pytest.mark.parametrize("value", ["a run", "a=1", "", "-3", "+4.5", "-1e-7", ".5", -3, -0.5, None, True, "± error", "– none"])
def test_all_else_stays_in_a_table_as_it_is(value):
    assert text.cell(value) is value


def show():
    from dashboard.charts.style import json_of  # the body is a script of its own
    from dashboard.components import figures

    figures.show(json_of({"data": [{"type": "scatter", "x": [1], "y": [2]}], "layout": {}}), "curve", "my run: loss")
    figures.table([{"name": "=1+1", "=title": 1, "value": -2.5}, {"name": None, "=title": 2, "value": None}], "rows")
    figures.offer_files()


def test_a_page_with_a_figure_and_a_table():
    app = AppTest.from_function(show).run()
    assert not app.exception
    (chart,) = app.get("bidi_component")
    assert json.loads(chart.proto.json)["config"]["toImageButtonOptions"] == {"format": "png", "filename": "my-run-loss"}
    (table,) = app.dataframe
    assert isinstance(table.value, pd.DataFrame)
    assert table.value.columns.tolist() == ["name", "\u2060=title", "value"]
    assert table.value["name"][0] == "\u2060=1+1"
    assert table.value["value"][0] == -2.5
    assert pd.isna(table.value["value"][1])
    (script,) = app.get("html")
    assert script.proto.unsafe_allow_javascript
    assert chart_files.script() in script.proto.body
