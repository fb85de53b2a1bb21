"""Asks the Hugging Face Hub once whether it answers. Its client asks again for most of a minute, which is long for a machine offline."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import first_line

SECONDS = 10.0  # for the answer, with the look-up of the address
_lock = threading.Lock()  # the client has one switch for all threads
_FAILING = (429, 500)  # status: too many requests; from here on, errors of a server or a proxy


@contextmanager
def hub_asked_once() -> Iterator[None]:
    """In the block, downloads from the hub are taken from its cache if the hub does not answer.

    Raises ConnectionError instead of what the block raises then.
    """
    from huggingface_hub import constants

    problem = "" if constants.HF_HUB_OFFLINE else _problem(constants.ENDPOINT)
    if not problem:
        yield
        return
    with _lock:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        except Exception as error:
            raise ConnectionError(f"{constants.ENDPOINT} does not answer: {problem}") from error
        finally:
            constants.HF_HUB_OFFLINE = before


def _problem(address: str) -> str:
    """Why the hub does not answer; empty if it does."""
    found = [f"no answer within {SECONDS:g} seconds"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS):
                found.append("")
        except urllib.error.HTTPError as error:
            found.append(f"status {error.code}" if error.code == _FAILING[0] or error.code >= _FAILING[1] else "")
        except (OSError, ValueError) as error:
            found.append(first_line(getattr(error, "reason", None) or error))

    # the time limit of a socket does not hold for the look-up of the address
    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[-1]
