"""The loss of quantization-aware training: L_Q = alpha_ce L_CE + alpha_kd L_KD + alpha_feature L_F.

The paper has alpha_ce = 1 and no L_F.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import TrainingConfig
from core.models.full_precision import batch_norm_layers
from core.models.hooks import hooked


class TrainingLoss(NamedTuple):
    """The loss of one batch and its figures, all `()`. agreement: share of images for which both networks predict the same class."""

    total: Tensor
    ce: Tensor
    kd: Tensor
    agreement: Tensor


def training_loss(student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, config: TrainingConfig) -> TrainingLoss:
    """L_Q for normalized images `(N, C, H, W)` and labels `(N,)`, or shares of the classes `(N, classes)`; differentiable in the student's
    parameters, not in the teacher's.
    """
    with torch.no_grad():
        target, target_features = _outputs(teacher, images, config)
    with torch.enable_grad():
        scores, features = _outputs(student, images, config)
        ce = F.cross_entropy(scores, labels)
        kd = distillation_loss(scores, target, config.temperature)
        total = config.alpha_ce * ce + config.alpha_kd * kd
        if config.alpha_feature:
            total = total + config.alpha_feature * feature_loss(features, target_features)
    agreement = (scores.detach().argmax(dim=1) == target.argmax(dim=1)).float().mean()
    return TrainingLoss(total, ce, kd, agreement)


def _outputs(network: nn.Module, images: Tensor, config: TrainingConfig) -> tuple[Tensor, list[Tensor]]:
    """Logits and, if L_F needs them, the outputs of the BatchNorm layers."""
    if not config.alpha_feature:
        return network(images), []
    with batch_norm_outputs(network) as features:
        return network(images), features


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """L_KD = T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits `(N, classes)` (Hinton et al., 2015)."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """L_F = mean over layers of ||student - teacher||^2 / ||teacher||^2, norms over all elements (FitNets, Romero et al., 2015).

    student, teacher: one tensor per layer, of the same shape in both. Not differentiable in `teacher`.
    """
    return torch.stack([_RelativeDistance.apply(s, t) for s, t in zip(student, teacher)]).mean()


class _RelativeDistance(torch.autograd.Function):
    """||student - teacher||^2 / ||teacher||^2, norms over all elements.

    A separate function because of its gradient: that of torch's mse_loss has another memory format than channels-last tensors, which
    would make every later step of the backward pass access memory with large strides.
    """

    @staticmethod
    def forward(ctx, student, teacher):  # type: ignore[override]
        size = torch.linalg.vector_norm(teacher).square_().clamp_min_(1e-12 * teacher.numel())
        ctx.save_for_backward(student, teacher, size)
        return torch.linalg.vector_norm(student - teacher).square_() / size

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        student, teacher, size = ctx.saved_tensors
        return torch.sub(student, teacher).mul_(2 * grad / size), None


@contextmanager
def batch_norm_outputs(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the outputs of all BatchNorm layers within the block, in the order of execution.

    If an in-place activation follows, it changes the collected tensor, in teacher and student alike.
    """
    outputs: list[Tensor] = []
    with hooked(batch_norm_layers(network), lambda _name, _inputs, output: outputs.append(output)):
        yield outputs
