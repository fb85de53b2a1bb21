"""Helpers of tests that visit every page: the list of pages, a store with runs, and waiting until a page is drawn."""

from pathlib import Path
from typing import NamedTuple

from computed_runs import computed, few_images
from playwright.sync_api import Page, expect

from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.state import RunState
from core.runs.store import RunStore
from dashboard.pages import PAGES

# finishes in seconds, with everything that pages show; make_runs evaluates it on a few images
CONFIG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=80, iterations=8, batch_size=40, snapshots=2),
    training=TrainingConfig(steps=4, training_batch_size=40),
    bits=(3, 4),
)


HIGHEST = 16_000  # pixels


class Address(NamedTuple):
    path: str
    title: str


def pages() -> list[Address]:
    """Addresses of PAGES; the first is the start page, whose path is empty."""
    return [Address("" if page is PAGES[0] else page.name, page.title) for page in PAGES]


def make_runs(folder: Path) -> None:
    """Makes a store in folder/runs with a failed run and a newer complete one."""
    store = RunStore(folder / "runs")
    failed = store.create(CONFIG, "a run that failed")
    store.set_state(failed, RunState.FAILED, "snapshots must be at most 40, got 51", "Traceback (most recent call last):\n" * 3)
    config = CONFIG.with_knobs({"data": few_images(folder / "data")})
    computed(store, config, "a run with a name that is rather long, as people like to write into it what was special about it")
    store.close()


def visit(page: Page, server: str, address: Address) -> None:
    """Opens a page and waits until it is drawn."""
    page.goto(f"{server}/{address.path}")
    expect(page.locator("h1")).to_be_visible()
    settle(page)


def settle(page: Page) -> None:
    """Waits until the page is drawn: no placeholders, no running script, no empty figures, and no change for a second."""
    page.evaluate("() => { window.seen = undefined }")  # by an earlier call
    page.wait_for_function(
        """() => {
            const quiet = !document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidget], [data-stale=true]')
                && [...document.querySelectorAll('.chart')].every(figure => figure.querySelector('.main-svg'));
            const now = quiet ? document.querySelector('.stApp').innerHTML : Math.random();
            if (now !== window.seen) { window.seen = now; window.lastChange = performance.now(); }
            return performance.now() - window.lastChange > 1000;
        }""",
        polling=200,
    )


def expand(page: Page, label: str) -> None:
    """Opens an expander by its label, once the page is drawn."""
    expander = page.locator("details", has=page.locator("summary", has_text=label)).last
    settle(page)
    expander.locator("> summary").click()
    expect(expander).to_have_attribute("open", "")
    settle(page)


def open_everything(page: Page) -> None:
    """Opens every expander, including nested ones."""
    while page.evaluate(
        """() => {
            const closed = [...document.querySelectorAll('.stApp details:not([open]) > summary')].filter(e => e.checkVisibility());
            closed.forEach(e => e.click());
            return closed.length;
        }"""
    ):
        settle(page)


def show_whole(page: Page, width: int) -> None:
    """Gives the page a window of this width and higher than any page: figures outside the window keep their size and colors."""
    page.set_viewport_size({"width": width, "height": HIGHEST})
    settle(page)
    assert page.get_by_test_id("stMain").evaluate("e => e.scrollHeight") <= HIGHEST
