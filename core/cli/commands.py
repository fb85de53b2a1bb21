"""What each command of `python -m core` does: from its options to a result, a dictionary fit for JSON."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.cli.cluster import LOCAL, batches_on_cluster, check_cluster, check_workers, perform_on_cluster
from core.cli.progress import Progress
from core.config import (
    BIT_WIDTHS,
    DATA_NAMES,
    EXPORT_FORMATS,
    IMAGE_FORMATS,
    NETWORK_FORMATS,
    PRESETS,
    RANGE_METHODS,
    EncoderTrainingConfig,
    MachineConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    every_knob,
    knobs,
    preset,
)
from core.errors import ConfigError, CoreError, DataError, UnknownNameError, first_line, quoted
from core.export.targets import find_target
from core.generation.methods import METHODS
from core.reporting import Reporter, TeeReporter

if TYPE_CHECKING:
    from core.generation.batches import Batches
    from core.pipeline import Prepared
    from core.runs.store import RunStore

_CLASS_NAMES_BYTES = 10_000_000  # more than any list of class names
_ABOUT_WEIGHTS = ("classes", "class_names", "image_size", "mean", "std")


def _config(config_class: type, options: Namespace) -> Any:
    return config_class(**{name: getattr(options, name) for name in knobs(config_class)})


def given_options(names: Iterable[str], options: Namespace) -> dict[str, Any]:
    """The options of these names that were given or have a default."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


class Interrupted(Exception):
    """Ctrl-C during a run; its text is the id."""


def generate(options: Namespace) -> dict[str, Any]:
    """Images by one method."""
    config = RunConfig(methods=(options.method,), bits=()).with_knobs({**given_options(every_knob(), options), "encoder": ""})
    return _start(options, config, f"images/{options.method}")


def quantize(options: Namespace) -> dict[str, Any]:
    """One bit width, on a folder of images."""
    from core.layout import USER_IMAGES

    TrainingConfig.check_value("weight_bits", options.weight_bits)
    # one set of images under one name, whatever folders it has in it
    config = RunConfig(methods=(USER_IMAGES,), bits=(options.weight_bits,), images_from=options.images_from)
    config = config.with_knobs({**given_options(every_knob(), options), "encoder": ""})
    return _start(options, config, f"quantized/{USER_IMAGES}/{config.training_for(options.weight_bits).width}")


def run(options: Namespace) -> dict[str, Any]:
    return _start(options, run_config(options), "")


def _start(options: Namespace, config: RunConfig, output_subset: str) -> dict[str, Any]:
    """Creates a run in the store and computes it in this process. output_subset: see Run."""
    from core.files import check_free

    if options.out is not None:
        check_free(options.out)
    if "weights" in options:
        config = with_weights(config, options)
    executor, workers = getattr(options, "executor", LOCAL), getattr(options, "workers", 1)
    return begin(options.runs, config, options.out, output_subset, executor, workers)


def begin(
    runs: Path | None, config: RunConfig, out: Path | None = None, output_subset: str = "", executor: str = LOCAL, workers: int = 1
) -> dict[str, Any]:
    """Computes a new run in the runs folder `runs`. out, output_subset: see Run. executor: LOCAL, or that of a cluster. workers: see
    `compute`."""
    from core.runs.store import RunStore

    check_workers(workers, executor)
    with Progress() as progress:
        # bad input leaves no run behind
        if executor != LOCAL:
            check_cluster(executor, config)
        prepared = prepared_for(config, progress) if executor == LOCAL or workers > 1 else None  # a node prepares a run that it computes
        store = RunStore(runs)
        return compute(store, new_run(store, config, out, output_subset), progress, prepared, executor, workers)


def prepared_for(config: RunConfig, progress: Progress) -> Prepared:
    """What a run needs. Raises CoreError for bad input."""
    from core.pipeline import prepare
    from core.threads import cpu_threads

    with cpu_threads(config.machine.threads):
        return prepare(config, progress)


def new_run(store: RunStore, config: RunConfig, out: Path | None, output_subset: str) -> str:
    """The id of a new run with the default name. out, output_subset: see Run."""
    from core.runs.manager import default_name

    return store.create(config, default_name(config), out="" if out is None else os.path.realpath(out), output_subset=output_subset)


def with_weights(config: RunConfig, options: Namespace) -> RunConfig:
    """The config for the weights file of the user, which is copied to where uploads are kept; without one, the config as it is."""
    from core.channels import one_or_two
    from core.models.registry import GivenSpec

    given = given_options(_ABOUT_WEIGHTS, options)
    if options.weights is None:
        if given:
            name, value = next(iter(given.items()))
            value = str(value) if isinstance(value, Path) else one_or_two(value) if name == "image_size" else value
            raise ConfigError(f"{name} must come with --weights FILE, got {quoted(value)} alone")
        return config
    if "class_names" in given:
        given["class_names"] = _lines(given["class_names"])
    from core.layout import NETWORKS, UPLOADS
    from core.models.user_files import FIND_OUT, import_network
    from core.runs.store import default_folder

    folder = Path(os.path.realpath(options.runs or default_folder())) / UPLOADS / NETWORKS
    return replace(
        config, model=str(import_network(options.weights, options.model or FIND_OUT, out_folder=folder, given=GivenSpec(**given)))
    )


def _lines(file: Path) -> list[str]:
    """Lines of a text file that are not empty. Raises DataError for anything else."""
    from core.files import read_unicode

    try:
        lines = [line.strip() for line in read_unicode(file, _CLASS_NAMES_BYTES).splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{file} cannot be read ({reason}): must be a UTF-8 text file with one class name per line") from error
    names = [line for line in lines if line]
    if not names:
        raise DataError(f"{file} is empty: must be a UTF-8 text file with one class name per line")
    return names


def compute(
    store: RunStore, run_id: str, progress: Progress, prepared: Prepared | None = None, executor: str = LOCAL, workers: int = 1
) -> dict[str, Any]:
    """Computes a run of this process, copies what was asked for, and returns what the command prints of it.

    workers: with more than one, `executor` computes so many batches of images at once, and this process everything else.
    """
    from core.runs.events import StoreReporter

    try:
        with store.database.patient():
            kind, _, rest = store.run(run_id).output_subset.partition("/")
            store.mark_interrupted()
            reporter = TeeReporter(progress, StoreReporter(store, run_id))
            if executor == LOCAL or workers > 1:
                batches = None if executor == LOCAL else batches_on_cluster(store.config(run_id), workers)
                result = _perform_here(store, run_id, reporter, progress, prepared, batches)
            else:
                result = perform_on_cluster(store, run_id, reporter, executor)
    except KeyboardInterrupt:
        raise Interrupted(run_id) from None
    finally:
        store.close()
    method, _, _ = rest.partition("/")
    if kind == "images":
        result = result["methods"][method]["generation"]
    elif kind == "quantized":
        result = next(iter(result["methods"][method]["accuracy"].values()))
    elif "methods" in result:
        result["optimizers"] = result["methods"]  # their name in version 1
    return {**result, "run": run_id}


def _perform_here(
    store: RunStore, run_id: str, reporter: Reporter, progress: Progress, prepared: Prepared | None, batches: Batches | None
) -> dict[str, Any]:
    from core.runs.control import LocalControl
    from core.runs.execution import perform, runs_at_once
    from core.runs.records import Records

    progress.control = LocalControl(past=Records(store.database).past(run_id))
    before = len(store.ahead(run_id))
    if before:
        progress.wait(before)
    return perform(store, run_id, reporter, progress, at_once=runs_at_once(), prepared=prepared, batches=batches)


def runs(options: Namespace) -> dict[str, Any]:
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    store.mark_interrupted()
    keys = ("id", "state", "name", "created", "started", "ended", "stage", "step", "total", "attempt", "user", "error")
    runs = [{key: getattr(run, key) for key in keys} | {"resumable": run.state.can_resume()} for run in store.runs()]
    store.close()
    return {"folder": str(store.folder), "runs": runs}


def resume(options: Namespace) -> dict[str, Any]:
    return resumed(options, options.run, given_options(("model", "data", "encoder", "images"), options))


def resumed(options: Namespace, run_id: str, places: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Computes the rest of a run. places: where files of the run are now."""
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    try:
        store.mark_interrupted()
        if places:
            store.relocate(run_id, dict(places))
        executor, workers = getattr(options, "executor", LOCAL), getattr(options, "workers", 1)
        check_workers(workers, executor)
        if executor != LOCAL:
            check_cluster(executor, store.config(run_id))
        store.resume(run_id)
    except CoreError:
        store.close()
        raise
    with Progress() as progress:
        return compute(store, run_id, progress, executor=executor, workers=workers)


def delete(options: Namespace) -> dict[str, Any]:
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    try:
        store.mark_interrupted()
        store.delete(options.run)
    finally:
        store.close()
    return {"deleted": options.run}


def export(options: Namespace) -> dict[str, Any]:
    kind = _export_format(options)
    if kind not in EXPORT_FORMATS:
        raise UnknownNameError("format", kind, EXPORT_FORMATS)
    for name, value in (("bits", options.bits), ("method", options.method or None)):
        if value is not None and (kind == "card" or (name == "bits" and kind in IMAGE_FORMATS)):
            raise ConfigError(f"{name} must not be given with format {kind!r}, which has all of them, got {quoted(value)}")
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    try:
        run, config, folder = store.run(options.run), store.config(options.run), store.run_folder(options.run)
    finally:
        store.close()
    with Progress() as progress:
        if kind in NETWORK_FORMATS:
            from core.export.network import export_network

            target, preprocessing = options.target or "", options.with_preprocessing
            bits = options.bits or 0
            return export_network(folder, config, kind, options.out, options.method, bits, progress, progress, target, preprocessing)
        if options.with_preprocessing:
            raise ConfigError(f"preprocessing must be written into a network, got format {kind!r}")
        if kind in IMAGE_FORMATS:
            from core.export.image_sets import export_method

            return export_method(folder, config, kind, options.out, options.method)
        from core.export.card import write_card

        return {"out": str(write_card(folder, config, run.name, options.out)), "format": kind}


def _export_format(options: Namespace) -> str:
    """The format that was given, or that of the target."""
    if not options.target:
        if not options.format:
            raise ConfigError("export must be given a format or a target, got neither: --format onnx, or --target onnxruntime")
        return str(options.format)
    own = find_target(options.target).format
    if options.format not in (None, own):
        raise ConfigError(f"format must be {own} for target {options.target}, got {quoted(options.format)}")
    return own


def benchmark(options: Namespace) -> dict[str, Any]:
    from core.export.benchmark import benchmark as measure

    return measure(options.file, options.seconds, options.target or "")


def diversity(options: Namespace) -> dict[str, Any]:
    for name in ("device", "threads"):
        MachineConfig.check_value(name, getattr(options, name))
    from core.data.image_sets import load_image_set
    from core.evaluation.encoder import load_encoder
    from core.stages.context import Context
    from core.stages.diversity import diversity as measure
    from core.threads import cpu_threads

    sets = {path: load_image_set(path, strict=options.strict) for path in options.sets}
    with cpu_threads(options.threads), Progress() as progress:
        progress.warn(note for image_set in sets.values() for note in image_set.notes)
        encoder = load_encoder(options.encoder, options.device)
        measured = measure(sets, encoder, Context(progress, progress))
    keys = ("images", "mean_similarity", "within_class_similarity")
    return {
        "encoder": encoder.name,
        "encoder_trained_on": encoder.trained_on,
        "sets": [{"path": path, **{key: figures[key] for key in keys}} for path, figures in measured.items()],
    }


def run_config(options: Namespace) -> RunConfig:
    """The preset, overridden by the options given on the command line."""
    start = preset(options.preset)
    given = given_options(every_knob(), options)
    # a number of steps or a step size holds at every bit width
    by_bits: dict[str, Any] = {
        name: {} for name, knob_name in (("steps_by_bits", "steps"), ("lr_by_bits", "training_lr")) if knob_name in given
    }
    return replace(start, **given_options(("bits", "methods"), options), **by_bits).with_knobs(given)


def table(options: Namespace) -> dict[str, Any]:
    from core.runs import paper_table
    from core.runs.store import RunStore

    run = {}
    if options.row is None:
        for name in ("preset", "model", "data", "seed", "threads", "device"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name} must come with --run, which names a row to measure, got {quoted(getattr(options, name))} alone"
                )
    else:
        options.preset = options.preset or "quick"
        config = paper_table.row_config(options.row, run_config(options), options.model or "", options.data or "")
        run = {"run": _start(options, config, "")["run"]}
    store = RunStore(options.runs)
    try:
        rows = [(row, measured) for row, measured in paper_table.table(store) if options.row in (None, row.name)]
    finally:
        store.close()
    if not options.json:
        return {"text": paper_table.as_text(rows)}
    return {"rows": [paper_table.to_dict(*row) for row in rows], **run}


def pretrain(options: Namespace) -> dict[str, Any]:
    from core.channels import MODES, one_or_two

    options.image_size = one_or_two(options.image_size)
    config = _config(PretrainConfig, options)
    from core.data.labeled import open_training_set
    from core.recipes.pretrain import new_checkpoint, pretrain

    out = new_checkpoint(options.out)
    dataset, classes = open_training_set(config.data, options.strict, MODES[config.channels])
    with Progress() as progress:
        progress.warn(getattr(dataset, "notes", []))
        progress.stage(f"pretraining {config.architecture}", 0)
        spec = pretrain(dataset, classes, config, out, progress.count)
    return {"out": str(out), "architecture": spec.architecture, "classes": list(spec.classes), "trained_on": spec.trained_on}


def pretrain_encoder(options: Namespace) -> dict[str, Any]:
    config = _config(EncoderTrainingConfig, options)
    from core.files import atomic_folder, check_free

    check_free(options.out)
    from core.data.labeled import open_training_set
    from core.recipes.encoder import train_encoder

    dataset, classes = open_training_set(config.data, options.strict)
    trained_on = (
        "the 50,000 CIFAR-10 training images, with captions"
        if config.data == "cifar10"
        else f"{len(dataset):,} images of {config.data}, with captions"
    )
    with Progress() as progress, atomic_folder(options.out) as folder:
        progress.warn(getattr(dataset, "notes", []))
        progress.stage("pretraining the encoder", 0)
        train_encoder(dataset, classes, config, folder, trained_on, progress.count)
    return {"out": str(options.out), "trained_on": trained_on}


def list_names(options: Namespace) -> dict[str, Any]:
    from core.models.registry import MODELS
    from core.models.zoos.lookup import ZOOS, offline_names

    return {
        "models": [*MODELS, *(f"{zoo}:NAME of any classifier of {zoo}" for zoo in ZOOS), "PATH.safetensors made by pretrain"],
        "offline": offline_names(),
        "methods": list(METHODS),
        "optimizers": list(METHODS),  # their name in version 1
        "ranges": list(RANGE_METHODS),
        "bits": list(BIT_WIDTHS),
        "encoders": ["embedded", "ARCH:PRETRAINED of open_clip, downloaded on first use", "ARCH:FILE, weights for open_clip"],
        "data": [
            *DATA_NAMES,
            "PATH of a folder of images, with one folder a class or without labels",
            "PATH of ImageNet or CIFAR as torchvision keeps them",
        ],
        "presets": list(PRESETS),
    }
