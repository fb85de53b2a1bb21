"""A run is resumed after its server was killed, and a run is deleted while its page is open."""

import os
import signal

import pytest
from playwright.sync_api import expect

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.runs.state import RunState
from core.runs.store import RunStore

# long enough to kill, short enough to wait for
CONFIG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=32, iterations=60, batch_size=32, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


@pytest.mark.slow
def test_killed_server_loses_nothing(serve, browser_page, tmp_path):
    page, problems = browser_page
    # a run whose process is gone
    store = RunStore(tmp_path / "runs")
    run_id = store.create(CONFIG, "interrupted twice")
    store.close()

    with serve() as (address, process):
        page.goto(f"{address}/?run={run_id}")
        expect(page.get_by_text("interrupted", exact=True)).to_be_visible()
        expect(page.get_by_text("its process ended before the run did")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_alt_text("synthetic images by MI-FGSM")).to_be_visible(timeout=120_000)
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    page.goto("about:blank")
    problems.clear()  # the console has errors about the lost server
    with serve() as (address, _):
        page.goto(f"{address}/?run={run_id}")
        expect(page.get_by_text("interrupted", exact=True)).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("resumed 2 times")).to_be_visible()
        expect(page.locator(".stMarkdownBadge:text-is('complete')")).to_be_visible(timeout=240_000)
        assert problems == []
    store = RunStore(tmp_path / "runs")
    assert store.run(run_id).state is RunState.COMPLETE
    assert [r.step for r in store.records(run_id, "generation") if r.series == "adam"] == list(range(1, 61))
    store.close()


@pytest.mark.slow
def test_page_survives_a_run_deleted_elsewhere(serve, browser_page, tmp_path):
    page, problems = browser_page
    store = RunStore(tmp_path / "runs")
    run_id = store.create(CONFIG, "soon gone")
    store.set_state(run_id, RunState.STOPPED)
    with serve() as (address, _):
        page.goto(f"{address}/?run={run_id}")
        expect(page.get_by_text("soon gone")).to_be_visible()
        store.delete(run_id)
        page.reload()
        expect(page.get_by_role("heading", name="Try it")).to_be_visible()
        assert problems == []
    store.close()
