"""Runs and Compare in a real browser: select, compare, copy the link, delete and undo, start again."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect
from real_server import free_port, serving

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.runs.state import RunState
from core.runs.store import RunStore

ODD = RunConfig(
    machine=MachineConfig(seed=2147483647, device="cpu", threads=1),
    generation=GenerationConfig(
        images=24,
        iterations=9,
        batch_size=12,
        snapshots=2,
        burn_in=0.1234567,
        epsilon=0.0123456789,
        mu=0.8765432,
        lr=0.0314159265,
        alpha_tv=1.23456789e-05,
        alpha_l2=9.87654321e-06,
        beta=0.7071067811,
    ),
    training=TrainingConfig(training_lr=1.23456789e-05, temperature=2.718281828, ema_decay=0.98765, activation_bits=7),
    methods=("adam", "mi-fgsm"),
    bits=(),
    steps_by_bits={3: 11},
    lr_by_bits={8: 1.1e-09},
    evaluation=EvaluationConfig(encoder=""),
)


def made_by_hand(store: RunStore, name: str, config: RunConfig, scale: float) -> str:
    run_id = store.create(config, name)
    store.set_state(run_id, RunState.RUNNING)
    for step in range(1, 20):
        for method in config.methods:
            own = {"total": scale / step, "bns": 21.0, "agreement": 50.0, "layers": [1.0] * 21, "seconds": 0.1 * step}
            store.append(run_id, "generation", method, step, own)
    store.set_state(run_id, RunState.COMPLETE)
    return run_id


@pytest.fixture
def served(tmp_path):
    """Address of a server with two runs, their ids, and their store."""
    store = RunStore(tmp_path / "runs")
    ids = [made_by_hand(store, "the odd one", ODD, 10), made_by_hand(store, "the other", replace(ODD, bits=(4,)), 20)]
    with serving(tmp_path, free_port()) as (address, _):
        yield address, ids, store
    store.close()


def select_row(page: Page, row: int) -> None:
    page.get_by_role("grid", name="Runs").get_by_role("checkbox").nth(row).click()


@pytest.mark.slow
def test_two_runs_are_compared_and_the_link_shows_the_same(served, browser_page):
    address, ids, _ = served
    page, problems = browser_page
    page.goto(address)
    page.get_by_role("link", name="Runs").click()
    expect(page.get_by_role("grid", name="Runs")).to_be_visible()
    select_row(page, 0)
    expect(page.get_by_role("button", name="Start again with these settings")).to_be_visible()
    select_row(page, 1)
    page.get_by_role("button", name="Compare 2 runs").click()

    expect(page.get_by_role("heading", name="Settings that differ")).to_be_visible()
    expect(page.get_by_text("A · the other, Adam")).to_be_visible()
    expect(page).to_have_url(re.compile(f"runs={ids[1]}(,|%2C){ids[0]}"))
    page.get_by_role("radio", name="seconds").click()
    expect(page.get_by_text("computing time (s)")).to_be_visible()
    page.get_by_text("Logarithmic", exact=True).click()
    slider = page.get_by_role("slider", name="Smoothing")
    slider.focus()
    slider.press("ArrowRight")
    expect(page.get_by_text("total loss, smoothed by 0.01")).to_be_visible()
    for part in ("x=seconds", "log=true", "smoothing=0.01"):
        expect(page).to_have_url(re.compile(re.escape(part)))
    assert problems == []

    other = page.context.browser.new_page(viewport={"width": 390, "height": 900})
    other.set_default_timeout(60_000)
    other.goto(page.url)
    expect(other.get_by_text("total loss, smoothed by 0.01")).to_be_visible()
    expect(other.get_by_text("computing time (s)")).to_be_visible()
    expect(other.get_by_role("switch", name="Logarithmic")).to_be_checked()
    expect(other.get_by_text("A · the other, Adam")).to_be_visible()
    assert other.get_by_test_id("stException").count() == 0
    other.close()


@pytest.mark.slow
def test_run_is_deleted_restored_and_started_again_unchanged(served, browser_page):
    address, ids, store = served
    page, problems = browser_page
    page.goto(address)
    page.get_by_role("link", name="Runs").click()
    expect(page.get_by_role("grid", name="Runs")).to_be_visible()
    select_row(page, 1)
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("Deleted the odd one.")).to_be_visible()
    assert [run.id for run in store.runs()] == [ids[1]]
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Deleted the odd one.")).to_have_count(0)
    assert [run.id for run in store.runs()] == ids[::-1]

    # the restored run is selected
    page.get_by_role("button", name="Start again with these settings").click()
    expect(page.get_by_role("heading", name="Studio")).to_be_visible()
    expect(page.get_by_role("combobox", name="Preset")).to_have_value("as the odd one")
    expect(page).to_have_url(re.compile(f"from={ids[0]}"))
    assert page.get_by_test_id("stException").all_inner_texts() == []
    page.locator(".st-key-start").get_by_role("button").click()
    expect(page).not_to_have_url(re.compile("from="))  # until then the page shows the earlier run, which is also complete
    expect(page.locator(".stMarkdownBadge:text-is('complete')")).to_be_visible(timeout=120_000)
    newest = store.runs()[0]
    assert newest.id not in ids
    assert store.config(newest.id) == store.config(ids[0]) == ODD
    assert page.get_by_test_id("stException").all_inner_texts() == []
    assert problems == []
