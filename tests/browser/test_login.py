"""Login in a real browser: by token, by account of a small OpenID Connect provider, and none."""

import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from playwright.sync_api import Page, expect
from real_server import COMMAND, ROOT, environment, free_port, serving

TOKEN = "correct horse battery"


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def log_in(page: Page, name: str, token: str) -> None:
    page.get_by_role("textbox", name="Your name").fill(name)
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Log in").click()


def expect_login_only(page: Page) -> None:
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    expect(page.get_by_role("link", name="Runs")).to_have_count(0)
    expect(page.get_by_role("heading")).to_have_count(1)


@pytest.mark.parametrize("variables", [{}, {"DASHBOARD_TOKEN": "short"}], ids=["no login", "short token"])
def test_an_open_address_without_login_does_not_start(tmp_path, variables):
    command = [*COMMAND, str(free_port()), "--server.address", "0.0.0.0"]
    ended = subprocess.run(command, cwd=ROOT, env=environment(tmp_path, **variables), capture_output=True, timeout=120, encoding="utf-8")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    sentence = ended.stderr.strip().splitlines()[-1]
    short = "DASHBOARD_TOKEN must have at least 16 characters, got 5"
    assert sentence.startswith(short if variables else "The address 0.0.0.0 is open to other machines and there is no login")


def test_it_starts_unprotected_if_told_to(tmp_path, page):
    with serving(tmp_path, free_port(), "--server.address", "0.0.0.0", DASHBOARD_UNPROTECTED="1") as (address, _):
        page.goto(address)
        expect(page.get_by_role("heading", name="Studio")).to_be_visible()
        expect(page.get_by_role("button", name="Log out")).to_have_count(0)


@pytest.mark.slow
def test_the_token_opens_the_pages_until_log_out(tmp_path, page):
    with serving(tmp_path, free_port(), "--server.address", "0.0.0.0", DASHBOARD_TOKEN=TOKEN) as (address, _):
        page.goto(f"{address}/runs")
        expect_login_only(page)
        log_in(page, "<i>Anna</i>", "correct horse")
        expect(page.get_by_text("Wrong token.")).to_be_visible()
        expect_login_only(page)
        page.reload()
        expect_login_only(page)

        log_in(page, "<i>Anna</i>", TOKEN)
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()  # the requested page
        expect(page.get_by_text("<i>Anna</i>", exact=True)).to_be_visible()  # as typed, not in italics
        page.reload()
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        page.goto(f"{address}/quantize")
        expect(page.get_by_role("heading", name="Quantize")).to_be_visible()
        assert page.evaluate("document.cookie").find("dashboard_login") == -1

        # another browser is not logged in
        other = page.context.browser.new_context().new_page()
        other.goto(f"{address}/quantize")
        expect_login_only(other)

        page.get_by_role("button", name="Log out").click()
        expect_login_only(page)
        page.goto(f"{address}/runs")
        expect_login_only(page)


@pytest.mark.slow
def test_log_out_ends_every_tab_and_socket_and_the_cookie(tmp_path, context):
    page = context.new_page()
    with serving(tmp_path, free_port(), DASHBOARD_TOKEN=TOKEN) as (address, _):
        page.goto(f"{address}/runs")
        log_in(page, "Anna", TOKEN)
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        (cookie,) = [cookie for cookie in page.context.cookies() if cookie["name"].startswith("dashboard_login")]
        kept = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        other = page.context.new_page()
        other.goto(address)
        expect(other.get_by_role("heading", name="Studio")).to_be_visible()
        assert status_of(f"{address}/_stcore/metrics", kept) == 200

        page.get_by_role("button", name="Log out").click()
        expect_login_only(page)
        expect_login_only(other)  # without a click or a reload
        assert status_of(f"{address}/_stcore/metrics", kept) == 403

        page.context.add_cookies([cookie])
        page.goto(f"{address}/runs")
        expect_login_only(page)


def status_of(address, headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_login_page_asks_for_nothing_that_it_may_not_have(tmp_path, phone):
    page, problems = phone
    with serving(tmp_path, free_port(), DASHBOARD_TOKEN=TOKEN) as (address, _):
        page.goto(f"{address}/runs")
        expect_login_only(page)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert problems == []
        log_in(page, "Anna", TOKEN)
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        assert problems == []


class Provider(ThreadingHTTPServer):
    """An OpenID Connect provider that logs in its only account without asking."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ProviderAnswers)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.key = RSAKey.generate_key(2048, {"kid": "only"})
        self.account = {"sub": "1", "email": "anna@lab.example", "email_verified": True, "name": "Anna"}
        self.asked: dict[str, str] = {}  # the last authorization request


class ProviderAnswers(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/authorize":
            self.server.asked = dict(urllib.parse.parse_qsl(url.query))
            query = urllib.parse.urlencode({"code": "once", "state": self.server.asked["state"]})
            self.send_response(302)
            self.send_header("Location", f"{self.server.asked['redirect_uri']}?{query}")
            self.end_headers()
        elif url.path == "/keys":
            self.answer({"keys": [self.server.key.as_dict(private=False)]})
        else:
            address = self.server.address
            self.answer(
                {
                    "issuer": address,
                    "authorization_endpoint": f"{address}/authorize",
                    "token_endpoint": f"{address}/token",
                    "jwks_uri": f"{address}/keys",
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        now = int(time.time())
        claims = {"iss": self.server.address, "aud": "dashboard", "iat": now, "exp": now + 600, "nonce": self.server.asked["nonce"]}
        token = jwt.encode({"alg": "RS256", "kid": "only"}, claims | self.server.account, self.server.key)
        self.answer({"access_token": "unused", "token_type": "Bearer", "id_token": token})

    def answer(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def provider():
    with Provider() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def secrets_file(folder: Path, port: int, provider: Provider) -> str:
    file = folder / "secrets.toml"
    file.write_text(
        f"""
        [auth]
        redirect_uri = "http://127.0.0.1:{port}/oauth2callback"
        cookie_secret = "a secret that is long enough for this"
        client_id = "dashboard"
        client_secret = "known to the provider"
        server_metadata_url = "{provider.address}/.well-known/openid-configuration"
        """,
        encoding="utf-8",
    )
    return str(file)


@pytest.mark.slow
def test_an_account_opens_the_pages_until_log_out(tmp_path, page, provider):
    port = free_port()
    with serving(tmp_path, port, "--server.address", "0.0.0.0", "--secrets.files", secrets_file(tmp_path, port, provider)) as (address, _):
        page.goto(f"{address}/quantize")
        expect_login_only(page)
        page.get_by_role("button", name="Log in with your account").click()
        expect(page.get_by_role("heading", name="Studio")).to_be_visible()
        expect(page.get_by_text("anna@lab.example", exact=True)).to_be_visible()
        assert provider.asked["client_id"] == "dashboard"
        page.goto(f"{address}/quantize")
        expect(page.get_by_role("heading", name="Quantize")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect_login_only(page)
        page.goto(f"{address}/runs")
        expect_login_only(page)


def test_an_uninvited_account_has_no_access(tmp_path, page, provider):
    port = free_port()
    options = ("--server.address", "0.0.0.0", "--secrets.files", secrets_file(tmp_path, port, provider))
    with serving(tmp_path, port, *options, DASHBOARD_USERS="emma@lab.example") as (address, _):
        page.goto(address)
        page.get_by_role("button", name="Log in with your account").click()
        expect(page.get_by_text("anna@lab.example has no access to this server.")).to_be_visible()
        expect_login_only(page)
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("button", name="Log in with your account")).to_be_visible()
