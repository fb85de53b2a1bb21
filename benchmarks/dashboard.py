"""Speed of the dashboard, and what an open page costs a job, in a real Chromium: `python benchmarks/dashboard.py`.

Server, browser and job share this machine, as on a user's own computer. The job has one thread per core. Prints one JSON object and
writes benchmarks/results/dashboard.json:

- seconds until a page is usable, after the server starts and after a reload
- speed of the job with an open page relative to no page, in turns: the Studio during generation, Quantize during training
- seconds from Start of the preset quick to the first images
- milliseconds of a refresh on the server; from a key press on a slider to the job, to its mark on the curves, and to the first images that
  were made with the value
- growth of the server in megabytes over 3,600 image refreshes, one for each second of an hour. Curves are redrawn at intervals of clock
  time, so less often here than in an hour; sessions.py has four times as many redraws.

Takes half an hour; `--quick` takes six minutes and gives rough values. Needs requirements-dev.txt and a Chromium, as the tests do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, Page, sync_playwright
from sessions import Session, free_port, percentiles, processor_seconds, resident, taken

from benchmarks.machine import write
from core.runs.store import RUNS_VARIABLE, RunStore

ROOT = Path(__file__).parents[1]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
EVERY_MILLISECOND = 0.001
IDLE = 10  # seconds after which the process that computes the next run has imported torch
SETTLES = 6  # seconds for which a usable page may keep drawing
# jobs that outlast the measurements; few images, so that the training starts soon
GENERATION = {"Generation": {"Images": 100_000, "Iterations": 1000}}
TRAINING = {"Generation": {"Images": 256, "Iterations": 10}, "Quantization": {"Training steps": 100_000}}


def usable(page: Page, address: str) -> float:
    """Seconds from requesting the Studio until the images of both methods and a slider are there."""
    began = time.monotonic()
    page.goto(address, wait_until="commit")
    for method in ("MI-FGSM", "Adam"):
        page.get_by_alt_text(f"synthetic images by {method}").first.wait_for()
    page.get_by_role("slider").first.wait_for()
    return time.monotonic() - began


def training(page: Page, address: str) -> None:
    """Opens Quantize and scrolls to a curve that is updated."""
    page.goto(address)
    page.get_by_role("figure", name="test accuracy, %").scroll_into_view_if_needed()


def started(port: int, environment: dict[str, str], log: Any, browser: Browser) -> tuple[subprocess.Popen, float]:
    """Starts a server; returns it with the seconds until its first page is usable."""
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "--server.port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log
    )
    while True:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
            break
        if server.poll() is not None:
            raise SystemExit("the server exited before it served a page")
        time.sleep(0.02)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"http://127.0.0.1:{port}")
    page.get_by_role("button", name="Start", exact=True).first.wait_for()
    seconds = time.monotonic() - began
    page.close()
    return server, seconds


def open_forms(page: Page, address: str) -> None:
    """The Studio with the forms of a new run, which are above the last run if there is one."""
    page.goto(address)
    page.get_by_text("New run", exact=True).or_(page.get_by_text("All settings")).first.wait_for()
    if not page.get_by_text("All settings").first.is_visible():
        page.get_by_text("New run", exact=True).click()


def begin_job(page: Page, address: str, settings: dict[str, dict[str, int]]) -> None:
    """Starts a run through the form: the quick preset with these settings, tab -> label -> value."""
    open_forms(page, address)
    page.get_by_text("All settings").first.click()
    for tab, values in settings.items():
        page.get_by_role("tab", name=tab).click()
        for label, value in values.items():
            field = page.get_by_role("spinbutton", name=label, exact=True).first
            field.fill(str(value))
            field.press("Tab")
    page.locator(".st-key-start").get_by_role("button").click()
    page.get_by_text("running", exact=True).wait_for()


def end_job(page: Page) -> None:
    """Stops the run of the page: not Streamlit's own Stop, in the header while a script runs."""
    page.get_by_test_id("stMain").get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("stopped", exact=True).wait_for()


def first_images(browser: Browser, address: str) -> list[float]:
    """Seconds from Start of the preset quick, in a server that has been idle for a while, to the images of each method."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    open_forms(page, address)
    button = page.locator(".st-key-try").get_by_role("button")
    button.wait_for()
    time.sleep(IDLE)
    pressed = time.monotonic()
    button.click()
    page.get_by_text("running", exact=True).wait_for()  # until then the page may show images of the last run
    seconds = []
    for method in ("MI-FGSM", "Adam"):
        page.get_by_alt_text(f"synthetic images by {method}").first.wait_for()
        seconds.append(round(time.monotonic() - pressed, 2))
    end_job(page)
    page.close()
    return seconds


def speed(store: RunStore, stage: str, seconds: float) -> float:
    """Steps per second of the job."""
    steps, began = taken(store, stage), time.monotonic()
    time.sleep(seconds)
    return (taken(store, stage) - steps) / (time.monotonic() - began)


def in_turns(
    browser: Browser, show: Callable[[Page], Any], store: RunStore, stage: str, server: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Speed of the job without a page, with a page that shows it, and after that page is closed."""
    ratios, closed, shares, speeds = [], [], [], []
    for _ in range(rounds):
        before = speed(store, stage, seconds)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        show(page)
        # curves outside the window are drawn once, after a delay
        page.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")
        time.sleep(SETTLES)
        processor, began = processor_seconds(server), time.monotonic()
        opened = speed(store, stage, seconds)
        shares.append((processor_seconds(server) - processor) / (time.monotonic() - began))
        page.close()
        time.sleep(SETTLES)
        after = speed(store, stage, seconds)
        ratios.append(2 * opened / (before + after))
        closed.append(after / before)
        speeds.append(before)
    return {
        "rounds": rounds,
        "steps_per_second_with_nobody": round(statistics.median(speeds), 3),
        "with_page_over_nobody": round(statistics.median(ratios), 3),
        "with_page_over_nobody_each": [round(ratio, 3) for ratio in ratios],
        "closed_over_before": round(statistics.median(closed), 3),
        "server_processor_share": round(statistics.median(shares), 3),
    }


def slider_delays(page: Page, store: RunStore, rounds: int) -> dict[str, Any]:
    """Milliseconds from a key press on the ε slider until the job has the value.

    Also without the current iteration of both methods, which every change waits for.
    """
    run = store.runs()[0]
    slider = page.get_by_role("slider", name="ε").first
    delays, steps = [], []
    for number in range(rounds):
        time.sleep(1.7)
        known = len(store.changes(run.id))
        began = time.monotonic()
        slider.press("ArrowLeft" if number % 2 else "ArrowRight")
        while len(store.changes(run.id)) == known:
            time.sleep(EVERY_MILLISECOND)
            if time.monotonic() - began > 10:
                raise SystemExit("the job did not receive the value of a slider within 10 seconds")
        delays.append(time.monotonic() - began)
        steps.append(store.changes(run.id)[-1]["step"])  # steps taken before the change
    seconds = {(record.series, record.step): record.data["seconds"] for record in store.records(run.id, "generation")}
    iterations = [sum(seconds[method, step] - seconds.get((method, step - 1), 0.0) for method in run.config.methods) for step in steps]
    beyond = sorted(1000 * (delay - iteration) for delay, iteration in zip(delays, iterations))
    return {
        "iteration_milliseconds": round(1000 * statistics.median(iterations)),
        "delay_milliseconds": [round(1000 * delay) for delay in sorted(delays)],
        "beyond_the_iteration_milliseconds_median_and_largest": [round(statistics.median(beyond)), round(beyond[-1])],
    }


# moves a slider by a step; resolves with the milliseconds until its mark is drawn, and until images made with the value are shown
EFFECTS = """knob => new Promise(done => {
    const chart = document.querySelector('.js-plotly-plot');
    const [row, range] = [knob.closest('.knob'), knob];
    range.value = Number(range.value) + (range.value % 2 ? 1 : -1);
    range.dispatchEvent(new Event('input'));
    range.dispatchEvent(new Event('change'));
    const [began, step] = [performance.now(), window.studioCursor.latest];
    // the picture of the images by MI-FGSM, of this iteration or a later one
    const isShown = from => [...window.updatedElements].some(([key, { data }]) =>
        /^sheet.*mi-fgsm$/.test(key) && data.step >= from && pictures().includes(data.picture));
    const inside = root => [...root.querySelectorAll('*')].flatMap(e => e.shadowRoot ? [e, ...inside(e.shadowRoot)] : [e]);
    const pictures = () => inside(document.querySelector('.st-key-pictures')).filter(e => e.matches('img.picture')).map(e => e.src);
    let mark;
    const look = () => {
        if (mark === undefined && chart.layout.shapes.some(shape => shape.name === 'pending')) mark = performance.now() - began;
        const since = /since (\\d+)(?:, batch (\\d+))?/.exec(row.querySelector('output').textContent);
        const from = since && Number(since[1]) + ITERATIONS * (Number(since[2] ?? 1) - 1);
        if (from > step && isShown(from)) done([mark, performance.now() - began]);
        else requestAnimationFrame(look);
    };
    look();
})"""


def slider_effects(page: Page, store: RunStore, rounds: int) -> dict[str, Any]:
    """Milliseconds from a move of the ε slider to its mark on the curves, and to images made with the value, sorted."""
    per_batch = store.config(store.runs()[0].id).generation.iterations
    slider = page.get_by_role("slider", name="ε").first
    marks, images = [], []
    for _ in range(rounds):
        time.sleep(1.7)
        mark, picture = slider.evaluate(EFFECTS.replace("ITERATIONS", str(per_batch)))
        marks.append(round(mark))
        images.append(round(picture))
    return {"mark_milliseconds": sorted(marks), "changed_images_milliseconds": sorted(images)}


async def refreshes(port: int, query: str, count: int, server: int) -> dict[str, Any]:
    """Refreshes one session `count` times without a browser, 20 times as often as a page would; measures time and the server's memory."""
    session = Session(port, query, pace=20)
    task = asyncio.create_task(session.run())
    memory = []
    while session.count["refreshes"] < count:
        before = session.count["refreshes"]
        await asyncio.sleep(5)
        memory.append(round(resident(server), 1))
        if task.done():
            task.result()
        if session.count["refreshes"] == before:
            raise SystemExit("the server stopped refreshing")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    first = memory[min(2, len(memory) - 1)]
    return {
        "refreshes": session.count["refreshes"],
        "milliseconds_median_and_95th": percentiles(session.refresh_seconds),
        "resident_megabytes": memory[:: max(1, len(memory) // 12)],
        "megabytes_grown": round(memory[-1] - first, 1),
        "errors": session.errors,
    }


def measure(quick: bool, folder: Path) -> dict[str, Any]:
    """Runs all measurements; returns the JSON object."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, RUNS_VARIABLE: str(folder)}
    environment.pop("DASHBOARD_TOKEN", None)
    measured: dict[str, Any] = {}

    def is_known(name: str, value: Any) -> None:
        measured[name] = value
        print(json.dumps({name: value}), file=sys.stderr, flush=True)

    server = None
    store = RunStore(folder)
    try:
        with sync_playwright() as playwright, (folder / "log").open("w", encoding="utf-8") as log:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            server, seconds = started(port, environment, log, browser)
            is_known("seconds_to_the_first_page_of_a_server", round(seconds, 2))
            firsts = [first_images(browser, address) for _ in range(2 if quick else 5)]
            is_known("seconds_from_start_to_the_first_images", sorted(firsts))
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            begin_job(page, address, GENERATION)
            usable(page, address)
            page.close()
            loads = []
            for _ in range(3 if quick else 7):
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                usable(page, address)
                loads.append(usable(page, address))  # a reload: the browser's cache is filled
                page.close()
            is_known("seconds_to_a_reloaded_page", [round(seconds, 2) for seconds in sorted(loads)])
            rounds, seconds = (2, 10) if quick else (9, 15)
            show = partial(usable, address=address)
            is_known("job", in_turns(browser, show, store, "generation", server.pid, rounds, seconds))
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            usable(page, address)
            moves = 5 if quick else 20
            is_known("slider", slider_delays(page, store, moves) | slider_effects(page, store, moves))
            browser.close()
        # outside of sync_playwright, whose event loop conflicts with asyncio.run
        generation = store.runs()[0].id
        is_known("refresh", asyncio.run(refreshes(port, f"run={generation}", 100 if quick else 3600, server.pid)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"{address}/?run={generation}")
            end_job(page)
            begin_job(page, address, TRAINING)
            while taken(store, "training") < 20:
                time.sleep(0.5)
            page.close()
            show_training = partial(training, address=f"{address}/quantize?run={store.runs()[0].id}")
            is_known("training", in_turns(browser, show_training, store, "training", server.pid, rounds, seconds))
            browser.close()
    finally:
        if server is not None:
            server.kill()
        store.close()
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(options.quick, Path(temporary))
    print(json.dumps(figures, indent=1))
    if not options.quick:
        write("dashboard", figures)
