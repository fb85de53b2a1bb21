"""Links, commands, paths and names in the documents exist in the repository.

Commands are parsed by the program's own parser and never executed.
"""

import argparse
import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from core.__main__ import main
from core.config import EXPORT_FORMATS, PRESETS, RANGE_METHODS

ROOT = Path(__file__).parents[1]
MOST_LINES = 150  # in README.md
DOCUMENTS = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "assets" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if path.exists()
]
FOLDERS = ("assets", "benchmarks", "core", "dashboard", "docs", "examples", "tests")
# arguments that the parser accepts as any string and `python -m core` checks later
CHOICES = {"preset": tuple(PRESETS), "format": EXPORT_FORMATS, "range": RANGE_METHODS}
OTHER_FLAGS = re.compile(r"--(?:server|browser)\.\w+")  # Streamlit's
_SHELL = {"", "sh", "bash", "console"}
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")
_DOTTED = re.compile(r"(?:core|dashboard|examples)(?:\.\w+)+")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


class Parsed(Exception):
    """Stops `main` once the command line is parsed."""


@contextlib.contextmanager
def parsing_only() -> Iterator[None]:
    original = argparse.ArgumentParser.parse_args

    def parse(self, args=None, namespace=None):
        raise Parsed(self, original(self, args, namespace))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        yield


def parse(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser of `python -m core`, and the parsed arguments. Raises ValueError with the parser's message if it rejects them."""
    message = io.StringIO()
    try:
        with parsing_only(), contextlib.redirect_stderr(message):
            main(arguments)
    except Parsed as parsed:
        return parsed.args[0], parsed.args[1]
    except SystemExit as rejected:
        raise ValueError(message.getvalue().strip()) from rejected
    raise AssertionError("main did not call parse_args")


@cache
def core_flags() -> dict[str, frozenset[str]]:
    """Command -> its flags."""
    parser, _ = parse(["list"])
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    return {name: frozenset(flag for action in command._actions for flag in action.option_strings) for name, command in commands.items()}


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def names_of_tests() -> frozenset[str]:
    return frozenset(
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^\s*def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    )


@cache
def is_key(name: str) -> bool:
    """Whether the engine has a result with this name."""
    return any(f'"{name}"' in path.read_text(encoding="utf-8") for path in (ROOT / "core").rglob("*.py"))


def markdown(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def inline(tokens: Sequence[Token]) -> Iterator[Token]:
    """Links, images, and inline code at any depth."""
    for token in tokens:
        for child in token.children or []:
            yield child
            yield from inline([child])


def anchors(tokens: Sequence[Token]) -> set[str]:
    """The anchors that GitHub generates for a document's headings."""
    found: set[str] = set()
    for before, token in zip(tokens, tokens[1:]):
        if before.type != "heading_open":
            continue
        text = "".join(child.content for child in token.children or [])
        base = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(next(name for count in range(1000) if (name := f"{base}-{count}" if count else base) not in found))
    return found


def link_problems(tokens: Sequence[Token], path: Path) -> Iterator[str]:
    """Broken relative links and images, and HTML, which is not checked."""
    for token in inline(tokens):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if token.type == "html_inline":
            yield f"{token.content} is HTML, which is not checked"
        if not target or re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or not file.is_relative_to(ROOT):
            yield f"link to {target}, which does not exist"
        elif anchor and anchor not in anchors(markdown(file.read_text(encoding="utf-8")) if name else tokens):
            yield f"link to {target}, which has no such heading"
    yield from (f"{token.content.strip()} is HTML, which is not checked" for token in tokens if token.type == "html_block")


def core_problems(words: Sequence[str], is_mention: bool) -> Iterator[str]:
    """Problems of `python -m core` with these arguments. is_mention: a bare command name may lack required flags."""
    line = " ".join(["python -m core", *words])
    if words[1:] == ["--help"] or (is_mention and len(words) < 2):
        if words and words[0] not in core_flags():
            yield f"{line}: there is no such command"
        return
    try:
        _, options = parse(words)
    except ValueError as error:
        yield f"{line}: {error}"
        return
    for name, choices in CHOICES.items():
        if getattr(options, name, None) not in (None, *choices):
            yield f"{line}: {name} must be one of {', '.join(choices)}"


def script_problems(words: Sequence[str]) -> Iterator[str]:
    """Problems of `python FILE` with these arguments: the file must exist and contain every flag."""
    script = ROOT / words[0]
    if not script.is_file():
        yield f"python {words[0]}: there is no such file"
        return
    source = script.read_text(encoding="utf-8")
    # what a benchmark does not know itself, it hands to `run`
    handed_on = core_flags()["run"] if "parse_known_args" in source else ()
    for word in words[1:]:
        if word.startswith("--") and f'"{word}"' not in source and word not in handed_on:
            yield f"python {words[0]} has no flag {word}"


def pytest_problems(words: Sequence[str]) -> Iterator[str]:
    """Problems of `python -m pytest` with these arguments: paths and the test names of -k must exist."""
    for before, word in zip(["", *words], words):
        if before == "-k":
            files = [ROOT / other for other in words if (ROOT / other).is_file()]
            if not any(word in file.read_text(encoding="utf-8") for file in files):
                yield f"python -m pytest -k {word}: no test has that name"
        elif not word.startswith("-"):
            name, _, test = word.partition("::")
            if not (ROOT / name).exists() or (test and test not in names_of_tests()):
                yield f"python -m pytest {word}: it does not exist"


def command_problems(line: str, is_mention: bool = False) -> Iterator[str]:
    """Problems of one shell line; commands of other programs are ignored."""
    if not re.match(r"(\$ |\w+=\S* |time |\.venv/bin/)*(python|make)\b", line):
        return
    words = shlex.split(line.removeprefix("$ "), comments=True)
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] == "time"):
        words.pop(0)
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        yield from (f"make {word}: there is no such target" for word in arguments if "=" not in word and word not in make_targets())
    elif arguments[:2] == ["-m", "core"]:
        yield from core_problems(arguments[2:], is_mention)
    elif arguments[:2] == ["-m", "pytest"]:
        yield from pytest_problems(arguments[2:])
    elif arguments[:1] == ["-m"]:
        module = arguments[1]
        if module.split(".")[0] in FOLDERS and not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            yield f"python -m {module}: there is no such module"
    elif arguments and not arguments[0].startswith("-"):
        yield from script_problems(arguments)


def name_problem(dotted: str) -> str:
    """Empty if a dotted name such as core.export.packed.load_packed is a package, a module, or a name that occurs in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        file = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
        if file is None:
            continue
        if length == len(parts) or re.search(rf"\b{parts[length]}\b", file.read_text(encoding="utf-8")):
            return ""
        return f"{dotted}: {file.relative_to(ROOT)} has no {parts[length]}"
    return "" if ROOT.joinpath(*parts).is_dir() else f"{dotted} does not exist"


def code_problems(code: str) -> Iterator[str]:
    """Problems of inline code: a command, a path, a dotted name, a test, or a flag."""
    yield from command_problems(code, is_mention=True)
    for path in _PATH.findall(code) if _PATH.match(code) else []:
        if not any(ROOT.glob(path.rstrip("/"))):
            yield f"{path} does not exist"
    if (dotted := _DOTTED.match(code)) and (problem := name_problem(dotted[0])):
        yield problem
    if re.fullmatch(r"test_\w+", code) and code not in names_of_tests() and not is_key(code):
        yield f"{code}: there is no such test"
    if code.startswith("--") and not OTHER_FLAGS.match(code):
        flag = code.split()[0]
        benchmarks = (path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
        if not any(flag in flags for flags in core_flags().values()) and not any(f'"{flag}"' in source for source in benchmarks):
            yield f"{flag}: there is no such flag"
    words = code.split()
    if len(words) > 1 and words[0] in core_flags():  # such as `generate --method adam`
        known = core_flags()[words[0]]
        yield from (f"{words[0]} has no flag {word}" for word in words if word.startswith("--") and word not in known)


def python_problems(source: str) -> Iterator[str]:
    """Problems of a Python block: its syntax, and its imports from this repository."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"Python that cannot be parsed: {error}"
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (problem for name in names if name.split(".")[0] in FOLDERS and (problem := name_problem(name)))


def problems(text: str, path: Path) -> list[str]:
    """All problems of a document. path: of the document, for its relative links."""
    tokens = markdown(text)
    found = list(link_problems(tokens, path))
    for token in inline(tokens):
        if token.type == "code_inline":
            found += code_problems(token.content)
    for token in tokens:
        language = token.info.strip()
        if token.type == "fence" and language == "python":
            found += python_problems(token.content)
        elif token.type == "code_block" or (token.type == "fence" and language in _SHELL):
            for line in token.content.replace("\\\n", " ").splitlines():
                found += command_problems(line.strip())
    if path == ROOT / "README.md" and len(text.splitlines()) > MOST_LINES:
        found.append(f"{len(text.splitlines())} lines: at most {MOST_LINES} are allowed")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_matches_the_repository(path):
    assert problems(path.read_text(encoding="utf-8"), path) == []


def test_every_document_is_reachable_from_the_readme():
    linked, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        linked.add(path)
        targets = {
            str(token.attrs["href"]).partition("#")[0]
            for token in inline(markdown(path.read_text(encoding="utf-8")))
            if "href" in token.attrs
        }
        pages = {(path.parent / target).resolve() for target in targets if target.endswith(".md") and ":" not in target}
        waiting += [page for page in pages if page.exists() and page not in linked]
    assert [path.name for path in (ROOT / "docs").glob("*.md") if path not in linked] == []


@pytest.mark.parametrize(
    "text",
    [
        "[Networks](docs/networks.md#by-name) and [here](#heading)\n\n# Heading",
        "![Studio](assets/studio.webp) [elsewhere](https://example.org/nothing.md)",
        "```sh\nRUNS_AT_ONCE=2 python -m core run --preset quick --bits 3 4 --json  # comment\n```",
        "    python -m core resume RUN",
        "`python -m core pretrain` and `python -m core export RUN --format onnx --out network.onnx`",
        "`python benchmarks/kills.py --kills 200`, `make bench`, `make run PYTHON=python3.12`",
        "`python -m pytest tests/core/evaluation/test_encoder.py -k zero_shot`",
        "`core/export/packed.py`, `assets/*.webp`, `core.export.packed.load_packed(path)`, `test_same_seed_same_bits`",
        "`--alpha-tv`, `--kills`, `--server.address`, `generate --epsilon 0.1`",
        "```python\nfrom core.export.packed import load_packed\n```",
        "```sh\nssh -L 8501:127.0.0.1:8501 HOST\nstreamlit run\n```",
    ],
)
def test_valid_text_is_accepted(text):
    assert problems(text, ROOT / "README.md") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[Networks](docs/nowhere.md)", "link to docs/nowhere.md, which does not exist"),
        ("![Picture](assets/nothing.webp)", "link to assets/nothing.webp"),
        ("[Outside](../secret.md)", "link to ../secret.md, which does not exist"),
        ("[Networks](docs/networks.md#no-such-heading)", "which has no such heading"),
        ("[here](#nothing)\n\n# Heading", "which has no such heading"),
        ("| a |\n|---|\n| [x](docs/nowhere.md) |", "link to docs/nowhere.md"),
        ('<img src="assets/nothing.webp">', "is HTML, which is not checked"),
        ("```sh\npython -m core quantise --images x\n```", "invalid choice: 'quantise'"),
        ("```sh\npython -m core run --prest quick\n```", "unrecognized arguments: --prest"),
        ("```sh\npython -m core run --preset quick \\\n    --bits four\n```", "four"),
        ("```sh\npython -m core pretrain\n```", "the following arguments are required: --out"),
        ("    RUNS_DIR=x python -m core resume", "the following arguments are required: RUN"),
        ("`python -m core export RUN --format onnx`", "the following arguments are required: --out"),
        ("`python -m core nothing`", "there is no such command"),
        ("    python -m core nothing --help", "there is no such command"),
        ("`python -m core run --preset fast`", "preset must be one of"),
        ("`time python -m core export RUN --format tiff --out x`", "format must be one of"),
        ("`python benchmarks/nothing.py`", "there is no such file"),
        ("`python benchmarks/kills.py --deaths 200`", "has no flag --deaths"),
        ("`python benchmarks/networks.py --deaths 200`", "has no flag --deaths"),
        ("`python benchmarks/kills.py --preset quick`", "has no flag --preset"),
        ("`python -m pytest tests/test_nothing.py`", "it does not exist"),
        ("`python -m pytest tests/test_documents.py::test_nothing`", "it does not exist"),
        ("`python -m pytest tests/core/evaluation/test_encoder.py -k one_shot`", "no test has that name"),
        ("`python -m examples.nothing set.npz`", "there is no such module"),
        ("`make coffee`", "make coffee: there is no such target"),
        ("`core/nothing.py`", "core/nothing.py does not exist"),
        ("`tests/nothing/*.py`", "tests/nothing/*.py does not exist"),
        ("`core.export.packed.load_zip(path)`", "has no load_zip"),
        ("`core.nothing.at_all`", "core/__init__.py has no nothing"),
        ("`test_there_is_no_such_test` `test_seconds`", "test_there_is_no_such_test: there is no such test"),
        ("`--no-such-flag`", "--no-such-flag: there is no such flag"),
        ("`export --epsilon 0.1`", "export has no flag --epsilon"),
        ("```python\nfrom core.export.packed import load_zip\n```", "has no load_zip"),
        ("```python\nfor\n```", "Python that cannot be parsed"),
        ("line\n" * (MOST_LINES + 1), f"{MOST_LINES + 1} lines: at most {MOST_LINES} are allowed"),
    ],
)
def test_problems_are_found(text, problem):
    found = problems(text, ROOT / "README.md")
    assert any(problem in one for one in found), found


def test_commands_are_not_executed(tmp_path):
    assert problems(f"```sh\npython -m core runs --runs {tmp_path}/runs\n```", ROOT / "README.md") == []
    assert list(tmp_path.iterdir()) == []
