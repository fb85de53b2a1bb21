"""What a run needs to go on after its process was killed.

Contract. A run is a sequence of parts, each with a name. `finish` writes down what a finished part came to, and it is never computed
again; `save` writes down the state of the part that is going on, of which only the latest is kept. Both write whole files, synced;
whatever the moment of death, the folder holds one consistent point from which everything that follows is computed again, to the
same bits. `before` is called ahead of each write: what was announced to others must be on disk before a state that has it behind it.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import RunError, first_line
from core.files import atomic_write, remove, remove_partials, write_json

DONE = "done.json"
STATE = "state.pt"
SECONDS_BETWEEN = 15.0
MOST_OF_THE_TIME = 0.02  # that saving may take: a large network on a slow disk is saved less often


class Checkpoints:
    """The checkpoints of one run, in a folder of their own, which is made at the first write.

    every: seconds between two saves of a state; 0 saves at every opportunity. Raises RunError for a folder that cannot be read.
    """

    def __init__(self, folder: Path, before: Callable[[], None] = lambda: None, every: float = SECONDS_BETWEEN) -> None:
        self.folder, self.every = folder, every
        self._before = before
        self._began = self._saved = time.monotonic()
        self._cost = 0.0
        self._earlier: float
        self._parts: dict[str, Any]
        remove_partials(folder)
        try:
            self._earlier, self._parts = 0.0, {}
            if (folder / DONE).exists():
                values = json.loads((folder / DONE).read_text())
                self._earlier, self._parts = float(values["seconds"]), dict(values["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / DONE} cannot be read ({first_line(error)}): allowed is a file written by a run") from error
        self._part, self._state = self._load_state()

    def _load_state(self) -> tuple[str, dict[str, Any] | None]:
        path = self.folder / STATE
        if not path.exists():
            return "", None
        import torch

        try:
            # onto the CPU: where it is needed, it is copied into what is there
            values = torch.load(path, map_location="cpu", weights_only=True)
            self._earlier = max(self._earlier, values["seconds"])
            return values["part"], values["state"]
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise RunError(f"{path} cannot be read ({first_line(error)}): allowed is a checkpoint written by a run") from error

    @property
    def seconds(self) -> float:
        """How long the run has worked, all its attempts together, as far as they were saved."""
        return self._earlier + time.monotonic() - self._began

    def outcome(self, part: str) -> Any:
        """What a finished part came to, plain values; None when it is not finished."""
        return self._parts.get(part)

    def state(self, part: str) -> dict[str, Any] | None:
        """The saved state of a part that was going on; None when there is none. Handed out once, as it may be large."""
        if part != self._part:
            return None
        state, self._state = self._state, None
        return state

    def due(self) -> bool:
        """Whether enough time has passed since the last save."""
        return not self.every or time.monotonic() - self._saved >= max(self.every, self._cost / MOST_OF_THE_TIME)

    def save(self, part: str, state: Mapping[str, Any]) -> None:
        """Keeps the state of a part: tensors and plain values, nested."""
        import torch

        began = time.monotonic()
        self._before()
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / STATE) as partial, partial.open("wb") as file:
            try:
                torch.save({"part": part, "seconds": self.seconds, "state": dict(state)}, file)
            except RuntimeError as error:
                # torch hides what the disk said behind "unexpected pos"
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def finish(self, part: str, outcome: Any) -> None:
        """Keeps what a part came to, fit for JSON; its state is not needed any more."""
        self._before()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._parts[part] = outcome
        write_json(self.folder / DONE, {"seconds": self.seconds, "parts": self._parts})
        # a death before this leaves the state of a finished part behind, which nobody asks for
        (self.folder / STATE).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes everything, as the run is complete."""
        remove(self.folder)
