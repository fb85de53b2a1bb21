"""The order of the stages: generation, full precision, diversity, quantization. Nothing else; each stage is a file in core/stages/.

Both the command line and the worker processes come through here; `reporter` receives progress, `control` supplies parameter changes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core import layout
from core.checkpoints import SECONDS_BETWEEN, Checkpoints
from core.config import RunConfig
from core.data.image_sets import ImageSet, check_images, check_origin, load_image_set
from core.data.labeled import EvaluationSet, find_evaluation_set
from core.data.layouts import ImageFiles
from core.data.real_images import open_real_images
from core.errors import RunError, first_line
from core.evaluation.accuracy import Accuracy, top1_of
from core.evaluation.encoder import Encoder, load_encoder
from core.files import remove, remove_partials, write_json
from core.generation.batches import Batches
from core.generation.fused.kernels import resumed
from core.generation.loop import GenerationLoop
from core.generation.methods import DEFAULT_METHODS, METHODS
from core.generation.sources.pixels import check_half_resolution
from core.models.full_precision import FullPrecisionModel, load_model
from core.models.importing import notes_of
from core.models.registry import MODELS
from core.models.user_files import check_program
from core.models.zoos.lookup import is_zoo_name
from core.quantization.allocation import check_size
from core.quantization.placement import check_layer_bits
from core.reporting import WARNING, Control, Reporter
from core.stages.batches import fitting
from core.stages.branch import branched
from core.stages.context import Context
from core.stages.diversity import REFERENCES, diversity, reference_diversity, without_charts
from core.stages.full_precision import measure_full_precision, real_scores
from core.stages.generation import HELD_OUT, STAGE, generate, generate_held_out, joint_source, save_images
from core.stages.planning import Plan
from core.stages.quantization import QuantizationInput, quantize
from core.threads import cpu_threads

PLAN = "plan"  # a stage, and the result with what it chose
SNAPSHOTS, HELD_OUT_SNAPSHOTS = "snapshots", "held-out snapshots"


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs, loaded and checked."""

    config: RunConfig
    model: FullPrecisionModel
    sets: Mapping[str, ImageSet]  # the given ones; empty when the run generates its own
    evaluation_set: EvaluationSet | None  # None also where a run that quantizes has no evaluation images
    encoder: Encoder | None
    real_images: ImageFiles | None = None  # of the reference `real`, if the run has it

    @property
    def holds_out(self) -> bool:
        """Whether the networks are compared on held-out images: to keep the better one, or because no label tells how good it is."""
        labeled = self.evaluation_set is not None and self.evaluation_set.labeled
        return self.config.compares or (bool(self.config.bits) and not labeled)


def prepare(config: RunConfig, reporter: Reporter) -> Prepared:
    """Loads and checks everything that can be refused, before the first image is computed. Raises CoreError for bad input."""
    if is_zoo_name(config.model):
        reporter.stage(f"loading {config.model}", 0)
    check_program(config.model)
    model = load_model(config.model, config.machine.device)
    strict = config.evaluation.strict
    sets = {method: load_image_set(path, model.spec, strict) for method, path in given_images(config).items()}
    for image_set in sets.values():
        check_images(model, image_set)
        if config.bits:  # diversity can be measured of any images
            check_origin(model, image_set)
    if not sets:
        check_half_resolution(model, config.generation)
    has_real = "real" in config.methods and not sets
    real_images = open_real_images(config.generation.real_images, config.evaluation.data) if has_real else None
    if config.bits:
        check_layer_bits(model.network, config.training, torch.zeros(1, *model.spec.shape, device=model.device))
        check_size(model, config.training)
    evaluation_set = find_evaluation_set(config.evaluation.data, model.spec, strict=strict) if config.bits else None
    encoder = None
    if config.evaluation.encoder:
        reporter.stage(f"loading encoder {config.evaluation.encoder}", 0)
        encoder = load_encoder(config.evaluation.encoder, config.machine.device)
    return Prepared(config, model, sets, evaluation_set, encoder, real_images)


def rehearse() -> None:
    """A small iteration of the default run on the CPU, so that what torch and the kernels do only once does not delay the first run."""
    config = RunConfig()
    small = replace(config.generation, images=2, batch_size=2, snapshots=1)
    GenerationLoop(load_model(config.model, "cpu"), small, config.methods[0], config.machine).step()
    load_encoder(device="cpu")


def given_images(config: RunConfig) -> dict[str, Path]:
    """Method -> folder of the images that the run was given, as `layout.user_image_sets` finds them; empty when it generates its own."""
    return layout.user_image_sets(Path(config.images_from), config.methods) if config.images_from else {}


def execute(
    config: RunConfig,
    folder: Path,
    reporter: Reporter,
    control: Control,
    prepared: Prepared | None = None,
    every: float = SECONDS_BETWEEN,
    keep_plan: Callable[[RunConfig], None] = lambda config: None,
    branch_at: int = 0,
    batches: Batches | None = None,
) -> dict[str, Any]:
    """A whole run; files go into `folder`, which exists. Returns the result as `python -m core run --json` prints it.

    Where an earlier call with the same config and folder was interrupted, for whatever reason, this one continues from its last resume
    state and ends with the same bits. `control` must supply the same changes at the same iterations again. Where an earlier call has
    written the result, this one returns it and computes nothing. The resume state stays in `folder`: the caller removes it
    (RunStore.remove_resume_state) once nothing is left to do that could be interrupted.

    prepared: what `prepare` returned for this config, where it was called before. every: seconds between two resume states. keep_plan:
    called with the config that a budget of time led to, before anything is computed with it; an attempt to resume is given that one.
    branch_at: the step after which a branch leaves its run; 0: a whole run. batches: see Context.
    Raises RunStopped when `control` stops the run, CoreError for bad input.
    """
    remove_partials(folder)
    if (folder / layout.RESULT).exists():  # the last file that a run writes
        return _stored_result(folder / layout.RESULT)
    with cpu_threads(config.machine.threads):
        prepared = prepared or prepare(config, reporter)
        checkpoints = Checkpoints(folder / layout.CHECKPOINT, reporter.flush, every)
        context = Context(reporter, control, checkpoints, batches)
        with _same_kernels(prepared, checkpoints, reporter):
            if branch_at:  # whose batches must be those of its run
                result = {**branched(prepared.model, config, branch_at, context), "seconds": round(checkpoints.seconds, 3)}
            else:
                if checkpoints.is_empty:
                    prepared = _with_plan(prepared, context, checkpoints, keep_plan)
                result = _Execution(prepared, folder, checkpoints, context).result()
    write_json(folder / layout.RESULT, result)
    return result


def _with_plan(prepared: Prepared, context: Context, checkpoints: Checkpoints, keep_plan: Callable[[RunConfig], None]) -> Prepared:
    """With the config of `_planned`, after storing it if it differs."""
    planned, plan = _planned(prepared, context)
    if planned != prepared.config:
        keep_plan(planned)
        checkpoints.finish(PLAN, plan)
    return replace(prepared, config=planned)


def _planned(prepared: Prepared, context: Context) -> tuple[RunConfig, dict[str, Any]]:
    """The config that fits into memory and into its budget of time, and what was chosen, which is a result of the run; {} without one."""
    config = fitting(prepared.model, prepared.config, context.reporter)
    if not config.machine.budget:
        return config, {}
    assert context.checkpoints is not None
    plan = Plan(prepared.model, config, prepared.evaluation_set, prepared.encoder, prepared.sets, prepared.holds_out)
    config = plan.measured(context, context.checkpoints.seconds)
    chosen = plan.as_result()
    context.reporter.result(PLAN, chosen)
    return config, chosen


@contextmanager
def _same_kernels(prepared: Prepared, checkpoints: Checkpoints, reporter: Reporter) -> Iterator[None]:
    """A resumed run computes with the kernels that it began with; where they are missing, its result says that images will differ."""
    methods = [] if prepared.sets or prepared.model.device.type != "cpu" else list(prepared.config.methods)
    if checkpoints.outcome(STAGE) is not None:  # the sources of joint methods are trained further
        methods = [method for method in methods if METHODS[method].is_joint(prepared.config.training.protocol)]
    if prepared.holds_out and prepared.model.device.type == "cpu" and checkpoints.outcome(HELD_OUT) is None:
        methods = list(dict.fromkeys((*methods, *DEFAULT_METHODS)))
    if not methods:
        yield
        return
    names = " and ".join(METHODS[method].title for method in methods)
    with resumed(checkpoints.kernels, names, lambda sentence: reporter.result(f"{WARNING}/kernels", sentence)) as checkpoints.kernels:
        yield


def _stored_result(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} must be a file written by a run, but cannot be read ({first_line(error)}): delete it") from error


def _notes_of_real_images(config: RunConfig, files: ImageFiles | None) -> list[str]:
    """Sentences on the part of a data set that was chosen, and on images that are used more than once."""
    if files is None:
        return []
    needed = config.generation.saved_images
    few = f"{config.generation.real_images} has {len(files):,} images for {needed:,}: some are used more than once."
    return [*files.notes, *([few] if len(files) < needed else [])]


class _Execution:
    """The stages of one run in their order, each computed once or read from the finished stages of an earlier attempt."""

    def __init__(self, prepared: Prepared, folder: Path, checkpoints: Checkpoints, context: Context) -> None:
        self.prepared, self.config, self.folder = prepared, prepared.config, folder
        self.checkpoints, self.context = checkpoints, context

    def result(self) -> dict[str, Any]:
        """The result of the run, fit for JSON."""
        if self.config.model not in MODELS:
            # before the first image, because the pages show its class and must not import torch to find the name
            self.context.reporter.result("classes", list(self.prepared.model.spec.classes))
        self._say_notes()
        methods = list(self.prepared.sets or self.config.methods)
        result: dict[str, Any] = {"methods": {method: {} for method in methods}}
        if plan := self.checkpoints.outcome(PLAN):
            result[PLAN] = plan
        sets = self.prepared.sets or self._generated(methods)  # first, so that a viewer soon sees images
        for method, image_set in sets.items():
            if "summary" in image_set.manifest:
                result["methods"][method]["generation"] = image_set.manifest["summary"]
                self.context.reporter.result(f"generation/{method}", image_set.manifest["summary"])
        full_precision = None
        if self.prepared.evaluation_set is not None:
            measured = self._once("full_precision", self._full_precision)
            full_precision = Accuracy(**measured) if measured else None
        if self.config.bits:
            result["full_precision"] = top1_of(full_precision)
        if self.prepared.encoder is not None:
            self._add_diversity(result, sets)
        if self.config.bits:
            if self.prepared.holds_out:
                self._once(HELD_OUT, self._generate_held_out)
                remove(self.checkpoints.folder / HELD_OUT_SNAPSHOTS)
            for method, image_set in sets.items():
                accuracy = result["methods"][method]["accuracy"] = {}
                for bits in self.config.bits:
                    accuracy[str(bits)] = self._quantized(method, image_set, bits, full_precision)
        result["seconds"] = round(self.checkpoints.seconds, 3)
        return result

    def _say_notes(self) -> None:
        """Reports what was rounded, and what was guessed, ignored and skipped in the network and the images of the user."""
        if chosen := notes_of(self.config.model):
            self.context.reporter.result(f"{WARNING}/network", f"In the file of the network: {'; '.join(chosen)}.")
        generation = self.config.generation
        notes = [note for image_set in self.prepared.sets.values() for note in image_set.notes]
        if not self.prepared.sets and generation.saved_images != generation.images:
            made = f"{generation.saved_images:,} images are saved instead of {generation.images:,}"
            notes.append(f"{made}: two or more noise images, {generation.snapshots} times each.")
        notes += _notes_of_real_images(self.config, self.prepared.real_images)
        notes += [] if self.prepared.evaluation_set is None else self.prepared.evaluation_set.notes
        for number, note in enumerate(dict.fromkeys(notes), 1):
            self.context.reporter.result(f"{WARNING}/data {number}", note)

    def _once(self, stage: str, compute: Callable[[], Any]) -> Any:
        outcome = self.checkpoints.outcome(stage)
        if outcome is None:
            outcome = compute()
            self.checkpoints.finish(stage, outcome)
        return outcome

    def _full_precision(self) -> dict[str, Any]:
        assert self.prepared.evaluation_set is not None
        accuracy = measure_full_precision(self.prepared.model, self.prepared.evaluation_set, self.context, self.checkpoints.folder)
        for sentence in self.prepared.evaluation_set.damage():  # now that all images were read
            self.context.reporter.result(f"{WARNING}/damage", sentence)
        return {} if accuracy is None else asdict(accuracy)

    def _generated(self, methods: list[str]) -> dict[str, ImageSet]:
        self._once(STAGE, self._generate)
        # only now, because a state saved before needs them
        remove(self.checkpoints.folder / SNAPSHOTS)
        return {method: load_image_set(self.folder / layout.IMAGES / method, self.prepared.model.spec) for method in methods}

    def _generate(self) -> list[str]:
        loops = generate(self.prepared.model, self.config, self.context, self.checkpoints.folder / SNAPSHOTS, self.folder / layout.IMAGES)
        for loop in loops:
            save_images(loop, self.folder, self.config.training.protocol)
        return [loop.method for loop in loops]

    def _generate_held_out(self) -> list[str]:
        folder = self.checkpoints.folder
        generate_held_out(self.prepared.model, self.config, self.context, folder / HELD_OUT, folder / HELD_OUT_SNAPSHOTS)
        return list(DEFAULT_METHODS)

    def _add_diversity(self, result: dict[str, Any], sets: Mapping[str, ImageSet]) -> None:
        prepared = self.prepared
        assert prepared.encoder is not None
        for method, image_set in sets.items():
            measured = self._once(f"diversity/{method}", partial(self._diversity, method, image_set))
            result["methods"][method]["diversity"] = without_charts(measured)
        result["references"] = {}
        for name in (name for name in REFERENCES if name not in sets):  # a method or given images of this name take its place
            compute = partial(
                reference_diversity, name, prepared.model, self.config, prepared.evaluation_set, prepared.encoder, self.context
            )
            result["references"][name] = without_charts(self._once(f"reference/{name}", compute))

    def _diversity(self, method: str, image_set: ImageSet) -> dict[str, Any]:
        assert self.prepared.encoder is not None
        return diversity({method: image_set}, self.prepared.encoder, self.context)[method]

    def _quantized(self, method: str, image_set: ImageSet, bits: int, full_precision: Accuracy | None) -> dict[str, Any]:
        model, evaluation_set = self.prepared.model, self.prepared.evaluation_set
        width = self.config.training_for(bits).width

        def compute() -> dict[str, Any]:
            source = joint_source(model, self.config, method, bits, self.folder)
            held_out = load_image_set(self.checkpoints.folder / HELD_OUT).pixels() if self.prepared.holds_out else None
            expected = None
            if evaluation_set is not None:
                expected = real_scores(model, evaluation_set, self.context, self.checkpoints.folder)
            given = QuantizationInput(model, method, image_set, evaluation_set, full_precision, expected, source, held_out)
            return quantize(given, self.config, bits, self.folder / layout.QUANTIZED / method / width, self.context)

        return self._once(f"quantize/{method}/{width}", compute)
