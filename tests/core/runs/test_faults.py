"""Every file operation of a run fails once, and once for good: the run says so, nothing is half visible, and it can be resumed.

A small network and few steps, so that a run takes a moment and each of its operations can have its turn.
"""

import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import core.generation.snapshots
import core.pipeline
import core.quantization.saved_network
import core.runs.database
from core import layout
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.labelled import EvaluationSet
from core.errors import CoreError, RunError, RunStopped
from core.pipeline import Prepared
from core.reporting import NoControl
from core.runs.control import LocalControl
from core.runs.database import DATABASE, RESERVE
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.manager import RunManager
from core.runs.output_folder import export_results
from core.runs.state import RunState
from core.runs.store import RunStore

ROOT = Path(__file__).parents[3]
CONFIG = RunConfig(
    machine=MachineConfig(device="cpu", threads=1),
    # two batches, so that there is something made before the checkpoint; ranges that take no search
    generation=GenerationConfig(images=4, iterations=1, snapshots=1, batch_size=2),
    training=TrainingConfig(steps=2, training_batch_size=2, calibration_images=4, crop_padding=1, range="minmax", training_optimizer="sgd"),
    methods=("mi-fgsm",),
    bits=(4,),
    evaluation=EvaluationConfig(encoder=""),
)
STAGES = ("generation", "training", "test")  # that leave records
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Faults:
    """Counts the file operations of what is done in `watching`, and lets one of them fail, or all from one on.

    A commit that fails for want of room succeeds when the reserve has been given up, as on a real disk.
    """

    def __init__(self, monkeypatch) -> None:
        self.counted: Counter[str] = Counter()
        self.error: BaseException = FULL
        self.at: int | None = None
        self.for_good = False
        self.folder: Path | None = None
        self.failed: list[str] = []
        self._watching = False
        self._wrap(monkeypatch)

    def watch(self, folder: Path, at: int | None = None, error: BaseException = FULL, for_good: bool = False) -> None:
        self.counted.clear()
        self.failed.clear()
        self.folder, self.at, self.error, self.for_good, self._watching = folder, at, error, for_good, True

    def rest(self) -> None:
        self._watching = False

    def happens(self, kind: str, path=None) -> None:
        """One operation; raises where it is to fail. Only those below the folder of the runs count."""
        if not self._watching or (isinstance(path, (str, Path)) and not str(path).startswith(str(self.folder))):
            return
        self.counted[kind] += 1
        number = self.counted.total()
        if self.at is None or number < self.at or (number > self.at and not self.for_good):
            return
        if self.for_good and kind == "commit" and not (self.folder / RESERVE).exists():
            return
        self.failed.append(kind)
        raise self._in_words(kind)

    def _in_words(self, kind: str) -> BaseException:
        """As the library says it that does it."""
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
        self.happens("sync")  # and takes no time

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
                Path(path).write_bytes(b"\x40")  # the first bytes fitted
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
    """A file of which a write may fail when half of it is done."""

    def __init__(self, file, happens) -> None:
        self._file, self._happens = file, happens
        self._asked = False

    def write(self, data):
        if not self._asked:  # one operation a file, at its first write
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


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@pytest.fixture
def prepared(small):
    return prepared_with(small)


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
    """Everything under a final name can be read as what it is."""
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
            assert json.loads(path.read_text())
        elif path.suffix == ".pt":
            assert torch.load(path, weights_only=True)["part"]
        else:
            raise AssertionError(f"{path} is nothing that a run leaves")


def check_store(store, run_id) -> None:
    """The database is sound, and everything in it can be read."""
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


@pytest.fixture
def in_memory(tmp_path):
    """A folder that takes no time to write to, where the system has one: many short runs wait for nothing but the disk otherwise."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def undisturbed(in_memory, prepared, faults):
    """(operations, fingerprint, records) of a run in which nothing fails."""
    store = RunStore(in_memory / "undisturbed")
    faults.watch(store.folder)
    run_id = store.create(CONFIG, "")
    compute(store, run_id, prepared)
    faults.rest()
    records = [(record.stage, record.series, record.step) for stage in STAGES for record in store.records(run_id, stage)]
    found = faults.counted.copy(), fingerprint(store.run_folder(run_id)), records
    store.close()
    return found


def one_fault(folder, prepared, faults, undisturbed, at, error, for_good) -> str:
    """A run in which one operation fails, and everything that must hold afterwards. The kind of the operation."""
    store = RunStore(folder)
    run_id, raised = "", None
    faults.watch(store.folder, at, error, for_good)
    try:
        run_id = store.create(CONFIG, "")
        compute(store, run_id, prepared)
    except BaseException as failure:
        raised = failure
    faults.rest()
    about = f"operation {at} ({faults.failed[:1]}), {raised!r}"
    assert faults.failed, about
    kind = faults.failed[0]
    if not run_id:
        # refused at the start: there is no run, and none in the line
        assert isinstance(raised, (OSError, sqlite3.OperationalError)), about
        assert store.runs() == [], about
        store.close()
        return kind
    run = store.run(run_id)
    if raised is None:
        # what failed was not needed, or was tried again
        assert run.state is RunState.COMPLETE, about
    else:
        assert run.state is RunState.FAILED, about
        assert is_sentence(run.error), (about, run.error)
        assert "Traceback" in run.traceback, about
        if error is FULL:
            assert "full" in run.error, (about, run.error)
    check_files(store.run_folder(run_id))
    check_store(store, run_id)
    store.close()

    again = RunStore(folder)
    check_store(again, run_id)
    assert again.mark_interrupted() == []
    assert again.run(run_id).state is run.state
    if run.state is RunState.FAILED:
        again.resume(run_id)
        compute(again, run_id, prepared)
        assert again.run(run_id).state is RunState.COMPLETE, about
        assert again.run(run_id).error == ""
    operations, wanted, records = undisturbed
    assert fingerprint(again.run_folder(run_id)) == wanted, about
    assert [(record.stage, record.series, record.step) for stage in STAGES for record in again.records(run_id, stage)] == records, about
    assert list(folder.rglob("*.partial")) == [], about
    assert not (again.run_folder(run_id) / "checkpoint").exists(), about
    again.close()
    return kind


@pytest.mark.slow
def test_every_operation_on_a_full_disk(in_memory, prepared, faults, undisturbed):
    """From the n-th operation on, the disk has no room for anything but what the reserve gives."""
    operations, *_ = undisturbed
    kinds = {
        one_fault(in_memory / str(at), prepared, faults, undisturbed, at, FULL, for_good=True) for at in range(1, operations.total() + 1)
    }
    assert kinds == operations.keys() >= {"sync", "replace", "create", "write", "safetensors", "mkdir", "commit", "open", "chmod"}


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_single_operations_that_fail(in_memory, prepared, faults, undisturbed, code):
    """One operation fails, and the next succeeds; a sample, another one for each error."""
    operations, *_ = undisturbed
    error = FULL if code == errno.ENOSPC else OSError(code, os.strerror(code))
    for at in range(1 + code % 11, operations.total() + 1, 11):
        one_fault(in_memory / str(at), prepared, faults, undisturbed, at, error, for_good=False)


# where the word that the run failed cannot be written either


def test_end_is_written_when_there_is_room_again(tmp_path, monkeypatch, prepared, faults):
    """Not even the reserve helps: the manager tries until it can, and the run is FAILED with cause and traceback."""
    monkeypatch.setattr("core.runs.execution.SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr(core.pipeline, "prepare", lambda config, reporter: prepared)
    manager = RunManager(RunStore(tmp_path))
    happens = faults.happens
    blocked = []

    def nothing_fits(kind, path=None):
        if kind == "commit" and faults.counted["commit"] > 10 and len(blocked) < 8:
            blocked.append(kind)
            raise sqlite3.OperationalError("database or disk is full")
        happens(kind, path)

    monkeypatch.setattr(faults, "happens", nothing_fits)
    faults.watch(tmp_path)
    run_id = manager.start(CONFIG)
    manager.wait(run_id, 60)
    faults.rest()
    run = manager.store.run(run_id)
    assert len(blocked) == 8
    assert run.state is RunState.FAILED
    assert "full" in run.error
    assert "Traceback" in run.traceback
    manager.close()
    manager.store.close()


def test_database_that_may_not_grow(tmp_path, monkeypatch, prepared):
    """SQLite's own refusal, by its limit of pages."""
    store = RunStore(tmp_path)
    run_id = store.create(CONFIG, "")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        size = connection.execute("PRAGMA page_count").fetchone()[0]
    store.close()
    connect, limit = RunStore._connect, [size]

    def limited(self):
        connection = connect(self)
        connection.execute(f"PRAGMA max_page_count = {limit[0]}")
        return connection

    monkeypatch.setattr(RunStore, "_connect", limited)
    store = RunStore(tmp_path)
    store.mark_interrupted()
    store.resume(run_id)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        append_for_ever(store, run_id)
    check_store_at_all(store, run_id)
    kept = len(store.records(run_id, "generation"))
    assert kept == store.run(run_id).step
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.append(run_id, "generation", "mi-fgsm", 1, {"layers": [1.5] * 3000})
    # changing a row takes no new page
    store.set_state(run_id, RunState.FAILED, "the disk is full")
    assert store.run(run_id).error == "the disk is full"
    store.close()
    limit[0] = 1 << 20
    store = RunStore(tmp_path)
    assert len(store.records(run_id, "generation")) == kept
    store.resume(run_id)
    compute(store, run_id, prepared)
    assert store.run(run_id).state is RunState.COMPLETE
    check_store(store, run_id)
    store.close()


def append_for_ever(store, run_id) -> None:
    for step in itertools.count(1):
        store.append(run_id, "generation", "mi-fgsm", step, {"total": 0.5, "layers": [1.5] * 30})


def check_store_at_all(store, run_id) -> None:
    with closing(sqlite3.connect(store.folder / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert store.run(run_id).id == run_id


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB of its own, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root on Linux")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    finally:
        if subprocess.run(["umount", folder]).returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)
            raise AssertionError("a file of the disk was still open")


def fill(folder: Path, leave: int) -> None:
    """Someone else's file, until no more than so many bytes are free."""
    with (folder / "someone-else.bin").open("ab") as file:
        while (free := shutil.disk_usage(folder).free) > leave:
            file.write(bytes(min(free - leave, 1 << 16)))
            file.flush()


@pytest.mark.parametrize("leave", [0, 40_000, 150_000, 400_000])
def test_real_disk_that_fills_up(small_disk, monkeypatch, prepared, undisturbed, leave):
    """The run fails in words, what it stored stays readable, also for a new process, and with more room it goes on."""
    folder, enlarge = small_disk
    store = RunStore(folder / "runs")
    run_id = store.create(CONFIG, "")

    class Filling(StoreReporter):
        def record(self, stage, method, step, values):
            super().record(stage, method, step, {**values, "more": "x" * 20_000})
            if (stage, step) == ("generation", 1):
                fill(folder, leave)
            if stage == "training":
                fill(folder, 0)

    with pytest.raises((CoreError, OSError, sqlite3.Error, SafetensorError)):
        perform(store, run_id, Filling(store, run_id), NoControl(), prepared=prepared, every=0.0)
    run = store.run(run_id)
    assert run.state is RunState.FAILED
    assert str(store.folder) in run.error
    assert "full" in run.error
    assert is_sentence(run.error)
    assert "Traceback" in run.traceback
    # it stays full, and can be read, here and by another process
    fill(folder, 0)
    check_files(store.run_folder(run_id))
    check_store(store, run_id)
    stored = store.records(run_id, "generation")
    assert stored
    store.close()
    fill(folder, 0)
    store = RunStore(folder / "runs")
    assert store.mark_interrupted() == []
    assert store.run(run_id) == run
    assert store.records(run_id, "generation") == stored
    enlarge()
    store.resume(run_id)
    compute(store, run_id, prepared)
    assert store.run(run_id).state is RunState.COMPLETE
    assert (store.folder / RESERVE).stat().st_size == 1 << 20  # for the next time
    check_store(store, run_id)
    assert fingerprint(store.run_folder(run_id)) == undisturbed[1]
    store.close()


def test_interrupted_run_is_found_on_a_full_disk(small_disk, prepared):
    folder, _ = small_disk
    store = RunStore(folder / "runs")
    run_id = store.create(CONFIG, "")
    store.set_state(run_id, RunState.RUNNING)
    store.close()
    fill(folder, 0)
    store = RunStore(folder / "runs")
    assert store.mark_interrupted() == [run_id]
    assert store.run(run_id).state is RunState.INTERRUPTED
    store.close()


def test_copy_to_a_full_disk_names_that_disk(small_disk, tmp_path, prepared):
    folder, enlarge = small_disk
    fill(folder, 8192)
    store = RunStore(tmp_path / "runs")
    out = folder / "out"
    run_id = store.create(CONFIG, "", out=str(out))
    with pytest.raises(CoreError):
        compute(store, run_id, prepared, finish=lambda: export_results(store, store.run(run_id)))
    run = store.run(run_id)
    assert run.state is RunState.FAILED
    assert is_sentence(run.error)
    assert str(out) in run.error
    assert "No space left" in run.error
    assert [path.name for path in folder.iterdir()] == ["someone-else.bin"]
    enlarge()
    store.resume(run_id)
    compute(store, run_id, prepared, finish=lambda: export_results(store, store.run(run_id)))
    assert fingerprint(out) == fingerprint(store.run_folder(run_id))
    store.close()


# memory

ON_A_CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 67108864000 bytes. "
    "Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("error", [RuntimeError(ON_A_CPU), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")])
@pytest.mark.parametrize(("stage", "size", "advice"), [("generation", 64, 32), ("generation", 2, None), ("training", 48, 24)])
def test_memory_that_runs_out(tmp_path, monkeypatch, small, error, stage, size, advice):
    config = replace(
        CONFIG,
        generation=replace(CONFIG.generation, images=64, batch_size=size if stage == "generation" else 64),
        training=replace(CONFIG.training, training_batch_size=size),
    )
    step = "core.generation.loop.GenerationLoop.step" if stage == "generation" else "core.quantization.training.QuantizationTraining.step"

    def too_much(self):
        raise error

    monkeypatch.setattr(step, too_much)
    store = RunStore(tmp_path)
    run_id = store.create(config, "")
    with pytest.raises(CoreError):
        compute(store, run_id, prepared_with(small, config))
    run = store.run(run_id)
    assert run.state is RunState.FAILED
    assert is_sentence(run.error)
    assert f"memory ran out during the {stage}" in run.error
    knob = "batch_size" if stage == "generation" else "training_batch_size"
    assert f" with {knob} {size}: allowed is what fits" in run.error
    assert (f"try {advice}" in run.error) if advice else ("try" not in run.error)
    assert type(error).__name__ in run.traceback
    store.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux")
def test_real_memory_that_runs_out(tmp_path):
    """A process that may have little more than torch itself, and a batch that takes gigabytes."""
    code = f"""
import resource
from pathlib import Path
import core.pipeline
from core.config import GenerationConfig, MachineConfig, RunConfig
from core.runs.manager import RunManager
from core.runs.store import RunStore
generation = GenerationConfig(images=4096, batch_size=4096, snapshots=1, iterations=2)
machine = MachineConfig(threads=1, device="cpu")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), resource.RLIM_INFINITY))
manager = RunManager(RunStore(Path({str(tmp_path)!r})))
config = RunConfig(machine=machine, generation=generation, methods=("mi-fgsm",), bits=())
run_id = manager.start(config.with_knobs({{"encoder": ""}}))
manager.wait(run_id)
run = manager.store.run(run_id)
print(run.state, run.error, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    state, error = done.stdout.strip().splitlines()
    assert state == "failed", done.stderr
    assert "memory ran out during the generation with batch_size 4096" in error
    assert "try 2048" in error


# numbers that are none


def failed_with(tmp_path, prepared, config) -> str:
    store = RunStore(tmp_path)
    run_id = store.create(config, "")
    with pytest.raises(CoreError):
        compute(store, run_id, prepared)
    run = store.run(run_id)
    store.close()
    assert run.state is RunState.FAILED
    assert is_sentence(run.error)
    assert "Traceback" in run.traceback
    return run.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_poisoned_weight_in_the_middle(tmp_path, small, value):
    small.network.conv2.weight.data[3, 2, 1, 1] = value
    error = failed_with(tmp_path, prepared_with(small), CONFIG)
    assert re.search(r"loss is (nan|inf) at iteration 1 of the mi-fgsm method, first in bn2", error)


@pytest.mark.parametrize("method", ["minmax", "mse", "lsq"])
def test_poisoned_weight_and_given_images(tmp_path, small, small_images, method):
    config = replace(CONFIG, training=replace(CONFIG.training, range=method))
    small.network.conv2.weight.data[3, 2, 1, 1] = float("nan")
    given = replace(prepared_with(small, config), sets={"given": small_images})
    error = failed_with(tmp_path, given, config)
    assert "in the calibration of given W4A4, first in conv2" in error


@pytest.mark.parametrize(("method", "optimizer"), [("minmax", "sgd"), ("minmax", "adam"), ("lsq", "sgd"), ("lsq", "adam"), ("mse", "sgd")])
def test_training_that_explodes(tmp_path, monkeypatch, small, method, optimizer):
    """A step so long that the next has no numbers any more."""
    config = replace(CONFIG, training=replace(CONFIG.training, range=method, training_optimizer=optimizer, steps=6))
    training = core.pipeline.QuantizationTraining
    original = training.step

    def step(self):
        original(self)
        if self.step_count == 3:
            with torch.no_grad():
                for parameter in self.student.parameters():
                    parameter.mul_(1e38)

    monkeypatch.setattr(training, "step", step)
    error = failed_with(tmp_path, prepared_with(small, config), config)
    assert "at step 4 of mi-fgsm W4A4, first in " in error
    named = re.search(r"first in ([\w.]+):", error).group(1)
    assert named.split(".")[0] in ("conv1", "bn1", "relu", "activation_quantizer_0", "conv2", "bn2", "output")


def test_learning_rate_that_explodes(tmp_path, embedded):
    """The largest step that may be asked for, on the embedded network."""
    config = replace(CONFIG, training=replace(CONFIG.training, steps=8, training_batch_size=4, training_lr=1.0, alpha_feature=100.0))
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    prepared = Prepared(config, embedded, {}, EvaluationSet(images, [0, 1, 2, 3], "4 images", 32), None)
    store = RunStore(tmp_path)
    run_id = store.create(config, "")
    try:
        compute(store, run_id, prepared)
    except CoreError:
        run = store.run(run_id)
        assert run.state is RunState.FAILED
        assert re.search(r"(at|after) step \d of mi-fgsm W4A4", run.error)
    else:
        # it may also train to nonsense, but then in numbers
        for record in store.records(run_id, "training"):
            assert record.data["total"] - record.data["total"] == 0
    store.close()


# what else may go wrong


def test_stop_that_cannot_be_saved(tmp_path, prepared, faults):
    """A run that is stopped on a full disk says that it could not keep its state, and is resumed from the one before."""

    class Stops(NoControl):
        def pause_point(self):
            faults.watch(tmp_path, 1, FULL)
            raise RunStopped("enough")

    store = RunStore(tmp_path)
    run_id = store.create(CONFIG, "")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        perform(store, run_id, StoreReporter(store, run_id), Stops(), prepared=replace(prepared, evaluation_set=None), every=1e9)
    faults.rest()
    assert store.run(run_id).state is RunState.FAILED
    assert "full" in store.run(run_id).error
    store.close()


def test_thread_that_cannot_start(tmp_path, monkeypatch):
    """Such a run is FAILED and out of the line, and nobody waits behind it for ever."""
    manager = RunManager(RunStore(tmp_path))

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", start)
        with pytest.raises(RunError, match="cannot start without a thread .*resume it"):
            manager.start(CONFIG)
    (run,) = manager.store.runs()
    assert run.state is RunState.FAILED
    assert "can't start new thread" in run.error
    assert not manager.controls(run.id)
    manager.close()
    manager.store.close()
