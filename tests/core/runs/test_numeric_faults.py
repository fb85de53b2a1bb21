"""Out of memory, and values that are not finite: the run fails with advice."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_faults import CONFIG, compute, is_sentence, prepared_with

from core.data.labeled import EvaluationSet
from core.errors import CoreError
from core.pipeline import Prepared
from core.quantization.training import QuantizationTraining
from core.runs.state import RunState
from core.runs.store import RunStore

ROOT = Path(__file__).parents[3]


ON_A_CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 67108864000 bytes. "
    "Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("error", [RuntimeError(ON_A_CPU), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")])
@pytest.mark.parametrize(("stage", "size", "advice"), [("generation", 64, 32), ("generation", 2, None), ("training", 48, 24)])
def test_out_of_memory_names_the_batch_size(tmp_path, monkeypatch, small, error, stage, size, advice):
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
    assert re.search(f"^the {stage}( of mi-fgsm W4A4)? ran out of memory", run.error)
    knob = "batch_size" if stage == "generation" else "training_batch_size"
    assert f" with {knob} {size}; " in run.error
    assert (f"try {advice}" in run.error) if advice else ("try" not in run.error)
    assert type(error).__name__ in run.traceback
    store.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux")
def test_out_of_memory_in_a_process_with_a_memory_limit(tmp_path):
    """A batch of gigabytes in a process limited to little more memory than torch needs."""
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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120, encoding="utf-8")
    state, error = done.stdout.strip().splitlines()
    assert state == "failed", done.stderr
    # the batch became smaller before, where the machine has less memory than 4,096 images need
    size, advice = map(int, re.search(r"the generation ran out of memory with batch_size (\d+); try (\d+)", error).groups())
    assert size == 2 * advice


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
def test_poisoned_weight_is_found_in_generation(tmp_path, small, value):
    small.network.conv2.weight.data[3, 2, 1, 1] = value
    error = failed_with(tmp_path, prepared_with(small), CONFIG)
    assert error == "parameters and statistics of small must be finite, got infinity or NaN in conv2.weight"


@pytest.mark.parametrize("method", ["minmax", "mse", "lsq"])
def test_poisoned_weight_is_found_in_calibration(tmp_path, small, small_images, method):
    config = replace(CONFIG, images_from="given", training=replace(CONFIG.training, range=method, keep="trained"))
    small.network.conv2.weight.data[3, 2, 1, 1] = float("nan")
    given = replace(prepared_with(small, config), sets={"given": small_images})
    error = failed_with(tmp_path, given, config)
    assert error == "parameters and statistics of small must be finite, got infinity or NaN in conv2.weight"


@pytest.mark.parametrize(("method", "optimizer"), [("minmax", "sgd"), ("minmax", "adam"), ("lsq", "sgd"), ("lsq", "adam"), ("mse", "sgd")])
def test_diverging_training_names_step_and_layer(tmp_path, monkeypatch, small, method, optimizer):
    """After a step so large that the next loss is not finite."""
    config = replace(CONFIG, training=replace(CONFIG.training, range=method, training_optimizer=optimizer, steps=6))
    training = QuantizationTraining
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
    named = re.search(r"first in ([\w.]+);", error).group(1)
    assert named.split(".")[0] in ("conv1", "bn1", "relu", "activation_quantizer_0", "conv2", "bn2", "output")


def test_largest_learning_rate(tmp_path, embedded):
    """On the embedded network, training fails with a message or has only finite losses."""
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
        # training may also diverge with finite losses
        for record in store.records(run_id, "training"):
            assert record.data["total"] - record.data["total"] == 0
    store.close()
