"""The saved state from which a run resumes after its process was killed.

Contract: a run is a sequence of named stages. `finish` stores the outcome of a finished stage, which is then never computed again. `save`
stores the state of the current stage; only the latest state is kept. Both write atomically and sync, so that at any time the folder
contains one consistent state, from which everything that follows is computed again with bit-identical results. `before` is called ahead
of each write: records that were reported before a state must be on disk before the state is.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import RunError, first_line
from core.files import atomic_write, remove_partials, write_json

DONE = "done.json"
STATE = "state.pt"
SECONDS_BETWEEN = 15.0
MOST_OF_THE_TIME = 0.02  # maximum share of the time spent on saving: large networks on slow disks are saved less often


class Checkpoints:
    """The saved state of one run, in its own folder, which is created by the first write.

    every: seconds between two saves of a state; 0 saves at every opportunity. Raises RunError if the folder cannot be read.

    `kernels` is stored with everything that is saved: which kernels the run computes with, empty if that does not matter.
    """

    def __init__(self, folder: Path, before: Callable[[], None] = lambda: None, every: float = SECONDS_BETWEEN) -> None:
        self.folder, self.every = folder, every
        self._before = before
        self._began = self._saved = time.monotonic()
        self._cost = 0.0
        self.kernels = ""
        self._earlier: float
        self._stages: dict[str, Any]
        remove_partials(folder)
        try:
            self._earlier, self._stages = 0.0, {}
            if (folder / DONE).exists():
                values = json.loads((folder / DONE).read_text(encoding="utf-8"))
                self._earlier, self._stages = float(values["seconds"]), dict(values["parts"])
                self.kernels = str(values.get("kernels", ""))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / DONE} must be a file written by a run, but cannot be read ({first_line(error)})") from error
        self._stage, self._state = self._load_state()

    def _load_state(self) -> tuple[str, dict[str, Any] | None]:
        path = self.folder / STATE
        if not path.exists():
            return "", None
        import torch

        try:
            # load to the CPU; the values are later copied into existing tensors
            values = torch.load(path, map_location="cpu", weights_only=True)
            self._earlier = max(self._earlier, values["seconds"])
            self.kernels = str(values.get("kernels", self.kernels))
            return values["part"], values["state"]
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise RunError(f"{path} must be a file written by a run, but cannot be read ({first_line(error)})") from error

    @property
    def seconds(self) -> float:
        """Computing time of the run in seconds, including the saved part of earlier attempts."""
        return self._earlier + time.monotonic() - self._began

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the run was computed and saved yet."""
        return not self._stages and not self._stage

    def outcome(self, stage: str) -> Any:
        """Outcome of a finished stage (JSON values); None if it is not finished."""
        return self._stages.get(stage)

    def state(self, stage: str) -> dict[str, Any] | None:
        """The saved state of an unfinished stage, or None. It is returned only once, because it may be large."""
        if stage != self._stage:
            return None
        state, self._state = self._state, None
        return state

    def due(self) -> bool:
        """Whether enough time has passed since the last save."""
        return not self.every or time.monotonic() - self._saved >= max(self.every, self._cost / MOST_OF_THE_TIME)

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Stores the state of a stage: nested tensors and plain values."""
        import torch

        began = time.monotonic()
        self._before()
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / STATE) as partial, partial.open("wb") as file:
            try:
                torch.save({"part": stage, "seconds": self.seconds, "kernels": self.kernels, "state": dict(state)}, file)
            except RuntimeError as error:
                # torch hides the error of the disk behind "unexpected pos"
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def finish(self, stage: str, outcome: Any) -> None:
        """Stores the outcome of a stage (JSON values), and removes its state."""
        self._before()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stages[stage] = outcome
        write_json(self.folder / DONE, {"seconds": self.seconds, "kernels": self.kernels, "parts": self._stages})
        # if the process is killed before this line, the state of a finished stage remains, but is never requested
        (self.folder / STATE).unlink(missing_ok=True)
