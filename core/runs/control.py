"""What a person turns while a run works, from any thread: values of knobs, pause, one step, stop."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.config import GenerationConfig, live_knobs
from core.errors import RunStopped, UnknownNameError


class LocalControl:
    """A Control for one run. The engine calls `pause_point` and `values`; everyone else the other methods.

    on_pause: called with True when the engine has really come to rest, with False before it goes on (not for one step); may block.
    past: changes of a run that is resumed, as the store lists them. They are turned again at their iterations; a knob that is turned
    anew forgets what was to follow.
    """

    def __init__(self, on_pause: Callable[[bool], None] | None = None, past: Sequence[Mapping[str, Any]] = ()) -> None:
        self._past = ReplayControl(past)
        self._condition = threading.Condition()
        self._on_pause = on_pause or (lambda paused: None)
        self._paused = False
        self._stopped = False
        self._resting = False  # whether on_pause has heard of it; the engine's thread only
        self._steps = 0
        self._values: dict[str, dict[str, float]] = {}

    def set(self, name: str, value: float, methods: Sequence[str]) -> None:
        """A new value from the next iteration on, for these methods. Raises ConfigError for a value outside the knob's range."""
        if name not in live_knobs(GenerationConfig):
            raise UnknownNameError("live knob", name, live_knobs(GenerationConfig))
        GenerationConfig.check_value(name, value)
        with self._condition:
            for method in methods:
                self._values.setdefault(method, {})[name] = value

    def pause(self) -> None:
        """Comes to rest before the next iteration."""
        with self._condition:
            self._paused = True

    def resume(self) -> None:
        """Goes on."""
        with self._condition:
            self._paused, self._steps = False, 0
            self._condition.notify_all()

    def step(self) -> None:
        """One iteration (of every method), then rest again."""
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
        """Whether a pause has been asked for."""
        return self._paused

    @property
    def stopping(self) -> bool:
        """Whether a stop has been asked for."""
        return self._stopped

    def pause_point(self) -> None:
        """Between two iterations: blocks while paused. Raises RunStopped when stopped."""
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
            # without the lock: going on may have to wait for other runs, and one may pause or stop meanwhile
            self._on_pause(rest)

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """Current values of `method`, only those that were touched."""
        with self._condition:
            return {**self._past.values(method, step), **self._values.get(method, {})}


class ReplayControl:
    """A Control that turns again what was turned, at the same iterations.

    changes: those of an image set's manifest, which hold for every method, or those of a run, which say for which method they hold.
    """

    def __init__(self, changes: Sequence[Mapping[str, Any]]) -> None:
        self._changes = sorted(changes, key=lambda change: change["step"])

    def pause_point(self) -> None:
        """Never paused, never stopped."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """The values that held at `step`."""
        return {
            change["name"]: change["value"] for change in self._changes if change["step"] <= step and change.get("method", method) == method
        }
