"""Step 2 of the paper: calibration, then training of the quantized network, with the full-precision network as teacher."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.config import TrainingConfig
from core.config.choices import AUTHORS
from core.data.image_sets import ImageSet, check_images
from core.errors import CoreError, ModelError
from core.generation.sources.base import JointSource
from core.gpu import CudaGraph
from core.models.divergence import first_not_finite, parameter_not_finite
from core.models.full_precision import FullPrecisionModel
from core.quantization.allocation import chosen_widths
from core.quantization.authors.base import AuthorsImages
from core.quantization.average import ParameterAverage
from core.quantization.calibration import calibrate
from core.quantization.correction import correct_statistics
from core.quantization.flips import FlipControl
from core.quantization.integer.inference import integer_inference_network
from core.quantization.layers import ActivationQuantizer
from core.quantization.losses import TrainingLoss, training_loss
from core.quantization.sources import ImageSetSource, TrainingSource
from core.reporting import NullReporter, Reporter
from core.schedules import cosine_after_warm_up

WARM_UP_STEPS = 10


class QuantizationTraining:
    """Training at one bit width: calibrates when it is built, then trains one `step()` at a time.

    model: the full-precision network, the teacher. images: a set, or a source that learns together with the student.
    series: the name under which steps are reported, such as "mi-fgsm W4A4".
    Raises DataError if the images do not fit the network, ModelError if it outputs anything but one tensor of scores, CoreError if a
    range is not finite.
    """

    def __init__(
        self,
        model: FullPrecisionModel,
        images: ImageSet | TrainingSource,
        config: TrainingConfig,
        seed: int = 0,
        series: str = "",
        reporter: Reporter | None = None,
    ) -> None:
        began = time.perf_counter()
        self.model, self.config = model, config
        self.series = series or config.width
        self.reporter: Reporter = reporter or NullReporter()
        self.teacher = model.network
        if isinstance(images, ImageSet):
            check_images(model, images)
            images = ImageSetSource(images, model, config, seed)
        self.source: TrainingSource = images
        pixels, labels = self.source.calibration_images(config.calibration_images)
        check_images(model, ImageSet(pixels, labels))
        # what the widths were chosen from, if `config.size` asks for them and they are not known
        self.allocation: dict[str, Any] | None = None
        if config.size and not config.layer_weight_bits:
            config, self.allocation = chosen_widths(model, config, pixels, self.series)
            self.config = config
        self.quantized = calibrate(model, config, pixels, self.series)
        if config.corrects_statistics:
            correct_statistics(model, self.quantized, pixels)
        self.student = self.quantized.network
        self.optimizer = _optimizer(self.student, config)
        self._flips = FlipControl(self.quantized.layers)
        self._graph = CudaGraph(model.device)
        self._average = ParameterAverage(self.student.parameters(), config.ema_decay)
        self.step_count = 0
        self.seconds = time.perf_counter() - began

    @property
    def finished(self) -> bool:
        return self.step_count >= self.config.steps

    def step(self) -> None:
        """One step of the student on L_Q (losses.py), with a straight-through estimator in the quantizers, then one of the source.

        BatchNorm statistics are frozen. The last step ends with the moving average of the parameters, if there is one.
        Raises CoreError if a range, the loss or a parameter is not finite.
        """
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.training_lr * self._learning_rate_factor()
        images, labels = self.source.batch(self.step_count, self.teacher, self.student)
        images = images.detach().contiguous(memory_format=torch.channels_last)
        figures = self._step_student(images, labels)
        self.step_count += 1
        self._average.update(self.step_count)
        if self.finished:
            self._average.write()
        if name := parameter_not_finite(self.student):
            raise CoreError(
                f"parameters must be finite, got infinity or NaN in {name} after step {self.step_count} of {self.series}; "
                "try a smaller training_lr"
            )
        figures |= self.source.update(self.step_count - 1, self.teacher, self.student)
        self.seconds += time.perf_counter() - began
        self.reporter.record("training", self.series, self.step_count, {**figures, "seconds": self.seconds})

    def _learning_rate_factor(self) -> float:
        if self._has_authors:
            assert isinstance(self.source, (JointSource, AuthorsImages))
            return self.source.rate(self.step_count)
        return learning_rate_factor(self.step_count, self.config.steps)

    def _step_student(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Changes the parameters along the gradient of the loss; returns the figures of the loss."""
        _set_training(self.student)
        try:
            total, ce, kd, agreement, *gradients = self._graph(self._gradients, images, labels)
        except CoreError as error:  # raised by a quantizer whose range is found again in each step
            raise self._diverged("quantization ranges must be finite, got infinity or NaN", images) from error
        figures = {"total": float(total), "ce": float(ce), "kd": float(kd), "agreement": 100.0 * float(agreement)}
        if not math.isfinite(figures["total"]):
            raise self._diverged(f"training loss must be finite, got {figures['total']}", images)
        for parameter, gradient in zip(self.student.parameters(), gradients):
            parameter.grad = gradient
        with self._flips.at_least(self.config.flip_share * self._learning_rate_factor()):
            self.optimizer.step()
        self.student.eval()
        return figures

    def _gradients(self, images: Tensor, labels: Tensor) -> Sequence[Any]:
        """The terms of the loss, then the gradient of each parameter. On a GPU this is captured as a CUDA graph."""
        self.optimizer.zero_grad(set_to_none=True)
        size = self.source.perturbation if isinstance(self.source, AuthorsImages) else 0.0
        images = images.detach().requires_grad_(size > 0)
        loss = self._loss(images, labels)
        loss.total.backward()
        if images.grad is not None:
            # its gradients are added to those of the images; only now, because a forward pass may change the ranges of quantizers
            copy = (images + size * images.grad.sign()).detach()
            second = self._loss(copy, labels, perturbed=True).total
            second.backward()
            loss = loss._replace(total=loss.total + second)
        return [*(term.detach() for term in loss), *(parameter.grad for parameter in self.student.parameters())]

    def _loss(self, images: Tensor, labels: Tensor, perturbed: bool = False) -> TrainingLoss:
        if isinstance(self.source, AuthorsImages):
            with torch.enable_grad():
                return self.source.loss(images, labels, self.teacher, self.student, perturbed)
        loss = training_loss(self.student, self.teacher, images, labels, self.config)
        if not self._has_authors:
            return loss
        assert isinstance(self.source, JointSource)
        with torch.enable_grad():
            own = self.source.authors_loss(images, self.teacher, self.student)
        return loss if own is None else loss._replace(total=own)

    @property
    def _has_authors(self) -> bool:
        """Whether the student follows the protocol of the source's authors."""
        return self.config.protocol == AUTHORS and isinstance(self.source, (JointSource, AuthorsImages))

    def _diverged(self, problem: str, images: Tensor) -> CoreError:
        """The error for a problem in the current step, with the first module that it shows in."""
        where = first_not_finite(self.student, images) or "the loss itself"
        return CoreError(f"{problem} at step {self.step_count + 1} of {self.series}, first in {where}; try a smaller training_lr")

    @contextmanager
    def averaged_parameters(self) -> Iterator[nn.Module]:
        """Within the block, the student has the parameters that training would end with now: their moving average, if there is one.

        Afterwards it has its own parameters again, bit for bit. Ranges that depend on the weights are found again in the next step.
        """
        swap = not self.finished
        if swap:
            self._average.swap()
        try:
            yield self.student
        finally:
            if swap:
                self._average.swap()

    def inference_network(self) -> nn.Module:
        """A copy of the network that training would end with now, computing with integers, as it is evaluated and exported."""
        with self.averaged_parameters():
            return integer_inference_network(self.quantized, self.model.spec)

    def state(self) -> dict[str, Any]:
        """Everything that decides what follows, between two steps: tensors and plain values, for `load_state`."""
        return {
            "step_count": self.step_count,
            "student": self.student.state_dict(),
            "ranges": [quantizer.range_method.state() for quantizer in self.quantized.activations],
            "weight_ranges": [layer.weight_range.state() for layer in self.quantized.layers],
            "optimizer": self.optimizer.state_dict(),
            "average": self._average.values,
            "source": self.source.state(),
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, to the same bits. Raises ModelError for a state of a network with other quantizers."""
        if missing := sorted(state["student"].keys() ^ self.student.state_dict().keys()):
            raise ModelError(
                f"resume state of {self.series} must have the quantizers of the network, got others ({missing[0]}); it was saved by an "
                "earlier version that placed them elsewhere, so start a new run"
            )
        self.step_count, self.seconds = state["step_count"], state["seconds"]
        self.student.load_state_dict(state["student"])
        for quantizer, values in zip(self.quantized.activations, state["ranges"]):
            quantizer.range_method.load_state(values)
        for layer, values in zip(self.quantized.layers, state.get("weight_ranges", ())):
            layer.weight_range.load_state(values)
        self.optimizer.load_state_dict(state["optimizer"])
        self._average.load(state["average"])
        # earlier versions trained on sets only, and had the state of the set among the other values
        self.source.load_state(state.get("source", state))

    @property
    def calibrated_on(self) -> Tensor | None:
        """Indices of the images in the set that the network was calibrated on; None for a source that learns with the student."""
        return self.source.calibrated_on if isinstance(self.source, ImageSetSource) else None

    def summary(self) -> dict[str, Any]:
        """Settings, numbers of quantizers and training time, as JSON values."""
        return {
            "weight_bits": self.config.weight_bits,
            "activation_bits": self.config.input_bits,
            "range": self.config.range,
            "steps": self.step_count,
            "seconds": round(self.seconds, 3),
            "layer_bits": dict(self.config.layer_bits),
            "layer_weight_bits": dict(self.config.layer_weight_bits),
            "weight_size": self.quantized.weight_size,
            "quantized_layers": len(self.quantized.layers),
            "quantized_activations": len(self.quantized.activations),
            "note": self.quantized.note,
        }


def learning_rate_factor(step: int, steps: int) -> float:
    """Factor of the peak step size at `step` (from 0): linear warm-up over at most 10 steps, then cosine decay to zero."""
    return cosine_after_warm_up(step, steps, min(WARM_UP_STEPS, steps // 10))


def _optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    if config.training_optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.training_lr, weight_decay=config.training_weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=config.training_lr, momentum=0.9, nesterov=True, weight_decay=config.training_weight_decay, fused=True
    )


def _set_training(network: nn.Module) -> None:
    """Training mode for the quantizers of activations only: BatchNorm and dropout stay as in evaluation."""
    for module in network.modules():
        if isinstance(module, ActivationQuantizer):
            module.train()
