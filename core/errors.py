"""The exceptions that the engine raises on purpose, all derived from CoreError, so that callers can tell them from bugs.

Every message is one sentence that names the wrong value and what is allowed; a few have lines to paste as well. The command line prints
it and exits with code 2, or 1 for a StoreError; the dashboard shows it next to the form.
"""

import re
import reprlib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

_MESSAGE = 8000  # characters; no message meant for a reader is longer
_VALUE = 200
_LISTED = 40  # names in a message; of more, only the most similar ones
_SIMILAR, _COMPARED = 5, 100  # how many of these; characters of the wrong name that are compared
# escape sequences (ECMA-48): colors and cursor movements, titles and links, others
_TERMINAL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-_])")


class _Shortened(reprlib.Repr):
    """repr() for untrusted values: always short, and never raises."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = _VALUE

    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)  # type: ignore[misc]
        except ValueError:  # Python refuses to print integers of more than 4,300 digits
            return f"a number of {value.bit_length():,} bits"


def quoted(value: object) -> str:
    """The repr() of any value for an error message, shortened to about 200 characters."""
    text = _Shortened().repr(value)
    return text if len(text) <= _VALUE + 2 else f"{text[: _VALUE - 30]} ... {text[-25:]}"


def one_line(text: str) -> str:
    """The text with line breaks and other non-printable characters escaped; the middle of a very long text is left out."""
    if len(text) > _MESSAGE:
        text = f"{text[: _MESSAGE - 500]} ... {text[-490:]}"
    return printable(text)


def printable(text: str) -> str:
    """The whole text with line breaks and other non-printable characters escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """First non-empty line of an error message, or the type of the error if there is none; messages of libraries can fill a page.

    Without colors: torch's exporter writes for a terminal.
    """
    return next((line.strip() for line in _TERMINAL.sub("", str(error)).splitlines() if line.strip()), type(error).__name__)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the one that caused it or was being handled, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


class CoreError(Exception):
    """Base class of all exceptions that core raises on purpose. The message is a single line, even if it quotes untrusted names.

    paste: lines of Python or of a shell that do what the message says to do instead, for the user to copy; usually none.
    """

    def __init__(self, message: str, paste: Iterable[str] = ()) -> None:
        super().__init__(one_line(message))
        self.paste = tuple(map(one_line, paste))


class ConfigError(CoreError, ValueError):
    """A knob has an invalid value; the message names the field, the value and the allowed values."""


class UnknownNameError(ConfigError):
    """A model, method, encoder, preset or other name does not exist; the message lists the allowed names, of many the most similar."""

    def __init__(self, kind: str, value: object, allowed: Iterable[object]) -> None:
        names = [str(name) for name in allowed]
        if len(names) <= _LISTED:
            super().__init__(f"unknown {kind} {quoted(value)}: must be {'one of ' if len(names) > 1 else ''}{', '.join(names)}")
            return
        similar = get_close_matches(quoted(value)[:_COMPARED], names, _SIMILAR, cutoff=0.0)
        super().__init__(f"unknown {kind} {quoted(value)}: must be one of {len(names)}, such as {', '.join(similar)}")


class DataError(CoreError):
    """A folder or file of images is missing, empty or does not fit the network."""


class ModelError(CoreError):
    """A network cannot be used, for example because it has no BatchNorm layer, or its weights are missing or do not fit."""


class EncoderError(CoreError):
    """A CLIP encoder cannot be loaded, for example because it is not downloaded and there is no network connection."""


class RunError(CoreError):
    """A run cannot do what was requested, such as resuming a run that has ended."""


class StoreError(CoreError):
    """The runs folder cannot be read or written now: its disk is full, it is read-only or gone, or another process locks its database.

    Nothing is wrong with what was asked for, and it works again when the folder does. The command line exits with code 1.
    """


class RunStopped(CoreError):
    """The user stopped the run; raised only between two iterations."""


class RunInterrupted(CoreError):
    """The place that computed a run, such as a node of a cluster, is gone. The run can be resumed."""
