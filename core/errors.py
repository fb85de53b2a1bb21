"""One tree of exceptions: everything the engine raises on purpose, so that a caller can tell it from a bug.

Every message is one sentence that names the value that was wrong and what is allowed instead; the command line prints it as it
is and exits with 2, the dashboard shows it beside the form.
"""

import reprlib

_MESSAGE = 8000  # characters, more than any that is meant to be read
_VALUE = 200


class _Shortened(reprlib.Repr):
    """repr for values from outside: never long, and never an error of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = _VALUE

    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)  # type: ignore[misc]
        except ValueError:  # Python writes no number of more than 4,300 digits
            return f"a number of {value.bit_length():,} bits"


def quoted(value: object) -> str:
    """A value in a message, as Python writes it and no longer than it takes to recognise it, whatever it is and holds."""
    text = _Shortened().repr(value)
    return text if len(text) <= _VALUE + 2 else f"{text[: _VALUE - 30]} ... {text[-25:]}"


def one_line(text: str) -> str:
    """Text without line breaks and other characters that act instead of showing, its middle left out where it is very long."""
    if len(text) > _MESSAGE:
        text = f"{text[: _MESSAGE - 500]} ... {text[-490:]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line: some go on for a page, some say nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class CoreError(Exception):
    """Base of everything that core raises on purpose. Its message is one line, whatever names from outside are in it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(CoreError, ValueError):
    """A knob has a value outside its range; the message names the field, the value and what is allowed."""


class UnknownNameError(ConfigError):
    """A name (model, optimizer, encoder, preset, range method) that does not exist; the message lists those that do."""

    def __init__(self, kind: str, value: object, allowed) -> None:
        super().__init__(f"unknown {kind} {quoted(value)}: allowed are {', '.join(str(name) for name in allowed)}")


class DataError(CoreError):
    """A folder or file of images is missing, empty or does not fit the network."""


class ModelError(CoreError):
    """The network cannot be used: it has no BatchNorm, or its weights are missing or do not fit."""


class EncoderError(CoreError):
    """A CLIP encoder cannot be loaded, for example because it would have to be downloaded and there is no network."""


class RunError(CoreError):
    """A run cannot do what was asked of it, such as resuming a run that has ended."""


class RunStopped(CoreError):
    """The person who watches asked the run to stop; raised between two iterations, never inside one."""
