"""Step 2 of the paper: calibration, then training of the quantized network on synthetic images with the full-precision one as teacher."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import TrainingConfig
from core.data.augment import crop_and_flip
from core.data.image_sets import ImageSet, check_images
from core.errors import CoreError
from core.gpu import CudaGraph
from core.models.full_precision import FullPrecisionModel, batch_norm_layers, scores_of
from core.quantization.integer.inference import whole_number_network
from core.quantization.layers import ActivationQuantizer, finish_calibration
from core.quantization.placement import QuantizedNetwork, quantize_network
from core.reporting import Control, NoControl, NullReporter, Reporter

WARM_UP_STEPS = 10


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """L_KD = T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits `(N, classes)` (Hinton et al., 2015)."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of ||student - teacher||^2 / ||teacher||^2, whole tensors; each pair of one shape (FitNets, Romero et al., 2015).

    Not differentiable in `teacher`.
    """
    return torch.stack([_RelativeDistance.apply(s, t) for s, t in zip(student, teacher)]).mean()


class _RelativeDistance(torch.autograd.Function):
    """||student - teacher||^2 / ||teacher||^2, whole tensors.

    As one function because of its gradient: that of torch's mse_loss comes in another memory format than channels-last tensors have,
    and then every step of the backward pass through the network goes slowly across memory.
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
    """Collects what every BatchNorm layer puts out while the block runs, in order; the hooks are gone afterwards.

    Where an activation in place follows, the tensor is what that has made of it, in teacher and student alike.
    """
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in batch_norm_layers(network).values()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class TrainingSource(Protocol):
    """What a training can draw from instead of a set of images: a source that goes on learning with the student (core/generation/sources).

    Each step the training calls `batch`, takes a step of the student, then calls `update`. Images are normalized `(N, 3, H, W)`, labels
    `(N,)`, both on the network's device. `update` leaves the parameters and gradients of both networks as they are.
    """

    def calibration_images(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and labels for the calibration of ranges."""

    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        """Images, without gradient, and labels for this step (from 0)."""

    def update(self, step: int, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
        """One step of the source's own training; figures for the records."""

    def state(self) -> dict[str, Any]:
        """Everything that decides what follows, between two steps."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, to the same bits."""


class QuantizationTraining:
    """One bit width on its way: calibrated when built, then trained one `step()` at a time.

    model: the full-precision network, which is the teacher. images: what to train on, a set or a source.
    series: the name under which steps are announced, such as "mi-fgsm W4A4".
    Raises DataError when the images do not fit the network, ModelError when it puts out anything but one tensor of scores.
    """

    def __init__(
        self,
        model: FullPrecisionModel,
        images: ImageSet | TrainingSource,
        config: TrainingConfig,
        seed: int = 0,
        series: str = "",
        reporter: Reporter | None = None,
        control: Control | None = None,
    ) -> None:
        self.model, self.config = model, config
        # one of the two: a finished set, or a source whose images may depend on the student
        self._set = images if isinstance(images, ImageSet) else None
        self._source = None if isinstance(images, ImageSet) else images
        if self._set is not None:
            check_images(model, self._set)
        self.series = series or config.width
        self.reporter: Reporter = reporter or NullReporter()
        self.control: Control = control or NoControl()
        self.teacher = model.network
        self._random = torch.Generator().manual_seed(seed)
        self._order: Tensor = torch.empty(0, dtype=torch.long)
        self.step_count = 0
        self.seconds = 0.0
        self.quantized = self._calibrate()
        self.student = self.quantized.network
        self.optimizer = self._make_optimizer()
        self._recording = CudaGraph(model.device)
        self._average = [parameter.detach().clone() for parameter in self.student.parameters()]

    @property
    def finished(self) -> bool:
        return self.step_count >= self.config.steps

    def _calibrate(self) -> QuantizedNetwork:
        """Finds all ranges from calibration images, drawn without replacement: the float network runs, then every range is set."""
        began = time.perf_counter()
        batches = self._calibration_batches()
        scores_of(self.teacher(batches[0][:1]), 1)
        quantized = quantize_network(self.teacher, self.config, batches[0][:1])
        quantized.network.to(self.model.device).to(memory_format=torch.channels_last)
        for quantizer in quantized.activations:
            quantizer.observing = True
        with torch.no_grad():
            for batch in batches:
                quantized.network(batch.contiguous(memory_format=torch.channels_last))
        try:
            finish_calibration(quantized.network)
        except CoreError as error:
            where = next(filter(None, (first_not_finite(self.teacher, batch) for batch in batches)), "the weights")
            raise CoreError(
                f"a range is not finite in the calibration of {self.series}, first in {where}: allowed are finite weights and activations"
            ) from error
        self.seconds += time.perf_counter() - began
        return quantized

    def _calibration_batches(self) -> list[Tensor]:
        if self._source is not None:
            images, _ = self._source.calibration_images(self.config.calibration_images)
            return list(images.detach().split(128))
        assert self._set is not None
        # indices in the set
        self.calibrated_on = torch.randperm(len(self._set), generator=self._random)[: self.config.calibration_images]
        return [self.model.normalise(self._set.images[part]) for part in self.calibrated_on.split(128)]

    def state(self) -> dict[str, Any]:
        """Everything that decides what follows, between two steps: tensors and plain values, for `load_state`."""
        source = {} if self._source is None else {"source": self._source.state()}
        return {
            **source,
            "step_count": self.step_count,
            "student": self.student.state_dict(),
            "ranges": [quantizer.range_method.state() for quantizer in self.quantized.activations],
            "optimizer": self.optimizer.state_dict(),
            "average": self._average,
            "order": self._order.clone(),  # a view of a whole epoch's order otherwise, and saved as that
            "random": self._random.get_state(),
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, to the same bits."""
        self.step_count, self.seconds = state["step_count"], state["seconds"]
        self.student.load_state_dict(state["student"])
        for quantizer, observed in zip(self.quantized.activations, state["ranges"]):
            quantizer.range_method.load_state(observed)
        self.optimizer.load_state_dict(state["optimizer"])
        for average, value in zip(self._average, state["average"]):
            average.copy_(value)
        self._order = state["order"]
        self._random.set_state(state["random"])
        if self._source is not None:
            self._source.load_state(state["source"])

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The student with the parameters that the training would end with now, which is their moving average where there is one.

        Afterwards it has its own again, to the bit. Ranges that follow the weights are found anew by each step.
        """

        def exchange() -> None:
            if self.config.ema_decay and not self.finished:
                for index, parameter in enumerate(self.student.parameters()):
                    parameter.data, self._average[index] = self._average[index], parameter.data

        exchange()
        try:
            yield self.student
        finally:
            exchange()

    def as_it_ends(self) -> nn.Module:
        """The network with which the training would end now, in whole numbers, as it is evaluated and exported; a copy."""
        with self.averaged():
            return whole_number_network(self.quantized, self.model.spec)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        parameters = list(self.student.parameters())
        if self.config.training_optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.config.training_lr, fused=True)
        return torch.optim.SGD(parameters, lr=self.config.training_lr, momentum=0.9, nesterov=True, fused=True)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """The next images of a random order without replacement, begun again when it is used up; the last of an order may be short."""
        if self._source is not None:
            images, labels = self._source.batch(self.step_count, self.teacher, self.student)
            return images.detach().contiguous(memory_format=torch.channels_last), labels
        assert self._set is not None
        if len(self._order) == 0:
            self._order = torch.randperm(len(self._set), generator=self._random)
        index, self._order = self._order[: self.config.training_batch_size], self._order[self.config.training_batch_size :]
        pixels = crop_and_flip(
            self._set.images[index].to(self.model.device), self.config.crop_padding, self.config.training_flip, self._random
        )
        return self.model.normalise(pixels).contiguous(memory_format=torch.channels_last), self._set.labels[index].to(self.model.device)

    def step(self) -> None:
        """One training step: L_Q = alpha_ce L_CE + alpha_kd L_KD + alpha_feature L_F, straight through the quantizers.

        BatchNorm statistics are frozen. The paper has alpha_ce = 1 and no L_F.
        """
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.training_lr * learning_rate_factor(self.step_count, self.config.steps)
        images, labels = self._next_batch()
        _set_training(self.student)
        try:
            loss, ce, kd, agreeing, *gradients = self._recording(self._compute, images, labels)
        except CoreError as error:  # of a range that follows the weights
            raise self._run_away("a range is not finite", images) from error
        value = float(loss)
        if not math.isfinite(value):
            raise self._run_away(f"the training loss is {value}", images)
        for parameter, gradient in zip(self.student.parameters(), gradients):
            parameter.grad = gradient
        self.optimizer.step()
        self.student.eval()
        self.step_count += 1
        self._average_parameters()
        self._check_parameters()
        figures = {} if self._source is None else self._source.update(self.step_count - 1, self.teacher, self.student)
        self.seconds += time.perf_counter() - began
        self.reporter.record(
            "training",
            self.series,
            self.step_count,
            {"total": value, "ce": float(ce), "kd": float(kd), "agreement": 100.0 * float(agreeing), "seconds": self.seconds, **figures},
        )

    def _compute(self, images: Tensor, labels: Tensor) -> Sequence[Any]:
        """L_Q, L_CE, L_KD, the share of images that both networks see alike, and the gradient of L_Q for each parameter."""
        with torch.no_grad():
            teacher, teacher_features = self._forward(self.teacher, images)
        with torch.enable_grad():
            student, student_features = self._forward(self.student, images)
            ce = F.cross_entropy(student, labels)
            kd = distillation_loss(student, teacher, self.config.temperature)
            loss = self.config.alpha_ce * ce + self.config.alpha_kd * kd
            if self.config.alpha_feature:
                loss = loss + self.config.alpha_feature * feature_loss(student_features, teacher_features)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        agreeing = (student.detach().argmax(dim=1) == teacher.argmax(dim=1)).float().mean()
        return [loss.detach(), ce.detach(), kd.detach(), agreeing, *(parameter.grad for parameter in self.student.parameters())]

    def _run_away(self, what: str, images: Tensor) -> CoreError:
        """What is wrong at the step that is being taken, and where it began."""
        return CoreError(
            f"{what} at step {self.step_count + 1} of {self.series}, "
            f"first in {first_not_finite(self.student, images) or 'the loss itself'}: "
            "allowed is a finite loss, try a smaller training_lr"
        )

    @torch.no_grad()
    def _average_parameters(self) -> None:
        """Follows the parameters with their moving average, which takes their place after the last step."""
        if not self.config.ema_decay:
            return
        # a short memory at first, so that a short training is not an average with its start
        decay = min(self.config.ema_decay, self.step_count / (self.step_count + 10))
        parameters: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(self._average, parameters, 1 - decay)
        if self.finished:
            torch._foreach_copy_(parameters, self._average)

    def _check_parameters(self) -> None:
        """The loss says nothing of what its step made of the parameters, and a fixed range may hide it from later ones, too."""
        largest = nn.utils.get_total_norm(self.student.parameters(), norm_type=math.inf)  # of all at once, as this is for every step
        if bool(torch.isfinite(largest)):
            return
        for name, parameter in self.student.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise CoreError(
                    f"{name} is not finite after step {self.step_count} of {self.series}: "
                    "allowed are finite weights, try a smaller training_lr"
                )

    def _forward(self, network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the outputs of the BatchNorm layers where they are needed."""
        if not self.config.alpha_feature:
            return network(images), []
        with batch_norm_outputs(network) as features:
            return network(images), features

    def summary(self) -> dict[str, Any]:
        """What was placed where and how long it took, fit for JSON."""
        return {
            "weight_bits": self.config.weight_bits,
            "activation_bits": self.config.input_bits,
            "range": self.config.range,
            "steps": self.step_count,
            "seconds": round(self.seconds, 3),
            "layer_bits": dict(self.config.layer_bits),
            "weight_size": self.quantized.weight_size,
            "quantized_layers": len(self.quantized.layers),
            "quantized_activations": len(self.quantized.activations),
            "note": self.quantized.note,
        }


@torch.no_grad()
def first_not_finite(network: nn.Module, images: Tensor) -> str:
    """Name of the first module, in the order of execution, that puts out an infinity or NaN for `images` `(N, C, H, W)`; empty: none.

    Of a module and its part it is the part, which is done first. A quantizer refuses a range that is not finite, and then the module
    that it is in is the first.
    """
    found: list[str] = []
    inside: list[str] = []

    def watch(name: str, module: nn.Module) -> list[Any]:
        def begins(_module: nn.Module, _inputs: Any) -> None:
            inside.append(name)

        def ends(_module: nn.Module, _inputs: Any, output: Any) -> None:
            inside.pop()
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return [module.register_forward_pre_hook(begins), module.register_forward_hook(ends)]

    handles = [handle for name, module in network.named_modules() if name for handle in watch(name, module)]
    try:
        network(images)
    except CoreError:
        found += inside[-1:]
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def learning_rate_factor(step: int, steps: int) -> float:
    """What the peak step size is multiplied by at `step` (from 0): linear warm-up over at most 10 steps, then cosine to zero."""
    warm_up = min(WARM_UP_STEPS, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _set_training(network: nn.Module) -> None:
    """Training mode for the range methods that follow; all else, BatchNorm and whatever drops at random, stays as in evaluation."""
    for module in network.modules():
        if isinstance(module, ActivationQuantizer):
            module.train()
