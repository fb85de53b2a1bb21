"""Runs on a real Ray cluster: the same records and bits as here, controls, and workers and nodes that vanish."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from background_runs import LONG, TINY, is_in, running, wait_until
from PIL import Image

from core import layout
from core.config import EvaluationConfig, TrainingConfig
from core.models.full_precision import save_checkpoint
from core.models.registry import CIFAR10_CLASSES
from core.runs.state import RunState

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]
MIDDLE = replace(TINY, generation=replace(TINY.generation, images=4, iterations=60), methods=("adam",))


def records(manager, run_id) -> list:
    """All records without times, in their order."""
    with manager.store.database.read() as connection:
        stages = [row["stage"] for row in connection.execute("SELECT DISTINCT stage FROM record WHERE run = ?", (run_id,))]
    return [
        (stage, record.series, record.step, {name: value for name, value in record.data.items() if name != "seconds"})
        for stage in sorted(stages)
        for record in manager.store.records(run_id, stage)
    ]


def without_times(values):
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if not name.endswith("seconds")}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def results(manager, run_id) -> dict:
    return without_times({name: value for name, value in manager.store.results(run_id).items() if name != "cluster"})


def tensors(manager, run_id) -> dict[str, bytes]:
    folder = manager.store.run_folder(run_id)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def files(manager, run_id) -> list[str]:
    folder = manager.store.run_folder(run_id)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if layout.FRAMES not in path.parts)


def equal(one, its, other, others) -> None:
    assert records(one, its) == records(other, others)
    assert results(one, its) == results(other, others)
    assert tensors(one, its) == tensors(other, others)
    assert files(one, its) == files(other, others)


def ended(manager, run_id):
    """The run when it is finished. The first worker of a cluster takes long to start on a busy machine."""
    wait_until(lambda: manager.store.run(run_id).state.is_finished(), 240)
    return manager.store.run(run_id)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with two random images per CIFAR-10 class."""
    generator = torch.Generator().manual_seed(1)
    for name in CIFAR10_CLASSES:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(2):
            image = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(image).save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path / "pictures"


def complete(manager, config) -> str:
    run_id = manager.start(config)
    run = ended(manager, run_id)
    assert run.state is RunState.COMPLETE, run.error + run.traceback
    manager.wait(run_id)
    return run_id


def test_a_run_on_a_node_has_the_records_results_and_bits_of_one_here(on_cluster, here, pictures, embedded, tmp_path):
    """With a weights file and evaluation images that the node does not have."""
    save_checkpoint(embedded.network, replace(embedded.spec, name="mine"), tmp_path / "mine.safetensors")
    training = TrainingConfig(range="minmax", steps=3, training_batch_size=4, calibration_images=8)
    config = replace(
        TINY,
        model=str(tmp_path / "mine.safetensors"),
        training=training,
        bits=(4,),
        evaluation=EvaluationConfig(data=str(pictures), encoder="embedded"),
    )
    its, others = complete(on_cluster, config), complete(here, config)
    equal(on_cluster, its, here, others)
    known = on_cluster.store.result(its, "accuracy/adam/W4A4")
    assert str(pictures) in known["evaluated_on"]
    assert on_cluster.store.result(its, "cluster") == {"nodes": ["127.0.0.2"]}
    assert on_cluster.store.frames.read(its, "adam").step == here.store.frames.read(others, "adam").step
    # given images are sent too
    again = replace(config, images_from=str(here.store.run_folder(others) / layout.IMAGES))
    equal(on_cluster, complete(on_cluster, again), here, complete(here, again))


def test_controls_reach_the_node(on_cluster):
    run_id = on_cluster.start(LONG)
    control = on_cluster.control(run_id)
    control.pause()  # before a worker has the run
    wait_until(is_in(on_cluster, run_id, RunState.PAUSED))

    def count() -> int:
        return len(on_cluster.store.records(run_id, "generation"))

    before = count()
    control.step()
    wait_until(lambda: count() == before + 2)  # one iteration of each method
    control.set("epsilon", 0.25, ["mi-fgsm"])
    control.resume()
    wait_until(lambda: is_in(on_cluster, run_id, RunState.RUNNING)() and count() > before + 10)
    assert [(c["method"], c["name"], c["value"]) for c in on_cluster.store.changes(run_id)] == [("mi-fgsm", "epsilon", 0.25)]
    control.stop()
    assert ended(on_cluster, run_id).state is RunState.STOPPED
    assert (on_cluster.store.run_folder(run_id) / layout.CHECKPOINT).exists()


def pid_of_worker() -> int:
    """The process that computes a run on the cluster."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                if (path / "cmdline").read_bytes().startswith(b"ray::NodeRun"):
                    found.append(int(path.name))
            except OSError:
                continue
    assert len(found) == 1
    return found[0]


def halfway(manager, run_id) -> bool:
    """Whether the run has a resume state and is not near its end."""
    return (manager.store.run_folder(run_id) / layout.CHECKPOINT / "state.pt").exists() and manager.store.run(run_id).step >= 20


def test_a_run_whose_worker_is_killed_ends_with_the_same_bits(on_cluster, here, often):
    run_id = on_cluster.start(MIDDLE)
    wait_until(lambda: on_cluster.store.run(run_id).step >= 5)
    on_cluster.control(run_id).set("lr", 0.2, ["adam"])
    wait_until(lambda: on_cluster.store.changes(run_id) and halfway(on_cluster, run_id))
    os.kill(pid_of_worker(), signal.SIGKILL)
    run = ended(on_cluster, run_id)
    assert run.state is RunState.COMPLETE, run.error + run.traceback
    assert run.attempt == 1
    warning = on_cluster.store.result(run_id, "warning/cluster 1")
    assert warning.startswith("The worker on node 127.0.0.2 has died at step ")
    assert "retry 1 of 3" in warning
    (change,) = on_cluster.store.changes(run_id)
    other = here.start(MIDDLE, changes=[change])
    assert ended(here, other).state is RunState.COMPLETE
    assert records(on_cluster, run_id) == records(here, other)
    assert tensors(on_cluster, run_id) == tensors(here, other)


def test_a_run_whose_node_vanishes_continues_on_another(cluster, on_cluster, here, often):
    run_id = on_cluster.start(MIDDLE)
    wait_until(lambda: halfway(on_cluster, run_id))
    cluster.remove_node()
    wait_until(lambda: on_cluster.store.result(run_id, "warning/cluster 1") is not None)
    cluster.add_node()
    run = ended(on_cluster, run_id)
    assert run.state is RunState.COMPLETE, run.error + run.traceback
    assert on_cluster.store.result(run_id, "warning/cluster 1").startswith("Node 127.0.0.2 was lost at step ")
    other = complete(here, MIDDLE)
    assert records(on_cluster, run_id) == records(here, other)
    assert tensors(on_cluster, run_id) == tensors(here, other)


def test_a_stopped_run_is_resumed_on_the_cluster_and_here(on_cluster, here, often, tmp_path):
    run_id = on_cluster.start(MIDDLE)
    wait_until(lambda: halfway(on_cluster, run_id))
    on_cluster.control(run_id).stop()
    on_cluster.wait(run_id)
    assert on_cluster.store.run(run_id).state is RunState.STOPPED
    on_cluster.resume(run_id)
    run = ended(on_cluster, run_id)
    assert (run.state, run.attempt) == (RunState.COMPLETE, 2)
    other = complete(here, MIDDLE)
    assert tensors(on_cluster, run_id) == tensors(here, other)
    assert records(on_cluster, run_id) == records(here, other)


def test_a_run_whose_program_is_killed_is_resumed_by_another(on_cluster, here, often):
    code = (
        "import json, sys, time\n"
        "from pathlib import Path\n"
        "from core.config import RunConfig\n"
        "from core.runs.manager import RunManager\n"
        "from core.runs.store import RunStore\n"
        "manager = RunManager(RunStore(Path(sys.argv[1])), executor='ray')\n"
        "from core.runs.cluster import executor\n"
        "executor.SECONDS_BETWEEN = 0.0\n"
        "manager.start(RunConfig.from_dict(json.loads(sys.argv[2])))\n"
        "time.sleep(600)\n"
    )
    store = on_cluster.store
    program = subprocess.Popen([sys.executable, "-c", code, str(store.folder), json.dumps(MIDDLE.to_dict())], cwd=ROOT)
    wait_until(lambda: store.runs() and halfway(on_cluster, store.runs()[0].id), 240)
    program.kill()
    program.wait()
    (run,) = store.runs()
    wait_until(lambda: run.id in store.mark_interrupted())
    done = store.run(run.id).step
    on_cluster.resume(run.id)
    assert ended(on_cluster, run.id).state is RunState.COMPLETE
    assert done >= 20
    other = complete(here, MIDDLE)
    assert records(on_cluster, run.id) == records(here, other)
    assert tensors(on_cluster, run.id) == tensors(here, other)


def test_two_runs_share_a_gpu_and_a_third_waits(cluster, on_cluster):
    """Of a node whose GPU is only counted."""
    cluster.add_node(num_cpus=4, num_gpus=1)
    shared = replace(LONG, machine=replace(LONG.machine, device="auto", gpu_share=0.5))
    try:
        runs = [on_cluster.start(shared) for _ in range(3)]

        def states() -> list[RunState]:
            return sorted(on_cluster.store.run(run).state for run in runs)

        wait_until(lambda: states() == [RunState.QUEUED, RunState.RUNNING, RunState.RUNNING], 240)
        first, second = (run for run in runs if on_cluster.store.run(run).state is RunState.RUNNING)
        on_cluster.control(second).pause()  # it keeps its share
        on_cluster.control(first).stop()
        wait_until(lambda: states() == [RunState.PAUSED, RunState.RUNNING, RunState.STOPPED], 240)
    finally:
        on_cluster.close()
        cluster.remove_node()


def test_runs_on_the_cluster_and_here_do_not_wait_for_each_other(on_cluster):
    run_id = running(on_cluster)
    other = on_cluster.store.create(TINY, "here")
    assert on_cluster.store.ahead(other) == []
    on_cluster.store.set_state(other, RunState.RUNNING)
    assert on_cluster.waiting(run_id) == 0


@pytest.mark.parametrize("name", ["torch", "Python", "this program"])
def test_other_versions_are_refused(on_cluster, monkeypatch, name):
    from core.runs.cluster import connection

    own = connection.versions()
    monkeypatch.setattr(connection, "versions", lambda: {**own, name: "0.1"})
    run_id = on_cluster.start(TINY)
    run = ended(on_cluster, run_id)
    assert run.state is RunState.FAILED
    assert run.error == f"{name} on node 127.0.0.2 must be 0.1, as here, got {own[name]}"


def test_bad_input_is_named_as_here(on_cluster, tmp_path):
    config = replace(TINY, images_from=str(tmp_path / "missing"), bits=(4,))
    run = ended(on_cluster, on_cluster.start(config))
    assert run.state is RunState.FAILED
    assert run.error.startswith(f"the images must be at '{tmp_path / 'missing'}' on node 127.0.0.2 or, with at most 2 GB, on the machine")
