from dataclasses import replace

import pytest

from core import pipeline
from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.errors import RunStopped
from core.generation.loop import GenerationLoop
from core.generation.sources.zaq import ZAQ
from core.models.full_precision import load_model
from core.quantization.authors.hast import HASTStudent
from core.quantization.sources import ImageSetSource
from core.quantization.training import QuantizationTraining
from core.reporting import NoControl, NullReporter
from core.stages import planning
from core.stages.context import Context
from core.stages.planning import Costs, Plan, Work, planned, scaled, seconds_of
from tests.core.recorded_runs import Recorder, StopsAt

COSTS = Costs(
    image_iteration=0.004, held_out_iteration=0.003, step=0.3, calibration=5.0, score=0.002, quantized_score=0.005, embedding=0.01
)
CONFIG = RunConfig(
    generation=GenerationConfig(images=2048, iterations=50, snapshots=4),
    training=TrainingConfig(steps=100),
    evaluation=EvaluationConfig(encoder=""),
    methods=("mi-fgsm", "adam"),
    bits=(3, 4),
    steps_by_bits={3: 300},
)
TINY = RunConfig(
    machine=MachineConfig(budget=0.01),
    generation=GenerationConfig(images=8, iterations=12, snapshots=2, batch_size=4),
    training=TrainingConfig(range="minmax", steps=20, training_batch_size=4, calibration_images=8),
    evaluation=EvaluationConfig(data="none", encoder=""),
    methods=("mi-fgsm",),
    bits=(4,),
)


def test_seconds_by_hand():
    generated = 512 * 50 * 0.004
    held_out = 64 * 50 * 0.003
    scored = 2 * (2000 * 0.005 + 128 * (0.005 + 0.002))
    expected = 2 * generated + 2 * held_out + 4 * 2048 * 0.01 + 2000 * 0.002 + 2 * (2 * (5.0 + scored) + (300 + 100) * 0.3)
    assert seconds_of(CONFIG, COSTS, Work(2000, holds_out=True, embeds=True)) == pytest.approx(expected)


def test_seconds_without_evaluation_training_or_generation():
    images = replace(CONFIG, bits=())
    assert seconds_of(images, COSTS, Work(0, holds_out=False, embeds=False)) == pytest.approx(2 * 512 * 50 * 0.004)
    assert seconds_of(replace(images, methods=("adam", "noise")), COSTS, Work(0, holds_out=False, embeds=False)) == pytest.approx(
        512 * 50 * 0.004  # a reference is not optimized
    )
    given = replace(CONFIG, images_from="/images", methods=("given",), bits=(4,), steps_by_bits={4: 0})
    assert seconds_of(given, COSTS, Work(100, holds_out=False, embeds=False)) == pytest.approx(100 * 0.002 + 5.0 + 100 * 0.005)


@pytest.mark.parametrize("seconds", [300, 600, 1800, 7200])
def test_plan_fits_and_uses_the_time(seconds):
    work = Work(2000, holds_out=True, embeds=False)
    plan = planned(CONFIG, COSTS, work, seconds)
    assert 0.8 * seconds < seconds_of(plan, COSTS, work) <= seconds
    assert plan.steps_by_bits[3] == pytest.approx(3 * plan.steps_by_bits[4], rel=0.1)
    assert plan.generation.saved_images == plan.generation.images


def test_more_time_is_more_of_everything():
    work = Work(2000, holds_out=True, embeds=False)
    plans = [planned(CONFIG, COSTS, work, seconds) for seconds in (300, 1200, 4800)]
    for values in (
        [plan.generation.images for plan in plans],
        [plan.generation.iterations for plan in plans],
        [plan.steps_by_bits[3] for plan in plans],
    ):
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_effort_of_one_is_as_given():
    plan = scaled(CONFIG, 1.0)
    assert plan.generation == CONFIG.generation
    assert plan.steps_by_bits == {3: 300, 4: 100}


def test_longer_trainings_take_smaller_steps():
    config = replace(CONFIG, lr_by_bits={3: 1e-3, 4: 2e-4})
    plan = scaled(config, 16.0)
    assert plan.steps_by_bits == {3: 2400, 4: 800}
    assert plan.lr_by_bits == pytest.approx({3: 1e-3 / 8**0.5, 4: 2e-4 / 8**0.5})
    assert scaled(config, 0.1).lr_by_bits == config.lr_by_bits  # never larger ones
    assert scaled(CONFIG, 16.0).training == CONFIG.training  # a step size that was given for all widths stays


def test_too_little_time_is_the_least():
    plan = planned(CONFIG, COSTS, Work(2000, holds_out=True, embeds=False), 1.0)
    assert (plan.generation.images, plan.generation.iterations) == (64, 20)
    assert plan.steps_by_bits == {3: 20, 4: 20}


def test_calibration_alone_stays_alone():
    assert dict(scaled(replace(CONFIG, steps_by_bits={3: 0, 4: 0}), 4.0).steps_by_bits) == {3: 0, 4: 0}


def test_run_keeps_its_plan_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    plans = []
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    reporter = Recorder()
    result = pipeline.execute(TINY, whole, reporter, NoControl(), keep_plan=plans.append)
    assert len(plans) == 1
    assert result["plan"] == reporter.results["plan"]
    assert reporter.results["plan"]["images"] == plans[0].generation.saved_images == 64
    assert reporter.results["plan"]["steps"] == {"4": 20}
    assert plans[0].machine.budget == 0.01  # what was asked for stays known
    with pytest.raises(RunStopped):
        pipeline.execute(TINY, stopped, NullReporter(), StopsAt(40), keep_plan=plans.append, every=0)
    assert plans[1] == plans[0]
    monkeypatch.setattr("core.pipeline.Plan", lambda *_: pytest.fail("planned again"))
    resumed = pipeline.execute(plans[1], stopped, NullReporter(), NoControl(), keep_plan=plans.append)
    assert len(plans) == 2
    assert resumed["plan"]["images"] == 64
    for file in ("images/mi-fgsm/images.safetensors", "quantized/mi-fgsm/W4A4/quantized.safetensors"):
        assert (whole / file).read_bytes() == (stopped / file).read_bytes()


def test_every_method_is_timed_with_its_own_training(monkeypatch):
    """ZAQ's generator takes a step after five of the student."""
    taken = []

    def timed(step, context, calls=2):
        for _ in range(calls):
            step()
        taken.append((type(step.__self__), getattr(step.__self__, "method", None) or type(step.__self__.source), calls))
        return {GenerationLoop: 8.0, QuantizationTraining: 1.0}[type(step.__self__)] * len(taken)

    monkeypatch.setattr(planning, "_timed", timed)
    config = replace(TINY, methods=("adam", "hast", "zaq"), training=replace(TINY.training, protocol="authors"))
    plan = Plan(load_model(config.model, "cpu"), config, None, None, {}, holds_out=True)
    plan.measured(Context(NullReporter(), NoControl()))
    assert taken == [
        (GenerationLoop, "adam", 2),
        (GenerationLoop, "hast", 2),
        (GenerationLoop, "zaq", 2),
        (GenerationLoop, "mi-fgsm", 2),  # of the held-out images
        (QuantizationTraining, ImageSetSource, 2),
        (QuantizationTraining, HASTStudent, 5),
        (QuantizationTraining, ZAQ, 5),
    ]
    batch = config.generation.batch_size
    assert plan.costs.image_iteration == (8.0 + 16.0 + 24.0) / 3 / batch
    assert plan.costs.held_out_iteration == 32.0 / batch
    assert plan.costs.step == (5.0 + 6.0 + 7.0) / 3


def test_measuring_changes_no_bit_of_the_run(tmp_path):
    folders = tmp_path / "planned", tmp_path / "given"
    for folder in folders:
        folder.mkdir()
    plans = []
    pipeline.execute(TINY, folders[0], NullReporter(), NoControl(), keep_plan=plans.append)
    config = replace(plans[0], machine=replace(plans[0].machine, budget=0.0))
    pipeline.execute(config, folders[1], NullReporter(), NoControl())
    read = [(folder / "quantized/mi-fgsm/W4A4/quantized.safetensors").read_bytes() for folder in folders]
    assert read[0] == read[1]
