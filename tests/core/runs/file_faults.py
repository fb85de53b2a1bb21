"""Makes file operations fail, and checks the files and the database of a run."""

import errno
import hashlib
import io
import json
import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import core.generation.snapshots
import core.quantization.saved_network
import core.runs.database
from core import layout
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labeled import EvaluationSet
from core.pipeline import Prepared
from core.runs.control import LocalControl
from core.runs.database import DATABASE, RESERVE
from core.runs.events import StoreReporter
from core.runs.execution import perform

CONFIG = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    # two batches, so that images exist before the resume state; a range method without a search
    generation=GenerationConfig(images=4, iterations=1, snapshots=1, batch_size=2),
    training=TrainingConfig(steps=2, training_batch_size=2, calibration_images=4, crop_padding=1, range="minmax", training_optimizer="sgd"),
    methods=("mi-fgsm",),
    bits=(4,),
    evaluation=EvaluationConfig(encoder=""),
)


STAGES = ("generation", "training", "test")  # stages with records


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Faults:
    """Counts the file operations between `watch` and `rest`, and makes operation `at` fail, or all from `at` on.

    A commit that fails on a full disk succeeds once the reserve is deleted, as on a real disk.
    """

    def __init__(self, monkeypatch) -> None:
        self.counted: Counter[str] = Counter()
        self.first: dict[str, int] = {}  # number of the first operation of each kind
        self.error: BaseException = FULL
        self.at: int | None = None
        self.for_good = False
        self.folder: Path | None = None
        self.failed: list[str] = []
        self._watching = False
        self._wrap(monkeypatch)

    def watch(self, folder: Path, at: int | None = None, error: BaseException = FULL, for_good: bool = False) -> None:
        self.counted.clear()
        self.first.clear()
        self.failed.clear()
        self.folder, self.at, self.error, self.for_good, self._watching = folder, at, error, for_good, True

    def rest(self) -> None:
        self._watching = False

    def happens(self, kind: str, path=None) -> None:
        """Counts one operation, unless its path is outside the runs folder. Raises if it should fail."""
        if not self._watching or (isinstance(path, (str, Path)) and not str(path).startswith(str(self.folder))):
            return
        self.counted[kind] += 1
        number = self.counted.total()
        self.first.setdefault(kind, number)
        if self.at is None or number < self.at or (number > self.at and not self.for_good):
            return
        if self.for_good and kind == "commit" and not (self.folder / RESERVE).exists():
            return
        self.failed.append(kind)
        raise self._error_of(kind)

    def _error_of(self, kind: str) -> BaseException:
        """The error as the library that does the operation raises it."""
        if kind == "commit":
            text = "database or disk is full" if self.error is FULL else "disk I/O error"
            return sqlite3.OperationalError(text)
        if kind == "safetensors":
            return SafetensorError(f"Error while serializing: I/O error: {self.error.strerror} (os error {self.error.errno})")
        return self.error

    def _wrap(self, monkeypatch) -> None:
        def wrapped(kind, original, target=0):
            def call(*arguments, **keywords):
                self.happens(kind, arguments[target])
                return original(*arguments, **keywords)

            return call

        for name in ("replace", "rename", "mkdir", "rmdir", "chmod"):
            monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._sync)
        monkeypatch.setattr(os, "open", wrapped("open", os.open))
        monkeypatch.setattr(io, "open", self._open(io.open))
        for module in (core.generation.snapshots, core.quantization.saved_network):
            monkeypatch.setattr(module, "save_file", self._save_file(module.save_file))
        monkeypatch.setattr(core.runs.database.sqlite3, "connect", self._connect(sqlite3.connect))

    def _sync(self, _handle) -> None:
        self.happens("sync")  # without waiting for the disk

    def _open(self, original):
        def opened(file, mode="r", *arguments, **keywords):
            if "w" not in mode:
                return original(file, mode, *arguments, **keywords)
            self.happens("create", file)
            return Written(original(file, mode, *arguments, **keywords), lambda: self.happens("write", file))

        return opened

    def _save_file(self, original):
        def save(tensors, path, **keywords):
            try:
                self.happens("safetensors", path)
            except SafetensorError:
                Path(path).write_bytes(b"\x40")  # the first bytes were written
                raise
            original(tensors, path, **keywords)

        return save

    def _connect(self, original):
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, statement, *values):
                if statement.startswith("PRAGMA synchronous"):
                    statement = "PRAGMA synchronous = OFF"
                if statement == "COMMIT":
                    faults.happens("commit")
                return super().execute(statement, *values)

        return lambda *arguments, **keywords: original(*arguments, factory=Connection, **keywords)


class Written:
    """A file whose write may fail halfway."""

    def __init__(self, file, happens) -> None:
        self._file, self._happens = file, happens
        self._asked = False

    def write(self, data):
        if not self._asked:  # counts as one operation per file, at the first write
            self._asked = True
            try:
                self._happens()
            except OSError:
                self._file.write(data[: len(data) // 2])
                raise
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def prepared_with(model, config=CONFIG) -> Prepared:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Prepared(config, model, {}, EvaluationSet(images, [0, 1, 2, 3], "4 images", 8), None)


def compute(store, run_id, prepared, **options):
    control = LocalControl(past=store.changes(run_id))
    return perform(store, run_id, StoreReporter(store, run_id), control, prepared=prepared, every=0.0, **options)


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def check_files(folder: Path) -> None:
    """Every file under its final name can be read."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.endswith(".partial") or path.name == RESERVE:
            continue
        if path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                assert len(file["means"]) == 16, path  # channels of the small network's two layers
                assert path.name == layout.RUNNING_STATISTICS or file["images"].ndim == 4
        elif path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".pt":
            assert torch.load(path, weights_only=True)["part"]
        else:
            raise AssertionError(f"{path} is not a file of a run")


def check_store(store, run_id) -> None:
    """The database is consistent and can be read completely."""
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert [run.id for run in store.runs()] == [run_id]
    for stage in ("generation", "training"):
        methods: dict[str, list[int]] = {}
        for record in store.records(run_id, stage):
            methods.setdefault(record.series, []).append(record.step)
        for steps in methods.values():
            assert steps == list(range(1, len(steps) + 1))
    store.changes(run_id)
    store.results(run_id)


def is_sentence(text: str) -> bool:
    return bool(text) and "\n" not in text and len(text) < 400
