"""Batches of one method that are computed apart from each other, in any order and anywhere: the same bits as one after the other.

Every batch starts from noise of its own (`ImageSource.batches_are_independent`), and the live values that apply to it are known before it
begins. The loop of the run takes what they leave behind in the order of the batches (`GenerationLoop.take`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.config import GenerationConfig, MachineConfig
from core.generation.batches import Batch, Task
from core.generation.loop import GenerationLoop
from core.generation.methods import METHODS
from core.models.full_precision import FullPrecisionModel
from core.reporting import Frame, NullReporter


class _Made(NullReporter):
    """Keeps what a batch announces. last: its last step."""

    def __init__(self, last: int) -> None:
        self._last, self._step = last, 0
        self.records: list[Mapping[str, Any]] = []
        self.frames: list[Frame] = []

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        self._step = step
        self.records.append(values)

    def wants_images(self, method: str) -> bool:
        return self._step == self._last

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        self.frames.append(frame)


class _Values:
    """A Control with the live values of a task."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def pause_point(self) -> None:
        """Returns at once."""

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """Those before the batch, with the changes in it up to this step."""
        return {**self._task.values, **{change["name"]: change["value"] for change in self._task.changes if change["step"] <= step}}


class _BatchLoop(GenerationLoop):
    """The loop of one batch, whose images stay in memory."""

    def __init__(self, task: Task, model: FullPrecisionModel, config: GenerationConfig, method: str, machine: MachineConfig) -> None:
        self.made = _Made((task.index + 1) * config.iterations)
        super().__init__(model, config, method, machine, self.made, _Values(task))
        self.go_to_batch(task.index)
        self._values = dict(task.values)  # changes at its first step are made in that

    def batch(self, index: int) -> Batch:
        """All iterations."""
        for _ in range(self.config.iterations):
            self.step()
        saved = [(pixels.numpy(), labels.numpy()) for pixels, labels in self._saved]
        return Batch(
            index,
            saved,
            self._agreeing,
            self.made.records,
            self.made.frames,
            self.changes,
            self._values,
            self._scale,
            self._first,
            self._last,
            self.seconds,
            self._forward.kernels,
        )


def compute(task: Task, model: FullPrecisionModel, config: GenerationConfig, method: str, machine: MachineConfig) -> Batch:
    """Computes a batch. Raises as GenerationLoop does."""
    return _BatchLoop(task, model, config, method, machine).batch(task.index)


def are_independent(loop: GenerationLoop) -> bool:
    """Whether the batches of a loop can be computed apart. References are made faster than they are sent."""
    return loop.source.batches_are_independent and not METHODS[loop.method].is_reference


def tasks(loop: GenerationLoop) -> Iterator[Task]:
    """The batches that are left, from the one that the loop is about to begin; each has the live values of the moment when it is taken."""
    iterations, values = loop.config.iterations, loop.values
    for index in range(loop.step_count // iterations, len(loop.config.batches)):
        before, changes = dict(values), []
        for step in range(index * iterations, (index + 1) * iterations):
            for name, value in loop.control.values(loop.method, step).items():
                if name in values and value != values[name]:
                    values[name] = GenerationConfig.check_value(name, value)
                    changes.append({"step": step, "name": name, "value": value})
        yield Task(index, before, changes)
