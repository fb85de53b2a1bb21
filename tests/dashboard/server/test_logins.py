"""Logins: who can have one, what ends it, and how guesses are counted."""

import stat
import time

import pytest
from itsdangerous import URLSafeTimedSerializer
from login_cookies import OIDC, TOKEN, account_cookie, token_cookie
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from core.runs.store import default_folder
from dashboard.server import logins, settings


def restart(monkeypatch):
    """What a new process knows: only the file."""
    monkeypatch.setattr(logins, "_files", {})


def test_a_login_has_its_name(with_token, monkeypatch):
    cookies = token_cookie("Anna Ä. | <b>")
    login = logins.login_in(cookies)
    assert (login.name, login.email, login.by_account) == ("Anna Ä. | <b>", "", False)
    assert login.until == pytest.approx(time.time() + logins.SECONDS, abs=2)
    (value,) = cookies.values()
    assert value.isascii()
    assert TOKEN not in value
    restart(monkeypatch)
    assert logins.login_in(cookies) == login


def self_signed(token):
    """What somebody who knows the token, and this code, but not the server's key, could send."""
    return logins.serializer(token, f"login/{settings.cookie_name()}").dumps(["Anna", "0" * 32, logins._token_mark()])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda value: ".",
        lambda value: "Anna",
        lambda value: value[:-1],
        lambda value: "ä" + value,
        lambda value: ".".join([logins.issue("Emma").rsplit(".", 2)[0], *value.rsplit(".", 2)[1:]]),
        lambda value: ".".join([value.rsplit(".", 2)[0], "zzzzzz", value.rsplit(".", 2)[2]]),
        lambda value: self_signed(TOKEN),
        lambda value: self_signed("a guess"),
    ],
    ids=["dot", "plain", "cut", "not ascii", "other name", "later", "signed with the token", "signed with a guess"],
)
def test_a_login_that_the_server_did_not_issue_is_none_and_counts(with_token, wrong):
    value = wrong(logins.issue("Anna"))
    for _ in range(logins.Guesses.MOST):
        assert logins.guesses.problem() == ""
        assert logins.login_of(value) is None
    assert "10 wrong tokens within 60 seconds: try again in 60 seconds." in logins.guesses.problem()


def test_a_browser_that_sends_the_same_wrong_cookie_again_and_again_is_one_guess(with_token):
    for _ in range(50):
        assert logins.login_in({settings.cookie_name(): "a cookie of an earlier version"}) is None
    assert logins.guesses.problem() == ""
    for guess in range(logins.Guesses.MOST):
        assert logins.login_in({settings.cookie_name(): f"guess {guess}"}) is None
    assert logins.guesses.problem()


def test_guesses_are_counted_for_the_whole_server(monkeypatch, with_token):
    now = 1000.0
    monkeypatch.setattr(logins.time, "monotonic", lambda: now)
    cookies = token_cookie()
    for _ in range(logins.Guesses.MOST):
        assert logins.token_problem(TOKEN, TOKEN) == ""  # correct tokens do not count
        assert logins.token_problem("a guess", TOKEN) == "Wrong token."
    assert "try again in 60" in logins.token_problem(TOKEN, TOKEN)
    assert logins.login_in(cookies)  # who is logged in stays in
    now += 30
    logins.login_of("another guess")  # does not prolong the wait
    assert "try again in 30" in logins.token_problem(TOKEN, TOKEN)
    now += 31
    assert logins.token_problem(TOKEN, TOKEN) == ""


@pytest.mark.parametrize("cookie", [token_cookie, lambda: account_cookie(email="anna@lab.example")], ids=["token", "account"])
def test_a_login_expires_and_that_is_no_guess(cookie, monkeypatch, with_token, with_accounts):
    cookies, now = cookie(), int(time.time())
    monkeypatch.setattr(time, "time", lambda: now + logins.SECONDS - 2)
    assert logins.login_in(cookies)
    monkeypatch.setattr(time, "time", lambda: now + logins.SECONDS + 2)
    for _ in range(20):
        assert logins.login_in(cookies) is None
    assert logins.guesses.problem() == ""


def test_a_new_token_ends_all_logins_and_that_is_no_guess(monkeypatch, with_token):
    sent = [token_cookie(f"user {number}") for number in range(20)]
    monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN + "x")
    assert [logins.login_in(cookies) for cookies in sent] == [None] * 20
    assert logins.guesses.problem() == ""
    monkeypatch.delenv(settings.TOKEN_VARIABLE)
    assert logins.login_in(sent[0]) is None


@pytest.mark.parametrize("cookie", [token_cookie, lambda: account_cookie(email="anna@lab.example")], ids=["token", "account"])
def test_an_ended_login_stays_ended(cookie, monkeypatch, with_token, with_accounts):
    cookies, other = cookie(), token_cookie("Emma")
    login = logins.login_in(cookies)
    logins.end(login)
    assert logins.login_in(cookies) is None
    assert not logins.lasts(login)
    assert logins.login_in(other).name == "Emma"
    restart(monkeypatch)
    assert logins.login_in(cookies) is None
    assert logins.login_in(other).name == "Emma"
    assert logins.guesses.problem() == ""


def test_another_server_on_the_same_runs_ends_it_within_a_second(monkeypatch, with_token):
    cookies = token_cookie()
    login = logins.login_in(cookies)
    here = logins._file()
    restart(monkeypatch)
    logins.end(login)
    assert logins._file() is not here
    time.sleep(logins._FILE_AGE + 0.1)
    assert here.has_ended(login.id)


def test_ended_logins_are_forgotten_once_they_would_have_expired(monkeypatch, with_token):
    login = logins.login_in(token_cookie())
    logins.end(login)
    assert login.id in logins._file()._read()["ended"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + logins.SECONDS + 1)
    logins.end(login._replace(id="later", until=time.time() + 60))
    assert list(logins._file()._read()["ended"]) == ["later"]


def test_only_this_user_can_read_the_key(with_token):
    assert logins.prepare() == ""
    assert stat.S_IMODE((default_folder() / logins.FILE).stat().st_mode) == 0o600


def test_a_folder_that_cannot_keep_logins_is_named(with_token, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "file" / "runs"))
    assert logins.prepare().startswith(f"Cannot keep logins in {tmp_path / 'file' / 'runs' / logins.FILE}: NotADirectoryError")


def test_streamlits_own_cookie_is_read(with_accounts):
    content = '{"is_logged_in": true, "origin": "http://127.0.0.1", "sub": "1", "email": "anna@lab.example"}'
    cookie = create_signed_value(OIDC["cookie_secret"], "_streamlit_user", content).decode()
    assert logins.login_in({"_streamlit_user": cookie}).name == "anna@lab.example"


@pytest.mark.parametrize(
    ("invited", "claims", "name"),
    [
        ("", {"email": "anna@lab.example"}, "anna@lab.example"),
        ("", {"name": "Anna"}, "Anna (1)"),
        ("", {"name": "emma@lab.example"}, "emma@lab.example (1)"),  # accounts choose their names: this is not Emma
        ("", {"email": "emma@lab.example", "email_verified": False}, "account (1)"),
        ("Anna@lab.example, emma@lab.example", {"email": "anna@LAB.example"}, "anna@LAB.example"),
        ("@lab.example", {"email": "anna@lab.example", "email_verified": True}, "anna@lab.example"),
        ("@lab.example", {"email": "anna@lab.example", "email_verified": False}, None),
        ("@lab.example", {"email": "anna@notlab.example"}, None),
        ("@lab.example", {"name": "@lab.example"}, None),
        ("account (1)", {}, None),
    ],
)
def test_invited_accounts(invited, claims, name, monkeypatch, with_accounts):
    monkeypatch.setenv(settings.USERS_VARIABLE, invited)
    login = logins.login_in(account_cookie(**claims))
    assert (login and login.name) == name


@pytest.mark.parametrize("claims", [{"is_logged_in": False}, {"origin": "http://127.0.0.1:8000"}, {"origin": None}])
def test_an_account_that_is_not_logged_in_here_has_no_login(claims, with_accounts):
    assert logins.login_in(account_cookie(email="anna@lab.example", **claims)) is None
    assert logins.guesses.problem() == ""


def test_wrongly_signed_accounts_are_guesses(with_accounts):
    for guess in range(logins.Guesses.MOST):
        assert logins.login_in(account_cookie(secret=f"guess {guess}", email="anna@lab.example")) is None
    assert logins.guesses.problem()


def test_a_changed_last_character_does_not_revive_an_account(with_accounts):
    cookies = account_cookie(email="anna@lab.example")
    logins.end(logins.login_in(cookies))
    serializer = URLSafeTimedSerializer(OIDC["cookie_secret"], salt="_streamlit_user")
    value = cookies["_streamlit_user"]
    same = [value[:-1] + last for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" if last != value[-1]]
    signed = [other for other in same if serializer.loads_unsafe(other)[0]]
    assert signed  # base64 leaves bits of the last character unused
    assert [logins.login_in({"_streamlit_user": other}) for other in signed] == [None] * len(signed)
