"""Rights: only the owner of a run and the admins act on it."""

from types import SimpleNamespace

import pytest
from login_cookies import account_cookie, token_cookie

from core.errors import RunError
from dashboard.server import logins, rights, settings


def run_of(user):
    return SimpleNamespace(name="a run", user=user)


def test_without_logins_everyone_acts_on_every_run(cookies):
    rights.require([run_of(""), run_of("Anna")])
    assert rights.user() == ""


@pytest.mark.parametrize(
    ("user", "owner", "admins", "problem"),
    [
        ("Anna", "Anna", "", ""),
        ("Anna", "Emma", "", "Only Emma can do this."),
        ("Anna", "anna", "", "Only anna can do this."),
        ("Anna", "Emma", "Anna", ""),
        ("Anna", "Emma", "emma, ANNA", ""),
        ("Anna", "Emma", "Olga", "Only Emma or an admin can do this."),
        ("Anna", "", "", ""),
        ("Anna", "", "Olga", "Only an admin can do this."),
        ("Anna", "", "Anna", ""),
    ],
)
def test_owners_and_admins(user, owner, admins, problem, monkeypatch, cookies, with_token):
    monkeypatch.setenv(settings.ADMINS_VARIABLE, admins)
    cookies.update(token_cookie(user))
    assert rights.objection(run_of(owner)) == problem
    if problem:
        with pytest.raises(RunError, match=problem):
            rights.require([run_of(user), run_of(owner)])
    else:
        rights.require([run_of(user), run_of(owner)])


def test_accounts_are_admins_by_verified_address_or_domain_only(monkeypatch, cookies, with_token, with_accounts):
    monkeypatch.setenv(settings.ADMINS_VARIABLE, "@lab.example, Olga")
    for claims, may in [
        ({"email": "anna@lab.example"}, True),
        ({"email": "anna@lab.example", "email_verified": False}, False),
        ({"email": "anna@else.example", "name": "Olga"}, False),
        ({"name": "Olga"}, False),
    ]:
        cookies.clear()
        cookies.update(account_cookie(**claims))
        assert (rights.objection(run_of("Emma")) == "") == may, claims


def test_an_ended_login_has_no_rights(cookies, with_token):
    cookies.update(token_cookie())
    assert rights.user() == "Anna"
    logins.end(logins.login_in(cookies))
    assert rights.objection(run_of("Anna")) == "Log in first."
    with pytest.raises(RunError, match="the login has ended: log in again to start runs"):
        rights.user()
