"""Malformed input, made by hypothesis, wherever input comes in: configs, the command line, files and uploads, addresses and forms.

Each is refused with one line that can be read and says what is allowed, or it is valid after all; nothing else comes out, and nothing is
computed or left behind. `refuses` counts what was refused: MALFORMED says how many there are at least, of which kind.
"""

import io
import json
import math
import warnings
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from safetensors.torch import save
from streamlit.testing.v1 import AppTest

from core.__main__ import main
from core.config import (
    SECTIONS,
    EncoderTrainingConfig,
    EvaluationConfig,
    GenerationConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    knobs,
    live_knobs,
)
from core.config import flag as flag_of
from core.data.archives import unpack_images
from core.data.image_sets import ImageSet, check_images, load_image_set, save_image_set
from core.errors import ConfigError, CoreError, DataError, quoted
from core.layout import IMAGES_FILE, MANIFEST
from core.models.full_precision import load_model
from core.models.registry import MODELS
from core.quantization.placement import quantize_network
from core.quantization.saved_network import load_quantized, save_quantized
from core.runs.control import LocalControl
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore
from dashboard import session
from dashboard.pages import PAGES
from dashboard.server.uploads import Uploads

ROOT = Path(__file__).parents[1]
# how many malformed inputs each test makes at least; what hypothesis makes beyond that and turns out to be valid is not among them
MALFORMED = {
    "config": 200,
    "tampered config": 60,
    "knob": 100,
    "live": 40,
    "flags": 200,
    "command": 60,
    "paths": 70,
    "ids": 20,
    "checkpoint": 80,
    "image set": 80,
    "picture": 40,
    "quantized network": 50,
    "archive": 120,
    "upload": 50,
    "addresses": 30,
    "forms": 12,
    "names": 8,
}
LONGEST = 1000  # characters of a message: the names of all knobs of a config are 300


def test_there_are_at_least_500_of_them():
    assert sum(MALFORMED.values()) >= 500


@pytest.fixture(scope="module", autouse=True)
def no_files_of_hypothesis_in_the_tree(tmp_path_factory):
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    yield
    set_hypothesis_home_dir(None)


class Example:
    """Something from outside, which hypothesis shall not write out: some of it cannot be, and some is a megabyte."""

    def __init__(self, value) -> None:
        self.value = value

    def __repr__(self) -> str:
        return quoted(self.value)


def refuses(kind, strategy, attempt, examples=None) -> None:
    """Calls `attempt` with examples of `strategy`. It returns the message, checked here, or None when the example was valid after all.

    Always the same examples, so that what fails once can be looked at; no search for a smaller one, which may take minutes.
    """
    refused = 0

    @settings(
        max_examples=examples or math.ceil(MALFORMED[kind] * 1.5),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy.map(Example))
    def run(example):
        nonlocal refused
        message = attempt(example.value)
        if message is not None:
            assert_clear(message)
            refused += 1

    run()
    assert refused >= MALFORMED[kind], f"only {refused} of the examples were malformed"


HELPFUL = ("must", "allowed", " use ")  # one of these in each message: it says what to do instead


def assert_clear(message: str) -> None:
    assert message, "an empty message"
    assert message.isprintable(), f"more than a line, or what acts: {message!r}"
    assert len(message) <= LONGEST, f"{len(message)} characters: {message[:200]!r}"
    assert any(word in message for word in HELPFUL), message


def message_of(error_class, function, *arguments) -> str | None:
    """What the error says; None when there was none. Any other error comes through and fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments)
        except error_class as error:
            return str(error)
    return None


# what nobody should enter

HOSTILE = [
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "two\nlines",
    "\r\x1b[31m",
    "\x85\u2028",
    "\u202eright to left",
    "\ud800",
    "\udcff.safetensors",
    "../../etc",
    "/etc/passwd",
    "/dev/null",
    "/dev/null/a",
    "~",
    ".",
    "..",
    "/",
    "-",
    "--",
    "%s%n",
    "{0}",
    "${HOME}",
    "<script>alert(1)</script>",
    "'; DROP TABLE run; --",
    "a" * 300,
    "a/" * 5000,
    "x" * 100_000,
    "9" * 5000,
    "nan",
    "NaN",
    "Infinity",
    "1e999",
    "-0",
    "0x10",
    "true",
    "null",
    "[]",
    "a" * 300 + ".safetensors",
    "none.safetensors",
    "\0.safetensors",
    "two\nlines.safetensors",
    "/etc.safetensors/a.safetensors",
]


def one_of_these(*values):
    """As st.sampled_from, whose own description would have all of them in it."""
    return st.integers(0, len(values) - 1).map(lambda index: values[index])


texts = one_of_these(*HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=20)
numbers = st.one_of(
    one_of_these(10**5000, -(10**5000), 10**400, 2**63, -1, math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0, 1e-9),
    st.integers(),
    st.floats(),
)
plain = st.none() | st.booleans() | numbers | texts


def nested(depth: int):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


junk = st.one_of(
    plain,
    st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8),
    one_of_these(nested(50), nested(5000), {"a": nested(5000)}, list(range(100_000)), "ä" * 1_000_000, b"bytes", 1j, object, {1, 2}),
    st.binary(max_size=10),
    st.tuples(plain, plain),
)


# configs

CONFIGS = (*SECTIONS.values(), RunConfig, PretrainConfig, EncoderTrainingConfig)


@st.composite
def configs(draw):
    """A class, and its values with one to three of them replaced, or something else altogether."""
    config_class = draw(st.sampled_from(CONFIGS))
    if draw(st.integers(0, 19)) == 0:
        return config_class, draw(junk)
    values = config_class().to_dict()
    part = values
    if config_class is RunConfig and draw(st.booleans()):
        part = values[draw(st.sampled_from(list(SECTIONS)))]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(list(part)) if draw(st.integers(0, 5)) else texts | st.none() | numbers | st.tuples(texts))
        part[name] = draw(junk)
    if config_class is RunConfig and draw(st.booleans()):
        name = draw(st.sampled_from(["bits", "methods", "steps_by_bits", "lr_by_bits"]))
        values[name] = draw(st.lists(plain, max_size=3) if name in ("bits", "methods") else st.dictionaries(plain, plain, max_size=3))
    return config_class, values


def test_configs():
    def attempt(example):
        config_class, values = example
        message = message_of(ConfigError, config_class.from_dict, values)
        if message is None:
            config = config_class.from_dict(values)
            assert config_class.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        else:
            # says what it is about: a knob, or that there is no such knob, or that these are no values of knobs
            names = {f.name for one in CONFIGS for f in fields(one)} | {one.__name__ for one in CONFIGS} | {"knob", "method"}
            assert any(name in message for name in names), message
        return message

    refuses("config", configs(), attempt)


def test_json_that_was_tampered_with():
    """As text, with a piece of it replaced: what is still JSON is refused or valid."""

    @st.composite
    def tampered(draw):
        config_class = draw(st.sampled_from(CONFIGS))
        content = json.dumps(config_class().to_dict())
        values = [": 0.1", ": 4", ": true", '"auto"', '"linear"', "[3, 4, 5]", ": {}", '"embedded"', '"resnet20_cifar10"', ": 0"]
        old = draw(st.sampled_from([value for value in values if value in content]))
        lead = ": " if old.startswith(": ") else ""
        new = draw(
            st.sampled_from(["NaN", "-Infinity", "1e999", "null", "{}", '"\\ud800"', '"\\u0000"', "[[]]", '{"a": 1}', "1" * 400, "-7"])
        )
        return config_class, content.replace(old, lead + new, draw(st.integers(1, 5)))

    def attempt(example):
        config_class, content = example
        try:
            values = json.loads(content)
        except ValueError:
            return None  # no longer JSON, which is not for configs to say
        return message_of(ConfigError, config_class.from_dict, values)

    refuses("tampered config", tampered(), attempt)


def test_values_of_knobs():
    def attempt(example):
        config_class, name, value = example
        message = message_of(ConfigError, config_class.check_value, name, value)
        assert message is None or name in list(knobs(config_class)) or message.startswith("unknown knob")
        if message is not None and name in list(knobs(config_class)):
            assert message.startswith(f"{name} must ")
        return message

    names = [(one, name) for one in CONFIGS for name in knobs(one)]
    known = st.tuples(st.sampled_from(names), junk).map(lambda pair: (*pair[0], pair[1]))
    refuses("knob", known | st.tuples(st.sampled_from(CONFIGS), junk, junk), attempt)


def test_live_values():
    def attempt(example):
        control = LocalControl()
        message = message_of(ConfigError, control.set, *example, ["adam"])
        assert message is None or control.values("adam", 1) == {}
        return message

    refuses("live", st.tuples(st.sampled_from(sorted(live_knobs(GenerationConfig))) | texts, junk), attempt)


# the command line


class Computed(Exception):
    """An example was valid: here its computation would begin."""


def _computed(*arguments, **keywords):
    raise Computed


COMMANDS = {
    "generate": GenerationConfig,
    "quantize": TrainingConfig,
    "pretrain": PretrainConfig,
    "pretrain-encoder": EncoderTrainingConfig,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a set of images, an empty folder, a file, and a store of runs outside of it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    RunStore(tmp_path / "runs").close()
    set_folder = tmp_path / "here" / "set"
    set_folder.mkdir()
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    save_image_set(ImageSet(images, torch.arange(4), {}), set_folder)
    for name in ("a", "b"):
        (tmp_path / "here" / "classes" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "here" / "classes" / name / f"{number}.png")
    (tmp_path / "here" / "file").write_text("no image")
    (tmp_path / "here" / "loop").symlink_to("loop")
    for name in ("no checkpoint.safetensors", "no archive.zip"):
        (tmp_path / "here" / name).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "here" / "folder.safetensors").mkdir()
    return tmp_path / "here"


def tree(folder):
    return sorted((str(path.relative_to(folder)), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def command_line(place, capsys):
    """A function that calls `main` and returns the only line on stderr; None when the example is valid, or asks for help."""
    before = tree(place)

    def attempt(arguments):
        if any(word.startswith(("-h", "--h")) for word in arguments):
            return None
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        except Computed:
            return None
        captured = capsys.readouterr()
        assert tree(place) == before, "something was written"
        if code == 0:
            return None
        assert (code, captured.out) == (2, ""), captured
        assert captured.err.endswith("\n")
        line = captured.err[:-1]
        # what argparse says of missing and unknown words is in its own
        own = ("required", "unrecognized", "expected", "invalid choice", "ambiguous", "ignored explicit", "not allowed")
        assert line.startswith("python -m core")
        assert any(word in line for word in (*HELPFUL, *own)), line
        assert line.isprintable()
        # the words of the command line itself may be in it
        return f"{line[:500]} ... allowed" if len(line) < 8200 else line

    return attempt


def test_flags(place, capsys, monkeypatch):
    """One flag with a value that is none, for every knob of every command."""
    monkeypatch.setattr("core.pipeline.prepare", _computed)
    monkeypatch.setattr("core.data.labelled.open_training_set", _computed)
    values = texts | numbers.filter(lambda number: abs(number) < 10**400 or number != number).map(str)

    @st.composite
    def arguments(draw):
        command = draw(st.sampled_from([*COMMANDS, "run"]))
        needed = {"quantize": ["--images", "set"], "pretrain": ["--out", "new.safetensors"], "pretrain-encoder": ["--out", "new"]}
        if command == "run":
            flag, value = draw(st.sampled_from(["--bits", "--seed", "--threads", "--device", "--preset", "--methods"])), draw(values)
        else:
            name, field = draw(st.sampled_from(list(knobs(COMMANDS[command]).items())))
            flag, value = flag_of(field), draw(values)
            if field.metadata["choices"] is None and isinstance(field.default, str):
                value = draw(st.sampled_from(["\0", "\ud800", "a" * 300, "b/" * 3000]))  # others may be names: see the paths
        joined = draw(st.booleans())
        return [command, *needed.get(command, []), *([f"{flag}={value}"] if joined else [flag, value])]

    refuses("flags", arguments(), command_line(place, capsys))


def test_commands(place, capsys, monkeypatch):
    """Words that are no command, flags that do not exist, and too few or too many."""
    monkeypatch.setattr("core.pipeline.prepare", _computed)
    monkeypatch.setattr("core.data.labelled.open_training_set", _computed)
    known = st.sampled_from([*COMMANDS, "run", "runs", "resume", "delete", "diversity", "list", "table"])
    words = st.lists(texts | texts.map(lambda text: f"--{text}"), max_size=3)
    unknown = st.tuples(texts, words).map(lambda parts: [parts[0], *parts[1]])
    odd = st.tuples(known, texts.map(lambda text: f"--{text}="), words).map(lambda parts: [parts[0], parts[1], *parts[2]])
    short = known.filter(lambda name: name not in ("list", "runs", "run", "generate", "table")).map(lambda name: [name])
    refuses("command", st.just([]) | short | unknown | odd, command_line(place, capsys))


def test_paths(place, capsys, monkeypatch):
    """Files and folders that are not what they should be, in every place that takes one; up to the first step everything is real."""
    monkeypatch.setattr("core.runs.execution.perform", _computed)
    monkeypatch.setattr("core.recipes.pretrain._fit", _computed)
    monkeypatch.setattr("core.recipes.encoder.train_encoder", _computed)
    wrong = st.sampled_from(
        [
            "file",
            "file/below",
            "set/images.safetensors",
            "loop",
            "loop/below",
            "folder.safetensors",
            "no checkpoint.safetensors",
            "no archive.zip",
            "none.tar.gz",
            "classes/a",
            "classes/a/0.png",
            *(text for text in HOSTILE if text.strip() not in ("", ".", "/", "-", "--")),
        ]
    )
    training = ["--data", "classes", "--batch-size", "2", "--crop-padding", "0"]
    places = {
        "generate --model": ["generate", "--out", "new", "--model"],
        "generate --out": ["generate", "--images", "4", "--out"],
        "generate --runs": ["generate", "--images", "4", "--runs"],
        "quantize --images": ["quantize", "--out", "new", "--images"],
        "quantize --data": ["quantize", "--out", "new", "--images", "set", "--data"],
        "quantize --model": ["quantize", "--out", "new", "--images", "set", "--model"],
        "diversity": ["diversity"],
        "diversity --encoder": ["diversity", "set", "--encoder"],
        "run --model": ["run", "--out", "new", "--model"],
        "run --data": ["run", "--out", "new", "--data"],
        "run --encoder": ["run", "--out", "new", "--encoder"],
        "run --out": ["run", "--out"],
        "table --data": ["table", "--run", "cifar10/resnet20/4", "--model", "resnet20_cifar10", "--data"],
        "pretrain --data": ["pretrain", "--out", "new.safetensors", "--data"],
        "pretrain --architecture": ["pretrain", "--out", "new.safetensors", *training, "--architecture"],
        "pretrain --out": ["pretrain", *training, "--out"],
        "pretrain-encoder --data": ["pretrain-encoder", "--out", "new", "--data"],
        "pretrain-encoder --out": ["pretrain-encoder", *training, "--out"],
    }
    examples = st.tuples(st.sampled_from(list(places.values())), wrong).map(lambda parts: [*parts[0], parts[1]])
    refuses("paths", examples, command_line(place, capsys))


def test_ids_of_runs(place, capsys):
    ids = texts | st.from_regex(r"\A[0-9]{8}-[0-9]{6}-[0-9a-f]{6}\Z")
    refuses("ids", st.tuples(st.sampled_from(["resume", "delete"]), ids).map(list), command_line(place, capsys))


# files


def with_header(tensors: bytes, change) -> bytes:
    """A safetensors file with its header, as a dictionary, changed."""
    length = int.from_bytes(tensors[:8], "little")
    header = json.loads(tensors[8 : 8 + length])
    content = json.dumps(change(header) or header).encode()
    return len(content).to_bytes(8, "little") + content + tensors[8 + length :]


@st.composite
def damaged(draw, content: bytes, head: int):
    """Cut off, with bytes turned (mostly in its first `head`), a piece missing or twice, or something else altogether."""
    kind = draw(st.sampled_from(["cut", "turn", "turn", "piece", "twice", "length", "other"]))
    at = draw(st.integers(0, min(head, len(content)) - 1))
    if kind == "cut":
        return content[:at]
    if kind == "turn":
        changed = bytearray(content)
        for place in draw(st.lists(st.integers(0, min(head, len(content)) - 1), min_size=1, max_size=6)):
            changed[place] ^= draw(st.integers(1, 255))
        return bytes(changed)
    if kind == "piece":
        return content[:at] + content[at + draw(st.integers(1, 40)) :]
    if kind == "twice":
        return content[: at + 20] + content[at:]
    if kind == "length":
        return draw(st.sampled_from([0, 1, 7, 2**16, 2**31, 2**63, 2**64 - 1])).to_bytes(8, "little") + content[8:]
    return draw(st.binary(max_size=40) | st.sampled_from([b"\x80\x04.", b"PK\x03\x04", b"{}", b"\x1f\x8b\x08", bytes(600), b"[" * 10_000]))


@st.composite
def changed_tensors(draw, content: bytes):
    """One tensor of another type or shape, gone, or under another name; or the places of all of them made up."""
    length = int.from_bytes(content[:8], "little")
    names = [name for name in json.loads(content[8 : 8 + length]) if name != "__metadata__"]
    name, kind = draw(st.sampled_from(names)), draw(st.sampled_from(["dtype", "shape", "gone", "name", "offsets", "more"]))
    value = draw(junk.filter(lambda value: _is_json(value)))

    def change(header):
        if kind == "dtype":
            header[name]["dtype"] = draw(st.sampled_from(["F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "BF16", "X", "", None]))
        elif kind == "shape":
            shape = header[name]["shape"]
            header[name]["shape"] = draw(
                st.sampled_from([[], [0], [1, *shape], shape[::-1] + [1], [2**62, 4], [-1], "x", None, shape + [2]])
            )
        elif kind == "gone":
            del header[name]
        elif kind == "name":
            header[draw(texts)] = header.pop(name)
        elif kind == "offsets":
            header[name]["data_offsets"] = draw(st.sampled_from([[0, 0], [0, 2**63], [5, 1], [-1, 4], "x", None, [0, 1, 2]]))
        else:
            header[draw(texts)] = value
        return header

    return with_header(content, change)


def _is_json(value) -> bool:
    try:
        return len(json.dumps(value)) < 100_000
    except (TypeError, ValueError, RecursionError):
        return False


def test_checkpoints(tmp_path):
    path, spec = MODELS["resnet20_cifar10"]
    content = with_header(path.read_bytes(), lambda header: header | {"__metadata__": {"spec": json.dumps(asdict(spec))}})
    target = tmp_path / "network.safetensors"
    head = int.from_bytes(content[:8], "little") + 8

    @st.composite
    def specs(draw):
        values = {**asdict(spec), "classes": list(spec.classes)}
        name = draw(st.sampled_from(list(values)))
        kind = draw(st.sampled_from(["junk", "junk", "gone", "more", "known", "known", "text"]))
        known = {
            "architecture": [
                "resnet2000",
                "RESNET20_CIFAR10 ",
                "__init__",
                "os",
                "resnet56_cifar10",
                "lwopenpose2d_mobilenet_cmupan_coco",
                "jasper5x3",
            ],
            "classes": [[], ["a"] * 10, ["a"] * 60_000, ["a" * 500] * 10, [1, 2], {"a": 1}, "abcdefghij", [["a"]] * 10, ["a"] * 9, [None]],
            "image_size": [0, -1, 10**9, 10**400, 32.0, True, None, "32", [32], math.nan, 1],
            "mean": [[], [0.5], [0.5] * 4, [math.nan] * 3, [1e400] * 3, ["0.5"] * 3, 0.5, [10**400] * 3, [True] * 3, None],
            "std": [[0, 0, 0], [-1.0] * 3, [5e-324] * 3, [math.inf] * 3, {"a": 1}, [0.5, 0.5, 0.0], [1e-60] * 3],
        }
        if kind == "gone":
            del values[name]
        elif kind == "more":
            values[draw(texts)] = 1
        elif kind == "known":
            name = draw(st.sampled_from(list(known)))
            values[name] = draw(st.sampled_from(known[name]))
        else:
            values[name] = draw(junk.filter(_is_json))
        made = json.dumps(values)
        if kind == "text":
            made = draw(st.sampled_from([made[:-1], made[1:], "null", "[]", "[" * 5000, '"spec"', "{}", made.replace("32", "1" * 5000)]))
        return with_header(content, lambda header: header | {"__metadata__": {"spec": made}})

    def attempt(example):
        target.write_bytes(example)
        return message_of(CoreError, load_model, str(target), "cpu")

    refuses("checkpoint", specs() | damaged(content, head) | changed_tensors(content), attempt)


def test_image_sets(tmp_path, small):
    folder = tmp_path / "set"
    folder.mkdir()
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)
    good = save({"images": images, "labels": labels})
    manifests = [b"{}", b"[]", b"null", b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": NaN}', b'"text"', b"\0"]
    sets = {
        "labels": st.sampled_from([-1, 4, 2**62, -(2**63)]).map(lambda label: {"images": images, "labels": torch.full((4,), label)}),
        "types": st.sampled_from([torch.float32, torch.bool, torch.int32, torch.uint8]).map(
            lambda dtype: {"images": images, "labels": labels.to(dtype)}
        ),
        "images": st.sampled_from(
            [images.float(), images[:0], images[0], images[:, :1], images[:, :, :0], images[..., :4], images[:3], images.to(torch.int8)]
        ).map(lambda made: {"images": made.contiguous(), "labels": labels[: len(made)] if made.shape[0] == 0 else labels}),
        "keys": st.sampled_from([{}, {"images": images}, {"labels": labels}, {"Images": images, "labels": labels}]),
    }
    tensors = st.one_of(*(one.map(save) for one in sets.values())) | damaged(good, 300) | changed_tensors(good)
    examples = st.tuples(tensors, st.just(b"{}")) | st.tuples(st.just(good), st.sampled_from(manifests[1:]) | damaged(b'{"a": {}}', 9))

    def attempt(example):
        (folder / IMAGES_FILE).write_bytes(example[0])
        (folder / MANIFEST).write_bytes(example[1])
        return message_of(CoreError, lambda: check_images(small, load_image_set(folder)))

    refuses("image set", examples, attempt)


def picture(kind="PNG", size=(8, 8), mode="RGB") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")] + [picture("PNG", mode="P")]


def test_pictures_in_a_folder(tmp_path):
    folder = tmp_path / "pictures" / "class"
    folder.mkdir(parents=True)
    suffixes = ["png", "jpg", "bmp", "webp", "tif", "ppm"]
    examples = st.tuples(st.sampled_from(PICTURES).flatmap(lambda content: damaged(content, 200)), st.sampled_from(suffixes))

    def attempt(example):
        path = folder / f"0.{example[1]}"
        path.write_bytes(example[0])
        try:
            return message_of(DataError, load_image_set, folder.parent)
        finally:
            path.unlink()

    refuses("picture", examples, attempt, examples=100)


def test_quantized_networks(tmp_path, small):
    config = TrainingConfig()
    quantized = quantize_network(small.network, config, torch.zeros(1, 3, 8, 8))
    path = save_quantized(quantized, config, tmp_path)
    content = path.read_bytes()
    head = int.from_bytes(content[:8], "little") + 8

    @st.composite
    def settings_of(draw):
        values = config.to_dict()
        values[draw(st.sampled_from(list(values)) | texts)] = draw(junk.filter(_is_json))
        made = draw(st.sampled_from([json.dumps(values)] * 5 + ["null", "[", "[" * 5000, "{}"]))
        return with_header(content, lambda header: header | {"__metadata__": {"quantization": made}})

    def attempt(example):
        path.write_bytes(example)
        return message_of(CoreError, load_quantized, path, small)

    refuses("quantized network", settings_of() | damaged(content, head) | changed_tensors(content), attempt)


# archives and uploads


def zipped(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@st.composite
def archives(draw):
    """A good archive that was damaged, or one with hostile names or contents."""
    good = [("ant/a.png", PICTURES[0]), ("ant/b.png", PICTURES[0]), ("bee/c.png", PICTURES[0])]
    if draw(st.booleans()):
        images = save({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "labels": torch.arange(2)})
        good = [(IMAGES_FILE, images), (MANIFEST, b"{}")]
    kind = draw(st.sampled_from(["damaged", "damaged", "name", "content"]))
    if kind == "damaged":
        content = zipped(good)
        return draw(damaged(content, len(content)))
    if kind == "content":
        place = draw(st.integers(0, len(good) - 1))
        good[place] = (good[place][0], draw(damaged(good[place][1], 200)))
        return zipped(good)
    names = texts.filter(lambda name: name and len(name) < 60_000).map(lambda name: name.encode(errors="replace").decode())
    folder = draw(st.sampled_from(["", "ant/", "../", "/", "a/b/c/d/"]))
    try:
        return zipped([*good, (folder + draw(names) + draw(st.sampled_from(["", ".png"])), PICTURES[0])])
    except (ValueError, IndexError):  # no such name can be packed
        return b""


def test_archives(tmp_path):
    folder = tmp_path / "around" / "images"
    folder.mkdir(parents=True)

    def attempt(example):
        message = message_of(DataError, unpack_images, io.BytesIO(example), folder, "own.zip")
        if message is None:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        assert list(folder.iterdir()) == []
        assert [path.name for path in tmp_path.rglob("*")] == ["around", "images"]
        return message

    refuses("archive", archives(), attempt)


def test_uploads(tmp_path):
    uploads = Uploads(tmp_path / "runs")
    path, spec = MODELS["resnet20_cifar10"]
    content = with_header(path.read_bytes(), lambda header: header | {"__metadata__": {"spec": json.dumps(asdict(spec))}})
    head = int.from_bytes(content[:8], "little") + 8
    networks = st.tuples(st.just(uploads.store_network), damaged(content, head) | changed_tensors(content), texts)

    def attempt(example):
        keep, content, name = example
        before = len(list(tmp_path.rglob("*.*")))
        message = message_of(CoreError, keep, io.BytesIO(content), name)
        assert message is None or len(list(tmp_path.rglob("*.*"))) == before
        return message

    refuses("upload", networks | st.tuples(st.just(uploads.store_images), archives(), texts), attempt)


# pages


@pytest.fixture
def runs_folder(tmp_path, monkeypatch):
    """An empty store for the pages of this test; what they start is stopped at its end."""
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    session.manager.clear()
    yield tmp_path / "runs"
    session.manager().close()
    session.manager.clear()


SHORT = RunConfig(generation=GenerationConfig(images=8, snapshots=2, iterations=4), bits=(), evaluation=EvaluationConfig(encoder=""))
# a browser sends nothing that is no UTF-8
typed = texts.filter(lambda text: len(text) < 10_000).map(lambda text: text.encode(errors="replace").decode())


def page(name, parameters=()):
    app = AppTest.from_file(str(ROOT / "dashboard" / "pages" / f"{name}.py"), default_timeout=60)
    for key, value in parameters:
        app.query_params[key] = value
    app.run()
    assert_no_traceback(app)
    return app


def assert_no_traceback(app) -> None:
    assert not app.exception, [(error.value, error.stack_trace) for error in app.exception]
    for shown_error in app.error:
        assert "Traceback" not in shown_error.value


def finished_run(name, **columns) -> str:
    """A run in the store that is over and has computed nothing; columns: what its row says instead of what is right."""
    store = session.store()
    run_id = store.create(SHORT, name)
    store.set_state(run_id, RunState.RUNNING)
    store.set_state(run_id, RunState.FAILED, columns.pop("error", "it was never begun"), columns.pop("traceback", ""))
    with store.database.write() as connection:
        for column, value in columns.items():
            connection.execute(f"UPDATE run SET {column} = ? WHERE id = ?", (value, run_id))
    return run_id


@pytest.mark.slow
def test_addresses(runs_folder):
    """Whatever is asked for, the page shows a run that there is."""
    run_id = finished_run("a run")
    keys = st.sampled_from(["run", "run", "page", "token", "stage"]) | typed.filter(bool)
    values = typed | st.lists(typed, min_size=2, max_size=3) | st.sampled_from([run_id[:-1], run_id + "x", run_id.upper(), f"../{run_id}"])

    def attempt(example):
        name, parameters = example
        app = page(name, parameters)
        if name == "studio":
            assert any("a run" in element.value for element in app.markdown)
        return f"{name} with {quoted(parameters)}: allowed, and ignored"

    examples = st.tuples(
        st.sampled_from([page.name for page in PAGES]),
        st.dictionaries(keys, values, min_size=1, max_size=2).map(lambda chosen: list(chosen.items())),
    )
    refuses("addresses", examples, attempt, examples=40)


def test_addresses_of_the_whole_app(runs_folder):
    app = AppTest.from_file(str(ROOT / "streamlit_app.py"), default_timeout=60)
    app.query_params["run"] = ["<script>", "../../etc/passwd"]
    app.query_params["page"] = "\x00"
    app.run()
    assert_no_traceback(app)


def test_names_of_runs(runs_folder):
    """What a run is called, why it failed and what it says it does: shown, whatever it is."""
    columns = st.sampled_from(["name", "error", "traceback", "stage", "user", "config"])

    def attempt(example):
        column, value = example
        run_id = finished_run(**{"name": "a run", column: value})
        for name in ("studio", "runs"):
            page(name, [("run", run_id)])
        session.store().delete(run_id)
        return f"{column} {quoted(value)}: allowed"

    refuses("names", st.tuples(columns, typed), attempt, examples=14)


@pytest.mark.slow
def test_names_that_are_typed(runs_folder, monkeypatch):
    """In the fields of the forms. What is refused says so beside the form, or as the error of a run that did not begin."""
    monkeypatch.setattr("core.pipeline._Execution.result", _computed)

    def attempt(example):
        key, value = example
        app = page("studio")
        app.text_input(key="quick/machine/encoder").set_value("")
        app.multiselect(key="quick/bits").set_value([4])
        if key == "quick/machine/model":
            box = app.selectbox(key=key)
            box.options.append(value)  # AppTest knows no new ones, which this box accepts
            box.set_value(value)
        else:
            app.text_input(key=key).set_value(value)
        app.button(key="start").click().run()
        assert_no_traceback(app)
        if not session.store().runs():
            (refusal,) = app.error
            return refusal.value
        (run,) = session.store().runs()
        session.manager().wait(run.id, 30)
        run = session.store().run(run.id)
        assert run.state is RunState.FAILED
        page("studio", [("run", run.id)])
        session.store().delete(run.id)
        return None if "Computed" in run.traceback else run.error

    keys = st.sampled_from(["quick/machine/model", "quick/machine/data", "quick/machine/encoder"])
    # as a folder of images these would be searched through
    names = typed.filter(lambda text: text.strip() not in ("", ".", "..", "/"))
    refuses("forms", st.tuples(keys, names), attempt, examples=18)
