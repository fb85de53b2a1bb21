"""Step 1 of the paper: images from a network's BatchNorm statistics, one iteration at a time.

`Synthesis` is one method: an optimizer that works through all batches of one config. Whoever drives it calls `step()`; two methods
stepped in turn stay at the same iteration and start from the same noise and labels.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import GenerationConfig, MachineConfig, live_knobs
from core.data.augment import jitter_batch
from core.data.image_sets import ImageSet, write_image_set
from core.errors import CoreError, ModelError
from core.files import atomic_write
from core.generation.forward_pass import ForwardPass
from core.generation.methods import DEFAULT_METHODS
from core.generation.optimizers import make_optimizer, step_size_factor
from core.models.checks import check_scores
from core.models.full_precision import FullPrecisionModel, batch_norm_layers
from core.reporting import Frame, Live, Reporter, RunningStatistics, Silent, Untouched

PREVIEW_IMAGES = 64  # how many of the current batch a watcher sees at most
PREVIEW_PIXELS = 1 << 20  # of all of them together, about what a screen has room for: 64 images of 128 pixels, or 20 of 224
KEPT_MOMENTS = (
    50  # spread evenly over a run, and at most about as many of first iterations and snapshots: 26 MB of 200 steps in two methods
)


def initial_noise(kind: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise `(count, 3, size, size)` of mean 0 and variance 1 over the whole batch.

    white: N(0, 1) for each pixel. pink: N(0, 1) drawn at sizes 1, 2, 4, ... up to `size`, enlarged and added up, the finest at half
    its amplitude: power falls with frequency about as it does in photographs, so statistics start much nearer to those of training.
    """
    if kind == "white":
        return torch.randn(count, 3, size, size, generator=generator)
    total = 0.5 * torch.randn(count, 3, size, size, generator=generator)
    coarse = 1
    while coarse < size:
        draw = torch.randn(count, 3, coarse, coarse, generator=generator)
        total += F.interpolate(draw, size=(size, size), mode="bilinear", align_corners=False)
        coarse *= 2
    return total / total.std()


def starting_noise(model: FullPrecisionModel, config: GenerationConfig, batch: int, seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """What batch number `batch` starts from, in normalised space between black and white, on the network's device; and the generator
    that drew it, which goes on to draw shifts and flips. The same in every method, whatever happened before it.
    """
    side = half_size(model) if config.half_iterations else model.spec.image_size
    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    noise = initial_noise(config.noise, config.batches[batch], side, generator).to(model.device)
    return noise.clamp(*model.pixel_range()), generator


class Snapshots:
    """The images saved so far, a batch at a time: in memory or, given a folder, in a file each that outlives the process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def add(self, pixels: Tensor, labels: Tensor) -> None:
        """uint8 `(n, 3, H, W)` and int64 `(n,)`, on the CPU."""
        if self._folder is None:
            self._kept.append((pixels, labels))
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path(self._count)) as partial:
                save_file({"images": pixels, "labels": labels}, partial)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(self._count):
            if self._folder is None:
                yield self._kept[index]
            else:
                tensors = load_file(self._path(index))
                yield tensors["images"], tensors["labels"]

    def go_on_after(self, count: int) -> None:
        """The first `count` files are there from before; later ones are written again. Raises CoreError when one is missing."""
        for index in range(count):
            if not self._path(index).is_file():
                raise CoreError(f"{self._path(index)} is missing: allowed is a checkpoint with all the images made before it")
        self._count = count

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index:06d}.safetensors"


def kept_steps(config: GenerationConfig) -> frozenset[int]:
    """The steps, counted from 1 over all batches, to whose images one may come back later.

    Evenly spread; the first iteration and the snapshots of every batch or, where there are many, of every n-th; and the last. A matter
    of the config without its optimizer, so that all methods and a resumed run agree.
    """
    batches, iterations = len(config.batches), config.iterations
    steps = batches * iterations
    every = math.ceil(steps / KEPT_MOMENTS)
    every_batch = math.ceil(batches * (1 + config.snapshots) / KEPT_MOMENTS)
    special = (batch * iterations + each for batch in range(0, batches, every_batch) for each in (1, *config.snapshot_iterations))
    return frozenset((*range(every, steps, every), *special, steps))


def check_half_resolution(model: FullPrecisionModel, config: GenerationConfig) -> None:
    """Raises ModelError where `config` wants images of half the size that the network does not take."""
    if not config.half_iterations:
        return
    try:
        check_scores(model.network, model.spec, model.spec.name, half_size(model))
    except ModelError as error:
        raise ModelError(f"half_resolution_fraction must be 0 for this network, got {config.half_resolution_fraction}: {error}") from error


def half_size(model: FullPrecisionModel) -> int:
    """Side of the images, in pixels, while they have half the size."""
    return model.spec.image_size // 2


class Synthesis:
    """One optimizer on its way through all batches.

    With `config.half_resolution_fraction`, each batch begins at half the image size, as in DeepInversion (Yin et al., CVPR 2020), and
    continues, enlarged, at full size with an optimizer that knows nothing of before; the step size falls over both. Shifts are half as far
    there, and whoever watches sees the small images with each pixel four times.

    model: the full-precision network; its parameters stay as they are.
    config: checked knobs. reporter, live: who watches and who turns. folder: where images are kept as they are made, and `state`
    can go on from; without one they stay in memory.
    Raises ModelError when the network has no BatchNorm layer, or does not take images of half the size where that is asked for.
    """

    def __init__(
        self,
        model: FullPrecisionModel,
        config: GenerationConfig,
        method: str = DEFAULT_METHODS[0],
        machine: MachineConfig | None = None,
        reporter: Reporter | None = None,
        live: Live | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.method = method
        self.machine = machine or MachineConfig()
        self.reporter: Reporter = reporter or Silent()
        self.live: Live = live or Untouched()
        self.network = model.network
        self.layer_names = list(batch_norm_layers(self.network))
        self.pixel_low, self.pixel_high = model.pixel_range()
        # labels balanced over classes: any n images hold each class n / classes times, give or take one
        self.all_labels = torch.arange(config.noise_images) % len(model.spec.classes)
        self.step_count = 0
        self.steps = len(config.batches) * config.iterations
        self.seconds = 0.0
        self.changes: list[dict[str, Any]] = []
        self._kept = kept_steps(config)
        self._values = {name: getattr(config, name) for name in live_knobs(GenerationConfig)}
        self._saved = Snapshots(folder)
        self._saved_images = 0
        self._agreeing = 0
        self._first: list[float] = []
        self._last: list[float] = []
        self._pass = ForwardPass(self.network)
        check_half_resolution(model, config)
        self._start_batch(0)
        if self.machine.compile:
            self.reporter.stage(f"compiling the generation by {method}", 0)
            # only for the full size, which takes most of the time
            self._pass.compile(self._enlarged(), self.labels, self._values)

    @property
    def finished(self) -> bool:
        return self.step_count >= self.steps

    def _start_batch(self, index: int) -> None:
        """Noise in normalised space, seeded by batch: batch b is the same in every method whatever happened before it."""
        sizes = self.config.batches
        noise, self._noise = starting_noise(self.model, self.config, index, self.machine.seed)
        start = sum(sizes[:index])
        self.labels = self.all_labels[start : start + sizes[index]].to(self.model.device)
        self._optimise(noise)

    def _optimise(self, images: Tensor) -> None:
        """Begins to move these images, with an optimizer that knows nothing of before."""
        self.images = images.to(self.model.device).clone(memory_format=torch.channels_last).requires_grad_(True)
        self.optimizer = make_optimizer(self.method, self.config, self.images)

    @torch.no_grad()
    def _enlarged(self) -> Tensor:
        """The images at full size, which they may have already."""
        side = self.model.spec.image_size
        if self.images.shape[-1] == side:
            return self.images.detach()
        larger = F.interpolate(self.images, size=(side, side), mode="bilinear", align_corners=False)
        return larger.clamp(self.pixel_low, self.pixel_high)

    def state(self) -> dict[str, Any]:
        """Everything that decides what follows, between two steps: tensors and plain values, for `load_state`."""
        return {
            "step_count": self.step_count,
            "images": self.images.detach(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self._noise.get_state(),
            "values": dict(self._values),
            "changes": [dict(change) for change in self.changes],
            "saved": len(self._saved),
            "saved_images": self._saved_images,
            "agreeing": self._agreeing,
            "first": list(self._first),
            "last": list(self._last),
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, to the same bits. Raises CoreError when images saved before it are missing."""
        self.step_count = state["step_count"]
        if not self.finished:
            self._start_batch(self.step_count // self.config.iterations)
            self._optimise(state["images"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._noise.set_state(state["noise"])
        self._values, self.changes = dict(state["values"]), list(state["changes"])
        self._saved.go_on_after(state["saved"])
        self._saved_images, self._agreeing = state["saved_images"], state["agreeing"]
        self._first, self._last, self.seconds = list(state["first"]), list(state["last"]), state["seconds"]

    def step(self) -> None:
        """One iteration of the current batch: loss, gradient, step, clamp, and a snapshot where one is due."""
        began = time.perf_counter()
        iteration = self.step_count % self.config.iterations
        self._apply_live_values(iteration)

        with torch.enable_grad():
            max_shift = self.config.max_shift // 2 if iteration < self.config.half_iterations else self.config.max_shift
            shifted = jitter_batch(self.images, max_shift, self.config.flip, self._noise)
            loss, parts, layers, logits, statistics = self._pass(shifted, self.labels, self._values)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        layer_values = layers.detach().tolist()
        values = {"total": float(loss.detach()), **{name: float(part) for name, part in parts.items()}}
        self._check_finite(values["total"], layer_values, iteration)
        values["agreement"] = 100.0 * float((logits.detach().argmax(dim=1) == self.labels).float().mean())

        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(self.pixel_low, self.pixel_high)
        if iteration == 0:
            self._first.append(values["bns"])
        if iteration == self.config.iterations - 1:
            self._last.append(values["bns"])
        self.step_count += 1
        snapshot = iteration + 1 in self.config.snapshot_iterations
        if snapshot:
            self._save_snapshot()
        self.seconds += time.perf_counter() - began

        self.reporter.record("generation", self.method, self.step_count, {**values, "layers": layer_values, "seconds": self.seconds})
        keep = self.step_count in self._kept
        if keep or self.reporter.wants_images(self.method):
            self.reporter.images(self.method, self._frame(logits.detach(), statistics), keep)
        done = self.step_count % self.config.iterations
        if done == 0 and not self.finished:
            self._start_batch(self.step_count // self.config.iterations)
        elif done and done == self.config.half_iterations:
            self._optimise(self._enlarged())

    def _frame(self, logits: Tensor, statistics: Tensor) -> Frame:
        """The images as they are now, and what the forward pass knew of them."""
        side = self.model.spec.image_size
        count = min(PREVIEW_IMAGES, max(1, PREVIEW_PIXELS // side**2))
        images = self.model.denormalise(self.images.detach()[:count]).cpu()
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="nearest")
        confidence, predicted = logits[:count].float().softmax(dim=1).max(dim=1)
        means, variances = statistics.float().cpu().numpy()
        return Frame(
            self.step_count,
            images.contiguous().numpy(),
            self.labels[:count].cpu().numpy(),
            predicted.cpu().numpy(),
            confidence.cpu().numpy(),
            means,
            variances,
        )

    def running_statistics(self) -> RunningStatistics:
        """What the batch statistics are to come to."""
        layers = batch_norm_layers(self.network).values()
        means, variances = ([layer.get_buffer(name).float().cpu().numpy() for layer in layers] for name in ("running_mean", "running_var"))
        return RunningStatistics([len(mean) for mean in means], np.concatenate(means), np.concatenate(variances))

    def _apply_live_values(self, iteration: int) -> None:
        for name, value in self.live.values(self.method, self.step_count).items():
            if name in self._values and value != self._values[name]:
                self._values[name] = GenerationConfig.check_value(name, value)
                self.changes.append({"step": self.step_count, "name": name, "value": value})
                self.reporter.change(self.method, self.step_count, name, value)
        factor = step_size_factor(self.config.schedule, iteration, self.config.iterations)
        for group in self.optimizer.param_groups:
            if self.method == "mi-fgsm":
                group["lr"] = self._values["epsilon"] * factor
                group["mu"] = self._values["mu"]
            else:
                group["lr"] = self._values["lr"] * factor

    def _check_finite(self, total: float, layers: list[float], iteration: int) -> None:
        """A loss that is no number ends the run at once, and says where it began."""
        if total - total == 0:  # false for infinities and NaN alike
            return
        where = next((name for name, value in zip(self.layer_names, layers) if value - value != 0), "the network's output")
        raise CoreError(
            f"the loss is {total} at iteration {iteration + 1} of the {self.method} method, first in {where}: allowed is a finite loss, "
            "try a smaller epsilon, lr or beta"
        )

    @torch.no_grad()
    def _save_snapshot(self) -> None:
        if not bool(torch.isfinite(self.images).all()):
            raise CoreError(
                f"an image of the {self.method} method is not finite after {self.step_count} steps: allowed are finite images, "
                "try a smaller epsilon, lr or beta"
            )
        pixels = self.model.denormalise(self.images.detach())
        predicted = self.network(self.model.normalise(pixels).contiguous(memory_format=torch.channels_last)).argmax(dim=1)
        self._agreeing += int((predicted == self.labels).sum())
        self._saved.add(pixels.cpu().contiguous(), self.labels.cpu())
        self._saved_images += len(self.labels)

    def summary(self) -> dict[str, Any]:
        """Figures so far, fit for JSON: percent for teacher_agreement; L_BNS at the first and last iteration, mean over batches."""
        saved = self._saved_images
        return {
            "images": saved,
            "image_iterations": self.config.noise_images * self.config.iterations,
            "seconds": round(self.seconds, 3),
            "bns_loss_first": _mean(self._first),
            "bns_loss_last": _mean(self._last),
            "teacher_agreement": round(100.0 * self._agreeing / saved, 2) if saved else None,
            "layers": len(self.layer_names),
            "kernels": self._pass.kernels,
            **self._compilation(),
        }

    def _compilation(self) -> dict[str, Any]:
        """What came of it, where it was asked for."""
        if not self.machine.compile:
            return {}
        return {"compile_seconds": self._pass.compile_seconds, "compile_failure": self._pass.compile_failure}

    def image_set(self) -> ImageSet:
        """All snapshots so far, as pixels, with a manifest that says how they were made."""
        saved = list(self._saved)
        return ImageSet(torch.cat([pixels for pixels, _ in saved]), torch.cat([labels for _, labels in saved]), self.manifest())

    def save(self, folder: Path) -> None:
        """`image_set` as files in `folder`, which must exist, in the memory of one batch."""
        labels = torch.cat([labels for _, labels in self._saved])
        side = self.model.spec.image_size
        write_image_set(folder, labels, (3, side, side), (pixels for pixels, _ in self._saved), self.manifest())

    def manifest(self) -> dict[str, Any]:
        """How the images were made."""
        return {
            "made_by": "data-free generation from BatchNorm statistics",
            "model": self.model.spec.name,
            "classes": list(self.model.spec.classes),
            "method": self.method,
            "seed": self.machine.seed,
            "config": self.config.to_dict(),
            "changes": self.changes,
            "summary": self.summary(),
        }


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def synthesise(
    model: FullPrecisionModel,
    config: GenerationConfig,
    method: str = DEFAULT_METHODS[0],
    machine: MachineConfig | None = None,
    reporter: Reporter | None = None,
    live: Live | None = None,
) -> tuple[ImageSet, Mapping[str, Any]]:
    """Runs one method to its end: the images with their labels, and the summary. Raises RunStopped when `live` says so."""
    synthesis = Synthesis(model, config, method, machine, reporter, live)
    synthesis.reporter.stage("generation", synthesis.steps)
    while not synthesis.finished:
        synthesis.live.checkpoint()
        synthesis.step()
    return synthesis.image_set(), synthesis.summary()
