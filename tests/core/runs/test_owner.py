"""Liveness of processes, as known to the operating system and independent of the clock."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core.runs.owner import FOLDER, Owner

ROOT = Path(__file__).parents[3]
YEARS = 20 * 365 * 86400.0


@pytest.fixture
def me(tmp_path):
    owner = Owner(tmp_path)
    yield owner
    owner.close()


@pytest.fixture
def other(tmp_path):
    """(process, name of its owner)"""
    code = f"""
import sys
from pathlib import Path
from core.runs.owner import Owner
owner = Owner(Path({str(tmp_path)!r}))
print(owner.name, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate(timeout=10)


def test_owners_have_distinct_names_and_are_alive(tmp_path, me):
    second = Owner(tmp_path)
    assert me.name != second.name
    assert me.is_alive(me.name)
    assert me.is_alive(second.name)
    assert second.is_alive(me.name)
    second.close()
    assert not me.is_alive(second.name)
    assert not (tmp_path / FOLDER / second.name).exists()


def test_unknown_names_are_dead(me):
    assert not me.is_alive("")
    assert not me.is_alive("nobody")


@pytest.mark.parametrize("shift", [0.0, YEARS, -YEARS])
def test_killed_process_is_dead_and_suspended_process_is_alive(tmp_path, me, other, monkeypatch, shift):
    process, name = other
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift)
    os.utime(tmp_path / FOLDER / name, (now() - 2 * YEARS, now() - 2 * YEARS))
    assert me.is_alive(name)
    os.kill(process.pid, signal.SIGSTOP)
    me.remove_stale()
    assert me.is_alive(name)
    os.kill(process.pid, signal.SIGCONT)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert not me.is_alive(name)
    assert (tmp_path / FOLDER / name).exists()
    me.remove_stale()
    assert os.listdir(tmp_path / FOLDER) == [me.name]


def test_concurrent_tests_do_not_make_a_dead_process_look_alive(tmp_path, me):
    """Each thread that tests a dead process holds its lock for a moment."""
    dead = Owner(tmp_path)
    dead._lock.release()
    wrong = []

    def look():
        wrong.extend(name for _ in range(50) for name in (dead.name,) if me.is_alive(name))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert me.is_alive(me.name)


def test_exclusive_blocks_do_not_overlap(tmp_path, me):
    second, inside, most = Owner(tmp_path), [], []

    def work(owner):
        for _ in range(30):
            with owner.exclusive():
                inside.append(owner)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work, args=(owner,)) for owner in (me, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    second.close()
