"""A small joint training: a generator whose updates depend on the student. As a program, it trains until it is finished or killed."""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from core.checkpoints import Checkpoints
from core.config import TrainingConfig
from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec
from core.quantization.training import QuantizationTraining

SPEC = ModelSpec("tiny", "tiny", tuple("abcd"), 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise")
STEPS = 6


class Generator:
    """A linear layer from noise to images, trained to make teacher and student disagree."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layer = nn.Linear(6, 3 * 8 * 8)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=0.05)
        self.random = torch.Generator().manual_seed(2)
        self.kill_at = -1

    def make(self, count: int):
        z, labels = torch.randn(count, 6, generator=self.random), torch.randint(4, (count,), generator=self.random)
        return self.layer(z).view(count, 3, 8, 8).tanh(), labels

    @torch.no_grad()
    def calibration_images(self, count):
        return self.make(count)

    @torch.no_grad()
    def batch(self, step, teacher, student):
        return self.make(16)

    def update(self, step, teacher, student):
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        images, _ = self.make(16)
        disagreement = F.l1_loss(student(images), teacher(images))
        gradients = torch.autograd.grad(-disagreement, list(self.layer.parameters()))
        for parameter, gradient in zip(self.layer.parameters(), gradients):
            parameter.grad = gradient
        self.optimizer.step()
        return {"disagreement": float(disagreement.detach())}

    def state(self):
        return {"layer": self.layer.state_dict(), "optimizer": self.optimizer.state_dict(), "random": self.random.get_state()}

    def load_state(self, state):
        self.layer.load_state_dict(state["layer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.set_state(state["random"])


def tiny() -> FullPrecisionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        )
    return FullPrecisionModel(network.eval().requires_grad_(False).to(memory_format=torch.channels_last), SPEC)


def training(method: str = "lsq", reporter=None) -> QuantizationTraining:
    config = TrainingConfig(weight_bits=3, activation_bits=3, range=method, steps=STEPS, training_lr=0.01, calibration_images=32)
    return QuantizationTraining(tiny(), Generator(), config, reporter=reporter)


def digest(joint: QuantizationTraining) -> str:
    """SHA-256 of all tensors of the student and the source."""
    tensors = [*joint.student.state_dict().values(), *joint.source.layer.state_dict().values(), joint.source.random.get_state()]
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def main(folder: Path, kill_at: int) -> None:
    """Resumes from the folder, saves a state before each step, and prints the step at which it started and the digest."""
    torch.set_num_threads(1)
    checkpoints = Checkpoints(folder, every=0)
    joint = training()
    if state := checkpoints.state("training"):
        joint.load_state(state)
    joint.source.kill_at = kill_at
    began = joint.step_count
    while not joint.finished:
        checkpoints.save("training", joint.state())
        joint.step()
    print(began, digest(joint))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
