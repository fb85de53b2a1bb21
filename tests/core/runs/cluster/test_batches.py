"""Batches on a real Ray cluster: the same shards as here whatever the number of workers, and a worker that dies costs its batch."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from background_runs import TINY, wait_until
from torch import nn

from core import pipeline
from core.errors import CoreError, RunStopped
from core.models.full_precision import load_model, save_checkpoint
from core.reporting import NoControl
from core.runs.cluster.connection import connect
from tests.core.recorded_runs import Recorder

pytestmark = pytest.mark.slow
CONFIG = replace(TINY, methods=("mi-fgsm",)).with_knobs({"images": 24, "snapshots": 2, "batch_size": 3, "iterations": 4, "shard_size": 5})
LONG = CONFIG.with_knobs({"iterations": 300})


def on_cluster(config, workers):
    from core.runs.cluster.batches import RayBatches

    connect()
    return RayBatches(config, workers)


def execute(config, folder, batches=None, control=None):
    """The result of a run without times, what it recorded, and its shards."""
    folder.mkdir(exist_ok=True)
    recorder = Recorder()
    result = pipeline.execute(config, folder, recorder, control or NoControl(), batches=batches, every=0)
    (figures,) = (one["generation"] for one in result["methods"].values())
    records = [(*one[:3], {name: value for name, value in one[3].items() if name != "seconds"}) for one in recorder.records]
    shards = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.tar"))}
    return {name: value for name, value in figures.items() if name != "seconds"}, records, shards


def workers_of_this_process() -> list[int]:
    """Processes below this one that compute a batch."""
    parents, found = {}, []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                parents[int(path.name)] = int((path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                if (path / "cmdline").read_bytes().startswith(b"ray::_compute"):
                    found.append(int(path.name))
            except OSError:
                continue

    def is_own(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return [pid for pid in found if is_own(pid)]


def with_weights(folder, scale=1.0):
    """The config with a weights file, whose first convolution is scaled."""
    model = load_model(CONFIG.model, "cpu")
    first = next(module for module in model.network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(scale)
    save_checkpoint(model.network, replace(model.spec, name="mine"), folder / "mine.safetensors")
    return replace(CONFIG, model=str(folder / "mine.safetensors"))


def test_the_same_shards_whatever_the_number_of_workers(cluster, tmp_path):
    """Of a weights file, which is sent."""
    config = with_weights(tmp_path)
    expected = execute(config, tmp_path / "here")
    assert len(expected[2]) == 5
    assert execute(config, tmp_path / "1", on_cluster(config, 1)) == expected
    cluster.add_node()
    try:
        assert execute(config, tmp_path / "3", on_cluster(config, 3)) == expected
    finally:
        cluster.remove_node()


def test_a_worker_that_dies_costs_its_batch(cluster, tmp_path):
    killed = []

    def kill() -> None:
        wait_until(workers_of_this_process, 240)
        killed.append(workers_of_this_process()[0])
        os.kill(killed[0], signal.SIGKILL)

    batches = on_cluster(LONG, 2)
    thread = threading.Thread(target=kill)
    thread.start()
    found = execute(LONG, tmp_path / "there", batches)
    thread.join()
    assert killed
    assert found == execute(LONG, tmp_path / "here")


def test_a_run_is_stopped_while_batches_are_computed_and_goes_on_here(cluster, tmp_path):
    class Stops(NoControl):
        def pause_point(self):
            if list((tmp_path / "parts").rglob("*.tar")):
                raise RunStopped("enough")

    with pytest.raises(RunStopped):
        execute(CONFIG, tmp_path / "parts", on_cluster(CONFIG, 1), Stops())
    wait_until(lambda: not workers_of_this_process())
    (_, _, found), (_, _, expected) = execute(CONFIG, tmp_path / "parts"), execute(CONFIG, tmp_path / "whole")
    assert found == expected


def test_the_error_of_a_batch_is_that_of_the_run(cluster, tmp_path):
    config = with_weights(tmp_path, 1e30)
    with pytest.raises(CoreError) as here:
        execute(config, tmp_path / "here")
    with pytest.raises(CoreError) as there:
        execute(config, tmp_path / "there", on_cluster(config, 1))
    assert str(there.value) == str(here.value)
    assert type(there.value) is type(here.value)
