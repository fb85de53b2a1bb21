"""Helpers of tests that visit every page: the list of pages, a store with runs, and waiting until a page is drawn."""

from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Page, expect
from torchvision.utils import save_image

from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labeled import embedded_images
from core.runs.manager import RunManager
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


class Address(NamedTuple):
    path: str
    title: str


def pages() -> list[Address]:
    """Addresses of PAGES; the first is the start page, whose path is empty."""
    return [Address("" if page is PAGES[0] else page.name, page.title) for page in PAGES]


def make_runs(folder: Path) -> None:
    """Makes a store in folder/runs with a failed run and a newer complete one."""
    images, labels = embedded_images()
    for label in range(10):
        (folder / "data" / str(label)).mkdir(parents=True)
        for index in [i for i in range(60) if labels[i] == label][:2]:
            save_image(images[index] / 255, folder / "data" / str(label) / f"{index}.png")
    store = RunStore(folder / "runs")
    failed = store.create(CONFIG, "a run that failed")
    store.set_state(
        failed, RunState.FAILED, "images must be a multiple of snapshots (4), got 51", "Traceback (most recent call last):\n" * 3
    )
    manager = RunManager(store)
    config = CONFIG.with_knobs({"data": str(folder / "data")})
    complete = manager.start(config, "a run with a name that is rather long, as people like to write into it what was special about it")
    manager.wait(complete)
    manager.close()
    assert store.run(complete).state is RunState.COMPLETE, store.run(complete).traceback
    store.close()


def visit(page: Page, server: str, address: Address) -> None:
    """Opens a page and waits until it is drawn."""
    page.goto(f"{server}/{address.path}")
    expect(page.locator("h1")).to_be_visible()
    settle(page)


def settle(page: Page) -> None:
    """Waits until the page is drawn: no placeholders, no running script, and no change for a second."""
    page.wait_for_function(
        """() => {
            const quiet = !document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidget], [data-stale=true]')
                && [...document.querySelectorAll('.js-plotly-plot')].every(figure => figure.querySelector('.main-svg'));
            const now = quiet ? document.querySelector('.stApp').innerHTML.length : Math.random();
            if (now !== window.lastLength) { window.lastLength = now; window.lastChange = performance.now(); }
            return performance.now() - window.lastChange > 1000;
        }""",
        polling=200,
    )


def open_everything(page: Page) -> None:
    """Opens every expander, including nested ones."""
    for _ in range(30):
        closed = page.locator(".stApp details:not([open]) > summary:visible")
        if not closed.count():
            break
        closed.first.click()
        page.wait_for_timeout(300)
    page.mouse.move(0, 0)  # so that no element that moved under the pointer shows its tooltip
    settle(page)
