"""The generation: one method works through all batches of a config, one iteration at a time.

`GenerationLoop` knows batches, live values, loss terms, snapshots, records and resuming; what the images are and how they change is in
its ImageSource. Several loops stepped in turn stay at the same iteration.
"""

import math
import time
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import GenerationConfig, MachineConfig, live_knobs
from core.config.choices import DIVERGENCE, PLATEAU
from core.data.image_sets import ImageSet, write_image_set
from core.data.shards import SHARDS
from core.errors import CoreError
from core.files import write_json
from core.generation.batches import Batch
from core.generation.forward_pass import ForwardPass, LossOutputs
from core.generation.losses import START, TERMS, used_terms
from core.generation.methods import DEFAULT_METHODS, METHODS, load_source
from core.generation.optimizers import Plateau, step_size_factor
from core.generation.scale import in_usual_scale
from core.generation.snapshots import ShardedSnapshots, Snapshots, kept_steps
from core.generation.sources.base import ImageSource
from core.layout import MANIFEST
from core.models.divergence import are_finite, check_tensors
from core.models.full_precision import FullPrecisionModel, batch_norm_layers
from core.models.identity import weights_hash
from core.reporting import Control, Frame, NoControl, NullReporter, Reporter, RunningStatistics

ENOUGH = 10.0  # by this factor, L_BNS falls on networks that images match well
PREVIEW_IMAGES = 64  # of the current batch, at most
PREVIEW_PIXELS = 1 << 20  # of all of them together, about what a screen has room for: 64 images of 128 pixels, or 20 of 224


class GenerationLoop:
    """One method, run on all batches.

    model: the full-precision network; its parameters do not change. method: a row of core/generation/methods.py.
    config, machine: checked knobs. reporter receives progress, control supplies changes of live knobs. folder: where images are saved as
    they are made, so that `load_state` can continue; without one they stay in memory. shards: with `config.shard_size` and `folder`, where
    shards are written as soon as their images are made; the state must then be saved before the next one is taken.
    Raises ModelError when the network has no BatchNorm layer, has values that are not finite, or the method cannot work on it;
    UnknownNameError for an unknown method.
    """

    def __init__(
        self,
        model: FullPrecisionModel,
        config: GenerationConfig,
        method: str = DEFAULT_METHODS[0],
        machine: MachineConfig | None = None,
        reporter: Reporter | None = None,
        control: Control | None = None,
        folder: Path | None = None,
        shards: Path | None = None,
    ) -> None:
        source = load_source(method)
        # a generator's images may also go to a student, which reads them in the network's own scale
        self.model = model if METHODS[method].has_generator else in_usual_scale(model)
        self._given = model
        check_tensors(model.network, model.spec.name)  # MI-FGSM would not even move: the sign of a NaN is 0
        self.config = config
        self.method = method
        self.machine = machine or MachineConfig()
        self.reporter: Reporter = reporter or NullReporter()
        self.control: Control = control or NoControl()
        self.network = self.model.network
        self.layer_names = list(batch_norm_layers(model.network))
        self.step_count = 0
        self.steps = len(config.batches) * config.iterations
        self.seconds = 0.0
        self.changes: list[dict[str, Any]] = []
        self._kept = kept_steps(config)
        self._values = {name: getattr(config, name) for name in live_knobs(GenerationConfig)}
        self._saved = Snapshots(folder)
        if config.shard_size and folder is not None and shards is not None:
            self._saved = ShardedSnapshots(folder, shards, config.shard_size)
        self._saved_images = 0
        self._in_last_state = 0  # images
        self._kernels = ""  # of the batches that were taken
        self._agreeing = 0
        self._first: list[list[float]] = []  # L_BNS of each layer at the first iteration of each batch so far
        self._last: list[list[float]] = []
        self.source: ImageSource = source(self.model, config, self.machine)
        # generators follow what their papers have
        self._has_divergence = config.bns_form == DIVERGENCE and self.source.terms is None and not METHODS[method].has_generator
        self._last_pass: tuple[Tensor, LossOutputs] | None = None  # its images, of a source without parameters
        self._scale: float | None = None  # of D_BNS, found at the first iteration
        self._plateau = Plateau(config.patience)
        # live knobs that the loss does not have
        self._step_knobs = self._values.keys() - {
            term.weight for term in (TERMS.values() if self.source.terms is None else self.source.terms)
        }
        self._forward = ForwardPass(self.source.network, self.source.terms, self.source.per_image)
        if self.machine.compile:
            self.reporter.stage(f"compiling the generation by {method}", 0)
            # only at full size, which takes most of the time
            self._forward.compile(self.source.full_size(), self.source.targets(), self._weights())

    @property
    def finished(self) -> bool:
        """Whether all iterations of all batches are done."""
        return self.step_count >= self.steps

    def state(self) -> dict[str, Any]:
        """The complete state between two steps, for `load_state`: tensors and plain values."""
        self._saved.release(self._in_last_state)  # the state before this one is on disk
        self._in_last_state = self._saved_images
        return {
            **self.source.state(),
            "step_count": self.step_count,
            "values": dict(self._values),
            "scale": self._scale,
            "plateau": self._plateau.state(),
            "changes": [dict(change) for change in self.changes],
            "saved": len(self._saved),
            "saved_images": self._saved_images,
            "agreeing": self._agreeing,
            "first_layers": list(self._first),
            "last_layers": list(self._last),
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `state` with the same bits as if never interrupted. Raises CoreError when images saved so far are missing."""
        self.step_count = state["step_count"]
        if not self.finished:
            self.source.start_batch(self.step_count // self.config.iterations)
        self.source.load_state(state)
        self._values, self.changes = {**self._values, **state["values"]}, list(state["changes"])
        self._scale = state.get("scale")
        if "plateau" in state:
            self._plateau.load_state(state["plateau"])
        self._saved.resume_after(state["saved"], state["saved_images"])
        self._saved_images, self._agreeing = state["saved_images"], state["agreeing"]
        self._in_last_state = self._saved_images
        # earlier versions kept the sum over the layers alone
        self._first = list(state["first_layers"]) if "first_layers" in state else [[value] for value in state["first"]]
        self._last = list(state["last_layers"]) if "last_layers" in state else [[value] for value in state["last"]]
        self.seconds = state["seconds"]

    def go_to_batch(self, index: int) -> None:
        """Goes from the start to that of batch number `index`, with the live values that apply there and without computing what is before.

        The bits are the same if the source's batches are independent.
        """
        self._weights()  # the scale of D_BNS comes from the noise of the first batch
        self.step_count = index * self.config.iterations
        self._values.update(
            (name, value) for name, value in self.control.values(self.method, self.step_count).items() if name in self._values
        )
        self.source.start_batch(index)

    @property
    def values(self) -> dict[str, float]:
        """The live values that apply now."""
        return dict(self._values)

    def take(self, batch: Batch) -> None:
        """Goes on as if it had computed this batch, which is the one that it was about to begin. Its `step` does the same, but for time.

        Raises CoreError if the batch was computed with other kernels than the one that was taken before it.
        """
        if self._kernels not in ("", batch.kernels):
            raise CoreError(f"all workers must compute with the same kernels, {self._kernels}, got {batch.kernels}: images depend on them")
        self._kernels, self._scale, self._values = batch.kernels, batch.scale, dict(batch.values)
        for change in batch.changes:
            self.changes.append(dict(change))
            self.reporter.change(self.method, change["step"], change["name"], change["value"])
        for record in batch.records:
            self.step_count += 1
            seconds = self.seconds + record["seconds"]
            self.reporter.record("generation", self.method, self.step_count, {**record, "seconds": seconds})
        for frame in batch.frames:
            if (keep := frame.step in self._kept) or self.reporter.wants_images(self.method):
                self.reporter.images(self.method, frame, keep)
        for pixels, labels in batch.saved:
            self._saved.add(torch.tensor(pixels), torch.tensor(labels))  # copies, because arrays may be read-only
            self._saved_images += len(labels)
        self._agreeing += batch.agreeing
        self._first += batch.first_layers
        self._last += batch.last_layers
        self.seconds += batch.seconds
        if not self.finished:
            self.source.start_batch(self.step_count // self.config.iterations)

    def step(self) -> None:
        """One iteration of the current batch: loss, gradient, step; saves and reports images when they are due."""
        began = time.perf_counter()
        iteration = self.step_count % self.config.iterations
        self._read_live_values(self._values)
        loss, terms, layers, logits, statistics = self._outputs(iteration)
        layer_values = layers.detach().tolist()
        values = {"total": float(loss.detach()), "bns": sum(layer_values), **{name: float(term) for name, term in terms.items()}}
        self._check_finite(values["total"], layer_values, iteration)
        if not are_finite(parameter.grad for parameter in self.source.parameters() if parameter.grad is not None):
            # of a finite loss. MI-FGSM would not move any more, because the sign of a NaN is 0
            raise CoreError(
                f"the gradient of {self.method} must be finite, got infinity or NaN at iteration {iteration + 1}: {self._advice()}"
            )
        values["agreement"] = 100.0 * float((logits.detach().argmax(dim=1) == self.source.labels).float().mean())
        self._read_live_values(self._step_knobs)  # changed since the loss was begun: half an iteration earlier on average
        self.source.advance(iteration, self._values, self._step_size(iteration))
        self._plateau.observe(values["total"])
        if iteration == 0:
            self._first.append(layer_values)
        if iteration == self.config.iterations - 1:
            self._last.append(layer_values)
        self.step_count += 1
        self._save_due(iteration)
        self.seconds += time.perf_counter() - began
        self.reporter.record("generation", self.method, self.step_count, {**values, "layers": layer_values, "seconds": self.seconds})
        self._show(logits.detach(), statistics)
        if self.step_count % self.config.iterations == 0 and not self.finished:
            self.source.start_batch(self.step_count // self.config.iterations)
            self._plateau = Plateau(self.config.patience)
        else:
            self.source.end_iteration(iteration)

    def _outputs(self, iteration: int) -> LossOutputs:
        """The forward pass of this iteration, and the gradients of its loss; without parameters, the last pass as long as images stay."""
        if not self.source.parameters():
            images = self.source.images(iteration)
            if self._last_pass is None or self._last_pass[0] is not images:
                with torch.no_grad():
                    self._last_pass = images, self._forward(images, self.source.targets(), self._weights())
            return self._last_pass[1]
        with torch.enable_grad():
            outputs = self._forward(self.source.images(iteration), self.source.targets(), self._weights())
            for parameter in self.source.parameters():
                parameter.grad = None
            outputs[0].backward()
        return outputs

    def _step_size(self, iteration: int) -> float:
        """The factor of the step size."""
        if self.config.schedule == PLATEAU:
            return self._plateau.factor
        return step_size_factor(self.config.schedule, iteration, self.config.iterations)

    def _weights(self) -> dict[str, float]:
        """The live values, among them the weights of the loss terms; with `bns_form` "divergence" also that of D_BNS."""
        if not self._has_divergence:
            return self._values
        if self._scale is None:
            with torch.no_grad():
                _, terms, *_ = self._forward(self.source.current(), self.source.labels, {**self._values, DIVERGENCE: 1.0})
            start = float(terms[DIVERGENCE])
            self._scale = START / start if math.isfinite(start) and start > 0 else 1.0
        return {**self._values, DIVERGENCE: self._scale}

    def _read_live_values(self, names: Container[str]) -> None:
        for name, value in self.control.values(self.method, self.step_count).items():
            if name in names and value != self._values[name]:
                self._values[name] = GenerationConfig.check_value(name, value)
                self.changes.append({"step": self.step_count, "name": name, "value": value})
                self.reporter.change(self.method, self.step_count, name, value)

    def _show(self, logits: Tensor, statistics: Tensor) -> None:
        """Reports the images of this iteration if they are kept or a viewer is watching."""
        keep = self.step_count in self._kept
        if keep or self.reporter.wants_images(self.method):
            self.reporter.images(self.method, self._frame(logits, statistics), keep)
        else:
            self.reporter.unwanted_images(self.method, partial(self._frame, logits, statistics))

    def _frame(self, logits: Tensor, statistics: Tensor) -> Frame:
        """The current images and what the forward pass computed from them."""
        size = self.model.spec.size
        count = min(PREVIEW_IMAGES, max(1, PREVIEW_PIXELS // math.prod(size)))
        if (preview := self.source.preview(count)) is None:
            current, labels = self.source.current()[:count], self.source.labels[:count]
        else:
            current, labels = preview
            with torch.no_grad():
                logits = self.network(current.contiguous(memory_format=torch.channels_last))
        images = self.model.denormalize(current).cpu()
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="nearest")
        confidence, predicted = logits[:count].float().softmax(dim=1).max(dim=1)
        means, variances = statistics.float().cpu().numpy()
        return Frame(
            self.step_count,
            images.contiguous().numpy(),
            labels.cpu().numpy(),
            predicted.cpu().numpy(),
            confidence.cpu().numpy(),
            means,
            variances,
        )

    def running_statistics(self) -> RunningStatistics:
        """The running statistics that the batch statistics should match."""
        layers = batch_norm_layers(self.network).values()
        means, variances = ([layer.get_buffer(name).float().cpu().numpy() for layer in layers] for name in ("running_mean", "running_var"))
        return RunningStatistics([len(mean) for mean in means], np.concatenate(means), np.concatenate(variances))

    def terms(self) -> list[dict[str, Any]]:
        """The loss terms that the records of this run have, for charts: name, symbol, title, and whether their axis is logarithmic."""
        terms = used_terms((DIVERGENCE,) if self._has_divergence else (), self.source.terms)
        terms = list({term.name: term for term in (TERMS["bns"], *terms)}.values())  # whose values every record has
        return [{"name": term.name, "symbol": term.symbol, "title": term.title, "log": term.log} for term in terms]

    def _check_finite(self, total: float, layers: list[float], iteration: int) -> None:
        """Raises CoreError for a loss that is not finite, naming the layer where it began and what to do."""
        if total - total == 0:  # false for infinities and NaN alike
            return
        where = next((name for name, value in zip(self.layer_names, layers) if value - value != 0), "the network's output")
        raise CoreError(
            f"the loss of {self.method} must be finite, got {total} at iteration {iteration + 1}, first in {where}: {self._advice()}"
        )

    def _advice(self) -> str:
        """What to do about values that are not finite: no knob helps if the network computes them from the first noise."""
        if self.step_count == 0:
            return f"{self.model.spec.name} must be able to score noise in float32"
        if METHODS[self.method].is_reference:
            return f"{self.model.spec.name} must be able to score these images in float32"
        names = list(live_knobs(GenerationConfig, self.method))
        return "try a smaller " + " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)

    def _save_due(self, iteration: int) -> None:
        """Saves the images of this iteration that are to be saved."""
        for saved, labels in self.source.to_save(iteration, self.finished):
            self._save(saved, labels)

    @torch.no_grad()
    def _save(self, images: Tensor, labels: Tensor) -> None:
        if not bool(torch.isfinite(images).all()):
            raise CoreError(f"images of {self.method} must be finite, got others after {self.step_count} steps: {self._advice()}")
        pixels = self.model.denormalize(images)
        predicted = self.network(self.model.normalize(pixels).contiguous(memory_format=torch.channels_last)).argmax(dim=1)
        self._agreeing += int((predicted == labels).sum())
        self._saved.add(pixels.cpu().contiguous(), labels.cpu())
        self._saved_images += len(labels)

    def summary(self) -> dict[str, Any]:
        """Figures so far, JSON-serializable: percent for teacher_agreement; L_BNS at the first and last iteration, mean over batches."""
        saved = self._saved_images
        return {
            "images": saved,
            "image_iterations": 0 if METHODS[self.method].is_reference else self.config.noise_images * self.config.iterations,
            "seconds": round(self.seconds, 3),
            "bns_loss_first": _mean([sum(layers) for layers in self._first]),
            "bns_loss_last": _mean([sum(layers) for layers in self._last]),
            "teacher_agreement": round(100.0 * self._agreeing / saved, 2) if saved else None,
            "layers": len(self.layer_names),
            "kernels": self._kernels or self._forward.kernels,
            **self._compilation(),
        }

    def unmatched(self) -> dict[str, float]:
        """Layer -> by what factor its L_BNS fell, from the first iteration to the last: the layers where it fell least, at most five, if
        L_BNS as a whole fell less than tenfold; empty otherwise.
        """
        if not self._last or any(len(layers) != len(self.layer_names) for layers in (*self._first, *self._last)):
            return {}  # begun by an earlier version
        first, last = np.sum(self._first, axis=0), np.sum(self._last, axis=0)
        if last.sum() * ENOUGH <= first.sum():
            return {}
        folds = {name: float(a / b) for name, a, b in zip(self.layer_names, first, last) if b > 0}
        return {name: folds[name] for name in sorted(folds, key=folds.__getitem__)[:5]}

    def _compilation(self) -> dict[str, Any]:
        """Compile time, or why compiling failed; empty when compile is off."""
        if not self.machine.compile:
            return {}
        return {"compile_seconds": self._forward.compile_seconds, "compile_failure": self._forward.compile_failure}

    def image_set(self) -> ImageSet:
        """All snapshots so far, as pixels, with a manifest of how they were made."""
        saved = list(self._saved)
        return ImageSet(torch.cat([pixels for pixels, _ in saved]), torch.cat([labels for _, labels in saved]), self.manifest())

    def save(self, folder: Path) -> None:
        """`image_set` as files in `folder`, which must exist, in the memory of one batch; that of the shards, if there are any."""
        if isinstance(self._saved, ShardedSnapshots):
            write_json(folder / MANIFEST, {**self.manifest(), SHARDS: self._saved.finish()})
            return
        labels = torch.cat([labels for _, labels in self._saved])
        write_image_set(folder, labels, self.model.spec.shape, (pixels for pixels, _ in self._saved), self.manifest())

    def manifest(self) -> dict[str, Any]:
        """How the images were made."""
        is_reference = METHODS[self.method].is_reference
        return {
            "made_by": METHODS[self.method].title if is_reference else "data-free generation from BatchNorm statistics",
            "model": self.model.spec.name,
            "network": {"name": self.model.spec.name, "weights_sha256": weights_hash(self._given.network)},
            "classes": list(self.model.spec.classes),
            "method": self.method,
            "seed": self.machine.seed,
            # without the location of a folder
            "config": {**self.config.to_dict(), "real_images": Path(self.config.real_images).name},
            "changes": self.changes,
            "summary": self.summary(),
        }


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def synthesize(
    model: FullPrecisionModel,
    config: GenerationConfig,
    method: str = DEFAULT_METHODS[0],
    machine: MachineConfig | None = None,
    reporter: Reporter | None = None,
    control: Control | None = None,
) -> tuple[ImageSet, Mapping[str, Any]]:
    """Runs one method to the end. Returns the images with their labels, and the summary. Raises RunStopped when `control` stops it."""
    loop = GenerationLoop(model, config, method, machine, reporter, control)
    loop.reporter.stage("generation", loop.steps)
    while not loop.finished:
        loop.control.pause_point()
        loop.step()
    return loop.image_set(), loop.summary()
