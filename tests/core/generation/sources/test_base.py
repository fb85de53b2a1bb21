"""Methods with a loss of their own: what is recorded of it, resuming, and the settings of the authors."""

from dataclasses import replace

import pytest
import torch

from core.config import PRESETS, GenerationConfig
from core.generation.loop import GenerationLoop, synthesize
from core.generation.methods import METHODS
from core.reporting import NoControl, NullReporter

CONFIG = GenerationConfig(images=24, iterations=6, batch_size=12, snapshots=1, schedule="plateau", patience=1)
OWN = [name for name, method in METHODS.items() if method.own_loss and method.kind == "pixels"]
PIXELS = [name for name in OWN if name != "genie"]


class Recorder(NullReporter):
    def __init__(self):
        self.values = []

    def record(self, stage, method, step, values):
        self.values.append(values)


@pytest.mark.parametrize("method", PIXELS)
def test_l_bns_is_recorded_as_for_every_method(small, method):
    """The loss is the weighted sum of the method's own terms; L_BNS has the same value as for other methods."""
    records = {}
    for name in ("mi-fgsm", method):
        recorder = Recorder()
        loop = GenerationLoop(small, replace(CONFIG, intraq_crop=0.0), name, reporter=recorder)
        loop.step()
        records[name] = recorder.values[0]
    own = records[method]
    assert own["bns"] == pytest.approx(records["mi-fgsm"]["bns"], rel=1e-4)
    assert own["layers"] == pytest.approx(records["mi-fgsm"]["layers"], rel=1e-3)
    terms = {term.name: term for term in loop.source.terms}
    weights = {name: getattr(CONFIG, term.weight) if isinstance(term.weight, str) else term.weight for name, term in terms.items()}
    assert own["total"] == pytest.approx(sum(weight * own[name] for name, weight in weights.items()), rel=1e-4)
    assert [term["name"] for term in loop.terms()] == ["bns", *terms]


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("at", [0, 3, 6, 8, 12])
def test_resuming_gives_the_same_bits(small, tmp_path, method, at):
    """Within a batch, between batches, before the first and after the last; through a file."""
    whole = GenerationLoop(small, CONFIG, method, folder=tmp_path / "whole")
    while not whole.finished:
        whole.step()
    first = GenerationLoop(small, CONFIG, method, folder=tmp_path / "parts")
    for _ in range(at):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    if not first.finished:
        first.step()  # lost in the interruption
    second = GenerationLoop(small, CONFIG, method, folder=tmp_path / "parts")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    while not second.finished:
        second.step()
    assert torch.equal(whole.image_set().images, second.image_set().images)
    assert torch.equal(whole.image_set().labels, second.image_set().labels)


@pytest.mark.parametrize("method", PIXELS)
def test_step_size_is_live_and_that_of_the_plateau(small, method):
    name = GenerationLoop(small, CONFIG, method).source.step_knob

    class Turn(NoControl):
        def values(self, method, step):
            return {name: 0.0 if step < 3 else 0.25}

    loop = GenerationLoop(small, replace(CONFIG, patience=0, iterations=20), method, control=Turn())
    start = loop.source.current().clone()
    for _ in range(3):
        loop.step()
    assert torch.equal(loop.source.current(), start)
    factor = loop.state()["plateau"][0]
    loop.step()
    assert not torch.equal(loop.source.current(), start)
    (group,) = loop.source.optimizer.param_groups
    assert group["lr"] == max(0.25 * factor, 1e-4)
    loop.source.set_knobs({name: 0.25}, 1e-9)
    assert group["lr"] == 1e-4  # the authors' smallest step size


@pytest.mark.parametrize("method", [name for name in OWN if name in PRESETS])
def test_authors_settings_run(small, method):
    """The preset of the method at a small size: the loss falls."""
    generation = replace(PRESETS[method].generation, images=8, batch_size=8, iterations=40)
    recorder = Recorder()
    synthesize(small, generation, method, reporter=recorder)
    totals = [values["total"] for values in recorder.values]
    assert min(totals[-5:]) < 0.9 * totals[0]
