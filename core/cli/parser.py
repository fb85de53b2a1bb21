"""The commands of `python -m core` and their flags. Progress goes to stderr; `--json` prints one JSON object last on stdout.

Bad input ends in one line that names the value and what is allowed, sometimes with lines to paste, and exit code 2; a full disk, and a
runs folder that cannot be read or written, in one line with exit code 1. torch is imported only by commands that compute.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, NoReturn

from core.cli import commands, values
from core.cli.branch import branch
from core.cli.cluster import LOCAL, RAY
from core.cli.compare import compare
from core.cli.output import as_table, in_words
from core.cli.shrink import shrink
from core.cli.sweep import sweep
from core.config import (
    IMAGE_FORMATS,
    NETWORK_FORMATS,
    PRESETS,
    SECTIONS,
    EncoderTrainingConfig,
    EvaluationConfig,
    GenerationConfig,
    MachineConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    every_knob,
    flag,
    help_text,
    knobs,
    live_knobs,
)
from core.config.times import budget_of, minutes_of
from core.errors import CoreError, StoreError, causes, one_line
from core.export.targets import TARGETS
from core.files import is_full
from core.generation.methods import DEFAULT_METHODS, METHODS

_IN_THE_RUN = " Default: the files stay in the run's folder."
_IMAGES = (
    "Images written by generate or export, a folder of WebDataset shards, or a folder or zip file with one folder of images per class."
)


class _Parser(argparse.ArgumentParser):
    """Prints one line on stderr instead of the usage; exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(one_line(f"{self.prog}: {message}"), file=sys.stderr)
        raise SystemExit(2)


class _LineByLine(argparse.HelpFormatter):
    """Keeps the line breaks of a help text."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [part for line in text.splitlines() for part in super(_LineByLine, self)._split_lines(line, width)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(_with_negatives(sys.argv[1:] if arguments is None else arguments))
    try:
        result = options.function(options)
    except commands.Interrupted as interrupted:
        again = "repeat the command to continue, or" if options.command in ("shrink", "compare", "sweep") else "resume with"
        where = "" if options.runs is None else f" --runs {shlex.quote(str(options.runs))}"
        print(f"{parser.prog} {options.command}: interrupted; {again} {parser.prog} resume {interrupted}{where}", file=sys.stderr)
        return 130
    except Exception as error:
        of_disk = is_full(error) or isinstance(error, StoreError)
        if not of_disk and not isinstance(error, CoreError):
            raise
        sentence = str(error) if isinstance(error, CoreError) else _full_disk(error, options)
        print(f"{parser.prog} {options.command}: {sentence}", file=sys.stderr)
        for line in getattr(error, "paste", ()):
            print(f"    {line}", file=sys.stderr)
        return 1 if of_disk else 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {options.command}: interrupted, nothing was written", file=sys.stderr)
        return 130
    if options.json:
        text = json.dumps(result)
    elif options.command == "runs":
        text = as_table(result["runs"]) or f"no runs in {result['folder']}"
    elif options.command in ("table", "shrink", "compare", "sweep"):
        text = result["text"]
    else:
        text = in_words(result)
    try:
        print(text, flush=True)
    except OSError as error:
        # without this, Python would complain about the rest at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader, such as `head`, has enough
            print(f"{parser.prog} {options.command}: the result could not be printed ({error.strerror})", file=sys.stderr)
            return 1
    return 0


def _with_negatives(arguments: Sequence[str]) -> list[str]:
    """`--budget -5m` as `--budget=-5m`, so that it is refused for its value: argparse takes only plain numbers for values."""
    joined: list[str] = []
    for one in arguments:
        number = re.match(r"-\.?\d", one) and not re.fullmatch(r"-\d+|-\d*\.\d+", one)
        if number and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={one}"
        else:
            joined.append(one)
    return joined


def _full_disk(error: BaseException, options: argparse.Namespace) -> str:
    """The sentence for a full disk, which names the file that was written or, where the error does not tell, the output path."""
    written = next((link.filename for link in causes(error) if isinstance(link, OSError) and link.filename), None)
    path = written or getattr(options, "out", None) or tempfile.gettempdir()
    return one_line(f"the disk that holds {path} is full: free some space and try again")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command. Methods and knobs that were registered before are in it."""
    parser = _Parser(
        prog="python -m core",
        description="Data-free quantization: images from a network's BatchNorm statistics, then a 2- to 8-bit network.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_shrink(subparsers)
    _add_stages(subparsers)
    _add_run(subparsers)
    _add_compare(subparsers)
    _add_sweep(subparsers)
    _add_table(subparsers)
    _add_stored_runs(subparsers)
    _add_benchmark(subparsers)
    _add_recipes(subparsers)
    _command(subparsers, "list", "Names that the other commands take.", commands.list_names)
    return parser


def _add_shrink(subparsers: Any) -> None:
    """shrink: from a weights file to the file of a small network."""
    command = _command(subparsers, "shrink", "Make a small network of a weights file, and nothing else.", shrink)
    command.add_argument(
        "weights", type=values.path, metavar="FILE", help="Your network: weights, whose architecture is found out, or a .pt2 program."
    )
    command.add_argument(
        "--bits",
        nargs="+",
        type=values.whole,
        default=[4],
        metavar="N",
        help="Bit widths, 2 to 8; of several, the recommended one is exported.",
    )
    command.add_argument("--model", metavar="ZOO:NAME", help="Its architecture, where it is not found or another one is meant.")
    machine = knobs(MachineConfig)
    _add_knobs(command, [*(machine[name] for name in ("seed", "device", "threads")), knobs(TrainingConfig)["size"]])
    command.add_argument(
        "--budget",
        type=values.time_in(budget_of),
        default=10.0,
        metavar="TIME",
        help="How long it may take, such as 30s, 10m or 2h. Default: 10m.",
    )
    command.add_argument(
        "--data", help="Evaluation images: a folder with one folder per class, or images without labels. Default: none needed."
    )
    _add_about_weights(command)
    _add_out(
        command,
        "New file: .onnx, .pt2, .pte, .tflite or .safetensors (packed).",
        " Default: the name of FILE with the bit width, as .onnx.",
    )


def _add_stages(subparsers: Any) -> None:
    """generate, quantize and diversity: one stage each."""
    generate = _command(subparsers, "generate", "Synthesize images from a network.", commands.generate)
    generate.add_argument(
        "--method",
        "--optimizer",
        dest="method",
        default=DEFAULT_METHODS[0],
        metavar="NAME",
        help=f"Who makes the images: {', '.join(METHODS)}. Default: {DEFAULT_METHODS[0]}.",
    )
    _add_knobs(generate, {**knobs(RunConfig), **knobs(MachineConfig), **knobs(GenerationConfig)}.values(), short=True)
    _add_weights(generate)
    generate.set_defaults(model=None)  # so that a weights file is known to come without one
    _add_executor(generate)
    _add_workers(generate)
    _add_out(generate, "New folder for images.safetensors, or shards with --shard-size, and manifest.json.", _IN_THE_RUN)

    quantize = _command(subparsers, "quantize", "Quantize a network with a folder of images.", commands.quantize)
    quantize.add_argument("--images", dest="images_from", required=True, metavar="PATH", help=_IMAGES)
    used = {**knobs(RunConfig), **knobs(MachineConfig), **knobs(TrainingConfig), **knobs(EvaluationConfig)}
    _add_knobs(quantize, [used[name] for name in used if name not in ("compile", "encoder")], short=True)
    _add_weights(quantize)
    quantize.set_defaults(model=None)
    _add_out(quantize, "New folder for quantized.safetensors and quantize.json.", _IN_THE_RUN)

    diversity = _command(subparsers, "diversity", "CLIP similarity within sets of images.", commands.diversity)
    diversity.add_argument("sets", nargs="+", metavar="PATH", help=_IMAGES)
    known = {**knobs(EvaluationConfig), **knobs(MachineConfig)}
    _add_knobs(diversity, [known[name] for name in ("encoder", "strict", "device", "threads")])


def _add_run(subparsers: Any) -> None:
    """run: everything, from a preset and with any knob."""
    run = _command(subparsers, "run", "Everything: generate, compare, quantize.", commands.run)
    _add_run_config(run)
    _add_executor(run)
    _add_out(run, "New folder for images, quantized networks and result.json.", _IN_THE_RUN)


def _add_run_config(run: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """A preset, the methods, bit widths and knobs that override it, and a network of the user. leave_out: knobs without a flag."""
    run.add_argument("--preset", default="quick", help=f"Settings to start from: {', '.join(PRESETS)}.")
    run.add_argument(
        "--methods",
        "--optimizers",
        dest="methods",
        nargs="+",
        metavar="NAME",
        help=f"Any of {', '.join(METHODS)}. Default: those of the preset.",
    )
    run.add_argument("--bits", nargs="+", type=values.whole, metavar="N", help="Bit widths, 2 to 8. Default: those of the preset.")
    fields = [knob_field for name, knob_field in every_knob().items() if name not in ("weight_bits", *leave_out)]
    _add_knobs(run, fields, of_preset=True)
    _add_weights(run)


def _add_compare(subparsers: Any) -> None:
    """compare: a run for each method and seed, and a table."""
    command = _command(subparsers, "compare", "Methods side by side: drop, spread and significance at each bit width.", compare)
    command.add_argument("--seeds", nargs="+", type=values.whole, default=(0, 1, 2), metavar="N", help="A run with each. Default: 0 1 2.")
    command.add_argument("--found", action="store_true", help="Only what was measured already: start no run.")
    _add_run_config(command, leave_out=("seed", "budget"))
    _add_executor(command)
    _add_out(command, "New folder for table.csv, table.tex and drops.svg.", " Default: none.")


def _add_sweep(subparsers: Any) -> None:
    """sweep: a run for each point of a grid, method and seed, and a table."""
    command = _command(subparsers, "sweep", "Runs over a grid of knobs: agreement with full precision on held-out synthetic images.", sweep)
    command.add_argument(
        "--grid",
        nargs="+",
        type=values.grid_values,
        required=True,
        metavar="NAME=VALUE,VALUE",
        help="The values of each knob, such as epsilon=0.05,0.1 mu=0.5,0.9; or its range, such as epsilon=0.01..0.5, to draw from.",
    )
    command.add_argument("--random", type=values.whole, default=0, metavar="N", help="Short for --sampler random --points N.")
    samplers = (
        "grid: all combinations; random; tpe: learns from the agreement of earlier points, needs Optuna; halving: random points with few "
        "images and training steps, the best third with three times as many, and the best of these with all. Default: grid."
    )
    command.add_argument("--sampler", default="", metavar="NAME", help=samplers)
    command.add_argument("--points", type=values.whole, default=0, metavar="N", help="How many, with all samplers but grid.")
    command.add_argument("--seeds", nargs="+", type=values.whole, default=(0,), metavar="N", help="A run with each. Default: 0.")
    _add_run_config(command, leave_out=("seed", "budget", "data", "encoder"))
    _add_executor(command)


def _add_table(subparsers: Any) -> None:
    table = _command(subparsers, "table", "The paper's table next to what was measured here.", commands.table)
    table.add_argument("--run", dest="row", metavar="ROW", help="Measure a row first, such as cifar10/resnet20/4; kept as a run.")
    table.add_argument("--preset", help=f"With --run: settings, {', '.join(PRESETS)}. Default: quick.")
    table.add_argument("--model", help="With --run: resnet20_cifar10 uses the embedded weights. Default: the paper's, downloaded.")
    table.add_argument("--data", help="With --run: folder of evaluation images; needed for all but CIFAR-10.")
    table.add_argument("--seed", type=values.whole, help="With --run: seed of generation and training.")
    table.add_argument("--threads", type=values.whole, help="With --run: CPU threads; 0 lets torch choose.")
    table.add_argument("--device", help="With --run: auto, cpu, cuda or mps.")
    table.set_defaults(out=None)


def _add_stored_runs(subparsers: Any) -> None:
    """runs, resume, delete and export: what works on runs that are stored."""
    _command(subparsers, "runs", "Runs with their state, newest first.", commands.runs)
    for name, help, function in (
        ("resume", "Resume a run that was stopped, was interrupted or has failed.", commands.resume),
        ("delete", "Remove a finished run with its images and networks.", commands.delete),
    ):
        command = _command(subparsers, name, help, function)
        command.add_argument("run", type=values.run_id, metavar="RUN", help="Its ID, as `runs` lists it.")
        if name == "resume":
            for option, what in (("model", "network"), ("data", "evaluation images"), ("images", "given images")):
                command.add_argument(f"--{option}", metavar="PATH", help=f"New place of its {what}, if gone from the old one.")
            command.add_argument("--encoder", metavar="ARCH:FILE", help="New place of its CLIP encoder, if gone from the old one.")
            _add_executor(command)
            _add_workers(command)

    command = _command(subparsers, "branch", "Go on from an iteration of a run with other values, to the end of its batch.", branch)
    command.add_argument("run", type=values.run_id, metavar="RUN", help="Its ID, as `runs` lists it.")
    command.add_argument(
        "--at", required=True, type=values.whole, metavar="N", help="The last iteration that both share, over all batches."
    )
    live = ", ".join(live_knobs(GenerationConfig))
    command.add_argument(
        "--set",
        dest="values",
        nargs="+",
        type=values.live_value,
        default=(),
        metavar="NAME=VALUE",
        help=f"Values from the next iteration on, of {live}. Default: none, which repeats the run.",
    )

    export = _command(subparsers, "export", "Write a result of a run as a file that runs elsewhere, and check it.", commands.export)
    export.add_argument("run", type=values.run_id, metavar="RUN", help="Its ID, as `runs` lists it.")
    formats = f"A quantized network: {', '.join(NETWORK_FORMATS)}. Images: {', '.join(IMAGE_FORMATS)}. card: a model card with pictures."
    export.add_argument("--format", help=formats)
    targets = "; ".join(f"{name}: {target.format}, {target.note}" for name, target in TARGETS.items())
    export.add_argument("--target", metavar="NAME", help=f"Instead of a format, the program that will run a network. {targets}.")
    export.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="The file takes uint8 images and normalizes them itself. In all formats but packed.",
    )
    export.add_argument(
        "--method",
        "--lane",
        dest="method",
        default="",
        metavar="NAME",
        help="Whose images, or the network trained on them. Default: the run's first method.",
    )
    export.add_argument("--bits", type=values.whole, metavar="N", help="Bit width of the weights. Default: the only one of the run.")
    _add_out(export, "New file, named as the format requires; a new folder for png, safetensors and card.")


def _add_benchmark(subparsers: Any) -> None:
    command = _command(subparsers, "benchmark", "Measure how fast an exported network is on this machine.", commands.benchmark)
    command.add_argument("file", type=Path, metavar="FILE", help="A file written by export: .onnx, .safetensors, .pt2, .pte or .tflite.")
    command.add_argument("--seconds", type=float, default=5.0, metavar="S", help="Of each of the four measurements. Default: 5.")
    command.add_argument("--target", metavar="NAME", help="The program that runs it, such as openvino. Default: onnxruntime for .onnx.")


def _add_recipes(subparsers: Any) -> None:
    pretrain = _command(subparsers, "pretrain", "Train a full-precision network to start from.", commands.pretrain)
    _add_knobs(pretrain, [*knobs(PretrainConfig).values(), knobs(EvaluationConfig)["strict"]])
    _add_out(pretrain, "New .safetensors file, to be used as --model.")

    encoder = _command(subparsers, "pretrain-encoder", "Train a small CLIP encoder, as the embedded one was.", commands.pretrain_encoder)
    _add_knobs(encoder, [*knobs(EncoderTrainingConfig).values(), knobs(EvaluationConfig)["strict"]])
    _add_out(encoder, "New folder in open_clip's format.")


def _command(subparsers: Any, name: str, help: str, function: Callable[[argparse.Namespace], Mapping[str, Any]]) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=help, description=help, formatter_class=_LineByLine)
    command.set_defaults(function=function)
    command.add_argument("--json", action="store_true", help="Print one JSON object last on stdout.")
    command.add_argument("--runs", type=values.path, metavar="DIR", help="Folder that keeps the runs. Default: RUNS_DIR, or runs.")
    return command


def _add_out(command: argparse.ArgumentParser, help: str, without: str = "") -> None:
    command.add_argument("--out", required=not without, type=values.path, help=help + without)


def _add_executor(command: argparse.ArgumentParser) -> None:
    where = f"Where to compute: {LOCAL}, {RAY} (the Ray cluster in RAY_ADDRESS, or one on this machine) or ray://HOST:PORT."
    command.add_argument("--executor", default=LOCAL, metavar="NAME", help=f"{where} Default: {LOCAL}.")


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=values.whole,
        default=1,
        metavar="N",
        help="On a Ray cluster, compute N batches at once and put them together in this process; the bits do not depend on N. Default: 1.",
    )


def _add_weights(command: argparse.ArgumentParser) -> None:
    """Flags for a weights file of the user's; what is not given comes from the architecture's zoo."""
    add = command.add_argument
    add(
        "--weights",
        "--checkpoint",
        dest="weights",
        type=values.path,
        metavar="FILE",
        help="Your weights: safetensors, or a state dict saved by torch.save, or the .index.json of several such files, of the "
        "architecture --model, which is found out if it is not given; or a .pt2 program.",
    )
    _add_about_weights(command)


def _add_about_weights(command: argparse.ArgumentParser) -> None:
    """Flags for what a weights file does not tell."""
    add = command.add_argument
    add("--classes", type=values.whole, metavar="N", help="Number of classes. Default: the width of the last layer.")
    add(
        "--class-names",
        type=values.path,
        metavar="FILE",
        help="Names of the classes, one per line in the order of the network's scores. Default: those of its zoo.",
    )
    add(
        "--image-size",
        type=values.whole,
        nargs="+",
        metavar="N",
        help="Side of the images in pixels, or height and width. Default: that of its zoo.",
    )
    add(
        "--mean",
        type=values.number,
        nargs="+",
        metavar="X",
        help="Mean of each channel of the images in [0, 1]. Default: that of its zoo.",
    )
    add(
        "--std",
        type=values.number,
        nargs="+",
        metavar="X",
        help="Standard deviation of each channel in [0, 1]. Default: that of its zoo.",
    )


def _add_knobs(command: argparse.ArgumentParser, fields: Iterable[Field], short: bool = False, of_preset: bool = False) -> None:
    """A flag for every knob; the config checks ranges, so that the message is the same everywhere.

    short: flags may be shorter than the names. of_preset: no default, because it is the preset's.
    """
    for knob_field in fields:
        name, kind = knob_field.name, type(knob_field.default)
        default = None if of_preset else knob_field.default
        help = help_text_of(knob_field)
        if of_preset:
            help = f"{knob_field.metadata['help']} Default: that of the preset."
        flags = [flag(knob_field) if short else "--" + name.replace("_", "-")]
        flags += [f"--{old.replace('_', '-')}" for old in knob_field.metadata["old_names"]]
        options: dict[str, Any] = {"dest": name, "default": default, "help": help.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif name == "budget":
            options |= {"type": values.time_in(minutes_of), "metavar": "TIME"}
        elif name == "size":
            options |= {"type": values.kilobytes, "metavar": "SIZE"}
        elif name in ("layer_bits", "layer_weight_bits"):
            options |= {"nargs": "+", "type": values.layer_width, "metavar": "NAME=BITS"}
        else:
            parse: Callable[[str], Any] = values.number if kind is float else values.whole if kind is int else str
            options |= {"type": parse, "metavar": name.upper(), **({"nargs": "+"} if name == "image_size" else {})}
        command.add_argument(*flags, **options)


def help_text_of(knob_field: Field) -> str:
    """`help_text` for a field whose class is found by its name."""
    classes: list[type] = [RunConfig, *SECTIONS.values(), PretrainConfig, EncoderTrainingConfig]
    for config_class in classes:
        if knobs(config_class).get(knob_field.name) is knob_field:
            return help_text(config_class, knob_field.name)
    raise AssertionError(f"{knob_field.name} is no knob of a config")
