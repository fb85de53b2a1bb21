"""Progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from core.reporting import TEST, WARNING, Control, NoControl, NullReporter


class Progress(NullReporter):
    """A Reporter that draws one bar per stage on stderr, and a Control that replays the changes made before the run was interrupted.

    A bar appears when its stage begins to compute, at its first pause point or step: an error before that is the only line.
    """

    def __init__(self) -> None:
        self._name, self._total, self._done = "", 0, 0
        self._bar: Any = None
        self.control: Control = NoControl()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Prepares a new bar; without a total it only counts."""
        self._close()
        self._name, self._total, self._done = name, total, done

    def wait(self, before: int) -> None:
        """Says that other runs are computed first."""
        print(f"waiting for {before} run{'s' if before > 1 else ''} before this one", file=sys.stderr)

    def resumed(self, run_id: str) -> None:
        """Says that an earlier run is continued."""
        print(f"resuming run {run_id}, which was interrupted", file=sys.stderr)

    def _drawn(self) -> Any:
        if self._bar is None:
            from tqdm import tqdm

            layout = None if self._total else "{desc} {elapsed}"
            self._bar = tqdm(
                total=self._total or None, initial=self._done, desc=self._name, file=sys.stderr, unit="step", bar_format=layout
            )
        return self._bar

    def pause_point(self) -> None:
        """Draws the bar, then pauses or stops where that was asked for."""
        if self._name:
            self._drawn().update(0)
        self.control.pause_point()

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """The live values that were set before the run was interrupted."""
        return self.control.values(method, step)

    def count(self, step: int, steps: int, loss: float) -> None:
        """One step of a recipe."""
        if self._total != steps:
            self.stage(self._name, steps)
        bar = self._drawn()
        bar.update(step - bar.n)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def result(self, name: str, value: Any) -> None:
        """Prints warnings."""
        if name.startswith(f"{WARNING}/"):
            self.warn([value])

    def warn(self, sentences: Iterable[str]) -> None:
        """Prints sentences about what may be unexpected."""
        for sentence in sentences:
            self._close()
            print(f"warning: {sentence}", file=sys.stderr)

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """One step; accuracy checks are not steps."""
        if stage == TEST:
            return
        self._drawn().update(1)
        self._drawn().set_postfix({series: f"{values['total']:.1f}"}, refresh=False)
