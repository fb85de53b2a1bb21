"""Changed bit widths of single layers: the config of the new run, and the comparison of runs on the same images."""

from dataclasses import replace

import pytest

from core.config import RunConfig, TrainingConfig
from core.runs.state import RunState
from dashboard import session
from dashboard.views import layers


@pytest.fixture
def run(with_finished_run):
    return session.store().run(with_finished_run)


def test_new_run_differs_only_in_the_chosen_bits(run):
    rows = [{"name": name} for name in ("stem", "middle", "output")]
    config = layers.again(run, "adam", 4, rows, {"stem": 4, "middle": 8, "output": 2}, 0)
    assert config.training.layer_bits == (("middle", 8), ("output", 2))
    assert (config.methods, config.bits, config.evaluation.encoder) == (("adam",), (4,), "")
    assert config.images_from == str(session.store().run_folder(run.id) / "images")
    before, after = run.config.training_for(4), config.training_for(4)
    assert after == replace(before, layer_bits=config.training.layer_bits, steps=0)
    assert layers.again(run, "adam", 4, rows, {"stem": 4, "middle": 4, "output": 4}, 7).training_for(4) == replace(before, steps=7)


def test_first_and_last_layer_keep_8_bits(run):
    rows = [{"name": name} for name in ("stem", "middle", "output")]
    run = replace(run, config=replace(run.config, training=TrainingConfig(first_last_8bit=True, layer_bits={"middle": 5})))
    assert layers.again(run, "adam", 4, rows, {"stem": 8, "middle": 5, "output": 8}, 0).training.layer_bits == (("middle", 5),)
    assert layers.again(run, "adam", 4, rows, {"stem": 4, "middle": 4, "output": 8}, 0).training.layer_bits == (("stem", 4),)


def test_bits_chosen_by_size_are_of_the_weights(run):
    rows = [{"name": name} for name in ("stem", "output")]
    run = replace(run, config=replace(run.config, training=TrainingConfig(size=120.0)))
    training = layers.again(run, "adam", 4, rows, {"stem": 6, "output": 4}, 0).training
    assert (training.size, training.layer_bits, training.layer_weight_bits) == (0.0, (), (("output", 4), ("stem", 6)))


def test_runs_on_the_same_images_are_compared(run):
    assert [row["run"] for row in layers.compared(run, "adam", "W4A4")] == ["a finished run (shown)"]
    store = session.store()
    config = layers.again(run, "adam", 4, [{"name": "output"}], {"output": 8}, 0)
    others = {
        "other bits": config,
        "other images": replace(config, images_from="elsewhere"),
        "not measured": config,
        "other network": RunConfig(model="x", images_from=config.images_from),
    }
    for name, other in others.items():
        run_id = store.create(other, name)
        if name != "not measured":
            figures = {"quantized": 91.0, "calibrated": 91.0, "standard_error": 0.6, "steps": 0}
            store.set_result(run_id, "accuracy/adam/W4A4", {**figures, "layer_bits": {"output": 8}, "weight_size": 1_080_000})
        store.set_state(run_id, RunState.RUNNING)
        store.set_state(run_id, RunState.COMPLETE)
    before, after = layers.compared(run, "adam", "W4A4")
    assert before["layers with other bits"] == "none"
    assert before["weights, kB"] == pytest.approx(270_896 * 4 / 8000, abs=0.1)
    assert (after["run"], after["layers with other bits"], after["weights, kB"]) == ("other bits", "output 8", 135.0)
    assert (after["calibrated %"], after["final %"]) == (91.0, 91.0)
