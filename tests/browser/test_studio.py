"""The Studio in a real browser: keys and clicks update images, cursors and the address together."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect
from real_server import free_port, serving

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.runs.control import LocalControl
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.state import RunState
from core.runs.store import RunStore

CONFIG = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    generation=GenerationConfig(images=20, iterations=10, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)
CURSORS = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(
    chart => chart.layout.shapes.filter(shape => shape.name === 'cursor').map(shape => shape.x0))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def server(folder):
    """Address of a server with the runs in `folder`."""
    with serving(folder, free_port()) as (address, _):
        yield address


@pytest.fixture(scope="module")
def run_id(folder):
    """A finished run whose step size was changed in its fourth iteration."""
    store = RunStore(folder / "runs")
    run_id = store.create(CONFIG, "to be looked at")
    past = [{"method": "mi-fgsm", "step": 3, "name": "epsilon", "value": 0.05}]
    perform(store, run_id, StoreReporter(store, run_id), LocalControl(past=past))
    assert store.run(run_id).state is RunState.COMPLETE, store.run(run_id).traceback
    store.close()
    return run_id


def picture(page: Page, method: str) -> str:
    return page.get_by_alt_text(f"synthetic images by {method}").get_attribute("src") or ""


def expect_cursors(page: Page, step: int | None, panels: int = 7) -> None:
    """Waits until every panel has a cursor at `step` (a line and its outline), or has none. panels: by default those of the loss."""
    expected = [] if step is None else [step] * 2 * panels
    page.wait_for_function(f"expected => JSON.stringify(({CURSORS})()) === JSON.stringify(expected)", arg=expected)


@pytest.mark.slow
def test_keys_clicks_and_a_copied_link_show_the_same_iteration(run_id, server, browser_page, chromium):
    page, problems = browser_page
    page.goto(f"{server}/?run={run_id}&view=loss")
    player = page.get_by_role("slider", name="Iteration", exact=True)
    expect(player).to_have_attribute("aria-valuetext", "iteration 10 of 10, last")
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    expect(page.get_by_text("ε = 0.05").first).to_be_visible()
    expect_cursors(page, None)
    newest = {method: picture(page, method) for method in ("MI-FGSM", "Adam")}

    # the arrow keys, wherever the focus is
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(player).to_have_attribute("aria-valuetext", "iteration 7 of 10")
    expect(page).to_have_url(re.compile(r"[?&]at=7\b"))
    expect(page.get_by_text(re.compile("^MI-FGSM, iteration 7 of 10: total loss"))).to_be_visible()
    expect_cursors(page, 7)
    for method, before in newest.items():
        expect(page.get_by_alt_text(f"synthetic images by {method}")).not_to_have_attribute("src", before)
    assert page.evaluate("history.length") <= 3  # the back button does not step through every iteration

    # an image is chosen by mouse and by keys, which do not move the player
    sheet = page.get_by_role("grid", name="synthetic images by Adam")
    cell = sheet.get_by_role("gridcell", name=re.compile("^airplane")).first
    cell.hover()
    expect(page.get_by_role("status").filter(has_text="teacher: ")).to_be_visible()
    cell.click()
    expect(page.get_by_text("Adam, image 0: airplane")).to_be_visible()
    cell.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Adam, image 1: automobile")).to_be_visible()
    expect(page).to_have_url(re.compile(r"at=7&method=adam&image=1$"))
    seen = picture(page, "Adam")

    copy = chromium.new_page()
    copy.on("pageerror", lambda error: problems.append(str(error)))
    copy.goto(page.url)
    expect(copy.get_by_text("Adam, image 1: automobile")).to_be_visible()
    expect(copy.get_by_role("slider", name="Iteration", exact=True)).to_have_attribute("aria-valuetext", "iteration 7 of 10")
    expect(copy.get_by_alt_text("synthetic images by Adam")).to_have_attribute("src", seen)
    expect(copy.locator(".js-plotly-plot")).to_be_visible()
    expect_cursors(copy, 7)
    copy.close()

    # an iteration in its history, and back to the newest
    page.get_by_role("button", name=re.compile("^show iteration 3:")).first.click()
    expect(player).to_have_attribute("aria-valuetext", "iteration 3 of 10")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("Adam, image 1")).to_have_count(0)
    page.keyboard.press("End")
    expect(page).not_to_have_url(re.compile("at="))
    expect_cursors(page, None)
    assert problems == []


@pytest.mark.slow
def test_the_overview_has_the_cursor_of_the_player(run_id, server, browser_page):
    page, problems = browser_page
    page.goto(f"{server}/?run={run_id}&at=7")
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_attached()
    expect_cursors(page, 7, 2)  # L_BNS and agreement, but not over the layers
    expect(page.get_by_text("L_BNS by layer, iteration 7")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect_cursors(page, 8, 2)
    expect(page.get_by_text("L_BNS by layer, iteration 8")).to_be_visible()
    assert problems == []


@pytest.mark.slow
def test_a_bar_opens_its_layer_and_figures_are_updated_in_place(run_id, server, browser_page):
    page, problems = browser_page
    page.goto(f"{server}/?run={run_id}&view=layer&at=2")
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(2)
    expect(page.get_by_role("figure", name="channels of layer 1, batch against running statistics")).to_be_visible()
    charts.first.evaluate("chart => chart.dataset.known = 'yes'")
    bar = charts.first.locator(".bars path").nth(7)
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2)
    expect(page).to_have_url(re.compile(r"[?&]layer=8\b"))
    expect(page.get_by_role("figure", name="channels of layer 8, batch against running statistics")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("L_BNS of every layer at iteration 3 of 10")).to_be_visible()
    assert charts.first.get_attribute("data-known") == "yes"  # updated in place
    assert problems == []


@pytest.mark.slow
def test_white_corner_marks_images_the_teacher_predicts_differently(run_id, server, browser_page):
    page, problems = browser_page
    page.goto(f"{server}/?run={run_id}&at=1")
    cells = page.get_by_role("grid", name="synthetic images by MI-FGSM").get_by_role("gridcell")
    expect(cells).to_have_count(20)
    marked = 0
    for cell in cells.all():
        label, _, teacher = (cell.get_attribute("aria-label") or "").partition("\nteacher: ")
        another = not teacher.startswith(f"{label},")
        corner = cell.evaluate("cell => getComputedStyle(cell, '::after').backgroundImage")
        assert corner.startswith("linear-gradient(" if another else "none"), (label, teacher)
        marked += another
    assert 0 < marked < 20  # in the first iteration the images are noise
    assert problems == []


@pytest.mark.slow
def test_active_run_is_updated_without_redrawing_the_page(folder, server, browser_page):
    page, problems = browser_page
    store = RunStore(folder / "runs")
    endless = store.create(replace(CONFIG, generation=GenerationConfig(images=20_000, iterations=5000, batch_size=20)), "endless")
    store.set_state(endless, RunState.STOPPED)  # so that it can be resumed
    store.close()
    messages: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda _: messages.append(socket.url)))
    page.goto(f"{server}/?run={endless}")
    page.get_by_role("button", name="Resume").click()
    for method in ("MI-FGSM", "Adam"):
        expect(page.get_by_alt_text(f"synthetic images by {method}")).to_be_visible()
    chart = page.locator(".js-plotly-plot")
    chart.scroll_into_view_if_needed()
    expect(chart.locator(".main-svg").first).to_be_visible()
    settled = len(messages)
    page.wait_for_timeout(3000)
    messages.clear()
    before = {method: picture(page, method) for method in ("MI-FGSM", "Adam")}
    progress = page.get_by_role("progressbar")
    done = progress.get_attribute("aria-label")
    points = "chart => chart.data[0].x.at(-1)"  # the newest iteration of a curve
    known = chart.evaluate(points)
    for method, src in before.items():
        expect(page.get_by_alt_text(f"synthetic images by {method}")).not_to_have_attribute("src", src)
    expect(progress).not_to_have_attribute("aria-label", done or "")
    page.wait_for_function(f"known => ({points})(document.querySelector('.js-plotly-plot')) > known", arg=known)
    assert settled > 0
    assert {url.partition("?")[0].rpartition("/")[2] for url in messages} == {"follow"}

    # clicks are drawn, and answers to earlier requests do not overwrite them
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".stMarkdownBadge:text-is('paused')")).to_be_visible()
    at = page.get_by_role("slider", name="Iteration", exact=True)
    shown = at.get_attribute("aria-valuetext")
    page.get_by_role("button", name="One step").click()
    expect(at).not_to_have_attribute("aria-valuetext", shown or "")
    expect(page.get_by_text(re.compile(r"^L_BNS [\d.]+ · teacher agrees on \d+ %"))).to_have_count(2)

    # the history of a clicked image is updated
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("grid", name="synthetic images by Adam").get_by_role("gridcell").first.click()
    expect(page.get_by_text("Adam, image 0: airplane")).to_be_visible()
    src = picture(page, "Adam")
    expect(page.get_by_alt_text("synthetic images by Adam")).not_to_have_attribute("src", src)
    # not Streamlit's own Stop, in the header while a script runs
    page.get_by_test_id("stMain").get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text("stopped", exact=True)).to_be_visible()
    assert problems == []
