"""What the store holds of the generation of a run, at one iteration. No widgets."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from core.models.network_names import names_of
from core.reporting import Frame
from core.runs.records import Record
from core.runs.run import Run
from dashboard import session
from dashboard.charts import generation as generation_charts
from dashboard.tables import iterations
from dashboard.tables.terms import RESULT as TERMS
from dashboard.tables.terms import Term, loss_terms


def generation_finished(run: Run) -> bool:
    """Whether all images are generated, so that its images and curves no longer change."""
    return run.state.is_finished() or (
        run.stage != "generation" and session.store().result(run.id, f"generation/{run.config.methods[-1]}") is not None
    )


class GenerationHistory(NamedTuple):
    """Records, snapshots and live changes of the generation so far."""

    records: list[Record]
    kept: list[int]  # steps of which snapshots of every method exist
    newest: dict[str, Frame]  # method -> its newest images, all of the same step; in the first iteration not of every method
    changes: Sequence[Mapping[str, Any]]
    terms: Sequence[Term]

    @property
    def latest(self) -> int:
        """The newest step with images of all methods."""
        return next(iter(self.newest.values())).step

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Step and text of each live change."""
        return [(mark.step, mark.text) for mark in generation_charts.change_marks(self.changes)]


class ShownIteration(NamedTuple):
    """All methods at one step."""

    history: GenerationHistory
    frames: dict[str, Frame]
    records: dict[str, Record]  # method -> its record of that step
    label: str

    @property
    def step(self) -> int:
        """1-based, counted over all batches."""
        return next(iter(self.frames.values())).step


def history_of(run: Run) -> GenerationHistory | None:
    """None before the first images."""
    records = session.records(run, "generation")
    kept = iterations.common([session.store().frames.steps(run.id, method) for method in run.config.methods])
    newest = _newest(run, kept)
    if not newest or not records:
        return None
    terms = loss_terms({TERMS: session.store().result(run.id, TERMS)})
    return GenerationHistory(records, kept, newest, session.store().changes(run.id), terms)


def iteration_at(run: Run, history: GenerationHistory, at: int | None) -> ShownIteration:
    """The iteration at a step that has snapshots, or the newest if None."""
    frames = history.newest
    if at is not None:
        frames = {method: frame_at(run, method, at) or newest for method, newest in history.newest.items()}
    records = {method: record for method, frame in frames.items() if (record := iterations.record_at(history.records, method, frame.step))}
    return ShownIteration(history, frames, records, iterations.iteration_label(next(iter(frames.values())).step, run))


def has_newer_frame(run: Run) -> bool:
    """Whether some method is ahead of the others, so that the page shows older images of it."""
    frames = [frame_at(run, method, None) for method in run.config.methods]
    return len({frame.step for frame in frames if frame is not None}) > 1


def changed_images(run: Run, history: GenerationHistory) -> dict[str, Frame]:
    """Method -> its newest images, if a live change made them differ from the latest ones of all methods."""
    changed = {change["method"]: change["step"] for change in history.changes if change["step"] >= history.latest}
    frames = {method: frame_at(run, method, None) for method in changed}
    return {method: frame for method, frame in frames.items() if frame is not None and frame.step > changed[method]}


_together: OrderedDict[tuple[str, int], dict[str, Frame]] = OrderedDict()
_together_lock = threading.Lock()
_RUNS_KEPT = 8
_SECONDS_FOR_ALL = 1.0  # in which the first images of one method wait for those of the others, because each redraw slows the job


def _newest(run: Run, kept: Sequence[int]) -> dict[str, Frame]:
    """The newest images of each method, all of the same step, which is older while a method is ahead; only in the first iteration not of
    every method. Empty before.
    """
    methods, key = run.config.methods, (run.id, run.attempt)
    read = {method: frame_at(run, method, None) for method in methods}
    frames = {method: frame for method, frame in read.items() if frame is not None}
    with _together_lock:
        if len(frames) == len(methods) and len({frame.step for frame in frames.values()}) == 1:
            _together[key] = frames
            _together.move_to_end(key)
            while len(_together) > _RUNS_KEPT:
                _together.popitem(last=False)
            return frames
        if key in _together:
            return _together[key]
    # first call for this run, or the run stopped while a method was ahead
    common = {method: frame for method in methods if kept and (frame := frame_at(run, method, kept[-1])) is not None}
    if len(common) == len(methods):
        return common
    # in a slow first iteration, those that there are
    waited = any(time.time_ns() - session.store().frames.version(run.id, method) > _SECONDS_FOR_ALL * 1e9 for method in frames)
    return frames if waited and len(frames) < len(methods) and all(frame.step == 1 for frame in frames.values()) else {}


def frame_at(run: Run, method: str, step: int | None) -> Frame | None:
    """The images at a step that has snapshots, or the newest if None; read once for all viewers."""
    version = session.store().frames.version(run.id, method, step)
    return session.shared_cache(("frame", run.id, method, step, version), lambda: session.store().frames.read(run.id, method, step))


def names_for(run: Run, *frames: Frame) -> Sequence[str]:
    """Class names, enough for all labels and predictions of the frames."""
    labels = [label for frame in frames for of in (frame.labels, frame.predicted) if of is not None for label in of]
    return session.class_names(run, labels)


def layer_names(run: Run, count: int) -> Sequence[str]:
    """Names of the `count` BatchNorm layers of the run's network; numbered if unknown."""
    names = session.store().result(run.id, "layers") or names_of(run.config.model).layers
    return names if len(names) == count else [f"layer {index + 1}" for index in range(count)]


def layer_names_of(run: Run, shown: ShownIteration) -> Sequence[str]:
    """`layer_names` for the layers in the records."""
    return layer_names(run, len(shown.history.records[0].data["layers"]))
