"""What a run does now and next, and when it ends: values by hand."""

from dataclasses import replace

import pytest

from core.config import EvaluationConfig, GenerationConfig, RunConfig, TrainingConfig
from core.runs.outlook import Position, done_share, duration, in_words, phases

# 100 noise images x 20 iterations for each method; held out: an eighth by two methods; a training of 50 steps of 10 images, 2.1 times
CONFIG = RunConfig(
    generation=GenerationConfig(images=100, snapshots=1, iterations=20, batch_size=50),
    training=TrainingConfig(steps=50, training_batch_size=10),
    evaluation=EvaluationConfig(encoder=""),
    methods=("adam",),
    bits=(3, 4),
)
GENERATION, HELD_OUT, TRAINING = 2000, 500, 1050


def at(stage, step=0, total=0, before=0, elapsed=0.0):
    return Position(stage, step, total, before, elapsed)


def test_phases_in_order():
    found = phases(CONFIG)
    assert [(phase.stage, phase.work) for phase in found] == [
        ("generation", GENERATION),
        ("generating held-out images", HELD_OUT),
        ("training adam W3A3", TRAINING),
        ("training adam W4A4", TRAINING),
    ]


def test_a_reference_takes_no_work_to_generate():
    assert [phase.work for phase in phases(replace(CONFIG, methods=("adam", "noise"), bits=()))] == [GENERATION]
    assert [phase.work for phase in phases(replace(CONFIG, methods=("noise",), bits=()))] == [0]


def test_what_is_not_computed_is_no_phase():
    given = replace(CONFIG, images_from="a folder", bits=(4,), methods=("given",)).with_knobs({"encoder": "embedded", "steps": 0})
    assert [phase.title for phase in phases(given)] == ["measuring diversity", "generating held-out images", "calibrating W4A4"]
    assert [phase.title for phase in phases(replace(CONFIG, bits=()))] == ["generating images"]
    both = replace(CONFIG, methods=("mi-fgsm", "adam"), bits=(4,))
    assert [phase.title for phase in phases(both)][-2:] == ["training MI-FGSM W4A4", "training Adam W4A4"]


@pytest.mark.parametrize(
    ("position", "results", "expected"),
    [
        (at("loading resnet20_cifar10"), {}, "Now loading the network. Next: generating images."),
        (at("evaluating full precision"), {}, "Now evaluating full precision. Next: generating held-out images."),
        (at("generation", 2, 40, elapsed=9), {}, "Now generating images: 2 of 40 steps. Next: generating held-out images."),
        # planned with 0.1 s: 460 s for 4,600 units
        (
            at("generation", 0, 40, elapsed=9),
            {"plan": {"costs": {"image_iteration": 0.1}}},
            "Now generating images: 0 of 40 steps. The run ends in about 8 min. Next: generating held-out images.",
        ),
        # 10 of 40 steps in 50 s: 200 s for 2,000 units, so 150 s and 260 s for the 2,600 that follow
        (
            at("generation", 10, 40, elapsed=50),
            {},
            "Now generating images: 10 of 40 steps. The run ends in about 7 min. Next: generating held-out images.",
        ),
        # resumed after 20 steps: 10 steps in 50 s
        (
            at("generation", 30, 40, before=20, elapsed=50),
            {},
            "Now generating images: 30 of 40 steps. The run ends in about 5 min. Next: generating held-out images.",
        ),
        # 0.1 s for a unit: 50 s, 105 s and 105 s
        (
            at("generating held-out images"),
            {"generation/adam": {"seconds": 200.0, "image_iterations": 2000}},
            "Now generating held-out images. The run ends in about 4 min. Next: training W3A3.",
        ),
        (
            at("calibrating adam W3A3"),
            {"generation/adam": {"seconds": 20.0, "image_iterations": 2000}},
            "Now calibrating W3A3. The run ends in about 21 s. Next: training W3A3.",
        ),
        # 2 s a step: 60 s, and 100 s for the other
        (
            at("training adam W3A3", 20, 50, elapsed=40),
            {"generation/adam": {"seconds": 1.0, "image_iterations": 2000}},
            "Now training W3A3: 20 of 50 steps. The run ends in about 3 min. Next: training W4A4.",
        ),
        # 30 s for the last training, like the first
        (
            at("analyzing the layers of adam W3A3"),
            {"accuracy/adam/W3A3": {"training_seconds": 30.0, "steps": 50}, "generation/adam": {"seconds": 1.0, "image_iterations": 2000}},
            "Now analyzing the layers of W3A3. The run ends in about 30 s. Next: training W4A4.",
        ),
        (at("training adam W4A4", 40, 50, elapsed=40), {}, "Now training W4A4: 40 of 50 steps. The run ends in about 10 s."),
        # the clock was put back
        (at("training adam W4A4", 40, 50, elapsed=-5), {}, "Now training W4A4: 40 of 50 steps."),
        (at("something new"), {}, "Now something new. Next: generating images."),
    ],
)
def test_line(position, results, expected):
    assert in_words(CONFIG, position, results) == expected


def test_a_paused_run_has_no_end():
    assert in_words(CONFIG, at("training adam W4A4", 40, 50, elapsed=40), {}, paused=True) == "Now training W4A4: 40 of 50 steps."


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (90, "90 s"), (91, "2 min"), (5400, "90 min"), (5401, "2 h")])
def test_duration(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("position", "done"),
    [
        (at("loading resnet20_cifar10"), 0),
        (at("generation", 10, 40), GENERATION / 4),
        (at("generating held-out images"), GENERATION),
        (at("training adam W4A4", 25, 50), GENERATION + HELD_OUT + TRAINING + TRAINING / 2),
        (at("evaluating adam W4A4"), GENERATION + HELD_OUT + TRAINING),
    ],
)
def test_share_of_the_whole_run(position, done):
    assert done_share(CONFIG, position) == pytest.approx(done / (GENERATION + HELD_OUT + 2 * TRAINING))


def test_share_of_a_run_without_estimated_stages_is_unknown():
    assert done_share(replace(CONFIG, methods=("noise",), bits=()), at("generation")) is None
