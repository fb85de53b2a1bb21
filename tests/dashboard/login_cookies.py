"""Cookies of logins, for tests."""

import json

from itsdangerous import URLSafeTimedSerializer

from dashboard.server import logins, settings

TOKEN = "correct horse battery"
OIDC = {
    "redirect_uri": "http://127.0.0.1/oauth2callback",
    "cookie_secret": "a secret that is long enough",
    "client_id": "dashboard",
    "client_secret": "known to the provider",
    "server_metadata_url": "http://127.0.0.1/.well-known/openid-configuration",
}


def token_cookie(name="Anna"):
    """The cookie of a new login by token."""
    return {settings.cookie_name(): logins.issue(name)}


def account_cookie(secret=OIDC["cookie_secret"], **claims):
    """Streamlit's cookie of a login by account; made as Streamlit does, see `test_streamlits_own_cookie_is_read`."""
    content = {"is_logged_in": True, "origin": "http://127.0.0.1", "sub": "1", **claims}
    return {"_streamlit_user": URLSafeTimedSerializer(secret, salt="_streamlit_user").dumps(json.dumps(content))}
