"""Every page on a phone, a laptop and a large screen: no element overflows, overlaps, is clipped or out of reach.

With SCREENSHOTS=FOLDER in the environment, screenshots of all pages, light and dark, are saved there.
"""

import os
from pathlib import Path

import pytest
from every_page import Address, open_everything, pages, settle, show_whole, visit
from playwright.sync_api import Page

SCREENSHOTS = os.environ.get("SCREENSHOTS")
PHONE, LAPTOP, SCREEN = 390, 1280, 1920
HEIGHTS = {PHONE: 844, LAPTOP: 900, SCREEN: 900}

COMMON = """
    const visible = element => element.checkVisibility({opacityProperty: true, visibilityProperty: true})
        && element.getBoundingClientRect().width > 1 && element.getBoundingClientRect().height > 1
        && !(element.closest('[data-testid=stSidebar]')?.getBoundingClientRect().right <= 1);
    const name = element => `${element.tagName.toLowerCase()} ${element.dataset?.testid ?? ''} `
        + `"${(element.textContent || element.getAttribute('aria-label') || element.alt || '').trim().slice(0, 60)}"`;
    // content that can be scrolled to may be outside the window
    const clipper = element => {
        for (let e = element.parentElement; e && !e.matches('[data-testid=stMain], body'); e = e.parentElement)
            if (getComputedStyle(e).overflowX !== 'visible') return e;
        return null;
    };
"""

STICKS_OUT = f"""() => {{ {COMMON}
    const wrong = [], main = document.querySelector('[data-testid=stMain]');
    for (const e of [document.documentElement, document.body, main])
        if (e.scrollWidth > e.clientWidth)
            wrong.push(`${{name(e).slice(0, 30)}} scrolls sideways: ${{e.scrollWidth}} in ${{e.clientWidth}}`);
    for (const e of document.querySelectorAll('.stApp *')) {{
        const box = e.getBoundingClientRect();
        if (visible(e) && (box.right > innerWidth + 1 || box.left < -1) && !clipper(e))
            wrong.push(`${{name(e)}} reaches from ${{box.left.toFixed()}} to ${{box.right.toFixed()}} in ${{innerWidth}}`);
    }}
    return wrong;
}}"""

OVERLAPS = f"""() => {{ {COMMON}
    const wrong = [], header = document.querySelector('[data-testid=stHeader]').getBoundingClientRect();
    const title = document.querySelector('h1').getBoundingClientRect();
    if (title.top < header.bottom - 1) wrong.push(`the title is under the navigation: ${{title.top}} to ${{header.bottom}}`);
    const pairs = (elements, allowed) => {{
        const boxes = elements.filter(visible).map(e => [e, e.getBoundingClientRect()]);
        for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {{
            const [[one, a], [other, b]] = [boxes[i], boxes[j]];
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > allowed && high > allowed && !one.contains(other) && !other.contains(one))
                wrong.push(`${{name(one)}} and ${{name(other)}} overlap by ${{wide.toFixed()}} x ${{high.toFixed()}}`);
        }}
    }};
    pairs([...document.querySelectorAll('[data-testid=stTopNavLink], [data-testid=stHeader] button')], 1);
    // toolbars cover their elements only on hover; the value of a slider touches the line of its label
    const kinds = 'h1, h2, h3, p, button, label, input, summary, img, .js-plotly-plot';
    const parts = [...document.querySelectorAll(`[data-testid=stMain] :is(${{kinds}})`)];
    const apart = '[data-testid=stElementToolbar], [data-testid=stDataFrame], .modebar, .svg-container';
    pairs(parts.filter(e => !e.closest(apart) && !e.matches('[type=file], [type=checkbox], [type=range]') && !clipper(e)), 5);
    for (const figure of document.querySelectorAll('.js-plotly-plot')) {{
        const words = [...figure.querySelectorAll('svg text')].filter(e => e.textContent.trim());
        // rotated text has boxes larger than itself
        pairs(words.filter(e => !/rotate\\((?!0|-?90)/.test(e.getAttribute('transform'))), 2);
    }}
    return wrong;
}}"""

CUT = f"""() => {{ {COMMON}
    const wrong = [];
    for (const e of document.querySelectorAll('[data-testid=stMain] *, [data-testid=stHeader] *')) {{
        const style = getComputedStyle(e), written = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (written && visible(e) && e instanceof HTMLElement && e.scrollWidth > e.clientWidth + 1 && style.display !== 'inline'
                && style.overflowX !== 'visible' && style.textOverflow !== 'ellipsis' && !e.closest('.modebar, [data-testid=stJson], pre'))
            wrong.push(`${{name(e)}} is cut: ${{e.scrollWidth}} wide in ${{e.clientWidth}}`);
    }}
    for (const figure of document.querySelectorAll('.js-plotly-plot')) {{
        const frame = figure.getBoundingClientRect();
        for (const text of figure.querySelectorAll('svg text')) {{
            const box = text.getBoundingClientRect();
            const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
            if (text.textContent.trim() && visible(text) && out > 2)
                wrong.push(`"${{text.textContent}}" leaves its figure by ${{out.toFixed()}} pixels`);
        }}
        const bar = figure.querySelector('.modebar'), style = bar && getComputedStyle(bar);
        if (bar && !figure.matches(':hover, :focus-within') && style.opacity !== '0' && !/, 0\\)$/.test(style.backgroundColor))
            wrong.push(`an invisible toolbar covers "${{figure.querySelector('.gtitle')?.textContent}}"`);
    }}
    return wrong;
}}"""

OUT_OF_REACH = f"""() => {{ {COMMON}
    const wrong = [];
    const kinds = 'button, a[href], input, textarea, summary, [role=slider], [role=combobox], [role=tab]';
    const controls = document.querySelectorAll(`.stApp :is(${{kinds}})`);
    for (const control of controls) {{
        if (control.closest('[data-testid=stElementToolbar], .modebar, [data-testid=stDataFrame]')
            || control.matches(':disabled, input[type=file], [tabindex="-1"]')) continue;
        // hidden inputs are reached through their visible replacements
        const hidden = control.matches('[type=checkbox], [type=radio], [type=range]');
        const target = (hidden && control.closest('label, [role=group], [data-rac]')) || control;
        if (!visible(target)) continue;
        target.scrollIntoView({{block: 'center', inline: 'nearest', behavior: 'instant'}});
        const box = target.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + Math.min(box.height / 2, 20);
        const hit = document.elementFromPoint(x, y);
        if (!hit || !(target.contains(hit) || hit.contains(target) || hit.closest('label')?.contains(target)))
            wrong.push(`${{name(target)}} at ${{x.toFixed()}}, ${{y.toFixed()}} is behind ${{hit ? name(hit) : 'the edge of the window'}}`);
    }}
    return wrong;
}}"""


def set_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": HEIGHTS[width]})


def faults(page: Page, width: int, name: str) -> list[str]:
    """What is wrong with the whole page at this width. With SCREENSHOTS, also takes screenshots of it, light and dark."""
    show_whole(page, width)
    wrong = [one for look in (STICKS_OUT, OVERLAPS, CUT) for one in page.evaluate(look)]
    if SCREENSHOTS is not None:
        bottom = page.get_by_test_id("stMainBlockContainer").evaluate("e => e.getBoundingClientRect().bottom")
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            settle(page)
            file = Path(SCREENSHOTS) / f"{name}-{width}-{scheme}.png".lower()
            page.screenshot(path=file, clip={"x": 0, "y": 0, "width": width, "height": bottom})
    return [f"{name}, {width} pixels: {one}" for one in wrong]


@pytest.mark.slow
@pytest.mark.parametrize("address", pages(), ids=lambda address: address.title)
def test_nothing_overflows_overlaps_or_is_clipped(full_server, empty_server, cached_page, address: Address):
    page, problems = cached_page
    wrong = []
    # one page is resized, since loading takes longest; the one on a phone is loaded there
    for state, server, widths in (("empty", empty_server, (SCREEN, LAPTOP, PHONE)), ("full", full_server, (PHONE, LAPTOP, SCREEN))):
        set_window(page, widths[0])
        visit(page, server, address)
        for width in widths:
            wrong += faults(page, width, f"{address.title}-{state}")
        open_everything(page)
        for width in reversed(widths):
            wrong += faults(page, width, f"{address.title}-{state}-opened")
            set_window(page, width)
            wrong += [f"{state}, opened, {width} pixels: {one}" for one in page.evaluate(OUT_OF_REACH)]
    assert list(dict.fromkeys(wrong)) == []
    assert problems == []


@pytest.mark.slow
def test_every_page_is_reachable_on_a_phone(empty_server, phone):
    page, problems = phone
    page.goto(empty_server)
    for address in pages():
        page.get_by_role("button", name="Expand sidebar").tap()
        page.get_by_role("link", name=address.title, exact=True).tap()
        page.wait_for_url(f"{empty_server}/{address.path}*")
        settle(page)
        page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").tap()  # Streamlit leaves the sidebar open
    assert problems == []
