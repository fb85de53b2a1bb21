"""`python -m core ...`: the engine without a browser. Progress on stderr; `--json` prints one JSON object last on stdout.

Bad input ends in one line that names the value and what is allowed, with exit code 2. torch is imported only by the commands
that compute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from core.config import (
    BIT_WIDTHS,
    EVALUATION_SETS,
    EXPORT_FORMATS,
    IMAGE_FORMATS,
    NETWORK_FORMATS,
    OPTIMIZERS,
    PRESETS,
    RANGE_METHODS,
    EncoderTrainingConfig,
    GenerationConfig,
    PretrainConfig,
    QuantizationConfig,
    RunConfig,
    flag,
    help_text,
    knobs,
    preset,
)
from core.errors import ConfigError, CoreError, DataError, UnknownNameError, first_line, one_line, quoted
from core.layout import USER_IMAGES
from core.memory import keep_memory
from core.reporting import TEST, Both, Frame, Live, RunningStatistics, Untouched

if TYPE_CHECKING:
    from core.pipeline import Prepared
    from core.runs.store import RunStore

_LONGEST_NAMES = 10_000_000  # bytes: more than any list of class names
_IN_THE_RUN = " Without it the files stay where the run keeps them."


class _Parser(argparse.ArgumentParser):
    """One line on stderr instead of the usage, exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(one_line(f"{self.prog}: {message}"), file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        result = options.function(options)
    except CoreError as error:
        print(f"{parser.prog} {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {options.command}: interrupted, nothing was written", file=sys.stderr)
        return 130
    except _Interrupted as interrupted:
        print(f"{parser.prog} {options.command}: interrupted; go on with {parser.prog} resume {interrupted}", file=sys.stderr)
        return 130
    if options.json:
        text = json.dumps(result)
    elif options.command == "runs":
        text = _printable(_as_table(result["runs"]) or f"no runs in {result['folder']}")
    elif options.command == "table":
        text = _printable(result["text"])
    else:
        text = _printable(_in_words(result))
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # whoever read it, such as `head`, has enough; and Python itself would complain about the rest when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m core",
        description="Data-free quantization: images from a network's BatchNorm statistics, then a 2- to 8-bit network.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    generate = _command(commands, "generate", "Synthesise images from a network.", _generate)
    _add_knobs(generate, GenerationConfig)
    _add_checkpoint(generate)
    _add_out(generate, "New folder for images.safetensors and manifest.json.", _IN_THE_RUN)

    quantize = _command(commands, "quantize", "Quantize a network with a folder of images.", _quantize)
    quantize.add_argument(
        "--images",
        required=True,
        metavar="PATH",
        help="Images written by generate or export, or a folder with one folder of images a class.",
    )
    _add_knobs(quantize, QuantizationConfig)
    _add_checkpoint(quantize)
    _add_out(quantize, "New folder for quantized.safetensors and quantize.json.", _IN_THE_RUN)

    diversity = _command(commands, "diversity", "CLIP similarity within sets of images.", _diversity)
    diversity.add_argument(
        "sets", nargs="+", metavar="PATH", help="Images written by generate or export, or a folder with one folder of images a class."
    )
    diversity.add_argument("--encoder", default="embedded", help="embedded, or ARCH:PRETRAINED as open_clip lists them.")
    diversity.add_argument("--device", default="auto", help="auto, cpu, cuda or mps.")
    diversity.add_argument("--threads", type=_whole, default=0, help="CPU threads; 0 leaves the choice to torch.")

    run = _command(commands, "run", "Everything: generate, compare, quantize.", _run)
    run.add_argument("--preset", default="quick", help=f"Settings to start from: {', '.join(PRESETS)}.")
    run.add_argument("--model", help=_of_preset(GenerationConfig, "model"))
    _add_checkpoint(run)
    run.add_argument("--bits", nargs="+", type=_whole, metavar="N", help="Bit widths, 2 to 8. Default: those of the preset.")
    _add_layer_bits(run)
    run.add_argument("--optimizers", nargs="+", metavar="NAME", help=f"{' and '.join(OPTIMIZERS)}. Default: both.")
    run.add_argument("--encoder", help="embedded, or ARCH:PRETRAINED as open_clip lists them.")
    run.add_argument("--data", help=_of_preset(QuantizationConfig, "data"))
    run.add_argument("--seed", type=_whole, help="Seed of generation and training.")
    run.add_argument("--threads", type=_whole, help="CPU threads; 0 leaves the choice to torch.")
    run.add_argument("--device", help="auto, cpu, cuda or mps.")
    _add_out(run, "New folder for images, quantized networks and result.json.", _IN_THE_RUN)

    table = _command(commands, "table", "The paper's table with what was measured here beside it.", _table)
    table.add_argument("--run", dest="row", metavar="ROW", help="Measure a row first, such as cifar10/resnet20/4; kept as a run.")
    table.add_argument("--preset", help=f"With --run: settings, {', '.join(PRESETS)}. Default: quick.")
    table.add_argument("--model", help="With --run: resnet20_cifar10 takes the embedded checkpoint. Default: the paper's, downloaded.")
    table.add_argument("--data", help="With --run: folder of evaluation images; needed for all but CIFAR-10.")
    table.add_argument("--seed", type=_whole, help="With --run: seed of generation and training.")
    table.add_argument("--threads", type=_whole, help="With --run: CPU threads; 0 leaves the choice to torch.")
    table.add_argument("--device", help="With --run: auto, cpu, cuda or mps.")
    table.set_defaults(out=None, bits=None, optimizers=None, encoder=None, layer_bits=None)

    _command(commands, "runs", "Runs with their state, the newest first.", _runs)
    for name, help, function in (
        ("resume", "Go on with a run that was stopped, interrupted or has failed.", _resume),
        ("delete", "Remove a finished run with its images and networks.", _delete),
    ):
        command = _command(commands, name, help, function)
        command.add_argument("run", type=_run_id, metavar="RUN", help="Its id, as `runs` lists it.")

    export = _command(commands, "export", "Write a result of a run as a file that runs elsewhere, and check it.", _export)
    export.add_argument("run", type=_run_id, metavar="RUN", help="Its id, as `runs` lists it.")
    formats = (
        f"A quantized network as {', '.join(NETWORK_FORMATS)}; the images as {', '.join(IMAGE_FORMATS)}; card: a model card with pictures."
    )
    export.add_argument("--format", required=True, help=formats)
    export.add_argument("--method", default="", help=f"Whose images, or trained on whose. Default: {OPTIMIZERS[0]}, or the only one.")
    export.add_argument("--bits", type=_whole, metavar="N", help="Bit width of the weights. Default: the only one of the run.")
    _add_out(export, "New file, whose name ends as the format wants it; a new folder for png, safetensors and card.")

    pretrain = _command(commands, "pretrain", "Train a full-precision network to start from.", _pretrain)
    _add_knobs(pretrain, PretrainConfig)
    _add_out(pretrain, "New .safetensors file, to be used as --model.")

    encoder = _command(commands, "pretrain-encoder", "Train a small CLIP encoder, as the embedded one was.", _pretrain_encoder)
    _add_knobs(encoder, EncoderTrainingConfig)
    _add_out(encoder, "New folder in open_clip's format.")

    _command(commands, "list", "Names that the other commands take.", _list)
    return parser


def _command(commands, name: str, help: str, function: Callable[[argparse.Namespace], Mapping[str, Any]]) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, formatter_class=_LineByLine)
    command.set_defaults(function=function)
    command.add_argument("--json", action="store_true", help="Print one JSON object last on stdout.")
    command.add_argument("--runs", type=_path, metavar="DIR", help="Folder that keeps the runs. Default: RUNS_DIR, or runs.")
    return command


def _add_out(command: argparse.ArgumentParser, help: str, without: str = "") -> None:
    command.add_argument("--out", required=not without, type=_path, help=help + without)


class _LineByLine(argparse.HelpFormatter):
    """Breaks a help text where it has a line of its own."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [part for line in text.splitlines() for part in super(_LineByLine, self)._split_lines(line, width)]


def _of_preset(config_class: type, name: str) -> str:
    """What a knob does, where its default is a preset's."""
    return f"{knobs(config_class)[name].metadata['help']} Default: that of the preset."


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    """Weights of one's own for the architecture of --model; what is not given comes from its zoo."""
    add = command.add_argument
    add(
        "--checkpoint",
        type=_path,
        metavar="FILE",
        help="Your weights for --model, safetensors or a state dict by torch.save; or a .pt2 program.",
    )
    add("--classes", type=_whole, metavar="N", help="Classes of the checkpoint. Default: the width of its last layer.")
    add(
        "--class-names",
        type=_path,
        metavar="FILE",
        help="Names of its classes, one a line in the order of its scores. Default: as its zoo has them.",
    )
    add("--image-size", type=_whole, metavar="N", help="Side of its images in pixels. Default: as its zoo has it.")
    add("--mean", type=_number, nargs=3, metavar=("R", "G", "B"), help="Of its images in [0, 1]. Default: as its zoo has it.")
    add("--std", type=_number, nargs=3, metavar=("R", "G", "B"), help="Of its images in [0, 1]. Default: as its zoo has it.")


def _add_knobs(command: argparse.ArgumentParser, config_class: type) -> None:
    """A flag for every knob; ranges are checked by the config, so that the message is the same everywhere."""
    for name, knob_field in knobs(config_class).items():
        kind = type(knob_field.default)
        help = help_text(config_class, name).replace("%", "%%")
        if kind is bool:
            command.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, default=knob_field.default, help=help)
        elif name == "layer_bits":
            _add_layer_bits(command, default=())
        else:
            parse: Callable[[str], Any] = _number if kind is float else _whole if kind is int else str
            command.add_argument(flag(name), dest=name, type=parse, default=knob_field.default, metavar=name.upper(), help=help)


def _add_layer_bits(command: argparse.ArgumentParser, default: tuple | None = None) -> None:
    help = help_text(QuantizationConfig, "layer_bits")
    command.add_argument("--layer-bits", nargs="+", type=_layer_width, default=default, metavar="NAME=BITS", help=help)


def _layer_width(text: str) -> tuple[str, int]:
    name, equals, bits = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no layer with its width: allowed are pairs such as output=8")
    return name, _whole(bits)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no whole number: allowed are numbers such as 4") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no number: allowed are numbers such as 0.1") from None


def _path(text: str) -> Path:
    # it is kept with the run, as text
    if not _is_text(text):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no path: allowed are names in UTF-8 without NUL")
    return Path(text)


def _run_id(text: str) -> str:
    if not _is_text(text):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no id of a run: allowed are those that `runs` lists")
    return text


def _is_text(text: str) -> bool:
    return "\0" not in text and text == text.encode(errors="ignore").decode()


def _config(config_class: type, options: argparse.Namespace) -> Any:
    return config_class(**{name: getattr(options, name) for name in knobs(config_class)})


# the commands


class _Interrupted(Exception):
    """Ctrl-C during a run; its text is the id."""


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    generation = _config(GenerationConfig, options)
    config = RunConfig(
        generation=generation,
        quantization=QuantizationConfig(model=generation.model),
        optimizers=(generation.optimizer,),
        bits=(),
        encoder="",
    )
    return _start(options, config, f"images/{generation.optimizer}")


def _quantize(options: argparse.Namespace) -> dict[str, Any]:
    quantization = _config(QuantizationConfig, options)
    # one set of images under one name, whatever folders it has in it
    config = RunConfig(
        generation=GenerationConfig(model=quantization.model, threads=quantization.threads, device=quantization.device),
        quantization=quantization,
        optimizers=(USER_IMAGES,),
        bits=(quantization.weight_bits,),
        activation_bits=quantization.activation_bits,
        encoder="",
        images_from=options.images,
    )
    return _start(options, config, f"quantized/{USER_IMAGES}/{quantization.width}")


def _run(options: argparse.Namespace) -> dict[str, Any]:
    return _start(options, _run_config(options), "")


def _start(options: argparse.Namespace, config: RunConfig, part: str) -> dict[str, Any]:
    """A new run in the store, and here to its end. part: what of it the command is about; empty: everything."""
    from core.files import check_free

    if options.out is not None:
        check_free(options.out)
    if "checkpoint" in options:
        config = _with_checkpoint(config, options)
    from core.pipeline import prepare
    from core.runs.manager import default_name
    from core.runs.store import RunStore
    from core.threads import cpu_threads

    with _Progress() as progress:
        # what is refused leaves no run behind
        with cpu_threads(config.generation.threads):
            prepared = prepare(config, progress)
        store = RunStore(options.runs)
        out = "" if options.out is None else os.path.realpath(options.out)
        return _perform(store, store.create(config, default_name(config), out=out, part=part), progress, prepared)


def _with_checkpoint(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """The config for the network in --checkpoint, which is kept where uploads are; without one the config as it is."""
    known = ("classes", "class_names", "image_size", "mean", "std")
    given = {name: value for name in known if (value := getattr(options, name)) is not None}
    if options.checkpoint is None:
        if given:
            name, value = next(iter(given.items()))
            value = str(value) if isinstance(value, Path) else value
            raise ConfigError(f"{name} is {quoted(value)} without a checkpoint: allowed is together with --checkpoint FILE")
        return config
    if "class_names" in given:
        given["class_names"] = _lines(given["class_names"])
    from core.layout import NETWORKS, UPLOADS
    from core.models.importing import import_checkpoint
    from core.models.programs.importing import import_program
    from core.models.registry import GivenSpec
    from core.runs.store import default_folder

    folder = Path(os.path.realpath(options.runs or default_folder())) / UPLOADS / NETWORKS
    spec = GivenSpec(**given)
    if options.checkpoint.suffix == ".pt2":
        model = str(import_program(options.checkpoint, out_folder=folder, given=spec))
    else:
        model = str(import_checkpoint(options.checkpoint, config.generation.model, out_folder=folder, given=spec))
    return replace(config, generation=replace(config.generation, model=model), quantization=replace(config.quantization, model=model))


def _lines(file: Path) -> list[str]:
    """Lines of a text file that are not empty. Raises DataError for one that is no such file."""
    try:
        if file.stat().st_size > _LONGEST_NAMES:
            raise DataError(f"{file} has {file.stat().st_size:,} bytes: allowed for class names are at most {_LONGEST_NAMES:,}")
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{file} cannot be read ({reason}): allowed is a text file in UTF-8, a class name a line") from error
    names = [line for line in lines if line]
    if not names:
        raise DataError(f"{file} is empty: allowed is a text file in UTF-8, a class name a line")
    return names


def _perform(store: RunStore, run_id: str, progress: _Progress, prepared: Prepared | None = None) -> dict[str, Any]:
    """Computes a run of this process, copies what was asked for, and returns what the command prints of it."""
    from core.runs.control import LiveControl
    from core.runs.events import StoreReporter
    from core.runs.execution import perform, runs_at_once
    from core.runs.output_folder import copy_out

    run = store.run(run_id)
    progress.control = LiveControl(past=store.changes(run_id))
    before = len(store.ahead(run_id))
    if before:
        progress.wait(before)
    try:
        store.mark_interrupted()
        result = perform(
            store,
            run_id,
            Both(progress, StoreReporter(store, run_id)),
            progress,
            at_once=runs_at_once(),
            finish=lambda: copy_out(store, run),
            prepared=prepared,
        )
    except KeyboardInterrupt:
        raise _Interrupted(run_id) from None
    finally:
        store.close()
    kind, _, rest = run.part.partition("/")
    method, _, _ = rest.partition("/")
    if kind == "images":
        result = result["optimizers"][method]["generation"]
    elif kind == "quantized":
        result = next(iter(result["optimizers"][method]["accuracy"].values()))
    return {**result, "run": run_id}


def _runs(options: argparse.Namespace) -> dict[str, Any]:
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    store.mark_interrupted()
    keys = ("id", "state", "name", "created", "started", "ended", "stage", "step", "total", "attempt", "user", "error")
    runs = [{key: getattr(run, key) for key in keys} | {"resumable": run.state.can_resume()} for run in store.runs()]
    store.close()
    return {"folder": str(store.folder), "runs": runs}


def _resume(options: argparse.Namespace) -> dict[str, Any]:
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    try:
        store.mark_interrupted()
        store.resume(options.run)
    except CoreError:
        store.close()
        raise
    with _Progress() as progress:
        return _perform(store, options.run, progress)


def _delete(options: argparse.Namespace) -> dict[str, Any]:
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    try:
        store.mark_interrupted()
        store.delete(options.run)
    finally:
        store.close()
    return {"deleted": options.run}


def _export(options: argparse.Namespace) -> dict[str, Any]:
    kind = options.format
    if kind not in EXPORT_FORMATS:
        raise UnknownNameError("format", kind, EXPORT_FORMATS)
    for name, value in (("bits", options.bits), ("method", options.method or None)):
        if value is not None and (kind == "card" or (name == "bits" and kind in IMAGE_FORMATS)):
            raise ConfigError(f"{name} is {quoted(value)} with format {kind!r}, which has all: allowed is without --{name}")
    from core.runs.store import RunStore

    store = RunStore(options.runs)
    try:
        run, config, folder = store.run(options.run), store.config(options.run), store.run_folder(options.run)
    finally:
        store.close()
    with _Progress() as progress:
        if kind in NETWORK_FORMATS:
            from core.export.network import export_network

            return export_network(folder, config, kind, options.out, options.method, options.bits or 0, progress, progress)
        if kind in IMAGE_FORMATS:
            from core.export.image_sets import export_method

            return export_method(folder, config, kind, options.out, options.method)
        from core.export.card import write_card

        return {"out": str(write_card(folder, config, run.name, options.out)), "format": kind}


def _diversity(options: argparse.Namespace) -> dict[str, Any]:
    for name in ("device", "threads"):
        GenerationConfig.check_value(name, getattr(options, name))
    from core import pipeline
    from core.data.image_sets import load_image_set
    from core.evaluation.encoder import load_encoder
    from core.threads import cpu_threads

    sets = {path: load_image_set(path) for path in options.sets}
    with cpu_threads(options.threads), _Progress() as progress:
        encoder = load_encoder(options.encoder, options.device)
        measured = pipeline.diversity(sets, encoder, progress, progress)
    keys = ("images", "mean_similarity", "within_class_similarity")
    return {
        "encoder": encoder.name,
        "encoder_trained_on": encoder.trained_on,
        "sets": [{"path": path, **{key: figures[key] for key in keys}} for path, figures in measured.items()],
    }


def _run_config(options: argparse.Namespace) -> RunConfig:
    """The preset with what was given on the command line in its place."""
    start = preset(options.preset)
    given = {name: value for name in ("model", "device", "threads") if (value := getattr(options, name)) is not None}
    generation = replace(start.generation, **given, **({} if options.seed is None else {"seed": options.seed}))
    quantization = replace(
        start.quantization,
        **given,
        **({} if options.seed is None else {"quantization_seed": options.seed}),
        **{name: value for name in ("data", "layer_bits") if (value := getattr(options, name)) is not None},
    )
    chosen = {name: value for name in ("bits", "optimizers", "encoder") if (value := getattr(options, name)) is not None}
    return replace(start, generation=generation, quantization=quantization, **chosen)


def _table(options: argparse.Namespace) -> dict[str, Any]:
    from core.runs import paper_table
    from core.runs.store import RunStore

    run = {}
    if options.row is None:
        for name in ("preset", "model", "data", "seed", "threads", "device"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} is {quoted(getattr(options, name))}: allowed only with --run, which names a row to measure")
    else:
        options.preset = options.preset or "quick"
        config = paper_table.row_config(options.row, _run_config(options), options.model or "", options.data or "")
        run = {"run": _start(options, config, "")["run"]}
    store = RunStore(options.runs)
    try:
        rows = [(row, measured) for row, measured in paper_table.table(store) if options.row in (None, row.name)]
    finally:
        store.close()
    if not options.json:
        return {"text": paper_table.as_text(rows)}
    return {"rows": [paper_table.to_dict(*row) for row in rows], **run}


def _pretrain(options: argparse.Namespace) -> dict[str, Any]:
    config = _config(PretrainConfig, options)
    from core.data.labelled import open_training_set
    from core.recipes.pretrain import check_new_checkpoint, pretrain

    check_new_checkpoint(options.out)
    dataset, classes = open_training_set(config.data)
    with _Progress() as progress:
        progress.stage(f"pretraining {config.architecture}", 0)
        spec = pretrain(dataset, classes, config, options.out, progress.count)
    return {"out": str(options.out), "architecture": spec.architecture, "classes": list(spec.classes), "trained_on": spec.trained_on}


def _pretrain_encoder(options: argparse.Namespace) -> dict[str, Any]:
    config = _config(EncoderTrainingConfig, options)
    from core.files import atomic_folder, check_free

    check_free(options.out)
    from core.data.labelled import open_training_set
    from core.recipes.encoder import train_encoder

    dataset, classes = open_training_set(config.data)
    trained_on = (
        "the 50,000 CIFAR-10 training images, with captions"
        if config.data == "cifar10"
        else f"{len(dataset):,} images of {config.data}, with captions"
    )
    with _Progress() as progress, atomic_folder(options.out) as folder:
        progress.stage("pretraining the encoder", 0)
        train_encoder(dataset, classes, config, folder, trained_on, progress.count)
    return {"out": str(options.out), "trained_on": trained_on}


def _list(options: argparse.Namespace) -> dict[str, Any]:
    from core.models.registry import MODELS
    from core.models.zoos.lookup import ZOOS, offline_names

    return {
        "models": [*MODELS, *(f"{zoo}:NAME of any classifier of {zoo}" for zoo in ZOOS), "PATH.safetensors made by pretrain"],
        "offline": offline_names(),
        "optimizers": list(OPTIMIZERS),
        "ranges": list(RANGE_METHODS),
        "bits": list(BIT_WIDTHS),
        "encoders": ["embedded", "ARCH:PRETRAINED of open_clip, downloaded on first use"],
        "data": [*EVALUATION_SETS, "PATH of a folder with one folder a class", "PATH of ImageNet or CIFAR as torchvision keeps them"],
        "presets": list(PRESETS),
    }


class _Progress(Untouched):
    """A Reporter that draws a bar a stage on stderr, and a Live that turns only what was turned before the run was interrupted.

    A bar appears when its stage begins to compute, which is at its first checkpoint or step: what is refused before is the only line.
    """

    def __init__(self) -> None:
        self._name, self._total, self._done = "", 0, 0
        self._bar: Any = None
        self.control: Live = Untouched()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A new bar, soon; without a total it only counts."""
        self._close()
        self._name, self._total, self._done = name, total, done

    def wait(self, before: int) -> None:
        """Others compute first."""
        print(f"waiting for {before} run{'s' if before > 1 else ''} before this one", file=sys.stderr)

    def _drawn(self) -> Any:
        if self._bar is None:
            from tqdm import tqdm

            layout = None if self._total else "{desc} {elapsed}"
            self._bar = tqdm(
                total=self._total or None, initial=self._done, desc=self._name, file=sys.stderr, unit="step", bar_format=layout
            )
        return self._bar

    def checkpoint(self) -> None:
        """Something is being computed."""
        if self._name:
            self._drawn().update(0)
        self.control.checkpoint()

    def values(self, method: str, step: int) -> Mapping[str, float]:
        """What was turned before."""
        return self.control.values(method, step)

    def count(self, step: int, steps: int, loss: float) -> None:
        """One step of a recipe."""
        if self._total != steps:
            self.stage(self._name, steps)
        bar = self._drawn()
        bar.update(step - bar.n)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def record(self, stage: str, series: str, step: int, values: Mapping[str, Any]) -> None:
        """One step, or the accuracy after one."""
        if stage == TEST:
            return
        self._drawn().update(1)
        self._drawn().set_postfix({series: f"{values['total']:.1f}"}, refresh=False)

    def images(self, method: str, frame: Frame, keep: bool) -> None:
        """Nobody looks."""

    def wants_images(self, method: str) -> bool:
        return False

    def running_statistics(self, statistics: RunningStatistics) -> None:
        """Nobody looks."""

    def change(self, method: str, step: int, name: str, value: float) -> None:
        """Nobody turns."""

    def result(self, name: str, value: Any) -> None:
        """Printed at the end."""

    def rewind(self, stage: str, series: str, step: int) -> None:
        """The bar begins there."""

    def flush(self) -> None:
        """Nothing is kept."""


def _printable(text: str) -> str:
    """Without what the terminal has no letters for, such as the bytes of a file's name that is no UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _as_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line a run."""
    return "\n".join(
        f"{run['id']}  {run['state']:<11}  {run['name']}" + (f"  ({run['stage']}: {run['step']} of {run['total']})" if run["total"] else "")
        for run in runs
    )


def _in_words(result: Mapping[str, Any], indent: str = "") -> str:
    """The same figures for a person."""
    lines = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}\n{_in_words(value, indent + '  ')}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(f"{indent}{key}")
            lines += [_in_words(item, indent + "  ") for item in value]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key:<24} {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    keep_memory()
    raise SystemExit(main())
