"""Figures and tables: names of downloaded files, one module that shows them on all pages, and no formulas in CSV files."""

import ast
from pathlib import Path

import pytest
from app_pages import component, tables
from streamlit.testing.v1 import AppTest

from dashboard import text
from dashboard.charts import files as chart_files

DASHBOARD = Path(text.__file__).parent


def test_file_name_from_run_and_chart():
    assert chart_files.file_name("quick, seed 0 accuracy") == "quick-seed-0-accuracy"
    assert chart_files.file_name("../../etc/passwd\0 <b>") == "etc-passwd-b"
    assert chart_files.file_name("Läufe ε=0.1") == "läufe-ε-0-1"
    assert chart_files.file_name("///") == "chart"
    long = chart_files.file_name("x" * 300 + " similarity matrix adam")
    assert len(long) <= 80
    assert long.endswith("-similarity-matrix-adam")


def test_script_survives_html_sanitizing():
    """DOMPurify, with which Streamlit sanitizes HTML, drops scripts that contain anything like a tag."""
    script = chart_files.script()
    assert not any(f"<{character}" in script for character in "/!abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_all_figures_and_tables_are_shown_by_one_module():
    wrong = []
    for path in DASHBOARD.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (
                node.attr in ("plotly_chart", "dataframe", "data_editor") or ast.unparse(node) == "st.table"
            ):
                if (path.name, node.attr) == ("figures.py", "data_editor"):
                    continue
                wrong.append(
                    f"{path.relative_to(DASHBOARD)}:{node.lineno} must call show or editor of figures, or tables.table, got {node.attr}"
                )
    assert wrong == []


@pytest.mark.parametrize(
    "formula",
    ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1", "-", "+a", "\tcmd", "\rcmd", "\ufeff=1", "\u200b=1", "=cmd|' /C calc'!A0"],
)
def test_formulas_in_cells_become_text(formula):
    cell = text.cell(formula)
    assert cell != formula
    assert cell[1:] == formula
    assert cell[0] == "\u2060"
    assert text.cell(["a tag", formula]) == ["a tag", cell]


@pytest.mark.parametrize("value", ["a run", "a=1", "", "-3", "+4.5", "-1e-7", ".5", -3, -0.5, None, True, "± error", "– none"])
def test_other_cells_are_unchanged(value):
    assert text.cell(value) is value


def show():
    import pandas as pd

    from dashboard.charts.style import figure, json_of  # AppTest runs the body as a script
    from dashboard.components import figures, tables

    figures.show(json_of(figure([{"x": [1], "y": [2]}], "curve", 300)), "curve", "my run: loss")
    tables.table([{"name": "=1+1", "=title": 1, "value": -2.5}, {"name": None, "=title": 2, "value": None}], "rows")
    figures.editor(pd.DataFrame([{"name": "=1+1", "=title": 1}]), "editor")
    figures.offer_files()


def test_page_with_a_figure_and_a_table():
    app = AppTest.from_function(show).run()
    assert not app.exception
    (chart,) = component(app, "figure")
    assert chart["config"]["toImageButtonOptions"] == {"format": "png", "filename": "my-run-loss"}
    (table,) = tables(app)
    assert table["name"].tolist()[0] == "=1+1"  # the browser marks formulas, in the CSV file only
    assert table.columns.tolist() == ["name", "=title", "value"]
    (edited,) = app.dataframe
    assert edited.value.columns.tolist() == ["name", "\u2060=title"]
    assert edited.value["name"][0] == "\u2060=1+1"
    (script,) = app.get("html")
    assert script.proto.unsafe_allow_javascript
    assert chart_files.script() in script.proto.body
