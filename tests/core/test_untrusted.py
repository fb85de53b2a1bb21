"""Checks in a process of their own: results, errors, the limits on memory and time, and that nobody waits for a slow file."""

import errno
import os
import re
import sys
import threading
import time

import pytest

from core import untrusted
from core.errors import DataError, ModelError, UnknownNameError
from core.untrusted import check_apart

MEGABYTE = 1 << 20
TASKS = """
import ctypes, os, threading, time
from core.errors import DataError, UnknownNameError

def size(file, *, name, factor):
    print("this is no part of the answer")
    return {"name": name, "bytes": factor * len(file.read_bytes())}

def refuses(file, *, name):
    raise DataError(f"{name} must be better")

def does_not_know(file, *, name):
    raise UnknownNameError("color", "blue", ["red", "green"])

def fails_to_write(file, *, name):
    raise OSError(28, "No space left on device", "/somewhere")

def has_a_bug(file, *, name):
    return 1 / 0

def takes(file, *, name, megabytes):
    block = bytearray(megabytes << 20)
    return len(block)

def takes_what_it_was_given(file, *, name, megabytes):
    from core.untrusted import allow_more_memory
    allow_more_memory(100 << 20)
    return takes(file, name=name, megabytes=megabytes)

def grows(file, *, name):
    blocks = []
    while True:
        blocks.append(b"x" * (1 << 20))

def hides_it(file, *, name):
    try:
        bytearray(12 << 30)
    except MemoryError as error:
        raise DataError("cannot be read") from error

def aborts(file, *, name):
    os.abort()

def computes(file, *, name):
    while True:
        pass

def sleeps(file, *, name, seconds):
    time.sleep(seconds)
    return "done"
"""
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")


@pytest.fixture
def check(tmp_path, monkeypatch):
    """check(function, content, **arguments): one of TASKS in a process of its own, with a file."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "some_tasks.py").write_text(TASKS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "tasks"))

    def call(function, content=b"abc", **arguments):
        file = tmp_path / "a file"
        file.write_bytes(content)
        return check_apart(f"some_tasks:{function}", file, "mine.bin", **arguments)

    return call


def test_result_is_returned_and_prints_are_not_part_of_it(check):
    assert check("size", b"12345", factor=3) == {"name": "mine.bin", "bytes": 15}


def test_errors_are_raised_again_in_their_class(check):
    with pytest.raises(DataError, match=r"^mine.bin must be better$"):
        check("refuses")
    with pytest.raises(UnknownNameError, match="^unknown color 'blue': must be one of red, green$"):
        check("does_not_know")
    with pytest.raises(OSError, match="No space left on device") as caught:
        check("fails_to_write")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        check("has_a_bug")


TOO_MUCH = "^'mine.bin' needs more than 200 MB of memory to check; a file may need 4 times its size and 200 MB$"


@needs_linux
@pytest.mark.parametrize(("function", "arguments"), [("takes", {"megabytes": 12 << 10}), ("takes", {"megabytes": 201}), ("hides_it", {})])
def test_memory_beyond_the_limit_is_refused(check, function, arguments):
    with pytest.raises(ModelError, match=TOO_MUCH):
        check(function, error=ModelError, **arguments)


@needs_linux
def test_growing_process_ends_at_the_limit(check, children):
    check("takes", megabytes=1)
    before = children.peak()
    with pytest.raises(DataError, match=TOO_MUCH):
        check("grows")
    assert 100 * MEGABYTE < children.peak() - before < 202 * MEGABYTE


@needs_linux
def test_larger_files_may_take_more(check):
    assert check("takes", bytes(50 * MEGABYTE), megabytes=390) == 390 * MEGABYTE
    with pytest.raises(DataError, match="needs more than 400 MB"):
        check("takes", bytes(50 * MEGABYTE), megabytes=410)


@needs_linux
def test_work_of_the_users_size_may_take_more(check):
    assert check("takes_what_it_was_given", megabytes=290) == 290 * MEGABYTE
    with pytest.raises(DataError, match=TOO_MUCH):
        check("takes_what_it_was_given", megabytes=301)


def test_process_that_aborts_becomes_a_sentence(check):
    with pytest.raises(DataError, match="needs more than 200 MB of memory"):
        check("aborts")


def test_endless_computation_is_stopped(check, monkeypatch):
    monkeypatch.setattr(untrusted, "SECONDS", 1)
    with pytest.raises(DataError, match="^'mine.bin' took longer than 1 seconds to check"):
        check("computes")


def test_waiting_process_is_stopped_by_the_clock(check, monkeypatch):
    monkeypatch.setattr(untrusted, "SECONDS", 1)
    monkeypatch.setattr(untrusted, "_IMPORT_SECONDS", 0)
    start = time.monotonic()
    with pytest.raises(DataError, match="took longer than 1 seconds"):
        check("sleeps", seconds=1000)
    assert time.monotonic() - start < 60


def test_slow_file_does_not_keep_others_waiting(check):
    done = []
    slow = threading.Thread(target=lambda: done.append(check("sleeps", seconds=8)))
    slow.start()
    while not untrusted._slots._value < untrusted.AT_ONCE:
        time.sleep(0.01)
    assert check("size", factor=1)["bytes"] == 3
    assert done == []
    slow.join()
    assert done == ["done"]


def test_more_files_than_slots_wait_for_their_turn(check, monkeypatch):
    monkeypatch.setattr(untrusted, "_slots", threading.BoundedSemaphore(1))
    monkeypatch.setattr(untrusted, "WAIT_SECONDS", 0.1)
    slow = threading.Thread(target=check, args=("sleeps",), kwargs={"seconds": 3})
    slow.start()
    while untrusted._slots._value:
        time.sleep(0.01)
    with pytest.raises(DataError, match=re.escape("'mine.bin' could not be checked within 0.1 seconds, because 4 other files are")):
        check("size", factor=1)
    slow.join()
    assert check("size", factor=1)["bytes"] == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe, not a regular file"):
        check_apart("some_tasks:size", tmp_path / "pipe", "pipe")
