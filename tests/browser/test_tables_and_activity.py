"""The shared table and the list of active runs in a real browser: mouse, keyboard, the address, the window's title, a notification."""

import csv
import io
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from every_page import expand, settle
from playwright.sync_api import Page, expect
from real_server import free_port, serving

from core.config import EvaluationConfig, GenerationConfig, RunConfig
from core.runs.state import RunState
from core.runs.store import RunStore

pytestmark = pytest.mark.slow
CONFIG = RunConfig(
    generation=GenerationConfig(images=20, iterations=5, batch_size=20, snapshots=1), bits=(), evaluation=EvaluationConfig(encoder="")
)
LONG = "resnet20_cifar10, mi-fgsm + adam, W3A3 W4A4 W5A5, a long name, number"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of a server with eight finished runs, their store, and their ids, oldest first."""
    folder = tmp_path_factory.mktemp("tables")
    store, ids = RunStore(folder / "runs"), []
    for number in range(8):
        run_id = store.create(CONFIG.with_knobs({"seed": number}), f"{LONG} {number}")
        store.set_state(run_id, RunState.RUNNING)
        store.set_result(run_id, "full_precision", {"top1": 90 + (number * 3) % 8 / 4})
        store.set_state(run_id, RunState.COMPLETE)
        ids.append(run_id)
    with serving(folder, free_port()) as (address, _):
        yield address, store, ids
    store.close()


def grid(page: Page):
    return page.get_by_role("grid", name="Runs")


def column(page: Page, name: str) -> list[str]:
    titles = [title.strip() for title in grid(page).locator("thead :is(th, td)").all_inner_texts()]
    place = next(place for place, title in enumerate(titles) if title.strip("↑↓ ") == name)
    return [cell.strip() for cell in grid(page).locator(f"tbody td:nth-child({place + 1})").all_inner_texts()]


def parameters(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def open_runs(page: Page, address: str, query: str = "") -> None:
    page.goto(f"{address}/runs{query}")
    grid(page).wait_for()
    settle(page)


def test_sorting_columns_and_rows_are_in_the_address(served, cached_page, tmp_path):
    address, _, ids = served
    page, problems = cached_page
    open_runs(page, address)
    assert column(page, "full precision %") == ["91.25", "90.50", "91.75", "91.00", "90.25", "91.50", "90.75", "90.00"]
    header = grid(page).get_by_role("button", name="full precision %")
    header.click()
    assert column(page, "full precision %") == ["90.00", "90.25", "90.50", "90.75", "91.00", "91.25", "91.50", "91.75"]
    header.click()
    assert column(page, "full precision %")[0] == "91.75"
    assert grid(page).get_by_role("columnheader", name="full precision %").get_attribute("aria-sort") == "descending"
    page.locator("summary", has_text="Columns").click()
    page.get_by_role("checkbox", name="network", exact=True).uncheck()
    page.keyboard.press("Escape")
    grid(page).get_by_role("checkbox").nth(0).click()
    settle(page)
    grid(page).get_by_role("checkbox").nth(2).click(modifiers=["Shift"])
    expect(page.get_by_text("3 runs", exact=True)).to_be_visible()
    known = parameters(page)
    assert known["runs.sort"] == "-full precision %"
    assert "network" not in known["runs.columns"]
    assert set(known["runs.rows"].split(",")) == {ids[5], ids[2], ids[7]}  # 91.75, 91.5 and 91.25

    open_runs(page, address, "?" + urlsplit(page.url).query)
    expect(page.get_by_text("3 runs", exact=True)).to_be_visible()
    assert column(page, "full precision %")[0] == "91.75"
    assert "network" not in " ".join(grid(page).locator("th").all_inner_texts())
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").first.click()
    download.value.save_as(tmp_path / "runs.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text(encoding="utf-8-sig"))))
    assert rows[0]["name"] == f"{LONG} 5"  # whole, and in the order of the page
    assert rows[0]["full precision %"] == "91.75"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", rows[0]["started"])
    assert "network" not in rows[0]
    assert problems == []


def test_names_and_dates_are_short_and_whole_on_hover(served, cached_page):
    address, _, _ = served
    page, _ = cached_page
    open_runs(page, address)
    name = grid(page).locator("tbody a").first
    assert "…" in name.inner_text()
    assert name.inner_text().endswith("number 7")
    assert name.get_attribute("title") == f"{LONG} 7"
    when = grid(page).locator("tbody td span[title]").filter(has_text=re.compile("ago|now")).first
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", when.get_attribute("title"))


def test_rows_are_selected_and_opened_with_the_keyboard(served, cached_page):
    address, _, ids = served
    page, problems = cached_page
    open_runs(page, address)
    grid(page).get_by_role("button", name="started").focus()
    while not page.evaluate("() => document.activeElement.shadowRoot?.activeElement?.matches('tbody tr')"):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Pin as baseline")).to_be_visible()
    assert parameters(page)["runs.rows"] == ids[-2]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    settle(page)
    assert set(parameters(page)["runs.rows"].split(",")) == set(ids[-4:-1])
    page.keyboard.press("Control+a")
    expect(page.get_by_text("8 runs", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    settle(page)
    assert "runs.rows" not in parameters(page)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Studio")).to_be_visible()
    assert parameters(page)["run"] == ids[-4]
    assert problems == []


def test_filter_of_a_table(served, cached_page):
    address, _, ids = served
    page, _ = cached_page
    page.goto(f"{address}/compare?runs={','.join(ids[:2])}")
    expand(page, "identical settings")
    box = page.get_by_role("searchbox").first
    box.fill("MI-FGSM step")
    table = page.get_by_role("table", name="Identical settings")
    expect(table.locator("tbody tr")).to_have_count(1)
    assert parameters(page)["equal.find"] == "MI-FGSM step"
    expect(page.get_by_role("status").filter(has_text="1 of")).to_be_visible()


RECORDS_NOTIFICATIONS = """
    window.notifications = [];
    window.Notification = class {
        static permission = "granted";
        constructor(title, { body }) { window.notifications.push([title, body]); }
    };
    localStorage.setItem("notify when a run ends", "yes");
"""


def test_active_run_is_on_every_page_and_its_end_is_announced(served, cached_page):
    address, store, _ = served
    page, problems = cached_page
    page.add_init_script(RECORDS_NOTIFICATIONS)
    running, waiting = store.create(CONFIG, "at work"), store.create(CONFIG, "in line")
    store.set_state(running, RunState.RUNNING)
    store.set_stage(running, "generation", 10)
    page.goto(f"{address}/paper")
    button = page.locator(".activity summary")
    expect(button).to_have_text("0 % · images · at work · 1 waiting")
    for width in (800, 900, 1000, 1100, 1280):  # it covers no page's name
        page.set_viewport_size({"width": width, "height": 800})
        settle(page)
        names = [link.bounding_box() for link in page.get_by_test_id("stTopNavLinkContainer").all() if link.is_visible()]
        assert button.bounding_box()["x"] > max(box["x"] + box["width"] for box in names), width
    heading = page.get_by_role("heading", level=1).bounding_box()
    for step in range(1, 6):
        store.append(running, "generation", "adam", step, {"total": 1.0})
    expect(button).to_have_text("50 % · images · at work · 1 waiting")
    expect(page).to_have_title("50 % · images · at work")
    button.click()
    listed = page.locator(".activity li")
    expect(listed).to_have_count(2)
    assert "waiting" in listed.nth(1).inner_text()
    # of another process
    assert page.locator(".activity").get_by_role("button", name="Stop").count() == 0

    store.set_state(running, RunState.COMPLETE)
    page.wait_for_function("() => window.notifications.length")
    assert page.evaluate("window.notifications") == [["Run complete", "at work"]]
    expect(page).to_have_title("Data-free quantization")
    expect(button).to_have_text("1 waiting")
    assert page.get_by_role("heading", level=1).bounding_box() == heading
    page.locator(".activity a", has_text="in line").click()
    expect(page).to_have_url(re.compile(f"run={waiting}"))
    store.set_state(waiting, RunState.STOPPED)
    expect(page.locator(".activity")).to_be_hidden()
    assert problems == []
