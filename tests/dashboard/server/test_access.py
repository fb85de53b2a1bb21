"""Access: when the server refuses to start, the login by token, its cookie, and what pages show before the login."""

import time

import pytest
import streamlit as st
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit import config
from streamlit.testing.v1 import AppTest

from dashboard.server import access

TOKEN = "correct horse battery"
OIDC = {
    "redirect_uri": "http://127.0.0.1/oauth2callback",
    "cookie_secret": "a secret that is long enough",
    "client_id": "dashboard",
    "client_secret": "known to the provider",
    "server_metadata_url": "http://127.0.0.1/.well-known/openid-configuration",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No login configured, a loopback address, no wrong tokens yet."""
    for variable in (access.TOKEN_VARIABLE, access.USERS_VARIABLE, access.UNPROTECTED_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    access._wrong_tokens.clear()
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", before)
    access._wrong_tokens.clear()


@pytest.fixture
def cookies(monkeypatch):
    """The cookies that the browser sends with a session."""
    sent: dict[str, str] = {}
    monkeypatch.setattr(type(st.context), "cookies", property(lambda context: sent))
    return sent


def app(secrets=None):
    test = AppTest.from_file("../../../streamlit_app.py", default_timeout=60)
    if secrets:
        test.secrets["auth"] = secrets
    return test.run()


def shows_studio(test):
    return any(title.value == "Studio" for title in test.title)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_addresses(address):
    assert access.is_loopback(address)


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.1.4", "lab.example.org", "127.0.0.1.example.org", "unix://socket"])
def test_other_addresses_are_open(address):
    assert not access.is_loopback(address)


def test_loopback_needs_no_login(runs_folder):
    assert access.objection() == ""
    test = app()
    assert shows_studio(test)
    assert access.user() == ""
    assert not any(button.label == "Log out" for button in test.button)


@pytest.mark.parametrize("address", ["0.0.0.0", "", None])
def test_an_open_address_without_login_is_refused(address, monkeypatch):
    config.set_option("server.address", address)
    assert "0.0.0.0 is open to other machines and there is no login" in access.objection()
    with pytest.raises(SystemExit) as refusal:
        access.refuse_to_start()
    assert refusal.value.code == access.objection()  # a string as exit code is printed to stderr, and the process returns 1
    monkeypatch.setenv(access.UNPROTECTED_VARIABLE, "yes")
    assert access.objection()
    monkeypatch.setenv(access.UNPROTECTED_VARIABLE, "1")
    assert access.objection() == ""
    monkeypatch.delenv(access.UNPROTECTED_VARIABLE)
    monkeypatch.setenv(access.TOKEN_VARIABLE, TOKEN)
    assert access.objection() == ""


def test_a_session_without_login_is_refused(runs_folder):
    config.set_option("server.address", "0.0.0.0")
    test = app()
    assert [error.value for error in test.error] == [access.objection()]
    assert not shows_studio(test)


def test_unreadable_secrets_do_not_count_as_no_login(tmp_path):
    file = tmp_path / "secrets.toml"
    before = config.get_option("secrets.files")
    config.set_option("secrets.files", [str(file)])
    st.secrets._reset()
    try:
        assert access.objection() == ""  # there is no file
        file.write_text("[auth", encoding="utf-8")
        assert "Cannot read the login settings: Error parsing secrets file" in access.objection()
    finally:
        config.set_option("secrets.files", before)
        st.secrets._reset()


@pytest.mark.parametrize("token", ["", "short", "x" * (access.SHORTEST_SECRET - 1)])
def test_a_short_token_is_refused_even_on_loopback(token, monkeypatch, runs_folder):
    monkeypatch.setenv(access.TOKEN_VARIABLE, token)
    assert f"{access.TOKEN_VARIABLE} must have at least {access.SHORTEST_SECRET} characters, got {len(token)}" in access.objection()
    assert not shows_studio(app())


def test_a_signed_login_returns_its_name():
    login = access.sign("Anna Ä. | <b>", TOKEN)
    assert access.signed_name(login, TOKEN) == "Anna Ä. | <b>"
    assert TOKEN not in login
    assert login.isascii()


@pytest.mark.parametrize(
    "login",
    [
        "",
        ".",
        "Anna",
        access.sign("Anna", TOKEN + "x"),
        access.sign("Anna", TOKEN)[:-1],
        ".".join([*access.sign("Emma", TOKEN).split(".")[:1], *access.sign("Anna", TOKEN).split(".")[1:]]),
        access.sign("Anna", TOKEN).partition(".")[0] + ".ä",
    ],
    ids=["empty", "dot", "plain", "other token", "cut", "other name", "not ascii"],
)
def test_any_other_login_has_no_name(login):
    assert access.signed_name(login, TOKEN) == ""


def test_a_login_expires(monkeypatch):
    login, signed_at = access.sign("Anna", TOKEN), int(time.time())
    monkeypatch.setattr(time, "time", lambda: signed_at + access.LOGIN_SECONDS - 1)
    assert access.signed_name(login, TOKEN) == "Anna"
    monkeypatch.setattr(time, "time", lambda: signed_at + access.LOGIN_SECONDS + 2)
    assert access.signed_name(login, TOKEN) == ""


def test_the_expiry_is_signed_too():
    name, signed_at, signature = access.sign("Anna", TOKEN).split(".")
    later = signed_at[:-1] + ("A" if signed_at[-1] != "A" else "B")
    assert access.signed_name(f"{name}.{later}.{signature}", TOKEN) == ""


def test_wrong_tokens_are_counted_for_the_whole_server(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    for _ in range(access.WRONG_TOKENS):
        assert access.token_problem(TOKEN, TOKEN) == ""  # correct tokens do not count
        assert access.token_problem("a guess", TOKEN) == "Wrong token."
    assert f"try again in {access.WRONG_TOKENS_SECONDS}" in access.token_problem(TOKEN, TOKEN)
    now += access.WRONG_TOKENS_SECONDS + 1
    assert access.token_problem(TOKEN, TOKEN) == ""


def fill(test, name, token):
    test.text_input[0].set_value(name)
    test.text_input[1].set_value(token)
    return test.button[0].click().run()


def test_the_login_form_hides_the_page_and_shows_errors(monkeypatch, cookies, runs_folder):
    monkeypatch.setenv(access.TOKEN_VARIABLE, TOKEN)
    test = app()
    assert [title.value for title in test.title] == ["Log in"]
    fill(test, "**Anna**", "a guess")
    assert [error.value for error in test.error] == ["Wrong token."]
    fill(test, " ", TOKEN)
    assert "1 to 40 printable characters" in test.error[0].value
    assert not shows_studio(test)


def test_the_correct_token_sends_a_login_to_the_browser(monkeypatch, cookies, runs_folder):
    monkeypatch.setenv(access.TOKEN_VARIABLE, TOKEN)
    sent = []
    monkeypatch.setattr(access, "_send_login", sent.append)
    fill(app(), " Anna ", TOKEN)
    assert [access.signed_name(login, TOKEN) for login in sent] == ["Anna"]


def test_a_session_with_the_cookie_is_logged_in_and_can_log_out(monkeypatch, cookies, runs_folder):
    monkeypatch.setenv(access.TOKEN_VARIABLE, TOKEN)
    cookies[access._cookie_name()] = access.sign("Anna", TOKEN)
    test = app()
    assert shows_studio(test)
    assert access.user() == "Anna"
    assert "Anna" in [text.value for text in test.text]
    test.button(key="log out").click().run()
    assert not shows_studio(test)


def test_a_cookie_signed_with_another_token_is_ignored(monkeypatch, cookies, runs_folder):
    monkeypatch.setenv(access.TOKEN_VARIABLE, TOKEN)
    cookies[access._cookie_name()] = access.sign("Anna", "the token of last week")
    assert not shows_studio(app())
    assert access.user() == ""


def test_the_server_sets_only_cookies_that_it_signed(monkeypatch):
    monkeypatch.setenv(access.TOKEN_VARIABLE, TOKEN)
    client = TestClient(Starlette(routes=access.routes()))
    login = access.sign("Anna", TOKEN)
    assert client.post("/login").status_code == 403
    assert client.post("/login", headers={access.LOGIN_HEADER: login[:-1]}).status_code == 403
    assert not client.cookies
    answer = client.post("/login", headers={access.LOGIN_HEADER: login})
    assert client.cookies[access._cookie_name()] == login
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={access.LOGIN_SECONDS}"):
        assert attribute in answer.headers["set-cookie"]
    assert "Secure" not in answer.headers["set-cookie"]
    client.post("/login", headers={access.LOGIN_HEADER: ""})
    assert not client.cookies
    secure = TestClient(Starlette(routes=access.routes()), base_url="https://testserver")
    assert "Secure" in secure.post("/login", headers={access.LOGIN_HEADER: login}).headers["set-cookie"]


def test_the_login_by_account_hides_the_page(runs_folder):
    test = app(secrets=OIDC)
    assert [title.value for title in test.title] == ["Log in"]
    assert [button.label for button in test.button] == ["Log in with your account"]
    named = {"redirect_uri": OIDC["redirect_uri"], "cookie_secret": OIDC["cookie_secret"], "campus": {"client_id": "dashboard"}}
    assert [button.label for button in app(secrets=named).button] == ["Log in with campus"]


def test_a_guessable_cookie_secret_is_refused(runs_folder):
    test = app(secrets=OIDC | {"cookie_secret": "xxx"})
    assert "cookie_secret of [auth] in secrets.toml must have at least 16 characters, got 3" in test.error[0].value
    assert not shows_studio(test)


@pytest.mark.parametrize(
    ("invited", "account", "name"),
    [
        ("", {"email": "anna@lab.example"}, "anna@lab.example"),
        ("", {"name": "Anna"}, "Anna"),
        ("Anna@lab.example, emma@lab.example", {"email": "anna@LAB.example"}, "anna@LAB.example"),
        ("@lab.example", {"email": "anna@lab.example", "email_verified": True}, "anna@lab.example"),
        ("@lab.example", {"email": "anna@lab.example", "email_verified": False}, ""),
        ("@lab.example", {"email": "anna@notlab.example"}, ""),
        ("@lab.example", {"name": "@lab.example"}, ""),
    ],
)
def test_invited_accounts(invited, account, name, monkeypatch):
    monkeypatch.setenv(access.USERS_VARIABLE, invited)
    monkeypatch.setattr(access, "_auth", lambda: OIDC)
    monkeypatch.setattr(access.st, "user", {"is_logged_in": True, **account})
    assert access.user() == name


def test_an_account_that_has_not_logged_in_has_no_name(monkeypatch):
    monkeypatch.setattr(access, "_auth", lambda: OIDC)
    monkeypatch.setattr(access.st, "user", {"is_logged_in": False, "email": "anna@lab.example"})
    assert access.user() == ""
