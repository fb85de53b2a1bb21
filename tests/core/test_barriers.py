"""Threads of OpenMP sleep at barriers beside busy programs, and spin on an idle machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from core import barriers
from core.barriers import Doze, Load, busy_seconds, loaded

STAT = """cpu  900 0 0 0 0 0 0 0 0 0
cpu0 100 10 20 5000 300 1 2 3 50 0
cpu1 200 0 0 5000 0 0 0 0 0 0
cpu10 400 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""
linux = pytest.mark.skipif(sys.platform != "linux" or loaded("libgomp") is None, reason="needs Linux and torch with GNU's OpenMP")


@pytest.mark.parametrize(("cores", "ticks"), [({0}, 136), ({1}, 200), ({0, 1}, 336), ({10}, 400), (set(), 0)])
def test_busy_seconds_count_neither_idle_nor_waiting_nor_guests_twice(cores, ticks):
    assert busy_seconds(STAT, cores) == ticks / os.sysconf("SC_CLK_TCK")


def test_own_processor_time_is_not_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(barriers, "_STAT", tmp_path / "stat")
    times = {"now": 10.0, "own": 1.0}
    monkeypatch.setattr(barriers.time, "monotonic", lambda: times["now"])
    monkeypatch.setattr(barriers.time, "process_time", lambda: times["own"])

    def busy(seconds: float) -> None:
        (tmp_path / "stat").write_text(f"cpu0 {round(seconds * os.sysconf('SC_CLK_TCK'))} 0 0 0 0 0 0 0\n", encoding="ascii")

    busy(50)
    load = Load({0})
    busy(56)
    times.update(now=14.0, own=3.0)
    assert load.others() == 1.0  # 6 s in 4 s, of which 2 are this process's
    times.update(now=16.0, own=5.0)
    assert load.others() == 0.0
    assert load.others() == 0.0  # at the same time


def openmp_threads() -> int:
    """Threads of this process; no other test changes their number meanwhile."""
    return len(list(Path("/proc/self/task").iterdir()))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@linux
def test_doze_holds_more_threads_than_cores_and_releases_them():
    library = loaded("libgomp")
    assert library is not None
    before, cores = openmp_threads(), len(os.sched_getaffinity(0))
    images = torch.arange(1_000_000.0)
    expected = images.sum()
    doze = Doze(library)
    for _ in range(2):
        doze.begin()
        doze.begin()
        assert doze.is_on
        wait_for(lambda: openmp_threads() == before + cores + 1)
        assert torch.equal(images.sum(), expected)
        doze.end()
        doze.end()
        assert not doze.is_on
        wait_for(lambda: openmp_threads() == before)
        assert torch.equal(images.sum(), expected)


PROGRAM = """
import sys, threading, time
import core.barriers
core.barriers.BUSY = float(sys.argv[1])
core.barriers.share_cores()
import torch
torch.arange(1_000_000.0).sum()
deadline = time.monotonic() + float(sys.argv[2])
while not (dozing := any(thread.name == "doze" for thread in threading.enumerate())) and time.monotonic() < deadline:
    time.sleep(0.1)
print(dozing)
"""


@linux
# the tests keep the machine busy: what happens without others is seen with a limit that nothing reaches
@pytest.mark.parametrize(("limit", "seconds", "expected"), [(barriers.BUSY, 60, "True"), (1000, 2, "False")])
def test_a_process_dozes_while_others_are_busy(limit, seconds, expected):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        command = [sys.executable, "-c", PROGRAM, str(limit), str(seconds)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert printed.strip() == expected


def test_the_spin_count_of_the_user_is_kept(monkeypatch):
    monkeypatch.setattr(barriers.sys, "platform", "elsewhere")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    barriers.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    barriers.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == barriers.SPIN_COUNT
