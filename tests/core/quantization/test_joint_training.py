"""Training from a source that learns together with the student."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from joint_training import STEPS, Generator, digest, tiny, training

from core.config import RANGE_METHODS, GenerationConfig, MachineConfig, TrainingConfig
from core.data.image_sets import ImageSet
from core.errors import CoreError, DataError
from core.generation.sources.generated import GeneratedImages
from core.quantization.training import QuantizationTraining
from core.reporting import NullReporter

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("joint_training.py")


class Records(NullReporter):
    def __init__(self):
        self.values = []

    def record(self, stage, series, step, values):
        self.values.append((step, dict(values)))


def trained(joint: QuantizationTraining) -> QuantizationTraining:
    while not joint.finished:
        joint.step()
    return joint


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_resuming_at_any_step_gives_the_same_bits(method, tmp_path):
    expected = digest(trained(training(method)))
    for at in range(STEPS + 1):
        first = training(method)
        for _ in range(at):
            first.step()
        torch.save(first.state(), tmp_path / "state.pt")
        if not first.finished:
            first.step()  # lost in the interruption
        second = training(method)
        second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert second.step_count == at
        assert digest(trained(second)) == expected, at


def run(folder, kill_at: int = -1) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(kill_at)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )


def test_resuming_after_a_kill_gives_the_same_bits(tmp_path):
    """SIGKILL within a step, after the student's update and before the source's, at two different steps."""
    uninterrupted = run(tmp_path / "whole")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    for kill_at in (2, 4):
        assert run(tmp_path / "killed", kill_at).returncode == -signal.SIGKILL
    resumed = run(tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    began, bits = resumed.stdout.split()
    assert began == "4"
    assert ["0", bits] == uninterrupted.stdout.split()


def test_images_depend_on_the_student_and_figures_are_recorded():
    """A different student leads to different generator weights."""
    records = Records()
    joint = training(reporter=records)
    other = training()
    with torch.no_grad():
        other.student.get_submodule("5").bias += 1.0
    for each in (joint, other):
        trained(each)
    weights = [each.source.layer.weight for each in (joint, other)]
    assert not torch.equal(*weights)
    assert [step for step, _ in records.values] == list(range(1, STEPS + 1))
    assert all({"total", "disagreement", "seconds"} <= set(values) for _, values in records.values)


def test_update_leaves_both_networks_unchanged():
    joint = training()
    update, seen = joint.source.update, []

    def checked(step, teacher, student):
        networks = (teacher, student)
        before = [value.clone() for network in networks for value in network.state_dict().values()]
        gradients = [parameter.grad.clone() for parameter in student.parameters()]
        figures = update(step, teacher, student)
        after = [value for network in networks for value in network.state_dict().values()]
        seen.append(all(map(torch.equal, before, after)))
        seen.append(all(map(torch.equal, gradients, [parameter.grad for parameter in student.parameters()])))
        return figures

    joint.source.update = checked
    trained(joint)
    assert seen == [True] * 2 * STEPS


def test_calibration_images_of_another_size_are_refused():
    class Wrong(Generator):
        def calibration_images(self, count):
            return torch.zeros(count, 3, 9, 9), torch.zeros(count, dtype=torch.long)

    with pytest.raises(DataError, match="9 x 9"):
        QuantizationTraining(tiny(), Wrong(), TrainingConfig())


def test_inference_network_of_a_joint_training():
    joint = trained(training("mse"))
    images, _ = joint.source.batch(0, joint.teacher, joint.student)
    with torch.no_grad():
        difference = (joint.inference_network()(images) - joint.student(images)).abs()
    assert float(difference.median()) < 2e-3
    assert joint.calibrated_on is None


class Linear(GeneratedImages):
    """A generator of core/generation whose loss depends on the student."""

    latent = 4

    def make_generator(self):
        class Made(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.classes = torch.nn.Linear(4, 192), torch.nn.Embedding(4, 4)

            def forward(self, z, labels):
                return self.layer(z * self.classes(labels)).view(-1, 3, 8, 8).tanh()

        return Made()

    def student_loss(self, images, labels, teacher, student):
        return -torch.nn.functional.l1_loss(student(images), teacher(images))


def test_joint_method_is_a_training_source(small):
    """A joint method of core/generation trains a student, and resumes to the same bits."""
    config = TrainingConfig(weight_bits=3, activation_bits=3, range="minmax", steps=4, calibration_images=16)

    def made():
        source = Linear(
            small, GenerationConfig(images=16, batch_size=16, iterations=2, snapshots=1), MachineConfig(device="cpu", threads=1)
        )
        return QuantizationTraining(small, source, config)

    expected = trained(made()).student.state_dict()
    first, second = made(), made()
    first.step()
    second.load_state(first.state())
    trained(second)
    assert all(torch.equal(value, expected[name]) for name, value in second.student.state_dict().items())


def test_generator_whose_gradient_is_not_finite_ends_the_training(small):
    class Root(Linear):
        def student_loss(self, images, labels, teacher, student):
            return (0 * images).sqrt().sum()  # zero; its gradient is infinity times zero

    config = GenerationConfig(images=16, batch_size=16, iterations=2, snapshots=1)
    source = Root(small, config, MachineConfig(device="cpu", threads=1))
    with pytest.raises(CoreError, match="^the gradient of the generator must be finite, got infinity or NaN at training step 3: try"):
        source.update(2, small.network, small.network)


def test_state_of_an_earlier_version(small, small_images):
    """Order and random state of the image set were top-level keys, and weight ranges were not stored."""
    config = TrainingConfig(range="minmax", steps=4, training_batch_size=24)
    expected = trained(QuantizationTraining(small, ImageSet(small_images.images, small_images.labels), config)).student.state_dict()
    first, second = (QuantizationTraining(small, small_images, config) for _ in range(2))
    first.step()
    state = first.state()
    state |= state.pop("source")
    del state["weight_ranges"]
    second.load_state(state)
    trained(second)
    assert all(torch.equal(value, expected[name]) for name, value in second.student.state_dict().items())
