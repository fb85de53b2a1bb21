"""The command line in locales and on terminals without UTF-8, and with file names that are not text."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from command_line import ROOT, TINY

from core.cli.parser import build_parser

# a locale without UTF-8, which Python is told not to replace
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMANDS = next(action for action in build_parser()._actions if action.dest == "command").choices


def core(*arguments, **variables) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "core", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_help_of_every_command_can_be_printed(encoding):
    code = f"""
import runpy, sys
for arguments in {[["--help"], *([name, "--help"] for name in COMMANDS)]!r}:
    sys.argv[1:] = arguments
    try:
        runpy.run_module("core", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, arguments
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert rb"\u03b5" in done.stdout  # epsilon


@pytest.mark.slow
@pytest.mark.parametrize("variables", [C_LOCALE, {"PYTHONIOENCODING": "cp1252"}], ids=["C", "cp1252"])
def test_generate_and_list_runs(tmp_path, variables):
    options = ["--runs", str(tmp_path / "runs")]
    done = core("generate", *TINY, "--out", str(tmp_path / "images"), *options, "--json", **variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 8
    done = core("runs", *options, **variables)
    assert done.returncode == 0, done.stderr
    assert b"complete" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Überraschung ε".encode(), b"\xff\xfe not UTF-8"], ids=["Greek", "bytes"])
def test_class_folder_of_any_name(tmp_path, pictures, name):
    shutil.copytree(pictures, tmp_path / "real")
    os.rename(os.fsencode(tmp_path / "real" / "cat"), os.fsencode(tmp_path / "real") + b"/" + name)
    done = core("diversity", str(tmp_path / "real"), "--runs", str(tmp_path / "runs"), **C_LOCALE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("locale", "encoding"), [("C", "ASCII"), ("UTF-8", "UTF-8")])
@pytest.mark.parametrize("option", ["--out", "--runs", "--weights"])
def test_path_that_is_no_text_in_the_locale_is_refused(tmp_path, locale, encoding, option):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    variables = C_LOCALE if locale == "C" else {"PYTHONUTF8": "1"}
    done = core("generate", *TINY, "--out", str(tmp_path / "images"), option, path, **variables)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"must be a path in {encoding} without NUL".encode() in line
