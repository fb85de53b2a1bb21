"""Pausing, stepping, stopping and changing a run from any thread while it works."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.config import GenerationConfig, live_knobs
from core.errors import RunStopped, UnknownNameError


class LocalControl:
    """A Control for one run in this process. The engine calls `pause_point` and `values`; the other methods are for everyone else.

    on_pause: called with True when the engine has actually paused, and with False before it continues (but not for a single step); it
    may block. past: the live changes of a run that is resumed, as the store lists them. They are applied again at their iterations. A
    knob that is set again ignores its remaining past changes.
    """

    def __init__(self, on_pause: Callable[[bool], None] | None = None, past: Sequence[Mapping[str, Any]] = ()) -> None:
        self._past = ReplayControl(past)
        self._condition = threading.Condition()
        self._on_pause = on_pause or (lambda paused: None)
        self._paused = False
        self._stopped = False
        self._resting = False  # whether on_pause was called with True; used by the engine's thread only
        self._steps = 0
        self._values: dict[str, dict[str, float]] = {}

    def set(self, name: str, value: float, methods: Sequence[str]) -> None:
        """A new value of a live knob from the next iteration on, for these methods.

        Raises ConfigError for a value outside the knob's range, and UnknownNameError for a name that is not a live knob.
        """
        if name not in live_knobs(GenerationConfig):
            raise UnknownNameError("live knob", name, live_knobs(GenerationConfig))
        GenerationConfig.check_value(name, value)
        with self._condition:
            for method in methods:
                self._values.setdefault(method, {})[name] = value

    def pause(self) -> None:
        """Pauses before the next iteration."""
        with self._condition:
            self._paused = True

    def resume(self) -> None:
        """Continues, and discards steps that were not taken yet."""
        with self._condition:
            self._paused, self._steps = False, 0
            self._condition.notify_all()

    def step(self) -> None:
        """Computes one iteration of every method, then pauses."""
        with self._condition:
            self._paused = True
            self._steps += 1
            self._condition.notify_all()

    def stop(self) -> None:
        """Ends the run before the next iteration."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    @property
    def paused(self) -> bool:
        """Whether a pause was requested."""
        return self._paused

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested."""
        return self._stopped

    def pause_point(self) -> None:
        """Blocks while the run is paused. Raises RunStopped when it was stopped."""
        while True:
            with self._condition:
                if self._resting:
                    self._condition.wait_for(lambda: not self._paused or self._steps or self._stopped)
                if self._stopped:
                    raise RunStopped("the run was stopped")
                if self._steps:
                    self._steps -= 1
                    return
                rest = self._paused
                if not rest and not self._resting:
                    return
                self._resting = rest
            # without the lock: continuing may have to wait for other runs, and the run may be paused or stopped meanwhile
            self._on_pause(rest)

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """The live values of `method` at `step`, by knob; knobs that were not changed are absent."""
        with self._condition:
            return {**self._past.values(method, step), **self._values.get(method, {})}


class ReplayControl:
    """A Control that applies recorded changes again at the same iterations. It never pauses or stops.

    changes: {"step", "name", "value"} each, for all methods, as in the manifest of an image set; or with a "method", as in a stored run.
    """

    def __init__(self, changes: Sequence[Mapping[str, Any]]) -> None:
        self._changes = sorted(changes, key=lambda change: change["step"])

    def pause_point(self) -> None:
        """Returns at once."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """The values that applied at `step`."""
        return {
            change["name"]: change["value"] for change in self._changes if change["step"] <= step and change.get("method", method) == method
        }
