"""Pausing, stepping and stopping a run, changing live values, and replaying the changes."""

import threading
import time

import pytest
import torch

from core.config import GenerationConfig, live_knobs
from core.errors import ConfigError, RunStopped, UnknownNameError
from core.generation.loop import GenerationLoop, synthesize
from core.reporting import NullReporter
from core.runs.control import LocalControl, ReplayControl


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


class Engine:
    """A thread that counts how often it passes the pause point."""

    def __init__(self, control):
        self.control, self.passed, self.error = control, 0, None
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        try:
            while True:
                self.control.pause_point()
                self.passed += 1
                time.sleep(0.001)
        except RunStopped as error:
            self.error = error

    def ended(self) -> bool:
        self.thread.join(5)
        return not self.thread.is_alive()


@pytest.fixture
def rests():
    return []


@pytest.fixture
def control(rests):
    control = LocalControl(on_pause=rests.append)
    yield control
    control.stop()


# values


def test_unchanged_knobs_are_absent():
    assert LocalControl().values("adam", 0) == {}


def test_values_apply_only_to_their_methods():
    control = LocalControl()
    control.set("epsilon", 0.5, ["mi-fgsm"])
    control.set("beta", 2, ["mi-fgsm", "adam"])
    control.set("epsilon", 0.25, ["mi-fgsm"])
    assert control.values("mi-fgsm", 3) == {"epsilon": 0.25, "beta": 2}
    assert control.values("adam", 3) == {"beta": 2}
    control.values("adam", 3)["beta"] = 9
    assert control.values("adam", 3) == {"beta": 2}


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf"), True, "0.5", None])
def test_invalid_value_is_refused_and_changes_nothing(value):
    control = LocalControl()
    control.set("epsilon", 0.5, ["adam"])
    with pytest.raises(ConfigError, match="^epsilon must be .*0 to 2, got "):
        control.set("epsilon", value, ["adam"])
    assert control.values("adam", 0) == {"epsilon": 0.5}


@pytest.mark.parametrize("name", ["images", "seed", "model", "nonsense", ""])
def test_other_knobs_are_refused(name):
    with pytest.raises(UnknownNameError, match=f"unknown live knob '{name}': must be one of epsilon, mu"):
        LocalControl().set(name, 1, ["adam"])


@pytest.mark.parametrize("name", live_knobs(GenerationConfig))
def test_every_live_knob_can_be_set(name):
    control = LocalControl()
    control.set(name, 0.125, ["adam"])
    assert control.values("adam", 0) == {name: 0.125}


# pause, step, resume, stop


def test_control_is_not_paused_at_first(control):
    engine = Engine(control)
    wait_until(lambda: engine.passed > 10)
    assert not control.paused
    assert not control.stopping


def test_pause_lasts_until_resume(control, rests):
    engine = Engine(control)
    control.pause()
    wait_until(lambda: rests == [True])
    at = engine.passed
    time.sleep(0.05)
    assert engine.passed == at
    assert control.paused
    control.resume()
    wait_until(lambda: engine.passed > at + 10)
    assert rests == [True, False]
    assert not control.paused


def test_pause_is_reported_only_when_the_engine_has_paused(control, rests):
    control.pause()
    assert rests == []  # the engine has not reached a pause point
    Engine(control)
    wait_until(lambda: rests == [True])


def test_step_passes_the_pause_point_once(control, rests):
    control.pause()
    engine = Engine(control)
    wait_until(lambda: rests == [True])
    for count in (1, 2, 3):
        control.step()
        wait_until(lambda count=count: engine.passed == count)
        time.sleep(0.02)
        assert engine.passed == count
    assert rests == [True]  # a step does not end the pause
    control.resume()
    wait_until(lambda: rests == [True, False])


def test_pause_while_waiting_to_continue(control):
    """`on_pause` may block while other runs are computed. A pause or stop in the meantime takes effect."""
    heard, free = [], threading.Event()

    def on_pause(paused):
        heard.append(paused)
        if not paused:
            free.wait(10)

    control = LocalControl(on_pause)
    control.pause()
    engine = Engine(control)
    wait_until(lambda: heard == [True])
    control.resume()
    wait_until(lambda: heard == [True, False])
    assert engine.passed == 0
    control.pause()
    free.set()
    wait_until(lambda: heard == [True, False, True])
    assert engine.passed == 0
    control.stop()
    wait_until(lambda: engine.error is not None)


PAST = [
    {"method": "mi-fgsm", "step": 2, "name": "epsilon", "value": 0.3},
    {"method": "mi-fgsm", "step": 5, "name": "epsilon", "value": 0.4},
    {"method": "mi-fgsm", "step": 3, "name": "beta", "value": 2.0},
    {"method": "adam", "step": 1, "name": "lr", "value": 0.01},
]


@pytest.mark.parametrize(
    ("method", "step", "values"),
    [
        ("mi-fgsm", 1, {}),
        ("mi-fgsm", 2, {"epsilon": 0.3}),
        ("mi-fgsm", 4, {"epsilon": 0.3, "beta": 2.0}),
        ("mi-fgsm", 9, {"epsilon": 0.4, "beta": 2.0}),
        ("adam", 9, {"lr": 0.01}),
    ],
)
def test_resumed_run_applies_past_changes(method, step, values):
    assert LocalControl(past=PAST).values(method, step) == values


def test_new_change_overrides_past_changes():
    control = LocalControl(past=PAST)
    control.set("epsilon", 0.1, ["mi-fgsm"])
    assert control.values("mi-fgsm", 1) == {"epsilon": 0.1}
    assert control.values("mi-fgsm", 9) == {"epsilon": 0.1, "beta": 2.0}


def test_steps_add_up(control, rests):
    control.pause()
    engine = Engine(control)
    wait_until(lambda: rests == [True])
    for _ in range(5):
        control.step()
    wait_until(lambda: engine.passed == 5)
    time.sleep(0.02)
    assert engine.passed == 5


def test_step_pauses_a_running_run(control, rests):
    engine = Engine(control)
    wait_until(lambda: engine.passed > 3)
    control.step()
    wait_until(lambda: rests == [True])
    at = engine.passed
    time.sleep(0.02)
    assert engine.passed == at


def test_resume_discards_steps(control, rests):
    control.step()
    control.step()
    control.resume()
    control.pause()
    engine = Engine(control)
    wait_until(lambda: rests == [True])
    assert engine.passed == 0


@pytest.mark.parametrize("paused", [False, True])
def test_stop_ends_at_the_next_pause_point(control, rests, paused):
    if paused:
        control.pause()
    engine = Engine(control)
    wait_until(lambda: rests == [True] if paused else engine.passed > 3)
    control.stop()
    assert engine.ended()
    assert isinstance(engine.error, RunStopped)
    assert control.stopping
    with pytest.raises(RunStopped):
        control.pause_point()
    control.resume()
    with pytest.raises(RunStopped):  # a stop is final
        control.pause_point()


def test_stop_before_the_first_pause_point(control):
    control.stop()
    with pytest.raises(RunStopped):
        control.pause_point()


# replay

CONFIG = GenerationConfig(images=12, snapshots=2, iterations=6, batch_size=3, burn_in=0.0, max_shift=1)


class Turned(LocalControl):
    """Sets live values at known steps: {step: [(name, value)]}."""

    def __init__(self, turns):
        super().__init__()
        self.turns = turns

    def values(self, method, step):
        for name, value in self.turns.get(step, []):
            self.set(name, value, [method])
        return super().values(method, step)


TURNS = {2: [("epsilon", 0.3)], 4: [("mu", 0.25), ("beta", 3)], 7: [("epsilon", 0.05), ("alpha_tv", 0.5)], 9: [("alpha_l2", 1)]}


def test_replay_gives_the_same_bits(small):
    turned, _ = synthesize(small, CONFIG, control=Turned(TURNS))
    plain, _ = synthesize(small, CONFIG)
    changes = turned.manifest["changes"]
    assert [(c["step"], c["name"], c["value"]) for c in changes] == [(s, n, v) for s, turns in TURNS.items() for n, v in turns]
    again, _ = synthesize(small, CONFIG, control=ReplayControl(changes))
    assert torch.equal(again.images, turned.images)
    assert torch.equal(again.labels, turned.labels)
    assert again.manifest["changes"] == changes
    assert not torch.equal(plain.images, turned.images)


def test_replay_of_adam(small):
    turned, _ = synthesize(small, CONFIG, "adam", control=Turned({3: [("lr", 0.5)], 8: [("lr", 0.01)]}))
    again, _ = synthesize(small, CONFIG, "adam", control=ReplayControl(turned.manifest["changes"]))
    assert torch.equal(again.images, turned.images)
    assert not torch.equal(again.images, synthesize(small, CONFIG, "adam")[0].images)


def test_return_to_the_original_value_is_recorded_and_replayed(small):
    turns = {2: [("epsilon", 0.3)], 5: [("epsilon", CONFIG.epsilon)]}
    turned, _ = synthesize(small, CONFIG, control=Turned(turns))
    assert [change["value"] for change in turned.manifest["changes"]] == [0.3, CONFIG.epsilon]
    again, _ = synthesize(small, CONFIG, control=ReplayControl(turned.manifest["changes"]))
    assert torch.equal(again.images, turned.images)


def test_replay_returns_the_values_of_each_step():
    changes = [
        {"step": 7, "name": "epsilon", "value": 0.1},
        {"step": 2, "name": "epsilon", "value": 0.3},
        {"step": 4, "name": "mu", "value": 0.5},
    ]
    replay = ReplayControl(changes)
    assert replay.values("any", 1) == {}
    assert replay.values("any", 2) == replay.values("any", 3) == {"epsilon": 0.3}
    assert replay.values("any", 4) == {"epsilon": 0.3, "mu": 0.5}
    assert replay.values("any", 7) == {"epsilon": 0.1, "mu": 0.5}
    replay.pause_point()


def test_change_takes_effect_at_the_next_iteration(small):
    """With mu = 0 and a constant schedule, every pixel that is not at its bound changes by exactly epsilon."""
    config = GenerationConfig(
        images=4, snapshots=1, iterations=4, batch_size=4, mu=0.0, epsilon=0.01, schedule="constant", max_shift=0, flip=False
    )
    control = LocalControl()
    method = GenerationLoop(small, config, reporter=NullReporter(), control=control)
    for step, epsilon in enumerate((0.01, 0.07, 0.07, 0.0)):
        if step in (1, 3):
            control.set("epsilon", epsilon, ["mi-fgsm"])
        before = method.source.current().detach().clone()
        method.step()
        moved = (method.source.current().detach() - before).abs()
        inner = (before > -1.9) & (before < 1.9)
        assert moved[inner].unique().tolist() == pytest.approx([epsilon] * len(moved[inner].unique()), abs=1e-6)
    assert method.changes == [{"step": 1, "name": "epsilon", "value": 0.07}, {"step": 3, "name": "epsilon", "value": 0.0}]


def test_replay_applies_changes_only_to_their_method():
    changes = [{"method": "mi-fgsm", "step": 2, "name": "beta", "value": 3.0}, {"method": "adam", "step": 2, "name": "beta", "value": 0.5}]
    replay = ReplayControl(changes)
    assert replay.values("mi-fgsm", 2) == {"beta": 3.0}
    assert replay.values("adam", 2) == {"beta": 0.5}
    assert replay.values("another", 2) == {}
