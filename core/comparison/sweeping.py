"""Computes a sweep: its held-out images, then the runs of the points that its sampler proposes. For the command line and the server."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from core import layout
from core.comparison.cells import ACTIVE, resumable_run
from core.comparison.samplers import is_adaptive, make_sampler
from core.comparison.search_space import knobs_of, share_of
from core.comparison.sweep import Trial, held_out_config, rows
from core.comparison.sweeps import Sweep, complete, distinct, held_out_folder, keep, known, likely_points, measured, trials_of, with_points
from core.config import RunConfig
from core.errors import CoreError, RunError
from core.files import atomic_folder
from core.runs.execution import runs_at_once
from core.runs.manager import RunManager, default_name
from core.runs.run import NAME_CHARACTERS, Run
from core.runs.state import RunState
from core.runs.store import RunStore

_log = logging.getLogger(__name__)


def carry_out(
    store: RunStore,
    sweep: Sweep,
    make_images: Callable[[RunConfig], str],
    measure: Callable[[Sequence[Trial]], None],
    stopping: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Computes what is missing of a sweep, and returns it with the points proposed. It is stored before the first run, and as it grows.

    make_images: computes a run with this config and returns its id. measure: computes the runs of these trials.
    """
    sweep = prepared(store, sweep)
    folder = held_out_folder(store, sweep)
    if not folder.exists():
        run = make_images(held_out_config(sweep.start, sweep.seeds))
        _write_images(store.run_folder(run), folder)
        store.trash.delete(run)  # the images are kept, and nothing else is needed of it
    sampler = make_sampler(sweep.sampler, sweep.space, sweep.count, sweep.start.machine.seed)
    proposed: list[dict[str, Any]] = []
    # of a sweep that is continued, the sampler learns again from what was measured, and proposes the same points
    while not stopping() and (new := sampler.propose()):
        proposed += new
        sweep = with_points(sweep, proposed)
        keep(store, sweep)
        wanted = trials_of(store, sweep, new)
        measure(missing(store, wanted))
        sampler.tell(objectives(store, wanted, new))
    return sweep


def prepared(store: RunStore, sweep: Sweep) -> Sweep:
    """Stores a sweep with the points that are known before it starts, unless it is stored. Raises as `points` and `trials`."""
    found, likely = known(store, sweep), likely_points(sweep)
    found = replace(found, held_out=held_out_folder(store, found).name)
    trials_of(store, sweep, likely)  # what cannot be computed is refused before anything is
    found = found if is_adaptive(sweep.sampler) else with_points(found, likely)
    keep(store, found)
    return found


def objectives(store: RunStore, wanted: Sequence[Trial], of_points: Sequence[Mapping[str, Any]]) -> list[tuple[Any, float | None]]:
    """Each point with its mean agreement over methods, bit widths, and seeds; None for one that no run has measured."""
    table = rows(store, complete(measured(store, wanted)))
    found = [
        [value for row in table if (row.values, row.share) == (knobs_of(point), share_of(point)) for value in row.agreement]
        for point in of_points
    ]
    return [(point, mean(values) if values else None) for point, values in zip(of_points, found)]


def missing(store: RunStore, wanted: Sequence[Trial]) -> list[Trial]:
    """The trials that no run has measured or will measure, those that one run measures once."""
    return distinct([trial for trial, run in measured(store, wanted) if run is None or run.state not in (RunState.COMPLETE, *ACTIVE)])


def _write_images(run_folder: Path, folder: Path) -> None:
    """The images of a run as .png files in one folder, without labels."""
    from PIL import Image
    from safetensors.numpy import load_file

    images_folder = run_folder / layout.IMAGES
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        for method in layout.image_methods(images_folder):
            images: np.ndarray = load_file(images_folder / method / layout.IMAGES_FILE)["images"]
            for number, image in enumerate(images):
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                Image.fromarray(pixels).save(partial / f"{method}-{number:05d}.png")


def name_of(trial: Trial) -> str:
    """The name of the run of a trial: that of any run, and the values of the knobs that are swept."""
    values = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.values.items())
    return f"{default_name(trial.cell.config)}, {values}, seed {trial.cell.seed}"[:NAME_CHARACTERS]


class Sweeper:
    """Computes sweeps in the background with the runs of a manager, each in a thread of its own.

    On this machine, as many runs of a sweep are queued as can be computed at once, so that other runs have their turn in between; on a
    cluster, all of them. A sweep ends early when it is stopped or this process ends; `start` continues it.
    """

    def __init__(self, manager: RunManager) -> None:
        self._manager, self._store = manager, manager.store
        self._stops: dict[str, threading.Event] = {}  # of the sweeps that are being computed
        self._current: dict[str, set[str]] = {}  # sweep -> its runs that were started and have not ended
        self._errors: dict[str, str] = {}
        self._lock = threading.Lock()

    def start(self, sweep: Sweep) -> None:
        """Begins a sweep, or continues it. Does nothing for one that is being computed. Raises OSError, and CoreError for bad input."""
        with self._lock:
            if sweep.id in self._stops:
                return
            sweep = prepared(self._store, sweep)
            self._errors.pop(sweep.id, None)
            self._stops[sweep.id], self._current[sweep.id] = threading.Event(), set()
            threading.Thread(target=self._work, args=(sweep, self._stops[sweep.id]), name=f"sweep {sweep.id}", daemon=True).start()

    def computes(self, sweep_id: str) -> bool:
        """Whether the sweep is being computed here."""
        return sweep_id in self._stops

    def error(self, sweep_id: str) -> str:
        """Why the sweep ended early when it was last computed here; empty if it did not."""
        return self._errors.get(sweep_id, "")

    def stop(self, sweep_id: str) -> None:
        """Stops a sweep and its runs, which `start` resumes."""
        with self._lock:
            if sweep_id not in self._stops:
                return
            self._stops[sweep_id].set()
            for run_id in self._current[sweep_id]:
                if self._manager.controls(run_id):
                    self._manager.control(run_id).stop()

    def wait(self, sweep_id: str, timeout: float | None = None) -> None:
        """Blocks until the sweep is no longer computed here, or `timeout` seconds have passed."""
        for thread in threading.enumerate():
            if thread.name == f"sweep {sweep_id}":
                thread.join(timeout)

    def _work(self, sweep: Sweep, stop: threading.Event) -> None:
        try:
            carry_out(
                self._store, sweep, lambda config: self._images(sweep, config), lambda found: self._measure(sweep, found), stop.is_set
            )
        except CoreError as error:
            self._errors[sweep.id] = "" if stop.is_set() else str(error)
        except Exception as error:
            _log.exception("sweep %s ended early", sweep.id)
            self._errors[sweep.id] = f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                del self._stops[sweep.id], self._current[sweep.id]

    def _images(self, sweep: Sweep, config: RunConfig) -> str:
        run = self._ended(sweep, lambda: self._manager.start(config, "held-out images of a sweep", sweep.user, executor=sweep.executor))
        if run is None or run.state is not RunState.COMPLETE:
            raise RunError(f"the held-out images must be complete before the first point is measured: {run.error if run else 'stopped'}")
        return run.id

    def _measure(self, sweep: Sweep, wanted: Sequence[Trial]) -> None:
        waiting = deque(wanted)

        def work() -> None:
            while True:
                try:
                    trial = waiting.popleft()
                except IndexError:
                    return
                try:
                    self._ended(sweep, partial(self._begun, sweep, trial))
                except CoreError as error:  # such as a server that closes
                    waiting.clear()
                    self._errors[sweep.id] = str(error)

        together = len(waiting) if sweep.executor else runs_at_once()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(together, len(waiting)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _begun(self, sweep: Sweep, trial: Trial) -> str:
        if (earlier := resumable_run(self._store, trial.cell)) is not None:
            self._manager.resume(earlier.id)
            return earlier.id
        return self._manager.start(trial.cell.config, name_of(trial), sweep.user, executor=sweep.executor)

    def _ended(self, sweep: Sweep, begin: Callable[[], str]) -> Run | None:
        """The run that `begin` starts, when it has ended; None if the sweep is being stopped."""
        with self._lock:
            if self._stops[sweep.id].is_set():
                return None
            run_id = begin()
            self._current[sweep.id].add(run_id)
        self._manager.wait(run_id)
        with self._lock:
            self._current[sweep.id].discard(run_id)
        return self._store.run(run_id)
