"""A full disk, and a runs folder that cannot be read or written: one sentence on stderr and exit code 1."""

import errno
import os
import sqlite3
from contextlib import closing

import pytest
from command_line import TINY, call, last_json
from safetensors import SafetensorError

from core.cli import commands
from core.runs import database
from core.runs.database import DATABASE


def said(capsys, *arguments) -> str:
    """Calls a command that must end with exit code 1; returns the last line on stderr, which has no traceback."""
    capsys.readouterr()
    assert call(*arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"python -m core {arguments[0]}: ")
    return last


def test_disk_that_fills_up_during_a_run_and_is_still_full_when_it_is_resumed(small_disk, capsys):
    runs, out = small_disk.folder / "runs", small_disk.folder / "out"
    assert call("runs", "--runs", runs) == 0
    small_disk.fill(100_000)
    sentence = f"the disk that holds {runs} is full: free some space and resume the run, which continues from its last resume state"
    assert sentence in said(capsys, "generate", *TINY, "--runs", runs, "--out", out)
    call("runs", "--json", "--runs", runs)
    (run,) = last_json(capsys)["runs"]
    assert (run["state"], run["error"]) == ("failed", sentence)
    assert sentence in said(capsys, "resume", run["id"], "--runs", runs)
    small_disk.remount("size=64m")
    assert call("resume", run["id"], "--runs", runs) == 0
    assert (out / "images.safetensors").is_file()


def test_disk_that_is_full_before_the_first_run(small_disk, capsys):
    small_disk.fill()
    runs = small_disk.folder / "runs"
    assert f"the disk that holds {runs} is full: free some space" in said(capsys, "generate", *TINY, "--runs", runs)
    assert f"the disk that holds {runs} is full: free some space" in said(capsys, "runs", "--runs", runs)


def test_full_disk_of_out_is_no_bad_input(small_disk, runs, capsys):
    small_disk.fill()
    out = small_disk.folder / "out"
    assert f"got {str(out)!r} (No space left on device): resume the run" in said(capsys, "generate", *TINY, "--out", out)


@pytest.mark.parametrize(
    ("error", "disk"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x.onnx"), "/data/x.onnx"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "/elsewhere/encoder"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/x.onnx"), "/data/x.onnx"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "/elsewhere/encoder"),
        (sqlite3.OperationalError("database or disk is full"), "/elsewhere/encoder"),
    ],
    ids=repr,
)
def test_every_error_of_a_full_disk(monkeypatch, capsys, error, disk):
    def fails(options):
        raise error

    monkeypatch.setattr(commands, "pretrain_encoder", fails)
    expected = f"the disk that holds {disk} is full: free some space and try again"
    assert said(capsys, "pretrain-encoder", "--out", "/elsewhere/encoder") == f"python -m core pretrain-encoder: {expected}"


def test_other_errors_are_bugs(monkeypatch):
    def fails(options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(commands, "list_names", fails)
    with pytest.raises(OSError, match="Input/output"):
        call("list")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="takes a device that is always full")
def test_result_that_cannot_be_printed(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert call("list") == 1
    assert "python -m core list: the result could not be printed (No space left on device)" in capsys.readouterr().err


def test_locked_database(runs, capsys, monkeypatch):
    monkeypatch.setattr(database, "SECONDS_FOR_A_LOCK", 0.1)
    call("runs")
    with closing(sqlite3.connect(runs / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert f"the database in {runs} is locked by another process: try again" in said(capsys, "generate", *TINY)
        assert call("runs") == 0
        other.execute("ROLLBACK")
