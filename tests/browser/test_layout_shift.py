"""Nothing jumps while a page is drawn: its cumulative layout shift, as Chromium measures it, stays below 0.1 (good by web.dev)."""

import pytest
from every_page import pages, visit

MOST = 0.1
# shifts within half a second of a key or click do not count
OBSERVE = """
    window.shifts = [];
    new PerformanceObserver(list => list.getEntries().filter(shift => !shift.hadRecentInput).forEach(shift => window.shifts.push({
        value: shift.value, what: shift.sources.map(({node}) => node?.textContent?.trim().slice(0, 40)),
    }))).observe({type: 'layout-shift', buffered: true});
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=lambda size: f"{size[0]} pixels")
def test_no_page_moves_while_it_is_drawn(full_server, empty_server, context, size):
    context.add_init_script(OBSERVE)
    shifts = {}
    with context.new_page() as page:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for state, server in (("full", full_server), ("empty", empty_server)):
            for address in pages():
                visit(page, server, address)
                shifts[address.title, state] = page.evaluate("window.shifts")
    assert {name: found for name, found in shifts.items() if sum(one["value"] for one in found) >= MOST} == {}
