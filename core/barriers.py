"""How the threads of OpenMP wait for each other: by spinning on an idle machine, by sleeping beside busy programs.

A thread that waits at a barrier spins before it sleeps, because waking up takes time: on two cores, a training step takes 9 % longer
without spinning. Beside a busy program, the thread that it waits for may have no core, and spinning takes one: the step takes up to 2.3
times as long as its fair share of the machine would take, but 1.1 times if threads sleep at once (benchmarks/busy.py). How threads wait
changes no bit of a result.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

# Value of GOMP_SPINCOUNT: how often a thread checks for the others before it sleeps. The default spins for some milliseconds; with this,
# a program that is busy for moments only, such as a browser, takes the core of a sleeping thread.
SPIN_COUNT = "20000"
BUSY = 0.5  # cores that other programs use; above it, threads sleep at once
INTERVAL = 0.5  # seconds between two looks at the load
_LIBRARY = "libgomp"  # GNU's OpenMP, which torch uses on Linux
_STAT = Path("/proc/stat")


def share_cores() -> None:
    """Lets other programs have their share of the cores, from now on and without an effect on results. Call it before torch is imported.

    On Linux, a thread of this process watches the load. Elsewhere, nothing happens.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if sys.platform == "linux" and _STAT.exists():
        _Watch().start()


class Doze:
    """Makes the threads of OpenMP in this process sleep at barriers, from `begin` until `end`.

    OpenMP's threads spin for a moment only while the process has more of them than it has cores (GOMP_SPINCOUNT in the manual of libgomp).
    `begin` adds as many, which sleep.
    """

    def __init__(self, library: Path) -> None:
        self._openmp = ctypes.CDLL(str(library))
        self._over: threading.Event | None = None

    @property
    def is_on(self) -> bool:
        """Between `begin` and `end`."""
        return self._over is not None

    def begin(self) -> None:
        """Threads sleep from now on."""
        if self._over is None:
            self._over = threading.Event()
            threading.Thread(target=self._hold, args=(self._over,), name="doze", daemon=True).start()

    def end(self) -> None:
        """Threads spin again."""
        if self._over is not None:
            self._over.set()
            self._over = None

    def _hold(self, over: threading.Event) -> None:
        """Keeps the threads of one parallel region, which end with this one."""
        harmless = ctypes.cast(self._openmp.omp_get_thread_num, ctypes.c_void_p)
        count = len(os.sched_getaffinity(0)) + 1
        self._openmp.GOMP_parallel(harmless, None, ctypes.c_uint(count), ctypes.c_uint(0))
        over.wait()


class Load:
    """How many cores other programs use, of those that this process may use."""

    def __init__(self, cores: Collection[int]) -> None:
        self._cores = cores
        self._last = (time.monotonic(), *self._seconds())

    def _seconds(self) -> tuple[float, float]:
        """Processor seconds of all programs so far, and of this process."""
        return busy_seconds(_STAT.read_text(encoding="ascii"), self._cores), time.process_time()

    def others(self) -> float:
        """On average since the last call; 0 where no time has passed."""
        (then, busy, own), self._last = self._last, (time.monotonic(), *self._seconds())
        now, busy_now, own_now = self._last
        if now <= then:
            return 0.0
        return max(0.0, (busy_now - busy) - (own_now - own)) / (now - then)


def busy_seconds(stat: str, cores: Collection[int]) -> float:
    """Processor seconds in which `cores` have not been idle since the start of the machine. stat: the content of /proc/stat."""
    ticks = 0
    for line in stat.splitlines():
        name, _, values = line.partition(" ")
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _waiting, *interrupts = (int(value) for value in values.split()[:8])
            ticks += user + nice + system + sum(interrupts)
    return ticks / os.sysconf("SC_CLK_TCK")


class _Watch(threading.Thread):
    """Decides by the load, for as long as the process runs."""

    def __init__(self) -> None:
        super().__init__(name="load", daemon=True)

    def run(self) -> None:
        while (library := loaded(_LIBRARY)) is None:
            time.sleep(INTERVAL)
        doze, load = Doze(library), Load(os.sched_getaffinity(0))
        while True:
            time.sleep(INTERVAL)
            if load.others() > BUSY:
                doze.begin()
            else:
                doze.end()


def loaded(name: str) -> Path | None:
    """The file of a shared library that this process has loaded, on Linux; None before it is."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        path = line.partition("/")
        if path[1] and Path(path[2]).name.startswith(name):
            return Path("/" + path[2])
    return None
