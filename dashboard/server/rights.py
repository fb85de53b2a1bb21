"""Who may act on a run or a sweep: where users log in, its owner and the admins; elsewhere everyone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from core.errors import RunError
from dashboard.server import access, logins, settings


class Owned(Protocol):
    """A run or a sweep. user: who started it; empty: the command line, or a server without logins."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def user(self) -> str:
        """Name of the user, or ""."""


def objection(run: Owned) -> str:
    """Why the current user may not pause, stop, resume, change or delete the run, in one sentence; "" if they may.

    A run without an owner was started on the command line or before there were logins: it belongs to the admins, or if none are named,
    to everyone who is logged in.
    """
    if not settings.have_logins():
        return ""
    login = access.current_login()
    if login is None:
        return "Log in first."
    admins = settings.entries(settings.ADMINS_VARIABLE)
    if login.name == run.user or logins.is_listed(login, admins) or (not run.user and not admins):
        return ""
    return f"Only {run.user or 'an admin'} can do this." if not (run.user and admins) else f"Only {run.user} or an admin can do this."


def require(runs: Iterable[Owned]) -> None:
    """Raises RunError unless the current user may act on all these runs. To be called where the action is done: a widget can be forged."""
    for run in runs:
        if problem := objection(run):
            raise RunError(f"run {run.name!r}: {problem}")


def user() -> str:
    """Name of the user who starts a run; "" if there are no logins. Raises RunError if the login has ended."""
    if settings.have_logins() and access.current_login() is None:
        raise RunError("the login has ended: log in again to start runs")
    return access.user()
