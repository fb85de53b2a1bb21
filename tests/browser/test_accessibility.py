"""Accessibility of every page, light and dark, with and without runs: axe-core findings, contrast of text in figures, keyboard focus."""

from collections.abc import Callable
from pathlib import Path

import axe_playwright_python
import pytest
from every_page import Address, open_everything, pages, settle, show_whole, visit
from playwright.sync_api import ElementHandle, Page

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
ALWAYS = {"heading-order", "page-has-heading-one", "html-has-lang", "document-title", "image-alt"}  # reported whatever their impact
# Streamlit's own findings, which no option changes: (rule, part of the element's HTML, why it is harmless)
ACCEPTED: list[tuple[str, str, str]] = []
COLOR_RULES = ["color-contrast", "link-in-text-block"]


def findings(page: Page, rules: list[str], within: str | None = None) -> list[str]:
    """Serious and critical axe-core findings, and those of ALWAYS, in one line each: rule, element, and what is wrong.

    rules: [] for all. within: a selector; None for the whole page.
    """
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE)
    options = {"resultTypes": ["violations"], **({"runOnly": {"type": "rule", "values": rules}} if rules else {})}
    found = []
    for violation in page.evaluate("([within, options]) => axe.run(within ?? document, options)", [within, options])["violations"]:
        if violation["impact"] not in ("serious", "critical") and violation["id"] not in ALWAYS:
            continue
        for node in violation["nodes"]:
            if not any(violation["id"] == rule and part in node["html"] for rule, part, _ in ACCEPTED):
                found.append(f"{violation['id']}: {node['html'][:300]} | {node['failureSummary'][:300]}")
    return found


# axe-core ignores text in SVG. Text with its own background box is skipped, since its contrast is with the box
FAINT_TEXT = """() => {
    const channels = color => {
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r / 255, g / 255, b / 255, a / 255];
    };
    const luminance = rgb => {
        const [r, g, b] = rgb.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = channels(getComputedStyle(document.querySelector('.stApp')).backgroundColor).slice(0, 3);
    const faint = [];
    for (const text of document.querySelectorAll('.js-plotly-plot svg text')) {
        if (!text.textContent.trim() || !text.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const box = [...text.parentNode.children].find(e => e.tagName === 'rect' && e.classList.contains('bg'));
        if (box && channels(getComputedStyle(box).fill)[3] * getComputedStyle(box).fillOpacity > 0.4) continue;
        const style = getComputedStyle(text), fill = channels(style.fill);
        let opacity = fill[3] * style.fillOpacity;
        for (let e = text; e && !e.matches('.js-plotly-plot'); e = e.parentNode) opacity *= getComputedStyle(e).opacity;
        const seen = behind.map((c, i) => opacity * fill[i] + (1 - opacity) * c);
        const [low, high] = [luminance(seen), luminance(behind)].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < 4.5) faint.push(`"${text.textContent}" ${style.fill} has contrast ${contrast.toFixed(2)}`);
    }
    return [...new Set(faint)];
}"""

# the focused element, also inside a component's shadow root
FOCUSED = """() => {
    let element = document.activeElement;
    while (element.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
    return element;
}"""

# style of an element and those around it, where Streamlit draws its focus ring, which fades in and out
LOOK = """async element => {
    await new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)));
    for (const root of [document, element.getRootNode()])
        root.getAnimations().filter(e => e instanceof CSSTransition).forEach(e => e.finish());
    const looks = [];
    for (let level = 0; level < 4 && element && element !== document.body; level++, element = element.parentElement) {
        for (const one of [element, ...element.children]) {
            const s = getComputedStyle(one);
            looks.push([s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow, s.borderColor, s.backgroundColor, s.color, s.opacity]);
        }
    }
    return JSON.stringify(looks);
}"""


def shows_focus(page: Page, element: ElementHandle, wait: int) -> bool:
    """Whether the element, which has the focus, looks different without it. wait: milliseconds before each look."""
    page.wait_for_timeout(wait)
    before = element.evaluate(LOOK)
    element.evaluate("e => e.blur()")
    page.wait_for_timeout(wait)
    after = element.evaluate(LOOK)
    element.focus()
    return before != after


def unseen_focus(page: Page, most: int = 40) -> list[str]:
    """Elements that look the same with and without keyboard focus."""
    unseen, met = [], set()
    page.locator("body").press("Tab")
    for _ in range(most):
        focused = page.evaluate_handle(FOCUSED).as_element()
        name = focused.evaluate("e => e === document.body ? '' : e.outerHTML.slice(0, 200)")
        if not name or name in met:
            break
        met.add(name)
        if "glide-cell" in name or "data-grid-canvas" in name:  # a table, which draws its focus ring on its canvas
            page.keyboard.press("Tab")
            continue
        if not any(shows_focus(page, focused, wait) for wait in (0, 250)):
            unseen.append(name)
        page.keyboard.press("Tab")
    assert len(met) > 5, f"the Tab key reached only {met}"
    return unseen


def in_both_schemes(page: Page, where: str, look: Callable[[Page, list[str]], list[str]]) -> list[str]:
    """What `look` finds by all rules in the page's color scheme, and by the rules about colors in the other one, which the page keeps."""
    dark = page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    scheme, other = ("dark", "light") if dark else ("light", "dark")
    wrong = [f"{where}, {scheme}: {one}" for one in look(page, [])]
    page.emulate_media(color_scheme=other)
    settle(page)
    return wrong + [f"{where}, {other}: {one}" for one in look(page, COLOR_RULES)]


def findings_when_opened(page: Page, rules: list[str]) -> list[str]:
    """Findings in the whole page, in its figures, and in what its tabs and popovers show."""
    wrong = findings(page, rules)
    wrong += [f"in a figure: {one}" for one in page.evaluate(FAINT_TEXT)]
    for tab in page.get_by_role("tab").all():
        tab.click()
        wrong += [f"tab {tab.inner_text()}: {one}" for one in findings(page, rules, "[role=tabpanel]")]
    for button in page.locator("[data-testid=stPopoverButton]:enabled:visible").all():
        button.click()
        page.get_by_test_id("stPopoverBody").wait_for()
        wrong += [f"{button.inner_text()}: {one}" for one in findings(page, rules, "[data-testid=stPopoverBody]")]
        page.keyboard.press("Escape")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("address", pages(), ids=lambda address: address.title)
def test_page_has_no_serious_findings(full_server, empty_server, cached_page, address: Address):
    page, problems = cached_page
    page.emulate_media(color_scheme="light")
    visit(page, empty_server, address)
    wrong = in_both_schemes(page, "empty", findings)

    visit(page, full_server, address)  # in the dark scheme
    wrong += in_both_schemes(page, "full", findings)
    if page.get_by_role("grid", name="Runs").count():
        page.get_by_role("grid", name="Runs").get_by_role("checkbox").first.click()
        page.mouse.move(0, 0)
        settle(page)
    open_everything(page)
    show_whole(page, 1280)
    wrong += in_both_schemes(page, "opened", findings_when_opened)
    assert list(dict.fromkeys(wrong)) == []
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("address", pages(), ids=lambda address: address.title)
def test_keyboard_focus_is_visible(full_server, cached_page, address: Address):
    page, problems = cached_page
    page.emulate_media(reduced_motion="reduce")
    visit(page, full_server, address)
    assert unseen_focus(page) == []
    assert problems == []
