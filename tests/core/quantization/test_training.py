import copy
import math

import pytest
import torch
from torch import nn

from core.config import RANGE_METHODS, TrainingConfig
from core.data.image_sets import ImageSet, check_images
from core.errors import DataError, ModelError
from core.models.full_precision import FullPrecisionModel
from core.quantization.losses import distillation_loss
from core.quantization.training import QuantizationTraining, learning_rate_factor
from core.reporting import NullReporter


class Notes(NullReporter):
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, int, dict]] = []

    def record(self, stage, method, step, values) -> None:
        self.records.append((stage, method, step, dict(values)))


def config(**changes) -> TrainingConfig:
    """The paper's loss without a moving average, unless changed."""
    values = {
        "weight_bits": 4,
        "activation_bits": 4,
        "steps": 4,
        "training_batch_size": 16,
        "crop_padding": 1,
        "training_lr": 1e-3,
        "alpha_ce": 1.0,
        "alpha_feature": 0.0,
        "ema_decay": 0.0,
    }
    return TrainingConfig(**{**values, **changes})


def run(model, images, seed=0, **changes) -> QuantizationTraining:
    training = QuantizationTraining(model, images, config(**changes), seed)
    while not training.finished:
        training.step()
    return training


def test_learning_rate_factor():
    assert [learning_rate_factor(step, 100) for step in range(10)] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert learning_rate_factor(10, 100) == 1
    assert learning_rate_factor(55, 100) == pytest.approx(0.5)
    assert learning_rate_factor(99, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert [learning_rate_factor(step, 20) for step in (0, 1, 2)] == [0.5, 1, 1]
    assert learning_rate_factor(0, 1) == 1
    assert [learning_rate_factor(step, 4) for step in range(4)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


@pytest.mark.parametrize("steps", [1, 3, 9, 10, 25, 150])
def test_learning_rate_factor_is_never_zero_nor_above_one(steps):
    factors = [learning_rate_factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_training_changes_the_student_only(small, small_images, method, optimizer):
    teacher_before = copy.deepcopy(small.network.state_dict())
    training = QuantizationTraining(small, small_images, config(range=method, training_optimizer=optimizer))
    before = {name: value.clone() for name, value in training.student.state_dict().items()}
    while not training.finished:
        training.step()
    after = training.student.state_dict()
    for name in before:
        if "running_" in name or "num_batches" in name:
            assert torch.equal(after[name], before[name]), name
    for name in ("conv1.weight", "conv2.weight", "bn1.weight", "bn2.bias", "output.weight", "output.bias"):
        assert not torch.equal(after[name], before[name]), name
    assert all(torch.equal(value, teacher_before[name]) for name, value in small.network.state_dict().items())
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not small.network.training
    assert not training.student.training


def test_weight_scale_is_learned_by_lsq_only(small, small_images):
    moved = {}
    for method in ("mse", "lsq"):
        training = QuantizationTraining(small, small_images, config(range=method))
        scale = training.quantized.layers[0].weight_quantizer.scale.detach().clone()
        training.step()
        moved[method] = not torch.equal(training.quantized.layers[0].weight_quantizer.scale.detach(), scale)
    assert moved == {"mse": False, "lsq": True}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_fused_optimizer_takes_the_same_steps(small, small_images, optimizer):
    """Requires gradients in the memory format of the weights."""
    fused, plain = (QuantizationTraining(small, small_images, config(training_optimizer=optimizer)) for _ in range(2))
    for group in plain.optimizer.param_groups:
        assert group["fused"]
        group["fused"] = False
    before = [parameter.detach().clone() for parameter in plain.student.parameters()]
    for training in (fused, plain):
        training.step()
    for one, other, start in zip(fused.student.parameters(), plain.student.parameters(), before):
        moved = (other - start).detach()
        assert float(moved.abs().max()) > 0
        torch.testing.assert_close((one - start).detach(), moved, rtol=1e-3, atol=1e-3 * float(moved.abs().max()))


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_same_seed_same_bits(small, small_images, method):
    first, second = (run(small, small_images, range=method).student.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = run(small, small_images, range=method, seed=1).student.state_dict()
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_global_random_state_is_unchanged(small, small_images):
    state = torch.get_rng_state()
    run(small, small_images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_loss_falls(small, small_images, method):
    notes = Notes()
    knobs = config(weight_bits=3, activation_bits=3, range=method, steps=40, training_batch_size=64, crop_padding=0, training_flip=False)
    training = QuantizationTraining(small, small_images, knobs, series="mi-fgsm W3A3", reporter=notes)
    while not training.finished:
        training.step()
    assert [record[:3] for record in notes.records] == [("training", "mi-fgsm W3A3", step) for step in range(1, 41)]
    totals = [record[3]["total"] for record in notes.records]
    assert totals[-1] < 0.97 * totals[0]
    for *_, values in notes.records:
        assert values["total"] == pytest.approx(values["ce"] + values["kd"], rel=1e-5)
        assert 0 <= values["agreement"] <= 100


def test_distillation_alone_restores_agreement(small, small_images):
    notes = Notes()
    knobs = config(weight_bits=2, activation_bits=4, alpha_ce=0.0, steps=60, training_batch_size=64, crop_padding=0, training_flip=False)
    training = QuantizationTraining(small, small_images, knobs, reporter=notes)
    while not training.finished:
        training.step()
    losses = [record[3]["kd"] for record in notes.records]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_training_at_8_bits_stays_close_to_the_teacher(small, small_images, method):
    notes = Notes()
    knobs = config(weight_bits=8, activation_bits=8, range=method, steps=40, training_batch_size=64, alpha_ce=0.0, crop_padding=0)
    training = QuantizationTraining(small, small_images, knobs, reporter=notes)
    images = small.normalize(small_images.images)
    with torch.no_grad():
        teacher = small.network(images)
        before = float(distillation_loss(training.student(images), teacher, 4.0))
        while not training.finished:
            training.step()
        after = float(distillation_loss(training.student(images), teacher, 4.0))
    scales = torch.cat([layer.weight_quantizer.scale.detach() for layer in training.quantized.layers])
    assert float(scales.min()) > 0
    assert after < 2 * before + 1e-4


def test_zero_steps_stops_after_calibration(small, small_images):
    training = QuantizationTraining(small, small_images, config(steps=0, weight_bits=2))
    assert training.finished
    images = small.normalize(small_images.images)
    with torch.no_grad():
        assert not torch.equal(training.student(images), small.network(images))
    assert all(len(channel.unique()) <= 4 for layer in training.quantized.layers for channel in layer.quantized_weight())
    summary = training.summary()
    assert (summary["steps"], summary["quantized_layers"], summary["quantized_activations"], summary["note"]) == (0, 3, 2, "")


def test_every_image_is_used_once_before_any_is_used_again(small, small_images):
    marked = ImageSet(torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 3, 8, 8).contiguous(), small_images.labels)
    training = QuantizationTraining(small, marked, config(steps=8, training_batch_size=24, crop_padding=4))
    batches = [training.source.batch(step, training.teacher, training.student)[0] for step in range(6)]
    assert [len(batch) for batch in batches] == [24, 24, 16] * 2
    for order in (batches[:3], batches[3:]):
        pixels = small.denormalize(torch.cat(order))[:, 0, 0, 0]
        assert sorted(pixels.tolist()) == list(range(64))


def test_fewer_images_than_a_batch(small, small_images):
    few = ImageSet(small_images.images[:3], small_images.labels[:3])
    assert run(small, few, steps=3, training_batch_size=64).step_count == 3


def test_images_of_another_size_are_refused(small, small_images):
    with pytest.raises(DataError, match="images must be 8 x 8 pixels for small, got 10 x 8"):
        check_images(small, ImageSet(torch.zeros(4, 3, 10, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(DataError, match="got 8 x 16"):
        QuantizationTraining(small, ImageSet(torch.zeros(4, 3, 8, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)), config())


@pytest.mark.parametrize("label", [4, -1])
def test_label_outside_the_classes_is_refused(small, small_images, label):
    labels = small_images.labels.clone()
    labels[5] = label
    with pytest.raises(DataError, match=f"labels must be 0 to 3, .*got {label}"):
        check_images(small, ImageSet(small_images.images, labels))


def test_empty_image_set_is_refused(small, small_images):
    with pytest.raises(DataError, match="^image set must have at least one image, got none$"):
        QuantizationTraining(small, ImageSet(small_images.images[:0], small_images.labels[:0]), config())


def test_untraceable_network_trains(small, small_images):
    class Undecided(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x) if x.mean() < 1e9 else self.network(-x)

    small.network = Undecided(small.network)
    training = run(small, small_images)
    assert "cannot be traced" in training.summary()["note"]
    assert training.summary()["quantized_layers"] == 3


def test_training_ends_with_the_moving_average_of_its_parameters(small, small_images):
    training = QuantizationTraining(small, small_images, config(steps=4, ema_decay=0.5))
    name = "conv1.weight"
    expected = training.student.state_dict()[name].clone()
    while not training.finished:
        plain = {}
        original = training._average.update

        def look(step, original=original, plain=plain):
            plain[name] = training.student.state_dict()[name].clone()
            original(step)

        training._average.update = look
        training.step()
        training._average.update = original
        decay = min(0.5, training.step_count / (training.step_count + 10))
        expected = decay * expected + (1 - decay) * plain[name]
    assert not torch.equal(training.student.state_dict()[name], plain[name])
    torch.testing.assert_close(training.student.state_dict()[name], expected)


def test_feature_loss_is_added_with_its_weight(small, small_images):
    totals = {}
    for weight in (0.0, 2.0, 4.0):
        notes = Notes()
        QuantizationTraining(small, small_images, config(alpha_feature=weight), reporter=notes).step()
        totals[weight] = notes.records[0][3]["total"]
    assert totals[2.0] > totals[0.0]
    assert totals[4.0] - totals[0.0] == pytest.approx(2 * (totals[2.0] - totals[0.0]), rel=1e-3)
    assert not any(module._forward_hooks for module in small.network.modules())


# resuming


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("at", [0, 3, 6])
def test_resumed_training_has_the_same_bits(small, small_images, tmp_path, method, optimizer, decay, at):
    """Through a file, as in a run; batches of 24 from 64 images, so that a second pass over the set begins."""
    knobs = config(range=method, training_optimizer=optimizer, ema_decay=decay, steps=6, training_batch_size=24, alpha_feature=0.5)
    whole = QuantizationTraining(small, small_images, knobs)
    while not whole.finished:
        whole.step()
    first = QuantizationTraining(small, small_images, knobs)
    for _ in range(at):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    if not first.finished:
        first.step()  # lost in the interruption
    notes = Notes()
    second = QuantizationTraining(small, small_images, knobs, reporter=notes)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step_count == at
    while not second.finished:
        second.step()
    assert [step for _, _, step, _ in notes.records] == list(range(at + 1, 7))
    one, other = whole.student.state_dict(), second.student.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    images = small.normalize(small_images.images)
    with torch.no_grad():
        assert torch.equal(whole.student(images), second.student(images))


def test_dropout_is_off_during_training(small, small_images):
    """An untraceable network runs its own modules; only the quantizers may be in training mode."""
    seen = []

    class Watching(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x):
            seen.append(self.training)
            return self.network(x if x.sum() > -1e9 else -x)

    model = FullPrecisionModel(Watching(small.network).eval(), small.spec)
    training = run(model, small_images, range="minmax", steps=2, alpha_feature=1.0)
    assert not training.quantized.traced
    assert len(seen) > 4
    assert not any(seen)


def test_resume_state_with_other_quantizers_is_refused(small, small_images):
    training = run(small, small_images)
    state = training.state()
    del state["student"]["activation_quantizer_1.quantizer.zero_point"]
    with pytest.raises(ModelError, match=r"^resume state of W4A4 must have the quantizers of the network, .*, so start a new run$"):
        training.load_state(state)
