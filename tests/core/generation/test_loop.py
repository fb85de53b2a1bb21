import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.config import GenerationConfig, MachineConfig
from core.data.augment import jitter_batch
from core.data.image_sets import load_image_set
from core.errors import CoreError, ModelError, RunStopped
from core.generation.forward_pass import ForwardPass
from core.generation.loop import GenerationLoop, synthesize
from core.generation.methods import METHODS
from core.generation.noise import initial_noise
from core.generation.snapshots import Snapshots, kept_steps
from core.models.full_precision import FullPrecisionModel
from core.reporting import NoControl, NullReporter
from core.runs.control import ReplayControl

CONFIG = GenerationConfig(images=24, iterations=12, batch_size=12, snapshots=2)


class Recorder(NullReporter):
    def __init__(self):
        self.records, self.frames, self.changes = [], [], []

    def record(self, stage, method, step, values):
        self.records.append((stage, method, step, dict(values)))

    def images(self, method, frame, keep):
        self.frames.append((method, frame, keep))

    def change(self, method, step, name, value):
        self.changes.append((method, step, name, value))


def test_statistics_approach_those_of_the_network(small):
    for method in ("mi-fgsm", "adam"):
        _, summary = synthesize(small, replace(CONFIG, iterations=40), method)
        assert summary["bns_loss_last"] < 0.5 * summary["bns_loss_first"]


def test_first_divergence_counts_300_on_every_network(small, embedded):
    for model, count in ((small, 12), (embedded, 4)):
        recorder = Recorder()
        config = replace(
            CONFIG, images=count, snapshots=1, batch_size=count, iterations=2, alpha_tv=0, alpha_l2=0, beta=0, max_shift=0, flip=False
        )
        synthesize(model, config, reporter=recorder)
        first = recorder.records[0][3]
        assert first["total"] == pytest.approx(300, rel=1e-4)
        assert first["bns"] == pytest.approx(sum(first["layers"]), rel=1e-4)


def test_norms_are_the_papers_plain_sum(small):
    recorder = Recorder()
    loop = GenerationLoop(small, replace(CONFIG, bns_form="norms", alpha_tv=0, alpha_l2=0, beta=0), reporter=recorder)
    loop.step()
    record = recorder.records[0][3]
    assert record["total"] == pytest.approx(sum(record["layers"]), rel=1e-5)
    assert "divergence" not in record
    assert [term["name"] for term in loop.terms()] == ["bns", "tv", "l2", "ce"]


def test_layers_that_do_not_follow_are_named(small):
    loop = GenerationLoop(small, replace(CONFIG, iterations=2, epsilon=0.0))
    while not loop.finished:
        loop.step()
    assert loop.unmatched().keys() == set(loop.layer_names)
    assert list(loop.unmatched().values()) == pytest.approx([1.0, 1.0], rel=0.1)
    loop._last = [[value / 11 for value in layers] for layers in loop._first]
    assert loop.unmatched() == {}


def test_images_labels_and_summary(small):
    images, summary = synthesize(small, CONFIG)
    assert images.images.shape == (24, 3, 8, 8)
    assert images.images.dtype == torch.uint8
    assert images.labels.bincount().tolist() == [6, 6, 6, 6]
    assert summary["images"] == 24
    assert summary["image_iterations"] == 12 * 12  # 12 noise images, each saved twice
    assert summary["layers"] == 2
    assert images.manifest["config"] == CONFIG.to_dict()
    assert (images.manifest["method"], images.manifest["seed"]) == ("mi-fgsm", 0)


def test_teacher_agreement_is_computed_on_the_saved_images(small):
    images, summary = synthesize(small, CONFIG)
    with torch.no_grad():
        predicted = small.network((images.images.float() / 255 - 0.5) / 0.25).argmax(dim=1)
    assert summary["teacher_agreement"] == pytest.approx(100 * (predicted == images.labels).float().mean().item(), abs=0.01)


def test_same_seed_same_bits_and_another_seed_other_images(small):
    torch.manual_seed(1)
    first, _ = synthesize(small, CONFIG)
    torch.manual_seed(2)
    second, _ = synthesize(small, CONFIG)
    other, _ = synthesize(small, CONFIG, machine=MachineConfig(seed=1))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_network_and_global_random_state_are_unchanged(small):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    synthesize(small, CONFIG)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in small.network.state_dict().items())
    assert not any(p.grad is not None for p in small.network.parameters())


def test_images_stay_in_the_valid_pixel_range(small):
    synthesis = GenerationLoop(small, replace(CONFIG, epsilon=1.5))
    for _ in range(5):
        synthesis.step()
    low, high = (0 - 0.5) / 0.25, (1 - 0.5) / 0.25
    assert low <= synthesis.source.current().min().item()
    assert synthesis.source.current().max().item() <= high
    assert (synthesis.source.current() == high).any()  # a step this large reaches the limit


def test_both_methods_start_every_batch_with_the_same_noise_and_labels(small):
    config = replace(CONFIG, images=48, iterations=2)
    methods = [GenerationLoop(small, config, name) for name in ("mi-fgsm", "adam")]
    for _ in range(3):  # into the second batch
        assert torch.equal(methods[0].source.labels, methods[1].source.labels)
        if methods[0].step_count % 2 == 0:
            assert torch.equal(methods[0].source.current(), methods[1].source.current())
        for method in methods:
            method.step()


def test_snapshots_are_the_states_at_their_iterations(small):
    synthesis = GenerationLoop(small, CONFIG)
    states = {}
    while not synthesis.finished:
        synthesis.step()
        states[synthesis.step_count] = small.denormalize(synthesis.source.current().detach())
    saved = synthesis.image_set().images
    assert torch.equal(saved, torch.cat([states[step] for step in CONFIG.snapshot_iterations]))
    assert CONFIG.snapshot_iterations[-1] == CONFIG.iterations


def test_single_snapshot_is_the_last_iteration(small):
    images, summary = synthesize(small, replace(CONFIG, snapshots=1, images=12))
    assert (len(images), summary["image_iterations"]) == (12, 144)


def test_every_iteration_is_recorded_with_every_layer(small):
    recorder = Recorder()
    synthesize(small, replace(CONFIG, bns_form="norms"), reporter=recorder)
    assert [(method, step) for _, method, step, _ in recorder.records] == [("mi-fgsm", step) for step in range(1, 13)]
    for _, _, _, values in recorder.records:
        assert sum(values["layers"]) == pytest.approx(values["bns"], rel=1e-5)
        expected = values["bns"] + CONFIG.alpha_tv * values["tv"] + CONFIG.alpha_l2 * values["l2"] + CONFIG.beta * values["ce"]
        assert values["total"] == pytest.approx(expected, rel=1e-5)
    kept = [frame.step for _, frame, keep in recorder.frames if keep]
    assert kept == list(range(1, 13))


def test_frame_has_the_predictions_and_statistics_of_its_step(small):
    """Class, confidence and batch statistics are those of a forward pass over the images before the step."""
    recorder = Recorder()
    config = replace(CONFIG, max_shift=0, flip=False)
    synthesis = GenerationLoop(small, config, reporter=recorder)
    entered = []
    for _ in range(3):
        entered.append(synthesis.source.current().detach().clone())
        synthesis.step()
    for before, (_, frame, _) in zip(entered, recorder.frames, strict=True):
        inputs = []
        handles = [
            layer.register_forward_hook(lambda _module, arguments, _output, kept=inputs: kept.append(arguments[0]))
            for layer in (small.network.bn1, small.network.bn2)
        ]
        with torch.no_grad():
            probabilities = small.network(before).softmax(dim=1)
        for handle in handles:
            handle.remove()
        assert frame.predicted.tolist() == probabilities.argmax(dim=1).tolist()
        assert frame.confidence.tolist() == pytest.approx(probabilities.amax(dim=1).tolist(), abs=1e-5)
        assert frame.labels.tolist() == [0, 1, 2, 3] * 3
        assert frame.means.tolist() == pytest.approx(torch.cat([x.mean(dim=(0, 2, 3)) for x in inputs]).tolist(), abs=1e-5)
        assert frame.variances.tolist() == pytest.approx(torch.cat([x.var(dim=(0, 2, 3)) for x in inputs]).tolist(), rel=1e-3)
        assert [frame.predicted.dtype, frame.labels.dtype] == ["int64", "int64"]
        assert [frame.confidence.dtype, frame.means.dtype, frame.variances.dtype] == ["float32"] * 3
    assert torch.equal(torch.from_numpy(recorder.frames[-1][1].images), small.denormalize(synthesis.source.current().detach()))


def test_running_statistics_of_all_layers(small):
    statistics = GenerationLoop(small, CONFIG).running_statistics()
    assert statistics.channels == [8, 8]
    assert statistics.means.tolist() == small.network.bn1.running_mean.tolist() + small.network.bn2.running_mean.tolist()
    assert statistics.variances.tolist() == small.network.bn1.running_var.tolist() + small.network.bn2.running_var.tolist()


@pytest.mark.parametrize(
    ("config", "most", "always"),
    [
        # few batches: the first iteration and the snapshots of each, and evenly spaced iterations
        (replace(CONFIG, images=96, iterations=120, snapshots=2), 60, [1, 72, 120, 121, 192, 240, 241, 480]),
        # many batches: those of every n-th only
        (replace(CONFIG, images=12 * 300, iterations=3, snapshots=1, burn_in=0.0), 105, [1, 900]),
        # one long batch
        (replace(CONFIG, images=12, iterations=1001, snapshots=1), 52, [1, 1001]),
    ],
)
def test_kept_steps_are_spread_over_the_run_and_the_same_for_all_methods(config, most, always):
    steps = sorted(kept_steps(config))
    assert steps == sorted(kept_steps(replace(config, epsilon=0.5, lr=0.5)))
    total = len(config.batches) * config.iterations
    assert set(always) <= set(steps) <= set(range(1, total + 1))
    assert len(steps) <= most
    assert max(after - before for before, after in zip([0, *steps], steps)) <= -(-total // 50)


def test_only_a_few_large_images_are_shown(small):
    large = FullPrecisionModel(small.network, replace(small.spec, image_size=512))
    recorder = Recorder()
    GenerationLoop(large, CONFIG, reporter=recorder).step()
    ((_, frame, _),) = recorder.frames
    assert frame.images.shape == (4, 3, 512, 512)
    assert [len(each) for each in (frame.labels, frame.predicted, frame.confidence)] == [4, 4, 4]


def test_live_change_applies_to_the_next_iteration_and_is_recorded(small):
    class Turn(NoControl):
        def values(self, method, step):
            return {"epsilon": 0.0} if step >= 3 else {}

    recorder = Recorder()
    config = replace(CONFIG, schedule="constant")
    synthesis = GenerationLoop(small, config, reporter=recorder, control=Turn())
    moved = []
    for _ in range(5):
        before = synthesis.source.current().detach().clone()
        synthesis.step()
        moved.append(bool((synthesis.source.current() != before).any()))
    assert moved == [True, True, True, False, False]
    assert recorder.changes == [("mi-fgsm", 3, "epsilon", 0.0)]
    assert synthesis.changes == [{"step": 3, "name": "epsilon", "value": 0.0}]


@pytest.mark.parametrize(("name", "value", "since"), [("epsilon", 0.02, 2), ("mu", 0.1, 2), ("beta", 0.0, 3)])
def test_change_while_the_loss_is_computed_applies_to_the_step_unless_the_loss_has_it(small, name, value, since):
    class Turn(NoControl):
        during = False  # the loss of the third iteration

        def values(self, method, step):
            return {name: value} if self.during or step > 2 else {}

    config, control = replace(CONFIG, schedule="constant"), Turn()
    turned = GenerationLoop(small, config, control=control)
    forward = turned._forward
    for iteration in range(5):
        turned._forward = lambda *given: (setattr(control, "during", iteration == 2), forward(*given))[1]  # noqa: B023, called at once
        turned.step()
        control.during = False
    assert turned.changes == [{"step": since, "name": name, "value": value}]
    # as when the change is known from the beginning, as in a run that is resumed
    replayed = GenerationLoop(small, config, control=ReplayControl(turned.changes))
    plain = GenerationLoop(small, config)
    for loop in (replayed, plain):
        for _ in range(5):
            loop.step()
    assert torch.equal(replayed.source.current(), turned.source.current())
    assert not torch.equal(plain.source.current(), turned.source.current())


def test_stops_between_two_iterations(small):
    class StopAtFour(NoControl):
        calls = 0

        def pause_point(self):
            self.calls += 1
            if self.calls == 5:
                raise RunStopped("stopped")

    recorder = Recorder()
    with pytest.raises(RunStopped):
        synthesize(small, CONFIG, reporter=recorder, control=StopAtFour())
    assert len(recorder.records) == 4


@pytest.mark.parametrize("name", ["bn2.running_var", "conv1.weight"])
def test_network_that_is_not_finite_is_refused_by_the_name_of_its_tensor(small, name):
    small.network.state_dict()[name].view(-1)[0] = math.nan
    with pytest.raises(ModelError, match=f"^parameters and statistics of small must be finite, got infinity or NaN in {name}$"):
        GenerationLoop(small, CONFIG)


def test_infinite_weight_with_finite_scores_is_refused(small):
    """Its gradient is NaN, whose sign is 0: the images would stay as they are, without an error."""
    small.network.output.weight.data[2] = math.inf
    small.network.output = nn.Sequential(small.network.output, nn.Hardtanh())
    assert small.network(torch.randn(2, 3, 8, 8)).isfinite().all()
    with pytest.raises(ModelError, match=r"got infinity or NaN in output.0.weight$"):
        synthesize(small, CONFIG)


def test_network_that_overflows_for_noise_is_not_blamed_on_the_step_size(small):
    small.network.conv1.weight.data.fill_(3e38)
    where = "^the loss of mi-fgsm must be finite, got .* at iteration 1, first in bn1: small must be able to score noise in float32$"
    with pytest.raises(CoreError, match=where):
        synthesize(small, CONFIG)


def test_divergence_is_blamed_on_the_knobs(small):
    loop = GenerationLoop(small, CONFIG)
    loop.step()
    loop.source.current().fill_(math.nan)
    with pytest.raises(CoreError, match="^the loss of mi-fgsm must be finite, got nan at iteration 2, first in bn1: try a smaller epsilon"):
        loop.step()


class RootOfZero(nn.Module):
    """Adds zero, whose gradient is infinity times zero."""

    def forward(self, scores):
        return scores + (0 * scores).sqrt()


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"zeroq", "zaq", "genie", "noise", "real"}))  # without scores in their losses
def test_gradient_that_is_not_finite_ends_the_generation(small, method):
    """The loss is finite, and the sign of a NaN is 0: MI-FGSM's images would stay as they are, without an error."""
    small.network.output = nn.Sequential(small.network.output, RootOfZero())
    loop = GenerationLoop(small, CONFIG, method)
    where = f"^the gradient of {method} must be finite, got infinity or NaN at iteration 1: small must be able to score noise in float32$"
    with pytest.raises(CoreError, match=where):
        loop.step()


def test_network_without_batch_norm_is_refused(small):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(ModelError, match="must have a BatchNorm layer"):
        GenerationLoop(FullPrecisionModel(network, small.spec), CONFIG)


@pytest.mark.slow
def test_teacher_agrees_on_images_of_the_embedded_network_after_25_iterations(embedded):
    config = GenerationConfig(images=64, iterations=25, batch_size=64, snapshots=1)
    _, summary = synthesize(embedded, config)
    assert summary["teacher_agreement"] > 60
    assert summary["bns_loss_last"] < 0.3 * summary["bns_loss_first"]


@pytest.mark.parametrize(
    ("kind", "size"), [("white", (3, 32, 32)), ("pink", (3, 32, 32)), ("pink", (1, 20, 20)), ("pink", (2, 20, 47)), ("pink", (4, 33, 7))]
)
def test_noise_has_unit_variance_and_is_reproducible(kind, size):
    first, second = (initial_noise(kind, 64, size, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (64, *size)
    assert first.mean().item() == pytest.approx(0.0, abs=0.2)
    assert first.std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(first, second)


def test_power_falls_with_frequency_in_pink_noise_only():
    shares = {}
    for kind in ("white", "pink"):
        noise = initial_noise(kind, 64, (3, 32, 32), torch.Generator().manual_seed(4))
        power = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1))
        low, high = power[1:4, 1:4].mean(), power[12:16, 12:16].mean()
        shares[kind] = (low / high).item()
    assert shares["white"] == pytest.approx(1.0, abs=0.2)
    assert shares["pink"] > 50


# half resolution first


def by_hand(model, config, sizes):
    """MI-FGSM by its formula. sizes: (side, first iteration, iteration after the last, largest shift), in order."""
    random = torch.Generator().manual_seed(0)
    low, high = model.pixel_range()
    forward, weights = ForwardPass(model.network), {"alpha_tv": config.alpha_tv, "alpha_l2": config.alpha_l2, "beta": config.beta}
    labels = torch.arange(12) % 4
    images = initial_noise("pink", 12, (3, sizes[0][0], sizes[0][0]), random)
    for side, first, last, shift in sizes:
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bilinear")
        images, momentum = images.clamp(low, high).contiguous(memory_format=torch.channels_last), torch.zeros(12, 3, side, side)
        for iteration in range(first, last):
            images.requires_grad_(True)
            loss = forward(jitter_batch(images, shift, config.flip, random), labels, weights)[0]
            (gradient,) = torch.autograd.grad(loss, images)
            momentum = (momentum * config.mu).addcdiv(gradient, gradient.abs().sum(dim=(1, 2, 3), keepdim=True))
            step = config.epsilon * (1 - 0.98 * iteration / (config.iterations - 1))
            images = images.detach().add(momentum.sign(), alpha=-step).clamp(low, high)
    return model.denormalize(images)


@pytest.mark.parametrize(
    ("half", "sizes"),
    [(0.0, [(8, 0, 12, 2)]), (0.25, [(4, 0, 3, 1), (8, 3, 12, 2)]), (0.5, [(4, 0, 6, 1), (8, 6, 12, 2)])],
)
def test_sizes_momentum_and_shifts_by_hand(small, half, sizes):
    config = replace(CONFIG, snapshots=1, images=12, half_resolution_fraction=half, bns_form="norms", max_shift=2, flip=True)
    images, _ = synthesize(small, config)
    assert torch.equal(images.images, by_hand(small, config, sizes))


def test_half_of_an_odd_size_is_rounded_down(small):
    odd = FullPrecisionModel(small.network, replace(small.spec, image_size=(9, 13)))
    synthesis = GenerationLoop(odd, replace(CONFIG, half_resolution_fraction=0.25))
    sides = []
    while not synthesis.finished:
        sides.append(tuple(synthesis.source.current().shape[2:]))
        synthesis.step()
    assert sides == [(4, 6)] * 3 + [(9, 13)] * 9
    assert synthesis.image_set().images.shape == (24, 3, 9, 13)


def test_half_resolution_images_are_shown_at_full_size(small):
    class Curious(Recorder):
        def wants_images(self, method):
            return True

    recorder = Curious()
    synthesize(small, replace(CONFIG, half_resolution_fraction=0.25), reporter=recorder)
    pictures = [torch.from_numpy(frame.images) for _, frame, _ in recorder.frames]
    assert {tuple(images.shape) for images in pictures} == {(12, 3, 8, 8)}
    blocks = [torch.equal(images, images[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)) for images in pictures]
    assert blocks == [True] * 3 + [False] * 9


def test_network_that_does_not_support_half_resolution_is_refused(embedded):
    """Its pooling window has 8 pixels, but only 4 are left."""
    config = GenerationConfig(images=8, snapshots=1, iterations=10, half_resolution_fraction=0.5)
    words = r"^half_resolution_fraction must be 0 for this network, got 0.5: .* 16 x 16 pixels with 2 images fails"
    with pytest.raises(ModelError, match=words):
        GenerationLoop(embedded, config)


@pytest.mark.parametrize("half", [0.0, 0.25])
def test_only_the_full_size_is_compiled(small, monkeypatch, half):
    compiled = []
    monkeypatch.setattr(ForwardPass, "compile", lambda self, images, labels, weights: compiled.append(tuple(images.shape)))
    config = replace(CONFIG, half_resolution_fraction=half)
    images, _ = synthesize(small, config, machine=MachineConfig(compile=True))
    assert compiled == [(12, 3, 8, 8)]
    assert torch.equal(images.images, synthesize(small, config)[0].images)


# resuming


def batch(value, count=3):
    return torch.full((count, 3, 4, 4), value, dtype=torch.uint8), torch.arange(count)


@pytest.mark.parametrize("in_folder", [False, True])
def test_snapshots_are_read_in_order(tmp_path, in_folder):
    snapshots = Snapshots(tmp_path / "kept" if in_folder else None)
    assert list(snapshots) == []
    for value in (3, 1, 2):
        snapshots.add(*batch(value))
    assert len(snapshots) == 3
    for (images, labels), value in zip(snapshots, (3, 1, 2)):
        assert torch.equal(images, batch(value)[0])
        assert torch.equal(labels, batch(value)[1])


def test_snapshots_in_a_folder_outlive_the_object(tmp_path):
    first = Snapshots(tmp_path)
    for value in (1, 2, 3):
        first.add(*batch(value))
    second = Snapshots(tmp_path)
    assert len(second) == 0  # existing files do not count before resume_after
    second.resume_after(2, 2 * len(batch(1)[1]))
    second.add(*batch(9))  # the third is written again
    assert [int(images[0, 0, 0, 0]) for images, _ in second] == [1, 2, 9]


def test_error_names_the_missing_snapshot(tmp_path):
    first = Snapshots(tmp_path)
    first.add(*batch(1))
    second = Snapshots(tmp_path)
    with pytest.raises(CoreError, match="000001.safetensors is missing: the resume state needs all images"):
        second.resume_after(2, 2 * len(batch(1)[1]))


def test_snapshot_that_cannot_be_written_does_not_count(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path)
    snapshots.add(*batch(1))

    def half(_tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("core.generation.snapshots.save_file", half)
        with pytest.raises(OSError, match="No space"):
            snapshots.add(*batch(2))
    assert len(snapshots) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["000000.safetensors"]


@pytest.mark.parametrize("name", ["mi-fgsm", "adam"])
@pytest.mark.parametrize(
    ("half", "at"), [*((0.0, at) for at in (0, 1, 7, 12, 13, 24)), *((0.25, at) for at in (0, 2, 3, 4, 12, 14, 15, 16, 24))]
)
def test_resuming_gives_the_same_bits(small, tmp_path, name, half, at):
    """Within a batch, between batches, before the first, after the last, around the change of size at iteration 3; through a file."""
    config = replace(CONFIG, images=48, max_shift=2, flip=True, half_resolution_fraction=half)

    class Turn(NoControl):
        def values(self, method, step):
            return {"beta": 2.0} if step >= 5 else {}

    whole, recorder = GenerationLoop(small, config, name, control=Turn(), folder=tmp_path / "whole"), Recorder()
    while not whole.finished:
        whole.step()
    first = GenerationLoop(small, config, name, control=Turn(), folder=tmp_path / "parts")
    for _ in range(at):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    if not first.finished:
        first.step()  # lost in the interruption
    second = GenerationLoop(small, config, name, reporter=recorder, control=Turn(), folder=tmp_path / "parts")
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step_count == at
    while not second.finished:
        second.step()
    assert [step for _, _, step, _ in recorder.records] == list(range(at + 1, 25))
    one, other = whole.image_set(), second.image_set()
    assert torch.equal(one.images, other.images)
    for method, folder in ((whole, tmp_path / "a"), (second, tmp_path / "b")):
        folder.mkdir()
        method.save(folder)
    assert torch.equal(load_image_set(tmp_path / "a").images, load_image_set(tmp_path / "b").images)
    assert torch.equal(one.labels, other.labels)
    assert one.manifest["changes"] == other.manifest["changes"] == [{"step": 5, "name": "beta", "value": 2.0}]
    figures = [{key: value for key, value in summary.items() if key != "seconds"} for summary in (whole.summary(), second.summary())]
    assert figures[0] == figures[1]


def test_state_has_plain_values_and_tensors_only(small, tmp_path):
    synthesis = GenerationLoop(small, CONFIG, folder=tmp_path / "kept")
    for _ in range(7):
        synthesis.step()
    state = synthesis.state()
    torch.save(state, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    # the size does not grow with the number of saved images
    assert (tmp_path / "state.pt").stat().st_size < 10 * synthesis.source.current().numel() * 4


def test_state_without_its_images_is_refused(small, tmp_path):
    first = GenerationLoop(small, CONFIG, folder=tmp_path / "kept")
    while not first.finished:
        first.step()
    state = first.state()
    second = GenerationLoop(small, CONFIG, folder=tmp_path / "elsewhere")
    with pytest.raises(CoreError, match="is missing: the resume state needs all images"):
        second.load_state(state)
