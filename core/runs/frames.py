"""The image snapshots of a run, as .npz files in its folder."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core import layout
from core.files import atomic_write
from core.reporting import Frame, RunningStatistics


class Frames:
    """Frames of the runs below one folder: the latest of each method, and those of kept steps.

    **Durability.** A frame is for viewing, so nothing waits until it is on the disk: a power failure may lose those of the last minute.
    A file that it damaged reads as missing, although `steps` may still list it. A frame that is read while it is written is complete.

    **Threads.** Every method may be called from any thread and process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, run_id: str, method: str, frame: Frame, keep: bool) -> None:
        """Stores a frame as the latest of the method; keep: also permanently, under its step."""
        for step in (None, frame.step) if keep else (None,):
            _write_arrays(self._path(run_id, method, step), vars(frame))

    def read(self, run_id: str, method: str, step: int | None = None) -> Frame | None:
        """The frame kept for `step`, or the latest; None when there is none."""
        arrays = _read_arrays(self._path(run_id, method, step))
        if not arrays.keys() >= {"step", "images", "labels"}:
            return None
        return Frame(
            int(arrays["step"]),
            arrays["images"],
            arrays["labels"],
            **{name: arrays.get(name) for name in ("predicted", "confidence", "means", "variances")},
        )

    def version(self, run_id: str, method: str, step: int | None = None) -> int:
        """A number that changes whenever `read` would return something else; 0 when there is no frame."""
        try:
            return self._path(run_id, method, step).stat().st_mtime_ns
        except OSError:
            return 0

    def steps(self, run_id: str, method: str) -> list[int]:
        """The kept steps, ascending."""
        return sorted(int(path.stem) for path in self._kept(run_id, method))

    def rewind(self, run_id: str, method: str, step: int) -> None:
        """Deletes the kept frames of steps after `step`."""
        for path in self._kept(run_id, method):
            if int(path.stem) > step:
                path.unlink()

    def save_running_statistics(self, run_id: str, statistics: RunningStatistics) -> None:
        """Stores those of the run's network, which are the same for all methods."""
        _write_arrays(self._statistics_path(run_id), vars(statistics))

    def running_statistics(self, run_id: str) -> RunningStatistics | None:
        """The running statistics, which the batch statistics of the frames should match.

        None when the run has not recorded them yet, or was computed by a version that did not.
        """
        arrays = _read_arrays(self._statistics_path(run_id))
        if not arrays.keys() >= {"channels", "means", "variances"}:
            return None
        return RunningStatistics(arrays["channels"].tolist(), arrays["means"], arrays["variances"])

    def _kept(self, run_id: str, method: str) -> list[Path]:
        return list((self._folder / run_id / layout.FRAMES / method).glob("[0-9]*.npz"))

    def _path(self, run_id: str, method: str, step: int | None) -> Path:
        return self._folder / run_id / layout.FRAMES / method / ("latest.npz" if step is None else f"{step:08d}.npz")

    def _statistics_path(self, run_id: str) -> Path:
        return self._folder / run_id / layout.FRAMES / layout.RUNNING_STATISTICS


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file of the arrays that are not None: atomically for readers, but without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as partial, partial.open("wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `_write_arrays` wrote; empty when the file is missing, or damaged by a power failure."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return {}
