"""The server in a locale without UTF-8."""

import pytest
from playwright.sync_api import expect
from real_server import free_port, serving


@pytest.mark.parametrize(
    "variables",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "cp1252"}],
    ids=["C", "cp1252"],
)
def test_server_starts_and_draws_a_page(tmp_path, chromium, variables):
    with serving(tmp_path, free_port(), **variables) as (address, _):
        page = chromium.new_page()
        page.goto(address)
        expect(page.get_by_role("heading", name="Studio")).to_be_visible(timeout=60_000)
        expect(page.get_by_role("button", name="Start").first).to_be_visible(timeout=60_000)
        expect(page.get_by_text("UnicodeDecodeError")).to_have_count(0)
        page.close()
    assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8", errors="replace")
