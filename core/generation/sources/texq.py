"""TexQ (Chen et al., NeurIPS 2023): a generator guided by an image of each class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import TrainingConfig
from core.errors import ModelError
from core.generation.features import classified_features
from core.generation.losses import ForwardOutputs, Term
from core.generation.method_terms import layered_gaps, statistics_loss
from core.generation.scale import to_own_scale
from core.generation.sources.gdfq import GDFQ
from core.generation.sources.intraq import margin_loss

_CENTER_CE = 5.0  # weight of the cross entropy in the loss of a center


class TexQ(GDFQ):
    """First an image of each class, by Adam with a constant step, on

        L_c = 5 CE(teacher(x), y) + layered BNS

    with `layered_gaps`. Its features are the center of the class. Then a generator, as in GDFQ, on

        L_G = beta CE + alpha_bns BNS + guidance (max(near - d, 0) + max(d - far, 0))

    with d the cosine distance between the features that enter the classifier and the center of the class plus noise. Under the authors'
    protocol, the student learns from mixtures lambda x + (1 - lambda) x' of two images of the batch, by T^2 KL to the teacher's scores of
    the mixture, mean over images and classes.

    The authors' code was never published, and their paper leaves choices open. Left out: the term that matches the energies of Laws' nine
    texture filters to a target distribution, because it is not known here which one. Chosen: the weight 5, from the reimplementation of
    SynQ (Kim et al., ICLR 2025); the features and the cosine distance, from IntraQ; 0.3 and 0.5 as the lower and the upper bound, which
    the paper calls theta_U and theta_L; a guidance of weight 1; one lambda per batch, uniform from 0 to 1; T = 20 and the other weights,
    from GDFQ.

    With more classes than `generator_batch_size`, centers are made in groups of at most as many, one after the other.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        classes = len(self.model.spec.classes)
        self._groups = math.ceil(classes / max(2, self.config.generator_batch_size))
        share = self.config.texq_share
        self._center_iterations = max(self._groups, round(share * self._iterations)) if share else 0
        noise = torch.randn(classes, *self.model.spec.shape, generator=self._random)
        self._images = noise.to(self.model.device)  # of the classes, of unit variance; none when their centers are known
        self._centers: Tensor | None = None  # (classes, F)
        self._noisy: Tensor | None = None
        self._group, self._calibrating = 0, False
        self._start_group(0)
        terms = (
            Term("center", "L_c", "loss of the centers", 1.0, self._center_loss),
            Term("ce", "L_CE", "cross entropy", "beta", self._later(lambda outputs: F.cross_entropy(outputs.logits, outputs.labels))),
            Term("gaps", "BNS", "squared gaps", "alpha_bns", self._later(statistics_loss)),
            Term("guidance", "L_g", "distance from the centers", "texq_guidance", self._later(self._guidance), features=True),
        )
        self.terms = [replace(term, log=False, recordable=False) for term in terms]  # which of them are zero changes once

    def _start_group(self, group: int) -> None:
        self._group = group
        self._members = torch.arange(len(self._images)).tensor_split(self._groups)[group]
        self._pixels = self._images[self._members].clone().requires_grad_(True)
        self._center_optimizer = torch.optim.Adam([self._pixels], lr=self.config.texq_lr)

    def _center_loss(self, outputs: ForwardOutputs) -> Tensor:
        if not self._calibrating:
            return outputs.logits.new_zeros(())
        assert outputs.statistics is not None
        return _CENTER_CE * F.cross_entropy(outputs.logits, outputs.labels) + layered_gaps(outputs.statistics)

    def _later(self, function: Any) -> Any:
        """A term of the generator, which is zero while the centers are made."""
        return lambda outputs: outputs.logits.new_zeros(()) if self._calibrating else function(outputs)

    def _guidance(self, outputs: ForwardOutputs) -> Tensor:
        if outputs.features is None:
            raise ModelError(f"{self.model.spec.name} must have a linear or convolutional layer of its own at its end, got none")
        if self._noisy is None:
            return outputs.logits.new_zeros(())
        ones = outputs.logits.new_ones(len(self._noisy))
        near = margin_loss(outputs.features, outputs.labels, self._noisy, ones, self.config.texq_near, -1)
        return near + margin_loss(outputs.features, outputs.labels, self._noisy, ones, self.config.texq_far, 1)

    def images(self, iteration: int) -> Tensor:
        done = self._batch * self.config.iterations + iteration
        self._calibrating = self._training is None and done < self._center_iterations
        if not self._calibrating:
            if self._centers is not None:
                noise = torch.randn(self._centers.shape, generator=self._random).to(self.model.device)
                self._noisy = self._centers + self.config.texq_noise * noise
            return super().images(iteration)
        if (group := done * self._groups // self._center_iterations) != self._group:
            self._start_group(group)
        self.labels = self._members.to(self.model.device)
        return to_own_scale(self._pixels, self.model)

    def parameters(self) -> Sequence[Tensor]:
        return [self._pixels] if self._calibrating else super().parameters()

    def advance(self, iteration: int, values: Mapping[str, float], step_size: float) -> None:
        if not self._calibrating:
            super().advance(iteration, values, step_size)
            return
        self._values = dict(values)
        for group in self._center_optimizer.param_groups:
            group["lr"] = self._value("texq_lr")
        self._center_optimizer.step()
        self._images[self._members] = self._pixels.detach()
        if self._batch * self.config.iterations + iteration == self._center_iterations - 1:
            self._centers = self._features()
            self._images = self._images[:0].clone()  # of a thousand classes, they are large
            self._start_group(0)

    @torch.no_grad()
    def _features(self) -> Tensor | None:
        """What enters the classifier for the image of each class, `(classes, F)`."""
        own = []
        for images in to_own_scale(self._images, self.model).split(self.config.batch_size):
            with classified_features(self.model.network) as found:
                self.model.network(images.contiguous(memory_format=torch.channels_last))
            own += [features.clone() for features in found]
        return torch.cat(own) if own else None

    @torch.no_grad()
    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        """While the centers are made, the images of the classes."""
        if not self._calibrating or not len(self._images):
            return super().preview(count)
        return to_own_scale(self._images[:count], self.model), torch.arange(len(self._images))[:count].to(self.model.device)

    def batch(self, step: int, teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(step, teacher, student)
        share = float(torch.rand((), generator=self._random))
        others = torch.randperm(len(images), generator=self._random)
        return share * images + (1 - share) * images[others.to(images.device)], labels

    def authors_training(self, training: TrainingConfig) -> TrainingConfig:
        return replace(super().authors_training(training), alpha_ce=0.0)

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "class_images": self._images.clone(),
            "class_group": self._group,
            "center_optimizer": self._center_optimizer.state_dict(),
            "centers": self._centers,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._images = state["class_images"].to(self.model.device).clone()
        self._start_group(state["class_group"])
        self._center_optimizer.load_state_dict(state["center_optimizer"])
        self._centers = None if state["centers"] is None else state["centers"].to(self.model.device)
