"""One tree of exceptions: everything the engine raises on purpose, so that a caller can tell it from a bug.

Every message is one sentence that names the value that was wrong and what is allowed instead; the command line prints it as it
is and exits with 2, the dashboard shows it beside the form.
"""


class CoreError(Exception):
    """Base of everything that core raises on purpose."""


class ConfigError(CoreError, ValueError):
    """A knob has a value outside its range; the message names the field, the value and what is allowed."""


class UnknownNameError(ConfigError):
    """A name (model, optimizer, encoder, preset, range method) that does not exist; the message lists those that do."""

    def __init__(self, kind: str, value: object, allowed) -> None:
        super().__init__(f"unknown {kind} {value!r}: allowed are {', '.join(str(name) for name in allowed)}")


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
