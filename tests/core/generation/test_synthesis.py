from dataclasses import replace

import pytest
import torch
from torch import nn

from core.config import GenerationConfig
from core.errors import CoreError, ModelError, RunStopped
from core.generation.synthesis import Synthesis, initial_noise, synthesise
from core.models.full_precision import FullPrecisionModel
from core.reporting import Silent, Untouched

CONFIG = GenerationConfig(images=24, iterations=12, batch_size=12, snapshots=2, device="cpu")


class Recorder(Silent):
    def __init__(self):
        self.records, self.frames, self.changes = [], [], []

    def record(self, stage, lane, step, values):
        self.records.append((stage, lane, step, dict(values)))

    def images(self, lane, step, images, labels, keep):
        self.frames.append((lane, step, images.clone(), labels.clone(), keep))

    def change(self, lane, step, name, value):
        self.changes.append((lane, step, name, value))


def test_statistics_approach_those_of_the_network(small):
    for optimizer in ("mi-fgsm", "adam"):
        _, summary = synthesise(small, replace(CONFIG, optimizer=optimizer, iterations=40))
        assert summary["bns_loss_last"] < 0.5 * summary["bns_loss_first"]


def test_images_labels_and_summary(small):
    images, summary = synthesise(small, CONFIG)
    assert images.images.shape == (24, 3, 8, 8)
    assert images.images.dtype == torch.uint8
    assert images.labels.bincount().tolist() == [6, 6, 6, 6]
    assert summary["images"] == 24
    assert summary["image_iterations"] == 12 * 12  # 12 noise images, each saved twice
    assert summary["layers"] == 2
    assert images.manifest["config"] == CONFIG.to_dict()


def test_teacher_agreement_is_that_of_the_saved_images(small):
    images, summary = synthesise(small, CONFIG)
    with torch.no_grad():
        predicted = small.network((images.images.float() / 255 - 0.5) / 0.25).argmax(dim=1)
    assert summary["teacher_agreement"] == pytest.approx(100 * (predicted == images.labels).float().mean().item(), abs=0.01)


def test_same_seed_same_bits_and_another_seed_others(small):
    torch.manual_seed(1)
    first, _ = synthesise(small, CONFIG)
    torch.manual_seed(2)
    second, _ = synthesise(small, CONFIG)
    other, _ = synthesise(small, replace(CONFIG, seed=1))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_nothing_global_and_nothing_of_the_network_changes(small):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    synthesise(small, CONFIG)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in small.network.state_dict().items())
    assert not any(p.grad is not None for p in small.network.parameters())


def test_images_stay_in_the_valid_pixel_range(small):
    synthesis = Synthesis(small, replace(CONFIG, epsilon=1.5))
    for _ in range(5):
        synthesis.step()
    low, high = (0 - 0.5) / 0.25, (1 - 0.5) / 0.25
    assert low <= synthesis.images.min().item()
    assert synthesis.images.max().item() <= high
    assert (synthesis.images == high).any()  # a step this large reaches the border


def test_both_optimizers_start_from_the_same_noise_and_labels_in_every_batch(small):
    config = replace(CONFIG, images=48, iterations=2)
    lanes = [Synthesis(small, replace(config, optimizer=name)) for name in ("mi-fgsm", "adam")]
    for _ in range(3):  # into the second batch
        assert torch.equal(lanes[0].labels, lanes[1].labels)
        if lanes[0].step_count % 2 == 0:
            assert torch.equal(lanes[0].images, lanes[1].images)
        for lane in lanes:
            lane.step()


def test_snapshots_are_the_states_at_their_iterations(small):
    synthesis = Synthesis(small, CONFIG)
    states = {}
    while not synthesis.finished:
        synthesis.step()
        states[synthesis.step_count] = small.denormalise(synthesis.images.detach())
    saved = synthesis.image_set().images
    assert torch.equal(saved, torch.cat([states[step] for step in CONFIG.snapshot_iterations]))
    assert CONFIG.snapshot_iterations[-1] == CONFIG.iterations


def test_one_snapshot_saves_only_the_last_state(small):
    images, summary = synthesise(small, replace(CONFIG, snapshots=1, images=12))
    assert (len(images), summary["image_iterations"]) == (12, 144)


def test_the_loop_announces_every_iteration_with_every_layer(small):
    recorder = Recorder()
    synthesise(small, CONFIG, recorder)
    assert [(lane, step) for _, lane, step, _ in recorder.records] == [("mi-fgsm", step) for step in range(1, 13)]
    for _, _, _, values in recorder.records:
        assert sum(values["layers"]) == pytest.approx(values["bns"], rel=1e-5)
        expected = values["bns"] + CONFIG.alpha_tv * values["tv"] + CONFIG.alpha_l2 * values["l2"] + CONFIG.beta * values["ce"]
        assert values["total"] == pytest.approx(expected, rel=1e-5)
    kept = [step for _, step, _, _, keep in recorder.frames if keep]
    assert kept == [1, *CONFIG.snapshot_iterations]


def test_a_live_value_acts_on_the_next_iteration_and_is_recorded_with_it(small):
    class Turn(Untouched):
        def values(self, lane, step):
            return {"epsilon": 0.0} if step >= 3 else {}

    recorder = Recorder()
    config = replace(CONFIG, schedule="constant")
    synthesis = Synthesis(small, config, recorder, Turn())
    moved = []
    for _ in range(5):
        before = synthesis.images.detach().clone()
        synthesis.step()
        moved.append(bool((synthesis.images != before).any()))
    assert moved == [True, True, True, False, False]
    assert recorder.changes == [("mi-fgsm", 3, "epsilon", 0.0)]
    assert synthesis.changes == [{"step": 3, "name": "epsilon", "value": 0.0}]


def test_stops_between_two_iterations(small):
    class StopAtFour(Untouched):
        calls = 0

        def checkpoint(self):
            self.calls += 1
            if self.calls == 5:
                raise RunStopped("stopped")

    recorder = Recorder()
    with pytest.raises(RunStopped):
        synthesise(small, CONFIG, recorder, StopAtFour())
    assert len(recorder.records) == 4


def test_a_loss_that_is_no_number_names_iteration_and_layer(small):
    small.network.bn2.running_var[0] = float("nan")
    with pytest.raises(CoreError, match="loss is nan at iteration 1 of the mi-fgsm lane, first in bn2"):
        synthesise(small, CONFIG)


def test_refuses_a_network_without_batch_norm(small):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(ModelError, match="no BatchNorm layer"):
        Synthesis(FullPrecisionModel(network, small.spec), CONFIG)


def test_the_teacher_soon_agrees_on_images_of_the_embedded_network(embedded):
    config = GenerationConfig(images=64, iterations=25, batch_size=64, snapshots=1, device="cpu")
    _, summary = synthesise(embedded, config)
    assert summary["teacher_agreement"] > 60
    assert summary["bns_loss_last"] < 0.3 * summary["bns_loss_first"]


@pytest.mark.parametrize(("kind", "size"), [("white", 32), ("pink", 32), ("pink", 20)])
def test_noise_has_unit_variance_and_its_seed(kind, size):
    first, second = (initial_noise(kind, 64, size, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (64, 3, size, size)
    assert first.mean().item() == pytest.approx(0.0, abs=0.1)
    assert first.std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(first, second)


def test_power_of_pink_noise_falls_with_frequency_and_that_of_white_does_not():
    shares = {}
    for kind in ("white", "pink"):
        noise = initial_noise(kind, 64, 32, torch.Generator().manual_seed(4))
        power = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1))
        low, high = power[1:4, 1:4].mean(), power[12:16, 12:16].mean()
        shares[kind] = (low / high).item()
    assert shares["white"] == pytest.approx(1.0, abs=0.2)
    assert shares["pink"] > 50
