"""A short run in a real browser, from Start to accuracy, with a live change and a reload."""

import pytest
from every_page import expand
from playwright.sync_api import Page, expect


def fill(page: Page, label: str, value: str) -> None:
    field = page.get_by_role("spinbutton", name=label, exact=True)
    field.fill(value)
    field.press("Tab")


@pytest.mark.slow
def test_a_short_run_from_start_to_accuracy(server, browser_page):
    page, problems = browser_page
    page.goto(server)
    expect(page.get_by_role("heading", name="Try it")).to_be_visible()

    expand(page, "All settings")
    fill(page, "Images", "80")
    fill(page, "Iterations", "30")
    fill(page, "Batch size", "40")
    fill(page, "Snapshots", "2")
    page.get_by_role("tab", name="Quantization").click()
    fill(page, "Training steps", "1")
    # one bit width is enough: remove the last two of 3, 4, 5
    widths = page.get_by_role("combobox", name="Bit widths")
    widths.press("Backspace")
    widths.press("Backspace")
    widths.press("Escape")
    page.locator(".st-key-start").get_by_role("button").click()

    # images of both methods
    for method in ("MI-FGSM", "Adam"):
        expect(page.get_by_alt_text(f"synthetic images by {method}")).to_be_visible(timeout=120_000)
    picture = page.get_by_alt_text("synthetic images by MI-FGSM")
    first = picture.get_attribute("src")
    assert picture.evaluate("image => image.complete && image.naturalWidth > 100")

    # a live change by keyboard is marked on the curves
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".stMarkdownBadge:text-is('paused')")).to_be_visible()
    slider = page.get_by_role("slider", name="MI-FGSM step ε")
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    page.get_by_role("button", name="One step").click()
    page.get_by_role("figure").first.scroll_into_view_if_needed()  # only visible curves are redrawn
    expect(page.get_by_text("ε = 0.09").first).to_be_visible()

    # the run survives a reload
    page.reload()
    expect(page.locator(".stMarkdownBadge:text-is('paused')")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".stMarkdownBadge:text-is('complete')")).to_be_visible(timeout=240_000)
    assert page.get_by_alt_text("synthetic images by MI-FGSM").get_attribute("src") != first
    page.get_by_role("radio", name="Heatmaps").click()
    expect(page.get_by_role("figure", name="L_BNS by layer and iteration")).to_be_visible()

    page.get_by_role("link", name="Quantize").click()
    expect(page.get_by_text("Accuracy at each bit width")).to_be_visible()
    expect(page.get_by_text("full precision 92.1 %").first).to_be_visible()
    expect(page.get_by_text("Top-1 on the first 2,000 CIFAR-10 test images")).to_be_visible()

    page.get_by_role("link", name="Diversity").click()
    expect(page.get_by_text("trained on the 50,000 CIFAR-10 training images")).to_be_visible()
    expect(page.get_by_text("Similarity matrix, Adam")).to_be_visible()

    page.get_by_role("link", name="Runs").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    assert problems == []
