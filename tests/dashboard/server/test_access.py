"""Access: the login page, what it hides, the login cookie, and the account line."""

import pytest
from login_cookies import OIDC, TOKEN, account_cookie, token_cookie
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit import config
from streamlit.testing.v1 import AppTest

from dashboard.server import access, logins, settings


def app(secrets=None):
    test = AppTest.from_file("../../../streamlit_app.py", default_timeout=60)
    if secrets:
        test.secrets["auth"] = secrets
    return test.run()


def shows_studio(test):
    return any(title.value == "Studio" for title in test.title)


def test_loopback_needs_no_login(runs_folder):
    assert settings.objection() == ""
    test = app()
    assert shows_studio(test)
    assert access.user() == ""
    assert not any(button.label == "Log out" for button in test.button)


def test_a_session_without_login_is_refused(runs_folder):
    config.set_option("server.address", "0.0.0.0")
    test = app()
    assert [error.value for error in test.error] == [settings.objection()]
    assert not shows_studio(test)


def test_a_server_that_must_not_start_ends_with_the_reason(monkeypatch, tmp_path):
    config.set_option("server.address", "0.0.0.0")
    with pytest.raises(SystemExit) as refusal:
        access.refuse_to_start()
    assert refusal.value.code == settings.objection()  # a string as exit code is printed to stderr, and the process returns 1
    (tmp_path / "runs").write_text("", encoding="utf-8")
    monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN)
    with pytest.raises(SystemExit, match="Cannot keep logins in"):
        access.refuse_to_start()


def test_a_short_token_opens_no_page(monkeypatch, runs_folder):
    monkeypatch.setenv(settings.TOKEN_VARIABLE, "short")
    assert not shows_studio(app())


def fill(test, name, token):
    test.text_input[0].set_value(name)
    test.text_input[1].set_value(token)
    return test.button[0].click().run()


def test_the_login_form_hides_the_page_and_shows_errors(with_token, cookies, runs_folder):
    test = app()
    assert [title.value for title in test.title] == ["Log in"]
    fill(test, "**Anna**", "a guess")
    assert [error.value for error in test.error] == ["Wrong token."]
    fill(test, " ", TOKEN)
    assert "1 to 40 printable characters" in test.error[0].value
    for name in ("anna@lab.example", "Anna (1)"):  # as accounts are named
        fill(test, name, TOKEN)
        assert test.error[0].value == "The name must not contain an at sign or parentheses."
    assert not shows_studio(test)


def test_the_correct_token_sends_a_login_to_the_browser(monkeypatch, with_token, cookies, runs_folder):
    sent = []
    monkeypatch.setattr(access, "_send_login", sent.append)
    fill(app(), " Anna ", TOKEN)
    assert [logins.login_of(login).name for login in sent] == ["Anna"]


def test_a_session_with_the_cookie_is_logged_in_and_can_log_out(with_token, cookies, runs_folder):
    cookies.update(token_cookie())
    test = app()
    assert shows_studio(test)
    assert access.user() == "Anna"
    assert "Anna" in [text.value for text in test.text]
    test.button(key="log out").click().run()
    assert not shows_studio(test)


def test_a_session_whose_login_ended_shows_the_login(with_token, cookies, runs_folder):
    cookies.update(token_cookie())
    test = app()
    logins.end(logins.login_in(cookies))
    assert [title.value for title in test.run().title] == ["Log in"]
    assert access.user() == ""


def client(**options):
    return TestClient(Starlette(routes=access.routes()), **options)


def test_the_server_sets_only_cookies_that_it_issued(with_token):
    browser, login = client(), logins.issue("Anna")
    assert browser.post("/login").status_code == 403
    assert browser.post("/login", headers={access.LOGIN_HEADER: login[:-1]}).status_code == 403
    assert not browser.cookies
    answer = browser.post("/login", headers={access.LOGIN_HEADER: login})
    assert browser.cookies[settings.cookie_name()] == login
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={logins.SECONDS}"):
        assert attribute in answer.headers["set-cookie"]
    assert "Secure" not in answer.headers["set-cookie"]
    secure = client(base_url="https://testserver")
    assert "Secure" in secure.post("/login", headers={access.LOGIN_HEADER: login}).headers["set-cookie"]


def test_logging_out_ends_the_login_for_every_browser(with_token):
    browser, login = client(), logins.issue("Anna")
    browser.post("/login", headers={access.LOGIN_HEADER: login})
    assert browser.post("/login", headers={access.LOGIN_HEADER: ""}).status_code == 204
    assert not browser.cookies
    assert logins.login_of(login) is None
    assert client().post("/login", headers={access.LOGIN_HEADER: login}).status_code == 403


def test_ten_wrong_logins_lock_every_path_and_keep_who_is_logged_in(with_token, cookies, runs_folder):
    inside, coming = token_cookie("Emma"), logins.issue("Anna")
    browser = client()
    answers = [browser.post("/login", headers={access.LOGIN_HEADER: f"guess.{number}"}).status_code for number in range(20)]
    assert answers == [403] * 10 + [429] * 10
    assert browser.post("/login", headers={access.LOGIN_HEADER: coming}).status_code == 429
    test = app()
    fill(test, "Anna", TOKEN)
    assert "10 wrong tokens within 60 seconds" in test.error[0].value
    cookies.update(inside)
    assert shows_studio(app())
    assert client(cookies=inside).post("/login", headers={access.LOGIN_HEADER: ""}).status_code == 204  # and can log out


def test_the_login_by_account_hides_the_page(cookies, runs_folder):
    test = app(secrets=OIDC)
    assert [title.value for title in test.title] == ["Log in"]
    assert [button.label for button in test.button] == ["Log in with your account"]
    named = {"redirect_uri": OIDC["redirect_uri"], "cookie_secret": OIDC["cookie_secret"], "campus": {"client_id": "dashboard"}}
    assert [button.label for button in app(secrets=named).button] == ["Log in with campus"]


def test_a_guessable_cookie_secret_is_refused(runs_folder):
    test = app(secrets=OIDC | {"cookie_secret": "xxx"})
    assert "cookie_secret of [auth] in secrets.toml must have at least 16 characters, got 3" in test.error[0].value
    assert not shows_studio(test)


def test_an_account_opens_the_page_and_an_uninvited_one_does_not(monkeypatch, cookies, runs_folder):
    cookies.update(account_cookie(email="anna@lab.example"))
    assert shows_studio(app(secrets=OIDC))
    monkeypatch.setenv(settings.USERS_VARIABLE, "@else.example")
    test = app(secrets=OIDC)
    assert not shows_studio(test)
    assert "anna@lab.example has no access to this server." in [text.value for text in test.text]
