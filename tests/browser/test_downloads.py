"""Downloads of charts, tables and reports (PNG, SVG, CSV, HTML) in a real browser, and the contents of the files."""

import csv
import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from computed_runs import computed, few_images
from PIL import Image
from playwright.sync_api import expect
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from real_server import free_port, serving

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.store import RunStore
from dashboard.charts import files as chart_files
from dashboard.downloads import report
from dashboard.tables import results
from dashboard.text import cell as table_cell
from dashboard.text import plotly

pytestmark = pytest.mark.slow
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"' &lt; =1+1 $x$"
FORMULA = "=1+1"


@pytest.fixture(scope="module")
def blank(chromium):
    """A page with only plotly and the download buttons."""
    page = chromium.new_page()
    page.add_script_tag(content=get_plotlyjs())
    page.add_script_tag(content=chart_files.script())
    yield page
    page.close()


def csv_of(blank, figure: go.Figure) -> str:
    return blank.evaluate(
        """async (figure) => {
            const place = document.body.appendChild(document.createElement("div"));
            await Plotly.newPlot(place, JSON.parse(figure));
            const text = downloadButtons.csv(place._fullData, place._fullLayout);
            place.remove();
            return text;
        }""",
        figure.to_json(),
    )


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_csv_of_curves_has_the_plotted_values(blank):
    x = np.arange(1, 5, dtype=np.int32)
    y = np.array([0.1, 1e-7, np.nan, 12345.678], np.float32)
    figure = go.Figure()
    figure.add_scatter(x=x, y=y, name="MI-FGSM")
    figure.add_scatter(
        x=[3, 4], y=[80.5, 90.25], name="Adam, trained", error_y={"type": "data", "array": [0.75, 0.5]}, visible="legendonly"
    )
    text = csv_of(blank, figure)
    assert text.splitlines()[1] == "MI-FGSM,1,0.1,"  # written as a float32, not as the double that holds it
    back = pd.read_csv(io.StringIO(text))
    assert list(back) == ["curve", "x", "y", "error"]
    own = back[back.curve == "MI-FGSM"]
    np.testing.assert_array_equal(own.x, x)
    np.testing.assert_array_equal(own.y.astype(np.float32), y)
    other = back[back.curve == "Adam, trained"]
    assert other[["x", "y", "error"]].values.tolist() == [[3, 80.5, 0.75], [4, 90.25, 0.5]]


def test_csv_of_a_heatmap_is_the_matrix_of_its_values(blank):
    values = np.array([[1, 10, 100], [0.5, 0.25, 0.125]], np.float32)
    figure = go.Figure(go.Heatmap(x=np.array([5, 10, 15], np.int32), y=["1", "2"], z=np.log10(values), customdata=values))
    back = pd.read_csv(io.StringIO(csv_of(blank, figure)), index_col=0)
    assert list(back.columns) == ["5", "10", "15"]
    assert back.index.tolist() == [1, 2]
    np.testing.assert_array_equal(back.to_numpy(np.float32), values)
    plain = rows_of(csv_of(blank, go.Figure(go.Heatmap(z=[[0.5, 1], [-1, 0.25]]))))
    assert plain[1:] == [["0", "0.5", "1"], ["1", "-1", "0.25"]]


def test_csv_names_the_panels_of_a_figure(blank):
    figure = make_subplots(rows=2, cols=2, subplot_titles=["total", "L_BNS", "L_CE", "R_TV"])
    for index in range(4):
        figure.add_scatter(x=[1, 2], y=[index, index + 0.5], name="adam", row=index // 2 + 1, col=index % 2 + 1)
    back = pd.read_csv(io.StringIO(csv_of(blank, figure)))
    assert list(back) == ["panel", "curve", "x", "y"]
    assert back.panel.tolist() == [title for title in ("total", "L_BNS", "L_CE", "R_TV") for _ in range(2)]
    assert back.y.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    bars = go.Figure(go.Bar(x=["a", "b"], y=[1, -2], name="bars"))
    assert rows_of(csv_of(blank, bars))[1:] == [["bars", "a", "1"], ["bars", "b", "-2"]]


@pytest.mark.parametrize(
    "name", ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "＝1+1", '=HYPERLINK("https://e.example";"x")']
)
def test_csv_has_no_spreadsheet_formulas(blank, name):
    figure = go.Figure(go.Scatter(x=[name, "-3", "b,c", 'say "x"'], y=[-1, -1e-7, 2, 3], name=plotly(name)))
    rows = rows_of(csv_of(blank, figure))
    assert all(row[0].startswith("'") for row in rows[1:])
    assert rows[1][1].startswith("'")
    assert [row[1] for row in rows[2:]] == ["-3", "b,c", 'say "x"']  # numbers stay numbers
    assert [float(row[2]) for row in rows[1:]] == [-1, -1e-7, 2, 3]


def test_csv_has_no_formulas_after_invisible_characters(blank):
    names = ["\u200b=1", "\ufeff=1"]
    rows = rows_of(csv_of(blank, go.Figure(go.Scatter(x=names, y=[1, 2]))))
    assert [row[1] for row in rows[1:]] == [f"'{name}" for name in names]


def test_csv_of_charts_and_of_tables_have_one_rule_for_formulas(blank):
    starts = [chr(code) for code in (*range(0x3100), *range(0xFE00, 0x10000), 0x1F600, 0xE0041)]
    numbers = ["-3", "+4.5", "-1e-7", ".5", "-.5E+3", "+-1", "-1.2.3", "-", "-\u0663", "-1 ", "+1e", "@", "a=1", "-3\n", "\u2212" + "3"]
    cells = [start + rest for start in starts for rest in ("=1", "a")] + numbers
    text = blank.evaluate("(x) => downloadButtons.csv([{ name: '', x, y: x.map(() => 1) }], {})", [escape(one) for one in cells])
    rows = rows_of(text)[1:]
    assert len(rows) == len(cells)
    # of the text that the browser sees: parsed as HTML, it has no blanks in front
    marked = [(row[1].startswith("'"), row[1].removeprefix("'")) for one, row in zip(cells, rows) if not one.startswith("'")]
    assert [one for by_browser, one in marked if by_browser != (table_cell(one) != one)] == []
    assert 30 < sum(by_browser for by_browser, _ in marked) < 100


def test_csv_keeps_names_with_markup(blank):
    blank.evaluate("() => { window.alerts = 0; window.alert = () => { window.alerts++ } }")
    rows = rows_of(csv_of(blank, go.Figure(go.Scatter(x=[1], y=[2], name=plotly(HOSTILE)))))
    assert rows[1][0] == HOSTILE
    assert blank.evaluate("window.alerts") == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a store of two runs, one with a hostile name and one whose name is a formula; their ids."""
    folder = tmp_path_factory.mktemp("along")
    store = RunStore(folder / "runs")
    config = RunConfig(
        machine=MachineConfig(device="cpu"),
        generation=GenerationConfig(images=40, iterations=4, batch_size=20, snapshots=2),
        training=TrainingConfig(steps=3, training_batch_size=20),
        bits=(4,),
        evaluation=EvaluationConfig(data=few_images(folder / "data")),
    )
    hostile = computed(store, config, HOSTILE)
    formula = computed(store, replace(config, bits=(), evaluation=EvaluationConfig(encoder="")), FORMULA)
    store.close()
    return folder, hostile, formula


def content(page, press) -> tuple[str, bytes]:
    with page.expect_download() as download:
        press()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_downloads_of_charts_tables_and_the_report(browser_page, runs, tmp_path, chromium):
    page, problems = browser_page
    folder, hostile, _ = runs
    page.add_init_script("delete window.showSaveFilePicker")  # a system dialog, which a test cannot answer
    with serving(folder, free_port()) as (address, _):
        page.goto(f"{address}/?run={hostile}")
        page.get_by_role("link", name="Quantize").click()
        chart = page.locator(".js-plotly-plot").first
        expect(chart.locator(".main-svg").first).to_be_visible()
        chart.hover()
        name, file = content(page, chart.get_by_role("button", name="as PNG").click)
        assert name.endswith("-accuracy.png")
        with Image.open(io.BytesIO(file)) as picture:
            box = chart.bounding_box()
            assert picture.size == pytest.approx((2 * box["width"], 2 * box["height"]), abs=4)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
        name, file = content(page, chart.get_by_role("button", name="as SVG").click)
        assert name.endswith("-accuracy.svg")
        drawing = ElementTree.fromstring(file)
        assert "Accuracy at each bit width" in "".join(drawing.itertext())
        name, file = content(page, chart.get_by_role("button", name="chart as CSV").click)
        assert name.endswith("-accuracy.csv")
        store = RunStore(folder / "runs")
        known = [row for row in results.accuracies(store.results(hostile)) if row["method"] == "mi-fgsm"]
        back = pd.read_csv(io.BytesIO(file))
        trained = back[back.curve == "MI-FGSM, trained"]
        assert trained.y.tolist() == [row["trained"] for row in known]
        assert trained.error.tolist() == [row["standard_error"] for row in known]

        page.get_by_role("link", name="Runs").click()
        page.get_by_role("heading", name="Runs").wait_for()
        page.get_by_role("grid", name="Runs").wait_for()
        name, file = content(page, page.get_by_role("button", name="Download as CSV").first.click)
        assert name == "runs.csv"
        names = pd.read_csv(io.BytesIO(file))["name"].tolist()
        assert HOSTILE in names
        assert "'" + FORMULA in names

        page.get_by_role("link", name="Export").click()
        name, file = content(page, page.get_by_role("button", name="Download report").click)
        assert name.endswith("-report.html")
        assert problems == []
    shown = tmp_path / "shown.html"
    shown.write_bytes(file)
    check_report(chromium, shown, store.run(hostile).name)
    store.close()


def check_report(chromium, file, name) -> None:
    """Opens the report offline in dark mode and checks that it is complete, without requests or errors."""
    context = chromium.new_context(offline=True, color_scheme="dark", viewport={"width": 390, "height": 900})
    page = context.new_page()
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url) if not request.url.startswith(("data:", "blob:")) else None)
    page.goto(file.as_uri())
    charts = page.locator(".js-plotly-plot")
    expect(charts.last.locator(".main-svg").first).to_be_visible()
    assert page.get_by_role("heading", level=1).inner_text() == " ".join(name.split())
    assert page.locator(".chart").count() == charts.count() >= 8
    pictures = page.locator("figure img")
    assert pictures.count() == 2
    assert all(pictures.nth(i).evaluate("image => image.complete && image.naturalWidth > 100") for i in range(2))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(17, 22, 29)"
    assert charts.first.evaluate("chart => chart._fullLayout.paper_bgcolor") == "#11161D"
    page.emulate_media(color_scheme="light")
    for _ in range(100):  # the report's Content-Security-Policy blocks wait_for_function
        if charts.first.evaluate("chart => chart._fullLayout.paper_bgcolor") == "#FFFFFF":
            break
        page.wait_for_timeout(100)
    charts.first.hover()
    _, file = content(page, charts.first.get_by_role("button", name="chart as CSV").click)
    assert pd.read_csv(io.BytesIO(file)).curve.unique().tolist() == ["MI-FGSM", "Adam"]
    _, file = content(page, charts.first.get_by_role("button", name="as PNG").click)
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    page.evaluate("addEventListener('afterprint', () => document.body.dataset.printed = 'yes')")
    assert page.pdf().startswith(b"%PDF")
    assert page.locator("body").get_attribute("data-printed") == "yes"
    assert problems == []
    assert requests == [page.url]
    context.close()


def test_hostile_names_are_harmless_in_a_report(chromium, runs, tmp_path):
    store = RunStore(runs[0] / "runs")
    file = tmp_path / "report.html"
    file.write_text(report.report(store, store.run(runs[1]), [f"{index} {HOSTILE}" for index in range(10)]), encoding="utf-8")
    store.close()
    check_report(chromium, file, HOSTILE)
