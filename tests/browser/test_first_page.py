"""The first page of a fresh server in a real browser: what is in sight, and the way from a weights file to an ONNX file without typing."""

import re
from pathlib import Path

import onnx
import pytest
import torch
from every_page import settle
from playwright.sync_api import Page, expect

from core.models.full_precision import build_architecture

STARTS = "button:has-text('Start')"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The file of a network that the product has never seen: random weights, seven classes, saved by a wrapped training loop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = build_architecture("pytorchcv:resnet20_cifar10", 7, 3).train()
        with torch.no_grad():
            for _ in range(20):  # so that the running statistics are not those of a fresh network
                network(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("network") / "best.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return path


def bottoms(page: Page) -> list[float]:
    """Lower ends of the visible Start buttons, in pixels."""
    return [box["y"] + box["height"] for button in page.locator(STARTS).all() if (box := button.bounding_box())]


@pytest.mark.slow
def test_both_ways_are_in_sight_and_stack_on_a_phone(empty_server, browser_page):
    page, problems = browser_page
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(empty_server)
    expect(page.get_by_role("heading", name="Your network")).to_be_visible()
    settle(page)
    assert len(bottoms(page)) == 2
    assert max(bottoms(page)) < 900
    ways = [page.get_by_role("heading", name=name) for name in ("Try it", "Your network")]
    (first, second) = (way.bounding_box() for way in ways)
    assert first["y"] == second["y"]
    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    (first, second) = (way.bounding_box() for way in ways)
    assert first["x"] == second["x"]
    assert first["y"] < second["y"]
    assert problems == []


@pytest.mark.slow
def test_a_dropped_file_becomes_an_onnx_file_without_a_word(server, browser_page, weights, tmp_path):
    page, problems = browser_page
    page.goto(server)
    expect(page.get_by_role("heading", name="Your network")).to_be_visible()
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(weights)
    expect(page.get_by_text("7 classes, 32 pixels")).to_be_visible(timeout=180_000)
    time = page.get_by_role("combobox", name="How long may it take")
    time.fill("1s")  # the least there is
    time.press("Enter")
    start = page.locator(".st-key-start-own").get_by_role("button")
    expect(start).to_be_enabled()
    start.click()
    # any of its stages: each takes a moment only
    expect(page.get_by_text(re.compile("^Now .+ Next: "))).to_be_visible(timeout=180_000)
    expect(page.locator(".stMarkdownBadge:text-is('complete')")).to_be_visible(timeout=300_000)
    headline = page.get_by_text(re.compile(r"^Your network in 4 bits: \d+ kB instead of 1\.1 MB \(.* times smaller\)"))
    expect(headline).to_be_visible()
    with page.expect_download(timeout=300_000) as download:
        page.get_by_role("button", name="Download as ONNX").click()
    assert download.value.suggested_filename == "best-4bit.onnx"
    file = tmp_path / "best-4bit.onnx"
    download.value.save_as(file)
    network = onnx.load(file)
    onnx.checker.check_model(network)
    assert network.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7
    for name in ("Quantize", "Diversity", "Export"):
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(headline).to_be_visible()
    assert page.get_by_test_id("stException").count() == 0
    assert problems == []
