"""Settings of logins: when the server refuses to start, and why."""

import pytest
import streamlit as st
from login_cookies import OIDC, TOKEN
from streamlit import config

from dashboard.server import settings


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_addresses(address):
    assert settings.is_loopback(address)


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.1.4", "lab.example.org", "127.0.0.1.example.org", "unix://socket"])
def test_other_addresses_are_open(address):
    assert not settings.is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "", None])
def test_an_open_address_without_login_is_refused(address, monkeypatch):
    config.set_option("server.address", address)
    assert "0.0.0.0 is open to other machines and there is no login" in settings.objection()
    monkeypatch.setenv(settings.UNPROTECTED_VARIABLE, "yes")
    assert settings.objection()
    monkeypatch.setenv(settings.UNPROTECTED_VARIABLE, "1")
    assert settings.objection() == ""
    monkeypatch.delenv(settings.UNPROTECTED_VARIABLE)
    monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN)
    assert settings.objection() == ""


def test_unreadable_secrets_do_not_count_as_no_login(tmp_path):
    file = tmp_path / "secrets.toml"
    before = config.get_option("secrets.files")
    config.set_option("secrets.files", [str(file)])
    st.secrets._reset()
    try:
        assert settings.objection() == ""  # there is no file
        assert not settings.have_logins()
        file.write_text("[auth", encoding="utf-8")
        assert "Cannot read the login settings: Error parsing secrets file" in settings.objection()
        assert settings.have_logins()
    finally:
        config.set_option("secrets.files", before)
        st.secrets._reset()


@pytest.mark.parametrize("token", ["", "short", "x" * (settings.SHORTEST_SECRET - 1)])
def test_a_short_token_is_refused_even_on_loopback(token, monkeypatch):
    monkeypatch.setenv(settings.TOKEN_VARIABLE, token)
    short = f"{settings.TOKEN_VARIABLE} must have at least {settings.SHORTEST_SECRET} characters, got {len(token)}"
    assert settings.objection().startswith(short)


@pytest.mark.parametrize("secret", [" " * 20, "\t" * 20, f" {TOKEN}", f"{TOKEN}\n", "\u00a0" * 16])
def test_a_secret_of_spaces_or_padded_with_them_is_refused(secret, monkeypatch):
    monkeypatch.setenv(settings.TOKEN_VARIABLE, secret)
    assert settings.objection().startswith("DASHBOARD_TOKEN must not begin or end with a space or line break")
    monkeypatch.delenv(settings.TOKEN_VARIABLE)
    monkeypatch.setattr(settings, "auth", lambda: OIDC | {"cookie_secret": secret})
    assert settings.objection() == "cookie_secret of [auth] in secrets.toml must not begin or end with a space or line break."


@pytest.mark.parametrize("variable", [settings.USERS_VARIABLE, settings.ADMINS_VARIABLE])
def test_a_list_of_nobody_is_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, " , ")  # an empty list of users would invite everyone
    assert settings.objection() == f"{variable} must list e-mail addresses, @domains or names, separated by commas, got ' , '."
    monkeypatch.setenv(variable, "")
    assert settings.objection() == ""
